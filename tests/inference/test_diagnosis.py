"""diagnose: synthetic draws with one known fault each, and draws without any."""

import math
import re
from collections.abc import Callable

import pytest
import torch

from ppl_dgm.inference.diagnosis import diagnose, pareto_k
from ppl_dgm.results import Posterior


def chains(*shape: int, chains: int = 4, draws: int = 1000) -> torch.Tensor:
    return torch.randn(chains, draws, *shape)


def slow(draws: int = 1000) -> torch.Tensor:
    """Autoregressive chains, correlation 0.99: well mixed in the end, but few effective draws."""
    x = torch.randn(4, draws)
    for t in range(1, draws):
        x[:, t] = 0.99 * x[:, t - 1] + math.sqrt(1 - 0.99**2) * x[:, t]
    return x


def shifted() -> torch.Tensor:
    x = chains(3)
    x[2, :, 1] += 1.0
    return x


def cauchy() -> torch.Tensor:
    """Four Cauchy chains, one four times as wide: R-hat without ranks says 0.9999."""
    x = torch.distributions.Cauchy(0.0, 1.0).sample((4, 1000))
    x[0] *= 4
    return x


def stuck() -> torch.Tensor:
    x = chains(2)
    x[1, :, 0] = 0.3
    return x


def flags(count: int) -> torch.Tensor:
    return torch.arange(4000).reshape(4, 1000) < count


def missing() -> torch.Tensor:
    x = chains()
    x[0, 5] = math.nan
    return x


FAULTS = {
    "shifted chain": (shifted, {}, ["R-hat", r"b\[1\]", "non-centred"]),
    "one chain wider": (lambda: chains() * torch.tensor([3.0, 1, 1, 1])[:, None], {}, ["R-hat"]),
    "heavy tails, one chain wider": (cauchy, {}, ["R-hat"]),
    "slow mixing": (slow, {}, ["ess bulk is below 400", "more draws"]),
    "stuck": (stuck, {}, [r"never move for b\[0\] in chain 1"]),
    "too few": (lambda: chains(draws=3), {}, ["only 3 draws"]),
    "short": (lambda: chains(draws=50), {}, ["ess tail is below 400"]),
    "not a number": (missing, {}, ["NaN"]),
    "divergences": (chains, {"diverging": lambda: flags(20)}, ["20 of 4000", "0.5 %", "target_accept"]),
    "tree depth": (chains, {"reached_max_treedepth": lambda: flags(1)}, ["1 of 4000", "max_tree_depth"]),
    "energy": (chains, {"energy": lambda: torch.randn(4, 1000).cumsum(1)}, ["BFMI", "chain 0"]),
}


@pytest.mark.parametrize(("draws", "stats", "words"), FAULTS.values(), ids=FAULTS)
def test_each_fault_is_named_with_its_remedy(draws: Callable, stats: dict, words: list[str]) -> None:
    posterior = Posterior({"b": draws()}, stats={k: v() for k, v in stats.items()}, kind="asymptotic")
    sentences = posterior.diagnose()
    assert sentences
    for word in words:
        assert any(re.search(word, sentence) for sentence in sentences), (word, sentences)
    assert all(sentence.endswith(".") for sentence in sentences)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_good_draws_are_not_complained_about(shape: tuple[int, ...]) -> None:
    stats = {"diverging": flags(0), "reached_max_treedepth": flags(0), "energy": torch.randn(4, 1000)}
    assert diagnose(Posterior({"b": chains(*shape)}, stats=stats, kind="asymptotic")) == []


def test_independent_draws_of_a_guide_have_no_chains_to_compare() -> None:
    assert diagnose(Posterior({"z": torch.randn(1, 30, 5)}, kind="approximate")) == []


@pytest.mark.parametrize("k", [0.2, 0.9])
def test_the_pareto_shape_is_recovered(k: float) -> None:
    weights = torch.rand(20_000, dtype=torch.float64).pow(-k)  # exactly Pareto, with shape k
    assert pareto_k(weights.log() + 7) == pytest.approx(k, abs=0.12)


def test_the_pareto_shape_is_arvizs() -> None:
    arviz = pytest.importorskip("arviz", minversion="0.20")
    if not hasattr(arviz, "psislw"):
        pytest.skip("ArviZ 1.x has psislw elsewhere")
    log_weights = 1.5 * torch.randn(3000, dtype=torch.float64)
    _, expected = arviz.psislw(log_weights.numpy())
    assert pareto_k(log_weights) == pytest.approx(float(expected), abs=0.05)


@pytest.mark.parametrize(
    ("log_weights", "words"),
    [
        (lambda: 5 * torch.randn(1000), ["Pareto k", "effective sample size"]),
        (lambda: torch.cat([torch.zeros(999), torch.tensor([12.0])]), ["effective sample size"]),
        (lambda: torch.stack([torch.zeros(1000), 5 * torch.randn(1000)], 1), ["1 of 2 observations"]),
        (lambda: torch.full((1000,), -math.inf), ["support"]),
    ],
    ids=["heavy", "one dominates", "one observation of two", "none"],
)
def test_bad_weights_are_named(log_weights: Callable, words: list[str]) -> None:
    posterior = Posterior({"z": torch.randn(1, 1000, 2)}, log_weights=log_weights(), how="importance")
    sentences = diagnose(posterior)
    for word in words:
        assert any(word in sentence for sentence in sentences), (word, sentences)


@pytest.mark.parametrize("batch", [(), (3,)])
def test_good_weights_are_not_complained_about(batch: tuple[int, ...]) -> None:
    for log_weights in (torch.zeros(1000, *batch), 0.3 * torch.randn(1000, *batch)):
        assert diagnose(Posterior({"z": torch.randn(1, 1000, 2)}, log_weights=log_weights)) == []
