"""Seeds: everything random repeats bit for bit and leaves the caller's random state as it was."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["seeded"]


@contextmanager
def seeded(seed: int | None, fork: bool = True) -> Iterator[None]:
    """Run a block under its own random seed.

    Arguments:
        seed: seeds torch (every device), NumPy and Python; `None` leaves the block to the caller's random state.
        fork: put the caller's random states back afterwards, whatever happens inside.
    """
    if seed is None:
        yield
        return
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=devices, enabled=fork):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            if fork:
                np.random.set_state(numpy_state)
                random.setstate(python_state)
