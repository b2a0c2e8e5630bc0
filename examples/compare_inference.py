"""Which algorithm for this posterior? Eight schools two ways and the funnel, at equal budgets. Some minutes on one CPU core.

    python examples/compare_inference.py

Each algorithm gets the same number of gradients, warm-up included, with two seeds. Look for three things: how many
gradients each needs until b² of x² stays below 0.01; what the notes say of Laplace and Pathfinder, which end after a few
thousand evaluations; and what changes on the centred form and on the funnel. Figures and numbers go to runs/compare/.
"""

from pathlib import Path

import pyro
import pyro.distributions as dist
import torch

import ppl_dgm as dgm

METHODS = {
    "NUTS": dgm.NUTS(chains=4),
    "ChEES": dgm.ChEES(chains=16),
    "HMC": dgm.HMC(chains=4),
    "Laplace": dgm.Laplace(),
    "Pathfinder": dgm.Pathfinder(),
}


def schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        t = pyro.sample("t", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * t)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def main() -> None:
    y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
    sigma = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])
    out = Path("runs/compare")
    comparisons = {
        "schools": dgm.compare(schools, y, sigma, methods=METHODS, reference="eight_schools", seeds=2, budget=30_000),
        "centred": dgm.compare("eight-schools-centred", methods=METHODS, seeds=2, budget=30_000),
        "funnel": dgm.compare("funnel", methods=METHODS, seeds=2, budget=30_000),
    }
    for name, found in comparisons.items():
        print(found, end="\n\n")
        found.plot(out / f"{name}.png")
        found.save(out / f"{name}.json")
    print(f"figures and numbers: {out}")


if __name__ == "__main__":
    main()
