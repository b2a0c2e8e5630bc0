"""Latent-variable programs on binarised MNIST: nats per test image by importance weighting, against published figures.

    PPL_DGM_DATA=folder python benchmarks/mnist_latent.py --device cuda                  # all of it, hours of a GPU
    PPL_DGM_DATA=folder python benchmarks/mnist_latent.py --rows 1000 --epochs 3         # shortened, minutes of one core

The folder holds mnist.npz (see `dgm.data.mnist`). Each pixel is drawn once from Bernoulli(x / 255) with seed 0; 50,000
images to learn from, 10,000 for every choice (early stopping), 10,000 that are scored once. Larochelle's fixed draw, to
which part of the published figures belong, is another one, and others draw anew in every epoch, which is worth some four
nats to the same program; so the figures are neighbours, not targets.

    recipe      program                                                                published (nats)
    vae         N(0, I) prior, factorised Gaussian posterior                           86 to 90
    vampprior   500 learned pseudo-inputs (Tomczak and Welling 2018)                   82 to 86
    sylvester   orthogonal Sylvester posterior, convolutional (van den Berg 2018)      80.2, new draws each epoch
    top-down    five levels (Sonderby et al. 2016)                                     81.7, new draws each epoch
    best        five levels, convolutional, weighted VampPrior above, skip connections -

On a CPU the default is a shortened run, which says that it is one. A checkpoint in --checkpoints lets a run that was
interrupted go on: give the same options again.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ppl_dgm as dgm
from ppl_dgm.inference.svi import SVI
from ppl_dgm.models.latent.posteriors import POSTERIORS
from ppl_dgm.nn import ConvolutionalDecoder, ConvolutionalEncoder
from ppl_dgm.nn.mlp import ACTIVATIONS
from ppl_dgm.text import table

SHAPE = (28, 28)
PIXELS = 784
ROWS = 50_000
SHORT = {"rows": 1000, "epochs": 3, "test": 100, "draws": 64}  # of a machine without a GPU, unless told otherwise


@dataclass(frozen=True)
class Recipe:
    """How a program is made and learned.

    Attributes:
        program: makes it.
        published: nats on similar splits.
        epochs: of the whole run.
        warm_up: epochs until the latent sites have their whole weight.
        lr: learning rate at first; it falls to zero like a cosine.
        patience: epochs without a better bound on the validation images.
    """

    program: Callable[[], Any]
    published: str
    epochs: int = 400
    warm_up: int = 100
    lr: float = 1e-3
    patience: int = 50


def vae(**options: Any) -> Any:
    """A VAE of two hidden layers of 300 units, no dropout in the decoder."""
    given = {"latent": 40, "hidden": 300, "encoder_dropout": 0.1, "decoder_dropout": 0.0, **options}
    return dgm.models.VAE(observed=PIXELS, likelihood="bernoulli", **given)


def sylvester() -> Any:
    """A VAE with convolutional networks; the posterior's features are linear in the encoder's 256 last units."""
    options: dict[str, Any] = {"steps": 8, "units": 16}
    features = POSTERIORS["sylvester-orthogonal"](64, **options).features
    last = nn.Linear(256, features)
    nn.init.normal_(last.weight, std=0.01)  # the flow starts near the identity
    nn.init.zeros_(last.bias)
    return vae(
        latent=64,
        posterior="sylvester-orthogonal",
        posterior_options=options,
        encoder=nn.Sequential(ConvolutionalEncoder(SHAPE, 256, 16, stages=2, blocks=1), ACTIVATIONS["silu"](), last),
        decoder=ConvolutionalDecoder(64, SHAPE, 1, 16, stages=2, blocks=1),
    )


def top_down(**options: Any) -> Any:
    """Five levels of 64, 32, 16, 8 and 4 units."""
    given = {"latents": (64, 32, 16, 8, 4), "hidden": 512, "encoder_dropout": 0.1, "decoder_dropout": 0.0, **options}
    return dgm.models.TopDownVAE(observed=PIXELS, likelihood="bernoulli", **given)


def best() -> Any:
    """Five levels that all reach a convolutional decoder, under a prior of weighted pseudo-inputs."""
    latents = (32, 32, 16, 16, 16)
    return top_down(
        latents=latents,
        skip=True,
        prior="weighted-vamp",
        prior_options={"components": 500},
        encoder=nn.Sequential(ConvolutionalEncoder(SHAPE, 512, 16, stages=2, blocks=1), ACTIVATIONS["silu"]()),
        decoder=ConvolutionalDecoder(sum(latents), SHAPE, 1, 16, stages=2, blocks=1),
        prior_hidden=256,
    )


RECIPES = {
    "vae": Recipe(vae, "86 to 90"),
    "vampprior": Recipe(lambda: vae(prior="vamp", prior_options={"components": 500}), "82 to 86"),
    "sylvester": Recipe(sylvester, "80.2"),
    "top-down": Recipe(top_down, "81.7", warm_up=200),
    "best": Recipe(best, "-", warm_up=200),
}


def run(name: str, data: dict[str, torch.Tensor], options: argparse.Namespace) -> list[str]:
    """Learn one recipe, score it, and say so in a line of the table."""
    recipe = RECIPES[name]
    torch.manual_seed(options.seed)
    program = recipe.program().to(options.device)
    epochs = options.epochs or recipe.epochs
    warm_up = max(1.0, recipe.warm_up * epochs / recipe.epochs)
    place = Path(options.checkpoints) / f"{name}-rows{len(data['train'])}-epochs{epochs}-seed{options.seed}.safetensors"
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        print(f"{name}: goes on from {place}", flush=True)
    method = SVI(
        elbo="mean_field",
        epochs=epochs,
        batch_size=100,
        lr=recipe.lr,
        schedule="cosine",
        average=0.999,
        patience=recipe.patience,
        kl_weight=lambda epoch: min(1.0, epoch / warm_up),
        checkpoint=place,
    )
    fit = dgm.learn(program, data["train"], valid=data["valid"], method=method, seed=options.seed)
    print(f"{name}: {fit.stopped} ({fit.cost.seconds / 60:.1f} min, {fit.cost.path})", flush=True)
    begun = time.perf_counter()
    chunk = None if data["train"].device.type == "cpu" else 2**14  # rows at once: a GPU has the memory for many
    weighing = dgm.ImportanceWeighted(draws=options.draws, chunk=chunk)
    scores = {
        split: dgm.score(program, data[split][: options.test], method=weighing, seed=0) for split in ("valid", "test")
    }
    print(f"{name}: {scores['test'].how}", flush=True)
    means = {split: score.mean() for split, score in scores.items()}
    return [
        name,
        f"{sum(p.numel() for p in program.parameters() if p.requires_grad) / 1e6:.2f}",
        f"{fit.notes['best_epoch']} of {epochs}",
        f"{fit.history['valid'].min():.2f}",
        f"{-means['valid'].value:.2f}",
        f"{-means['test'].value:.2f} ± {means['test'].stderr:.2f}",
        recipe.published,
        f"{fit.cost.seconds / 60:.1f}",
        f"{(time.perf_counter() - begun) / 60:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--rows", type=int, help="training images that are learned from; a fifth as many for validation"
    )
    parser.add_argument("--epochs", type=int, help="the warm-up shrinks in proportion")
    parser.add_argument("--test", type=int, help="validation and test images that are scored, at most")
    parser.add_argument("--draws", type=int, help="for each image that is scored; 512 of a whole run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoints", default="runs/mnist_latent", help="folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if torch.device(options.device).type == "cpu":
        for key, value in SHORT.items():
            setattr(options, key, getattr(options, key) or value)
    try:
        images = dgm.data.load("mnist_binary")
    except dgm.DataError as error:  # not every machine has them
        print(f"nothing to do: {error}")
        return
    rows, options.draws = min(options.rows or ROWS, ROWS), options.draws or 512
    kept = {
        "train": images.train[:rows],
        "valid": images.valid[: max(1, rows // 5)],
        "test": images.test[: options.test],
    }
    data = {split: x.to(options.device) for split, x in kept.items()}
    short = rows < ROWS or any(options.epochs and options.epochs < RECIPES[name].epochs for name in options.recipes)
    lines = [run(name, data, options) for name in options.recipes]
    header = ["recipe", "10^6 weights", "best epoch", "valid -ELBO", "valid nats", "test nats", "published"]
    print(table([*header, "learn min", "score min"], lines))
    sizes = ", ".join(f"{len(x)} {split}" for split, x in data.items())
    print(f"{sizes} images; importance-weighted lower bounds with {options.draws} draws")
    if short or len(data["test"]) < len(images.test):
        print(
            "A shortened run: these figures say that the recipes work, and are not to be held against published ones."
        )


if __name__ == "__main__":
    main()
