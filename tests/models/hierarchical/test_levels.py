"""Hierarchies of any depth: their sites and parts, and the bounds against linear Gaussian twins."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

import ppl_dgm as dgm
from ppl_dgm.models import BottomUpVAE, TopDownVAE

KINDS = (TopDownVAE, BottomUpVAE)
X = torch.randint(0, 4, (24, 5), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("latents", [(3, 2), (4, 3, 2), (2, 2, 2, 2)])
def test_every_level_is_a_site(kind: type, latents: tuple[int, ...]) -> None:
    program = kind(observed=5, values=4, latents=latents, hidden=8)
    drawn = dgm.sample(program, 7, seed=0)
    sizes = {f"z{level}": (7, size) for level, size in enumerate(latents, 1)}
    assert {name: tuple(value.shape) for name, value in drawn.items()} == {**sizes, "x": (7, 5)}
    assert dgm.score(program, X, seed=0, method=dgm.ImportanceWeighted(draws=4)).value.shape == (24,)
    before = dgm.score(program, X, seed=0).value.mean()
    dgm.learn(program, X, method=dgm.SVI(epochs=30, lr=1e-2), seed=0)
    assert dgm.score(program, X, seed=0).value.mean() > before + 0.1
    assert dgm.infer(program, X[:3], seed=0).draws["z1"].shape == (1, 1000, 3, latents[0])


@pytest.mark.parametrize("prior", ["mixture-of-gaussians", "flow", "vamp"])
def test_the_top_prior_is_exchangeable(prior: str) -> None:
    program = TopDownVAE(observed=5, values=4, latents=(3, 2), hidden=8, prior=prior, skip=True)
    dgm.learn(program, X, method=dgm.SVI(elbo="mean_field", epochs=2), seed=0)
    assert dgm.score(program, X, seed=0).value.isfinite().all()


def test_with_skip_every_level_reaches_the_decoder() -> None:
    for skip in (False, True):
        program = TopDownVAE(observed=5, values=4, latents=(3, 2, 2), hidden=8, skip=skip, norm=None).eval()
        z = [torch.randn(1, size, requires_grad=True) for size in (2, 2, 3)]  # from the top down
        reached = torch.autograd.grad(program.decode(z).sum(), z, allow_unused=True)
        assert [g is not None and bool(g.abs().sum() > 0) for g in reached] == [skip, skip, True]
        assert program.prior_1[0].in_features == (4 if skip else 2)


def linear_chain(kind: type) -> tuple[TopDownVAE | BottomUpVAE, MultivariateNormal]:
    """Three levels with linear networks and constant variances, float64: every site is jointly Gaussian."""
    torch.manual_seed(0)
    program = kind(observed=3, latents=(2, 2, 1), likelihood="gaussian", depth=0).double()
    with torch.no_grad():
        for network in (program.prior_1[0], program.prior_2[0]):
            network.weight[2:].zero_()
            network.weight[:2].normal_(std=0.4)
        program.decoder[0].weight.normal_(std=0.5)
        mean, covariance = torch.zeros(1).double(), torch.eye(1).double()
        for network in (program.prior_2[0], program.prior_1[0]):
            w, b = network.weight[:2], network.bias
            mean, covariance = w @ mean + b[:2], w @ covariance @ w.T + torch.diag(b[2:].exp())
        w, b, scale = program.decoder[0].weight, program.decoder[0].bias, program.likelihood.scale
        return program, MultivariateNormal(w @ mean + b, w @ covariance @ w.T + torch.diag(scale**2))


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_stay_below_the_evidence_of_three_linear_levels(kind: type) -> None:
    program, evidence = linear_chain(kind)
    generative = ("prior_", "decoder", "likelihood")
    for name, parameter in program.named_parameters():
        parameter.requires_grad_(not name.startswith(generative))
    torch.manual_seed(1)
    elbo = "mean_field" if kind is TopDownVAE else "trace"
    dgm.learn(program, evidence.sample((1000,)), method=dgm.SVI(elbo=elbo, epochs=12, lr=0.02), seed=0)
    x = evidence.sample((4,))
    exact = evidence.log_prob(x)
    bound = dgm.score(program, x, method=dgm.ELBO(draws=4000), seed=0)
    assert (bound.value < exact + 4 * bound.stderr).all()
    tight = dgm.score(program, x, method=dgm.ImportanceWeighted(draws=50_000), seed=0)
    assert ((tight.value - exact).abs() < 4 * tight.stderr + 1e-3).all()
    assert tight.stderr.max() < 0.1


def test_single_level_divergences_would_be_false_bottom_up() -> None:
    """KL(q(z_1 | x) || p(z_1 | z_2)) with both means taken at draws is not what the bound has."""
    program, evidence = linear_chain(BottomUpVAE)
    x = evidence.sample((1,))

    def gap(level: int, draws: Tensor, below: Tensor, above: Tensor) -> Tensor:
        """Closed form minus the log ratio at the draw, [draw]."""
        from ppl_dgm.models.hierarchical.bottom_up import gaussian

        q = gaussian(getattr(program, f"encoder_{level}")(below))
        p = gaussian(getattr(program, f"prior_{level}")(above))
        closed = torch.distributions.kl_divergence(q, p)
        return closed - (q.log_prob(draws) - p.log_prob(draws))

    with torch.no_grad():
        program.eval()
        draws = dgm.infer(program, x, method=dgm.Amortised(draws=40_000), seed=0).draws
        z1, z2 = (draws[name][0, :, 0] for name in ("z1", "z2"))
        difference = gap(1, z1, x.expand(len(z1), -1), z2)
    error = float(difference.std()) / math.sqrt(len(difference))
    assert abs(float(difference.mean())) > 8 * error


def test_refusals() -> None:
    for kind in KINDS:
        with pytest.raises(dgm.ProgramError, match="at least two positive numbers"):
            kind(observed=5, values=4, latents=(3,))
        with pytest.raises(dgm.ProgramError, match="depth"):
            kind(observed=5, values=4, depth=-1)
        with pytest.raises(dgm.ProgramError, match="prior 'hierarchical'"):
            kind(observed=5, values=4, prior="hierarchical")
    with pytest.raises(dgm.ProgramError, match="prior 'vamp' needs one latent level"):
        BottomUpVAE(observed=5, values=4, prior="vamp")
