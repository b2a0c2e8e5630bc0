"""structure: right against graphs that were written down by hand."""

import time
from functools import cache
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from oracles.programs import CASES
from ppl_dgm import Structure, models, structure
from ppl_dgm.errors import ProgramError


@cache
def found(name: str) -> Structure:
    """A case's structure, found once under a seed of its own."""
    torch.manual_seed(0)
    program, *args = CASES[name].make()
    options = args.pop() if args and isinstance(args[-1], dict) else {}
    return structure(program, *args, **options)


@pytest.mark.parametrize("name", CASES)
def test_nodes_edges_and_plates_are_those_written_by_hand(name: str) -> None:
    case, s = CASES[name], found(name)
    assert {n: (d["kind"], d["plates"]) for n, d in s.graph.nodes(data=True)} == case.nodes
    assert set(s.graph.edges) == case.edges
    assert s.plates == case.plates
    assert s.notes == []


@pytest.mark.parametrize("name", CASES)
def test_both_ways_of_finding_an_edge_agree_but_where_values_leave_torch(name: str) -> None:
    by = {(u, v): by for u, v, by in found(name).graph.edges(data="found_by")}
    assert {edge for edge in by if by[edge] == "probe"} == CASES[name].probe
    assert {edge for edge in by if by[edge] == "provenance"} == set()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.guide is not None])
def test_the_guide_conditions_on_what_was_written_by_hand(name: str) -> None:
    s = found(name)
    assert s.guide_graph is not None
    kinds = dict(s.guide_graph.nodes(data="kind"))
    assert {(u, v) for u, v in s.guide_graph.edges if kinds[u] != "parameter"} == CASES[name].guide


def test_node_attributes() -> None:
    s = found("mixture_of_bernoullis")
    theta, k, x = (s.graph.nodes[n] for n in ("theta", "k", "x"))
    assert (theta["dist"], theta["shape"], theta["event_shape"]) == ("Beta", (3, 4), ())
    assert (theta["support"], theta["discrete"], theta["size"]) == ("a number from 0 to 1", False, 12)
    assert (k["dist"], k["discrete"], k["enumerated"]) == ("Categorical", True, True)
    assert (x["dist"], x["shape"], x["event_shape"], x["discrete"]) == ("Bernoulli", (6, 4), (4,), True)


def test_a_module_is_one_node_with_its_size() -> None:
    node = found("module_parameters").graph.nodes["network"]
    assert (node["kind"], node["dist"], node["size"]) == ("parameter", "Sequential", 9 + 20)


def test_markov_sites_are_marked() -> None:
    graph = found("hidden_markov_model").graph
    assert [n for n, markov in graph.nodes(data="markov") if markov] == [f"{v}_{t}" for t in range(4) for v in "zx"]


def test_subsamples_are_told_from_sizes() -> None:
    assert found("subsampled_plate").subsamples == {"data": 4}


def test_masked_densities_are_marked() -> None:
    graph = found("rbm").graph
    assert [n for n, masked in graph.nodes(data="masked") if masked] == ["x", "h"]


def test_a_zoo_program_without_data_observes_a_draw_of_its_own() -> None:
    s = structure(models.VAE(observed=6, values=3, latent=2, hidden=8))
    assert s.graph.nodes["x"]["kind"] == "observed"
    assert s.symbolic == {"data"}
    assert set(s.graph.edges) == CASES["vae"].edges


def test_the_caller_s_tensors_parameters_and_random_state_stay_as_they_were() -> None:
    program, x = models.VAE(observed=6, values=3, latent=2, hidden=8), torch.randint(3, (5, 6))
    before = {name: p.detach().clone() for name, p in program.named_parameters()}
    kept, state, training = x.clone(), torch.get_rng_state(), program.training
    structure(program, x)
    assert all(torch.equal(p, before[name]) for name, p in program.named_parameters())
    assert not any("_dgm_sources" in vars(p) for p in [x, *program.parameters()])
    assert torch.equal(x, kept) and torch.equal(torch.get_rng_state(), state) and program.training == training


def test_a_program_that_differs_from_run_to_run_says_so() -> None:
    def geometric() -> None:
        for i in range(20):
            if pyro.sample(f"flip_{i}", dist.Bernoulli(0.5)) > 0:
                break

    notes = structure(geometric).notes
    assert any("differs from run to run" in note and "flip_1" in note for note in notes)


def test_a_branch_between_sites_gives_both_and_the_reason_for_each() -> None:
    def switch(y: Tensor) -> None:
        c = pyro.sample("c", dist.Bernoulli(0.5))
        loc = pyro.sample("a", dist.Normal(0.0, 1.0)) if c else pyro.sample("b", dist.Normal(5.0, 1.0))
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    s = structure(switch, torch.tensor(0.0))
    assert {("a", "y"), ("b", "y"), ("c", "y")} - set(s.graph.edges) <= {("c", "y")}
    assert s.graph.nodes["a"]["sometimes"] and s.graph.nodes["b"]["sometimes"]
    assert not s.graph.nodes["y"]["sometimes"]
    assert any("differs from run to run" in note for note in s.notes)


def test_a_program_that_cannot_run_says_why() -> None:
    def broken(y: Tensor) -> None:
        with pyro.plate("data", 4):
            pyro.sample("y", dist.Normal(torch.zeros(3), 1.0), obs=y)

    with pytest.raises(ProgramError, match="plate 'data' of size 4"):
        structure(broken, torch.zeros(3))


def test_the_table_names_every_node_and_hidden_edges() -> None:
    text = str(found("python_branch"))
    assert all(name in text for name in ("c", "d", "e", "y"))
    assert "found by the probe alone: c -> y" in text


# -- long programs -----------------------------------------------------------------------------------------


def hmm(steps: int) -> Any:
    def program() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        z = torch.tensor(0.0)
        for t in range(steps):
            z = pyro.sample(f"z_{t}", dist.Normal(a * z, 1.0))
            pyro.sample(f"y_{t}", dist.Normal(z, 1.0), obs=torch.tensor(0.0))

    return program


def test_long_chains_fold_to_two_slices() -> None:
    s = structure(hmm(12))
    assert set(s.graph.edges) == {
        ("a", "z[t-1]"), ("a", "z[t]"), ("z[t-1]", "z[t]"), ("z[t-1]", "y[t-1]"), ("z[t]", "y[t]"),
    }  # fmt: skip
    assert s.graph.nodes["z[t]"]["markov"] == "t" and s.graph.nodes["z[t]"]["slices"] == 12
    assert s.unfolded.graph.has_edge("z_3", "z_4") and len(s.unfolded.graph) == 25
    with pytest.raises(ProgramError, match="unfolded"):
        s.parents("z_3")


def test_short_chains_fold_on_request() -> None:
    s = structure(hmm(4))
    assert "z_3" in s.graph
    assert ("z[t-1]", "z[t]") in s.fold().graph.edges
    assert s.fold().unfolded.graph.has_edge("z_2", "z_3")


def test_chains_of_second_order_fold_to_three_slices() -> None:
    def program() -> None:
        z = [pyro.sample(f"z{t}", dist.Normal(0.0, 1.0)) for t in range(2)]
        for t in range(2, 12):
            z.append(pyro.sample(f"z{t}", dist.Normal(z[t - 1] - 0.5 * z[t - 2], 1.0)))

    assert set(structure(program).graph.edges) == {("z[t-2]", "z[t]"), ("z[t-1]", "z[t]")}


def test_a_diffusion_chain_folds_against_time_and_ends_in_the_data() -> None:
    s = structure(models.DiffusionChain(observed=4, values=3, steps=12, hidden=8), torch.randint(3, (5, 4)))
    assert set(s.graph.edges) == {
        ("z[t]", "z[t-1]"), ("z[t-1]", "x"), ("denoiser", "z[t-1]"), ("denoiser", "x"),
    }  # fmt: skip
    assert s.guide_graph is not None
    assert set(s.guide_graph.edges) == {("x", "z[t-1]"), ("z[t-1]", "z[t]")}


def test_numbered_sites_without_a_chain_stay() -> None:
    def program() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        for i in range(12):
            pyro.sample(f"x_{i}", dist.Normal(mu, 1.0))

    assert len(structure(program).graph) == 13


def test_chains_with_a_change_in_the_middle_stay() -> None:
    def program() -> None:
        jump = pyro.sample("jump", dist.Normal(0.0, 1.0))
        z = torch.tensor(0.0)
        for t in range(12):
            z = pyro.sample(f"z_{t}", dist.Normal(z + (jump if t == 6 else 0.0), 1.0))

    s = structure(program)
    assert len(s.graph) == 13 and s.graph.has_edge("jump", "z_6")


def test_two_hundred_sites_take_seconds() -> None:
    begin = time.process_time()
    s = structure(hmm(100))
    assert time.process_time() - begin < 2.0
    assert s.unfolded.graph.number_of_edges() == 99 + 100 + 100


def test_the_probe_finds_every_hidden_edge_of_a_long_chain() -> None:
    def program() -> None:
        z = torch.tensor(0.0)
        for t in range(50):
            z = pyro.sample(f"z_{t}", dist.Normal(0.9 * float(z), 1.0))

    edges = structure(program).unfolded.graph.edges(data="found_by")
    assert set(edges) == {(f"z_{t}", f"z_{t + 1}", "probe") for t in range(49)}
