"""VAE: likelihoods, the four verbs, and the bound against the evidence of its linear Gaussian twin."""

import math

import pyro
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

import ppl_dgm as dgm
from ppl_dgm.models import VAE
from ppl_dgm.nn import make_likelihood, mlp


def data(likelihood: str, n: int = 6, observed: int = 5) -> Tensor:
    if likelihood == "categorical":
        return torch.randint(0, 4, (n, observed))
    return torch.randint(0, 2, (n, observed)) if likelihood == "bernoulli" else torch.randn(n, observed)


def small(likelihood: str = "categorical", **options: object) -> VAE:
    return VAE(
        observed=5,
        values=4 if likelihood == "categorical" else None,
        latent=2,
        hidden=8,
        likelihood=likelihood,
        **options,
    )


def linear_twin() -> tuple[VAE, MultivariateNormal]:
    """A VAE with linear networks is probabilistic PCA with a diagonal noise; its evidence is Gaussian."""
    vae = small("gaussian", depth=0)
    with torch.no_grad():
        vae.decoder[0].weight.normal_()
        vae.likelihood.free_scale.uniform_(-0.5, 0.5)
        weight, bias, scale = vae.decoder[0].weight, vae.decoder[0].bias, vae.likelihood.scale
        # the best factorised Gaussian: the exact posterior's mean, variances 1 / diagonal of the precision
        precision = torch.eye(2) + weight.T @ torch.diag(scale**-2) @ weight
        gain = torch.linalg.solve(precision, weight.T / scale**2)
        vae.encoder[0].weight.copy_(torch.cat([gain, torch.zeros(2, 5)]))
        vae.encoder[0].bias.copy_(torch.cat([-gain @ bias, -precision.diagonal().log()]))
    return vae, MultivariateNormal(bias.detach(), (weight @ weight.T + torch.diag(scale**2)).detach())


def test_bounds_stay_below_the_evidence_of_the_linear_twin() -> None:
    vae, evidence = linear_twin()
    x = evidence.sample((3,))
    exact = evidence.log_prob(x)
    copies = x.repeat_interleave(1000, 0)
    before = torch.full((3,), -math.inf)
    for draws in (1, 5, 50):
        values = dgm.score(vae, copies, method=dgm.ImportanceWeighted(draws=draws), seed=draws).value.view(3, 1000)
        error = values.std(1) / math.sqrt(1000)
        assert (values.mean(1) < exact + 4 * error).all()
        assert (values.mean(1) > before - 4 * error).all()
        before = values.mean(1)
    tight = dgm.score(vae, x, method=dgm.ImportanceWeighted(draws=20_000), seed=0)
    assert ((tight.value - exact).abs() < 4 * tight.stderr).all()
    # the optimal factorised guide loses 1/2 (sum of log precisions - log det precision), for every x
    precision = torch.eye(2) + vae.decoder[0].weight.T @ torch.diag(vae.likelihood.scale**-2) @ vae.decoder[0].weight
    gap = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
    elbo = dgm.score(vae, x, method=dgm.ELBO(draws=20_000), seed=0)
    assert ((elbo.value - (exact - gap)).abs() < 4 * elbo.stderr + 1e-4).all()


def test_analytic_divergence_agrees_with_draws() -> None:
    vae, x = small().eval(), data("categorical")
    with vae.running():
        analytic = pyro.infer.TraceMeanField_ELBO(num_particles=200).loss(vae.run_model, vae.run_guide, x)
    bound = dgm.score(vae, x, method=dgm.ELBO(draws=4000), seed=0)
    assert abs(-analytic - float(bound.value.sum())) < 0.5


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
def test_four_verbs(likelihood: str) -> None:
    vae, x = small(likelihood), data(likelihood, 40)
    x[:, 0] = 1  # something to learn
    drawn = dgm.sample(vae, 7, seed=0)
    assert drawn["z"].shape == (7, 2)
    assert drawn["x"].shape == (7, 5)
    assert vae.support.check(drawn["x"]).all()
    score = dgm.score(vae, x, seed=0)
    assert score.kind == "lower_bound"
    assert score.value.shape == score.stderr.shape == (40,)
    assert "K = 512" in score.how
    assert dgm.infer(vae, x[:3], seed=0).draws["z"].shape == (1, 1000, 3, 2)
    fit = dgm.learn(vae, x, method=dgm.SVI(elbo="mean_field", epochs=30, lr=1e-2), seed=0)
    assert fit.program is vae
    assert dgm.score(vae, x, seed=0).value.mean() > score.value.mean() + 0.1


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
def test_likelihood_is_normalised_and_takes_any_number_type(likelihood: str) -> None:
    part = make_likelihood(likelihood, observed=2, values=3 if likelihood == "categorical" else None)
    p = part(torch.randn(1, part.features))
    if likelihood == "gaussian":
        line = torch.linspace(-12, 12, 400)
        x, cell = torch.cartesian_prod(line, line), (24 / 399) ** 2
    else:
        levels = torch.arange(3 if likelihood == "categorical" else 2)
        x, cell = torch.cartesian_prod(levels, levels), 1.0
    total = (p.log_prob(part.observation(x, torch.float32)).exp() * cell).sum().item()
    assert total == pytest.approx(1.0, abs=1e-4)
    vae, x = small(likelihood), data(likelihood)
    values = [dgm.score(vae, x.to(dtype), seed=0).value for dtype in (torch.float32, torch.float64, x.dtype)]
    for value in values:
        torch.testing.assert_close(value, values[0])
        assert value.dtype == torch.float32


def test_encoder_sees_categories_on_a_symmetric_interval() -> None:
    part = make_likelihood("categorical", observed=3, values=17)
    scaled = part.scaled(torch.tensor([0, 8, 16]), torch.float32)
    assert scaled.tolist() == [-1.0, 0.0, 1.0]
    assert make_likelihood("bernoulli", observed=2).scaled(torch.tensor([0, 1]), torch.float32).tolist() == [
        -1.0,
        1.0,
    ]


def test_constant_column_does_not_break_the_gaussian_likelihood() -> None:
    x = torch.randn(64, 5)
    x[:, 2] = 0.25
    vae = small("gaussian", floor=0.01)
    fit = dgm.learn(vae, x, method=dgm.SVI(elbo="mean_field", epochs=40, lr=0.05), seed=0)
    assert fit.history["objective"].notna().all()
    assert 0.01 <= vae.likelihood.scale[2].item() < 0.5
    assert dgm.score(vae, x, seed=0).value.isfinite().all()


@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_extreme_encoder_output_stays_finite(extreme: float) -> None:
    vae = small()
    with torch.no_grad():
        vae.encoder[-1].bias.fill_(extreme)
    assert dgm.score(vae, data("categorical"), method="elbo", seed=0).value.isfinite().all()


def test_float64_program() -> None:
    score = dgm.score(small().double(), data("categorical"), seed=0)
    assert score.value.dtype == torch.float64


def test_runs_on_every_device(device: torch.device) -> None:
    vae, x = small().to(device), data("categorical").to(device)
    assert dgm.score(vae, x, seed=0).value.device.type == device.type
    assert dgm.sample(vae, 3, seed=0)["x"].device.type == device.type


def test_saved_and_loaded(tmp_path: object) -> None:
    vae, x = small(), data("categorical", 20)
    fit = dgm.learn(vae, x, method=dgm.SVI(epochs=2), seed=0)
    fit.save(tmp_path)
    again = dgm.Fit.load(tmp_path).program
    assert again.config == vae.config
    torch.testing.assert_close(dgm.score(again, x, seed=0).value, dgm.score(vae, x, seed=0).value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"likelihood": "poisson"}, "likelihood 'poisson' is unknown"),
        ({"likelihood": "categorical"}, "needs values"),
        ({"likelihood": "gaussian", "values": 4}, "has no number of values"),
        ({"likelihood": "gaussian", "floor": 0.0}, "floor"),
        ({"values": 4, "depth": -1}, "depth"),
        ({"values": 4, "hidden": 0}, "positive whole numbers"),
        ({"values": 4, "activation": "cosine"}, "activation 'cosine' is unknown"),
        ({"values": 4, "decoder_dropout": 1.0}, "dropout"),
    ],
)
def test_refusals(options: dict, words: str) -> None:
    with pytest.raises(dgm.ProgramError, match=words):
        VAE(observed=5, **options)


def test_wrong_data_are_named() -> None:
    with pytest.raises(dgm.DataError):
        dgm.score(small(), torch.full((2, 5), 9))
    with pytest.raises(dgm.DataError):
        dgm.score(small(), torch.zeros(2, 6))


@pytest.mark.parametrize("norm", [None, "layer", "batch"])
def test_mlp(norm: str | None) -> None:
    net = mlp(3, 2, hidden=(4, 5), activation="silu", dropout=0.5, norm=norm).eval()
    x = torch.randn(7, 3)
    assert net(x).shape == (7, 2)
    assert torch.equal(net(x), net(x))  # no dropout in evaluation mode
    assert mlp(3, 2, norm=norm).train()(x[:1]).isfinite().all()  # a last batch of one row
    assert isinstance(mlp(3, 2, hidden=())[0], torch.nn.Linear)
    assert len(mlp(3, 2, hidden=())) == 1
    with pytest.raises(dgm.ProgramError, match="norm"):
        mlp(3, 2, norm="group")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_digits(seed: int) -> None:
    digits = dgm.data.digits()
    vae = VAE(observed=64, values=17)
    dgm.learn(vae, digits, seed=seed)
    score = dgm.score(vae, digits.test, seed=0).mean()
    assert -94.0 <= score.value < -86.0
