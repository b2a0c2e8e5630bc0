"""Comparison of algorithms under equal budgets against a reference."""
