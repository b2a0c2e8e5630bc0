"""GreedyLayerwise: stages that share parameters, never lower the bound, and leave lower levels alone."""

import itertools

import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.models import VAE, BottomUpVAE, MixtureOfGaussians

STAGE = dgm.SVI(epochs=40, lr=0.02, batch_size=128)


def data() -> torch.Tensor:
    """A sharp two-valued cause, which one Gaussian level describes badly and a second level sees."""
    generator = torch.Generator().manual_seed(0)
    sign = 2.0 * torch.randint(0, 2, (500, 1), generator=generator) - 1.0
    return 2.0 * sign * torch.ones(500, 3) + 0.2 * torch.randn((500, 3), generator=generator)


def program(depth: int = 2) -> BottomUpVAE:
    torch.manual_seed(0)
    return BottomUpVAE(
        3, latents=(2, 2), hidden=16, likelihood="gaussian", depth=depth, encoder_dropout=0.0, decoder_dropout=0.0
    )


def test_a_level_put_on_top_leaves_the_bound_as_it_was() -> None:
    deep, x = program(), data()[:20]
    deep.begin_stage(2)
    one = dgm.score(deep.stage(1), x, method=dgm.ImportanceWeighted(draws=30_000), seed=0)
    two = dgm.score(deep, x, method=dgm.ImportanceWeighted(draws=30_000), seed=1)
    assert isinstance(deep.stage(1), VAE) and deep.stage(2) is deep
    assert ((one.value - two.value).abs() < 5 * (one.stderr + two.stderr)).all()
    mine = {id(p) for p in deep.parameters()}
    found = [id(p) for level in (1, 2) for p in deep.stage_parameters(level)]
    assert set(found) == mine and len(found) == len(mine)


def test_each_stage_raises_the_bound_and_keeps_what_is_below() -> None:
    deep, x = program(), data()
    fit = dgm.learn(deep, x, method=dgm.GreedyLayerwise(STAGE), seed=0)
    bounds = fit.notes["bounds"]
    assert bounds[1] > bounds[0] + 0.01 and fit.cost.path == "recorded"
    assert fit.history.groupby("stage").size().tolist() == [40, 40]
    alone = program()
    dgm.learn(alone.stage(1), x, method=STAGE, seed=0)
    for name, value in alone.decoder.state_dict().items():
        assert torch.equal(value, deep.decoder.state_dict()[name])  # nothing of stage 2 has reached the first level
    for one, other in zip(alone.encoder_1.parameters(), deep.encoder_1.parameters(), strict=True):
        assert torch.equal(one, other) and other.requires_grad
    score = dgm.score(deep, x, seed=0).mean().value
    assert score > dgm.score(deep.stage(1), x, seed=0).mean().value + 0.01


def test_all_levels_together_at_the_end() -> None:
    method = dgm.GreedyLayerwise(STAGE, joint=dgm.SVI(epochs=10, lr=0.003))
    deep, x = program(), data()
    fit = dgm.learn(deep, x, valid=x[:100], method=method, seed=0)
    bounds = fit.notes["bounds"]
    assert len(bounds) == 3 and all(b >= a - 1e-6 for a, b in itertools.pairwise(bounds))
    assert fit.history["stage"].tolist() == 40 * [1] + 40 * [2] + 10 * [3]


def test_a_stage_that_makes_it_worse_is_taken_back() -> None:
    deep, x = program(), data()
    wild = dgm.GreedyLayerwise(STAGE, joint=dgm.SVI(epochs=2, lr=3.0, batch_size=None))
    fit = dgm.learn(deep, x, method=wild, seed=0)
    bounds = fit.notes["bounds"]
    assert bounds[2] == pytest.approx(bounds[1], abs=1e-6)


def test_refusals() -> None:
    with pytest.raises(dgm.TaskUnavailable, match="no levels to learn one by one"):
        dgm.learn(VAE(3, likelihood="gaussian"), data(), method="greedy-layerwise")
    with pytest.raises(dgm.TaskUnavailable, match="no levels"):
        dgm.learn(MixtureOfGaussians(3, 2), data(), method=dgm.GreedyLayerwise(STAGE))
    with pytest.raises(dgm.ProgramError, match="a stage needs a gradient learner"):
        dgm.learn(program(), data(), method=dgm.GreedyLayerwise("em"))
    with pytest.raises(dgm.ProgramError, match="checkpoint"):
        dgm.learn(program(), data(), method=dgm.GreedyLayerwise(dgm.SVI(checkpoint="somewhere")))
