"""SigmoidBeliefNetwork: its layered sum against all joint states, and every way to learn it against the exact density."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import ppl_dgm as dgm
from ppl_dgm.models import SigmoidBeliefNetwork

PATTERNS = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [1, 0, 1, 0, 1, 0]])
DATA = PATTERNS.repeat(40, 1)


def network(latents: tuple[int, ...] = (4, 3), **options: Any) -> SigmoidBeliefNetwork:
    torch.manual_seed(0)
    program = SigmoidBeliefNetwork(6, latents, **options)
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.add_(torch.randn_like(parameter))
    return program


def bits(size: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=size)))


def by_every_state(program: SigmoidBeliefNetwork, x: Tensor) -> Tensor:
    """log p(x), a sum over all joint states of all layers."""
    total = []
    for state in bits(sum(program.latents)):
        z = list(state.split(list(program.latents)))
        log_p = torch.distributions.Bernoulli(logits=program.top).log_prob(z[-1]).sum()
        for level in range(len(z) - 1, 0, -1):
            log_p = (
                log_p + torch.distributions.Bernoulli(logits=program.down[level](z[level])).log_prob(z[level - 1]).sum()
            )
        total.append(log_p + torch.distributions.Bernoulli(logits=program.down[0](z[0])).log_prob(x).sum(-1))
    return torch.stack(total).logsumexp(0)


@pytest.mark.parametrize("latents", [(3,), (4, 3), (2, 3, 2)])
def test_the_density_is_the_sum_over_all_states(latents: tuple[int, ...]) -> None:
    program = network(latents).double()
    x = bits(6).double()
    score = dgm.score(program, x)
    with torch.no_grad():
        torch.testing.assert_close(
            score.value, by_every_state(program.float(), x.float()).double(), atol=1e-4, rtol=0.0
        )
    assert score.kind == "exact" and float(score.value.logsumexp(0)) == pytest.approx(0.0, abs=1e-6)


def test_draws_follow_the_density() -> None:
    program = network()
    drawn = dgm.sample(program, 40_000, seed=0)["x"]
    codes = (drawn.long() * 2 ** torch.arange(5, -1, -1)).sum(1)
    shares = torch.bincount(codes, minlength=64) / 40_000
    exact = dgm.score(program, bits(6)).value.exp()
    assert ((shares - exact).abs() < 5 * (exact * (1 - exact) / 40_000).sqrt() + 1e-4).all()


def test_the_bound_of_wide_layers_tends_to_the_sum() -> None:
    program = network()
    wide = SigmoidBeliefNetwork(6, (4, 3), exact_up_to=6)
    wide.load_state_dict(program.state_dict())
    exact = dgm.score(program, PATTERNS).value
    assert dgm.score(wide, PATTERNS, seed=0).kind == "lower_bound" == wide.answers()["score"].kind
    tight = dgm.score(wide, PATTERNS, method=dgm.ImportanceWeighted(draws=50_000), seed=0)
    assert ((tight.value - exact).abs() < 5 * tight.stderr + 1e-3).all()
    with pytest.raises(dgm.TaskUnavailable, match="too many states"):
        dgm.learn(wide, DATA, method="maximum-likelihood")


LEARNERS = {
    "wake-sleep": dgm.WakeSleep(epochs=60, batch_size=None, lr=0.05),
    "reweighted wake-sleep": dgm.WakeSleep(particles=5, guide="both", epochs=60, batch_size=None, lr=0.05),
    "vimco": dgm.IWAE(particles=5, gradient="vimco", epochs=60, batch_size=None, lr=0.05),
    "score function": dgm.SVI(elbo="graph", particles=2, epochs=60, batch_size=None, lr=0.05, backend="python"),
    "exact": dgm.MaximumLikelihood(epochs=60, batch_size=None, lr=0.05),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_raises_the_exact_density(name: str) -> None:
    torch.manual_seed(0)
    program = SigmoidBeliefNetwork(6, (4, 2))
    before = dgm.score(program, DATA).mean().value
    dgm.learn(program, DATA, method=LEARNERS[name], seed=0)
    after = dgm.score(program, DATA).mean().value
    assert after > before + 0.8
    bound = dgm.score(program, PATTERNS, method=dgm.ImportanceWeighted(draws=500), seed=0)
    assert (bound.value < dgm.score(program, PATTERNS).value + 4 * bound.stderr + 1e-3).all()


def test_a_layer_put_on_top_changes_nothing_until_it_learns() -> None:
    program = network((3, 3, 2))
    for level in (2, 3):
        program.begin_stage(level)
        assert torch.allclose(
            program.stage(level).log_prob(PATTERNS), program.stage(level - 1).log_prob(PATTERNS), atol=1e-5
        )
    mine = {id(p) for p in program.parameters()}
    found = [id(p) for level in (1, 2, 3) for p in program.stage_parameters(level)]
    assert set(found) == mine and len(found) == len(mine)


def test_greedy_layers_never_lower_their_bound() -> None:
    program = SigmoidBeliefNetwork(6, (3, 3, 2), recognition=(8,))
    stage = dgm.WakeSleep(particles=10, guide="wake", epochs=40, batch_size=None, lr=0.03)
    fit = dgm.learn(program, DATA, method=dgm.GreedyLayerwise(stage), seed=0)
    bounds = fit.notes["bounds"]
    assert (
        len(bounds) == 3 and all(b >= a - 1e-6 for a, b in itertools.pairwise(bounds)) and bounds[-1] > bounds[0] + 1e-3
    )
    assert float(dgm.score(program, DATA).mean().value) > bounds[-1] - 0.05  # a bound, estimated


def test_refusals() -> None:
    for options, words in (
        ({"latents": ()}, "latents"),
        ({"latents": (3, 0)}, "latents"),
        ({"exact_up_to": -1}, "exact_up_to"),
    ):
        with pytest.raises(dgm.ProgramError, match=words):
            SigmoidBeliefNetwork(4, **options)
    with pytest.raises(dgm.ProgramError, match="observed"):
        SigmoidBeliefNetwork(0)
    with pytest.raises(dgm.DataError, match=r"x\[0, 0\]"):
        dgm.score(network(), torch.full((2, 6), 2))
