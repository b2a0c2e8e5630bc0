"""Circuits with leaves of any families: against factorised laws, mixtures, expansion over states, quadrature and draws."""

import itertools
import math
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import ppl_dgm as dgm
from ppl_dgm.distributions.circuit.climbing import climb
from ppl_dgm.distributions.circuit.families import (
    CategoricalLeaf,
    DiscretisedLogisticLeaf,
    GaussianLeaf,
    LeafFamily,
    PyroLeaf,
    leaf_family,
)
from ppl_dgm.errors import DataError, ProgramError, TaskUnavailable
from ppl_dgm.models import MixtureOfGaussians
from ppl_dgm.models.circuits.circuit import Circuit


def data(n: int = 300, seed: int = 0) -> torch.Tensor:
    """Two groups in four dimensions, neighbours correlated, [n, 4] float64."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    kind = (torch.rand(n, 1, generator=generator) < 0.4).double()
    x = 1.5 * noise.cumsum(1) + kind * torch.tensor([3.0, -4.0, 0.0, 2.0], dtype=torch.float64)
    return x


def learned(steps: int = 15, **options) -> Circuit:
    program = Circuit(4, **{"structure": "hclt", "leaf": "gaussian", "units": 3} | options).double()
    dgm.learn(program, data(), method=dgm.EM(steps=steps, tolerance=0.0), seed=0)
    return program


def expanded(program: Circuit, x: torch.Tensor) -> torch.Tensor:
    """log p(x) of a hidden tree of one component by the sum over all states of all hidden variables, [n]."""
    weights = program.weights
    circuit, parents = weights.evaluator(), weights.trees[0].tolist()
    moves = {d: table.log_softmax(-1) for (_, d), table in weights._rows().items()}
    root = weights.sum_logits[-1][0, 0].log_softmax(-1)
    leaves = circuit.leaf_values(x)  # [D, n, S]
    total = []
    for state in itertools.product(range(weights.units), repeat=4):
        value = sum(leaves[d, :, state[d]] for d in range(4))
        for d, above in enumerate(parents):
            value = value + (root[state[d]] if above < 0 else moves[d][state[above], state[d]])
        total.append(value)
    return torch.stack(total).logsumexp(0)


# -- Gaussian leaves -----------------------------------------------------------------------------------------


def test_one_state_is_the_factorised_gaussian():
    x = data()
    program = Circuit(4, structure="hclt", leaf="gaussian", units=1, pseudo_count=0.0).double()
    dgm.learn(program, x, method="em", seed=0)
    exact = torch.distributions.Normal(x.mean(0), x.std(0, correction=0)).log_prob(x).sum(-1)
    score = dgm.score(program, x)
    torch.testing.assert_close(score.value, exact)
    assert score.kind == "exact" and "continuous" in score.how


def test_one_product_of_leaves_is_the_mixture_of_gaussians():
    """A region graph of one region: the same parameters, the same density, the same EM step."""
    x = data()
    program = Circuit(4, structure="random", options={"replicas": 1, "depth": 1}, leaf="gaussian", units=3)
    star = dgm.distributions.circuit.regions.RegionGraph(4, (0, 1, 2, 3), (((0, 1, 2, 3),),))
    from ppl_dgm.models.circuits.family_regions import FamilyRegionParameters

    program.weights = FamilyRegionParameters([GaussianLeaf()] * 4, star, 3, 1, 0.0)
    program.double()
    torch.manual_seed(0)
    program.em_start(x)
    mixture = MixtureOfGaussians(4, 3).double()

    def hand_over():
        leaves = program.weights.leaf_parameters[0]
        weights = program.weights.sum_logits[0][0, 0].softmax(-1)
        mixture.assign(weights, leaves["mean"].T, leaves["log_variance"].T.exp())

    with torch.no_grad():
        hand_over()
        for _ in range(3):
            torch.testing.assert_close(program.log_density(x).value, mixture.log_density(x).value)
            mine, other = program.em_step(x), mixture.em_step(x)
            torch.testing.assert_close(mine, other)
            assert torch.allclose(program.weights.leaf_parameters[0]["mean"].T, mixture.means, atol=1e-10)


def test_density_is_the_sum_over_all_states():
    program, x = learned(), data(20, 1)
    torch.testing.assert_close(program.log_density(x).value, expanded(program, x))


def test_two_variables_integrate_to_one():
    x = data()[:, :2]
    program = Circuit(2, structure="hclt", leaf="gaussian", units=3).double()
    dgm.learn(program, x, method=dgm.EM(steps=10, tolerance=0.0), seed=0)
    first, second = (torch.linspace(-25, 25, 500, dtype=torch.float64) for _ in range(2))
    grid = torch.cartesian_prod(first, second)
    step = float(first[1] - first[0])
    assert float(program.log_density(grid).value.detach().exp().sum()) * step**2 == pytest.approx(1, abs=1e-8)
    alone = torch.stack([first, torch.full_like(first, torch.nan)], 1)  # the second one integrated out
    marginal = program.log_density(grid).value.detach().exp().reshape(500, 500).sum(1) * step
    torch.testing.assert_close(program.log_density(alone).value.exp(), marginal, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"components": 2},
        {"pseudo_count": 0.0},
        {"structure": "random", "options": {"depth": 1, "replicas": 2}},
        {"leaf": dist.StudentT},
        {"leaf": ["gaussian", "laplace", "student-t", "gaussian"]},
    ],
    ids=["hclt", "mixture of trees", "no pseudo-count", "random", "student-t", "mixed"],
)
def test_full_em_never_falls(options):
    program = Circuit(4, **{"structure": "hclt", "leaf": "gaussian", "units": 4} | options).double()
    fit = dgm.learn(program, data(), method=dgm.EM(steps=8, tolerance=0.0), seed=1)
    column = "penalised" if "penalised" in fit.history else "objective"
    rises = -fit.history[column].diff().dropna()
    assert len(rises) > 5 and float(rises.min()) > -1e-9
    assert float(fit.history["objective"].iloc[0] - fit.history["objective"].iloc[-1]) > 0.02


def test_more_states_explain_correlated_columns_better_than_none():
    """The Gaussian tree finds neighbours, and EM with growing units gains on the factorised law."""
    program = Circuit(4, structure="hclt", leaf="gaussian", units=16).double()
    dgm.learn(program, data(800), valid=data(400, 1), method=dgm.OnlineEM(epochs=4, polish=10, batch_size=200), seed=0)
    alone = Circuit(4, structure="hclt", leaf="gaussian", units=1).double()
    dgm.learn(alone, data(800), method="em", seed=0)
    held_out = data(1000, 2)
    assert program.log_density(held_out).mean().value > alone.log_density(held_out).mean().value + 0.5
    edges = {frozenset((d, p)) for d, p in enumerate(program.weights.trees[0].tolist()) if p >= 0}
    assert frozenset((2, 3)) in edges  # of the strongest correlation


def test_growing_keeps_the_density_but_for_the_noise():
    program = learned()
    program.weights.most_units = 6
    before = program.log_density(data(50, 1)).value
    assert program.grow(1e-6) and program.weights.units == 6 and not program.grow(1e-6)
    torch.testing.assert_close(program.log_density(data(50, 1)).value, before, atol=1e-4, rtol=0)


def test_gradients_learn_it_too():
    program = learned(steps=1)
    before = program.log_density(data()).mean().value
    method = dgm.MaximumLikelihood(epochs=10, batch_size=100, lr=0.02)
    dgm.learn(program, data(), method=method, seed=0)
    assert program.log_density(data()).mean().value > before


# -- queries -------------------------------------------------------------------------------------------------


def test_marginals_conditionals_and_draws_agree_with_the_grid():
    program = learned()
    x = data(1, 5)
    x[:, [0, 2, 3]] = torch.nan
    x = x.expand(400, 4).clone()
    values = torch.linspace(-30, 30, 400, dtype=torch.float64)
    asked = x.clone()
    asked[:, 0] = values
    density = (program.log_density(asked).value - program.log_density(x).value).exp()  # p(x_0 | x_1)
    step = float(values[1] - values[0])
    assert float(density.sum()) * step == pytest.approx(1, abs=1e-6)
    mean = float((density * values).sum()) * step
    variance = float((density * (values - mean) ** 2).sum()) * step
    found = program.posterior(x[:1])["x"]
    assert float(found.mean[0, 0]) == pytest.approx(mean, abs=1e-4)
    assert float(found.variance[0, 0]) == pytest.approx(variance, abs=1e-3)
    assert float(found.mean[0, 1]) == float(x[0, 1]) and float(found.variance[0, 1]) == 0
    torch.testing.assert_close(program.posterior(asked)["x"].log_prob(asked)[:, 1], torch.zeros(400).double())
    torch.testing.assert_close(program.posterior(x)["x"].log_prob(asked)[:, 0].exp(), density)
    post = dgm.infer(program, x[:1], method=dgm.Exact(draws=4000), seed=0)
    assert float(post.draws["x"][0, :, 0, 0].mean()) == pytest.approx(mean, abs=4.5 * (variance / 4000) ** 0.5)
    joint = dgm.sample(program, 4000, given={"x": x[0]}, seed=0)["x"]
    assert bool((joint[:, 1] == x[0, 1]).all())
    assert float(joint[:, 0].mean()) == pytest.approx(mean, abs=4.5 * (variance / 4000) ** 0.5)


def test_moments_are_those_of_draws():
    program = learned()
    law = program.distribution()
    drawn = dgm.sample(program, 20_000, seed=0)["x"]
    error = (drawn.mean(0) - law.mean).abs() / (law.variance / 20_000).sqrt()
    assert float(error.max()) < 4.5
    spread = (drawn - law.mean).square()
    assert float(((spread.mean(0) - law.variance).abs() / (spread.std(0) / 20_000**0.5)).max()) < 4.5


def test_a_joint_draw_has_the_correlations_of_the_density():
    """Importance weights of draws under the density itself average to one in every half-space."""
    program = learned()
    drawn = dgm.sample(program, 4000, seed=1)["x"]
    other = torch.distributions.MultivariateNormal(data().mean(0), 2 * data().T.cov())
    wide = other.sample((40_000,))
    ratio = (program.log_density(wide).value - other.log_prob(wide)).exp()
    for a, b in itertools.combinations(range(4), 2):
        inside = ((wide[:, a] > 0) & (wide[:, b] > 0)).double() * ratio
        share = ((drawn[:, a] > 0) & (drawn[:, b] > 0)).double()
        error = (inside.std() ** 2 / 40_000 + share.std() ** 2 / 4000) ** 0.5
        assert abs(float(inside.mean() - share.mean())) < 4.5 * float(error)


def test_missing_entries_are_learned_from():
    x = data()
    hole = torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) < 0.3
    program = Circuit(4, structure="hclt", leaf="gaussian", units=4).double()
    fit = dgm.learn(program, x.masked_fill(hole, torch.nan), method=dgm.EM(steps=15, tolerance=0.0), seed=0)
    assert float(-fit.history["penalised"].diff().dropna().max()) > -1e-9
    alone = torch.distributions.Normal(x.mean(0), x.std(0)).log_prob(data(500, 4)).sum(-1).mean()
    assert program.log_density(data(500, 4)).mean().value > float(alone)


def test_what_needs_tables_is_refused_in_words():
    program, x = learned(steps=1), data(2)
    for ask in (
        lambda: program.map(x),
        lambda: program.approximate_map(x),
        lambda: program.story(),
        lambda: program.distribution().entropy_bound(),
        lambda: program.distribution().mutual_information(),
        lambda: program.distribution().product(program.distribution()),
    ):
        with pytest.raises(TaskUnavailable):
            ask()
    for ask in (program.distribution().entropy, program.distribution().entropy_bound):
        with pytest.raises(TaskUnavailable, match=r"estimate it by -log_prob of draws of sample"):
            ask()


# -- other families ------------------------------------------------------------------------------------------


class RateLeaf(LeafFamily):
    """Ten lines of a user: an exponential family with its M-step."""

    names, support = ("log_rate",), constraints.positive

    def distribution(self, log_rate):
        return dist.Exponential(log_rate.exp())

    def statistics(self, x):
        return x.unsqueeze(-1)

    def update(self, count, sums, parameters):
        return {"log_rate": (count / sums[..., 0].clamp_min(1e-9)).log()}


class CountLeaf(LeafFamily):
    """The least that a user may write: learned by gradients."""

    names, support = ("log_rate",), constraints.nonnegative_integer

    def distribution(self, log_rate):
        return dist.Poisson(log_rate.exp())


def counts(n: int = 300) -> torch.Tensor:
    torch.manual_seed(0)
    kind = torch.rand(n) < 0.5
    low, high = torch.tensor([2.0, 1.0, 30.0]), torch.tensor([12.0, 6.0, 10.0])
    return torch.poisson(torch.where(kind[:, None], low, high)).double()


@pytest.mark.parametrize(
    "leaf", [RateLeaf(), CountLeaf(), "poisson", PyroLeaf(dist.NegativeBinomial, total_count=20.0)]
)
def test_a_user_s_own_family_works_everywhere(leaf):
    x = counts() + (0.5 if isinstance(leaf, RateLeaf) else 0.0)
    program = Circuit(3, structure="hclt", leaf=leaf, units=2, pseudo_count=0.0).double()
    method = dgm.EM(steps=12, tolerance=0.0)
    fit = dgm.learn(program, x, method=method, seed=0)
    assert float((-fit.history["objective"].diff().dropna()).min()) > -1e-9
    family = leaf_family(leaf, 2)
    alone = sum(float(family.distribution(**family.start(x[:, d])).log_prob(x[:, d]).mean()) for d in range(3))
    assert program.log_density(x).mean().value > alone + (0.05 if isinstance(leaf, RateLeaf) else 1.0)
    hole = x[:4].clone()
    hole[:, 1] = torch.nan
    assert bool(program.posterior(hole)["x"].mean[:, 1].isfinite().all())
    assert dgm.sample(program, 5, given={"x": hole[0]}, seed=0)["x"].shape == (5, 3)
    with pytest.raises(DataError, match="the support"):
        program.log_density(torch.tensor([[-3.0, 1.0, 1.0]]).double())


def test_a_family_without_statistics_is_refused_by_minibatch_em_and_learned_by_em():
    program = Circuit(3, structure="hclt", leaf=CountLeaf(), units=2)
    assert program.default_method("learn") == "em"
    with pytest.raises(TaskUnavailable, match="method='em'"):
        dgm.learn(program, counts().float(), method="online-em")
    assert Circuit(3, structure="hclt", leaf=RateLeaf()).default_method("learn") == "online-em"


def test_columns_of_several_kinds():
    torch.manual_seed(0)
    kind = torch.rand(400) < 0.5
    x = torch.stack(
        [
            torch.randn(400) + 4 * kind,
            torch.bernoulli(torch.where(kind, 0.9, 0.2)),
            torch.poisson(torch.where(kind, 2.0, 9.0)),
            torch.where(kind, torch.randint(0, 2, (400,)), torch.randint(2, 4, (400,))).float(),
        ],
        1,
    ).double()
    leaf = ["gaussian", "bernoulli", "poisson", "categorical-4"]
    program = Circuit(4, structure="hclt", leaf=leaf, units=2).double()
    fit = dgm.learn(program, x, method=dgm.EM(steps=15, tolerance=0.0), seed=0)
    assert float((-fit.history["penalised"].diff().dropna()).min()) > -1e-9
    one = x[:1].clone()
    one[:, [1, 3]] = torch.nan
    both = torch.cartesian_prod(torch.arange(2.0), torch.arange(4.0)).double()
    every = one.repeat(8, 1)
    every[:, [1, 3]] = both
    joint = program.log_density(every).value.detach()
    torch.testing.assert_close(joint.logsumexp(0), program.log_density(one).value.detach()[0])
    chance = (joint - joint.logsumexp(0)).exp()
    mean = program.posterior(one)["x"].mean[0].detach()
    torch.testing.assert_close(mean[[1, 3]], (chance[:, None] * both).sum(0))
    with pytest.raises(DataError, match="variable 1"):
        program.log_density(torch.tensor([[0.0, 2.0, 1.0, 1.0]]).double())


def test_saved_and_loaded_with_trees_and_units(tmp_path: Path):
    program = Circuit(4, structure="hclt", leaf="gaussian", units=8, components=2)
    fit = dgm.learn(program, data().float(), method=dgm.OnlineEM(epochs=1, polish=2, batch_size=100), seed=0)
    fit.save(tmp_path)
    again = dgm.Fit.load(tmp_path).program
    assert again.weights.units == program.weights.units and torch.equal(again.weights.trees, program.weights.trees)
    assert torch.equal(again.log_density(data(9).float()).value, program.log_density(data(9).float()).value)


def test_an_ensemble_is_the_average_of_its_members():
    program = Circuit(4, structure="hclt", leaf="gaussian", units=4).double()
    member = dgm.OnlineEM(epochs=1, polish=3, batch_size=100)
    fit = dgm.learn(program, data(), valid=data(100, 1), method=dgm.Ensemble(members=2, method=member), seed=0)
    assert program.weights.trees.shape == (2, 4)
    assert -program.log_density(data(100, 1)).mean().value == pytest.approx(fit.history["together"].iloc[-1], abs=1e-9)


# -- the discretised logistic ---------------------------------------------------------------------------------


def test_the_discretised_logistic_sums_to_one_and_is_the_mass_of_cells():
    leaf = DiscretisedLogisticLeaf(10)
    loc, log_scale = torch.tensor([3.2, -40.0, 60.0]).double(), torch.tensor([0.3, 0.0, -1.0]).double()
    table = leaf.table(loc, log_scale)
    torch.testing.assert_close(table.exp().sum(-1), torch.ones(3).double())
    scale = math.exp(0.3)
    edges = torch.sigmoid((torch.arange(9) + 0.5 - 3.2).double() / scale)
    cells = torch.cat([edges[:1], edges[1:] - edges[:-1], 1 - edges[-1:]])
    torch.testing.assert_close(table[0].exp(), cells)
    assert bool(table.isfinite().all())
    rows = torch.arange(10).double()[None]
    same = leaf.log_prob(rows, {"loc": loc[None], "log_scale": log_scale[None]})
    torch.testing.assert_close(same[0].T, table)


def grey(n: int = 300) -> torch.Tensor:
    return (data(n) * 1.5 + 12).round().clamp(0, 31).long()


def test_discretised_logistic_leaves_learn_by_generalised_em_and_answer_all_queries():
    program = Circuit(4, 32, "hclt", leaf="discretised-logistic", units=4).double()
    fit = dgm.learn(program, grey(), method=dgm.EM(steps=20, tolerance=0.0), seed=0)
    assert float((-fit.history["penalised"].diff().dropna()).min()) > -1e-9
    alone = Circuit(4, 32, "hclt", leaf="discretised-logistic", units=1).double()
    dgm.learn(alone, grey(), method="em", seed=0)
    assert program.log_density(grey()).mean().value > alone.log_density(grey()).mean().value + 0.3
    pair = torch.full((32, 4), -1)
    pair[:, 2] = torch.arange(32)
    assert float(program.log_density(pair).value.detach().exp().sum()) == pytest.approx(1, abs=1e-9)
    x = grey()[:3].clone()
    x[:, 0] = -1
    found = program.approximate_map(x, draws=4, branches=50)
    every = x.repeat(32, 1, 1)
    every[:, :, 0] = torch.arange(32)[:, None]
    best = program.log_density(every.flatten(0, 1)).value.detach().reshape(32, 3).amax(0)
    torch.testing.assert_close(found.log_prob, best)
    assert fit.program.posterior(x)["x"].probs.shape == (3, 4, 32)


def test_minibatch_em_of_discretised_logistics():
    program = Circuit(4, 32, "hclt", leaf="discretised-logistic", units=8)
    method = dgm.OnlineEM(epochs=2, polish=4, batch_size=100)
    fit = dgm.learn(program, grey(), valid=grey(100), method=method, seed=0)
    assert fit.history["valid"].min() < fit.history["valid"].iloc[0]
    assert program.weights.units == 8


def test_scoring_finds_the_maximum():
    """The optimum of a concave case is known: a Poisson rate is the weighted mean."""
    x = torch.tensor([[0.0, 1.0, 2.0, 9.0]]).double()
    weight = torch.rand(1, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    found = climb(PyroLeaf(dist.Poisson), x, weight, {"rate": torch.zeros(1, 3).double()}, 60)["rate"].exp()
    mean = (weight * x[..., None]).sum(1) / weight.sum(1)
    torch.testing.assert_close(found, mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"leaf": "gauss"}, "leaf is 'gauss'"),
        ({"leaf": ["gaussian"]}, "lists 1 families"),
        ({"leaf": "gaussian", "structure": "chow-liu"}, "'chow-liu' is over categories"),
        ({"leaf": "gaussian", "smoothing": 0.1}, "smoothing"),
        ({"leaf": "multivariate-normal"}, "one variable"),
    ],
)
def test_refusals(options, words):
    with pytest.raises(ProgramError, match=words):
        Circuit(4, **{"structure": "hclt"} | options)


def test_refused_families():
    for make in (
        lambda: GaussianLeaf(floor=0.0),
        lambda: CategoricalLeaf(1),
        lambda: DiscretisedLogisticLeaf(1),
        lambda: PyroLeaf(dist.Normal, width=1.0),
    ):
        with pytest.raises(ProgramError):
            make()
