"""Hidden Chow-Liu trees as programs: EM, growing, mixtures of trees, files, missing entries."""

import itertools
from pathlib import Path

import pyro
import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.models.circuits.circuit import Circuit

D, K = 5, 2
STATES = torch.tensor(list(itertools.product(range(K), repeat=D)))


def data(n: int, seed: int = 0) -> torch.Tensor:
    """Two clusters, in each of which neighbours agree or disagree: no single tree over the observed has this law."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kind = torch.rand(n) < 0.4
        x = [torch.bernoulli(torch.where(kind, 0.8, 0.3))]
        for _ in range(D - 1):
            agree = torch.where(kind, 0.9, 0.2)
            x.append(torch.where(torch.rand(n) < agree, x[-1], 1 - x[-1]))
        return torch.stack(x, 1).long()


def learned(units: int = 8, components: int = 1, **options) -> tuple[Circuit, dgm.Fit]:
    program = Circuit(D, K, "hclt", units=units, components=components)
    method = dgm.OnlineEM(epochs=10, polish=30, tolerance=0.0, batch_size=128, **options)
    return program, dgm.learn(program, data(600), valid=data(300, 1), method=method, seed=0)


def test_better_than_the_chow_liu_tree_and_normalised() -> None:
    program, fit = learned()
    tree = Circuit(D, K)
    dgm.learn(tree, data(600), valid=data(300, 1))
    held_out = data(2000, 2)
    gain = program.log_density(held_out).value - tree.log_density(held_out).value
    assert float(gain.detach().mean()) > 0.1
    assert float(program.log_density(STATES).value.detach().exp().sum()) == pytest.approx(1, abs=1e-5)
    assert fit.history["valid"].min() == pytest.approx(-program.log_density(data(300, 1)).mean().value, abs=1e-5)


def test_the_start_is_the_chow_liu_tree() -> None:
    """With as many units as values, they are the values: almost the tree's own likelihood before any step."""
    program, tree = Circuit(D, K, "hclt", units=2), Circuit(D, K, pseudo_count=1.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        program.em_start(data(600))
    tree.fit_closed_form(data(600))
    start, aim = (float(p.log_density(data(600)).value.mean()) for p in (program, tree))
    independent = D * torch.log(torch.tensor(2.0))
    assert start > aim - 0.35 * (aim + float(independent))


@pytest.mark.parametrize("components, pseudo_count", [(1, 0.0), (3, 0.0), (1, 2.0)])
def test_full_em_never_falls(components: int, pseudo_count: float) -> None:
    program = Circuit(D, K, "hclt", units=4, components=components, pseudo_count=pseudo_count).double()
    fit = dgm.learn(program, data(400), method=dgm.EM(steps=40, tolerance=0.0), seed=1)
    rises = -fit.history["penalised" if pseudo_count else "objective"].diff().dropna()
    assert len(rises) > 5 and float(rises.min()) > -1e-9


def test_growing_keeps_the_density_but_for_the_noise() -> None:
    program, _ = learned(units=4)
    program.weights.most_units = 8
    before = program.log_density(STATES).value
    assert program.weights.units == 4 and program.grow(1e-6)
    assert program.weights.units == 8 and not program.grow(1e-6)
    torch.testing.assert_close(program.log_density(STATES).value, before, atol=1e-4, rtol=0)


def test_a_mixture_of_trees_has_a_tree_for_each_cluster() -> None:
    program, _ = learned(units=4, components=2)
    assert program.weights.trees.shape == (2, D)
    assert float(program.log_density(STATES).value.detach().exp().sum()) == pytest.approx(1, abs=1e-5)


def test_marginals_and_conditionals_are_those_of_the_table() -> None:
    program, _ = learned(units=4, components=2)
    table = program.log_density(STATES).value.double().exp()
    x = STATES.clone()
    x[:, [1, 3]] = -1
    known = [0, 2, 4]
    same = (STATES[:, None, known] == STATES[:, known]).all(-1).double()  # [row, state]
    torch.testing.assert_close(program.log_density(x).value.double().exp(), same @ table, atol=1e-5, rtol=1e-4)
    found = program.posterior(x)["x"].probs
    chance = torch.stack([same @ (table * (STATES[:, 1] == k)) for k in range(K)], -1) / (same @ table)[:, None]
    torch.testing.assert_close(found[:, 1].double(), chance, atol=1e-4, rtol=1e-3)


def test_missing_entries_are_learned_from() -> None:
    x = data(600).masked_fill(torch.rand(600, D, generator=torch.Generator().manual_seed(3)) < 0.3, -1)
    program = Circuit(D, K, "hclt", units=4)
    dgm.learn(program, x, valid=data(300, 1), method=dgm.OnlineEM(epochs=3, polish=5, batch_size=128), seed=0)
    assert program.log_density(data(2000, 2)).mean().value > -D * 0.6931


def test_saved_and_loaded_with_trees_and_units(tmp_path: Path) -> None:
    program, fit = learned(units=8, components=2)
    fit.save(tmp_path)
    again = dgm.Fit.load(tmp_path).program
    assert torch.equal(again.log_density(STATES).value, program.log_density(STATES).value)
    assert torch.equal(again.weights.trees, program.weights.trees)


def test_the_same_seed_gives_the_same_circuit() -> None:
    first, second = learned()[0], learned()[0]
    assert torch.equal(first.log_density(STATES).value, second.log_density(STATES).value)


def test_one_site_inside_another_program() -> None:
    """The circuit as a prior of another program's latent site, under Pyro's own handlers."""
    program, _ = learned(units=4)

    def noisy(y: torch.Tensor) -> torch.Tensor:
        x = pyro.sample("x", program.distribution())
        return pyro.sample("y", pyro.distributions.Normal(x.to(y), 1.0).to_event(1), obs=y)

    trace = pyro.poutine.trace(noisy).get_trace(torch.zeros(D))
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"] == program.log_density(trace.nodes["x"]["value"][None]).value[0]


def test_an_ensemble_is_the_average_of_its_members(tmp_path: Path) -> None:
    program = Circuit(D, K, "hclt", units=8)
    member = dgm.OnlineEM(epochs=3, polish=3, batch_size=128)
    fit = dgm.learn(program, data(600), valid=data(300, 1), method=dgm.Ensemble(members=3, method=member), seed=0)
    assert program.weights.trees.shape == (3, D)
    assert -program.log_density(data(300, 1)).mean().value == pytest.approx(fit.history["together"].iloc[-1], abs=1e-4)
    assert fit.history["together"].iloc[-1] < fit.history["valid"].mean()
    assert float(program.log_density(STATES).value.detach().exp().sum()) == pytest.approx(1, abs=1e-5)
    fit.save(tmp_path)
    assert torch.equal(dgm.Fit.load(tmp_path).program.log_density(STATES).value, program.log_density(STATES).value)
    dgm.learn(program, data(600), valid=data(300, 1), method=member, seed=0)  # begins anew with one tree
    assert program.weights.trees.shape == (1, D)


def test_joint_steps_are_kept_only_where_validation_agrees() -> None:
    program = Circuit(D, K, "hclt", units=4)
    member = dgm.OnlineEM(epochs=2, polish=2, batch_size=128)
    method = dgm.Ensemble(members=2, method=member, joint=5, weigh=True)
    fit = dgm.learn(program, data(600), valid=data(300, 1), method=method, seed=0)
    assert fit.history["together"].iloc[-1] <= fit.history["together"].iloc[-2]
    assert sum(fit.notes["shares"]) == pytest.approx(1)


def test_smoothing_shares_counts_among_neighbours() -> None:
    program = Circuit(2, 4, "hclt", units=1, pseudo_count=0.0, smoothing=0.4)
    x = torch.tensor([[0, 1], [1, 1], [1, 2], [3, 3]])
    program.em_start(x)
    program.em_maximise(program.em_statistics(x)[1], len(x))
    leaves = program.weights.leaf_logits[0, 0].softmax(-1)
    torch.testing.assert_close(leaves * 4, torch.tensor([1.0 + 0.4, 2 * 0.6, 0.4, 1.0]))
    with pytest.raises(ProgramError, match="online-em"):
        program.em_step(x)


def test_broken_options() -> None:
    with pytest.raises(ProgramError, match="components"):
        Circuit(D, K, "hclt", components=0)
    with pytest.raises(ProgramError, match="rows for 4 components"):
        Circuit(D, K, "hclt", components=4).em_start(data(3))
    with pytest.raises(ProgramError, match="online-em"):
        Circuit(D, K, "hclt").fit_closed_form(data(10))
    with pytest.raises(ProgramError, match="smoothing"):
        Circuit(D, K, "hclt", smoothing=1.0)
    with pytest.raises(TaskUnavailable, match="hclt"):
        dgm.learn(Circuit(D, K), data(50), method="ensemble")
    with pytest.raises(ProgramError, match="decay"):
        dgm.OnlineEM(decay=0.3)
