"""Priors over latent vectors: mass one by quadrature, draws against densities, use in programs, printed mistakes."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import biject_to, kl_divergence

import ppl_dgm as dgm
from ppl_dgm.batched import batched_runs
from ppl_dgm.distributions import FiniteMixture, UniformOnSphere, VonMisesFisher
from ppl_dgm.models.latent.priors import PRIORS
from ppl_dgm.models.latent.priors.gtm import grid_points

OBSERVED = 3
# options that keep networks small; every density here lives on the plane
PLANE: dict[str, dict[str, Any]] = {
    "standard": {},
    "mixture-of-gaussians": {"components": 5, "spread": 1.5},
    "vamp": {"components": 4},
    "weighted-vamp": {"components": 4},
    "gtm": {"points": 3, "hidden": 8},
    "gtm-vamp": {"points": 3, "hidden": 8, "span": 3.0, "low": -3.0, "high": 3.0},
    "flow": {"flows": 3, "hidden": 8},
    "autoregressive": {"components": 3, "hidden": 8},
    "resampled": {"tries": 6, "hidden": 8},
}
LINE = torch.linspace(-12, 12, 401, dtype=torch.float64)
GRID = torch.cartesian_prod(LINE, LINE)
CELL = float(LINE[1] - LINE[0]) ** 2


def made(name: str, seed: int = 1) -> tuple[Any, Callable[[Tensor], Any]]:
    """A prior whose parameters have left their first values, in float64, and an encoder."""
    torch.manual_seed(seed)
    needs = {"observed": OBSERVED} if PRIORS[name].needs_encoder else {}
    prior = PRIORS[name](2, **needs, **PLANE.get(name, {})).double().eval()
    encoder = nn.Sequential(nn.Linear(OBSERVED, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    with torch.no_grad():
        encoder[0].weight.mul_(4)
        encoder[2].weight.mul_(2)
        for parameter in prior.parameters():
            parameter.add_((0.2 if name == "flow" else 0.5) * torch.randn_like(parameter))

    def encode(x: Tensor) -> Any:
        loc, raw = encoder(x).chunk(2, -1)
        return dist.Normal(3 * loc, 0.3 + 0.3 * nn.functional.softplus(raw)).to_event(1)

    return prior, encode


def mass(log_prob: Callable[[Tensor], Tensor]) -> float:
    """The integral of a density on the plane; sums on a fine grid converge faster than any power of its width."""
    with torch.no_grad():
        return float(log_prob(GRID).exp().sum() * CELL)


def assert_draws_follow(log_prob: Callable[[Tensor], Tensor], draws: Tensor) -> None:
    """Frequencies in 8 x 8 squares of side 1 around the origin against integrals of the density."""
    fine = torch.linspace(-4, 4, 321, dtype=torch.float64)
    middle = (fine[1:] + fine[:-1]) / 2
    with torch.no_grad():
        density = log_prob(torch.cartesian_prod(middle, middle)).exp().view(8, 40, 8, 40)
    expected = density.sum((1, 3)) * float(fine[1] - fine[0]) ** 2
    place = (draws + 4).floor()
    inside = ((place >= 0) & (place < 8)).all(-1)
    index = (place[inside] @ torch.tensor([8.0, 1.0], dtype=draws.dtype)).long()
    seen = torch.bincount(index, minlength=64).view(8, 8).double() / len(draws)
    error = (expected * (1 - expected) / len(draws)).sqrt()
    assert ((seen - expected).abs() < 4.5 * error + 2 / len(draws)).all()


def printed_factorised(prior: FiniteMixture, z: Tensor) -> Tensor:
    """Listings 5.7 to 5.10: the sum over components is taken for each entry of z, and the entries are added up then."""
    base = prior.components.base_dist
    each = dist.Normal(base.loc, base.scale, validate_args=False).log_prob(z.unsqueeze(-2))  # [..., K, L]
    return torch.logsumexp(each + torch.log_softmax(prior.logits, -1).unsqueeze(-1), -2).sum(-1)


@pytest.mark.parametrize("name", PLANE)
def test_densities_have_mass_one(name: str) -> None:
    prior, encode = made(name)
    p = prior.distribution(encode)
    assert (p.batch_shape, p.event_shape) == ((), (2,))
    assert p.log_prob(GRID[:3]).dtype == torch.float64
    tolerance = 1e-3 if name == "resampled" else 1e-6  # whose normaliser comes from Sobol points
    assert mass(p.log_prob) == pytest.approx(1.0, abs=tolerance)


@pytest.mark.parametrize("name", PLANE)
def test_draws_follow_their_density(name: str) -> None:
    prior, encode = made(name)
    p = prior.distribution(encode)
    draws = p.sample(torch.Size([20_000]))
    assert draws.shape == (20_000, 2)
    assert_draws_follow(p.log_prob, draws)
    many = p.expand(torch.Size([5]))
    assert many.sample(torch.Size([3])).shape == (3, 5, 2)
    assert many.log_prob(draws[0]).shape == (5,)
    torch.testing.assert_close(many.log_prob(draws[:5]), p.log_prob(draws[:5]))
    again = batched_runs(lambda: p.expand(torch.Size([4])).sample(), 5000).flatten(0, 1)
    assert_draws_follow(p.log_prob, again)


@pytest.mark.parametrize("name", PLANE)
def test_gradients_reach_every_parameter(name: str) -> None:
    prior, encode = made(name)
    prior.train()
    z = (3 * torch.randn(50, 2, dtype=torch.float64)).requires_grad_()
    p = prior.distribution(encode)
    p.log_prob(z).sum().backward()
    assert z.grad is not None and z.grad.isfinite().all()
    for key, parameter in prior.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0 or parameter.numel() == 1, key
    assert torch.equal(biject_to(p.support)(z), z)  # samplers move in the same coordinates


class Noisy(dgm.Program):
    """z ~ prior, x ~ N(z, 1): its evidence is a convolution on the plane."""

    def __init__(self, prior: Any, encode: Any) -> None:
        super().__init__()
        self.prior_of_z, self.encode, self.observed = prior, encode, 2
        self.loc = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", self.prior_of_z.distribution(self.encode))
            return pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, n: int = 1) -> Tensor:
        with pyro.plate("data", len(x)):
            return pyro.sample("z", dist.Normal(0.6 * x + self.loc, 1.2).to_event(1))


@pytest.mark.parametrize("name", PLANE)
def test_a_program_with_this_prior(name: str) -> None:
    prior, encode = made(name)
    program = Noisy(prior, encode)
    x = dgm.sample(program, 6, seed=0)["x"].double()
    score = dgm.score(program, x, method=dgm.ImportanceWeighted(draws=20_000), seed=0)
    with torch.no_grad():
        log_joint = prior.distribution(encode).log_prob(GRID) + dist.Normal(x[:, None], 1.0).log_prob(GRID).sum(-1)
        exact = log_joint.logsumexp(-1) + math.log(CELL)
    slack = 2e-3 if name == "resampled" else 1e-4
    assert ((score.value - exact).abs() < 4.5 * score.stderr + slack).all()
    fit = dgm.learn(program, x, method=dgm.SVI(elbo="mean_field", epochs=3, batch_size=3), seed=0)
    assert fit.history["objective"].notna().all()


@pytest.mark.parametrize("name", PLANE)
def test_device_and_type_follow_the_module(name: str, device: torch.device) -> None:
    prior, encode = made(name)
    prior = prior.float().to(device)

    def as_prior(x: Tensor) -> Any:
        q = encode(x.cpu().double())
        return dist.Normal(q.base_dist.loc.float().to(device), q.base_dist.scale.float().to(device)).to_event(1)

    p = prior.distribution(as_prior)
    z = p.sample(torch.Size([3]))
    assert z.device.type == p.log_prob(z).device.type == device.type
    assert z.dtype == p.log_prob(z).dtype == torch.float32


@pytest.mark.parametrize("name", PLANE)
def test_no_tensor_strays_to_another_device(name: str) -> None:
    """The meta device has shapes and no values: whatever is made elsewhere on the way does not go with it."""
    prior, _ = made(name)
    prior = prior.float().to("meta")
    with pyro.validation_enabled(False):
        p = prior.distribution(lambda x: dist.Normal(x[:, :2], 1 + x[:, 1:].square()).to_event(1))
        assert p.log_prob(torch.zeros(7, 2, device="meta")).device.type == "meta"
        assert p.sample(torch.Size([5])).device.type == "meta"


# -- mixtures -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixture-of-gaussians", "vamp", "weighted-vamp", "gtm", "gtm-vamp"])
def test_components_are_densities_of_whole_vectors(name: str) -> None:
    """The printed sum of one-dimensional mixtures has mass one too, but is another density than that of the draws."""
    prior, encode = made(name)
    p = prior.distribution(encode)
    z = 2 * torch.randn(20, 2, dtype=torch.float64)
    weights = torch.softmax(p.logits, -1)
    by_hand = sum(
        weight * torch.distributions.MultivariateNormal(loc, scale.square().diag()).log_prob(z).exp()
        for weight, loc, scale in zip(weights, p.components.base_dist.loc, p.components.base_dist.scale, strict=True)
    )
    torch.testing.assert_close(p.log_prob(z).exp(), by_hand)
    assert mass(lambda z: printed_factorised(p, z)) == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(AssertionError):
        assert_draws_follow(lambda z: printed_factorised(p, z), p.sample(torch.Size([20_000])))


def test_two_modes_do_not_make_four() -> None:
    prior = PRIORS["mixture-of-gaussians"](2, components=2).double()
    with torch.no_grad():
        prior.loc.copy_(torch.tensor([[-3.0, -3.0], [3.0, 3.0]]))
    corner = torch.tensor([3.0, -3.0], dtype=torch.float64)
    p = prior.distribution()
    joint = math.exp(-18) / (2 * math.pi)  # 2.4e-9: no mode is near
    assert float(p.log_prob(corner).detach().exp()) == pytest.approx(joint, rel=1e-9)
    assert float(printed_factorised(p, corner).detach().exp()) == pytest.approx(0.0398, abs=1e-4)


@pytest.mark.parametrize("name", ["mixture-of-gaussians", "gtm"])
def test_draws_have_the_variance_that_the_density_has(name: str) -> None:
    """The listings draw with standard deviation exp(log variance), whose square is the variance only where it is one."""
    prior, _ = made(name)
    with torch.no_grad():
        if name == "gtm":  # mean 0 and log-variance -2 everywhere
            prior.network[-1].weight.zero_()
            prior.network[-1].bias.copy_(torch.tensor([0.0, 0.0, -2.0, -2.0]))
        else:
            prior.loc.zero_()
            prior.log_variance.fill_(-2.0)
    z = prior.distribution().sample(torch.Size([40_000]))
    error = math.sqrt(2 / 40_000)  # of a Gaussian's variance, relative
    assert ((z.var(0) / math.exp(-2.0) - 1).abs() < 4.5 * error).all()
    printed = math.exp(-2.0) * torch.randn_like(z)
    assert ((printed.var(0) / math.exp(-2.0) - 1).abs() > 100 * error).all()


def test_the_grid_has_every_pair_once() -> None:
    """The text lists [0, 1] and [1, -1] twice, leaves [0, 0] and [1, 1] out, and calls nine points K = 3."""
    grid = grid_points(3, 2, 1.0)
    pairs = {tuple(row) for row in grid.tolist()}
    assert len(grid) == 9
    assert pairs == {(a, b) for a in (-1.0, 0.0, 1.0) for b in (-1.0, 0.0, 1.0)}
    printed = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (0, 1), (1, -1), (1, -1), (1, 0)]
    assert pairs - set(printed) == {(0.0, 0.0), (1.0, 1.0)}
    assert grid_points(4, 3, 2.0).shape == (64, 3)


# -- made of posteriors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vamp", "weighted-vamp"])
def test_pseudo_inputs_begin_at_data_once(name: str) -> None:
    rows = torch.arange(18.0).view(6, 3)
    prior = PRIORS[name](2, observed=3, components=4)
    assert ((prior.pseudo_inputs >= -1) & (prior.pseudo_inputs <= 1)).all()
    prior.start(rows)
    chosen = {tuple(row) for row in prior.pseudo_inputs.tolist()}
    assert len(chosen) == 4
    assert chosen <= {tuple(row) for row in rows.tolist()}
    prior.start(rows + 100)  # learning goes on from where it was
    assert {tuple(row) for row in prior.pseudo_inputs.tolist()} == chosen
    few = PRIORS[name](2, observed=3, components=8)
    few.start(rows)
    assert {tuple(row) for row in few.pseudo_inputs.tolist()} == {tuple(row) for row in rows.tolist()}


def test_fixed_pseudo_inputs_at_all_rows_are_the_aggregated_posterior() -> None:
    _, encode = made("vamp")
    rows = torch.randn(12, OBSERVED, dtype=torch.float64)
    prior = PRIORS["vamp"](2, observed=OBSERVED, components=12, learned=False).double()
    prior.start(rows)
    assert not list(prior.parameters())
    z = torch.randn(5, 2, dtype=torch.float64)
    by_hand = torch.stack([encode(row[None]).log_prob(z).exp() for row in rows]).mean(0)
    torch.testing.assert_close(prior.distribution(encode).log_prob(z).exp(), by_hand)
    # of all priors it loses least: the mean divergence is at most log N, and less than that of N(0, I)
    q = encode(rows)
    drawn = q.sample(torch.Size([4000]))
    rate = (q.log_prob(drawn) - prior.distribution(encode).log_prob(drawn)).mean()
    assert 0 < rate < math.log(12)
    assert rate < (q.log_prob(drawn) - dist.Normal(0.0, 1.0).log_prob(drawn).sum(-1)).mean()


def test_weights_are_learned_only_where_the_name_says_so() -> None:
    names = {name: {key for key, _ in made(name)[0].named_parameters()} for name in ("vamp", "weighted-vamp")}
    assert names["vamp"] == {"pseudo_inputs"}
    assert names["weighted-vamp"] == {"pseudo_inputs", "logits"}


def test_pseudo_inputs_of_a_grid_stay_in_the_range_of_the_data() -> None:
    prior = PRIORS["gtm-vamp"](2, observed=3, points=4, span=10.0)
    rows = torch.tensor([[0.0, 5.0, -2.0], [1.0, 5.0, 8.0], [0.5, 5.0, 0.0]])
    assert ((prior.pseudo_inputs() > -1) & (prior.pseudo_inputs() < 1)).all()
    prior.start(rows)
    with torch.no_grad():
        for parameter in prior.network.parameters():
            parameter.mul_(20)
    inputs = prior.pseudo_inputs()
    assert inputs.shape == (16, 3)
    assert ((inputs >= rows.amin(0)) & (inputs <= rows.amax(0))).all()
    assert (inputs[:, 0].max() - inputs[:, 0].min()) > 0.5


# -- flow, autoregressive ---------------------------------------------------------------------------------------------------------


def test_the_flow_counts_its_log_determinant_once() -> None:
    """Listing 5.11 adds it to every entry of z, so that it counts L times and the mass is no longer one."""
    prior, _ = made("flow")
    p = prior.distribution()

    def printed(z: Tensor) -> Tensor:
        e = z
        for layer in reversed(p.transforms):
            e = layer.inv(e)
        log_pi = dist.Normal(0.0, 1.0).log_prob(e)  # [..., L]
        log_det = p.log_prob(z) - log_pi.sum(-1)
        return (log_pi + log_det.unsqueeze(-1)).sum(-1)

    assert mass(p.log_prob) == pytest.approx(1.0, abs=1e-6)
    assert abs(mass(printed) - 1) > 0.05


def test_the_flow_starts_as_the_standard_gaussian() -> None:
    z = torch.randn(4, 5)
    expected = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(PRIORS["flow"](5).distribution().log_prob(z), expected)


@pytest.mark.parametrize("components", [1, 3])
def test_conditionals_look_back_only(components: int) -> None:
    prior = PRIORS["autoregressive"](4, components=components, hidden=16).double()
    z = torch.randn(4, dtype=torch.float64)
    parts = torch.autograd.functional.jacobian(lambda z: torch.stack([part.sum(0) for part in prior.network(z)]), z)
    seen = parts.abs().sum(0) > 0  # [of which entry, on which entry]
    assert torch.equal(seen, torch.ones(4, 4).tril(-1).bool())
    assert len(dict(prior.network.named_parameters())) == 6
    assert prior.distribution().log_prob(z).shape == ()


# -- resampled ------------------------------------------------------------------------------------------------------------------------


def test_the_normaliser_agrees_with_quadrature() -> None:
    prior, _ = made("resampled", seed=4)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(2)
        weight = dist.Normal(0.0, 1.0).log_prob(GRID).sum(-1).exp() * CELL
        exact = (weight * prior.log_acceptance(GRID).exp()).sum()
        z, error = prior.normaliser()
        assert 0.02 < exact < 0.98
        assert abs(z - exact) < 4.5 * error
        assert abs(z - exact) < 0.2 * error  # evenly spread points do better than independent ones
        log_z, log_rest = prior.log_normaliser()
        torch.testing.assert_close(log_z.exp() + log_rest.exp(), torch.ones_like(z))
        many = torch.stack([prior.train().log_normaliser()[0].exp() for _ in range(300)])
    assert abs(many.mean() - exact) < 4.5 * many.std() / math.sqrt(300)


def test_an_acceptance_without_shape_leaves_the_gaussian() -> None:
    prior = PRIORS["resampled"](3, hidden=4).double().eval()
    with torch.no_grad():
        prior.network[-1].weight.zero_()
    z = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(prior.distribution().log_prob(z), dist.Normal(0.0, 1.0).log_prob(z).sum(-1))
    with torch.no_grad():  # nothing is ever accepted: the T-th draw is taken as it is
        prior.network[-1].bias.fill_(-40.0)
    torch.testing.assert_close(prior.distribution().log_prob(z), dist.Normal(0.0, 1.0).log_prob(z).sum(-1))
    with torch.no_grad():  # everything is
        prior.network[-1].bias.fill_(40.0)
    torch.testing.assert_close(prior.distribution().log_prob(z), dist.Normal(0.0, 1.0).log_prob(z).sum(-1))


# -- hierarchical ---------------------------------------------------------------------------------------------------------------------


class Deeper(dgm.Program):
    """The hierarchical prior alone, seen through N(z, 1)."""

    def __init__(self, prior: Any) -> None:
        super().__init__()
        self.prior_of_z, self.observed = prior, 2
        self.gain = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        with pyro.plate("data", n if x is None else len(x)):
            z = self.prior_of_z.model(n if x is None else len(x))
            return pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, n: int = 1) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.gain * x, 1.0).to_event(1))
            self.prior_of_z.guide(z)


def hierarchical() -> tuple[Any, Callable[[Tensor], Tensor]]:
    """A prior with one auxiliary variable and, by quadrature over it, log p(z): Gaussians along a line, of changing width."""
    prior = PRIORS["hierarchical"](2, auxiliary=1, depth=0).double()
    with torch.no_grad():
        prior.down[0].weight.copy_(torch.tensor([[1.5], [-1.0], [0.4], [-0.3]]))  # means, then log-variances
        prior.down[0].bias.copy_(torch.tensor([0.5, 0.0, -0.5, -0.5]))
        prior.up[0].weight.copy_(torch.tensor([[0.4, -0.3], [0.0, 0.0]]))
        prior.up[0].bias.copy_(torch.tensor([-0.2, -0.7]))
    u = torch.linspace(-6, 6, 97, dtype=torch.float64)
    weight = dist.Normal(0.0, 1.0).log_prob(u) + math.log(float(u[1] - u[0]))

    def log_prob(z: Tensor) -> Tensor:
        parts = [prior.given(u[:, None]).log_prob(some.unsqueeze(-2)) for some in z.split(20_000)]
        return torch.cat([(part + weight).logsumexp(-1) for part in parts])

    return prior, log_prob


def test_the_hierarchical_prior_is_a_continuous_mixture() -> None:
    prior, log_prob = hierarchical()
    few = GRID.view(401, 401, 2)[::3, ::3].reshape(-1, 2)
    with torch.no_grad():
        density = log_prob(few)
    assert float(density.exp().sum() * 9 * CELL) == pytest.approx(1.0, abs=1e-6)
    draws = dgm.sample(Deeper(prior), 20_000, seed=0)
    assert draws["u"].shape == (20_000, 1)
    assert_draws_follow(log_prob, draws["z"])
    x = draws["x"][:5]
    score = dgm.score(Deeper(prior), x, method=dgm.ImportanceWeighted(draws=20_000), seed=0)
    with torch.no_grad():
        exact = (density + dist.Normal(x[:, None], 1.0).log_prob(few).sum(-1)).logsumexp(-1) + math.log(9 * CELL)
    assert ((score.value - exact).abs() < 4.5 * score.stderr + 1e-4).all()
    with pytest.raises(dgm.TaskUnavailable, match="model"):
        prior.distribution()


@pytest.mark.filterwarnings("ignore:Failed to verify mean field")
def test_no_divergence_at_a_given_u_enters_the_bound() -> None:
    prior, _ = hierarchical()
    program = Deeper(prior)
    x = dgm.sample(program, 2, seed=0)["x"]
    copies = x.repeat(10_000, 1)
    with program.running(), torch.no_grad():
        bounds = [
            -elbo().loss(program.run_model, program.run_guide, copies) / 10_000
            for elbo in (Trace_ELBO, TraceMeanField_ELBO)
        ]
        prior.given = lambda u, given=prior.given: dist.Independent(
            given(u).base_dist, 1
        )  # as if z and u were independent
        wrong = -TraceMeanField_ELBO().loss(program.run_model, program.run_guide, copies) / 10_000
    assert bounds[1] == pytest.approx(bounds[0], abs=0.1)
    assert abs(wrong - bounds[0]) > 0.5


# -- sphere, categories -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latent", [2, 3, 8])
def test_the_sphere_is_uniform(latent: int) -> None:
    p = PRIORS["sphere"](latent).double().distribution()
    z = p.sample(torch.Size([40_000]))
    assert p.support.check(z).all()
    error = 1 / math.sqrt(40_000)
    assert (z.mean(0).abs() < 4.5 * error / math.sqrt(latent)).all()
    # E (z_i z_j)^2 <= 3 / (L (L + 2))
    assert (
        (z.T @ z / len(z) - torch.eye(latent) / latent).abs() < 4.5 * error * math.sqrt(3 / latent / (latent + 2))
    ).all()
    area = {2: 2 * math.pi, 3: 4 * math.pi, 8: math.pi**4 / 3}[latent]
    torch.testing.assert_close(p.expand(torch.Size([4])).log_prob(z[0]).exp() * area, torch.ones(4).double())


@pytest.mark.parametrize(
    ("latent", "concentration", "nats", "printed"),
    [(3, 5.0, 1.3031, 2.3026), (5, 20.0, 3.6899, 5.6373), (10, 3.0, 0.4057, 2.5656)],
)
def test_divergence_from_a_von_mises_fisher(latent: int, concentration: float, nats: float, printed: float) -> None:
    """Eq. (5.68) leaves out the ratio of Bessel functions at the concentration."""
    torch.manual_seed(0)
    direction = nn.functional.normalize(torch.randn(latent, dtype=torch.float64), dim=-1)
    q = VonMisesFisher(direction, torch.tensor(concentration, dtype=torch.float64))
    p = UniformOnSphere(torch.zeros(latent, dtype=torch.float64))
    value = float(kl_divergence(q, p))
    assert value == pytest.approx(nats, abs=1e-3)
    without_ratio = concentration + float(q.log_normaliser) + p.log_area
    assert without_ratio == pytest.approx(printed, abs=1e-3)
    z = q.sample(torch.Size([20_000]))
    terms = q.log_prob(z) - p.log_prob(z)
    assert abs(float(terms.mean()) - value) < 4.5 * float(terms.std()) / math.sqrt(20_000)


@pytest.mark.parametrize("learned", [False, True])
def test_one_hot_categories_have_mass_one(learned: bool) -> None:
    prior = PRIORS["categorical"](2, classes=3, learned=learned)
    if learned:
        with torch.no_grad():
            prior.logits.normal_()
    p = prior.distribution()
    assert p.event_shape == (2, 3)
    eye = torch.eye(3)
    pairs = torch.stack([torch.stack([eye[a], eye[b]]) for a in range(3) for b in range(3)])
    assert float(p.log_prob(pairs).detach().exp().sum()) == pytest.approx(1.0, abs=1e-6)
    if not learned:
        torch.testing.assert_close(p.log_prob(pairs), torch.full((9,), -2 * math.log(3)))
    seen = p.sample(torch.Size([20_000])).mean(0)
    share = torch.softmax(prior.logits, -1)
    assert ((seen - share).abs() < 4.5 * (share * (1 - share) / 20_000).sqrt()).all()
    q = dist.OneHotCategorical(logits=torch.randn(2, 3))
    closed = (q.probs * (q.logits - torch.log_softmax(prior.logits, -1))).sum()
    torch.testing.assert_close(kl_divergence(q.to_event(1), p), closed)
    relaxed = PRIORS["categorical"](2, classes=3, temperature=0.7).distribution()
    z = relaxed.sample(torch.Size([5]))
    assert relaxed.log_prob(z).shape == (5,)
    torch.testing.assert_close(z.sum(-1), torch.ones(5, 2))


# -- refusals ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("standard", {"latent": 0}, "latent is 0"),
        ("mixture-of-gaussians", {"components": 0}, "components is 0"),
        ("vamp", {"observed": 3, "low": 1.0, "high": 0.0}, "low is 1.0"),
        ("gtm", {"points": 1}, "points is 1"),
        ("gtm", {"span": 0.0}, "span is 0.0"),
        ("gtm-vamp", {"observed": 0}, "observed is 0"),
        ("flow", {"latent": 1}, "latent, for the flow prior"),
        ("autoregressive", {"latent": 1}, "latent, for the autoregressive prior"),
        ("resampled", {"tries": 1}, "tries is 1"),
        ("hierarchical", {"depth": -1}, "depth is -1"),
        ("sphere", {"latent": 1}, "latent, for the sphere"),
        ("categorical", {"temperature": 0.0}, "temperature is 0.0"),
    ],
)
def test_refusals(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(dgm.ProgramError, match=words):
        PRIORS[name](**{"latent": 2, **options})


def test_a_prior_made_of_posteriors_asks_for_the_encoder() -> None:
    for name in ("vamp", "gtm-vamp"):
        with pytest.raises(dgm.ProgramError, match=r"distribution\(encode\)"):
            PRIORS[name](2, observed=3).distribution()
