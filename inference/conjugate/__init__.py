"""Conditionals and posteriors in closed form, recognised from the density of any program."""
