"""VAE with every prior and every posterior by name: what one learns, scores, draws and infers with them."""

import copy
import math
import warnings
from typing import Any

import pyro.distributions as dist
import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.models import VAE
from ppl_dgm.models.latent.posteriors import POSTERIORS
from ppl_dgm.models.latent.priors import PRIORS

LATENT, CLASSES = 3, 4
POSTERIOR_OF = {
    "sphere": "von-mises-fisher",
    "categorical": "straight-through",
    "hyperbolic": "wrapped-normal",
}  # else the Gaussian one
SMALL: dict[str, dict[str, Any]] = {  # networks and counts that a test can afford
    "gtm": {"hidden": 8},
    "gtm-vamp": {"hidden": 8},
    "flow": {"hidden": 8},
    "autoregressive": {"hidden": 8},
    "resampled": {"hidden": 8, "tries": 10, "draws": 64, "points": 256},
    "hierarchical": {"hidden": 8},
    "categorical": {"classes": CLASSES},
    "concrete": {"classes": CLASSES},
    "gumbel-softmax": {"classes": CLASSES},
    "straight-through": {"classes": CLASSES},
    "inverse-autoregressive": {"hidden": (8,), "steps": 2},
    "sylvester-orthogonal": {"steps": 2, "units": 2},
    "sylvester-householder": {"steps": 2},
    "sylvester-triangular": {"steps": 2},
}
PAIRS = [
    *(pytest.param(prior, POSTERIOR_OF.get(prior, "gaussian"), id=f"prior-{prior}") for prior in PRIORS),
    *(
        pytest.param(None, posterior, id=f"posterior-{posterior}")
        for posterior in POSTERIORS
        if posterior != "gaussian"
    ),
]


def made(prior: str | None, posterior: str) -> VAE:
    """A small VAE of the digits; a prior that is None is the posterior's usual one."""
    torch.manual_seed(0)
    return VAE(
        observed=64,
        values=17,
        latent=LATENT,
        hidden=16,
        prior=prior,
        posterior=posterior,
        encoder_dropout=0.0,
        decoder_dropout=0.0,
        prior_options=SMALL.get(prior or "", {}),
        posterior_options=SMALL.get(posterior, {}),
    )


def unlearned(before: dict[str, torch.Tensor], program: VAE) -> list[str]:
    """Names of the parameters that are as they were."""
    return [name for name, now in program.named_parameters() if torch.equal(before[name], now)]


@pytest.mark.parametrize(("prior", "posterior"), PAIRS)
def test_learn_score_sample_infer(prior: str | None, posterior: str) -> None:
    digits = dgm.data.digits()
    x, held_out = digits.train[:64], digits.valid[:4]
    vae = made(prior, posterior)
    vae.start(x)  # so that what learning moves is told from where it begins
    before = copy.deepcopy(dict(vae.named_parameters()))
    method = dgm.SVI(elbo="mean_field", epochs=2, batch_size=16, lr=1e-2)
    first = dgm.score(vae, held_out, seed=0)

    fit = dgm.learn(vae, x, method=method, seed=0)
    assert fit.cost.path == "recorded"
    assert fit.history["objective"].map(math.isfinite).all()
    assert not unlearned(before, vae)
    assert all(parameter.isfinite().all() for parameter in vae.parameters())

    score = dgm.score(vae, held_out, seed=0)
    assert score.kind == "lower_bound" and score.value.shape == (4,)
    assert score.value.isfinite().all()
    assert score.value.mean() > first.value.mean() + 5  # nats; uniform grey levels cost 181

    shape = (LATENT, CLASSES) if vae.posterior_of_z.prior == "categorical" else (LATENT,)
    drawn = dgm.sample(vae, 5, seed=0)
    assert drawn["x"].shape == (5, 64) and vae.support.check(drawn["x"]).all()
    assert drawn["z"].shape == (5, *shape) and vae.posterior_of_z.support.check(drawn["z"]).all()
    inferred = dgm.infer(vae, held_out, seed=0).draws["z"]
    assert inferred.shape[2:] == (4, *shape) and vae.posterior_of_z.support.check(inferred).all()


def test_a_prior_that_is_a_fixed_distribution_is_recorded_and_moves_with_the_program() -> None:
    given = dist.Laplace(0.0, 1.0).expand([2]).to_event(1)
    vae = VAE(4, latent=2, hidden=8, likelihood="gaussian", prior=given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = dgm.learn(vae, torch.randn(32, 4), method=dgm.SVI(epochs=2), seed=0)
    assert fit.cost.path == "recorded"
    mixed = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(3)), dist.Normal(torch.zeros(3, 2), torch.ones(3, 2)).to_event(1)
    )
    moved = dist.TransformedDistribution(
        dist.Normal(torch.zeros(2), 1.0), dist.transforms.AffineTransform(1.0, torch.ones(2))
    )
    for prior in (given, mixed, moved.to_event(1)):
        vae = VAE(4, latent=2, hidden=8, likelihood="gaussian", prior=prior).double()
        z = torch.randn(3, 2)
        p = vae.prior_of_z.distribution()
        assert p.sample().dtype == torch.float64 and prior.sample().dtype == torch.float32
        torch.testing.assert_close(p.log_prob(z.double()), prior.log_prob(z).double())
        assert not list(vae.prior_of_z.parameters()) and not vae.prior_of_z.state_dict()
