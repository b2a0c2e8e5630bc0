"""Recorded graphs against the functions that they come from: same numbers, draws and writes, or a refusal."""

import itertools
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.func import grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_dgm.graphs import NotRecordable, compiling, record, recorded, tolerant_pyro, value_and_gradient


@pytest.fixture(autouse=True)
def no_validation():
    with pyro.validation_enabled(False):
        yield


def leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [leaf for item in tree for leaf in leaves(item)] if isinstance(tree, list | tuple) else [tree]


def same(a: Any, b: Any, **tolerance: Any) -> None:
    """Equal structures of tensors: bit for bit, or within a tolerance."""
    assert len(leaves(a)) == len(leaves(b))
    for x, y in zip(leaves(a), leaves(b), strict=True):
        if not isinstance(x, Tensor):
            assert x == y
        elif tolerance:
            torch.testing.assert_close(x, y, **tolerance)
        else:
            assert x.dtype == y.dtype and torch.equal(x, y)


def replays(fn: Callable[..., Any], *inputs: Tensor, live: Any = (), calls: int = 2, **tolerance: Any) -> Any:
    """Records at `inputs`, then compares with the function on other inputs, from the same seeds."""
    graph = record(fn, *inputs, live=live)
    for seed in range(calls):
        others = [x + seed if x.dtype != torch.bool else x for x in inputs]
        torch.manual_seed(seed)
        expected = fn(*others)
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        found = graph(*others)
        same(found, expected, **tolerance)
        assert torch.equal(torch.get_rng_state(), state)  # as many random numbers were used up
    return graph


class Pair(NamedTuple):
    first: Any
    second: Any


# --- values, gradients, structures


def test_value_and_gradients_of_live_parameters_are_those_of_the_function():
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 1))
    parameters = list(net.parameters())

    def fn(x: Tensor) -> Any:
        loss = net(x).pow(2).mean()
        return loss, torch.autograd.grad(loss, parameters)

    graph = replays(fn, torch.randn(7, 3), live=parameters)
    with torch.no_grad():
        for p in parameters:
            p.add_(0.1)  # as an optimiser does
    x = torch.randn(7, 3)
    same(graph(x), fn(x), rtol=1e-6, atol=1e-7)


def test_grad_attribute_after_backward_is_an_output_and_is_left_as_it_was():
    w = torch.randn(4, requires_grad=True)
    old = w.grad = torch.ones(4)

    def fn(x: Tensor) -> Any:
        loss = (w * x).sin().sum()
        loss.backward()
        return loss, w.grad

    graph = record(fn, torch.randn(4), live=[w])
    assert w.grad is old and torch.equal(old, torch.ones(4))
    x = torch.randn(4)
    same(graph(x)[1], x * (w * x).cos().detach())
    # autograd copies the gradient when it accumulates; nobody needs that copy
    assert "clone" not in graph.describe() and "copy_" not in graph.describe()


def test_structures_numbers_and_none_come_back():
    def fn(x: Tensor) -> Any:
        return {"a": [x + 1, None], 3: Pair(x * 2, (2.5, "s")), "e": (), "n": float("inf")}

    x = torch.randn(3)
    found = record(fn, torch.zeros(3))(x)
    assert isinstance(found[3], Pair) and list(found) == ["a", 3, "e", "n"]
    assert found["a"][1] is None and found[3].second == (2.5, "s")
    assert found["e"] == () and found["n"] == float("inf")
    same([found["a"][0], found[3].first], [x + 1, x * 2])


def test_leaves_that_require_a_gradient_are_live_without_being_named():
    w = nn.Parameter(torch.ones(3))
    graph = record(lambda x: (x * w).sum(), torch.ones(3))
    with torch.no_grad():
        w.mul_(2)
    assert graph(torch.ones(3)) == 6


def test_results_have_no_gradient_history():
    w = nn.Parameter(torch.ones(3))
    x = torch.ones(3, requires_grad=True)
    for result in (recorded(lambda x: x * w), record(lambda x: x * w, x)):
        assert not result(x).requires_grad and not result(x).is_inference()


def test_an_input_that_is_also_held_by_closure_stays_a_constant_there():
    data = torch.randn(3)
    graph = record(lambda x: x + data, data)
    same(graph(torch.zeros(3)), data)


def test_agrees_with_make_fx():
    def fn(x: Tensor) -> Any:
        x = x.detach().requires_grad_()
        value = torch.distributions.Normal(x, x.exp()).log_prob(x.sin()).logsumexp(0)
        return value, torch.autograd.grad(value, x)[0]

    x, y = torch.randn(6), torch.randn(6)
    same(record(fn, x)(y), make_fx(fn)(x)(y), rtol=1e-6, atol=1e-6)


# --- vmap


def log_joint(z: Tensor) -> Tensor:
    prior = dist.Normal(torch.zeros(4), 1.0).to_event(1).log_prob(z)
    return prior + dist.Bernoulli(logits=z.cumsum(0)).log_prob(torch.tensor([1.0, 0.0, 1.0, 1.0])).sum()


def test_vmap_of_grad_and_value():
    batched = lambda z: vmap(grad_and_value(log_joint))(z)  # noqa: E731
    graph = replays(batched, torch.randn(5, 4), rtol=1e-6, atol=1e-6)
    assert graph.nodes < 45  # the recorder saw more than twice as many


def test_value_and_gradient_of_many_points():
    z = torch.randn(5, 4)
    graph = record(value_and_gradient(log_joint), torch.zeros(5, 4))
    gradients, values = vmap(grad_and_value(log_joint))(z)
    same(graph(z), (values, gradients), rtol=1e-5, atol=1e-5)
    assert graph.nodes < 25  # vmap's own rule for Bernoulli with logits takes twenty more
    for x in (torch.tensor([[-200.0, 300.0, 20.5, 0.0]]), torch.tensor([[60.0, -90.0, 1e4, -1e4]])):
        gradients, values = vmap(grad_and_value(log_joint))(x)
        same(record(value_and_gradient(log_joint), x)(x), (values, gradients), rtol=1e-5, atol=1e-5)


def test_vmap_of_a_multivariate_normal():
    scale = torch.linalg.cholesky(torch.eye(3) + 0.3)

    def fn(z: Tensor) -> Tensor:
        covariance = scale @ scale.T + z.exp().diag()
        return dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(z)

    replays(lambda z: vmap(fn)(z), torch.randn(4, 3), rtol=1e-5, atol=1e-5)


# --- random draws

DRAWS: dict[str, Callable[[Tensor], Any]] = {
    "randn": lambda x: x + torch.randn(5),
    "randn_large": lambda x: x.sum() + torch.randn(33, dtype=torch.float64),
    "normal_": lambda x: torch.empty(5).normal_() * x,
    "normal_of_mean_and_scale": lambda x: torch.empty(50).normal_(1.0, 3.0) + x.sum(),
    "uniform_": lambda x: torch.empty(20).uniform_() + x.sum(),
    "bernoulli": lambda x: torch.bernoulli(torch.sigmoid(x)),
    "rand_like": lambda x: torch.rand_like(x) * x,
    "multinomial": lambda x: torch.multinomial(x.abs() + 0.1, 3, replacement=True),
    "randint": lambda x: torch.randint(0, 9, (6,)) + x.sum(),
    "randperm": lambda x: x[torch.randperm(5)],
    "dropout": lambda x: torch.dropout(x.expand(4, 5), 0.5, True),
    "gamma": lambda x: torch._standard_gamma(x.abs() + 1),
    "poisson": lambda x: torch.poisson(x.abs()),
    "unused": lambda x: (torch.randn(7), x + torch.rand(5))[1],
    "exponential_": lambda x: torch.empty(5).exponential_() + x,
    "categorical": lambda x: dist.Categorical(logits=x).sample((9,)),
    "same_twice": lambda x: x + torch.rand(5) - torch.rand(5),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_stay_random_and_obey_the_seed(name: str):
    graph = replays(DRAWS[name], torch.randn(5), calls=3)
    if name not in ("poisson", "bernoulli"):
        assert not torch.equal(graph(torch.ones(5)), graph(torch.ones(5))) or name == "randperm"


@pytest.mark.parametrize(
    "family",
    [
        lambda x: dist.Dirichlet(x.exp()),
        lambda x: dist.Beta(x.exp(), 2.0),
        lambda x: dist.Gamma(x.exp(), x.exp()),
        lambda x: dist.StudentT(x.exp() + 1, x, 1.0),
        lambda x: dist.LowRankMultivariateNormal(x, x.unsqueeze(-1), x.exp()),
        lambda x: dist.MultivariateNormal(x, torch.diag_embed(x.exp())),
        lambda x: dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=x),
    ],
    ids=["dirichlet", "beta", "gamma", "student", "low_rank", "mvn", "relaxed"],
)
def test_reparametrised_draws_and_their_gradients(family: Callable[[Tensor], Any]):
    def fn(x: Tensor) -> Any:
        x = x.detach().requires_grad_()
        draw = family(x).rsample((3,))
        return draw.detach(), torch.autograd.grad((draw**2).sum(), x)[0]

    replays(fn, torch.randn(4), rtol=1e-5, atol=1e-6)


# --- memory: writes, aliases, constants


def test_in_place_writes_are_replayed_in_order():
    def fn(x: Tensor) -> Any:
        table = torch.zeros(3, 2)
        before = table + x  # read between two writes of what is else a constant
        table[0] = 1.0
        middle = table.clone()
        table[1] += x[1]
        row = table[1]
        row.mul_(2)
        return before, middle, table, row

    replays(fn, torch.randn(3, 2))


def test_a_constant_that_is_written_before_it_is_read_is_folded():
    def fn(x: Tensor) -> Tensor:
        index = torch.zeros(4)
        for i in range(4):
            index[i] = i
        return x + index.exp()

    assert replays(fn, torch.randn(4)).nodes == 1


def test_a_constant_read_between_its_writes_is_not_folded_to_its_last_value():
    def fn(x: Tensor) -> Tensor:
        weights = torch.ones(3)
        first = x * weights
        weights.mul_(5)
        return first + x * weights

    replays(fn, torch.randn(3))


def test_batch_norm_statistics_move_as_in_training():
    make = lambda: nn.BatchNorm1d(3)  # noqa: E731
    ours, theirs = make(), make()
    live = [*ours.parameters(), *ours.buffers()]
    graph = None
    for _ in range(4):
        x = torch.randn(8, 3) * 3 + 1
        expected = theirs(x).detach()
        if graph is None:
            graph = recorded(ours, live=live)
        same(graph(x), expected)
    assert graph is not None and graph.path == "recorded"
    same(list(ours.buffers()), list(theirs.buffers()))
    assert ours.num_batches_tracked == 4


def test_writes_to_an_input_reach_the_caller():
    x = torch.ones(3)
    fn = recorded(lambda x: x.add_(1).sum())
    assert fn(x) == 6 and fn(x) == 9
    same(x, torch.full((3,), 3.0))


def test_a_tensor_outside_that_the_function_writes_is_live():
    total = torch.zeros(2)

    def fn(x: Tensor) -> Tensor:
        total.add_(x)
        return total * 1

    step = recorded(fn)
    assert [step(torch.ones(2))[0].item() for _ in range(3)] == [1, 2, 3]
    same(total, torch.full((2,), 3.0))


def test_returned_constants_and_parameters_are_safe_to_hold():
    w = nn.Parameter(torch.ones(2))
    graph = record(lambda x: (torch.arange(3.0), w, w.view(2, 1), x, x + 0), torch.zeros(2), live=[w])
    constant, *_ = graph(torch.zeros(2))
    constant.fill_(9)
    x = torch.zeros(2)
    constant, parameter, view, same_x, fresh = graph(x)
    same(constant, torch.arange(3.0))
    assert parameter.data_ptr() == w.data_ptr() == view.data_ptr() and not parameter.requires_grad
    fresh.add_(1)  # the function made a new tensor here, so writing to it may not touch the input
    same([x, same_x], [torch.zeros(2), torch.zeros(2)])


def test_equal_results_do_not_share_memory():
    first, second = record(lambda x: (x.exp(), x.exp()), torch.zeros(2))(torch.zeros(2))
    first.fill_(0)
    same(second, torch.ones(2))


def test_copies_of_what_is_written_later_are_kept():
    def fn(x: Tensor) -> Any:
        y = x * 2
        z = y.clone()
        y.add_(1)
        return y, z

    replays(fn, torch.randn(3))


def test_results_survive_the_next_replay():
    graph = record(lambda x: [x.cumsum(0), torch.zeros(3).copy_(x)], torch.zeros(3))
    first = graph(torch.ones(3))
    graph(torch.zeros(3))
    same(first, [torch.tensor([1.0, 2.0, 3.0]), torch.ones(3)])


def test_memory_reached_through_data_is_followed():
    def fn(x: Tensor) -> Tensor:
        y = torch.zeros(3)
        y.data = x * 3
        return y + 1

    replays(fn, torch.randn(3))


# --- what is folded and dropped


def test_what_does_not_depend_on_the_input_is_folded():
    data = torch.randn(50, 3)
    graph = replays(lambda x: x @ (data.T @ data).inverse(), torch.randn(2, 3))
    assert graph.nodes == 1


def test_views_of_live_tensors_are_made_once():
    w = torch.randn(3, 2, requires_grad=True)
    graph = record(lambda x: x @ w.t(), torch.randn(4, 2))
    assert graph.nodes == 1
    with torch.no_grad():
        w.zero_()
    same(graph(torch.ones(4, 2)), torch.zeros(4, 3))


@pytest.mark.parametrize(
    ("fn", "nodes"),
    [
        (lambda x: (x * 1 + 0).clone().detach().exp(), 1),
        (lambda x: (x * torch.ones(3, 3)).exp() / 1.0, 1),
        (lambda x: x.exp() + x.exp(), 2),
        (lambda x: (x.sin(), x.exp())[1], 1),
        (lambda x: x.t().t().exp(), 1),
        (lambda x: x * torch.ones(2, 3, 3), 1),  # changes the shape: stays
        (lambda x: x * 1.5, 1),
        (lambda x: x.double() * 1, 1),
        (lambda x: x[:0] * 1, 3),  # nothing to compare with: left alone
    ],
)
def test_calls_that_do_nothing_are_dropped(fn: Callable[[Tensor], Any], nodes: int):
    assert replays(fn, torch.randn(3, 3)).nodes <= nodes


def test_categorical_densities_take_their_cheap_form():
    def fn(x: Tensor, k: Tensor) -> Any:
        x = x.detach().requires_grad_()
        value = dist.Categorical(logits=x).log_prob(k).sum()
        return value, torch.autograd.grad(value, x)[0]

    k = torch.tensor([0, 1])
    graph = replays(fn, torch.randn(2, 3) * 5, k, rtol=1e-6, atol=1e-6)
    assert "logsumexp" not in graph.describe() and "_log_softmax_backward_data" in graph.describe()
    x = torch.tensor([[0.0, -float("inf"), 80.0], [1.0, 2.0, -200.0]])
    same(graph(x, k), fn(x, k), rtol=1e-6, atol=1e-6, equal_nan=True)


# --- refusals

DATA_DEPENDENT: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x * x[0].item(),
    "bool": lambda x: x if x.sum() > 0 else -x,
    "float": lambda x: torch.full((2,), float(x[0])),
    "equal": lambda x: x if torch.equal(x, x + 1) else x + 2,
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "masked_select": lambda x: x.masked_select(x > 0).sum(),
    "tolist": lambda x: torch.tensor(x.tolist()),
    "numpy": lambda x: torch.from_numpy(x.detach().numpy() + 1),
    "deepcopy": lambda x: __import__("copy").deepcopy(x.detach()),
    "draw": lambda x: x if torch.rand(()) > 0.5 else x + 1,
    "unique": lambda x: x.unique(),
}


@pytest.mark.parametrize("name", DATA_DEPENDENT)
def test_what_reads_values_is_refused_with_its_line(name: str):
    with pytest.raises(NotRecordable, match=r"test_graphs\.py:\d+"):
        record(DATA_DEPENDENT[name], torch.tensor([1.0, 2.0]))


def test_values_that_never_change_may_be_read():
    flag = torch.tensor([1.0, 2.0])
    fn = lambda x: x * flag.sum().item() + flag[flag > 1] if flag[0] > 0 else x  # noqa: E731
    assert replays(fn, torch.randn(1)).nodes == 2


def test_a_counter_that_the_function_moves_may_not_steer_it():
    counter = torch.zeros(())

    def fn(x: Tensor) -> Tensor:
        y = x if counter < 3 else -x
        counter.add_(1)
        return y * 2

    with pytest.raises(NotRecordable, match=r"test_graphs\.py"):
        record(fn, torch.ones(1))


def test_integer_indices_are_not_data_dependent():
    replays(lambda x: x[torch.tensor([0, 2])] + x.gather(0, x.argsort()[:2]), torch.randn(4))


SQUEEZED = {
    "solve": lambda a: (torch.ones(3) @ torch.linalg.solve(a, torch.arange(3.0))).sum(),
    "inverse": lambda a: (torch.ones(3) @ torch.inverse(a) @ torch.arange(3.0)).sum(),
    "squeezed": lambda a: ((b := a[:, :1] * 2).square(), b.squeeze_(1).unsqueeze_(0) @ a)[1].sum() + b.sum(),
    "transposed": lambda a: (b := a.exp()).sum(0).dot((b * 2).t_()[0]),
}


@pytest.mark.parametrize("mapped", [False, True], ids=["alone", "vmap"])
@pytest.mark.parametrize("name", SQUEEZED)
def test_shapes_that_are_changed_in_place_are_views(name: str, mapped: bool) -> None:
    """As the products of matrices and vectors in linear algebra do to what they have made, and in their gradients."""
    many = torch.func.vmap(SQUEEZED[name]) if mapped else SQUEEZED[name]

    def fn(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = many(x).sum()
            return value.detach(), torch.autograd.grad(value, x)[0]

    shape = (2, 3, 3) if mapped else (3, 3)
    first, second = (torch.rand(shape) + 3 * torch.eye(3) for _ in range(2))
    graph = record(fn, first)
    for x in (first, second):
        for found, expected in zip(graph(x), fn(x), strict=True):
            torch.testing.assert_close(found, expected)


def test_an_input_that_is_squeezed_in_place_is_refused() -> None:
    with pytest.raises(NotRecordable, match="another shape"):
        record(lambda x: x.squeeze_(0) * 2, torch.ones(1, 3))


def test_errors_of_the_function_are_its_own_and_leave_nothing_behind():
    before = {name: getattr(torch.Tensor, name) for name in ("tolist", "numpy", "item", "__bool__")}

    def fn(x: Tensor) -> Tensor:
        with tolerant_pyro():
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        record(fn, torch.ones(1))
    assert before == {name: getattr(torch.Tensor, name) for name in before}
    assert "item" not in vars(torch.Tensor)
    assert pyro.infer.trace_elbo.torch_item.__module__ == "pyro.infer.util"


def test_a_failed_factorisation_still_raises():
    graph = record(lambda x: torch.linalg.cholesky(x), torch.eye(2))
    with pytest.raises(torch.linalg.LinAlgError):
        graph(-torch.eye(2))


def test_replay_checks_what_it_is_given():
    graph = record(lambda x: x * 2, torch.ones(3, 2))
    with pytest.raises(ValueError, match="takes 1 tensors, but got 2"):
        graph(torch.ones(3, 2), torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"input 0 .* shape \(2, 3\)"):
        graph(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"float64"):
        graph(torch.ones(3, 2, dtype=torch.float64))


def test_inputs_of_another_layout_are_copied():
    x = torch.randn(3, 4)
    graph = record(lambda x: x.view(-1).cumsum(0), x)
    same(graph(x.t().contiguous().t()), x.view(-1).cumsum(0))


def test_unknown_backends_are_refused_by_name():
    with pytest.raises(ValueError, match="'eager' or 'inductor'"):
        record(torch.exp, torch.ones(1), backend="cuda_graph")
    with pytest.raises(ValueError, match="'eager' or 'inductor'"):
        recorded(torch.exp, backend="xla")


# --- the cache


def test_recorder_records_once_per_shape_and_keeps_the_latest():
    calls = []
    fn = recorded(lambda x: (calls.append(1), x.sum())[1])
    for n in [1, 2, 1, 2, 1]:
        assert fn(torch.ones(n)) == n
    assert len(calls) == 2 and fn.path == "recorded" and fn.reason == "" and fn.seconds > 0
    for n in range(1, 11):
        fn(torch.ones(n))
    assert len(fn.graphs) == 8


def test_recorder_does_not_run_or_draw_twice():
    for fn in (lambda x: x + torch.randn(3), lambda x: x + torch.randn(3) * (x.sum() > 0).item()):
        torch.manual_seed(0)
        expected = [fn(torch.ones(3)) for _ in range(3)]
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = recorded(fn)
            same([wrapped(torch.ones(3)) for _ in range(3)], expected)


def test_recorder_falls_back_with_one_warning_that_has_the_line():
    w = torch.ones(2, requires_grad=True)
    w.grad = torch.ones(2)

    def fn(x: Tensor) -> Any:
        loss = (w * x).sum() * (1 if x[0] > 0 else -1)
        loss.backward()
        return loss, w.grad

    wrapped = recorded(fn, live=[w])
    with pytest.warns(RuntimeWarning, match=r"bool\(\).*test_graphs\.py") as caught:
        results = [wrapped(sign * torch.ones(2)) for sign in (1.0, -1.0, 1.0)]
    assert len(caught) == 1 and wrapped.path == "python" and "bool()" in wrapped.reason
    assert [float(loss) for loss, _ in results] == [2, 2, 2]
    same([grad for _, grad in results], [torch.ones(2), torch.ones(2), torch.ones(2)])
    same(w.grad, torch.ones(2))


def test_recorder_notices_moved_parameters():
    net = nn.Linear(2, 1)
    fn = recorded(net, live=net.parameters())
    fn(torch.ones(1, 2))
    net.weight.data = torch.zeros(1, 2)
    same(fn(torch.ones(1, 2)), net(torch.ones(1, 2)).detach())
    same(fn(torch.ones(1, 2)), net(torch.ones(1, 2)).detach())


# --- Pyro's objectives


class Autoencoder(PyroModule):
    """A small VAE: normal latents, categorical data, everything in one plate."""

    def __init__(self, discrete: bool = False) -> None:
        super().__init__()
        self.encoder, self.decoder, self.discrete = nn.Linear(6, 6), nn.Linear(3, 6 * 4), discrete

    def model(self, x: Tensor) -> None:
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            if self.discrete:
                z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(len(x), 3)).to_event(1))
            else:
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(1))
            logits = self.decoder(z)
            logits = logits.view(*logits.shape[:-1], 6, 4)
            pyro.sample("x", dist.Categorical(logits=logits).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x / 4).chunk(2, -1)
            if self.discrete:
                pyro.sample("z", dist.Bernoulli(logits=loc).to_event(1))
            else:
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class Mixture(PyroModule):
    """A mixture of normals whose component is summed out, in the model or in the guide."""

    def __init__(self) -> None:
        super().__init__()
        self.logits, self.loc = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.tensor([-1.0, 0.0, 2.0]))
        self.posterior = nn.Parameter(torch.zeros(3))

    def model(self, x: Tensor) -> None:
        pyro.module("mixture", self)
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(self.loc[k], 1.0), obs=x)

    def nothing(self, x: Tensor) -> None:
        pass

    def enumerated(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=self.posterior), infer={"enumerate": "parallel"})


def elbo_cases() -> list[Any]:
    vae, discrete, mixture = Autoencoder(), Autoencoder(discrete=True), Mixture()
    x, y = torch.randint(0, 4, (5, 6)).float(), torch.randn(7)
    cases = {
        "trace": (Trace_ELBO(), vae, vae.model, vae.guide, x),
        "trace_particles": (Trace_ELBO(num_particles=3), vae, vae.model, vae.guide, x),
        "trace_score_function": (Trace_ELBO(), discrete, discrete.model, discrete.guide, x),
        "mean_field": (TraceMeanField_ELBO(), vae, vae.model, vae.guide, x),
        "renyi": (RenyiELBO(0.5, num_particles=3), vae, vae.model, vae.guide, x),
        "renyi_vectorised": (
            RenyiELBO(0.0, num_particles=3, vectorize_particles=True, max_plate_nesting=1),
            vae, vae.model, vae.guide, x,
        ),
        "graph": (TraceGraph_ELBO(), vae, vae.model, vae.guide, x),
        "graph_score_function": (TraceGraph_ELBO(), discrete, discrete.model, discrete.guide, x),
        "enum_model": (TraceEnum_ELBO(max_plate_nesting=1), mixture, mixture.model, mixture.nothing, y),
        "enum_guide": (
            TraceEnum_ELBO(max_plate_nesting=1),
            mixture, config_enumerate(mixture.model), mixture.enumerated, y,
        ),
    }  # fmt: skip
    return [pytest.param(*case, id=name) for name, case in cases.items()]


@pytest.mark.uses_param_store
@pytest.mark.parametrize("method", ["differentiable_loss", "loss_and_grads"])
@pytest.mark.parametrize(("elbo", "module", "model", "guide", "x"), elbo_cases())
def test_losses_and_gradients_of_pyro_replay(elbo: Any, module: Any, model: Any, guide: Any, x: Tensor, method: str):
    if method == "differentiable_loss" and isinstance(elbo, RenyiELBO | TraceGraph_ELBO):
        pytest.skip("Pyro has no differentiable_loss for this objective")
    parameters = list(module.parameters())

    def plainly(x: Tensor) -> Any:
        for p in parameters:
            p.grad = None
        loss = getattr(elbo, method)(model, guide, x)
        if method == "differentiable_loss":
            loss.backward()
        return torch.as_tensor(loss), [p.grad for p in parameters]

    def tolerantly(x: Tensor) -> Any:
        with tolerant_pyro():
            return plainly(x)

    torch.manual_seed(0)
    plainly(x)  # the first call looks for plates and such
    graph = record(tolerantly, x, live=parameters)
    assert pyro.infer.trace_elbo.torch_item(torch.tensor(2.0)) == 2.0
    with torch.no_grad():
        for p in parameters:
            p.add_(0.05)
    y = x.roll(1, 0)
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = plainly(y)
        torch.manual_seed(seed)
        same(graph(y), expected, rtol=2e-5, atol=2e-5)


def test_masked_dice_ignores_impossible_outcomes():
    costs, prob = torch.tensor([1.0, float("inf"), 3.0]), torch.tensor([0.5, 0.0, 0.5])
    with tolerant_pyro():
        assert pyro.infer.util._fulldot(prob, costs) == 2.0


def test_tolerance_nests_and_ends():
    from pyro.infer import trace_elbo

    before = trace_elbo.torch_item, trace_elbo.warn_if_nan
    with tolerant_pyro():
        with tolerant_pyro():
            pass
        assert isinstance(trace_elbo.torch_item(torch.ones(())), Tensor)
        assert isinstance(torch.ones(()).item(), float)  # elsewhere it still reads
    assert (trace_elbo.torch_item, trace_elbo.warn_if_nan) == before


@pytest.mark.uses_param_store
def test_training_by_recorded_steps_is_training_by_pyro():
    torch.manual_seed(0)
    ours, theirs = Autoencoder(), Autoencoder()
    theirs.load_state_dict(ours.state_dict())
    data = [torch.randint(0, 4, (5, 6)).float() for _ in range(4)]
    losses = []
    for vae, use in ((ours, True), (theirs, False)):
        pyro.clear_param_store()
        parameters = list(vae.parameters())
        optimiser = torch.optim.Adam(parameters, lr=0.01)

        def objective(x: Tensor, vae: Any = vae, parameters: Any = parameters) -> Any:
            with tolerant_pyro():
                loss = TraceMeanField_ELBO().differentiable_loss(vae.model, vae.guide, x)
            return loss, torch.autograd.grad(loss, parameters)

        step = recorded(objective, live=parameters) if use else objective
        torch.manual_seed(3)
        for x in itertools.chain(data, data):
            loss, gradients = step(x)
            for p, g in zip(parameters, gradients, strict=True):
                p.grad = g
            optimiser.step()
        losses.append(loss.detach())
        if use:
            assert step.path == "recorded" and len(step.graphs) == 1
    same(losses[0], losses[1], rtol=1e-4, atol=1e-4)


# --- imports and the compiler


def test_recording_and_replay_import_no_compiler():
    code = """
import sys, torch, pyro
import pyro.distributions as dist
before = {m for m in ("torch._dynamo", "sympy") if m in sys.modules}
from ppl_dgm.graphs import record, recorded, tolerant_pyro, value_and_gradient
pyro.enable_validation(False)
w = torch.ones(3, requires_grad=True)
def model(x):
    z = pyro.sample("z", dist.Normal(w, 1.0).to_event(1))
    pyro.sample("x", dist.Categorical(logits=z), obs=x)
def guide(x):
    pyro.sample("z", dist.Normal(2 * w, 1.0).to_event(1))
def step(x):
    with tolerant_pyro():
        loss = pyro.infer.Trace_ELBO().differentiable_loss(model, guide, x)
    return loss, torch.autograd.grad(loss, w)
record(step, torch.tensor(1.0))(torch.tensor(2.0))
points = torch.ones(4, 3)
record(value_and_gradient(lambda z: dist.Normal(0.0, 1.0).log_prob(z).sum()), points)(points)
print(sorted({m for m in ("torch._dynamo", "sympy") if m in sys.modules} - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_inductor_gives_the_same_numbers_from_the_same_seed():
    w = torch.randn(3, requires_grad=True)
    total = torch.zeros(())

    def fn(x: Tensor) -> Any:
        loss = (w * x + torch.randn(5, 3)).logsumexp(-1).sum()
        total.add_(loss.detach())
        return {"loss": loss, "grad": torch.autograd.grad(loss, w)[0]}

    x = torch.randn(5, 3)
    graph = record(fn, x, live=[w, total], backend="inductor")
    for seed in range(3):
        torch.manual_seed(seed)
        before = total.clone()
        found = graph(x)
        same(total, before + found["loss"], rtol=1e-6, atol=1e-6)
        torch.manual_seed(seed)
        same(list(found.values()), list(fn(x).values()), rtol=1e-5, atol=1e-5)
    assert graph.backend == "inductor" and graph.seconds > 0


@pytest.mark.slow
def test_a_graph_of_the_same_calls_is_compiled_once(monkeypatch: pytest.MonkeyPatch):
    def scaled(data: Tensor) -> Any:
        return record(
            lambda x: (torch.sigmoid(x @ data) - 0.5, {"sum": (x * 2).sum(1)}), torch.ones(4, 3), backend="inductor"
        )

    one, other = torch.randn(3, 5), torch.randn(3, 5)
    x = torch.randn(4, 3)
    same(scaled(one)(x), (torch.sigmoid(x @ one) - 0.5, {"sum": 2 * x.sum(1)}), rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(compiling, "_inductor", None)  # whoever compiles now, fails
    monkeypatch.setattr(torch, "compile", None)
    graph = scaled(other)
    same(graph(x), (torch.sigmoid(x @ other) - 0.5, {"sum": 2 * x.sum(1)}), rtol=1e-5, atol=1e-6)
    assert graph.backend == "inductor"


def test_a_compiler_that_fails_is_given_up_with_one_warning(monkeypatch: pytest.MonkeyPatch):
    def broken(*args: Any, **kwargs: Any) -> Any:
        def call(*inputs: Tensor) -> Any:
            raise RuntimeError("no compiler here")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(compiling, "_inductor", broken())
    graph = record(lambda x: x.exp(), torch.zeros(2), backend="inductor")
    with pytest.warns(RuntimeWarning, match="no compiler here") as caught:
        same([graph(torch.zeros(2)), graph(torch.zeros(2))], [torch.ones(2), torch.ones(2)])
    assert len(caught) == 1 and graph.backend == "eager"
