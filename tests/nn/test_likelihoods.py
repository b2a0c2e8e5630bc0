"""Likelihoods: mass one, draws against densities, what an encoder sees, learning, refusals."""

import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import ppl_dgm as dgm
from ppl_dgm.batched import batched_runs
from ppl_dgm.nn import LIKELIHOODS, Likelihood, make_likelihood, mlp

COLUMNS = ["categorical-3", "gaussian", "bernoulli", "gaussian"]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "categorical": ("categorical", {"values": 3}),
    "bernoulli": ("bernoulli", {}),
    "gaussian": ("gaussian", {}),
    "gaussian, scales fixed": ("gaussian", {"options": {"scale": 0.8}}),
    "gaussian, scales decoded": ("gaussian", {"options": {"scale": "decoder"}}),
    "discretised-logistic": ("discretised-logistic", {"values": 5}),
    "discretised-logistic, scales learned": ("discretised-logistic", {"values": 5, "options": {"scale": "learned"}}),
    "logistic-mixture": ("logistic-mixture", {"values": 5, "options": {"components": 4}}),
    "chained-logistic": ("chained-logistic", {"values": 5, "options": {"components": 2}}),
    "autoregressive": ("autoregressive", {"values": 5, "options": {"hidden": 6}}),
    "autoregressive, bits": ("autoregressive", {"values": 2, "options": {"hidden": 6, "shape": (1, 2), "reach": 1}}),
    "autoregressive, mixtures": ("autoregressive", {"values": 5, "options": {"hidden": 6, "components": 2}}),
    "mixed": ("mixed", {"options": {"columns": COLUMNS}}),
}


def made(kind: str, dtype: torch.dtype = torch.float64) -> Likelihood:
    name, options = KINDS[kind]
    part = make_likelihood(name, observed=4 if name == "mixed" else 2, **options).to(dtype)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return part


def axes(part: Likelihood) -> list[tuple[Tensor, float]]:
    """For each dimension the points of a sum or of a quadrature, and their weight."""
    line = torch.linspace(-14, 14, 113, dtype=torch.float64)
    kinds = getattr(part, "columns", [part.name] * part.observed)
    found = []
    for kind in kinds:
        if kind == "gaussian":
            found.append((line, float(line[1] - line[0])))
        else:
            count = part.values or {"categorical-3": 3, "bernoulli": 2}[kind]
            found.append((torch.arange(count, dtype=torch.float64), 1.0))
    return found


def test_every_kind_is_tried() -> None:
    assert {name for name, _ in KINDS.values()} == set(LIKELIHOODS)


@pytest.mark.parametrize("kind", KINDS)
def test_mass_is_one_and_draws_have_its_moments(kind: str) -> None:
    part = made(kind)
    p = part(0.7 * torch.randn(1, part.features, dtype=torch.float64))
    assert (p.batch_shape, p.event_shape) == ((1,), (part.observed,))
    points = torch.cartesian_prod(*[points for points, _ in axes(part)])
    weight = math.prod(weight for _, weight in axes(part))
    mass = p.log_prob(part.observation(points, torch.float64)).exp().detach() * weight
    assert float(mass.sum()) == pytest.approx(1.0, abs=1e-6)
    draws = p.sample(torch.Size([40_000]))[:, 0].double()
    for power in (1, 2):
        expected, terms = mass @ points**power, draws**power
        assert ((terms.mean(0) - expected).abs() < 4.5 * terms.std(0) / 200 + 1e-6).all()
    product = draws.prod(-1)  # the dimensions depend on one another as they should, and the places are right
    assert abs(product.mean() - mass @ points.prod(-1)) < 4.5 * product.std() / 200 + 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_can_be_observed_and_encoded(kind: str) -> None:
    part = made(kind)
    p = part(torch.randn(6, part.features, dtype=torch.float64))
    x = p.sample()
    assert x.shape == (6, part.observed)
    values = []
    for dtype in (torch.float32, torch.float64, *(() if "gaussian" in kind or kind == "mixed" else (torch.uint8,))):
        values.append(p.log_prob(part.observation(x.to(dtype), torch.float64)))
        assert part.scaled(x.to(dtype), torch.float64).shape == (6, part.inputs)
        assert part.scaled(x.to(dtype), torch.float64).dtype == torch.float64
    for value in values:
        torch.testing.assert_close(value, values[0], atol=1e-4, rtol=1e-5)
    assert part.observation(None, torch.float32) is None
    if kind == "mixed":
        assert [c.check(x[:, d]).all() for d, c in enumerate(part.support.cseq)] == [True] * 4  # type: ignore[attr-defined]
    else:
        assert part.support.check(x).all()
    if part.values is not None or kind == "bernoulli":  # levels and bits come to an encoder between -1 and 1, and back
        scaled, top = part.scaled(x, torch.float64), (part.values or 2) - 1
        assert scaled.abs().max() <= 1
        torch.testing.assert_close((scaled + 1) / 2 * top, x.double())
    assert batched_runs(lambda: p.sample(), 3).shape == (3, 6, part.observed)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_for_extreme_features(kind: str) -> None:
    part = made(kind, torch.float32)
    for size in (0.0, 1.0, 1e3):
        features = (size * torch.randn(8, part.features)).requires_grad_()
        x = part(torch.randn(8, part.features)).sample()
        log_prob = part(features).log_prob(part.observation(x, torch.float32))
        log_prob.sum().backward()
        assert log_prob.isfinite().all() and features.grad is not None and features.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_device_and_type_follow_the_features(kind: str, device: torch.device) -> None:
    part = made(kind, torch.float32).to(device)
    p = part(torch.randn(3, part.features, device=device))
    x = p.sample()
    log_prob = p.log_prob(part.observation(x, torch.float32))
    assert x.device.type == log_prob.device.type == part.scaled(x, torch.float32).device.type == device.type
    assert log_prob.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_no_tensor_strays_to_another_device(kind: str) -> None:
    """The meta device has shapes and no values: whatever is made elsewhere on the way does not go with it."""
    part = made(kind, torch.float32).to("meta")
    x = torch.zeros(3, part.observed, device="meta")
    with pyro.validation_enabled(False):
        p = part(torch.zeros(3, part.features, device="meta"))
        assert p.log_prob(part.observation(x, torch.float32)).device.type == "meta"
        assert p.sample().device.type == part.scaled(x, torch.float32).device.type == "meta"


class Small(dgm.Program):
    """A VAE of linear parts around a likelihood."""

    def __init__(self, part: Likelihood) -> None:
        super().__init__()
        self.part = part
        self.encoder, self.decoder = mlp(part.inputs, 4, (16,)), mlp(2, part.features, (16,))
        self.observed, self.values, self.support = part.observed, part.values, part.support

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=self.dtype), 1.0).to_event(1))
            return pyro.sample("x", self.part(self.decoder(z)), obs=self.part.observation(x, self.dtype))

    def guide(self, x: Tensor, n: int = 1) -> Tensor:
        loc, raw = self.encoder(self.part.scaled(x, self.dtype)).chunk(2, -1)
        with pyro.plate("data", len(x)):
            return pyro.sample("z", dist.Normal(loc, nn.functional.softplus(raw) + 1e-3).to_event(1))

    def start(self, x: Tensor) -> None:
        self.part.start(x)


def table(n: int = 300) -> Tensor:
    """Rows of a table with columns in very different units, which hang together; no column stands for itself alone."""
    group = torch.randint(0, 3, (n,))
    income = 40_000 + 15_000 * group + 4000 * torch.randn(n)
    bit = (torch.rand(n) < torch.tensor([0.1, 0.5, 0.9])[group]).float()
    height = 1.7 + 0.1 * bit + 0.02 * torch.randn(n)
    return torch.stack([group.float(), income, bit, height], -1)


@pytest.mark.parametrize("kind", KINDS)
def test_programs_learn_through_it(kind: str) -> None:
    part = made(kind, torch.float32)
    program = Small(part)
    if kind == "mixed":
        x = table()
    elif "gaussian" in kind:
        x = torch.randn(300, 1) * torch.tensor([1.0, -2.0]) + 0.1 * torch.randn(300, 2)
    else:
        top = (part.values or 2) - 1
        x = (top * torch.sigmoid(3 * torch.randn(300, 1)) * torch.ones(2)).round()
    program.start(x)
    before = dgm.score(program, x, seed=0).mean().value
    fit = dgm.learn(program, x, method=dgm.SVI(elbo="mean_field", epochs=40, lr=1e-2), seed=0)
    after = dgm.score(program, x, seed=0).mean().value
    assert fit.history["objective"].notna().all()
    assert after > before + 0.3
    assert dgm.sample(program, 4, seed=0)["x"].shape == (4, part.observed)


# -- one kind after another -----------------------------------------------------------------------------------------------------------


def test_scales_of_the_decoder_differ_from_row_to_row() -> None:
    part = made("gaussian, scales decoded")
    p: Any = part(torch.tensor([[0.0, -2.0, 0.0, 3.0], [1.0, 0.0, 1.0, 0.0]], dtype=torch.float64))
    expected = 1e-3 + nn.functional.softplus(torch.tensor([[-1.5, 3.5], [0.5, 0.5]], dtype=torch.float64))
    torch.testing.assert_close(p.base_dist.scale, expected)
    assert not list(part.parameters())
    with pytest.raises(dgm.ProgramError, match="decoder"):
        _ = part.scale


def test_a_fixed_scale_is_squared_error_and_is_not_learned() -> None:
    part = make_likelihood("gaussian", observed=3, options={"scale": math.sqrt(0.5)}).double()
    x, mean, far = torch.randn(3, 5, 3, dtype=torch.float64)
    nats = part(far).log_prob(x) - part(mean).log_prob(x)
    torch.testing.assert_close(nats, (x - mean).square().sum(-1) - (x - far).square().sum(-1), rtol=1e-6, atol=1e-6)
    assert not list(part.parameters()) and not part.state_dict()
    assert make_likelihood("gaussian", 2, floor=0.3, options={"scale": "fixed"}).scale.tolist() == pytest.approx(
        [0.3] * 2
    )


def test_a_mixture_starts_with_components_apart() -> None:
    part = make_likelihood("logistic-mixture", observed=1, values=17, options={"components": 3})
    p: Any = part(torch.zeros(1, part.features))
    assert p.base_dist.loc.flatten().tolist() == [4.0, 8.0, 12.0]


def test_a_chain_couples_near_pixels_that_came_before() -> None:
    part = make_likelihood("chained-logistic", 9, 4, options={"shape": (3, 3)})
    before = [row.nonzero().flatten().tolist() for row in part.near]
    assert before[4] == [0, 1, 2, 3]  # the middle pixel: three above, one on its left
    assert before[5] == [1, 2, 4]
    x = torch.randint(4, (6, 9))
    features = torch.randn(6, part.features)
    plain = make_likelihood("logistic-mixture", 9, 4, options={"components": 3})(features)
    torch.testing.assert_close(part(features).log_prob(x), plain.log_prob(x))  # no coupling yet


def test_what_an_encoder_sees_of_a_row_of_a_table() -> None:
    part = make_likelihood("mixed", 5, options={"columns": [*COLUMNS, "poisson"]})
    x = torch.tensor([[2.0, 10.0, 1.0, 5.0, 3.0], [0.0, 30.0, 0.0, 5.0, 0.0]])
    assert part.inputs == part.features == 7
    part.start(x)
    seen = part.scaled(x, torch.float32)
    expected = torch.tensor([[0.0, 0, 1, -1, 1, 0, 1], [1, 0, 0, 1, -1, 0, -1]])
    torch.testing.assert_close(seen, expected)
    centre = part.centre.clone()
    part.start(10 * x)  # learning goes on: nothing is set anew
    assert torch.equal(part.centre, centre)
    p = part(torch.zeros(1, 7))
    torch.testing.assert_close(p.sample(torch.Size([20_000])).mean((0, 1))[1], torch.tensor(20.0), atol=0.4, rtol=0)
    assert part.mean_count[4] == 1.5
    again = make_likelihood("mixed", 5, options={"columns": [*COLUMNS, "poisson"]})
    again.load_state_dict(part.state_dict())
    torch.testing.assert_close(again.scaled(x, torch.float32), seen)


def test_a_count_column_has_mass_one() -> None:
    part = make_likelihood("mixed", 2, options={"columns": ["poisson", "bernoulli"]}).double()
    p = part(torch.tensor([[1.2, 0.3]], dtype=torch.float64))
    rows = torch.tensor(list(itertools.product(range(60), range(2))), dtype=torch.float64)
    assert float(p.log_prob(rows).exp().sum()) == pytest.approx(1.0, abs=1e-9)


class OwnLaplace(Likelihood):
    """A stranger's likelihood."""

    name = "laplace"
    features = 3

    @property
    def support(self) -> Any:
        return torch.distributions.constraints.real

    def forward(self, features: Tensor) -> Any:
        return dist.Laplace(features, 1.0).to_event(1)


def test_a_likelihood_of_ones_own() -> None:
    part = OwnLaplace(3)
    assert make_likelihood(part, 3) is part
    x = torch.randn(40, 3)
    assert dgm.score(Small(part), x, seed=0).value.isfinite().all()
    with pytest.raises(dgm.ProgramError, match="has no 'features'"):
        make_likelihood(nn.Linear(3, 3), 3)
    with pytest.raises(dgm.ProgramError, match="is named"):
        make_likelihood(part, 3, options={"scale": "decoder"})
    with pytest.raises(dgm.ProgramError, match="likelihood is a float"):
        make_likelihood(3.0, 3)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("gamma", {}, "likelihood 'gamma' is unknown"),
        ("categorical", {}, "needs values"),
        ("categorical", {"values": 1}, "needs values"),
        ("discretised-logistic", {}, "needs values"),
        ("logistic-mixture", {"values": 4, "options": {"components": 0}}, "components is 0"),
        ("chained-logistic", {"values": 4, "options": {"reach": 0}}, "reach is 0"),
        ("chained-logistic", {"values": 4, "options": {"shape": (3, 3)}}, "x has 2 entries"),
        ("gaussian", {"values": 4}, "has no number of values"),
        ("gaussian", {"floor": 0.0}, "floor"),
        ("gaussian", {"options": {"scale": "both"}}, "scale is 'both'"),
        ("gaussian", {"options": {"scale": -0.5}}, "scale is -0.5"),
        ("gaussian", {"options": {"scale": float("inf")}}, "scale is inf"),
        ("bernoulli", {"values": 3}, "has no number of values"),
        ("bernoulli", {"options": {"scale": "decoder"}}, "has no option 'scale'; it has none"),
        ("mixed", {}, "columns names 0 columns"),
        ("mixed", {"options": {"columns": ["gaussian", "weird"]}}, "not 'weird'"),
        ("mixed", {"options": {"columns": ["gaussian", "categorical-1"]}}, "not 'categorical-1'"),
        ("discretised-logistic", {"values": 4, "options": {"scale": "both"}}, "scale is 'both'"),
    ],
)
def test_refusals(name: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(dgm.ProgramError, match=words):
        make_likelihood(name, 2, **arguments)
