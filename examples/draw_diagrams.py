"""Plate diagrams of the textbook's programs, as SVG and PNG. About 20 seconds.

python examples/draw_diagrams.py --out docs/diagrams
"""

import argparse
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch

import ppl_dgm as dgm


def lda(words: torch.Tensor, vocabulary: int = 50, topics: int = 5) -> None:
    """Latent Dirichlet allocation; words [document, position]."""
    documents, positions = words.shape
    with pyro.plate("topics", topics):
        beta = pyro.sample("beta", dist.Dirichlet(torch.ones(vocabulary)))  # [topic, word]
    with pyro.plate("documents", documents, dim=-2):
        theta = pyro.sample("theta", dist.Dirichlet(torch.ones(topics)))  # [document, 1, topic]
        with pyro.plate("words", positions, dim=-1):
            z = pyro.sample("z", dist.Categorical(theta))
            pyro.sample("w", dist.Categorical(beta[z]), obs=words)


def raters(scores: torch.Tensor) -> None:
    """Item response: two plates that cross; scores [rater, item]."""
    rows, columns = (
        pyro.plate("raters", scores.shape[0], dim=-2),
        pyro.plate("items", scores.shape[1], dim=-1),
    )
    with rows:
        ability = pyro.sample("a", dist.Normal(0.0, 1.0))
    with columns:
        difficulty = pyro.sample("d", dist.Normal(0.0, 1.0))
    with rows, columns:
        pyro.sample("y", dist.Bernoulli(logits=ability - difficulty), obs=scores)


def sprinkler(wet: torch.Tensor) -> None:
    """The textbook's network, wet grass seen."""
    cloudy = pyro.sample("cloudy", dist.Bernoulli(0.5))
    sprinkler = pyro.sample("sprinkler", dist.Bernoulli(0.5 - 0.4 * cloudy))
    rain = pyro.sample("rain", dist.Bernoulli(0.2 + 0.6 * cloudy))
    pyro.sample("grass", dist.Bernoulli(0.99 * (1 - (1 - 0.9 * sprinkler) * (1 - 0.9 * rain))), obs=wet)


def hidden_markov(x: torch.Tensor) -> None:
    """A chain of two states and what each emits; x [step]."""
    move, emit = torch.tensor([[0.7, 0.3], [0.3, 0.7]]), torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    probs = torch.ones(2) / 2
    for t in range(len(x)):
        z = pyro.sample(f"z_{t}", dist.Categorical(probs))
        pyro.sample(f"x_{t}", dist.Categorical(emit[z]), obs=x[t])
        probs = move[z]


def grid(rows: str, steps: int) -> dict[str, tuple[float, float]]:
    """Positions in points: the sites of each letter in a row, from above, the steps from left to right."""
    return {f"{row}_{t}": (70.0 * t, -70.0 * i) for i, row in enumerate(rows) for t in range(steps)}


def pictures() -> dict[str, tuple[Any, tuple, dict]]:
    """{file name: (program, its arguments, options of the drawing)}."""
    zoo = dgm.models
    return {
        "vae": (zoo.VAE(observed=64, values=17, latent=16), (), {}),
        "top_down_vae": (zoo.TopDownVAE(observed=64, values=17), (), {}),
        "mixture_of_gaussians": (zoo.MixtureOfGaussians(2, 8), (), {}),
        "lda": (lda, (torch.zeros(20, 30),), {}),
        "rbm": (zoo.RBM(observed=64, hidden=16), (), {}),
        "diffusion_chain": (zoo.DiffusionChain(4, 4, 10), (), {"orientation": "right"}),
        "ppca": (zoo.ProbabilisticPCA(10, 2), (), {}),
        "raters_items": (raters, (torch.zeros(5, 40),), {"distributions": True}),
        "sprinkler": (sprinkler, (torch.tensor(1.0),), {}),
        "hidden_markov": (hidden_markov, (torch.zeros(4, dtype=torch.long),), {"positions": grid("zx", 4)}),
        "three_levels": (zoo.TopDownVAE(observed=64, values=17, latents=(16, 8, 4)), (), {}),
        "semi_supervised_vae": (zoo.SemiSupervisedVAE(observed=64, values=17, classes=10), (), {}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/diagrams"), help="where the pictures go")
    folder = parser.parse_args().out
    for name, (program, args, options) in pictures().items():
        picture = dgm.diagram(program, *args, **options)
        for ending in ("svg", "png"):
            picture.save(folder / f"{name}.{ending}", dpi=150)
        print(f"{folder / name}.svg, .png: {picture}")


if __name__ == "__main__":
    main()
