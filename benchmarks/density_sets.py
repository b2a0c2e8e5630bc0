"""Mixtures of hidden Chow-Liu trees on binary density-estimation sets, every choice on validation: nats per row, exact.

    PPL_DGM_DATA=folder python benchmarks/density_sets.py nltcs dna      # at most 30 minutes each on two cores
    PPL_DGM_DATA=folder python benchmarks/density_sets.py voting --minutes 5
    python benchmarks/density_sets.py digits --minutes 10                # any set that `ppl_dgm.data.load` knows

The search climbs over the number of trees in a mixture (each started on one k-means cluster of rows) and the pseudo-count, for
half of the time; then the best setting is learned again from other seeds until the time is up. All circuits learned are averaged
with the weights that are most likely on the validation rows. The test rows are scored once, at the end.
"""

import argparse
import multiprocessing
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Any, NamedTuple

import numpy as np
import torch

import ppl_dgm as dgm
from ppl_dgm.inference.ensemble import mixture_shares
from ppl_dgm.text import table

COMPONENTS = (1, 3, 8, 20)
PSEUDO_COUNTS = (0.03, 0.1, 0.3, 1.0, 3.0)


class Setting(NamedTuple):
    """A place in the grid of choices."""

    components: int
    pseudo_count: float

    def neighbours(self) -> list["Setting"]:
        """The settings one step away."""
        c, a = COMPONENTS.index(self.components), PSEUDO_COUNTS.index(self.pseudo_count)
        near = [(c + 1, a), (c, a + 1), (c, a - 1), (c - 1, a)]
        inside = [(i, j) for i, j in near if 0 <= i < len(COMPONENTS) and 0 <= j < len(PSEUDO_COUNTS)]
        return [Setting(COMPONENTS[i], PSEUDO_COUNTS[j]) for i, j in inside]


class Learned(NamedTuple):
    """One circuit: where it came from, and its log densities."""

    setting: Setting
    seed: int
    units: int
    seconds: float
    valid: np.ndarray  # [rows], nats
    test: np.ndarray


def learn(name: str, setting: Setting, seed: int, units: int) -> Learned:
    """One mixture of trees, from one seed."""
    torch.set_num_threads(1)
    data = dgm.data.load(name)
    program = dgm.models.Circuit(
        data.train.shape[1],
        int(data.train.max()) + 1,
        "hclt",
        units=units,
        components=setting.components,
        pseudo_count=setting.pseudo_count,
    )
    begun = time.perf_counter()
    method = dgm.OnlineEM(batch_size=256 if len(data.train) > 4000 else 128)
    dgm.learn(program, data.train, valid=data.valid, method=method, seed=seed)
    seconds = time.perf_counter() - begun
    valid, test = (program.log_density(x).value.detach().double().numpy() for x in (data.valid, data.test))
    return Learned(setting, seed, program.weights.units, seconds, valid, test)


def search(name: str, minutes: float, workers: int, units: int, verbose: bool) -> list[Learned]:
    """Every circuit that was learned in that time."""
    begun, seed = time.perf_counter(), 1
    found: list[Learned] = []
    asked: set[tuple[Setting, int]] = set()
    best: dict[Setting, float] = {}
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        running: dict[Future, Setting] = {}
        while True:
            spent = time.perf_counter() - begun
            slowest = max((one.seconds for one in found), default=0.0)
            while len(running) < workers and (not found or spent + slowest < 60 * minutes):
                job, seed = _next(best, asked, spent < 30 * minutes, seed)
                if job is None:
                    break
                asked.add(job)
                running[pool.submit(learn, name, job[0], job[1], units)] = job[0]
            if not running:
                return found
            for future in wait(running, return_when=FIRST_COMPLETED)[0]:
                running.pop(future)
                one = future.result()
                found.append(one)
                nats = -float(one.valid.mean())
                best[one.setting] = min(nats, best.get(one.setting, nats))
                if verbose:
                    told = (
                        f"{one.setting.components} trees, pseudo-count {one.setting.pseudo_count}, {one.units} states"
                    )
                    print(f"  {name}: {told}, seed {one.seed}: valid {nats:.3f} ({one.seconds:.0f} s)", flush=True)


def _next(best: dict[Setting, float], asked: set, climbing: bool, seed: int) -> tuple[Any, int]:
    """The job to do now, (setting, seed): an untried neighbour of the best setting, else the best again from a new seed."""
    first = [Setting(1, 0.1), Setting(8, 0.1)]
    for setting in first:
        if (setting, 0) not in asked:
            return (setting, 0), seed
    if not best:
        return None, seed
    ranked = sorted(best, key=lambda setting: best[setting])
    if climbing:
        for setting in ranked[0].neighbours():
            if (setting, 0) not in asked:
                return (setting, 0), seed
    return (ranked[0], seed), seed + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--minutes", type=float, default=30.0, help="for each set")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--units", type=int, default=32, help="most states of a hidden variable")
    parser.add_argument("--verbose", action="store_true", help="a line for each circuit")
    options = parser.parse_args()
    header = ("set", "circuits", "best setting", "valid", "best alone, test", "test", "± se (rows)", "minutes")
    rows: list[tuple[str, ...]] = []
    for name in options.sets:
        begun = time.perf_counter()
        found = search(name, options.minutes, options.workers, options.units, options.verbose)
        valid, test = (torch.tensor(np.stack(x)) for x in zip(*((one.valid, one.test) for one in found), strict=True))
        weights = mixture_shares(valid).log()[:, None]
        mixed = [(-(scores + weights).logsumexp(0)) for scores in (valid, test)]
        alone = max(found, key=lambda one: float(one.valid.mean()))
        rows.append(
            (
                name,
                str(len(found)),
                f"{alone.setting.components} trees, {alone.setting.pseudo_count}, {alone.units} states",
                f"{float(mixed[0].mean()):.3f}",
                f"{-float(alone.test.mean()):.3f}",
                f"{float(mixed[1].mean()):.3f}",
                f"{float(mixed[1].std() / len(mixed[1]) ** 0.5):.3f}",
                f"{(time.perf_counter() - begun) / 60:.0f}",
            )
        )
        print(table(header, rows), flush=True)


if __name__ == "__main__":
    main()
