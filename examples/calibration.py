"""Is a posterior right? Simulation-based calibration of exact and approximate algorithms. About two minutes.

    python examples/calibration.py [--out runs/calibration] [--replications 60]

Each line is one algorithm on one program: truth and data are drawn together, the posterior is inferred, and the rank of the
truth among its draws must be uniform. Exact enumeration, NUTS and ChEES are flat; mean-field variational inference, on a
regression whose slope and intercept are nearly one direction, is over-confident, and its picture shows it.
"""

import argparse
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch

import ppl_dgm as dgm


def which_coin(heads):
    """Three coins, one of which was thrown."""
    coin = pyro.sample("coin", dist.Categorical(torch.tensor([0.5, 0.3, 0.2])))
    with pyro.plate("throws", len(heads)):
        pyro.sample("heads", dist.Bernoulli(torch.tensor([0.2, 0.5, 0.9])[coin]), obs=heads)


def location_and_scale(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, scale), obs=y)


def schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(5.0))
    with pyro.plate("schools", len(y)):
        t = pyro.sample("t", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * t, sigma), obs=y)


def far_line(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(intercept + slope * x, 1.0), obs=y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/calibration"))
    parser.add_argument("--replications", type=int, default=60)
    options = parser.parse_args()

    errors = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])
    far = 3 + torch.linspace(-0.5, 0.5, 8)
    chees = dgm.ChEES(chains=16, warmup=100, draws=25)
    runs = {
        "exact enumeration, three coins": (which_coin, (torch.zeros(5),), dgm.Exact(draws=99)),
        "NUTS, location and scale": (location_and_scale, (torch.zeros(6),), dgm.NUTS(chains=4, warmup=80, draws=40)),
        "ChEES, eight schools": (schools, (torch.zeros(8), errors), chees),
        "mean-field VI, a correlated regression": (
            far_line,
            (far, torch.zeros(8)),
            dgm.SVI(guide="AutoNormal", epochs=150, lr=0.05, particles=2),
        ),
    }
    for title, (program, args, method) in runs.items():
        result = dgm.calibrate(program, *args, method=method, replications=options.replications, draws=63, seed=0)
        name = title.split(",")[0].replace(" ", "_")
        result.plot(options.out / f"{name}.png")
        result.save(options.out / f"{name}.json")
        print(f"{title}: {'flat' if result.ok else 'NOT flat'}")
        for sentence in result.sentences:
            print("   ", sentence)
        print(
            result.table.loc[:, ["verdict", "p", "coverage_50", "coverage_95", "contraction"]].round(3).to_string(),
            "\n",
        )


if __name__ == "__main__":
    main()
