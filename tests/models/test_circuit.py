"""Circuit as a program: digits, missing entries, EM, saving and loading."""

import itertools

import networkx as nx
import pyro
import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.data import digits
from ppl_dgm.distributions.circuit import CircuitDistribution, tree_graph
from ppl_dgm.errors import DataError, ProgramError, TaskUnavailable
from ppl_dgm.evaluate import ChowLiuTree
from ppl_dgm.models.circuits.circuit import Circuit

D, K = 4, 3
STATES = torch.tensor(list(itertools.product(range(K), repeat=D)))


def data(n: int = 300) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(D, K, K, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return CircuitDistribution.from_tree([1, -1, 1, 2], logits).sample((n,))


def with_gaps(x: torch.Tensor) -> torch.Tensor:
    return x.masked_fill(torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) < 0.3, -1)


def learned(**kwargs) -> Circuit:
    program = Circuit(D, K, **kwargs).double()
    program.fit_closed_form(data()[:200], data()[200:])
    return program


def mixture() -> nx.DiGraph:
    """Two products over four variables: a mixture of categoricals, not deterministic."""
    graph = nx.DiGraph()
    graph.add_node("root", kind="sum")
    for k, weight in enumerate((0.4, 0.6)):
        graph.add_node(f"product {k}", kind="product")
        graph.add_edge("root", f"product {k}", weight=weight)
        for d in range(D):
            probs = torch.rand(K, generator=torch.Generator().manual_seed(10 * k + d)).clamp(min=0.1)
            graph.add_node((k, d), kind="input", variable=d, probs=(probs / probs.sum()).tolist())
            graph.add_edge(f"product {k}", (k, d))
    return graph


def test_digits():
    x = digits()
    program = Circuit(observed=64, values=17)
    notes = program.fit_closed_form(x.train, x.valid)
    score = program.log_density(x.test)
    assert score.kind == "exact" and score.value.shape == (447,)
    assert -score.value.mean().item() <= 96.7
    baseline = ChowLiuTree.fit(x.train, 17, valid=x.valid)
    assert notes["pseudo_count"] == baseline.pseudo_count
    torch.testing.assert_close(score.value.double(), baseline.log_prob(x.test), atol=1e-3, rtol=1e-5)
    graph = tree_graph(notes["parents"], program.weights.evaluator().tables[0])
    written_out = CircuitDistribution.from_graph(graph, 17)
    torch.testing.assert_close(written_out.log_prob(x.test[:8]), score.value[:8], atol=1e-3, rtol=1e-5)
    half = x.test[:8].clone()
    half[:, 32:] = -1
    seen = half >= 0
    expected = written_out.log_prob(half, seen)
    torch.testing.assert_close(program.log_density(half).value, expected, atol=1e-3, rtol=1e-5)
    assert torch.equal(written_out.map(half, seen), program.map(half))


def test_learned_circuit_sums_to_one():
    assert learned().log_density(STATES).value.exp().sum().item() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("missing", [-1.0, float("nan")])
def test_missing_entries_are_summed_out(missing):
    program = learned()
    x = torch.tensor([[0.0, missing, 2.0, missing]], dtype=torch.float64)
    states = torch.tensor([[0, a, 2, b] for a in range(K) for b in range(K)])
    exact = program.log_density(states).value.logsumexp(0)
    assert program.log_density(x).value.item() == pytest.approx(exact.item())
    assert program.log_prob(x).item() == pytest.approx(exact.item())
    weights = (program.log_density(states).value - exact).exp().reshape(K, K)
    posterior = program.posterior(x)["x"]
    assert posterior.batch_shape == (1, D)
    torch.testing.assert_close(posterior.probs[0, 1], weights.sum(1))
    torch.testing.assert_close(posterior.probs[0, 3], weights.sum(0))
    assert posterior.probs[0, 2].tolist() == [0, 0, 1]
    assert program.map(x).tolist() == [states[weights.flatten().argmax()].tolist()]
    torch.manual_seed(0)
    drawn = program.simulate(20_000, given={"x": x[0]})["x"]
    assert (drawn[:, 0] == 0).all() and (drawn[:, 2] == 2).all()
    frequency = torch.bincount(drawn[:, 1] * K + drawn[:, 3], minlength=K * K).reshape(K, K) / len(drawn)
    assert ((frequency - weights).abs() <= 4 * (weights * (1 - weights) / len(drawn)).sqrt()).all()


def test_model_and_log_density_agree():
    program, x = learned(), data(7)
    for rows in (x, with_gaps(x)):
        trace = pyro.poutine.trace(program.model).get_trace(rows)
        trace.compute_log_prob()
        assert trace.nodes["x"]["log_prob"].shape == (7,)
        torch.testing.assert_close(trace.nodes["x"]["log_prob"], program.log_density(rows).value)
    assert "data" in pyro.poutine.trace(program.model).get_trace(n=5).nodes
    assert program.model(n=5).shape == (5, D)
    assert program.simulate(6)["x"].shape == (6, D)


def test_gradients_reach_the_weights():
    for program in (Circuit(D, K), Circuit.from_graph(mixture())):
        before = program.log_prob(with_gaps(data())).mean()
        (-before).backward()
        gradients = [p.grad for p in program.weights.parameters()]
        assert all(g is not None and g.isfinite().all() and g.abs().sum() > 0 for g in gradients)
        with torch.no_grad():
            for p in program.weights.parameters():
                p -= 0.1 * p.grad
        assert program.log_prob(with_gaps(data())).mean() > before


@pytest.mark.parametrize("structure", ["chow-liu", "chain", "star", "independent", "graph"])
def test_em_climbs_with_missing_entries(structure):
    program = Circuit.from_graph(mixture()) if structure == "graph" else Circuit(D, K, structure, 0.0)
    program, x = program.double(), with_gaps(data())
    program.em_start(x)
    path = [program.em_step(x).item() for _ in range(15)]
    assert all(after >= before - 1e-9 for before, after in itertools.pairwise(path))
    assert path[-1] > path[0] or structure == "independent"  # whose start is the maximum already
    assert program.log_density(STATES).value.exp().sum().item() == pytest.approx(1.0, abs=1e-9)


def test_em_on_complete_data_is_the_closed_form():
    closed, em = learned(pseudo_count=2.0), Circuit(D, K, pseudo_count=2.0).double()
    em.em_start(data()[:200])
    em.em_step(data()[:200])
    torch.testing.assert_close(em.log_density(STATES).value, closed.log_density(STATES).value)


def test_em_of_a_mixture_is_textbook_em():
    """One step by hand: responsibilities, then weighted frequencies."""
    program, x = Circuit.from_graph(mixture()).double(), data()
    probs = program.weights.evaluator().leaves.exp()  # [leaves, K]
    names = [node for node in program.weights.structure.order if "," in str(node)]
    order = {name: i for i, name in enumerate(names)}
    theta = torch.stack([torch.stack([probs[order[str((k, d))]] for d in range(D)]) for k in range(2)])  # [2, D, K]
    pi = torch.tensor([0.4, 0.6], dtype=torch.float64)
    joint = pi.log() + theta[:, torch.arange(D), x].log().sum(-1).T  # [n, 2]
    resp = joint.softmax(-1)
    assert program.em_step(x).item() == pytest.approx(joint.logsumexp(-1).mean().item(), abs=1e-6)
    new = torch.einsum("nk,ndv->kdv", resp, torch.nn.functional.one_hot(x, K).double())
    new = new / new.sum(-1, keepdim=True)
    joint = resp.mean(0).log() + new[:, torch.arange(D), x].log().sum(-1).T
    torch.testing.assert_close(program.log_density(x).value, joint.logsumexp(-1), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [learned, lambda: Circuit.from_graph(mixture())], ids=["tree", "graph"])
def test_config_and_weights_rebuild_the_program(make, dtype):
    program = make().to(dtype)
    rebuilt = Circuit(**program.config).to(dtype)
    rebuilt.load_state_dict(program.state_dict())
    assert torch.equal(rebuilt.log_density(STATES).value, program.log_density(STATES).value)
    assert rebuilt.log_density(STATES).value.dtype == dtype


def test_independent_structure_is_the_product_of_the_marginals():
    program, x = learned(structure="independent"), data()[:200]
    marginals = torch.nn.functional.one_hot(x, K).double().sum(0) + 0.1
    marginals = marginals / marginals.sum(-1, keepdim=True)
    exact = marginals[torch.arange(D), STATES].log().sum(-1)
    torch.testing.assert_close(program.log_density(STATES).value, exact)
    assert program.map(torch.full((1, D), -1)).tolist() == [marginals.argmax(-1).tolist()]


def test_devices(device):
    program = learned().to(device)
    x = with_gaps(data(5)).to(device)
    assert program.log_density(x).value.device.type == device.type
    assert program.simulate(5, given={"x": x})["x"].device.type == device.type
    graph = Circuit.from_graph(mixture()).to(device)
    assert graph.log_density(x).value.device.type == device.type
    assert graph.model(n=3).device.type == device.type


def test_refusals():
    program = learned()
    with pytest.raises(DataError, match=r"x\[0, 1\] is 3"):
        program.log_density(torch.tensor([[0, 3, 0, 0]]))
    with pytest.raises(DataError, match=r"x\[0, 2\] is 0.5"):
        program.log_density(torch.tensor([[0, 1, 0.5, 0]]))
    with pytest.raises(DataError, match=r"shape \(2, 3\), but a tensor \[rows, 4\]"):
        program.log_density(torch.zeros(2, 3))
    with pytest.raises(TaskUnavailable, match="sum node 'root'"):
        Circuit.from_graph(mixture()).map(torch.full((1, D), -1))
    with pytest.raises(ProgramError, match="no closed-form"):
        Circuit.from_graph(mixture()).fit_closed_form(data())
    with pytest.raises(ProgramError, match="structure is 'fores', but one of chow-liu"):
        Circuit(D, K, structure="fores")
    with pytest.raises(ProgramError, match="observed is 0"):
        Circuit(0, K)
    with pytest.raises(ProgramError, match="3 rows for n = 2"):
        program.simulate(2, given={"x": torch.full((3, D), -1)})
    with pytest.raises(ProgramError, match="no site 'z'"):
        program.simulate(2, given={"z": torch.zeros(D)})


@pytest.mark.parametrize("make", [lambda: Circuit(D, K), lambda: Circuit.from_graph(mixture())], ids=["tree", "graph"])
def test_the_verbs_and_a_run_folder(make, tmp_path):
    x, program = data(), make()
    before = dgm.score(program, x).mean().value
    fit = dgm.learn(program, x[:200], valid=x[200:], seed=0)
    after = dgm.score(program, x)
    assert after.kind == "exact" and after.mean().value > before
    fit.save(tmp_path)
    loaded = dgm.Fit.load(tmp_path).program
    assert torch.equal(dgm.score(loaded, x).value, after.value)
    drawn = dgm.sample(loaded, 5, seed=3)["x"]
    assert drawn.shape == (5, D) and torch.equal(drawn, dgm.sample(program, 5, seed=3)["x"])
    given = torch.tensor([1, -1, -1, 2])
    assert (dgm.sample(program, 5, given={"x": given}, seed=0)["x"][:, [0, 3]] == given[[0, 3]]).all()
