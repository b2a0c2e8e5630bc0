"""Adversarial: the game itself, on a program that makes normal numbers and a discriminator that can be perfect."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_dgm as dgm
from ppl_dgm.errors import ProgramError, TaskUnavailable


class Squares(nn.Module):
    """Log odds quadratic in x, as those of two normal distributions are."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x):  # [batch, 1]
        return self.linear(torch.cat([x, x.square()], -1))


class Maker(dgm.Program):
    """x = loc + exp(log_scale) e, e ~ N(0, 1), without a density that it would be learned by."""

    def __init__(self, pays: float = 0.0) -> None:
        super().__init__()
        self.pays = pays
        self.loc, self.log_scale = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.discriminator = Squares()

    def model(self, x=None, n=1):
        with pyro.plate("data", n if x is None else len(x)):
            return pyro.sample("x", dist.Normal(self.loc, self.log_scale.exp()).to_event(1), obs=x)

    def play(self, x):
        loss = self.pays * (self.loc - 1).square().expand(len(x)) if self.pays else None
        return x, self.loc + self.log_scale.exp() * torch.randn_like(x), loss


DATA = 1.5 + 0.6 * torch.randn((512, 1), generator=torch.Generator().manual_seed(0))
METHOD = dgm.Adversarial(epochs=110, batch_size=128, lr=0.02, schedule="cosine", turns=4, average=0.99)


@pytest.mark.parametrize("game", ["non-saturating", "saturating", "least-squares", "hinge"])
def test_the_program_learns_to_make_what_it_should(game):
    from dataclasses import replace

    program = Maker()
    fit = dgm.learn(program, DATA, method=replace(METHOD, game=game, gradient_penalty=0.3), seed=0)
    assert float(program.loc.detach()) == pytest.approx(float(DATA.mean()), abs=0.15)
    assert float(program.log_scale.detach().exp()) == pytest.approx(float(DATA.std()), abs=0.2)
    assert fit.cost.path == "recorded" and fit.cost.steps == 110 * 4
    if game.endswith("saturating"):  # D can hardly tell them apart any more
        assert fit.history["discriminator"].iloc[-10:].mean() == pytest.approx(2 * math.log(2), abs=0.05)


def test_a_discriminator_that_knows_nothing_loses_two_log_two():
    program = Maker()
    fit = dgm.learn(program, DATA, method=dgm.Adversarial(epochs=1, batch_size=None, rate=1e-9), seed=0)
    assert fit.history["discriminator"][0] == pytest.approx(2 * math.log(2), abs=1e-6)
    assert float(program.discriminator.linear.weight.abs().max()) < 1e-6  # its rate is its own


def test_left_to_play_alone_the_discriminator_finds_the_log_odds():
    program = Maker()
    program.loc.requires_grad_(False), program.log_scale.requires_grad_(False)
    method = dgm.Adversarial(epochs=200, batch_size=None, lr=0.05, schedule="cosine", average=0.99, turns=3)
    with pytest.raises(RuntimeError):  # nobody makes anything
        dgm.learn(program, DATA, method=method, seed=0)
    program.log_scale.requires_grad_(True)
    x = torch.linspace(0, 2, 9)[:, None]
    dgm.learn(program, DATA.repeat(8, 1), method=dgm.Adversarial(**{**vars(method), "weight": 0.0}), seed=0)
    odds = dist.Normal(DATA.mean(), DATA.std()).log_prob(x) - dist.Normal(0.0, 1.0).log_prob(x)
    assert torch.allclose(program.discriminator(x), odds, atol=0.35)


def test_a_run_taken_up_again_is_the_run_that_was_never_stopped(tmp_path):
    file, options = tmp_path / "run.pt", {"batch_size": 64, "lr": 0.02, "turns": 2}
    whole, parted = Maker(), Maker()
    dgm.learn(whole, DATA, method=dgm.Adversarial(epochs=6, **options), seed=0)
    dgm.learn(parted, DATA, method=dgm.Adversarial(epochs=3, checkpoint=file, **options), seed=0)
    again = Maker()
    dgm.learn(again, DATA, method=dgm.Adversarial(epochs=6, checkpoint=file, **options), seed=9)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_penalty_is_the_squared_slope_at_real_ones():
    from ppl_dgm.inference.adversarial import _Game

    program = Maker()
    with torch.no_grad():
        program.discriminator.linear.weight.copy_(torch.tensor([[0.7, -0.2]]))
    total, game = _Game(dgm.Adversarial(gradient_penalty=3.0), program).judge(DATA)
    assert float(total - game) == pytest.approx(1.5 * float((0.7 - 0.4 * DATA).square().mean()), rel=1e-4)


def test_a_loss_is_weighed_against_the_game_and_is_what_validation_compares():
    program = Maker(pays=5.0)
    fit = dgm.learn(
        program, DATA, valid=DATA[:50], method=dgm.Adversarial(epochs=25, batch_size=64, lr=0.03, weight=0.0), seed=0
    )
    assert float(program.loc.detach()) == pytest.approx(1.0, abs=0.05)
    assert fit.history["valid"].iloc[-1] == pytest.approx(5 * float((program.loc.detach() - 1) ** 2), abs=0.01)


def test_what_cannot_play_is_refused():
    with pytest.raises(TaskUnavailable, match="no discriminator"):
        dgm.learn(dgm.models.VAE(1, latent=1, hidden=4, likelihood="gaussian"), DATA, method="adversarial")
    with pytest.raises(TaskUnavailable, match="nothing to compare"):
        dgm.learn(Maker(), DATA, valid=DATA, method=dgm.Adversarial(epochs=1))
    with pytest.raises(ProgramError, match="game must be"):
        dgm.Adversarial(game="chess")
    with pytest.raises(ProgramError, match="cannot take turns"):
        from pyro.optim import Adam

        dgm.learn(Maker(), DATA, method=dgm.Adversarial(optim=Adam({"lr": 0.1})))

    class Askew(Maker):
        def play(self, x):
            return x, x.repeat(2, 1), None

    with pytest.raises(ProgramError, match="must be alike"):
        dgm.learn(Askew(), DATA, method="adversarial")
