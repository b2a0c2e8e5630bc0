"""d-separation and its kin against brute force: the joint tables of random discrete networks."""

from itertools import combinations, product
from typing import Any

import networkx as nx
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_dgm import Structure, structure
from ppl_dgm.errors import ProgramError

NETWORKS = 200
PROGRAMS = 60  # so many of them are written as programs and found by running; the others are handed over as graphs
NAMES = "abcde"


def random_network(seed: int) -> tuple[nx.DiGraph, dict[str, np.ndarray]]:
    """A random DAG over 4 or 5 binary variables, and tables p(child = 1 | parents) of shape [2] * parents."""
    random = np.random.default_rng(seed)
    names = list(NAMES[: random.integers(4, 6)])
    order = random.permutation(names)
    graph = nx.DiGraph()
    graph.add_nodes_from(str(name) for name in order)
    density = random.uniform(0.25, 0.7)
    graph.add_edges_from((str(u), str(v)) for u, v in combinations(order, 2) if random.uniform() < density)
    tables = {v: random.uniform(0.1, 0.9, (2,) * graph.in_degree(v)) for v in graph}
    return graph, tables


def as_program(graph: nx.DiGraph, tables: dict[str, np.ndarray]) -> Any:
    """The network as a Pyro program."""

    def program() -> None:
        values: dict[str, torch.Tensor] = {}
        for node in nx.topological_sort(graph):
            table = torch.as_tensor(tables[node])
            p = table[tuple(values[parent].long() for parent in graph.predecessors(node))]
            values[node] = pyro.sample(node, dist.Bernoulli(p))

    return program


def joint(graph: nx.DiGraph, tables: dict[str, np.ndarray]) -> tuple[list[str], np.ndarray]:
    """Names and the table p(names), by the definition of the network."""
    names = sorted(graph)
    table = np.ones((2,) * len(names))
    for values in product((0, 1), repeat=len(names)):
        at = dict(zip(names, values))
        for node in names:
            p = tables[node][tuple(at[parent] for parent in graph.predecessors(node))]
            table[values] *= p if at[node] else 1 - p
    return names, table


def independent(names: list[str], table: np.ndarray, a: set[str], b: set[str], given: set[str]) -> bool:
    """p(a, b, c) p(c) = p(a, c) p(b, c) for every value: conditional independence, by summing the table."""

    def marginal(keep: set[str]) -> np.ndarray:
        return table.sum(tuple(i for i, name in enumerate(names) if name not in keep), keepdims=True)

    left = marginal(a | b | given) * marginal(given)
    return float(np.abs(left - marginal(a | given) * marginal(b | given)).max()) < 1e-9


def questions(names: list[str]) -> list[tuple[str, str, set[str]]]:
    return [
        (a, b, set(given))
        for a, b in combinations(names, 2)
        for size in range(len(names) - 1)
        for given in combinations([n for n in names if n not in (a, b)], size)
    ]


@pytest.fixture(scope="module")
def networks() -> list[tuple[nx.DiGraph, Structure, list[str], np.ndarray, dict[str, np.ndarray]]]:
    found = []
    for seed in range(NETWORKS):
        graph, tables = random_network(seed)
        run = seed < PROGRAMS
        s = structure(as_program(graph, tables)) if run else Structure.from_pgmpy(graph)
        found.append((graph, s, *joint(graph, tables), tables))
    return found


def test_structure_finds_the_random_networks(networks: list) -> None:
    for graph, s, *_ in networks[:PROGRAMS]:
        assert set(s.graph.edges) == set(graph.edges)


def test_d_separation_is_conditional_independence(networks: list) -> None:
    asked = separated = 0
    for _, s, names, table, _ in networks:
        for a, b, given in questions(names):
            answer = bool(s.d_separated(a, b, given))
            assert answer == independent(names, table, {a}, {b}, given), (list(s.graph.edges), a, b, given)
            asked, separated = asked + 1, separated + answer
    assert asked > 10_000 and 0.1 < separated / asked < 0.9


def test_d_separation_of_sets_is_conditional_independence(networks: list) -> None:
    for _, s, names, table, _ in networks:
        a, b, given = {names[0], names[1]}, {names[2]}, {names[3]}
        assert bool(s.d_separated(a, b, given)) == independent(names, table, a, b, given)


def test_the_markov_blanket_is_the_smallest_shield(networks: list) -> None:
    for _, s, names, table, _ in networks:
        for node in names:
            blanket = s.markov_blanket(node)
            others = set(names) - {node} - blanket
            assert not others or independent(names, table, {node}, others, blanket)
            for member in blanket:  # and not without this one
                rest = blanket - {member}
                assert not independent(names, table, {node}, others | {member}, rest)


def test_the_moral_graph_separates_only_what_is_independent(networks: list) -> None:
    for _, s, names, table, _ in networks:
        moral = s.moral()
        for a, b in combinations(names, 2):
            others = set(names) - {a, b}
            assert moral.has_edge(a, b) != independent(names, table, {a}, {b}, others)


def test_the_factorisation_is_the_joint(networks: list) -> None:
    for _, s, names, table, _ in networks[:PROGRAMS]:
        product_of_terms = np.ones_like(table)
        for values in product((0, 1), repeat=len(names)):
            at = dict(zip(names, values))
            for term in s.factorisation().factors:
                product_of_terms[values] *= conditional(names, table, term.child, at, set(term.parents))
        assert np.allclose(product_of_terms, table)


def conditional(names: list[str], table: np.ndarray, child: str, at: dict[str, int], parents: set[str]) -> float:
    """p(child | parents) at a point, from the joint table alone."""

    def mass(keep: set[str]) -> float:
        where = tuple(at[name] if name in keep else slice(None) for name in names)
        return float(np.sum(table[where]))

    return mass({child} | parents) / mass(parents)


def test_minimal_separators_separate_and_are_minimal(networks: list) -> None:
    none = 0
    for graph, s, names, table, _ in networks:
        for a, b in combinations(names, 2):
            found = s.minimal_separator(a, b)
            if found is None:
                none += 1
                assert graph.has_edge(a, b) or graph.has_edge(b, a)
                continue
            assert independent(names, table, {a}, {b}, found)
            for member in found:
                assert not s.d_separated(a, b, found - {member})
    assert none > 0


def test_interventions_are_the_truncated_product(networks: list) -> None:
    for graph, s, names, _, tables in networks[:50]:
        node = names[0]
        cut = graph.copy()
        cut.remove_edges_from(list(graph.in_edges(node)))
        _, table = joint(cut, {**tables, node: np.array(0.5)})  # any full distribution of what is set
        after = s.do(node)
        assert after.parents(node) == set() and s.parents(node) == set(graph.predecessors(node))
        for other in names[1:]:
            assert bool(after.d_separated(node, other)) == independent(names, table, {node}, {other}, set())


def test_active_trails_are_active_and_reasons_name_what_opens_them(networks: list) -> None:
    for graph, s, names, _, _ in networks[:50]:
        for a, b, given in questions(names):
            answer = s.d_separated(a, b, given)
            if answer:
                assert answer.trail == () and all(word in answer.reason for word in ("independent", a, b))
                continue
            trail = answer.trail
            assert (trail[0], trail[-1]) == (a, b) and len(set(trail)) == len(trail)
            for before, node, after in zip(trail, trail[1:], trail[2:]):
                collider = graph.has_edge(before, node) and graph.has_edge(after, node)
                opened = bool(({node} | nx.descendants(graph, node)) & given)
                assert opened if collider else node not in given
                assert f"{node} is a {'collider' if collider else ''}"[:-1] in answer.reason


# -- words and special nodes -------------------------------------------------------------------------------


def sprinkler() -> None:
    rain = pyro.sample("rain", dist.Bernoulli(0.2))
    on = pyro.sample("sprinkler", dist.Bernoulli(0.5))
    wet = pyro.sample("wet", dist.Bernoulli(0.1 + 0.4 * rain + 0.4 * on))
    pyro.sample("slippery", dist.Bernoulli(0.1 + 0.8 * wet))


def test_explaining_away_in_words() -> None:
    s = structure(sprinkler)
    assert s.d_separated("rain", "sprinkler").reason == (
        "rain and sprinkler are independent: the only trail, rain -> wet <- sprinkler, is blocked: "
        "wet is a collider, and neither it nor a descendant is given."
    )
    assert s.d_separated("rain", "sprinkler", "wet").reason == (
        "rain and sprinkler are dependent given wet: the trail rain -> wet <- sprinkler is active: "
        "wet is a collider and given, so open."
    )
    assert "opened by its descendant slippery, which is given" in s.d_separated("rain", "sprinkler", "slippery").reason
    assert "wet is a chain and given" in s.d_separated("rain", "slippery", "wet").reason
    assert s.d_separated("rain", "slippery", "wet").blockers == ("wet",)


def test_what_is_given_fixes_deterministic_sites() -> None:
    def program() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        d = pyro.deterministic("d", 2 * a)
        pyro.sample("b", dist.Normal(d, 1.0))
        pyro.sample("c", dist.Normal(d, 1.0))

    s = structure(program)
    assert not s.d_separated("b", "c")
    assert s.d_separated("b", "c", "d")
    answer = s.d_separated("b", "c", "a")  # plain d-separation would call them dependent, through d
    assert answer and "d is a fork and a function of what is given" in answer.reason
    assert s.d_separated("d", "b", "a")
    assert s.minimal_separator("b", "c") in ({"a"}, {"d"})


def test_constants_are_given_and_factors_couple() -> None:
    def program(w: torch.Tensor) -> None:
        pyro.sample("a", dist.Normal(w, 1.0))
        b = pyro.sample("b", dist.Normal(w, 1.0))
        c = pyro.sample("c", dist.Normal(0.0, 1.0))
        pyro.factor("spring", -((b - c) ** 2))

    s = structure(program, torch.tensor(1.0))
    assert s.graph.nodes["w"]["kind"] == "input"
    assert "w is a fork and a constant (input)" in s.d_separated("a", "b").reason
    assert not s.d_separated("b", "c") and "a factor, which couples" in s.d_separated("b", "c").reason
    assert s.minimal_separator("b", "c") is None
    assert set(s.moral().edges) == {("b", "c")}
    assert s.markov_blanket("c") == {"b"}


def test_factors_against_brute_force() -> None:
    def field() -> None:
        a, b, c = (pyro.sample(name, dist.Bernoulli(0.5)) for name in "abc")
        pyro.factor("agree", 2.0 * a * b)
        pyro.factor("pull", -1.0 * b * c)

    s = structure(field)
    bits = np.array(list(product((0, 1), repeat=3)))
    table = np.exp(2.0 * bits[:, 0] * bits[:, 1] - bits[:, 1] * bits[:, 2]).reshape(2, 2, 2)
    table /= table.sum()
    for a, b, given in questions(["a", "b", "c"]):
        assert bool(s.d_separated(a, b, given)) == independent(["a", "b", "c"], table, {a}, {b}, given)


@pytest.mark.parametrize(
    ("a", "b", "given", "message"),
    [
        ("rain", "snow", (), "no node 'snow'"),
        ("rain", "rain", (), "two sides"),
        ("rain", "wet", ["rain"], "two sides"),
        ([], "wet", (), "empty"),
    ],
)
def test_wrong_questions_are_refused(a: Any, b: Any, given: Any, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        structure(sprinkler).d_separated(a, b, given)
