"""WrappedNormal: its mass on the disc, draws against it, distances, invariance under motions, and programs with such codes."""

import math

import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.distributions import WrappedNormal
from ppl_dgm.distributions.wrapped_normal import from_tangent, moved, to_tangent
from ppl_dgm.errors import ProgramError
from ppl_dgm.models import VAE


def disc(far=14.0, rings=400, turns=240):
    """Points of the disc and the area around each."""
    r = (torch.arange(rings, dtype=torch.float64) + 0.5) * far / rings
    t = torch.arange(turns, dtype=torch.float64) * 2 * math.pi / turns
    radius = (r / 2).tanh()
    area = radius * 0.5 / (r / 2).cosh().square() * far / rings * 2 * math.pi / turns
    return (radius[:, None, None] * torch.stack([t.cos(), t.sin()], -1)).flatten(0, 1), area.repeat_interleave(turns)


CASES = [((0.0, 0.0), (1.0, 1.0)), ((0.5, -0.3), (0.6, 1.2)), ((-0.9, 0.1), (0.3, 0.5))]


@pytest.mark.parametrize("loc, scale", CASES)
def test_the_density_integrates_to_one_and_draws_follow_it(loc, scale):
    torch.manual_seed(0)
    fn = WrappedNormal(torch.tensor(loc).double(), torch.tensor(scale).double())
    points, area = disc()
    mass = fn.log_prob(points).exp() * area
    assert float(mass.sum()) == pytest.approx(1, abs=1e-4)
    z = fn.sample((40_000,))
    for f in (lambda z: z[..., 0], lambda z: z[..., 1].square(), lambda z: torch.sin(5 * z[..., 0] + z[..., 1])):
        assert abs(float(f(z).mean() - (mass * f(points)).sum())) < 4.5 * float(f(z).std()) / 200 + 1e-3
    # exactly what is remembered of a draw
    torch.testing.assert_close(fn.log_prob(z), fn.log_prob(z.clone()), atol=1e-6, rtol=0)


def test_in_three_dimensions_by_change_of_variables():
    torch.manual_seed(0)
    loc, scale = torch.tensor([0.4, -0.2, 0.1]).double(), torch.tensor([0.5, 1.0, 0.8]).double()
    v = scale * torch.randn(3).double()
    jacobian = torch.autograd.functional.jacobian(lambda v: moved(loc, from_tangent(v)), v)
    expected = torch.distributions.Normal(0.0, scale).log_prob(v).sum() - torch.linalg.slogdet(jacobian).logabsdet
    found = WrappedNormal(loc, scale).log_prob(moved(loc, from_tangent(v)))
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_motions_keep_distances_and_undo_each_other():
    torch.manual_seed(0)
    x, y, a = (0.6 * torch.nn.functional.normalize(torch.randn(50, 3).double(), dim=-1) for _ in range(3))
    torch.testing.assert_close(moved(-x, moved(x, y)), y)
    torch.testing.assert_close(to_tangent(from_tangent(3 * y)), 3 * y)
    tiny = 1e-5 * y
    torch.testing.assert_close(to_tangent(from_tangent(tiny)), tiny, rtol=1e-9, atol=0)

    def distance(x, y):
        return to_tangent(moved(-x, y)).norm(dim=-1)

    torch.testing.assert_close(distance(moved(a, x), moved(a, y)), distance(x, y))
    by_arcosh = torch.acosh(1 + 2 * (x - y).square().sum(-1) / (1 - 0.36) ** 2)  # |x| = |y| = 0.6
    torch.testing.assert_close(distance(x, y), by_arcosh)


def test_single_precision_stays_inside_and_finite():
    torch.manual_seed(0)
    loc = from_tangent(torch.tensor([[6.0, 0.0], [0.0, 0.0]])).requires_grad_()
    scale = torch.tensor([[1.6, 1.6], [20.0, 20.0]], requires_grad=True)
    fn = WrappedNormal(loc, scale)
    z = fn.rsample((2000,))
    assert fn.support.check(z).all() and fn.log_prob(z).isfinite().all() and fn.log_prob(z.clone()).isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(fn.log_prob(z).sum() + z.sum(), [loc, scale]))


def test_a_vae_with_hyperbolic_codes_scores_by_quadrature_and_learns():
    torch.manual_seed(0)
    program = VAE(3, values=2, latent=2, hidden=16, posterior="wrapped-normal", decoder_dropout=0.0).double().eval()
    states = torch.cartesian_prod(*[torch.arange(2)] * 3)
    points, area = disc(rings=120, turns=60)
    with torch.no_grad():
        log_p = torch.stack(
            [program.likelihood(program.decode(points)).log_prob(s.expand(len(points), 3)) for s in states]
        )
        exact = (log_p + program.prior_of_z.distribution().log_prob(points) + area.log()).logsumexp(-1)
    score = dgm.score(program, states, method=dgm.ImportanceWeighted(draws=20_000), seed=0)
    assert ((score.value - exact).abs() < 5 * score.stderr + 1e-3).all()
    x = torch.randint(0, 2, (60, 1)).expand(60, 3)
    before = dgm.score(program, x, seed=0).value.mean()
    dgm.learn(program, x, method=dgm.SVI(elbo="mean_field", epochs=60, batch_size=20, lr=1e-2), seed=0)
    assert dgm.score(program, x, seed=0).value.mean() > before + 0.3


def test_refusals_name_the_remedy():
    with pytest.raises(ProgramError, match="different spaces"):
        VAE(3, values=2, latent=2, hidden=8, prior="hyperbolic")
    with pytest.raises(ProgramError, match="scale is 0"):
        VAE(3, values=2, latent=2, hidden=8, posterior="wrapped-normal", prior_options={"scale": 0.0})
    learned = VAE(3, values=2, latent=2, posterior="wrapped-normal", prior_options={"scale": 2.0, "learned": True})
    assert learned.prior_of_z.log_scale.item() == pytest.approx(math.log(2.0))
