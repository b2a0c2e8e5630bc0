"""BayesianNeuralNetwork: a linear one against its conjugate posterior, a small one against NUTS, uncertainties, refusals."""

import math

import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.errors import DataError, ProgramError
from ppl_dgm.models import BayesianNeuralNetwork

U = torch.linspace(-2, 2, 40)[:, None]
INPUTS = torch.cat([U, U.square() - 1.4], 1)
Y = 0.8 * INPUTS[:, 0] - 0.5 * INPUTS[:, 1] + 0.3 + 0.4 * torch.randn(40, generator=torch.Generator().manual_seed(0))


def conjugate(noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and precision of (weights, bias) of linear regression, whose prior variances are 1/2, 1/2 and 1."""
    design = torch.cat([INPUTS, torch.ones(40, 1)], 1)
    precision = design.mT @ design / noise**2 + torch.diag(torch.tensor([2.0, 2.0, 1.0]))
    return torch.linalg.solve(precision, design.mT @ Y / noise**2), precision


def test_without_hidden_layers_it_is_conjugate_regression():
    program = BayesianNeuralNetwork(inputs=2, hidden=(), noise=0.4)
    post = dgm.infer(program, Y, INPUTS, method=dgm.NUTS(chains=2, warmup=150, draws=300), seed=0)
    mean, precision = conjugate(0.4)
    draws = torch.cat([post.draws["weight_1"].flatten(0, 2).reshape(-1, 2), post.draws["bias_1"].flatten(0, 1)], -1)
    deviation = torch.linalg.inv(precision).diagonal().sqrt()
    assert ((draws.mean(0) - mean).abs() < 6 * deviation / math.sqrt(300)).all()
    assert torch.allclose(draws.std(0), deviation, rtol=0.3)


@pytest.mark.parametrize("batch_size", [None, 10])
def test_bayes_by_backprop_finds_the_best_factorised_gaussian(batch_size):
    program = BayesianNeuralNetwork(inputs=2, hidden=(), noise=0.4)
    epochs = 500 if batch_size is None else 150
    method = dgm.SVI(
        guide="AutoNormal", epochs=epochs, batch_size=batch_size, lr=0.05, schedule="cosine", particles=4, average=0.99
    )
    fit = dgm.learn(program, Y, INPUTS, method=method, seed=0)
    guide = fit.program.guide
    loc = torch.cat([guide.locs.weight_1.flatten(), guide.locs.bias_1]).detach()
    scale = torch.cat([guide.scales.weight_1.flatten(), guide.scales.bias_1]).detach()
    mean, precision = conjugate(0.4)
    best = precision.diagonal().rsqrt()  # the known optimum; not rescaled, minibatches would double it
    assert ((loc - mean).abs() < 0.5 * best).all()
    assert torch.allclose(scale, best, rtol=0.2)


@pytest.mark.slow
def test_a_small_network_agrees_with_nuts():
    u = torch.cat([torch.linspace(-2, -0.5, 8), torch.linspace(0.5, 2, 8)])[:, None]
    y = torch.sin(1.5 * u[:, 0]) + 0.3 * torch.randn(16)
    program = BayesianNeuralNetwork(inputs=1, hidden=(2,), noise=0.3)
    exact = dgm.infer(program, y, u, method=dgm.NUTS(chains=2, warmup=150, draws=150, max_depth=5), seed=0)
    fit = dgm.learn(program, y, u, seed=0)
    ours = fit.posterior(y, u, draws=400, seed=0)
    at = torch.linspace(-2, 2, 9)[:, None]
    one, other = program.predictive(exact, at), program.predictive(ours, at)
    assert float((one.mean - other.mean).abs().mean()) < 0.15
    ratio = other.epistemic / one.epistemic  # a factorised Gaussian is too sure, and not absurdly so
    assert 0.2 < float(ratio.mean()) < 1.3
    far = torch.tensor([[4.0], [-4.0]])
    assert (program.predictive(exact, far).epistemic > 2 * one.epistemic.min()).all()


def test_the_uncertainties_of_regression_add_up_to_that_of_the_data():
    program = BayesianNeuralNetwork(inputs=2, hidden=())
    post = dgm.infer(program, Y, INPUTS, method=dgm.NUTS(chains=2, warmup=200, draws=200), seed=0)
    found = program.predictive(post, INPUTS[:5])
    drawn = post.predict(None, INPUTS[:5], seed=1)["y"]
    total = found.epistemic.square() + found.noise.square()
    assert torch.allclose(drawn.var(0), total, rtol=0.4)
    assert torch.allclose(found.noise, torch.full((5,), 0.4), atol=0.15)


def test_classes_have_probabilities_and_are_less_sure_where_nothing_was_seen():
    u = torch.cat([torch.randn(30, 2) * 0.3 + 1, torch.randn(30, 2) * 0.3 - 1])
    y = 1 - torch.arange(60) // 30
    program = BayesianNeuralNetwork(inputs=2, hidden=(4,), classes=2)
    fit = dgm.learn(program, y, u, method=dgm.SVI(guide="AutoNormal", epochs=300, batch_size=None, lr=0.02), seed=0)
    post = fit.posterior(y, u, draws=200, seed=0)
    found = program.predictive(post, torch.tensor([[1.0, 1.0], [-1.0, -1.0], [-6.0, 6.0]]))
    assert torch.allclose(found.mean.sum(-1), torch.ones(3))
    assert found.mean[0, 1] > 0.9 and found.mean[1, 0] > 0.9
    assert (
        found.epistemic[2] > found.epistemic[:2].max() and (found.epistemic + found.noise <= math.log(2) + 1e-6).all()
    )


def test_functions_of_the_prior_and_the_scale_mixture():
    program = BayesianNeuralNetwork(inputs=1, hidden=(), noise=0.1, prior="scale-mixture", prior_scale=2.0)
    drawn = dgm.sample(program, 4000, None, torch.tensor([[0.0], [1.0]]), seed=0)
    assert drawn["y"].shape == (4000, 2) and drawn["weight_1"].shape == (4000, 1, 1)
    variance = (4 + 4 * math.exp(-12)) / 2
    assert float(drawn["weight_1"].var()) == pytest.approx(variance, rel=0.15)
    assert float((drawn["weight_1"].abs() < 0.02).double().mean()) == pytest.approx(0.5, abs=0.05)
    assert float(drawn["y"][:, 0].var()) == pytest.approx(variance + 0.01, rel=0.15)
    assert dgm.learn(program, Y, INPUTS[:, :1], method=dgm.SVI(guide="AutoNormal", epochs=3), seed=0).program.has_guide


def test_several_outputs_and_a_file(tmp_path):
    program = BayesianNeuralNetwork(inputs=2, hidden=(3,), outputs=2)
    y = torch.stack([Y, -Y], -1)
    fit = dgm.learn(program, y, INPUTS, method=dgm.SVI(guide="AutoNormal", epochs=5, batch_size=20), seed=0)
    post = fit.posterior(y, INPUTS, draws=30, seed=0)
    found = program.predictive(post, INPUTS[:7])
    assert all(part.shape == (7, 2) for part in found)
    fit.save(tmp_path)
    again = dgm.Fit.load(tmp_path, BayesianNeuralNetwork(**program.config), args=(y, INPUTS))
    other = again.posterior(y, INPUTS, draws=30, seed=0)
    assert torch.equal(other.draws["weight_2"], post.draws["weight_2"])


def test_what_does_not_fit_is_refused():
    program = BayesianNeuralNetwork(inputs=2, noise=0.1)
    for arguments in ((Y,), (Y, U), (Y[:3], INPUTS), (Y.clone().fill_(math.nan), INPUTS)):
        with pytest.raises(DataError):
            dgm.infer(program, *arguments)
    with pytest.raises(DataError, match="class from 0 to 2"):
        dgm.infer(BayesianNeuralNetwork(inputs=2, classes=3), torch.full((40,), 3), INPUTS)
    for wrong in (
        {"inputs": 0},
        {"inputs": 1, "classes": 1},
        {"inputs": 1, "noise": 0.0},
        {"inputs": 1, "prior": "cauchy"},
        {"inputs": 1, "hidden": (0,)},
        {"inputs": 1, "activation": "sine"},
        {"inputs": 1, "classes": 3, "noise": 1.0},
    ):
        with pytest.raises(ProgramError):
            BayesianNeuralNetwork(**wrong)
