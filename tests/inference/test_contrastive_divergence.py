"""Contrastive divergence against the exact gradient and the exact likelihood of small machines."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ppl_dgm as dgm
from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.inference.contrastive_divergence import ContrastiveDivergence
from ppl_dgm.models import RBM
from ppl_dgm.program import Program


def patterns(count: int) -> Tensor:
    """Two noisy patterns of eight bits: a mixture that no independent bits can follow."""
    side = torch.randint(0, 2, (count, 1))
    clean = torch.cat([side, side, 1 - side, side, 1 - side, 1 - side, side, 1 - side], 1)
    return clean ^ (torch.rand(count, 8) < 0.05).long()


def small_rbm() -> RBM:
    rbm = RBM(6, 4).double()
    with torch.no_grad():
        for parameter in rbm.parameters():
            parameter.copy_(0.8 * torch.randn_like(parameter))
    return rbm


def flat(gradients: Any) -> Tensor:
    return torch.cat([g.flatten() for g in gradients])


def test_the_gradient_tends_to_the_exact_one_as_k_grows() -> None:
    rbm = small_rbm()
    x = torch.bernoulli(torch.full((4, 6), 0.5)).double()
    parameters = list(rbm.parameters())
    exact = flat(torch.autograd.grad(-rbm.log_prob(x).mean(), parameters))
    errors = []
    for k in (1, 5, 60):
        gap = ContrastiveDivergence(k=k).objective(rbm, 4)
        error = flat(torch.autograd.grad(gap(x.repeat(10_000, 1)), parameters)) - exact
        errors.append(float(error.norm()))
    assert errors[0] > 3 * errors[2]  # CD-1 is biased
    assert errors[0] > errors[1]
    assert errors[2] < 0.02  # what 40,000 chains leave of Monte Carlo error


def test_the_negative_samples_are_constants() -> None:
    rbm = small_rbm()
    x = torch.bernoulli(torch.full((5, 6), 0.5)).double()
    torch.manual_seed(3)
    got = flat(torch.autograd.grad(ContrastiveDivergence(k=2).objective(rbm, 5)(x), list(rbm.parameters())))
    torch.manual_seed(3)
    drawn = rbm.gibbs(x, 2)
    loss = rbm.free_energy(x).mean() - rbm.free_energy(drawn).mean()
    assert torch.equal(got, flat(torch.autograd.grad(loss, list(rbm.parameters()))))


@pytest.mark.parametrize("backend", ["eager", "python"])
@pytest.mark.parametrize("persistent", [False, True])
def test_the_exact_likelihood_rises(persistent: bool, backend: str) -> None:
    data, valid = patterns(300), patterns(200)
    rbm = RBM(8, 3)
    method = ContrastiveDivergence(k=2, persistent=persistent, epochs=60, batch_size=50, lr=0.03, backend=backend)
    rbm.start(data)  # the best machine without weights, give or take the small random ones
    before = dgm.score(rbm, valid).mean().value
    fit = dgm.learn(rbm, data, valid=valid, method=method, seed=0)
    after = dgm.score(rbm, valid).mean().value
    assert before == pytest.approx(-8 * 0.693, abs=0.1)
    assert after > before + 2.5  # the mixture's own entropy is near 2.2 nats
    assert fit.cost.path == ("recorded" if backend == "eager" else "python")
    assert "exact" in fit.notes["valid"]
    assert -after == pytest.approx(fit.history["valid"].min(), abs=1e-4)


def test_persistent_chains_move_on_inside_a_recorded_graph() -> None:
    from ppl_dgm.graphs import recorded

    rbm = small_rbm()
    gap = ContrastiveDivergence(persistent=True, chains=7).objective(rbm, 5)
    chains = gap.live[0]  # type: ignore[attr-defined]
    assert chains.shape == (7, 6)

    def step(x: Tensor) -> Any:
        return torch.autograd.grad(gap(x), list(rbm.parameters()))

    replay = recorded(step, live=[*rbm.parameters(), chains])
    x = torch.zeros(5, 6).double()
    seen = []
    for _ in range(6):
        replay(x)
        seen.append(chains.clone())
    assert replay.path == "recorded"
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(seen))
    with torch.no_grad():
        for p in rbm.parameters():
            p.zero_()
        rbm.bias.fill_(50.0)  # the chains see parameters that change in place
    replay(x)
    assert (chains == 1).all()


def test_a_strangers_energy_model() -> None:
    class Bits(Program):
        """Independent bits with a sampler that never looks at where it stands; no likelihood is offered."""

        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(3))

        def free_energy(self, x: Tensor) -> Tensor:
            return -(x.float() @ self.bias)

        def gibbs(self, x: Tensor, sweeps: int = 1) -> Tensor:
            return torch.bernoulli(torch.sigmoid(self.bias).expand(x.shape)).detach()

    data = (torch.rand(400, 3) < torch.tensor([0.1, 0.5, 0.8])).float()
    bits = Bits()
    fit = dgm.learn(bits, data, valid=data, method=ContrastiveDivergence(epochs=120, lr=0.05), seed=0)
    assert torch.allclose(torch.sigmoid(bits.bias), data.mean(0), atol=0.05)
    assert "reconstruction" in fit.notes["valid"]


def test_larger_machines_are_validated_by_pseudo_likelihood() -> None:
    data = torch.bernoulli(torch.full((60, 18), 0.3))
    fit = dgm.learn(RBM(18, 16), data, valid=data, method=ContrastiveDivergence(epochs=2), seed=0)
    assert "pseudo" in fit.notes["valid"]


def test_default_seed_and_refusals() -> None:
    data = patterns(60)
    weights = []
    for _ in range(2):
        torch.manual_seed(1)
        rbm = RBM(8, 2)
        assert isinstance(rbm.default_method("learn"), ContrastiveDivergence)
        method = ContrastiveDivergence(persistent=True, epochs=3)
        weights.append(dgm.learn(rbm, data, method=method, seed=0).program.weight.clone())
    assert torch.equal(*weights)
    with pytest.raises(TaskUnavailable, match="free_energy"):
        dgm.learn(dgm.models.VAE(observed=8, likelihood="bernoulli"), data, method="contrastive-divergence")
    with pytest.raises(ProgramError, match="k must be"):
        ContrastiveDivergence(k=0)
    with pytest.raises(ProgramError, match="persistent"):
        ContrastiveDivergence(chains=5)
