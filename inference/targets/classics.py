"""The classics on which samplers are compared; their references are long runs of our own, stored with their errors."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .reference import read_reference
from .target import Target

__all__ = [
    "breast_cancer",
    "eight_schools",
    "eight_schools_centred",
    "german_credit",
    "item_response",
    "radon",
    "sparse_logistic",
    "stochastic_volatility",
]

# Made data come from NumPy's legacy generator, whose stream is frozen: the same on every machine and version.


def _floats(*arrays: Any) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(np.asarray(a), dtype=torch.float32) for a in arrays)


def _target(name: str, stored: str, program: Callable[..., Any], args: tuple[Any, ...], dim: int, hard: str) -> Target:
    return Target(name, program, args, dim, hard=hard, **read_reference(stored, args))


# -- eight schools -------------------------------------------------------------------------------------------


def _schools() -> tuple[Tensor, ...]:
    return _floats([28, 8, -3, 7, -1, 1, 18, 12], [15, 10, 16, 11, 9, 11, 10, 18])


def eight_schools() -> Target:
    """Effects of coaching in eight schools, non-centred: theta_j = mu + tau t_j, t_j ~ N(0, 1).

    mu ~ N(0, 5), tau ~ HalfCauchy(5), y_j ~ N(theta_j, sigma_j).

    Source: Rubin (1981), Estimation in parallel randomized experiments; the priors are those of posteriordb.
    """

    def schools(y: Tensor, sigma: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
        with pyro.plate("schools", len(y)):
            t = pyro.sample("t", dist.Normal(y.new_tensor(0.0), 1.0))
            theta = pyro.deterministic("theta", mu + tau * t)
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    return _target("eight schools", "eight-schools", schools, _schools(), 10, "a long tail of tau")


def eight_schools_centred() -> Target:
    """The same posterior, centred: theta_j ~ N(mu, tau). A funnel; the reference is that of `eight_schools`."""

    def schools(y: Tensor, sigma: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
        with pyro.plate("schools", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    return _target("eight schools, centred", "eight-schools", schools, _schools(), 10, "a funnel in tau")


# -- logistic regression -------------------------------------------------------------------------------------


def _logistic(x: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)


def breast_cancer() -> Target:
    """Logistic regression of the diagnosis on scikit-learn's breast cancer data, 569 x 31 with the intercept.

    Columns standardised; b_j ~ N(0, 1).
    """
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    args = _floats(np.c_[np.ones(len(x)), (x - x.mean(0)) / x.std(0)], y)
    return _target("breast cancer", "breast-cancer", _logistic, args, 31, "strongly correlated columns")


def _credit(seed: int) -> tuple[Tensor, ...]:
    """1000 x 25 made data in the manner of the German credit data: correlated, some columns binary or skewed."""
    random = np.random.RandomState(seed)
    factors = random.randn(1000, 5)
    x = 0.6 * factors @ random.randn(5, 24) + random.randn(1000, 24)
    x[:, 12:20] = x[:, 12:20] > 0.8  # indicators
    x[:, 20:] = np.exp(0.5 * x[:, 20:])  # amounts
    x = (x - x.mean(0)) / x.std(0)
    b = random.randn(24) * np.repeat([0.8, 0.3, 0.0], 8)[random.permutation(24)]
    good = random.rand(1000) < 1 / (1 + np.exp(-(1.1 + x @ b)))
    return _floats(np.c_[np.ones(1000), x], good)


def german_credit(seed: int = 0) -> Target:
    """Logistic regression on made data of the size and kind of the German credit data, 1000 x 25; b_j ~ N(0, 1)."""
    return _target(
        "credit", "german-credit" if seed == 0 else "", _logistic, _credit(seed), 25, "little: nearly a Gaussian"
    )


def sparse_logistic(seed: int = 0) -> Target:
    """The same made data with a prior that shrinks: b_j = u_j local_j global, a product of three sites.

    u_j ~ N(0, 1), local_j ~ Gamma(1/2, 1/2), global ~ Gamma(1/2, 1/2): 51 coordinates.

    Source: the sparse logistic regression of the Inference Gym (Sountsov, Radul and others, 2020).
    """

    def sparse(x: Tensor, y: Tensor) -> None:
        half = x.new_tensor(0.5)
        u = pyro.sample("u", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
        local = pyro.sample("local", dist.Gamma(half.expand(x.shape[1]), half).to_event(1))
        overall = pyro.sample("global", dist.Gamma(half, half))
        b = pyro.deterministic("b", u * local * overall[..., None])
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)

    stored = "sparse-logistic" if seed == 0 else ""
    return _target("sparse logistic", stored, sparse, _credit(seed), 51, "funnels: scales times weights")


# -- many coordinates ----------------------------------------------------------------------------------------


def item_response(students: int = 400, questions: int = 100, seed: int = 0) -> Target:
    """Who answered which question rightly: logit P = mean + ability of the student - difficulty of the question.

    With the defaults 501 coordinates, all standard normal a priori but for mean ~ N(0.75, 1); made data.

    Source: the one-parameter model of the Inference Gym (2020); published figures are for its own made data.
    """
    random = np.random.RandomState(seed)
    ability, difficulty = random.randn(students), random.randn(questions)
    chance = 1 / (1 + np.exp(-(0.75 + ability[:, None] - difficulty)))
    args = _floats(random.rand(students, questions) < chance)

    def irt(right: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(right.new_tensor(0.75), 1.0))
        ability = pyro.sample("ability", dist.Normal(right.new_zeros(right.shape[0]), 1.0).to_event(1))
        difficulty = pyro.sample("difficulty", dist.Normal(right.new_zeros(right.shape[1]), 1.0).to_event(1))
        logits = mean + ability[..., :, None] - difficulty[..., None, :]
        pyro.sample("right", dist.Bernoulli(logits=logits).to_event(2), obs=right)

    stored = "item-response" if (students, questions, seed) == (400, 100, 0) else ""
    return _target("item response", stored, irt, args, 1 + students + questions, "many coordinates")


def _autoregression(shocks: Tensor, phi: Tensor) -> Tensor:
    """h_t = phi h_(t-1) + shock_t from h_0 = shock_0, in log2(T) doublings instead of T steps, [..., t]."""
    h, power, reach = shocks, phi[..., None], 1
    while reach < shocks.shape[-1]:
        h = h + power * torch.nn.functional.pad(h[..., :-reach], (reach, 0))
        power, reach = power.square(), 2 * reach
    return h


def stochastic_volatility(days: int = 200, seed: int = 0) -> Target:
    """Returns whose log scale is an autoregression, non-centred: made data, `days` + 3 coordinates.

    sigma ~ Exponential(1); mean ~ StudentT(3, -5, 2); persistence: (phi + 1) / 2 ~ Beta(20, 1.5);
    h_1 = mean + sigma / sqrt(1 - phi^2) e_1; h_t = mean + phi (h_{t-1} - mean) + sigma e_t; y_t ~ N(0, exp(h_t / 2)).

    References are stored for 200 days (every coordinate) and for 2500 (all but the single days' noise, and the log
    scale of every 50th day). Published figures are for 2500 days of the S&P 500 under a like program: other data.

    Source: Kim, Shephard and Chib (1998), Stochastic volatility: likelihood inference and comparison with ARCH models.
    """
    random = np.random.RandomState(seed)
    h, shocks = np.zeros(days), 0.3 * random.randn(days)
    h[0] = shocks[0] / np.sqrt(1 - 0.95**2)
    for t in range(1, days):
        h[t] = 0.95 * h[t - 1] + shocks[t]
    args = _floats(random.randn(days) * np.exp(h / 2 - 2.5))

    def volatility(y: Tensor) -> None:
        sigma = pyro.sample("sigma", dist.Exponential(y.new_tensor(1.0)))
        mean = pyro.sample("mean", dist.StudentT(y.new_tensor(3.0), -5.0, 2.0))
        half = pyro.sample("half", dist.Beta(y.new_tensor(20.0), 1.5))
        phi = pyro.deterministic("phi", 2 * half - 1)
        noise = pyro.sample("noise", dist.Normal(torch.zeros_like(y), 1.0).to_event(1))
        first = noise[..., :1] / (1 - phi.square()).sqrt()[..., None]
        shocks = sigma[..., None] * torch.cat([first, noise[..., 1:]], -1)
        h = mean[..., None] + _autoregression(shocks, phi)
        pyro.deterministic("some_days", h[..., ::50])
        pyro.sample("y", dist.Normal(torch.zeros_like(h), (h / 2).exp()).to_event(1), obs=y)

    stored = {200: "stochastic-volatility", 2500: "stochastic-volatility-2500"}.get(days, "") if seed == 0 else ""
    return _target("stochastic volatility", stored, volatility, args, 3 + days, "many dependent coordinates")


def radon(homes: int = 919, counties: int = 85, seed: int = 0) -> Target:
    """Log radon in homes of counties, varying intercepts, non-centred; made data of the shape of Minnesota's.

    intercept_c = a + b uranium_c + tau e_c; log radon ~ N(intercept_c + slope floor, sigma); a, b, slope ~ N(0, 1),
    tau, sigma ~ HalfNormal(1), e_c ~ N(0, 1): with the defaults 90 coordinates. A few counties have most of the homes
    and many only a handful, as there.

    Source: Gelman and Hill (2007), Data analysis using regression and multilevel models, chapter 12, for the model.
    """
    random = np.random.RandomState(seed)
    share = np.exp(1.2 * random.randn(counties))
    extra = np.cumsum(share / share.sum())
    county = np.r_[np.arange(counties), np.searchsorted(extra, random.rand(homes - counties))].clip(max=counties - 1)
    uranium, floor = random.randn(counties), random.rand(homes) < 0.17
    intercepts = 1.4 + 0.3 * uranium + 0.25 * random.randn(counties)
    level = intercepts[county] - 0.65 * floor + 0.75 * random.randn(homes)
    args = (*_floats(level, floor, uranium), torch.tensor(county))

    def levels(y: Tensor, floor: Tensor, uranium: Tensor, county: Tensor) -> None:
        zero, one = y.new_tensor(0.0), y.new_tensor(1.0)
        a = pyro.sample("a", dist.Normal(zero, 1.0))
        b = pyro.sample("b", dist.Normal(zero, 1.0))
        slope = pyro.sample("slope", dist.Normal(zero, 1.0))
        tau = pyro.sample("tau", dist.HalfNormal(one))
        sigma = pyro.sample("sigma", dist.HalfNormal(one))
        with pyro.plate("counties", len(uranium)):
            e = pyro.sample("e", dist.Normal(zero, 1.0))
        intercept = pyro.deterministic("intercept", a + b * uranium + tau * e)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(intercept[county] + slope * floor, sigma), obs=y)

    stored = "radon" if (homes, counties, seed) == (919, 85, 0) else ""
    return _target("radon", stored, levels, args, 5 + counties, "a hierarchy with small groups")
