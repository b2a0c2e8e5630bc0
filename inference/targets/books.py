"""Textbook programs whose posterior has symmetric modes: references are of what the symmetry leaves alone."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .reference import read_reference
from .target import Target

__all__ = ["bayesian_mixture", "bayesian_network", "bayesian_ppca"]


def _points(*arrays: np.ndarray) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(a, dtype=torch.float32) for a in arrays)


def bayesian_mixture(observations: int = 90, seed: int = 0) -> Target:
    """A mixture of three normals with unknown weights, means and scales; the memberships are summed out.

    weights ~ Dirichlet(2, 2, 2), mean_k ~ N(0, 5), scale_k ~ LogNormal(0, 1/2). Any permutation of the components has
    the same density: 3! = 6 symmetric modes, so the reference is of `density`, the mixture's density on a grid of 15
    points, and of `scale_sum`. Made data.

    Source: Bishop (2006), Pattern recognition and machine learning, section 9.2, with priors.
    """
    random = np.random.RandomState(seed)
    member = random.choice(3, observations, p=[0.5, 0.3, 0.2])
    x = np.array([-4.0, 1.0, 5.0])[member] + np.array([0.7, 1.0, 0.5])[member] * random.randn(observations)

    def mixture(x: Tensor, grid: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(x.new_full((3,), 2.0)))
        with pyro.plate("components", 3):
            mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 5.0))
            scale = pyro.sample("scale", dist.LogNormal(x.new_tensor(0.0), 0.5))
        parts = (grid[:, None] - mean) / scale
        heights = torch.exp(-0.5 * parts.square()) / (scale * math.sqrt(2 * math.pi))
        pyro.deterministic("density", (weights * heights).sum(-1))
        pyro.deterministic("scale_sum", scale.sum(-1))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(mean[c], scale[c]), obs=x)

    args = _points(x, np.linspace(-6.0, 7.0, 15))
    stored = "bayesian-mixture" if (observations, seed) == (90, 0) else ""
    return Target("Bayesian mixture", mixture, args, 8, hard="six symmetric modes", **read_reference(stored, args))


def bayesian_ppca(observations: int = 60, observed: int = 5, latent: int = 2, seed: int = 0) -> Target:
    """Probabilistic PCA with priors: z_n ~ N(0, I), x_n ~ N(W z_n + mu, noise), W_ij ~ N(0, 1), mu ~ N(0, 2),
    noise ~ LogNormal(-1, 1).

    W and z may be rotated together, so the reference is of mu, noise and the deterministic `covariance`,
    W W^T + noise^2 I. Made data.

    Source: Bishop (1999), Bayesian PCA, with fixed scales.
    """
    random = np.random.RandomState(seed)
    loadings = random.randn(observed, latent) * np.array([1.5, 0.8])[:latent]
    x = random.randn(observations, latent) @ loadings.T + 1.0 + 0.5 * random.randn(observations, observed)

    def ppca(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(x.new_zeros(observed, latent), 1.0).to_event(2))
        mu = pyro.sample("mu", dist.Normal(x.new_zeros(observed), 2.0).to_event(1))
        noise = pyro.sample("noise", dist.LogNormal(x.new_tensor(-1.0), 1.0))
        pyro.deterministic("covariance", w @ w.mT + noise.square() * torch.eye(observed).to(x))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(latent), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ w.mT + mu, noise).to_event(1), obs=x)

    args = _points(x)
    stored = "bayesian-ppca" if (observations, observed, latent, seed) == (60, 5, 2, 0) else ""
    dim = observed * (latent + 1) + 1 + observations * latent
    return Target("Bayesian PPCA", ppca, args, dim, hard="rotations of the factors", **read_reference(stored, args))


def bayesian_network(observations: int = 30, hidden: int = 8, seed: int = 0) -> Target:
    """A Bayesian neural net for regression: y ~ N(sum_h v_h tanh(w_h x + c_h), 0.3), all weights normal a priori.

    w, c ~ N(0, 1.5), v ~ N(0, 1). Hidden units may be exchanged, and the signs of (w_h, c_h, v_h) flipped together:
    hidden! 2^hidden symmetric modes, so the reference is of the deterministic `prediction` at eleven inputs. Made data.

    Source: Neal (1996), Bayesian learning for neural networks.
    """
    random = np.random.RandomState(seed)
    x = np.sort(random.uniform(-2.0, 2.0, observations))
    y = np.sin(1.5 * x) + 0.3 * random.randn(observations)

    def net(x: Tensor, y: Tensor, inputs: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(x.new_zeros(hidden), 1.5).to_event(1))
        c = pyro.sample("c", dist.Normal(x.new_zeros(hidden), 1.5).to_event(1))
        v = pyro.sample("v", dist.Normal(x.new_zeros(hidden), 1.0).to_event(1))
        pyro.deterministic("prediction", torch.tanh(inputs[:, None] * w + c) @ v)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(torch.tanh(x[:, None] * w + c) @ v, 0.3), obs=y)

    args = _points(x, y, np.linspace(-2.5, 2.5, 11))
    stored = "bayesian-network" if (observations, hidden, seed) == (30, 8, 0) else ""
    return Target("Bayesian neural net", net, args, 3 * hidden, hard="symmetric modes", **read_reference(stored, args))
