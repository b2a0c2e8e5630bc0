"""A circuit over MNIST as it is, 28 x 28 pixels with 256 grey levels: bits per dimension, exact.

    PPL_DGM_DATA=folder python benchmarks/mnist_circuit.py                           # 2000 rows, 6 minutes of one core
    PPL_DGM_DATA=folder python benchmarks/mnist_circuit.py --rows 50000 --states 64 --minutes 120 --device cuda

The folder holds mnist.npz (see `dgm.data.mnist`). Learning and validation rows are the first of theirs; the test rows
are scored once, at the end, all of them unless --test says otherwise. The structure is a hidden Chow-Liu tree, found
from correlations, a quad-tree or rectangles. Leaves are tables of 256 values, smoothed by each pixel's own law, or
discretised logistics. Minibatch EM stops when the minutes are spent. Published, with all rows and far larger circuits on
GPUs: 1.175 to 1.28.
"""

import argparse
import math
import time
from typing import Any

import torch

import ppl_dgm as dgm
from ppl_dgm.text import table

BITS = 784 * math.log(2)


def learned(program: Any, train: torch.Tensor, valid: torch.Tensor, minutes: float, batch: int, seed: int) -> list:
    """Stages of minibatch EM, each with twice the states, until the time is spent; the best weights on `valid` stay."""
    begun, best, state = time.perf_counter(), math.inf, None
    history: list[Any] = []
    warm = False
    while True:
        spent = (time.perf_counter() - begun) / 60
        if spent >= minutes:
            break
        method = dgm.OnlineEM(epochs=1, batch_size=batch, polish=0, warm_start=warm, grow=False)
        dgm.learn(program, train, method=method, seed=seed + len(history))
        warm = True
        held_out = -program.log_density(valid).mean().value / BITS
        spent = (time.perf_counter() - begun) / 60
        history.append([program.weights.units, f"{held_out:.4f}", f"{spent:.1f}"])
        print(*history[-1], flush=True)
        if held_out < best - 1e-3:
            best, state = held_out, {name: value.clone() for name, value in program.state_dict().items()}
        elif not program.grow(1.0):
            break
        else:
            best = min(best, held_out)
    if state is not None:
        program.load_parameters(state)
    return history


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000, help="training images that are learned from")
    parser.add_argument("--valid", type=int, default=500)
    parser.add_argument("--test", type=int, help="default: all")
    parser.add_argument("--states", type=int, default=16, help="most states of a hidden variable")
    parser.add_argument("--structure", choices=["hclt", "quad-tree", "poon-domingos"], default="hclt")
    parser.add_argument("--leaf", choices=["categorical-256", "discretised-logistic-256"], default="categorical-256")
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--pseudo-count", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = dgm.data.load("mnist")
    train, valid, test = (
        part[:many].long().to(options.device)
        for part, many in ((data.train, options.rows), (data.valid, options.valid), (data.test, options.test))
    )
    image: dict[str, Any] = {} if options.structure == "hclt" else {"shape": (28, 28)}
    image |= {"options": {"step": 4}} if options.structure == "poon-domingos" else {}
    program = dgm.models.Circuit(
        784, 256, options.structure, options.pseudo_count, options.states, leaf=options.leaf, **image
    ).to(options.device)
    begun = time.perf_counter()
    learned(program, train, valid, options.minutes, options.batch, options.seed)
    seconds = time.perf_counter() - begun
    scores = {name: program.log_density(part).mean() for name, part in (("valid", valid), ("test", test))}
    bits = {name: f"{-score.value / BITS:.4f} ± {score.stderr / BITS:.4f}" for name, score in scores.items()}
    header = ["structure", "leaves", "rows", "states", "learn min", "valid bits/dim", "test bits/dim", "test rows"]
    line = [options.structure, options.leaf, len(train), program.weights.units, f"{seconds / 60:.1f}", *bits.values()]
    print(table(header, [[*map(str, line), str(len(test))]]))


if __name__ == "__main__":
    main()
