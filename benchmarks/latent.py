"""Every prior, posterior and likelihood of the VAE on the 8x8 digits: nats per image by importance weighting.

    python benchmarks/latent.py                                          # all three tables, the recipe of `VAE` itself
    python benchmarks/latent.py --table priors --only vamp flow --latent 2 --seeds 0 1 2 --json
    python benchmarks/latent.py --epochs 30                              # shortened, the KL warm-up in proportion
    python benchmarks/latent.py --seeds 0 1 2 --keep runs/latent.jsonl   # each run is kept there; run again, it goes on

priors: each prior over real vectors under the Gaussian posterior; posteriors: each with its usual prior; likelihoods: each
with standard prior and Gaussian posterior. Learned on the first 1000 images with every choice (early stopping) on the next
350; the last 447 are scored once, with 512 draws each. A seed fixes the initial weights and the learning. Under the
likelihoods that are marked so, the data are others, and their nats not those of the rest of the table.
"""

import argparse
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import ppl_dgm as dgm
from ppl_dgm.inference.diagnostics.latent import active_units
from ppl_dgm.inference.svi import SVI
from ppl_dgm.models.latent.posteriors import POSTERIORS
from ppl_dgm.models.latent.priors import PRIORS
from ppl_dgm.nn import LIKELIHOODS
from ppl_dgm.text import table

DRAWS = 512
OTHER_SPACES = ("sphere", "hyperbolic", "categorical")  # priors that do not go with the Gaussian posterior
LEVELS = 17
UNCOUNTED = ("bernoulli", "gaussian", "mixed")  # likelihoods that are not told a number of levels


@dataclass(frozen=True)
class Setting:
    """One line of a table.

    Attributes:
        name: of the part that is exchanged.
        latent: dimensions of z.
        arguments: of the VAE, besides the sizes.
        data: "levels": the 17 grey levels; "bits": whether a level is above 7; "spread": level + u with u ~ U(0, 1) drawn
            once, so that a density in x + u bounds the mass of the levels from below (Theis et al. 2016).
    """

    name: str
    latent: int
    arguments: dict[str, Any] = field(default_factory=dict)
    data: str = "levels"


def settings(name: str, latents: Sequence[int]) -> list[Setting]:
    """The lines of a table."""
    if name == "priors":
        real = [prior for prior in PRIORS if prior not in OTHER_SPACES]
        return [Setting(prior, latent, {"prior": prior}) for latent in latents for prior in real]
    if name == "posteriors":
        return [Setting(posterior, max(latents), {"posterior": posterior}) for posterior in POSTERIORS]
    lines = []
    for kind in LIKELIHOODS:
        options: dict[str, Any] = {"likelihood": kind}
        if kind == "bernoulli":
            lines.append(Setting("bernoulli (x > 7)", max(latents), options, "bits"))
        elif kind == "gaussian":
            lines.append(Setting("gaussian (x + u)", max(latents), options, "spread"))
            own = {**options, "likelihood_options": {"scale": "decoder"}}
            lines.append(Setting("gaussian, scale from decoder (x + u)", max(latents), own, "spread"))
        elif kind == "mixed":
            columns = [f"categorical-{LEVELS}"] * 64
            lines.append(Setting("mixed", max(latents), {**options, "likelihood_options": {"columns": columns}}))
        else:
            lines.append(Setting(kind, max(latents), options))
    return lines


def prepared(data: str) -> tuple[dict[str, Tensor], float]:
    """The splits as a likelihood takes them, and what the change of units adds to -log p(x), in nats per image."""
    splits = dgm.data.digits().splits
    if data == "bits":
        return {split: (x > LEVELS // 2 - 1).long() for split, x in splits.items()}, 0.0
    if data == "spread":
        generator = torch.Generator().manual_seed(0)
        spread = {split: x + torch.rand(x.shape, generator=generator) for split, x in splits.items()}
        centre, scale = spread["train"].mean(0), spread["train"].std(0)
        return {split: (x - centre) / scale for split, x in spread.items()}, float(scale.log().sum())
    return splits, 0.0


def recipe(program: Any, epochs: int | None) -> SVI:
    """The program's own learner; with fewer epochs, its warm-up and patience shrink in proportion."""
    method = program.default_method("learn")
    if epochs is None:
        return method
    share, weight = epochs / method.epochs, method.kl_weight
    patience = max(1, math.ceil(method.patience * share))
    return replace(method, epochs=epochs, patience=patience, kl_weight=lambda epoch: weight(epoch / share))


@dataclass(frozen=True)
class Kept:
    """Finished runs, a line of JSON each, in a file that may be None."""

    file: Path | None

    def find(self, key: list[Any]) -> dict[str, Any] | None:
        """The run of this key (setting, seed, epochs), or None."""
        if self.file is None or not self.file.exists():
            return None
        found = (json.loads(text) for text in self.file.read_text().splitlines())
        return next((one["run"] for one in found if one["key"] == key), None)

    def add(self, key: list[Any], finished: dict[str, Any]) -> None:
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a") as lines:
                lines.write(json.dumps({"key": key, "run": finished}) + "\n")


def run(setting: Setting, seed: int, epochs: int | None, kept: Kept) -> dict[str, Any]:
    """One line, one seed; taken from what was kept, where it is there."""
    key = [asdict(setting), seed, epochs]
    finished = kept.find(key)
    if finished is None:
        finished = measured(setting, seed, epochs)
        kept.add(key, finished)
    return finished


def measured(setting: Setting, seed: int, epochs: int | None) -> dict[str, Any]:
    """Learns one program and scores it."""
    torch.set_num_threads(1)
    splits, added = prepared(setting.data)
    options = {"likelihood": "categorical", **setting.arguments}
    levels = None if options["likelihood"] in UNCOUNTED else LEVELS
    torch.manual_seed(seed)
    program = dgm.models.VAE(observed=64, values=levels, latent=setting.latent, **options)
    begun = time.perf_counter()
    try:
        fit = dgm.learn(program, splits["train"], valid=splits["valid"], method=recipe(program, epochs), seed=seed)
        learned = time.perf_counter()
        method = dgm.ImportanceWeighted(draws=DRAWS)
        scores = {name: dgm.score(program, splits[name], method=method, seed=0) for name in ("valid", "test")}
        units = active_units(program, splits["valid"], seed=0)
    except dgm.NumericalError as error:
        return {"seed": seed, "failed": str(error)}
    valid, test = (score.mean() for score in scores.values())
    return {
        "seed": seed,
        "valid": added - valid.value,
        "test": added - test.value,
        "stderr": test.stderr,
        "kind": test.kind,
        "how": scores["test"].how,
        "active": units.active,
        "units": len(units.table),
        "best_epoch": fit.notes["best_epoch"],
        "learn_seconds": learned - begun,
        "score_seconds": time.perf_counter() - learned,
    }


def line(setting: Setting, runs: list[dict[str, Any]]) -> list[str]:
    """Medians over seeds, with the spread of the test score."""
    good = [found for found in runs if "failed" not in found]
    lost = f", {len(runs) - len(good)} of {len(runs)} failed" if len(good) < len(runs) else ""
    if not good:
        return [setting.name, str(setting.latent), f"no number{lost}", *["-"] * 7]
    tests = [found["test"] for found in good]
    middle = {
        key: median(found[key] for found in good) for key in ("valid", "active", "learn_seconds", "score_seconds")
    }
    return [
        setting.name,
        str(setting.latent),
        good[0]["kind"].replace("_", " ") + lost,
        f"{middle['valid']:.2f}",
        f"{median(tests):.2f}",
        f"{min(tests):.2f} to {max(tests):.2f}" if len(tests) > 1 else "-",
        f"{good[0]['stderr']:.2f}",
        f"{middle['active']:g} of {good[0]['units']}",
        f"{middle['learn_seconds']:.0f}",
        f"{middle['score_seconds']:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = ["priors", "posteriors", "likelihoods"]
    parser.add_argument("--table", nargs="+", choices=tables, default=tables)
    parser.add_argument("--only", nargs="+", help="these parts alone, by name")
    parser.add_argument("--latent", type=int, nargs="+", default=[2, 16], help="the other tables take the largest")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, help="instead of the recipe's 120")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="keep each run there, and take those that are there")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    chosen = {
        name: [one for one in settings(name, options.latent) if options.only is None or one.name in options.only]
        for name in options.table
    }
    if not any(chosen.values()):
        known = [one.name for name in options.table for one in settings(name, options.latent)]
        parser.error(f"--only names none of {', '.join(dict.fromkeys(known))}")
    jobs: dict[str, list[tuple[Setting, list[Future]]]] = {}
    found: dict[str, list[tuple[Setting, list[dict[str, Any]]]]] = {}
    with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for name, some in chosen.items():
            jobs[name] = [
                (one, [pool.submit(run, one, seed, options.epochs, Kept(options.keep)) for seed in options.seeds])
                for one in some
            ]
        for name, lines in jobs.items():
            found[name] = []
            for one, running in lines:
                found[name].append((one, [job.result() for job in running]))
                print(*line(*found[name][-1]), sep="  ", file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps({
            name: [{"name": one.name, "latent": one.latent, "data": one.data, "runs": runs} for one, runs in results]
            for name, results in found.items()
        }))  # fmt: skip
        return
    header = ["name", "L", "kind of score", "valid", "test (median)", "over seeds", "± se (images)", "active units"]
    for name, results in found.items():
        if results:
            print(f"\n{name}" + (f", shortened to {options.epochs} epochs" if options.epochs else ""))
            print(table([*header, "learn s", "score s"], [line(*pair) for pair in results]))


if __name__ == "__main__":
    main()
