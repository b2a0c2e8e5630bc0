"""Paths from the prior to the posterior, and what the samplers along them share."""
