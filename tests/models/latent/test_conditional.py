"""ConditionalVAE: its bound and draws against linear Gaussian twins, what y must be, and what learning does with it."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

import ppl_dgm as dgm
from ppl_dgm.models import ConditionalVAE

X = torch.randint(0, 3, (40, 4), generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 2, (40,), generator=torch.Generator().manual_seed(1))


def linear(prior: Any = None, **told: int) -> ConditionalVAE:
    torch.manual_seed(0)
    program = ConditionalVAE(3, latent=2, likelihood="gaussian", depth=0, prior=prior, **told)
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return program.double()


def evidence(program: ConditionalVAE, code: Tensor) -> MultivariateNormal:
    """p(x | y), x = W z + V y + b + noise, z ~ N(a(y), diag s^2(y))."""
    with torch.no_grad():
        layer = program.decoder[0]
        w, v = layer.weight.split([2, code.shape[-1]], 1)
        loc, scale = torch.zeros(2).double(), torch.ones(2).double()
        if program.prior_given_y is not None:
            loc, log_variance = program.prior_given_y(code).chunk(2, -1)
            scale = (0.5 * log_variance).exp()
        covariance = w @ torch.diag_embed(scale**2) @ w.T + torch.diag(program.likelihood.scale**2)
        return MultivariateNormal(loc @ w.T + code @ v.T + layer.bias, covariance)


@pytest.mark.parametrize("prior", [None, "conditional"])
@pytest.mark.parametrize("told", [{"classes": 3}, {"conditions": 2}])
def test_the_bound_tends_to_the_density_given_y(prior: Any, told: dict[str, int]) -> None:
    program = linear(prior, **told)
    torch.manual_seed(1)
    y = torch.tensor([0, 1, 2, 2]) if "classes" in told else torch.randn(4, 2).double()
    code = torch.nn.functional.one_hot(y).double() if "classes" in told else y
    x = evidence(program, code).sample()
    exact = evidence(program, code).log_prob(x)
    elbo = dgm.score(program, x, y, method=dgm.ELBO(draws=4000), seed=0)
    assert (elbo.value < exact + 4 * elbo.stderr).all()
    tight = dgm.score(program, x, y, method=dgm.ImportanceWeighted(draws=100_000), seed=0)
    assert ((tight.value - exact).abs() < 5 * tight.stderr + 1e-3).all() and tight.stderr.max() < 0.1
    assert tight.kind == "lower_bound"


def test_draws_given_y_have_its_mean_and_covariance() -> None:
    program = linear(classes=3)
    exact = evidence(program, torch.eye(3).double()[2])
    x = dgm.sample(program, 20_000, given={"y": 2}, seed=0)["x"]
    error = exact.variance.sqrt() / 20_000**0.5
    assert ((x.mean(0) - exact.mean).abs() < 4.5 * error).all()
    torch.testing.assert_close(x.T.cov(), exact.covariance_matrix, atol=0.1, rtol=0.06)
    labels = torch.arange(3).repeat(5)
    drawn = dgm.sample(program, 15, given={"y": labels}, seed=0)
    assert torch.equal(drawn["y"], labels)
    assert dgm.sample(program, 15, y=labels, seed=0)["x"].shape == (15, 3)
    assert set(dgm.sample(program, 300, seed=0)["y"].tolist()) == {0, 1, 2}


@pytest.mark.parametrize("options", [{"classes": 2}, {"classes": 2, "prior": "conditional"}])
def test_learning_finds_what_y_says_of_x(options: dict[str, Any]) -> None:
    """Class 0 has x = 0, class 1 has x = 2, one entry in ten changed at random."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (300,), generator=generator)
    noise = torch.rand((300, 4), generator=generator) < 0.1
    x = torch.where(noise, torch.ones(300, 4).long(), 2 * y[:, None].expand(-1, 4))
    program = ConditionalVAE(4, 3, latent=2, hidden=16, encoder_dropout=0.0, decoder_dropout=0.0, **options)
    fit = dgm.learn(program, x, y, valid=(x[:50], y[:50]), method=dgm.SVI(epochs=25, lr=0.01, patience=25), seed=0)
    assert fit.history["valid"].iloc[-1] < fit.history["valid"].iloc[0]
    for label, value in ((0, 0), (1, 2)):
        drawn = dgm.sample(program, 500, given={"y": label}, seed=0)["x"]
        assert 0.8 < float((drawn == value).double().mean()) < 0.98
    right = dgm.score(program, x, y, seed=0).mean().value
    assert right > dgm.score(program, x, 1 - y, seed=0).mean().value + 5.0
    entropy = 4 * (0.1 * torch.tensor(0.1).log() + 0.9 * torch.tensor(0.9).log())  # the best that is possible, about
    assert abs(float(right - entropy)) < 0.4


def test_early_stopping_holds_out_rows_of_both() -> None:
    program = ConditionalVAE(4, 3, classes=2, latent=2, hidden=8)
    fit = dgm.learn(program, X, Y, method=dgm.SVI(epochs=2, patience=2), seed=0)
    assert "valid" in fit.history and fit.notes["rows"] == 36 and fit.cost.path == "recorded"


@pytest.mark.parametrize("prior", ["mixture-of-gaussians", "flow", "hierarchical"])
def test_priors(prior: str) -> None:
    program = ConditionalVAE(4, 3, classes=2, latent=2, hidden=8, prior=prior)
    dgm.learn(program, X, Y, method=dgm.SVI(epochs=2), seed=0)
    assert dgm.score(program, X, Y, seed=0).value.isfinite().all()


@pytest.mark.parametrize("posterior", ["full-gaussian", "householder", "gumbel-softmax"])
def test_posteriors(posterior: str) -> None:
    options = {"classes": 3} if posterior == "gumbel-softmax" else {}
    program = ConditionalVAE(4, 3, classes=2, latent=2, hidden=8, posterior=posterior, posterior_options=options)
    dgm.learn(program, X, Y, method=dgm.SVI(epochs=2), seed=0)
    assert dgm.score(program, X, Y, seed=0).value.isfinite().all()
    assert dgm.sample(program, 3, given={"y": 1}, seed=0)["x"].shape == (3, 4)


def test_a_strangers_networks() -> None:
    encoder, decoder = torch.nn.Linear(6, 4), torch.nn.Linear(4, 12)
    program = ConditionalVAE(4, 3, classes=2, latent=2, encoder=encoder, decoder=decoder)
    assert program.encoder is encoder and dgm.score(program, X, Y, seed=0).value.shape == (40,)
    with pytest.raises(dgm.ProgramError, match="decoder cannot take"):
        ConditionalVAE(4, 3, classes=2, latent=2, decoder=torch.nn.Linear(2, 12))


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (None, "pass both, as in"),
        (Y[:5], r"must have the shape \(40,\)"),
        (Y + 1, r"y\[\d+\] is 2, but classes are 0, ..., 1"),
        (Y - 1, r"y\[\d+\] is -1, but classes are 0, ..., 1\."),
        (Y + 0.5, r"y\[0\] is"),
    ],
)
def test_wrong_conditions_are_refused(y: Any, words: str) -> None:
    program = ConditionalVAE(4, 3, classes=2, latent=2, hidden=8)
    for verb in (dgm.score, dgm.infer, dgm.learn):
        with pytest.raises(dgm.DataError, match=words):
            verb(program, X, *([] if y is None else [y]))


def test_wrong_real_conditions_are_refused() -> None:
    program = ConditionalVAE(4, 3, conditions=2, latent=2, hidden=8)
    y = torch.zeros(40, 2)
    y[3, 1] = torch.inf
    with pytest.raises(dgm.DataError, match=r"y\[3, 1\] is inf"):
        dgm.score(program, X, y)
    with pytest.raises(dgm.DataError, match=r"valid=\(x, y\)"):
        dgm.learn(program, X, torch.zeros(40, 2), valid=X)
    with pytest.raises(dgm.ProgramError, match="outside its support"):
        dgm.sample(ConditionalVAE(4, 3, classes=2), 3, given={"y": 2})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give either classes"),
        ({"classes": 2, "conditions": 2}, "give either classes"),
        ({"classes": 1}, "classes is 1"),
        ({"conditions": 0}, "conditions is 0"),
        ({"classes": 2, "prior": "vamp"}, "prior 'vamp' is made of q"),
        ({"classes": 2, "prior": "conditional", "posterior": "von-mises-fisher"}, "over real vectors"),
        ({"classes": 2, "depth": -1}, "depth is -1"),
    ],
)
def test_parts_that_do_not_go_together(options: dict[str, Any], words: str) -> None:
    with pytest.raises(dgm.ProgramError, match=words):
        ConditionalVAE(4, 3, **options)
