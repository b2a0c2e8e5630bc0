"""Pyro programs with their data: eight of posteriordb's, classics, and one for each feature."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroModule, PyroSample
from torch import Tensor
from torch.distributions import constraints

__all__ = ["POSTERIORDB", "PROGRAMS", "Reference", "posteriordb", "posteriordb_folder"]

positive, real = constraints.positive, constraints.real


def flat(shape: tuple[int, ...], support: Any = real) -> Any:
    """An improper uniform distribution over vectors."""
    return dist.ImproperUniform(support, (), shape)


# -- posteriordb ---------------------------------------------------------------------------------------------


class Reference(NamedTuple):
    """A posterior of posteriordb: the program, its arguments, and the reference moments of each scalar.

    `mean` and `mean_squared` are {name: (value, Monte Carlo standard error)}; `scalars` turns draws and
    deterministic
    values, {site: [..., *shape]}, into {name: [...]} with the names of the reference.
    """

    program: Callable[..., Any]
    args: tuple[Any, ...]
    mean: dict[str, tuple[float, float]]
    mean_squared: dict[str, tuple[float, float]]
    scalars: Callable[[dict[str, Tensor]], dict[str, Tensor]]


def ar(y: Tensor, order: int) -> None:
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(torch.zeros(order), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    past = torch.stack([y[order - k : len(y) - k] for k in range(1, order + 1)], -1)  # [t, lag]
    with pyro.plate("data", len(y) - order):
        pyro.sample("y", dist.Normal(alpha + past @ beta, sigma), obs=y[order:])


def eight_schools(y: Tensor, sigma: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        t = pyro.sample("t", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * t)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def kidscore(score: Tensor, hs: Tensor, iq: Tensor) -> None:
    beta = pyro.sample("beta", flat((4,)))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    mean = beta[0] + beta[1] * hs + beta[2] * iq + beta[3] * hs * iq
    with pyro.plate("data", len(score)):
        pyro.sample("score", dist.Normal(mean, sigma), obs=score)


def earnings(log_earn: Tensor, height: Tensor, male: Tensor) -> None:
    z = (height - height.mean()) / height.std()
    beta = pyro.sample("beta", flat((4,)))
    sigma = pyro.sample("sigma", flat((), positive))
    with pyro.plate("data", len(z)):
        mean = beta[0] + beta[1] * z + beta[2] * male + beta[3] * z * male
        pyro.sample("log_earn", dist.Normal(mean, sigma), obs=log_earn)


def two_gaussians(y: Tensor) -> None:
    """mu_1 < mu_2, each N(0, 2): a flat prior on ordered pairs times the densities."""
    mu = pyro.sample("mu", flat((2,), dist.constraints.ordered_vector))
    pyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum(-1))
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = torch.stack([theta, 1 - theta], -1)
    with pyro.plate("data", len(y)):
        c = pyro.sample("c", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(mu[c], sigma[c]), obs=y)


def hmm_example(y: Tensor) -> None:
    mu = pyro.sample("mu", flat((2,), dist.constraints.positive_ordered_vector))
    pyro.factor("mu_prior", dist.Normal(torch.tensor([3.0, 10.0]), 1.0).log_prob(mu).sum(-1))
    theta = torch.stack([pyro.sample(f"theta{k}", dist.Dirichlet(torch.ones(2))) for k in (1, 2)])
    state: Any = None
    for t in pyro.markov(range(len(y))):
        moves = torch.ones(2) / 2 if state is None else theta[state]
        state = pyro.sample(f"state_{t}", dist.Categorical(moves))
        pyro.sample(f"y_{t}", dist.Normal(mu[state], 1.0), obs=y[t])


def nes(party: Tensor, x: Tensor) -> None:
    beta = pyro.sample("beta", flat((x.shape[1],)))
    sigma = pyro.sample("sigma", flat((), positive))
    with pyro.plate("data", len(party)):
        pyro.sample("party", dist.Normal(x @ beta, sigma), obs=party)


def diamonds(y: Tensor, x: Tensor) -> None:
    """x has the columns 2..K, not centred."""
    centre = x.mean(0)
    b = pyro.sample("b", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    intercept = pyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
    sigma = pyro.sample("sigma", flat((), positive))
    pyro.factor("sigma_prior", dist.StudentT(3.0, 0.0, 10.0).log_prob(sigma) + np.log(2.0))
    pyro.deterministic("b_Intercept", intercept - (centre * b).sum(-1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(intercept + (x - centre) @ b, sigma), obs=y)


def _of(data: dict[str, Any], *names: str) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(data[name], dtype=torch.float64) for name in names)


def _nes_arguments(data: dict[str, Any]) -> tuple[Tensor, ...]:
    party, ideo, race, age, educ, gender, income = _of(
        data, "partyid7", "real_ideo", "race_adj", "age_discrete", "educ1", "gender", "income"
    )
    ages = [(age == k).double() for k in (2, 3, 4)]
    return party, torch.stack([torch.ones_like(ideo), ideo, race, *ages, educ, gender, income], -1)


def _earnings_arguments(data: dict[str, Any]) -> tuple[Tensor, ...]:
    earn, height, male = _of(data, "earn", "height", "male")
    return earn.log(), height, male


def _diamonds_arguments(data: dict[str, Any]) -> tuple[Tensor, ...]:
    y, x = _of(data, "Y", "X")
    return y, x[:, 1:]


# name -> program, arguments from the data, {site: name in the reference} where they differ
POSTERIORDB: dict[str, tuple[Callable[..., Any], Callable[[Any], tuple[Any, ...]], dict[str, str]]] = {
    "arK-arK": (ar, lambda d: (*_of(d, "y"), d["K"]), {}),
    "eight_schools-eight_schools_noncentered": (eight_schools, lambda d: _of(d, "y", "sigma"), {}),
    "kidiq-kidscore_interaction": (kidscore, lambda d: _of(d, "kid_score", "mom_hs", "mom_iq"), {}),
    "earnings-logearn_interaction_z": (earnings, _earnings_arguments, {}),
    "low_dim_gauss_mix-low_dim_gauss_mix": (two_gaussians, lambda d: _of(d, "y"), {}),
    "hmm_example-hmm_example": (hmm_example, lambda d: _of(d, "y"), {}),
    "nes1980-nes": (nes, _nes_arguments, {}),
    "diamonds-diamonds": (diamonds, _diamonds_arguments, {}),
}


def posteriordb_folder() -> Path | None:
    """The folder of references, `$PPL_DGM_DATA/posteriordb`, if there is one."""
    root = os.environ.get("PPL_DGM_DATA")
    folder = Path(root) / "posteriordb" if root else None
    return folder if folder is not None and folder.is_dir() else None


def posteriordb(name: str, folder: Path | None = None, dtype: torch.dtype = torch.float32) -> Reference:
    """A posterior by the name of its file, with data in the given number type."""
    folder = folder or posteriordb_folder()
    if folder is None:
        raise FileNotFoundError("set PPL_DGM_DATA to the folder that holds posteriordb/")
    record = json.loads((folder / f"{name}.json").read_text())
    program, arguments, _ = POSTERIORDB[name]
    args = tuple(a.to(dtype) if isinstance(a, Tensor) else a for a in arguments(record["data"]))
    moments = []
    for key in ("mean", "mean_squared"):
        block = record[key]
        rows = zip(block["names"], block[f"{key}_value"], block["mcse_mean"], strict=True)
        moments.append({n: (float(value), float(mcse)) for n, value, mcse in rows})
    wanted = list(moments[0])

    def scalars(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: _entry(n, values) for n in wanted}

    return Reference(program, args, moments[0], moments[1], scalars)


def _entry(name: str, values: dict[str, Tensor]) -> Tensor:
    """`b[3]` is the third entry of site b, `sigma` is the site itself."""
    site, _, index = name.partition("[")
    return values[site][..., int(index.rstrip("]")) - 1] if index else values[site]


# -- classics, and one program for each feature --------------------------------------------------------------


def schools_data() -> tuple[Tensor, Tensor]:
    """Effects of coaching in eight schools, and their standard errors (Rubin, 1981)."""
    return torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12]), torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])


def eight_schools_centred(y: Tensor, sigma: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


eight_schools_reparam = poutine.reparam(eight_schools_centred, config={"theta": LocScaleReparam(0.0)})


def logistic(x: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)


def breast_cancer() -> tuple[Tensor, Tensor]:
    """569 x 31 with intercept, standardised."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x = np.c_[np.ones(len(x)), (x - x.mean(0)) / x.std(0)]
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)


def mixture(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("components", 3):
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(weights))
        pyro.deterministic("where", mean[c])
        pyro.sample("x", dist.Normal(mean[c], scale[c]), obs=x)


def hmm(x: Tensor) -> None:
    with pyro.plate("states", 2):
        moves = pyro.sample("moves", dist.Dirichlet(torch.tensor([2.0, 1.0])))
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    state: Any = 0
    for t in pyro.markov(range(len(x))):
        state = pyro.sample(f"state_{t}", dist.Categorical(moves[state]))
        pyro.sample(f"x_{t}", dist.Normal(mean[state], 1.0), obs=x[t])


def covariance(x: Tensor) -> None:
    scale = pyro.sample("scale", dist.HalfCauchy(torch.ones(3)).to_event(1))
    root = pyro.sample("root", dist.LKJCholesky(3, 2.0))
    tril = scale.unsqueeze(-1) * root
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(3), scale_tril=tril), obs=x)


class Network(PyroModule):
    """A Bayesian neural net with one hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = PyroModule[torch.nn.Linear](2, 4)
        self.first.weight = PyroSample(dist.Normal(0.0, 1.0).expand([4, 2]).to_event(2))
        self.first.bias = PyroSample(dist.Normal(0.0, 1.0).expand([4]).to_event(1))
        self.second = PyroModule[torch.nn.Linear](4, 1)
        self.second.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 4]).to_event(2))

    def forward(self, x: Tensor, y: Tensor) -> None:
        mean = self.second(torch.tanh(self.first(x))).squeeze(-1)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 0.3), obs=y)


def gaussian_process(x: Tensor, y: Tensor) -> None:
    length = pyro.sample("length", dist.InverseGamma(3.0, 3.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    kernel = torch.exp(-0.5 * ((x[:, None] - x) / length) ** 2) + (noise**2 + 1e-3) * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance_matrix=kernel), obs=y)


def ordinal(y: Tensor) -> None:
    """Ordered cut points under a flat prior, probabilities on a simplex, an angle and a unit interval."""
    cuts = pyro.sample("cuts", flat((3,), dist.constraints.ordered_vector))
    pyro.factor("cuts_prior", dist.Normal(0.0, 2.0).log_prob(cuts).sum(-1))
    share = pyro.sample("share", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
    level = pyro.sample("level", dist.Uniform(-2.0, 3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.OrderedLogistic(level * torch.ones(len(y)) + share[0], cuts), obs=y)


def dependent(y: Tensor) -> None:
    """The support of `low` ends at `high`."""
    high = pyro.sample("high", dist.Gamma(2.0, 1.0))
    low = pyro.sample("low", dist.Uniform(-high, high))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(low, high), obs=y)


def energy() -> None:
    z = pyro.sample("z", flat((2,)))
    pyro.factor("energy", -((z[..., 0] ** 2 + z[..., 1] - 1) ** 2) - z.pow(2).sum(-1) / 8)


def masked_and_scaled(x: Tensor) -> None:
    """Two plates, a mask, a scale, and an observation that is partly missing."""
    with pyro.plate("groups", 3, dim=-2):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with pyro.plate("data", x.shape[-1], dim=-1):
            keep = torch.arange(x.shape[-1]) % 2 == 0
            with poutine.mask(mask=keep), poutine.scale(scale=1.5):
                pyro.sample("x", dist.StudentT(4.0, mean, 1.0), obs=x)


def normal_data(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _counts(n: int, seed: int = 0) -> Tensor:
    return torch.randint(4, (n,), generator=torch.Generator().manual_seed(seed))


# name -> (program, its arguments)
PROGRAMS: dict[str, Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]] = {
    "eight schools": lambda: (eight_schools, schools_data()),
    "eight schools centred": lambda: (eight_schools_centred, schools_data()),
    "eight schools reparam": lambda: (eight_schools_reparam, schools_data()),
    "logistic": lambda: (logistic, tuple(a[:60] for a in breast_cancer())),
    "mixture": lambda: (mixture, (2 * normal_data(20),)),
    "hmm": lambda: (hmm, (3 * normal_data(6),)),
    "covariance": lambda: (covariance, (normal_data(10, 3),)),
    "network": lambda: (Network(), (normal_data(12, 2), normal_data(12, seed=1))),
    "gaussian process": lambda: (gaussian_process, (torch.linspace(0, 1, 7), normal_data(7))),
    "ordinal": lambda: (ordinal, (_counts(9),)),
    "dependent": lambda: (dependent, (normal_data(5),)),
    "energy": lambda: (energy, ()),
    "masked and scaled": lambda: (masked_and_scaled, (normal_data(3, 5),)),
}
