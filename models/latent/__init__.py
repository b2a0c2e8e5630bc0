"""Latent-variable models with one level of continuous latent sites."""
