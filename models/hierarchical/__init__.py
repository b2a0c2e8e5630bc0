"""Latent-variable models with several levels of latent sites."""
