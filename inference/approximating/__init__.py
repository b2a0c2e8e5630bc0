"""Modes, normal approximations and importance weights."""
