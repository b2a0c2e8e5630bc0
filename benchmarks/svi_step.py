"""One SVI step of the VAE against the same step written by hand in PyTorch, and against plain Pyro.

    python benchmarks/svi_step.py          # about a minute on one CPU thread
    python benchmarks/svi_step.py --device cuda

The three learn the same networks (64 pixels, 17 values, 16 latents, batch 64) with the same optimiser (Adam, fused) and the same objective
(analytic KL, one draw), each through its own whole loop: shuffling, slicing, gradients, update and the check for NaN. They run in turn,
round after round; the ratios are medians over the rounds. Target: ours at most 1.15 times the hand-written step.
"""

import argparse
import json
import time
from collections.abc import Callable
from statistics import median

import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from pyro.optim import PyroOptim
from torch import Tensor

import ppl_dgm as dgm

STEPS = 16  # per epoch: 1024 rows in batches of 64


def data(device: str) -> Tensor:
    digits = dgm.data.digits()
    return torch.cat([digits.train, digits.valid])[: 64 * STEPS].to(device)


def network(hidden: int, device: str) -> dgm.Program:
    torch.manual_seed(0)
    return dgm.models.VAE(
        observed=64, values=17, latent=16, hidden=hidden, encoder_dropout=0.0, decoder_dropout=0.0
    ).to(device)


def by_hand(hidden: int, x: Tensor) -> Callable[[int], float]:
    """The step as one writes it without a library."""
    vae = network(hidden, str(x.device))
    parameters = list(vae.parameters())
    optimiser = torch.optim.Adam(parameters, 1e-3, fused=True)

    def epochs(count: int) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            order = torch.randperm(len(x), device=x.device)
            for i in range(0, len(x), 64):
                rows = x[order[i : i + 64]]
                loc, log_variance = vae.encoder(rows / 8 - 1).chunk(2, -1)
                z = loc + (0.5 * log_variance).exp() * torch.randn_like(loc)
                fit = torch.log_softmax(vae.decoder(z).view(-1, 64, 17), -1).gather(-1, rows.long().unsqueeze(-1)).sum()
                kl = 0.5 * (loc**2 + log_variance.exp() - 1 - log_variance).sum()
                loss = (kl - fit) / len(rows)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        _finish(x)
        return (time.perf_counter() - begun) / (count * STEPS)

    return epochs


def ours(hidden: int, x: Tensor, backend: str) -> Callable[[int], float]:
    """`dgm.learn`; the epochs after the first, in which the step is recorded, are counted."""

    def epochs(count: int) -> float:
        method = dgm.SVI(elbo="mean_field", epochs=count + 1, batch_size=64, backend=backend)
        fit = dgm.learn(network(hidden, str(x.device)), x, method=method, seed=0)
        seconds = fit.history["seconds"]
        return (seconds.iloc[-1] - seconds.iloc[0]) / (count * STEPS)

    return epochs


def plain_pyro(hidden: int, x: Tensor) -> Callable[[int], float]:
    """`pyro.infer.SVI`, as its tutorial has it."""
    vae = network(hidden, str(x.device))

    def epochs(count: int) -> float:
        with pyro.get_param_store().scope(), pyro.validation_enabled(False):
            model, guide = vae.model, vae.guide

            def registered(story: Callable) -> Callable:
                def run(rows: Tensor) -> Tensor:
                    pyro.module("vae", vae)
                    return story(rows)

                return run

            svi = pyro.infer.SVI(
                registered(model), registered(guide), PyroOptim(torch.optim.Adam, {"lr": 1e-3}), TraceMeanField_ELBO()
            )
            begun = time.perf_counter()
            for _ in range(count):
                order = torch.randperm(len(x), device=x.device)
                for i in range(0, len(x), 64):
                    svi.step(x[order[i : i + 64]])
            _finish(x)
            return (time.perf_counter() - begun) / (count * STEPS)

    return epochs


def _finish(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--hidden", type=int, nargs="+", default=[32, 256], help="units of each hidden layer")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--backend", default="eager", help="of our graph: eager or inductor")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    x = data(options.device)
    rows = []
    for hidden in options.hidden:
        ways = {
            "by hand": by_hand(hidden, x),
            "ppl_dgm": ours(hidden, x, options.backend),
            "plain Pyro": plain_pyro(hidden, x),
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            way(1)
        for _ in range(options.rounds):
            for name, way in ways.items():
                taken[name].append(way(6))
        ratios = {name: median(a / b for a, b in zip(taken[name], taken["by hand"], strict=True)) for name in ways}
        rows.append(
            {
                "hidden": hidden,
                "device": options.device,
                **{f"{n} ms": median(taken[n]) * 1e3 for n in ways},
                "ratios": ratios,
            }
        )
        if not options.json:
            times = "  ".join(f"{n} {median(taken[n]) * 1e3:.2f} ms (x{ratios[n]:.2f})" for n in ways)
            print(f"hidden {hidden:4d}, {options.device}: {times}")
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
