"""Every program of the zoo on the 8x8 digits, several seeds: nats per test image and the spread over seeds.

    python benchmarks/digits.py                      # about 20 minutes on two cores
    python benchmarks/digits.py --programs VAE --seeds 0

Learned on the first 1000 images, every choice (early stopping, pseudo-counts) on the next 350, scored once on the last 447. A seed fixes the
initial weights and the learning.
"""

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from statistics import median
from typing import Any

import torch

import ppl_dgm as dgm
from ppl_dgm.evaluate import ChowLiuTree, IndependentCategorical
from ppl_dgm.text import table

GREY: dict[str, Any] = {"observed": 64, "values": 17}
CHAINED: dict[str, Any] = {**GREY, "likelihood": "chained-logistic", "likelihood_options": {"shape": (8, 8)}}
AUTOREGRESSIVE: dict[str, Any] = {
    **GREY,
    "likelihood": "autoregressive",
    "likelihood_options": {"shape": (8, 8), "reach": 2, "hidden": 256, "components": 5, "dropout": 0.5},
}
# instead of the default recipe: what was chosen on validation for the VAE
RECIPES: dict[str, dict[str, Any]] = {
    name: {"lr": 8e-3, "batch_size": 50, "kl_weight": lambda epoch: min(1.0, epoch / 60)}
    for name in ("VAE, autoregressive", "TopDownVAE, autoregressive")
}
PROGRAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "VAE, autoregressive": ("VAE", AUTOREGRESSIVE),
    "TopDownVAE, autoregressive": ("TopDownVAE", AUTOREGRESSIVE),
    "VAE, chained logistics": ("VAE", CHAINED),
    "TopDownVAE, chained logistics": ("TopDownVAE", CHAINED),
    "TopDownVAE": ("TopDownVAE", GREY),
    "DiffusionChain": ("DiffusionChain", GREY),
    "RealNVP": ("RealNVP", GREY),
    "RealNVP, affine marginals": ("RealNVP", {**GREY, "marginals": "affine"}),
    "VAE": ("VAE", GREY),
    "MixtureOfCategoricals": (
        "MixtureOfCategoricals",
        {**GREY, "components": 30, "pseudo_count": 1.0, "prior": "marginal"},
    ),
    "Circuit": ("Circuit", GREY),
}


def run(name: str, seed: int) -> dict[str, Any]:
    """One program, one seed."""
    torch.set_num_threads(1)
    kind, arguments = PROGRAMS[name]
    digits = dgm.data.digits()
    torch.manual_seed(seed)
    program = getattr(dgm.models, kind)(**arguments)
    method = replace(program.default_method("learn"), **RECIPES[name]) if name in RECIPES else None
    fit = dgm.learn(program, digits, method=method, seed=seed)
    valid, test = (dgm.score(program, x, seed=0).mean() for x in (digits.valid, digits.test))
    return {
        "valid": -valid.value,
        "test": -test.value,
        "stderr": test.stderr,
        "kind": test.kind,
        "seconds": fit.cost.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    digits = dgm.data.digits()
    with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = {name: [pool.submit(run, name, seed) for seed in options.seeds] for name in options.programs}
        results = {name: [job.result() for job in running] for name, running in jobs.items()}
    if options.json:
        print(json.dumps(results))
        return
    rows: list[tuple[Any, ...]] = []
    for baseline in (IndependentCategorical, ChowLiuTree):
        fitted = baseline.fit(digits.train, 17, valid=digits.valid)
        scores = [-float(fitted.log_prob(x).mean()) for x in (digits.valid, digits.test)]
        rows.append((f"baseline: {baseline.__name__}", "exact", f"{scores[0]:.2f}", f"{scores[1]:.2f}", "", "", ""))
    for name, runs in results.items():
        tests = [r["test"] for r in runs]
        spread = f"{min(tests):.2f} to {max(tests):.2f}"
        valid, seconds = median(r["valid"] for r in runs), median(r["seconds"] for r in runs)
        kind = runs[0]["kind"].replace("_", " ")
        rows.append(
            (name, kind, f"{valid:.2f}", f"{median(tests):.2f}", spread, f"{runs[0]['stderr']:.2f}", f"{seconds:.0f}")
        )
    print(table(("program", "kind of score", "valid", "test (median)", "over seeds", "± se (images)", "learn s"), rows))


if __name__ == "__main__":
    main()
