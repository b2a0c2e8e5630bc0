"""Targets whose posterior is known in closed form: moments, evidence and independent draws are exact."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy.special import betaln, gammaln
from torch import Tensor

from ppl_dgm.errors import ProgramError

from .target import Target, known_moments

__all__ = [
    "banana",
    "beta_binomial",
    "cauchy",
    "far_modes",
    "funnel",
    "ill_conditioned_gaussian",
    "linear_regression",
    "normal_gamma",
]


def _normals(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


# -- distributions without data ------------------------------------------------------------------------------


def ill_conditioned_gaussian(dim: int = 100, condition: float = 1e4) -> Target:
    """Independent normals whose variances are spaced logarithmically over a factor `condition`."""
    scales = torch.logspace(-0.25, 0.25, dim, base=condition, dtype=torch.float64)

    def gaussian(scales: Tensor) -> None:
        pyro.sample("x", dist.Normal(torch.zeros_like(scales), scales).to_event(1))

    return Target(
        "ill-conditioned Gaussian",
        gaussian,
        (scales.float(),),
        dim,
        **known_moments(x=(0.0, scales**2, 3 * scales**4)),
        log_evidence=0.0,
        draw=lambda n: {"x": _normals(n, dim) * scales},
        hard="scales differ",
    )


def banana(scale: float = 10.0, curvature: float = 0.03) -> Target:
    """A normal bent into a parabola: x ~ N(0, scale), y | x ~ N(curvature (x^2 - scale^2), 1).

    Source: Haario, Saksman and Tamminen (1999), Adaptive proposal distribution for random walk Metropolis algorithm.
    """

    def twisted(scale: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros_like(scale), scale))
        pyro.sample("y", dist.Normal(curvature * (x.square() - scale.square()), 1.0))

    def draw(n: int) -> dict[str, Tensor]:
        x = scale * _normals(n)
        return {"x": x, "y": curvature * (x.square() - scale**2) + _normals(n)}

    bend = curvature * scale**2  # y = bend * (chi^2 - 1) + e: second and fourth moments of chi^2 - 1 are 2 and 60
    return Target(
        "banana",
        twisted,
        (torch.tensor(scale),),
        2,
        **known_moments(
            x=(0.0, scale**2, 3 * scale**4),
            y=(0.0, 2 * bend**2 + 1, 60 * bend**4 + 12 * bend**2 + 3),
        ),
        log_evidence=0.0,
        draw=draw,
        hard="curved, with long thin tails",
    )


def funnel(dim: int = 10) -> Target:
    """Neal's funnel: v ~ N(0, 3), x_i | v ~ N(0, exp(v / 2)).

    The moments of x are exact as well, but say little: Var[x^2] is 2 10^8, so that draws which miss half of v still
    have a small b^2 there. Judge by v.

    Source: Neal (2003), Slice sampling, section 8.
    """

    def neal(scale: Tensor) -> None:
        v = pyro.sample("v", dist.Normal(torch.zeros_like(scale), scale))
        pyro.sample("x", dist.Normal(0.0, (v / 2).exp()).expand([dim - 1]).to_event(1))

    def draw(n: int) -> dict[str, Tensor]:
        v = 3 * _normals(n)
        return {"v": v, "x": _normals(n, dim - 1) * (v / 2).exp()[:, None]}

    spread = torch.ones(dim - 1, dtype=torch.float64)
    return Target(
        "Neal's funnel",
        neal,
        (torch.tensor(3.0),),
        dim,
        **known_moments(v=(0.0, 9.0, 243.0), x=(0.0, math.exp(4.5) * spread, 3 * math.exp(18.0) * spread)),
        log_evidence=0.0,
        draw=draw,
        hard="curvature differs from place to place",
    )


def cauchy(dim: int = 10) -> Target:
    """Independent standard Cauchy variables: they have quantiles, but no moments.

    The deterministic site `surprise` is minus the log density of each, log pi + log(1 + x^2), which has moments: its
    mean is the entropy log(4 pi), its variance pi^2 / 3.
    """

    def tails(scale: Tensor) -> None:
        x = pyro.sample("x", dist.Cauchy(torch.zeros_like(scale), scale).to_event(1))
        pyro.deterministic("surprise", math.log(math.pi) + torch.log1p(x.square()))

    def draw(n: int) -> dict[str, Tensor]:
        x = torch.tan(math.pi * (torch.rand(n, dim, dtype=torch.float64) - 0.5))
        return {"x": x, "surprise": math.log(math.pi) + torch.log1p(x.square())}

    zeta3 = 1.2020569031595942
    centred = math.pi**2 / 3, 12 * zeta3, math.pi**4 * (1 - 1 / 15) + 3 * (math.pi**2 / 3) ** 2  # second to fourth
    first = math.log(4 * math.pi)
    second = centred[0] + first**2
    fourth = centred[2] + 4 * first * centred[1] + 6 * first**2 * centred[0] + first**4
    probabilities = (0.05, 0.25, 0.5, 0.75, 0.95)
    return Target(
        "Cauchy",
        tails,
        (torch.ones(dim),),
        dim,
        **known_moments(surprise=(torch.full((dim,), first, dtype=torch.float64), second, fourth)),
        quantiles={
            "x": {p: torch.full((dim,), math.tan(math.pi * (p - 0.5)), dtype=torch.float64) for p in probabilities}
        },
        log_evidence=0.0,
        draw=draw,
        hard="heavy tails, no moments",
    )


# -- posteriors ----------------------------------------------------------------------------------------------


def far_modes(dim: int = 2, distance: float = 20.0, weight: float = 0.3) -> Target:
    """Two unit normals at -distance / 2 (of that weight) and +distance / 2 in every coordinate.

    The story is a measurement that may have lost its sign: x ~ N(0, distance / 2); with probability `weight` one sees
    y = -x + noise, else y = x + noise. Prior, noise and y are such that the posterior is this mixture exactly. The prior
    covers both modes, so that what is tempered from prior to posterior can find them.

    Raises:
        ProgramError: the distance is not above 2, so that no such prior exists, or the weight is not in (0, 1).
    """
    half = distance / 2
    if half <= 1 or not 0 < weight < 1:
        raise ProgramError(
            f"far_modes: distance is {distance:g} and weight {weight:g}; give a distance above 2, since the modes have "
            "unit scale, and a weight between 0 and 1."
        )
    noise_variance = 1 / (1 - 1 / half**2)  # 1 = 1 / noise_variance + 1 / half^2 is the precision of a mode

    def modes(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros_like(y), half).to_event(1))
        signs = dist.Categorical(torch.stack([y.new_tensor(weight), y.new_tensor(1 - weight)]))
        means = torch.stack([-x, x], -2)
        parts = dist.Normal(means, math.sqrt(noise_variance)).to_event(1)
        pyro.sample("y", dist.MixtureSameFamily(signs, parts), obs=y)

    def draw(n: int) -> dict[str, Tensor]:
        sign = 1 - 2 * (torch.rand(n, 1, dtype=torch.float64) < weight).double()
        return {"x": sign * half + _normals(n, dim)}

    seen = torch.full((dim,), half * noise_variance)
    spread = math.sqrt(noise_variance + half**2)
    evidence = -0.5 * (half * noise_variance / spread) ** 2 - math.log(spread) - 0.5 * math.log(2 * math.pi)
    one = torch.ones(dim, dtype=torch.float64)
    return Target(
        "far modes",
        modes,
        (seen,),
        dim,
        **known_moments(
            x=((1 - 2 * weight) * half * one, 1 + half**2, half**4 + 6 * half**2 + 3),
        ),
        log_evidence=dim * evidence,
        draw=draw,
        hard="no path between the modes",
    )


def beta_binomial(prior: tuple[float, float] = (2.0, 3.0)) -> Target:
    """Coins tossed 0 to 200 times each, none related to another: p_i ~ Beta(prior), heads_i ~ Binomial(tosses_i, p_i).

    The posterior of each is Beta(a + heads, b + tails).
    """
    tosses = torch.tensor([0.0, 1, 1, 3, 10, 10, 20, 50, 50, 200])
    heads = torch.tensor([0.0, 0, 1, 2, 0, 7, 19, 25, 50, 61])

    def coins(heads: Tensor, tosses: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(torch.full_like(tosses, prior[0]), prior[1]).to_event(1))
        pyro.sample("heads", dist.Binomial(tosses, p).to_event(1), obs=heads)

    n, k = tosses.double(), heads.double()
    a, b = prior[0] + k, prior[1] + n - k
    powers = [torch.ones_like(a)]
    for i in range(4):
        powers.append(powers[-1] * (a + i) / (a + b + i))  # E[p^(i + 1)]
    chosen = -np.log1p(n.numpy()) - betaln((n - k + 1).numpy(), (k + 1).numpy())  # log of n over k
    return Target(
        "Beta-Binomial",
        coins,
        (heads, tosses),
        len(heads),
        **known_moments(p=(powers[1], powers[2], powers[4])),
        log_evidence=float((chosen + betaln(a.numpy(), b.numpy()) - betaln(*prior)).sum()),
        draw=lambda n: {"p": torch.distributions.Beta(a, b).sample((n,))},
        hard="nothing: it is conjugate",
    )


def linear_regression(observations: int = 50, dim: int = 8, seed: int = 0) -> Target:
    """y ~ N(X w, 0.5) with w_j ~ N(0, 2), on made data with correlated columns: the posterior is a Gaussian."""
    noise, prior = 0.5, 2.0
    random = np.random.RandomState(seed)
    columns = random.randn(observations, dim) + random.randn(observations, 1)
    outcome = columns @ random.randn(dim) + noise * random.randn(observations)

    def regression(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[1]), prior).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x @ w, noise), obs=y)

    # what the program sees is what it is in float32
    x, y = torch.tensor(columns).float().double(), torch.tensor(outcome).float().double()
    precision = x.T @ x / noise**2 + torch.eye(dim, dtype=torch.float64) / prior**2
    covariance = torch.linalg.inv(precision)
    centre = covariance @ (x.T @ y) / noise**2
    root = torch.linalg.cholesky(covariance)
    variance = covariance.diagonal()
    marginal = noise**2 * torch.eye(observations, dtype=torch.float64) + prior**2 * x @ x.T
    evidence = torch.distributions.MultivariateNormal(torch.zeros_like(y), marginal).log_prob(y)
    second = variance + centre**2
    return Target(
        "linear regression",
        regression,
        (x.float(), y.float()),
        dim,
        **known_moments(w=(centre, second, 3 * variance**2 + 6 * variance * centre**2 + centre**4)),
        log_evidence=float(evidence),
        draw=lambda n: {"w": centre + _normals(n, dim) @ root.T},
        hard="correlated coordinates",
    )


def normal_gamma(observations: int = 20, seed: int = 0) -> Target:
    """A normal of unknown mean and precision t: t ~ Gamma(2, 1), mean | t ~ N(0, 1 / sqrt(t / 2)); made data.

    The posterior of the precision is a Gamma distribution, that of the mean a Student t.

    Source: Murphy (2007), Conjugate Bayesian analysis of the Gaussian distribution, section 3.
    """
    weight, shape, rate = 0.5, 2.0, 1.0
    x = torch.tensor(1.0 + 2.0 * np.random.RandomState(seed).randn(observations)).float()

    def normal(x: Tensor) -> None:
        precision = pyro.sample("precision", dist.Gamma(x.new_tensor(shape), rate))
        mean = pyro.sample("mean", dist.Normal(torch.zeros_like(precision), (weight * precision).rsqrt()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, precision.rsqrt()), obs=x)

    n, average = observations, float(x.double().mean())
    squares = float((x.double() - average).square().sum())
    weight_n, shape_n = weight + n, shape + n / 2
    centre = n * average / weight_n
    rate_n = rate + squares / 2 + weight * n * average**2 / (2 * weight_n)
    freedom, scale2 = 2 * shape_n, rate_n / (shape_n * weight_n)
    t2, t4 = freedom / (freedom - 2), 3 * freedom**2 / ((freedom - 2) * (freedom - 4))  # of a Student t
    gamma = [float(np.exp(gammaln(shape_n + k) - gammaln(shape_n))) / rate_n**k for k in range(5)]
    evidence = gammaln(shape_n) - gammaln(shape) + shape * math.log(rate) - shape_n * math.log(rate_n)
    evidence += 0.5 * math.log(weight / weight_n) - n / 2 * math.log(2 * math.pi)

    def draw(n: int) -> dict[str, Tensor]:
        gamma = torch.distributions.Gamma(torch.tensor(shape_n, dtype=torch.float64), rate_n)
        precision = gamma.sample((n,))
        return {"precision": precision, "mean": centre + _normals(n) / (weight_n * precision).sqrt()}

    return Target(
        "Normal-Gamma",
        normal,
        (x,),
        2,
        **known_moments(
            mean=(
                centre,
                centre**2 + scale2 * t2,
                centre**4 + 6 * centre**2 * scale2 * t2 + scale2**2 * t4,
            ),
            precision=(gamma[1], gamma[2], gamma[4]),
        ),
        log_evidence=float(evidence),
        draw=draw,
        hard="nothing: it is conjugate",
    )
