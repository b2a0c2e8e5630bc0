"""Pyro programs with their data: eight of posteriordb's, by the library's reader, classics, and one for each feature."""

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

from ppl_dgm.inference.targets import posteriordb as reader
from ppl_dgm.inference.targets.posteriordb import PROGRAMS as POSTERIORDB
from ppl_dgm.inference.targets.posteriordb import default_folder as posteriordb_folder
from ppl_dgm.inference.targets.posteriordb_programs import eight_schools

__all__ = ["POSTERIORDB", "PROGRAMS", "Reference", "eight_schools", "posteriordb", "posteriordb_folder"]

positive, real = constraints.positive, constraints.real


def flat(shape: tuple[int, ...], support: Any = real) -> Any:
    """An improper uniform distribution over vectors."""
    return dist.ImproperUniform(support, (), shape)


# -- posteriordb ---------------------------------------------------------------------------------------------


class Reference(NamedTuple):
    """A posterior of posteriordb: the program, its arguments, and the reference moments of each scalar.

    `mean` and `mean_squared` are {name: (value, Monte Carlo standard error)}; `scalars` turns draws and deterministic
    values, {site: [..., *shape]}, into {name: [...]} with the names of the reference.
    """

    program: Callable[..., Any]
    args: tuple[Any, ...]
    mean: dict[str, tuple[float, float]]
    mean_squared: dict[str, tuple[float, float]]
    scalars: Callable[[dict[str, Tensor]], dict[str, Tensor]]


def posteriordb(name: str, folder: Path | None = None, dtype: torch.dtype = torch.float32) -> Reference:
    """A posterior by the name of its file, with data in the given number type."""
    folder = folder or posteriordb_folder()
    assert folder is not None, "set PPL_DGM_DATA to the folder that holds posteriordb/"
    entry = reader.read(folder, name)
    program, arguments = POSTERIORDB[name]
    args = tuple(a.to(dtype) if isinstance(a, Tensor) else a for a in arguments(entry.data))
    return Reference(program, args, entry.mean, entry.mean_squared, entry.scalars)


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
