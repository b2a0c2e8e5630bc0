"""DiffusionChain: its algebra, its bound against quadrature, both views of it, the mean with the bar lost."""

import math
from typing import Any

import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import ppl_dgm as dgm
from ppl_dgm.distributions import DiscretisedNormal
from ppl_dgm.errors import DataError, ProgramError, TaskUnavailable
from ppl_dgm.inference.denoising import Denoising
from ppl_dgm.models import DiffusionChain
from ppl_dgm.models.diffusion.schedules import SCHEDULES, NoiseSchedule, signal_fraction


@pytest.fixture
def double() -> Any:
    """Everything in float64, so that identities can be compared to many digits."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def shaken(chain: DiffusionChain, scale: float = 0.5) -> DiffusionChain:
    """An untrained network says the same of every input; this one says something."""
    with torch.no_grad():
        for parameter in chain.denoiser.network.last.parameters():
            parameter.copy_(scale * torch.randn_like(parameter))
    return chain.eval()


# -- the schedule --------------------------------------------------------------------------------------------


def test_the_published_linear_schedule() -> None:
    signal = signal_fraction("linear", 1000)
    assert float(signal[-1]) == pytest.approx(4.036e-5, rel=1e-3)
    assert float(signal[1]) == pytest.approx(1 - 1e-4)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 5, 50, 1000])
def test_schedules_fall_from_data_to_noise(name: str, steps: int) -> None:
    signal = signal_fraction(name, steps)
    assert len(signal) == steps + 1 and signal[0] == 1 and (signal.diff() < 0).all() and signal[-1] > 0
    if steps >= 50:
        assert signal[-1] < 1e-2
    proposal = NoiseSchedule(signal).proposal
    assert len(proposal) == steps and float(proposal.sum()) == pytest.approx(1, abs=1e-5) and (proposal > 0).all()


def test_stepwise_noising_is_noising_at_once(double: None) -> None:
    schedule = NoiseSchedule(signal_fraction("cosine", 30))
    mean, variance = torch.tensor(1.0), torch.tensor(0.0)
    for t in range(1, 31):
        mean = schedule.forward_mean[t] * mean
        variance = schedule.alpha[t] * variance + schedule.beta[t]
        assert torch.allclose(mean, schedule.root_signal[t]) and torch.allclose(variance, 1 - schedule.alpha_bar[t])


def test_the_posterior_of_a_step_is_bayes_rule(double: None) -> None:
    schedule = NoiseSchedule(signal_fraction("linear", 20))
    z0, z = torch.tensor([[0.7]]), torch.tensor([[-0.4]])
    grid = torch.linspace(-6, 6, 200_001)
    for step in (2, 7, 20):
        t = torch.tensor([step])
        logs = Normal(schedule.root_signal[step - 1] * z0, schedule.root_noise[step - 1]).log_prob(grid)
        logs = logs + Normal(schedule.forward_mean[step] * grid, schedule.forward_scale[step]).log_prob(z)
        weights = torch.softmax(logs.flatten(), 0)
        mean = (weights * grid).sum()
        assert torch.allclose(mean, schedule.posterior_mean(z, t, z0), atol=1e-7)
        variance = (weights * (grid - mean) ** 2).sum()
        assert torch.allclose(variance, schedule.posterior_variance[step], atol=1e-7)
        # with the true noise in place of a guess, the model's mean is the posterior's
        noise = (z - schedule.root_signal[step] * z0) / schedule.root_noise[step]
        assert torch.allclose(schedule.reverse_mean(z, t, noise), schedule.posterior_mean(z, t, z0))
        assert torch.allclose(schedule.denoised(schedule.noised(z0, t, noise), t, noise), z0)


def test_samples_keep_the_data_variance_and_lose_it_with_the_bar_lost(double: None) -> None:
    """N(0, 4) data, exact score: variance 3.975 with alpha-bar, 0.281 with the mean that some texts print."""
    schedule = NoiseSchedule(signal_fraction("linear", 1000))
    noise_of_z = schedule.root_noise / (4 * schedule.alpha_bar + 1 - schedule.alpha_bar)  # E[eps | z_t] = this z_t
    right, printed = torch.tensor(1.0), torch.tensor(1.0)
    for step in range(1000, 0, -1):
        z, t, fresh = torch.ones(1, 1), torch.tensor([step]), schedule.posterior_variance[step] * (step > 1)
        right = schedule.reverse_mean(z, t, noise_of_z[step] * z).squeeze() ** 2 * right + fresh
        lost = (1 - schedule.beta[step] / schedule.beta[step].sqrt() * noise_of_z[step]) / schedule.forward_mean[step]
        printed = lost**2 * printed + fresh
    assert float(right) == pytest.approx(3.975, abs=5e-3)
    assert float(printed) == pytest.approx(0.281, abs=5e-3)


# -- the bound -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", ["posterior", "forward"])
@pytest.mark.parametrize("denoiser", ["levels", "noise"])
def test_divergences_are_those_of_the_models_own_sites(denoiser: str, variance: str, double: None) -> None:
    chain = shaken(DiffusionChain(3, 5, steps=6, hidden=8, denoiser=denoiser, variance=variance))
    schedule, x = chain.schedule, torch.randint(0, 5, (4, 3))
    for step in range(2, 7):
        t, noise = torch.full((4,), step), torch.randn(4, 3)
        z = schedule.noised(chain.scaled(x), t, noise)
        known = Normal(schedule.posterior_mean(z, t, chain.scaled(x)), schedule.posterior_variance[step].sqrt())
        stepped = Normal(schedule.reverse_mean(z, t, chain.denoise(z, t)[0]), schedule.reverse_scale[step])
        expected = kl_divergence(known, stepped).sum(-1)
        assert torch.allclose(chain.divergence(x, t, noise), expected)
        assert torch.allclose(chain.step_losses(x, t, noise), expected)
    last = Normal(schedule.root_signal[-1] * chain.scaled(x), schedule.root_noise[-1])
    assert torch.allclose(chain.prior_loss(x), kl_divergence(last, Normal(0.0, 1.0)).sum(-1))


@pytest.mark.parametrize("variance", ["posterior", "forward"])
@pytest.mark.parametrize("denoiser", ["levels", "noise"])
def test_both_views_agree_and_stay_below_the_evidence(denoiser: str, variance: str, double: None) -> None:
    """Two steps in one dimension: ln p(x) by quadrature, the bound term by term, and Pyro's own ELBO."""
    chain = shaken(
        DiffusionChain(1, 4, steps=2, hidden=8, denoiser=denoiser, variance=variance),
        2.0 if denoiser == "levels" else 0.4,
    )
    chain.schedule = NoiseSchedule(torch.tensor([1.0, 0.7, 0.2]), variance)
    x = torch.arange(4)[:, None]
    evidence = _evidence_of_two_steps(chain)
    assert float(evidence.exp().sum()) == pytest.approx(1, abs=1e-6)
    score = chain.log_density(x, draws=20_000)
    assert score.kind == "lower_bound" and score.stderr is not None
    assert (score.value < evidence + 5 * score.stderr).all()
    with torch.no_grad(), chain.running():
        many = x.repeat(20_000, 1)
        drawn = poutine.trace(chain.run_guide).get_trace(many)
        story = poutine.trace(poutine.replay(chain.run_model, drawn)).get_trace(many)
        for trace in (drawn, story):
            trace.compute_log_prob()
        sites = ("z_1", "z_2")
        elbo = sum(story.nodes[s]["log_prob"] for s in (*sites, "x")) - sum(drawn.nodes[s]["log_prob"] for s in sites)
    elbo = elbo.unflatten(0, (20_000, 4))
    error = (elbo.var(0) / 20_000 + score.stderr**2).sqrt()
    assert ((elbo.mean(0) - score.value).abs() < 4.5 * error).all()
    assert (evidence - score.value).max() > 0.01  # the bound is not tight here, or the comparison would show nothing


def _evidence_of_two_steps(chain: DiffusionChain) -> Tensor:
    """ln p(x) for x = 0, ..., V - 1: the integral over z_2 and z_1 on a grid, [V]."""
    grid = torch.linspace(-12, 12, 1601)
    step = grid[1] - grid[0]
    z = grid[:, None]
    with torch.no_grad():
        two, one = torch.full((len(grid),), 2), torch.ones(len(grid), dtype=torch.long)
        mean = chain.schedule.reverse_mean(z, two, chain.denoise(z, two)[0])  # [z_2, 1]
        back = Normal(mean, chain.schedule.reverse_scale[2]).log_prob(grid[None])  # [z_2, z_1]
        first = torch.logsumexp(Normal(0.0, 1.0).log_prob(z) + back, 0) + step.log()  # ln p(z_1)
        decoded = chain.decoder(chain.denoise(z, one)[1])
        logs = torch.stack([decoded.log_prob(torch.full((len(grid), 1), k)) for k in range(chain.values or 0)])
    return torch.logsumexp(first + logs, -1) + step.log()


class LinearChain(DiffusionChain):
    """eps-hat = a_t z, x | z_1 a normal variable over cells: everything Gaussian but the cells."""

    slopes = (0.0, 0.6, 0.8, 0.95)

    def denoise(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.slopes)[t, None] * z, 2 + 1.5 * z

    def decoder(self, features: Tensor) -> Any:
        return DiscretisedNormal(features, torch.tensor(0.8), 5).to_event(1)


def test_the_bound_of_a_linear_chain_in_closed_form(double: None) -> None:
    chain = LinearChain(1, 5, steps=3)
    chain.schedule = schedule = NoiseSchedule(torch.tensor([1.0, 0.8, 0.4, 0.1]))
    x = torch.arange(5)[:, None]
    u, signal, rest = chain.scaled(x)[:, 0], schedule.alpha_bar, 1 - schedule.alpha_bar
    terms, _ = chain.bound(x, draws=50_000)
    for t in (2, 3):  # E||eps - a (sqrt(signal) u + sqrt(rest) eps)||^2
        a = chain.slopes[t]
        squared = (1 - a * rest[t].sqrt()) ** 2 + a**2 * signal[t] * u**2
        assert torch.allclose(terms[t - 1], schedule.kl_slope[t] * squared, rtol=0.03)
    nodes, weights = _hermite(60)
    z = signal[1].sqrt() * u[:, None] + rest[1].sqrt() * nodes  # [5, nodes]
    decoded = DiscretisedNormal(2 + 1.5 * z, torch.tensor(0.8), 5).log_prob(x)
    assert torch.allclose(terms[0], -(weights * decoded).sum(-1), rtol=0.03)
    # z_1 is Gaussian under the model, so the evidence is one integral
    variance = torch.tensor(1.0)
    for t in (3, 2):
        slope = (1 - schedule.beta[t] / rest[t].sqrt() * chain.slopes[t]) / schedule.forward_mean[t]
        variance = slope**2 * variance + schedule.reverse_scale[t] ** 2
    decoded = DiscretisedNormal(2 + 1.5 * variance.sqrt() * nodes, torch.tensor(0.8), 5).log_prob(x)
    evidence = (weights.log() + decoded).logsumexp(-1)
    assert float(evidence.exp().sum()) == pytest.approx(1)
    assert (-terms.sum(0) < evidence).all()


def _hermite(count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of a standard normal expectation."""
    import numpy as np

    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.tensor(nodes), torch.tensor(weights / math.sqrt(2 * math.pi))


@pytest.mark.parametrize("denoiser", ["levels", "noise"])
def test_the_denoising_loss_is_the_bound_on_average(denoiser: str, double: None) -> None:
    chain = shaken(DiffusionChain(2, 3, steps=12, hidden=8, denoiser=denoiser))
    x = torch.tensor([[0, 2], [1, 1]])
    terms, stderr = chain.bound(x, draws=4000)
    with torch.no_grad():
        losses = chain.denoising_loss(x.repeat(40_000, 1)).unflatten(0, (-1, 2))
        simple = chain.denoising_loss(x.repeat(40_000, 1), "simple").unflatten(0, (-1, 2))
    assert stderr is not None
    error = (losses.var(0) / len(losses) + stderr**2).sqrt()
    assert ((losses.mean(0) - terms.sum(0)).abs() < 4.5 * error).all()
    # the simple loss averages E||eps - eps-hat||^2 over t; for t >= 2 the divergences hold it
    many, noise, first = x.repeat(40_000, 1), torch.randn(80_000, 2), torch.ones(80_000, dtype=torch.long)
    with torch.no_grad():
        guess = chain.denoise(chain.schedule.noised(chain.scaled(many), first, noise), first)[0]
    errors = ((noise - guess) ** 2).sum(-1).unflatten(0, (-1, 2)).mean(0)
    errors = errors + (terms[1:-1] / chain.schedule.kl_slope[2:, None]).sum(0)
    assert torch.allclose(simple.mean(0), errors / 12, rtol=0.03)
    alone = chain.denoising_loss(x[:1]), chain.denoising_loss(x[:1])
    assert alone[0].shape == (1,) and alone[0] != alone[1]


def test_the_step_of_each_row_is_drawn_from_the_proposal() -> None:
    """Rows of one batch share one shift, yet each row alone visits every step as often as it should."""
    seen = []

    class Spy(DiffusionChain):
        def step_losses(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
            seen.append(t)
            return noise.sum(-1)

    chain = Spy(2, 3, steps=5)
    for _ in range(1200):
        chain.denoising_loss(torch.zeros(3, 2))
    steps = torch.stack(seen)  # [1200, 3]
    for row in range(3):
        share = torch.bincount(steps[:, row], minlength=6)[1:] / 1200
        assert torch.allclose(share, chain.schedule.proposal, atol=0.06)


# -- the verbs -----------------------------------------------------------------------------------------------


def test_both_denoisers_decode_to_distributions_over_levels(double: None) -> None:
    for name in ("levels", "noise"):
        chain = shaken(DiffusionChain(2, 3, steps=4, hidden=8, denoiser=name))
        z, first = torch.randn(5, 2), torch.ones(5, dtype=torch.long)
        decoded = chain.decoder(chain.denoise(z, first)[1])
        pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))
        mass = sum(decoded.log_prob(pair.expand(5, 2)).exp() for pair in pairs)
        assert torch.allclose(torch.as_tensor(mass), torch.ones(5))


def test_the_level_denoiser_is_bayes_rule_for_independent_pixels(double: None) -> None:
    """Under a silent network all levels are equally likely beforehand: eps-hat is the conditional mean."""
    chain = DiffusionChain(1, 5, steps=8, hidden=4, denoiser="levels").eval()
    schedule, levels = chain.schedule, torch.linspace(-1, 1, 5)
    z = torch.randn(6, 1)
    for step in (1, 4, 8):
        weights = torch.softmax(Normal(schedule.root_signal[step] * levels, schedule.root_noise[step]).log_prob(z), -1)
        noise = ((z - schedule.root_signal[step] * levels) / schedule.root_noise[step] * weights).sum(-1)
        assert torch.allclose(chain.denoise(z, torch.full((6,), step))[0][:, 0], noise)


def test_the_four_verbs() -> None:
    torch.manual_seed(0)
    side = torch.randint(0, 2, (300, 1))
    data = (side * 3 + torch.randint(0, 2, (300, 4))).clamp(0, 4)  # four pixels, all dark or all light
    chain = DiffusionChain(4, 5, steps=20, hidden=32)
    before = dgm.score(chain, data, seed=0).mean().value
    fit = dgm.learn(chain, data, valid=data, method=Denoising(epochs=40, batch_size=100, lr=5e-3), seed=0)
    assert fit.cost.path == "recorded" and "ELBO" in fit.objective
    score = dgm.score(chain, data, seed=0)
    assert score.kind == "lower_bound" and score.value.shape == (300,) and score.stderr is not None
    assert before < -6.0  # log 5 for each pixel, and a gap
    # five fair coins: log 2 each is the entropy; independent pixels have four times log 4
    assert -4.7 < score.mean().value < -5 * math.log(2)
    drawn = dgm.sample(chain, 500, seed=0)
    assert drawn["x"].shape == (500, 4) and drawn["z_20"].shape == (500, 4)
    light = (drawn["x"] >= 2.5).float().mean(-1)
    assert ((light == 0) | (light == 1)).float().mean() > 0.85  # independent pixels: 0.125
    assert 0.35 < light.mean() < 0.65
    assert torch.equal(dgm.sample(chain, 5, seed=3)["x"], dgm.sample(chain, 5, seed=3)["x"])
    posterior = dgm.infer(chain, data[:3], seed=0)
    assert posterior.draws["z_1"].shape[2:] == (3, 4)
    elbo = dgm.score(chain, data[:20], method="elbo", seed=0)
    assert elbo.kind == "lower_bound"


def test_simple_weighting_learns_too_and_seeds_repeat() -> None:
    data = torch.randint(0, 2, (100, 3)) * 4
    scores = []
    for _ in range(2):
        torch.manual_seed(0)
        chain = DiffusionChain(3, 5, steps=20, hidden=16, denoiser="noise")
        before = dgm.score(chain, data, seed=0).mean().value
        dgm.learn(chain, data, method=Denoising(epochs=30, weighting="simple", lr=5e-3), seed=0)
        scores.append(dgm.score(chain, data, seed=0).mean().value)
    assert scores[0] == scores[1] and scores[0] > before


def test_card_save_and_load(tmp_path: Any) -> None:
    chain = shaken(DiffusionChain(3, 4, steps=7, hidden=8))
    card = dgm.card(chain)
    assert card.passes == 7 and card.answers["sample"].passes == 7 and card.answers["score"].kind == "lower_bound"
    fit = dgm.learn(chain, torch.randint(0, 4, (40, 3)), method=Denoising(epochs=1), seed=0)
    fit.save(tmp_path)
    again = dgm.Fit.load(tmp_path).program
    x = torch.randint(0, 4, (5, 3))
    assert torch.equal(dgm.score(again, x, seed=0).value, dgm.score(chain, x, seed=0).value)


def test_refusals() -> None:
    for options, word in (
        ({"schedule": "square"}, "schedule"),
        ({"denoiser": "none"}, "denoiser"),
        ({"variance": "big"}, "variance"),
        ({"steps": 0}, "steps"),
        ({"values": 1}, "values"),
        ({"dropout": 1.0}, "dropout"),
    ):
        with pytest.raises(ProgramError, match=word):
            DiffusionChain(**{"observed": 3, "values": 4, **options})  # type: ignore[arg-type]
    chain = DiffusionChain(3, 4, steps=2)
    with pytest.raises(DataError):
        dgm.score(chain, torch.full((2, 3), 4))
    with pytest.raises(ProgramError, match="weighting"):
        chain.denoising_loss(torch.zeros(2, 3), "best")
    with pytest.raises(ProgramError, match="weighting"):
        Denoising(weighting="best")
    with pytest.raises(TaskUnavailable, match="denoising_loss"):
        dgm.learn(dgm.models.RBM(3, 2), torch.zeros(20, 3), method="denoising")
    with pytest.raises(ProgramError, match="fall strictly"):
        NoiseSchedule(torch.tensor([1.0, 0.5, 0.6]))
