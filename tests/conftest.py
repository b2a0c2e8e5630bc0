"""What every test shares: one thread, a fixed seed, an empty param store, the devices, and slow shares."""

import os

# With two test processes on two cores, more than one thread each gets in the way. Set before torch and
# numpy load; child processes of a test inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import hashlib
import random
from collections.abc import Iterator

import numpy as np
import pyro
import pytest
import torch

torch.set_num_threads(1)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device of this machine in turn."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def fresh_random_state_and_param_store(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test starts from the same seed and an empty global param store, and must leave the store empty.

    Programs keep their parameters to themselves, so a filled store is a defect of the code under test. A test
    that fills it on purpose says so with `@pytest.mark.uses_param_store`.
    """
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    pyro.clear_param_store()
    yield
    left = sorted(pyro.get_param_store().keys())
    pyro.clear_param_store()
    if left and request.node.get_closest_marker("uses_param_store") is None:
        pytest.fail(f"the test left {', '.join(left)} in Pyro's global param store, which should stay empty")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--slow-share`."""
    parser.addoption(
        "--slow-share",
        metavar="I/N",
        default="1/1",
        help="of the tests marked slow, run the I-th of N disjoint shares (1/1: all of them)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the slow tests of other shares; the share depends on the name alone, so it never moves."""
    share, shares = parse_share(config.getoption("--slow-share"))
    kept, left_out = [], []
    for item in items:
        mine = item.get_closest_marker("slow") is None or share_of(item.nodeid, shares) == share
        (kept if mine else left_out).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


def parse_share(text: str) -> tuple[int, int]:
    """Reads `I/N` with 1 <= I <= N."""
    share, _, shares = text.partition("/")
    if not (share.isdecimal() and shares.isdecimal() and 1 <= int(share) <= int(shares)):
        raise pytest.UsageError(f"--slow-share is {text!r}; give it as I/N with 1 <= I <= N, say 3/8")
    return int(share), int(shares)


def share_of(nodeid: str, shares: int) -> int:
    """The share, from 1 to `shares`, of a test of this name: a hash that is the same everywhere."""
    digest = hashlib.sha256(nodeid.encode()).digest()
    return int.from_bytes(digest[:8], "big") % shares + 1
