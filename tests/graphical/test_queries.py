"""Structure's other questions: relatives, products, plates written out, what a guide needs, and pgmpy."""

import re
import sys
import types
from functools import cache
from typing import Any

import networkx as nx
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from oracles.programs import CASES
from ppl_dgm import Structure, models, structure
from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.graphical.typeset import latex_name


@cache
def found(name: str) -> Structure:
    program, *args = CASES[name].make()
    options = args.pop() if args and isinstance(args[-1], dict) else {}
    return structure(program, *args, **options)


def test_relatives() -> None:
    s = found("eight_schools_not_centred")
    assert s.parents("theta") == {"mu", "tau", "eta"}
    assert s.children("theta") == {"y"}
    assert s.ancestors("y") == {"mu", "tau", "eta", "theta", "sigma"}
    assert s.descendants("mu") == {"theta", "y"}
    assert s.markov_blanket("theta") == {"mu", "tau", "eta", "y"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vae", "p(z, x) = prod_data[5] {p(z) p(x | z; decoder)}"),
        (
            "eight_schools",
            "p(mu, tau, theta, y) = p(mu) p(tau) prod_J[8] {p(theta | mu, tau) p(y | theta; sigma)}",
        ),
        (
            "eight_schools_not_centred",
            "p(mu, tau, eta, y) = p(mu) p(tau) prod_J[8] {p(eta) p(y | theta; sigma)}, where theta = f(mu, tau, eta)",
        ),
        (
            "latent_dirichlet_allocation",
            "p(topic, theta, z, w) = prod_topics[3] p(topic) "
            "prod_documents[4] {p(theta) prod_words[5] {p(z | theta) p(w | topic, z)}}",
        ),
        ("rbm", "p(x, h) ∝ prod_data[5] psi_energy(x, h; weight, bias, hidden_bias)"),
        ("markov_random_field", "p(a, b, c) ∝ p(a) p(b) p(c) psi_agree(a, b) psi_pull(b, c)"),
    ],
)
def test_factorisation_in_words(name: str, text: str) -> None:
    assert found(name).factorisation() == text


def test_factorisation_in_latex() -> None:
    assert found("eight_schools").factorisation().latex() == (
        r"p(\mu, \tau, \theta, y) = p(\mu) p(\tau) "
        r"\prod_{\text{J}=1}^{8} p(\theta \mid \mu, \tau) p(y \mid \theta; \sigma)"
    )
    latex = found("rbm").factorisation().latex()
    assert r"\propto" in latex and r"\psi_{\text{energy}}(x, h" in latex


@pytest.mark.parametrize(
    ("name", "latex"),
    [
        ("mu", r"\mu"),
        ("mu_1", r"\mu_{1}"),
        ("z2", "z_{2}"),
        ("x[t-1]", "x_{t-1}"),
        ("wet", r"\text{wet}"),
        ("sigma_obs", r"\sigma_{\text{obs}}"),
        ("linear.weight", r"\text{linear.weight}"),
        ("a_b_1", r"a_{b, 1}"),
    ],
)
def test_names_as_mathematics(name: str, latex: str) -> None:
    assert latex_name(name) == latex


@pytest.mark.parametrize("name", CASES)
def test_every_factorisation_names_each_site_once_and_balances(name: str) -> None:
    factorisation = found(name).factorisation()
    s = found(name)
    assert [term.child for term in factorisation.factors] == s.kind("latent", "observed", "deterministic", "factor")
    for text in (factorisation, factorisation.latex()):
        assert all(text.count(a) == text.count(b) for a, b in ("()", "{}"))
    for node in s.kind("latent", "observed"):
        expected = 0 if s.graph.nodes[node]["masked"] else 1
        assert len(re.findall(rf"p\({re.escape(node)}(?=[ );])", re.split("[=∝]", factorisation)[1])) == expected


def test_the_factor_graph_is_bipartite() -> None:
    graph = found("markov_random_field").factor_graph()
    assert nx.is_bipartite(graph)
    assert set(graph["agree"]) == {"a", "b"} and set(graph["pull"]) == {"b", "c"}
    assert set(found("eight_schools").factor_graph()["p(theta | mu, tau)"]) == {"theta", "mu", "tau"}


# -- plates and interventions ------------------------------------------------------------------------------


def test_unrolled_plates_join_copies_to_their_own_and_to_what_is_outside() -> None:
    s = found("eight_schools").unroll({"J": 2})
    assert set(s.graph.edges) == {
        (u, v) for i in range(2) for u, v in
        (("mu", f"theta[{i}]"), ("tau", f"theta[{i}]"), (f"theta[{i}]", f"y[{i}]"), ("sigma", f"y[{i}]"))
    }  # fmt: skip
    assert s.plates == {}
    assert s.d_separated("y[0]", "y[1]", ["mu", "tau"]) and not s.d_separated("y[0]", "y[1]")


def test_one_of_two_overlapping_plates_unrolled() -> None:
    s = found("raters_and_items").unroll({"raters": 2})
    assert s.plates == {"items": 4}
    assert s.parents("rating[1]") == {"bias[1]", "quality"}
    both = found("raters_and_items").unroll({"raters": 2, "items": 3})
    assert both.parents("rating[2,1]") == {"bias[1]", "quality[2]"}


def test_unrolling_agrees_with_the_program_written_with_a_loop() -> None:
    def loop(n: int) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        for i in range(n):
            theta = pyro.sample(f"theta[{i}]", dist.Normal(mu, 1.0))
            pyro.sample(f"y[{i}]", dist.Normal(theta, 1.0))

    def plate(n: int) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("n", n):
            theta = pyro.sample("theta", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(theta, 1.0))

    assert set(structure(plate, 9).unroll({"n": 3}).graph.edges) == set(structure(loop, 3).graph.edges)


def test_unroll_refuses_unknown_plates_and_sizes() -> None:
    with pytest.raises(ProgramError, match="no plate 'K'; it has J"):
        found("eight_schools").unroll({"K": 2})
    with pytest.raises(ProgramError, match="positive number of copies"):
        found("eight_schools").unroll({"J": 0})


def test_do_cuts_what_points_at_a_site() -> None:
    s = found("sprinkler").do("sprinkler")
    assert s.parents("sprinkler") == set() and s.graph.nodes["sprinkler"]["kind"] == "input"
    assert s.d_separated("rain", "sprinkler")
    assert not found("sprinkler").d_separated("rain", "sprinkler")


# -- what a guide needs ------------------------------------------------------------------------------------


def test_the_vae_s_guide_has_what_the_posterior_needs() -> None:
    needs = found("vae").required_inputs("z")
    assert needs.guide == needs.posterior == {"x"} and not needs.missing and not needs.spare


def test_the_top_down_guide_conditions_as_the_posterior_does() -> None:
    s = found("top_down_vae")
    assert s.required_inputs("z2").missing == frozenset()
    assert s.required_inputs("z1").posterior == {"x", "z2"} and not s.required_inputs("z1").missing


def test_a_guide_that_forgets_a_sibling_is_told() -> None:
    def model(x: Tensor, w: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        c = pyro.sample("c", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(a + b + w, 1.0), obs=x)
        pyro.sample("u", dist.Normal(c, 1.0), obs=x.new_zeros(()))

    def guide(x: Tensor, w: Tensor) -> None:
        pyro.sample("a", dist.Normal(x, 1.0))
        pyro.sample("b", dist.Normal(x, 1.0))
        pyro.sample("c", dist.Normal(x, 1.0))

    s = structure(model, torch.tensor(0.5), torch.tensor(2.0), guide=guide)
    a, b, c = (s.required_inputs(name) for name in "abc")
    assert (a.posterior, a.missing) == ({"x", "w"}, {"w"})
    assert (b.posterior, b.missing) == ({"x", "w", "a"}, {"w", "a"})  # explaining away
    assert (c.posterior, c.missing, c.spare) == ({"u"}, {"u"}, {"x"})
    assert "Missing: a, w, so this guide cannot be exact" in str(b)


def test_an_autoguide_is_followed() -> None:
    program, *args = CASES["eight_schools"].make()
    s = structure(program, *args, guide="AutoNormal")
    assert s.guide_graph is not None
    assert {n for n, kind in s.guide_graph.nodes(data="kind") if kind == "latent"} >= {"mu", "tau", "theta"}
    assert s.required_inputs("mu").guide == frozenset()
    assert not any(s.graph.has_node(node) for node in ("locs", "scales"))


def test_parameters_named_like_sites_are_told_apart() -> None:
    program, *args = CASES["eight_schools"].make()
    s = structure(program, *args, guide="AutoDelta")
    assert s.guide_graph is not None
    assert set(s.guide_graph.edges) == {(f"{name} (parameter)", name) for name in ("mu", "tau", "theta")}


def test_a_question_about_a_guide_that_is_not_there_is_refused() -> None:
    with pytest.raises(ProgramError, match="no guide"):
        found("eight_schools").required_inputs("mu")
    assert structure(models.VAE(observed=6, values=3, latent=2, hidden=8), guide=False).guide_graph is None


# -- pgmpy -------------------------------------------------------------------------------------------------


class _DAG(nx.DiGraph):
    """As much of pgmpy's DAG as is needed here: a networkx DiGraph with latents."""

    def __init__(self, edges: Any = None, latents: Any = ()) -> None:
        super().__init__(edges)
        self.latents = set(latents)


def test_there_and_back_again(monkeypatch: pytest.MonkeyPatch) -> None:
    base = types.ModuleType("pgmpy.base")
    base.DAG = _DAG  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pgmpy", types.ModuleType("pgmpy"))
    monkeypatch.setitem(sys.modules, "pgmpy.base", base)
    s = found("eight_schools")
    dag = s.to_pgmpy()
    assert dag.latents == {"mu", "tau", "theta"} and "sigma" not in dag
    back = Structure.from_pgmpy(dag)
    assert set(back.graph.edges) == {("mu", "theta"), ("tau", "theta"), ("theta", "y")}
    assert back.kind("observed") == ["y"]
    assert back.d_separated("mu", "y", "theta") and not back.d_separated("mu", "tau", "y")


def test_pgmpy_itself() -> None:
    pytest.importorskip("pgmpy")
    dag = found("sprinkler").to_pgmpy()
    assert dag.is_dconnected("rain", "sprinkler") is True
    assert set(Structure.from_pgmpy(dag).graph.edges) == set(found("sprinkler").graph.edges)


def test_without_pgmpy_the_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pgmpy.base", None)
    with pytest.raises(TaskUnavailable, match="pip install pgmpy"):
        found("sprinkler").to_pgmpy()


def test_cycles_are_refused() -> None:
    with pytest.raises(ProgramError, match="acyclic"):
        Structure.from_pgmpy(nx.DiGraph([("a", "b"), ("b", "a")]))
