"""HybridVAE: the joint density splits into its two factors; the weighted objective; learning with labels missing."""

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import ppl_dgm as dgm
from ppl_dgm.models import HybridVAE

X = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 2, -1, 1, -1])


def program(weight: float | None = None) -> HybridVAE:
    torch.manual_seed(0)
    return HybridVAE(3, 3, latent=2, hidden=8, likelihood="gaussian", depth=0, weight=weight).eval()


def test_the_joint_density_is_the_bound_on_x_and_the_exact_class() -> None:
    hybrid = program()
    with torch.no_grad():
        log_p = hybrid.logits(X).log_softmax(1)
    alone, joint = dgm.score(hybrid, X, seed=0).value, dgm.score(hybrid, X, Y, seed=0).value
    extra = torch.where(Y >= 0, log_p.gather(1, Y.clamp(min=0)[:, None])[:, 0], torch.zeros(5))
    torch.testing.assert_close(joint - alone, extra, atol=1e-5, rtol=0.0)
    every = torch.stack([dgm.score(hybrid, X, torch.full((5,), k), seed=0).value for k in range(3)])
    torch.testing.assert_close(every.logsumexp(0), alone, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(hybrid.classify(X).log(), log_p)
    w, b = hybrid.decoder[0].weight.detach(), hybrid.decoder[0].bias.detach()
    exact = MultivariateNormal(b, w @ w.T + torch.diag(hybrid.likelihood.scale.detach() ** 2)).log_prob(X)
    tight = dgm.score(hybrid, X, method=dgm.ImportanceWeighted(draws=100_000), seed=0)
    assert ((tight.value - exact).abs() < 5 * tight.stderr + 1e-3).all()


@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0, 3.0])
def test_the_objective_weighs_the_bound_on_x_alone(weight: float) -> None:
    hybrid = program(weight)
    method = dgm.PenalisedSVI(elbo="mean_field", weight=weight)
    with torch.no_grad(), hybrid.running():
        torch.manual_seed(0)
        found = method.objective(hybrid, 5)(X, Y)
        torch.manual_seed(0)
        bound = dgm.SVI(elbo="mean_field").objective(hybrid, 5)(X)
        classes = nn.functional.cross_entropy(hybrid.logits(X), Y, ignore_index=-1, reduction="sum") / 5
    torch.testing.assert_close(found, weight * bound + classes)


def test_unlabelled_examples_say_nothing_to_the_classifier() -> None:
    hybrid = program(0.5)
    with hybrid.running():
        loss = dgm.PenalisedSVI(elbo="mean_field", weight=0.5).objective(hybrid, 5)(X, torch.full((5,), -1))
    gradients = torch.autograd.grad(loss, list(hybrid.classifier.parameters()), allow_unused=True)
    assert all(g is None or not bool(g.any()) for g in gradients)


def test_it_learns_both_tasks_from_half_of_the_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (200,), generator=generator)
    x = torch.randn((200, 4), generator=generator) + 3.0 * (2 * y[:, None] - 1)
    told = torch.where(torch.arange(200) % 2 == 0, y, -1)
    hybrid = HybridVAE(4, 2, latent=2, hidden=16, likelihood="gaussian", weight=0.25)
    before = dgm.score(hybrid, x, y, seed=0).mean().value
    method = dgm.PenalisedSVI(elbo="mean_field", weight=0.25, epochs=25, lr=0.01)
    fit = dgm.learn(hybrid, x, told, method=method, seed=0)
    assert fit.cost.path == "recorded"
    assert float((hybrid.classify(x).argmax(1) == y).double().mean()) > 0.97
    assert dgm.score(hybrid, x, y, seed=0).mean().value > before + 5.0
    drawn = dgm.sample(hybrid, 400, seed=0)
    right = hybrid.classify(drawn["x"]).gather(1, drawn["y"][:, None]).mean()
    assert float(right) > 0.9  # its classes go with its examples


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(dgm.TaskUnavailable, match="'y' depends on"):
        dgm.sample(program(), 3, given={"y": torch.tensor(1)})
    with pytest.raises(dgm.ProgramError, match="weight"):
        program(-1.0)
    with pytest.raises(dgm.DataError, match=r"y\[0\] is 3"):
        dgm.score(program(), X, Y + 3)


def test_the_default_weight_is_one_over_the_dimensions() -> None:
    hybrid = program()
    assert hybrid.weight == pytest.approx(1 / 3) and hybrid.default_method("learn").weight == hybrid.weight
    assert isinstance(hybrid.penalty(X), Tensor) and float(hybrid.penalty(X)) == 0.0
