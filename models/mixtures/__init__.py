"""Finite mixtures: one discrete latent site per example, summed out exactly."""
