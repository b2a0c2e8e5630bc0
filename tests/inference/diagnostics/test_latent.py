"""Diagnoses of latents: detection on programs made ill, silence on their healthy twins, numbers against closed forms."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_dgm as dgm
from oracles.linear_gaussian import LinearGaussian
from ppl_dgm import Program
from ppl_dgm.errors import DataError, ProgramError, TaskUnavailable
from ppl_dgm.inference.diagnostics import latent


class Independent(Program):
    """Two units with a data column each, x_j ~ N(w_j z_j, s^2); the exact posterior as guide. With w_j = 0 unit j collapses."""

    def __init__(self, weights=(1.0, 1.0), scale=0.5, centre=0.0, prior_scale=1.0):
        super().__init__()
        self.observed, self.scale, self.centre, self.prior_scale = len(weights), scale, centre, prior_scale
        self.register_buffer("weights", torch.tensor(weights))

    def model(self, x=None, n=1):
        with pyro.plate("data", n if x is None else len(x)):
            prior = dist.Normal(torch.zeros_like(self.weights), self.prior_scale)
            z = pyro.sample("z", prior.to_event(1))
            return pyro.sample("x", dist.Normal(self.weights * z, self.scale).to_event(1), obs=x)

    def guide(self, x, n=1):
        precision = 1 + self.weights.square() / self.scale**2
        with pyro.plate("data", len(x)):
            loc = self.weights * x / self.scale**2 / precision
            return pyro.sample("z", dist.Normal(loc, precision.rsqrt()).to_event(1))


class Chain(Program):
    """x in one dimension, z1 a noisy copy of x, z2 a noisy copy of z1 (so that it adds nothing to z1)."""

    observed = 1

    def __init__(self, keep=0.6):
        super().__init__()
        self.keep = keep

    def model(self, x=None, n=1):
        with pyro.plate("data", n if x is None else len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(math.sqrt(self.keep) * z2, math.sqrt(1 - self.keep)).to_event(1))
            return pyro.sample("x", dist.Normal(math.sqrt(self.keep) * z1, math.sqrt(1 - self.keep)).to_event(1), obs=x)

    def guide(self, x, n=1):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(math.sqrt(self.keep) * x, math.sqrt(1 - self.keep)).to_event(1))
            pyro.sample("z2", dist.Normal(math.sqrt(self.keep) * z1, math.sqrt(1 - self.keep)).to_event(1))


def drawn(program, n, seed=0):
    return dgm.sample(program, n, seed=seed)["x"]


# -- collapse ---------------------------------------------------------------------------------------------------------


def test_a_collapsed_unit_is_found_and_its_healthy_twin_has_none():
    ill, well = Independent((1.0, 0.0, 2.0)), Independent((1.0, 1.0, 2.0))
    found = latent.active_units(ill, drawn(ill, 500))
    assert found.collapsed == ["z[1]"] and found.active == 2 and found.ok and "z[1] follow" in found.verdict
    assert latent.active_units(well, drawn(well, 500)).collapsed == []


def test_noise_of_averages_is_not_taken_for_activity():
    program = Independent((1.0, 0.0))
    with latent.codes.at_rest(program, 0) as resting:
        codes = latent.codes.encode(resting, drawn(program, 60), 4)
    codes.means.update(codes.draws)  # as of a posterior that does not know its mean
    codes.unit_kl.clear()
    assert latent.units.units_of(codes).collapsed == ["z[1]"]
    one = latent.active_units(program, drawn(program, 60), draws=1)
    assert one.collapsed == ["z[1]"]


def test_a_collapsed_level_is_found_in_a_hierarchy():
    x = drawn(Chain(), 400)

    class Deaf(Chain):
        def guide(self, x, n=1):
            with pyro.plate("data", len(x)):
                z2 = pyro.sample("z2", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                loc = 0.5 * math.sqrt(self.keep) * z2 + 0.6 * x
                pyro.sample("z1", dist.Normal(loc, 0.5).to_event(1))

    found = latent.active_units(Deaf(), x)
    assert found.collapsed_levels == ["z2"] and not found.ok and "Posterior collapse: z2" in found.verdict
    assert latent.active_units(Chain(), x).collapsed_levels == []


def test_divergence_and_activity_of_each_unit_are_the_closed_forms():
    program = Independent((1.0, 0.5), scale=0.5)
    x = drawn(program, 1000)
    found = latent.active_units(program, x)
    precision = 1 + torch.tensor([4.0, 1.0])
    means = torch.tensor([1.0, 0.5]) * x / 0.25 / precision
    expected = 0.5 * (means.square().mean(0) + 1 / precision - 1 + precision.log())
    assert torch.allclose(torch.tensor(found.table["kl"]).float(), expected, atol=1e-4)
    assert torch.allclose(torch.tensor(found.table["activity"]).float(), means.var(0), atol=1e-4)
    assert float(found.levels["kl"].iloc[0]) == pytest.approx(float(expected.sum()), abs=1e-4)


# -- the bound taken apart ----------------------------------------------------------------------------------------------


def test_the_parts_add_up_and_are_those_of_quadrature():
    program = Independent((1.0,), scale=0.4)
    x = drawn(program, 40)
    found = latent.surgery(program, x, draws=200)
    v = found.table["value"]
    assert v["reconstruction"] - v["cross-entropy"] + v["entropy"] == pytest.approx(v["elbo"], abs=1e-4)
    assert v["information"] + v["marginal divergence"] == pytest.approx(v["divergence"], abs=1e-4)
    assert v["total correlation"] == pytest.approx(0.0, abs=1e-5)  # one unit
    precision = 1 + 1 / 0.16
    z = torch.linspace(-8, 8, 40_001).double()
    each = torch.distributions.Normal((x / 0.16 / precision).double(), precision**-0.5).log_prob(z)  # [N, grid]
    mixed = each.logsumexp(0) - math.log(40)
    entropy_of_mixture = -float(torch.trapezoid(mixed.exp() * mixed, z))
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z)
    cross = -float(torch.trapezoid(mixed.exp() * prior, z))
    entropy = 0.5 * math.log(2 * math.pi * math.e / precision)
    for part, expected in (
        ("entropy", entropy),
        ("cross-entropy", cross),
        ("information", entropy_of_mixture - entropy),
        ("marginal divergence", cross - entropy_of_mixture),
    ):
        assert v[part] == pytest.approx(expected, abs=5 * found.table.loc[part, "stderr"] + 1e-4), part
    assert 0 < found["information"] < math.log(40)


def test_the_bound_is_the_elbo_and_equals_the_evidence_under_the_exact_posterior():
    program = LinearGaussian(exact=True)
    x = drawn(program, 200)
    found = latent.surgery(program, x)
    assert found["elbo"] == pytest.approx(float(program.evidence(x).mean()), abs=1e-4)
    assert not found.three  # its posterior does not factorise


def test_correlated_units_have_a_total_correlation_and_independent_ones_do_not():
    torch.manual_seed(0)
    base = torch.randn(600, 1)
    program = Independent((1.0, 1.0), scale=0.2)
    tied = latent.surgery(program, torch.cat([base, base], 1), draws=2)
    free = latent.surgery(program, torch.randn(600, 2), draws=2)
    assert tied["total correlation"] > 0.5
    assert abs(free["total correlation"]) < 0.15


def test_each_row_with_a_code_of_its_own_has_all_the_information_there_is():
    program = Independent((1.0, 1.0), scale=0.001)
    found = latent.surgery(program, torch.randn(100, 2))
    assert found["information"] == pytest.approx(math.log(100), abs=0.02)
    assert "log N" in found.verdict


def test_a_markov_chain_away_from_the_data_has_all_its_information_in_the_first_level():
    program = Chain(keep=0.6)
    x = drawn(program, 400)
    found = latent.level_information(program, x, draws=4)
    table = found.table
    expected = 0.5 * math.log(1 + 0.6 / 0.4)  # of a Gaussian x with variance one, as the rows become many
    assert table.loc["z1", "information"] == pytest.approx(expected, abs=0.1)
    assert abs(table.loc["z2", "information"]) < 5 * table.loc["z2", "stderr"] + 1e-3
    assert found.idle == ["z2"] and "z2 adds nothing" in found.verdict


def test_a_level_that_adds_to_the_one_before_is_not_idle():
    class Both(Program):
        observed = 2

        def model(self, x=None, n=1):
            with pyro.plate("data", n if x is None else len(x)):
                a = pyro.sample("a", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                b = pyro.sample("b", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                return pyro.sample("x", dist.Normal(torch.cat([a, b], -1), 0.5).to_event(1), obs=x)

        def guide(self, x, n=1):
            with pyro.plate("data", len(x)):
                pyro.sample("a", dist.Normal(0.8 * x[:, :1], 0.2**0.5).to_event(1))
                pyro.sample("b", dist.Normal(0.8 * x[:, 1:], 0.2**0.5).to_event(1))

    x = drawn(Both(), 300)
    found = latent.level_information(Both(), x)
    assert found.idle == [] and (found.table["information"] > 0.5).all()
    assert (found.table["bound"] > found.table["information"] - 4 * found.table["stderr"]).all()


# -- holes --------------------------------------------------------------------------------------------------------------


def test_a_hole_in_the_prior_is_found_and_a_matching_prior_has_none():
    program = Independent((1.0, 1.0), scale=0.3)
    generator = torch.Generator().manual_seed(0)
    sides = torch.randint(0, 2, (1200, 1), generator=generator) * 2.0 - 1.0
    apart = torch.cat([2.5 * sides, torch.zeros_like(sides)], 1) + 0.3 * torch.randn(1200, 2, generator=generator)
    found = latent.prior_match(program, apart[:800], apart[800:])
    assert found.has_holes and found.share > 0.5 and found.p_value < 0.01 and "Holes" in found.verdict
    x = drawn(program, 1600)
    twin = latent.prior_match(program, x[:1000], x[1000:])
    assert not twin.has_holes and twin.share < 0.05
    assert twin.p_value > 0.001


def test_a_prior_that_is_too_wide_has_holes_around_the_codes():
    program, wide = Independent((1.0, 1.0), scale=0.3), Independent((1.0, 1.0), scale=0.3, prior_scale=3.0)
    x = drawn(program, 900)
    assert latent.prior_match(wide, x).share > 0.4


def test_the_mixture_density_is_the_average_over_training_rows():
    program = Independent((1.0, 1.0))
    x = drawn(program, 50)
    found = latent.prior_match(program, x[:20], x[20:], samples=30)
    precision = 5.0
    posterior = torch.distributions.Normal(x[:20].double() * 4 / precision, precision**-0.5)
    expected = posterior.log_prob(found.drawn[:, None]).sum(-1).logsumexp(1) - math.log(20)
    assert torch.allclose(found.log_q_prior, expected, atol=1e-4)


def test_the_two_sample_test_keeps_its_level_and_has_power():
    torch.manual_seed(0)
    null = [latent.aggregate.mmd(torch.randn(80, 3), torch.randn(80, 3), 99)[1] for _ in range(40)]
    assert sum(p <= 0.1 for p in null) <= 12  # 4 expected
    assert latent.aggregate.mmd(torch.randn(80, 3), torch.randn(80, 3) + 1.0, 99)[1] == pytest.approx(0.01)


# -- gaps ------------------------------------------------------------------------------------------------------------------


class Correlated(LinearGaussian):
    """Two latents that the posterior ties together; no closed form is offered to the verbs."""

    def __init__(self, exact=False):
        super().__init__(observed=4, latent=2, exact=exact)
        self.weight.copy_(torch.tensor([[1.0, 0.8], [0.8, 1.0], [1.0, 1.0], [0.5, 0.6]]))


def test_both_gaps_are_those_of_the_linear_gaussian():
    program = Correlated()
    x = drawn(program, 60)
    found = latent.inference_gaps(program, x, steps=200, lr=0.06, draws=800, evidence_draws=2000)
    posterior = program.exact_posterior(x)
    precision, covariance = posterior.precision_matrix[0], posterior.covariance_matrix[0]
    # the best factorised Gaussian has the posterior's mean and the inverse diagonal of its precision (Bishop 10.1.2)
    best = 0.5 * (precision.diagonal().log().sum() + covariance.logdet())
    encoder = torch.distributions.kl_divergence(
        torch.distributions.MultivariateNormal(posterior.mean + 0.1, torch.diag(1.69 * covariance.diagonal())),
        torch.distributions.MultivariateNormal(posterior.mean, covariance),
    ).mean()
    table = found.table["stderr"]
    assert float(program.evidence(x).mean()) == pytest.approx(float(found.evidence.mean()), abs=0.05)
    assert found.approximation == pytest.approx(float(best), abs=5 * table["approximation gap"] + 0.03)
    assert found.amortisation == pytest.approx(float(encoder - best), abs=5 * table["amortisation gap"] + 0.03)


def test_a_full_gaussian_closes_the_approximation_gap_and_the_exact_guide_has_none():
    x = drawn(Correlated(), 40)
    full = latent.inference_gaps(Correlated(), x, family="full", steps=200, lr=0.06, draws=500, evidence_draws=2000)
    assert abs(full.approximation) < 0.05 and full.amortisation > 0.2
    assert "larger encoder" in full.verdict
    exact = latent.inference_gaps(
        Correlated(exact=True), x, family="full", steps=200, lr=0.06, draws=500, evidence_draws=500
    )
    assert abs(exact.amortisation) < 0.03 and abs(exact.approximation) < 0.03 and "both are small" in exact.verdict


def test_a_guide_richer_than_the_family_lies_above_its_best_member():
    exact = Correlated(exact=True)
    found = latent.inference_gaps(exact, drawn(exact, 20), steps=100, lr=0.06, draws=400, evidence_draws=200)
    assert found.amortisation < -0.3
    assert f"lies {-found.amortisation:.2f} ±" in found.verdict and "nats above that of the best" in found.verdict
    assert "richer than these Gaussians" in found.verdict and "-" not in found.verdict


# -- typicality ------------------------------------------------------------------------------------------------------------


def test_typicality_sees_what_the_likelihood_alone_does_not():
    digits = dgm.data.digits()
    program = dgm.learn(dgm.models.ProbabilisticPCA(64, 16, floor=0.5), digits.train.float()).program
    average = digits.train.float().mean(0)
    faint = average + 0.02 * (digits.test.float() - average)
    sets = {"test": digits.test.float(), "inverted": 16.0 - digits.test.float(), "average": faint}
    found = latent.novelty(program, digits.train.float(), digits.valid.float(), sets, batch=5)
    table = found.table
    assert table.loc["inverted", "low density"] == 1.0 and table.loc["inverted", "atypical"] == 1.0
    assert table.loc["average", "low density"] == 0.0 and table.loc["average", "atypical"] == 1.0
    assert table.loc["average", "auroc of density"] < 0.05 < 0.9 < table.loc["inverted", "auroc of density"]
    assert table.loc["test", "atypical"] < 0.5
    assert "average is flagged by typicality alone" in found.verdict


def test_both_tests_keep_their_level_on_data():
    program = Independent((1.0, 1.0, 1.0))
    x = drawn(program, 6000)
    exact = LinearGaussian(exact=True)
    x = drawn(exact, 6000)
    found = latent.novelty(
        exact, x[:2000], x[2000:4000], {"fresh": x[4000:]}, level=0.1, method=dgm.ELBO(draws=1)
    )  # the exact guide's bound is the evidence
    for test in ("low density", "atypical"):
        assert found.table.loc["fresh", test] == pytest.approx(0.1, abs=4 * math.sqrt(2 * 0.09 / 2000))
    assert found.table.loc["fresh", "auroc of density"] == pytest.approx(0.5, abs=0.04)


# -- exploring -----------------------------------------------------------------------------------------------------------


def test_a_path_ends_at_the_rows_codes_and_decodes_them():
    program = Independent((1.0, 2.0), scale=0.1)
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    straight = latent.interpolate(program, a, b, steps=5)
    precision = 1 + torch.tensor([1.0, 4.0]) / 0.01
    codes = torch.tensor([[1.0, 2.0]]) * torch.cat([a, b]) / 0.01 / precision
    assert torch.allclose(straight.codes[0, [0, -1]], codes, atol=1e-5)
    assert torch.allclose(straight.decoded, straight.codes * torch.tensor([1.0, 2.0]), atol=1e-6)
    assert torch.allclose(straight.codes[0, 2], codes.mean(0), atol=1e-5) and float(straight.smoothness) < 1.01
    curved = latent.interpolate(program, a, b, steps=5, path="spherical")
    lengths = curved.codes[0].norm(dim=-1)
    assert torch.allclose(lengths, lengths[:1].expand(5), atol=0.02)  # a quarter circle
    assert float(straight.codes[0, 2].norm()) < 0.75 * float(lengths[2])


def test_a_traversal_moves_one_unit_and_arithmetic_adds_codes():
    program = Independent((1.0, 2.0), scale=0.1)
    x = drawn(program, 400)
    walk = latent.traverse(program, x, units=[1], steps=5, span=2.0)
    assert walk.lines == ["z[1]"] and float(walk.decoded[0, :, 0].std()) < 1e-6
    assert float(walk.codes[0, -1, 1] - walk.codes[0, 0, 1]) == pytest.approx(4.0, rel=0.15)
    found = latent.arithmetic(program, [x[:1], x[1:2]], [x[2:3]])
    assert torch.allclose(found.decoded[0, -1], x[0] + x[1] - x[2], atol=0.1)
    assert found.steps == ["+", "+", "-", "="]


def test_neighbours_are_the_rows_with_the_nearest_codes():
    program = Independent((1.0, 1.0), scale=0.1)
    x = drawn(program, 200)
    near = latent.neighbours(program, x[:5], x, 4, metric="euclidean")
    expected = torch.cdist(x[:5], x).topk(4, largest=False).indices
    assert torch.equal(near.indices, expected) and torch.equal(near.indices[:, 0], torch.arange(5))
    angle = latent.neighbours(program, x[:5], 3 * x, 1)
    assert torch.equal(angle.indices[:, 0], torch.arange(5)) and float(angle.similarity.min()) > 0.999
    assert near.agreement(torch.zeros(200), torch.zeros(5)) == 1.0


# -- the report -----------------------------------------------------------------------------------------------------------


def test_the_report_holds_every_part_and_repeats_bit_for_bit(tmp_path):
    program = Chain()
    x = drawn(program, 300)
    first, again = (dgm.diagnose_latents(program, x, rows=50, gap_rows=0) for _ in range(2))
    assert set(first.parts) == {"units", "surgery", "prior", "levels"} and first.ok and str(first) == str(again)
    gaps = latent.inference_gaps(program, x, rows=5, steps=3, draws=10, evidence_draws=10)
    assert str(gaps) == str(latent.inference_gaps(program, x, rows=5, steps=3, draws=10, evidence_draws=10))
    gaps.plot(tmp_path / "gaps.svg")
    first.plot(tmp_path)
    assert {p.name for p in tmp_path.glob("*.png")} == {f"{name}.png" for name in first.parts}


def test_the_report_names_what_is_wrong():
    program = Independent((0.0, 0.0))
    found = dgm.diagnose_latents(program, drawn(program, 200), rows=100, gap_rows=0)
    assert not found.ok and "Posterior collapse" in str(found)


def test_digits_codes_of_a_categorical_program_are_diagnosed():
    digits = dgm.data.digits()
    torch.manual_seed(0)
    program = dgm.models.VAE(observed=64, values=17, latent=2, hidden=16)
    found = dgm.diagnose_latents(program, digits, rows=60, gap_rows=0)
    assert found.prior.contours is not None and len(found.units.table) == 2
    walk = latent.interpolate(program, digits.test[:2], digits.test[2:4], steps=4, shape=(8, 8))
    assert walk.decoded.shape == (2, 4, 64) and bool(((walk.decoded >= 0) & (walk.decoded <= 16)).all())
    walk.plot()


def test_what_cannot_be_diagnosed_is_refused_in_a_sentence():
    def lonely(x=None, n=1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", n if x is None else len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, n=1):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(TaskUnavailable, match="'z' does not lie in a plate 'data'"):
        latent.active_units(dgm.as_program(lonely, guide), torch.randn(5))
    with pytest.raises(TaskUnavailable, match="has no guide"):
        latent.active_units(lonely, torch.randn(5))
    with pytest.raises(DataError, match="at least 2 of each"):
        latent.prior_match(Independent(), torch.randn(2, 2))
    with pytest.raises(ProgramError, match="family must be"):
        latent.inference_gaps(Independent(), torch.randn(5, 2), family="banana")
    with pytest.raises(ProgramError, match="no unit 7"):
        latent.traverse(Independent(), torch.randn(5, 2), units=[7])
    with pytest.raises(ProgramError, match="path must be"):
        latent.interpolate(Independent(), torch.randn(1, 2), torch.randn(1, 2), path="zigzag")
