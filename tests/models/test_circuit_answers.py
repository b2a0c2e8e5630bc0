"""Circuit programs: information per entry, probabilities of events, and gradient learning on a recorded graph."""

import itertools
import warnings

import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.errors import DataError, ProgramError, TaskUnavailable
from ppl_dgm.models import Circuit


def rows(n: int = 60, seed: int = 0) -> torch.Tensor:
    """Three categories in four columns, each the one before with a jump now and then."""
    generator = torch.Generator().manual_seed(seed)
    steps = (torch.rand(n, 4, generator=generator) < 0.3).long().cumsum(1)
    return (torch.randint(3, (n, 1), generator=generator) + steps) % 3


STATES = torch.tensor(list(itertools.product(range(3), repeat=4)))
STRUCTURES = pytest.mark.parametrize("structure", ["chow-liu", "hclt", "binary-tree", "learn-spn"])


def learned(structure: str, **options) -> Circuit:
    program = Circuit(4, 3, structure, **({"units": 3} | options)).double()
    dgm.learn(program, rows(), seed=0)
    return program


@STRUCTURES
def test_information_and_events_of_a_learned_circuit(structure):
    program = learned(structure)
    table = program.log_density(STATES).value.detach().exp().reshape(3, 3, 3, 3)
    x = rows(10, seed=1)
    found = program.information(x)
    for d in range(4):
        own = (table.log() - table.sum(d, keepdim=True).log())[tuple(x.T)]
        torch.testing.assert_close(found[:, d], -own, atol=1e-9, rtol=1e-9)
    holes = x.clone()
    holes[:, 1] = -1
    found = program.information(holes)
    seen = table.sum(1)
    assert bool((found[:, 1] == 0).all())
    own = (seen.log() - seen.sum(1, keepdim=True).log())[tuple(x[:, [0, 2, 3]].T)]
    torch.testing.assert_close(found[:, 2], -own, atol=1e-9, rtol=1e-9)
    event, given = [{0: {1, 2}, 3: 0}, {1: 2}], {2: [0, 1]}
    inside = (((STATES[:, 0] > 0) & (STATES[:, 3] == 0)) | (STATES[:, 1] == 2)).reshape(3, 3, 3, 3)
    condition = (STATES[:, 2] < 2).reshape(3, 3, 3, 3)
    wanted = float(table[inside & condition].sum() / table[condition].sum())
    assert float(program.probability(event, given)) == pytest.approx(wanted, abs=1e-10)
    entropies = [
        -float(torch.xlogy(p, p).sum()) for p in (table.sum([e for e in range(4) if e != d]) for d in range(4))
    ]
    assert program.marginal_entropies().tolist() == pytest.approx(entropies, abs=1e-8)
    assert program.marginal_entropies(holes).shape == (10, 4)


def test_information_of_numbers_is_the_surprise_of_their_densities():
    torch.manual_seed(0)
    program = Circuit(3, structure="hclt", units=2, leaf=["gaussian", "poisson", "gaussian"]).double()
    x = torch.stack([torch.randn(50), torch.poisson(torch.full((50,), 3.0)), 4 * torch.randn(50)], 1).double()
    dgm.learn(program, x, method=dgm.EM(steps=3, tolerance=0.0), seed=0)
    x[0, 0], x[1, 2] = 1e4, torch.nan  # far out, where no unit explains it; and a hole
    found = program.information(x)
    whole = program.log_density(x).value.detach()
    for d in range(3):
        rest = x.clone()
        rest[:, d] = torch.nan
        torch.testing.assert_close(found[:, d], program.log_density(rest).value.detach() - whole, rtol=1e-8, atol=1e-8)
    assert float(found[1, 2]) == 0
    for ask in (lambda: program.probability({0: 1}), program.marginal_entropies):
        with pytest.raises(TaskUnavailable, match="leaves are of other families"):
            ask()


def test_refusals_in_words():
    program = learned("chow-liu")
    with pytest.raises(ProgramError, match="numbered from 0 to 3"):
        program.probability({7: 1})
    with pytest.raises(DataError, match=r"x\[0, 1\] is 5"):
        program.information(torch.tensor([[0, 5, 0, 0]]))


@pytest.mark.parametrize("leaf", ["categorical", "gaussian"])
@pytest.mark.parametrize("structure", ["hclt", "binary-tree"])
def test_gradient_learning_replays_a_recorded_graph(structure, leaf):
    x = rows() if leaf == "categorical" else rows() + torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
    options = {"epochs": 5, "batch_size": 20, "lr": 0.05, "optim": "sgd"}
    programs, fits = [], []
    for backend in ("eager", "python"):
        torch.manual_seed(3)
        program = Circuit(4, 3, structure, units=2, leaf=leaf).double()
        with torch.no_grad():
            for parameter in program.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        before = [parameter.detach().clone() for parameter in program.parameters()]
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            fits.append(dgm.learn(program, x, method=dgm.MaximumLikelihood(backend=backend, **options), seed=0))
        programs.append(program)
        moved = max(float((a.detach() - b).abs().max()) for a, b in zip(program.parameters(), before, strict=True))
        assert moved > 1e-2
    assert [fit.cost.path for fit in fits] == ["recorded", "python"]
    for a, b in zip(*(program.parameters() for program in programs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)


def test_a_recorded_graph_scores_rows_that_the_fast_passes_cannot():
    """The graph is made on likely rows and replayed on one whose value is far below the smallest number."""
    torch.manual_seed(0)
    program = Circuit(40, structure="binary-tree", units=2, leaf="gaussian").double()
    near = torch.randn(4, 40, dtype=torch.float64)
    far = 30.0 * torch.randn(4, 40, dtype=torch.float64)
    from ppl_dgm.graphs import recorded

    parameters = list(program.parameters())

    def step(x):
        value = program.log_prob(x)
        return value, torch.autograd.grad(value.sum(), parameters, allow_unused=True)

    replayed = recorded(step, live=parameters)
    replayed(near)
    found, wanted = replayed(far), step(far)
    assert replayed.path == "recorded" and float(wanted[0].detach().max()) < -800
    torch.testing.assert_close(found[0], wanted[0].detach())
    for a, b in zip(found[1], wanted[1], strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            torch.testing.assert_close(a, b.detach(), atol=1e-8, rtol=1e-6)
