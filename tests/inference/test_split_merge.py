"""SplitMergeEM: leaves local optima that EM does not, for every kind of mixture, and never ends below EM."""

import copy

import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.models import (
    MixtureOfBernoullis,
    MixtureOfCategoricals,
    MixtureOfGaussians,
    MixtureOfMixedColumns,
    MixtureOfPoissons,
    MixtureOfStudents,
)

WARM = dgm.EM(warm_start=True, tolerance=1e-6)


def groups(n: int, seed: int) -> torch.Tensor:
    """Three well-separated groups in the plane, [n, 2] float64."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[-10.0, 0.0], [10.0, 3.0], [10.0, -3.0]], dtype=torch.float64)
    k = torch.randint(3, (n,), generator=generator)
    return centres[k] + torch.randn(n, 2, generator=generator, dtype=torch.float64)


def trapped() -> MixtureOfGaussians:
    """Two components in the group on the left, one over both on the right: a local optimum, far below the best."""
    program = MixtureOfGaussians(2, 3).double()
    means = torch.tensor([[-10.5, 0.0], [-9.5, 0.0], [10.0, 0.0]])
    program.assign(torch.full((3,), 1 / 3), means, torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 10.0]]))
    return program


def test_it_escapes_where_em_is_trapped_and_the_held_out_likelihood_rises():
    x, held_out = groups(300, 0), groups(1000, 1)
    alone, moved = trapped(), trapped()
    dgm.learn(alone, x, method=WARM, seed=0)
    fit = dgm.learn(moved, x, method=dgm.SplitMergeEM(em=WARM), seed=0)
    gain = moved.log_density(held_out).mean().value - alone.log_density(held_out).mean().value
    assert gain > 0.3
    assert len(fit.notes["moves"]) == 1 and fit.notes["moves"][0]["split"] == 2
    best = MixtureOfGaussians(2, 3).double()
    dgm.learn(best, x, method=dgm.EM(restarts=10, tolerance=1e-6), seed=0)
    assert moved.log_density(x).mean().value == pytest.approx(best.log_density(x).mean().value, abs=1e-3)
    assert set(fit.history["move"]) == {0, 1}


def test_at_the_best_optimum_it_stops_and_changes_nothing():
    x = groups(300, 0)
    best = MixtureOfGaussians(2, 3).double()
    dgm.learn(best, x, method=dgm.EM(restarts=10, tolerance=1e-6), seed=0)
    before = copy.deepcopy(best)
    fit = dgm.learn(best, x, method=dgm.SplitMergeEM(em=WARM), seed=0)
    assert fit.notes["moves"] == [] and fit.notes["tried"] == 3  # as many triples as there are
    torch.testing.assert_close(best.log_density(x).value, before.log_density(x).value, atol=1e-3, rtol=0)


def test_the_same_seed_repeats():
    x = groups(200, 0)
    first, second = trapped(), trapped()
    for program in (first, second):
        dgm.learn(program, x, method=dgm.SplitMergeEM(em=WARM), seed=4)
    assert torch.equal(first.means, second.means)


def rows(kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    k = torch.randint(4, (240,), generator=generator)
    bright = torch.eye(4)[k].repeat_interleave(3, 1) * 0.8 + 0.1  # [n, 12]
    if kind == "bernoulli":
        return torch.bernoulli(bright, generator=generator)
    if kind == "categorical":
        return (torch.bernoulli(bright, generator=generator) + torch.bernoulli(bright, generator=generator)).long()
    if kind == "poisson":
        return torch.poisson(10 * bright, generator=generator)
    return torch.randn(240, 12, generator=generator) + 6 * bright


MIXTURES = {
    "bernoulli": lambda: MixtureOfBernoullis(12, 4),
    "categorical": lambda: MixtureOfCategoricals(12, 3, 4),
    "poisson": lambda: MixtureOfPoissons(12, 4),
    "student": lambda: MixtureOfStudents(12, 4, "diagonal"),
    "full": lambda: MixtureOfGaussians(12, 4, "full", floor=0.1),
    "mixed": lambda: MixtureOfMixedColumns(["gaussian"] * 12, 4),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_every_mixture_may_be_split_and_merged(name):
    """From two equal components, and never below EM from the same start."""
    kind = name if name in ("bernoulli", "categorical", "poisson") else "gaussian"
    program, x = MIXTURES[name]().double(), rows(kind)
    x = x.double() if x.is_floating_point() else x
    torch.manual_seed(1)
    program.em_start(x)
    share = torch.full((len(x), 4), 1e-3, dtype=torch.float64)
    share[:, :2] += torch.rand(len(x), 1, dtype=torch.float64)  # the first two explain the same
    program.set_weights(share.sum(0))
    program.maximise(program.as_data(x), share)
    short = dgm.EM(steps=60, warm_start=True, tolerance=1e-4)
    alone = copy.deepcopy(program)
    dgm.learn(alone, x, method=short, seed=0)
    dgm.learn(program, x, method=dgm.SplitMergeEM(em=short, candidates=4, moves=3), seed=0)
    gain = program.log_density(x).mean().value - alone.log_density(x).mean().value
    assert gain > (-1e-9 if name == "student" else 0.05)  # wide tails let EM itself find the four groups


def test_holes_may_stay_holes():
    x = groups(200, 0).masked_fill(torch.rand(200, 2, generator=torch.Generator().manual_seed(2)) < 0.1, torch.nan)
    program = MixtureOfGaussians(2, 3, missing=True).double()
    fit = dgm.learn(program, x, valid=groups(100, 1), method="split-merge-em", seed=0)
    assert program.log_density(groups(100, 1)).mean().value == pytest.approx(-fit.history["valid"].min(), abs=1e-9)


def test_refusals():
    with pytest.raises(TaskUnavailable, match="no mixture"):
        dgm.learn(dgm.models.ProbabilisticPCA(2, 1), groups(20, 0).float(), method="split-merge-em")
    with pytest.raises(ProgramError, match="candidates"):
        dgm.SplitMergeEM(candidates=0)
    with pytest.raises(ProgramError, match="em must"):
        dgm.SplitMergeEM(em="em")
