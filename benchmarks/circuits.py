"""Hidden Chow-Liu trees on the digits and on the binary density-estimation sets: nats per row, exact.

    python benchmarks/circuits.py digits                          # one tree, and an ensemble of eight: about 3 minutes
    PPL_DGM_DATA=folder python benchmarks/circuits.py nltcs dna   # one tree each
    python benchmarks/circuits.py nltcs --members 4 --units 64
    PPL_DGM_DATA=folder python benchmarks/circuits.py speed       # seconds; see circuit_speed.py

The number of states, the number of passes and the best weights are chosen on the validation rows in each run; the pseudo-count and the
smoothing of the digits were chosen on theirs. The test rows are scored once, at the end. One CPU thread.
"""

import argparse
import time
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from circuit_speed import speed

import ppl_dgm as dgm
from ppl_dgm.text import table


@dataclass(frozen=True)
class Recipe:
    """How a circuit is learned on a kind of data."""

    units: int
    pseudo_count: float
    smoothing: float
    batch_size: int


DIGITS = Recipe(64, 0.5, 0.4, 128)
BINARY = Recipe(32, 0.2, 0.0, 256)


def measure(data: Any, recipe: Recipe, members: int, components: int, seed: int) -> dict[str, float]:
    """One seed: validation and test nats, and the seconds that learning took."""
    observed, values = data.train.shape[1], int(data.train.max()) + 1
    program = dgm.models.Circuit(
        observed,
        values,
        "hclt",
        pseudo_count=recipe.pseudo_count,
        units=recipe.units,
        components=components,
        smoothing=recipe.smoothing,
    )
    alone = dgm.OnlineEM(batch_size=recipe.batch_size)
    begun = time.perf_counter()
    method: Any = alone if members == 1 else dgm.Ensemble(members=members, method=alone)
    dgm.learn(program, data.train, valid=data.valid, method=method, seed=seed)
    seconds = time.perf_counter() - begun
    valid, test = (program.log_density(x).mean() for x in (data.valid, data.test))
    units = program.weights.units
    return {"valid": -valid.value, "test": -test.value, "stderr": test.stderr, "seconds": seconds, "units": units}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", default=["digits"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--members", type=int, nargs="+", help="circuits that are averaged; default 1, and 8 for digits"
    )
    parser.add_argument("--components", type=int, default=1, help="trees in each circuit")
    parser.add_argument("--units", type=int, help="most states of a hidden variable")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.sets == ["speed"]:
        speed()
        return
    header = ["set", "members", "states", "valid", "test", "over seeds", "± se (rows)", "learn s"]
    rows: list[list[str]] = []
    for name in options.sets:
        data = dgm.data.load(name)
        kind = DIGITS if name == "digits" else BINARY
        recipe = replace(kind, units=options.units or kind.units)
        for members in options.members or ([1, 8] if name == "digits" else [1]):
            found = [measure(data, recipe, members, options.components, seed) for seed in options.seeds]
            test = [row["test"] for row in found]
            spread = f"{min(test):.2f} to {max(test):.2f}" if len(test) > 1 else ""
            rows.append(
                [
                    name,
                    str(members),
                    str(int(max(row["units"] for row in found))),
                    f"{median(row['valid'] for row in found):.2f}",
                    f"{median(test):.2f}",
                    spread,
                    f"{found[0]['stderr']:.2f}",
                    f"{median(row['seconds'] for row in found):.0f}",
                ]
            )
            print(table(header, rows), flush=True)


if __name__ == "__main__":
    main()
