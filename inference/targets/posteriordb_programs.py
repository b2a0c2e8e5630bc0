"""Eight posteriors of posteriordb as Pyro programs, each with how its arguments are made of the database's data."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = ["PROGRAMS"]


def _flat(count: int | None = None, support: Any = constraints.real) -> Any:
    """The improper uniform distribution over numbers, or over vectors of `count` of them."""
    return dist.ImproperUniform(support, (), () if count is None else (count,))


def autoregression(y: Tensor, order: int) -> None:
    """y_t ~ N(alpha + sum_k beta_k y_(t-k), sigma)."""
    alpha = pyro.sample("alpha", dist.Normal(y.new_tensor(0.0), 10.0))
    beta = pyro.sample("beta", dist.Normal(y.new_zeros(order), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(y.new_tensor(2.5)))
    past = torch.stack([y[order - k : len(y) - k] for k in range(1, order + 1)], -1)  # [t, lag]
    with pyro.plate("data", len(y) - order):
        pyro.sample("y", dist.Normal(alpha + past @ beta, sigma), obs=y[order:])


def eight_schools(y: Tensor, sigma: Tensor) -> None:
    """Effects of coaching, non-centred: theta_j = mu + tau t_j."""
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
    with pyro.plate("schools", len(y)):
        t = pyro.sample("t", dist.Normal(y.new_tensor(0.0), 1.0))
        theta = pyro.deterministic("theta", mu + tau * t)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def kidscore_interaction(score: Tensor, hs: Tensor, iq: Tensor) -> None:
    """A child's test score by the mother's schooling, her IQ, and their product."""
    beta = pyro.sample("beta", _flat(4))
    sigma = pyro.sample("sigma", dist.HalfCauchy(score.new_tensor(2.5)))
    mean = beta[0] + beta[1] * hs + beta[2] * iq + beta[3] * hs * iq
    with pyro.plate("data", len(score)):
        pyro.sample("score", dist.Normal(mean, sigma), obs=score)


def earnings_interaction(log_earn: Tensor, height: Tensor, male: Tensor) -> None:
    """Log earnings by the standardised height, sex, and their product."""
    z = (height - height.mean()) / height.std()
    beta = pyro.sample("beta", _flat(4))
    sigma = pyro.sample("sigma", _flat(support=constraints.positive))
    with pyro.plate("data", len(z)):
        mean = beta[0] + beta[1] * z + beta[2] * male + beta[3] * z * male
        pyro.sample("log_earn", dist.Normal(mean, sigma), obs=log_earn)


def two_gaussians(y: Tensor) -> None:
    """A mixture with mu_1 < mu_2, each N(0, 2): a flat prior on ordered pairs times the densities."""
    mu = pyro.sample("mu", _flat(2, dist.constraints.ordered_vector))
    pyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum(-1))
    sigma = pyro.sample("sigma", dist.HalfNormal(y.new_tensor(2.0)).expand([2]).to_event(1))
    theta = pyro.sample("theta", dist.Beta(y.new_tensor(5.0), 5.0))
    weights = torch.stack([theta, 1 - theta], -1)
    with pyro.plate("data", len(y)):
        c = pyro.sample("c", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(mu[c], sigma[c]), obs=y)


def hidden_markov(y: Tensor) -> None:
    """Two states with 0 < mu_1 < mu_2, mu_1 ~ N(3, 1) and mu_2 ~ N(10, 1), and flat rows of transition probabilities."""
    mu = pyro.sample("mu", _flat(2, dist.constraints.positive_ordered_vector))
    pyro.factor("mu_prior", dist.Normal(y.new_tensor([3.0, 10.0]), 1.0).log_prob(mu).sum(-1))
    theta = torch.stack([pyro.sample(f"theta{k}", dist.Dirichlet(y.new_ones(2))) for k in (1, 2)])
    state: Any = None
    for t in pyro.markov(range(len(y))):
        moves = y.new_ones(2) / 2 if state is None else theta[state]
        state = pyro.sample(f"state_{t}", dist.Categorical(moves))
        pyro.sample(f"y_{t}", dist.Normal(mu[state], 1.0), obs=y[t])


def election(party: Tensor, x: Tensor) -> None:
    """Party identification, a linear regression with flat priors."""
    beta = pyro.sample("beta", _flat(x.shape[1]))
    sigma = pyro.sample("sigma", _flat(support=constraints.positive))
    with pyro.plate("data", len(party)):
        pyro.sample("party", dist.Normal(x @ beta, sigma), obs=party)


def diamonds(y: Tensor, x: Tensor) -> None:
    """Log prices of diamonds; x has the columns 2..K, not centred, and the intercept is that of centred ones."""
    centre = x.mean(0)
    b = pyro.sample("b", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    intercept = pyro.sample("Intercept", dist.StudentT(y.new_tensor(3.0), 8.0, 10.0))
    sigma = pyro.sample("sigma", _flat(support=constraints.positive))
    pyro.factor("sigma_prior", dist.StudentT(3.0, 0.0, 10.0).log_prob(sigma) + math.log(2.0))
    pyro.deterministic("b_Intercept", intercept - (centre * b).sum(-1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(intercept + (x - centre) @ b, sigma), obs=y)


# -- arguments -----------------------------------------------------------------------------------------------


def _of(data: dict[str, Any], *names: str) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(data[name], dtype=torch.float64) for name in names)


def _ar_arguments(data: dict[str, Any]) -> tuple[Any, ...]:
    return (*_of(data, "y"), data["K"])


def _election_arguments(data: dict[str, Any]) -> tuple[Any, ...]:
    party, ideo, race, age, educ, gender, income = _of(
        data, "partyid7", "real_ideo", "race_adj", "age_discrete", "educ1", "gender", "income"
    )
    ages = [(age == k).double() for k in (2, 3, 4)]
    return party, torch.stack([torch.ones_like(ideo), ideo, race, *ages, educ, gender, income], -1)


def _earnings_arguments(data: dict[str, Any]) -> tuple[Any, ...]:
    earn, height, male = _of(data, "earn", "height", "male")
    return earn.log(), height, male


def _diamonds_arguments(data: dict[str, Any]) -> tuple[Any, ...]:
    y, x = _of(data, "Y", "X")
    return y, x[:, 1:]


# name -> program, its arguments from the data (float64)
PROGRAMS: dict[str, tuple[Callable[..., Any], Callable[[dict[str, Any]], tuple[Any, ...]]]] = {
    "arK-arK": (autoregression, _ar_arguments),
    "eight_schools-eight_schools_noncentered": (eight_schools, lambda d: _of(d, "y", "sigma")),
    "kidiq-kidscore_interaction": (kidscore_interaction, lambda d: _of(d, "kid_score", "mom_hs", "mom_iq")),
    "earnings-logearn_interaction_z": (earnings_interaction, _earnings_arguments),
    "low_dim_gauss_mix-low_dim_gauss_mix": (two_gaussians, lambda d: _of(d, "y")),
    "hmm_example-hmm_example": (hidden_markov, lambda d: _of(d, "y")),
    "nes1980-nes": (election, _election_arguments),
    "diamonds-diamonds": (diamonds, _diamonds_arguments),
}
