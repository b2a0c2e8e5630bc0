"""RealNVP: bijection, density and cell masses by quadrature, the dequantisation bound, learning."""

import math
from dataclasses import replace
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import AffineTransform
from pyro.infer import Trace_ELBO
from torch import Tensor

import ppl_dgm as dgm
from ppl_dgm.models.flows.dequantisation import UniformCell
from ppl_dgm.models.flows.realnvp import RealNVP
from ppl_dgm.transforms import HistogramQuantile

KINDS = [{"values": None}, {"values": 3, "marginals": "affine"}, {"values": 3, "marginals": "histogram"}]
NAMES = ["continuous", "affine", "histogram"]


def flow(observed: int = 2, spread: float = 0.3, **options: object) -> RealNVP:
    """A flow in float64 whose layers are far from the identity, without training."""
    program = RealNVP(observed, **{"flows": 4, "hidden": 16, **options}).double().eval()
    for coupling in program.couplings:
        torch.nn.init.normal_(coupling.nn.network[-1].weight, std=spread)
    if program.marginals == "histogram":
        torch.nn.init.normal_(program.histogram.raw, std=1 / program.histogram.gain)
    else:
        torch.nn.init.normal_(program.loc, std=0.01)
        torch.nn.init.normal_(program.log_scale, std=0.01)
    return program


def midpoints(low: float, high: float, count: int) -> Tensor:
    """[count^2, 2] midpoints of a square grid."""
    axis = low + (torch.arange(count, dtype=torch.float64) + 0.5) * (high - low) / count
    return torch.cartesian_prod(axis, axis)


def cell_masses(program: RealNVP, count: int = 150) -> Tensor:
    """log P(x) of every cell of a 2-D program by quadrature, [values^2]."""
    within = midpoints(0, 1, count)
    with torch.no_grad():
        cells = [program.flow().log_prob(x + within).logsumexp(0) - math.log(len(within)) for x in all_cells(program)]
    return torch.stack(cells)


def all_cells(program: RealNVP) -> Tensor:
    grid = torch.arange(program.values or 0)
    return torch.cartesian_prod(grid, grid)


# -- the bijection -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", KINDS, ids=NAMES)
@pytest.mark.parametrize("observed", [2, 5])
def test_encode_and_decode_are_inverse_in_float64(options: dict, observed: int) -> None:
    program = flow(observed, **options)
    z = torch.randn(200, observed, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(program.encode(program.decode(z)), z, rtol=0, atol=1e-9)


@pytest.mark.parametrize("options", KINDS, ids=NAMES)
def test_the_density_is_the_bases_over_the_jacobian_by_autograd(options: dict) -> None:
    program = flow(5, **options)
    v = program.decode(torch.randn(6, 5, dtype=torch.float64)).detach()
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda row: program.encode(row), row) for row in v])
    base = dist.Normal(torch.zeros(5).double(), 1.0).to_event(1).log_prob(program.encode(v))
    torch.testing.assert_close(program.flow().log_prob(v), base + torch.linalg.slogdet(jacobian).logabsdet)


@pytest.mark.parametrize(
    ("options", "low", "high"), [(KINDS[0], -9, 9), (KINDS[1], -9, 12), (KINDS[2], 0, 3)], ids=NAMES
)
def test_the_density_integrates_to_one(options: dict, low: float, high: float) -> None:
    program = flow(**options)
    points = midpoints(low, high, 600)
    with torch.no_grad():
        mass = program.flow().log_prob(points).exp().mean() * (high - low) ** 2
    assert abs(float(mass) - 1) < 2e-3


def test_scores_are_not_answered_from_memory_after_the_weights_change() -> None:
    program = flow(values=None)
    x = torch.randn(10, 2, dtype=torch.float64)
    before = dgm.score(program, x).value
    with torch.no_grad():
        program.couplings[0].nn.network[-1].bias.add_(0.5)
    assert not torch.allclose(before, dgm.score(program, x).value)


# -- cells and bounds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "total"), [(KINDS[1], "below"), (KINDS[2], "one")], ids=NAMES[1:])
def test_the_cells_sum_to_at_most_one(options: dict, total: str) -> None:
    mass = float(cell_masses(flow(**options)).logsumexp(0).exp())
    assert mass < 1 + 1e-3
    if total == "one":
        assert mass > 1 - 1e-3


@pytest.mark.parametrize("options", KINDS[1:], ids=NAMES[1:])
def test_the_score_is_a_bound_on_the_cells_mass_and_importance_weighting_closes_it(options: dict) -> None:
    program = flow(spread=0.5, **options)
    x, exact = all_cells(program), cell_masses(program)
    with torch.no_grad():
        bound = program.log_density(x, draws=4000)
    assert bound.kind == "lower_bound" and bound.stderr is not None
    assert (bound.value <= exact + 4 * bound.stderr + 1e-3).all()
    assert (exact - bound.value).max() > 0.01  # the gap is there to be closed
    tight = dgm.score(program, x, method=dgm.ImportanceWeighted(draws=20_000), seed=0)
    assert ((tight.value - exact).abs() <= 4 * tight.stderr + 1e-3).all()
    assert (tight.stderr < 0.1).all()


def test_the_score_is_the_mean_of_pyros_elbo() -> None:
    program = flow(values=3)
    x = all_cells(program)
    with program.running(), torch.no_grad():
        score = program.log_density(x, draws=2000)
        elbo = torch.tensor([-Trace_ELBO().loss(program.run_model, program.run_guide, x) for _ in range(200)])
    error = float(elbo.std()) / math.sqrt(200) + float(score.stderr.square().sum().sqrt())
    assert abs(float(elbo.mean()) - float(score.value.sum())) < 4 * error


def test_untrained_couplings_leave_the_independent_categorical_model_exactly() -> None:
    x = torch.randint(3, (50, 4))
    program = RealNVP(4, 3).double()
    program.fit_marginals(x, pseudo_count=0.5)
    frequency = (torch.nn.functional.one_hot(x, 3).sum(0) + 0.5).double()
    log_p = (frequency / frequency.sum(-1, keepdim=True)).log()
    score = dgm.score(program, x, seed=0)
    torch.testing.assert_close(score.value, log_p[torch.arange(4), x].sum(-1))
    assert float(score.stderr.max()) < 1e-9


@pytest.mark.parametrize("observed", [1, 2, 3])
def test_noise_of_half_width_overstates_by_up_to_d_ln_2(observed: int) -> None:
    """The printed listing adds noise in (0, 1/2]. A density that sits where that noise falls then scores D ln
    2 too high: here one category has all the mass, so log P = 0 and any positive "log likelihood" is
    impossible. Unit width never does that.
    """
    halves = HistogramQuantile(observed, 4, gain=1.0).double()  # two cells of two halves
    with torch.no_grad():
        halves.raw.copy_(torch.tensor([0.0, -12.0, -30.0, -30.0]).expand(observed, 4))
    density = dist.TransformedDistribution(
        dist.Normal(torch.zeros(observed).double(), 1.0).to_event(1),
        [halves, AffineTransform(0.0, 0.5, event_dim=1)],
    )
    x = torch.zeros(4000, observed, dtype=torch.float64)
    printed = density.log_prob(x + (1 - torch.rand_like(x)) / 2).mean().detach()
    assert float(printed) == pytest.approx(observed * math.log(2), abs=1e-4)
    assert float(density.log_prob(UniformCell(x, x + 1).sample()).mean().detach()) < 0


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_dequantised_points_stay_in_their_cell_when_float32_rounds(
    uniform: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.arange(17.0)
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.full((17,), uniform))
    v = UniformCell(x, x + 1).rsample()
    assert torch.equal(v.floor(), x)
    assert (v > 0).all()


# -- the verbs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", KINDS, ids=NAMES)
def test_samples_have_the_type_and_range_of_the_data(options: dict) -> None:
    program = RealNVP(5, **options)
    first, again = dgm.sample(program, 40, seed=3), dgm.sample(program, 40, seed=3)
    assert torch.equal(first["x"], again["x"])
    assert first["x"].shape == (40, 5)
    if program.values is None:
        assert first["x"].dtype == torch.float32
    else:
        assert first["x"].dtype == torch.int64
        assert first["x"].min() >= 0 and first["x"].max() <= 2
        assert torch.equal(first["x"], first["v"].floor().clamp(0, 2).long())


def test_sampled_cells_have_the_frequencies_of_their_masses() -> None:
    program = flow(values=3)
    x = dgm.sample(program, 20_000, seed=0)["x"]
    frequency = torch.bincount(3 * x[:, 0] + x[:, 1], minlength=9) / 20_000
    mass = cell_masses(program).exp()
    assert (((frequency - mass) / (mass / 20_000).sqrt()).abs() < 4.5).all()


def test_inference_draws_points_of_the_cell() -> None:
    x = torch.tensor([[0, 2], [1, 1]])
    posterior = dgm.infer(RealNVP(2, 3), x, seed=0)
    assert torch.equal(posterior.draws["v"].floor().long(), x.expand_as(posterior.draws["v"]))


def test_continuous_data_have_an_exact_score_and_no_latent_site() -> None:
    program = flow(values=None)
    x = torch.randn(4, 2, dtype=torch.float64)
    score = dgm.score(program, x)
    assert score.kind == "exact" and score.stderr is None
    with pytest.raises(dgm.TaskUnavailable, match="nothing"):
        dgm.infer(program, x)


def test_learning_brings_digits_below_the_independent_model(tmp_path: Path) -> None:
    digits = dgm.data.digits()
    program = RealNVP(64, 17, flows=2, hidden=32)
    fit = dgm.learn(program, digits, method=replace(program.default_method("learn"), epochs=5, lr=5e-3), seed=0)
    learned = dgm.score(program, digits.valid, seed=0)
    assert fit.cost.path == "recorded"
    marginals = RealNVP(64, 17, flows=1, hidden=2)
    marginals.fit_marginals(digits.train)
    assert learned.mean().value > dgm.score(marginals, digits.valid, seed=0).mean().value + 2
    fit.save(tmp_path)
    again = dgm.score(type(fit).load(tmp_path).program, digits.valid, seed=0)
    assert torch.equal(again.value, learned.value)


def test_learning_continuous_data_of_a_large_scale_stays_finite_and_below_minus_the_entropy() -> None:
    """Rows on a line bent in 2-D, far from the origin and 1000 wide; log density is known up to the affine
    map.
    """
    a = torch.randn(600, 1)
    x = 1000 * torch.cat([a, a.square() + 0.2 * torch.randn(600, 1)], 1) + 5000
    entropy = math.log(2 * math.pi * math.e * 0.2) + 2 * math.log(1000)
    program = RealNVP(2, flows=4, hidden=32, dropout=0.0)
    dgm.learn(program, x, method=replace(program.default_method("learn"), epochs=40, lr=5e-3, patience=None), seed=0)
    mean = dgm.score(program, x).mean()
    gaussian = dist.MultivariateNormal(x.mean(0), torch.cov(x.T)).log_prob(x).mean()
    assert mean.value > float(gaussian) + 0.5
    assert mean.value < -entropy + 4 * mean.stderr + 0.2


@pytest.mark.slow
def test_digits_reach_the_figure_of_the_table() -> None:
    """124.3 nats once the dequantisation is right; this one, with learned marginals, about 88."""
    digits = dgm.data.digits()
    program = RealNVP(64, 17)
    dgm.learn(program, digits, seed=0)
    assert -dgm.score(program, digits.test, seed=0).mean().value < 91


def test_scores_are_the_same_in_float64_and_on_every_device(device: torch.device) -> None:
    program = flow(5, values=3)
    with torch.no_grad():
        v = program.decode(torch.randn(20, 5, dtype=torch.float64))
        expected = program.flow().log_prob(v)
        program = program.float().to(device)
        found = program.flow().log_prob(v.float().to(device))
    torch.testing.assert_close(found.double().cpu(), expected, rtol=1e-3, atol=1e-3)


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"observed": 1, "values": 3}, "at least 2 dimensions"),
        ({"observed": 4, "values": 1}, "at least 2 categories"),
        ({"observed": 4, "flows": 0}, "at least one coupling"),
        ({"observed": 4, "marginals": "spline"}, "'histogram' or 'affine'"),
        ({"observed": 4, "marginals": "histogram"}, "needs values"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_impossible_options_are_refused(options: dict, words: str) -> None:
    with pytest.raises(dgm.ProgramError, match=words):
        RealNVP(**options)


def test_points_outside_the_range_are_refused() -> None:
    program = RealNVP(2, 3)
    with pytest.raises(dgm.DataError, match="between 0 and 3"):
        program.encode(torch.tensor([[0.0, 3.5]]))
    with pytest.raises(dgm.DataError, match="must be 2"):
        program.decode(torch.zeros(1, 3))
