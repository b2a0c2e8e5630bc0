"""LinearGaussianStateSpace against the dense joint Gaussian of all states and observations, and Pyro's distribution."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.errors import DataError, ProgramError

T, M = 5, 2


def made(dimensions, seed=0, **options):
    torch.manual_seed(seed)
    program = dgm.models.LinearGaussianStateSpace(M, dimensions, **options).double()
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return program


@torch.no_grad()
def dense(program, steps=T):
    """Mean and covariance of (z_1, ..., z_T) and of (x_1, ..., x_T), and their covariance, by stacking the equations."""
    a, q, c = program.transition, program.process_covariance, program.weight
    means, covs = [program.first_mean], [program.first_covariance]
    for _ in range(steps - 1):
        means.append(a @ means[-1])
        covs.append(a @ covs[-1] @ a.mT + q)
    big = torch.zeros(steps * M, steps * M, dtype=torch.float64)
    for i in range(steps):
        power = torch.eye(M, dtype=torch.float64)
        for j in range(i, steps):
            big[j * M : (j + 1) * M, i * M : (i + 1) * M] = power @ covs[i]
            big[i * M : (i + 1) * M, j * M : (j + 1) * M] = (power @ covs[i]).mT
            power = a @ power
    mean_z = torch.cat(means)
    weight = torch.block_diag(*[c] * steps)
    mean_x = weight @ mean_z + program.bias.repeat(steps)
    cov_x = weight @ big @ weight.mT + torch.diag(program.noise.repeat(steps))
    return mean_z, big, mean_x, cov_x, weight @ big


@pytest.mark.parametrize("dimensions", [1, 3])
@pytest.mark.parametrize("holes", [False, True])
def test_filter_and_smoother_are_conditioning_of_the_joint_gaussian(dimensions, holes):
    program = made(dimensions)
    x = dgm.sample(program, 3, length=T, seed=1)["x"]
    if holes:
        x[0, 2] = torch.nan
        x[1, 3:] = torch.nan
        if dimensions > 1:
            x[2, 0, 1] = x[2, 4, 0] = torch.nan
    mean_z, cov_z, mean_x, cov_x, cross = dense(program)
    score, post = dgm.score(program, x), dgm.infer(program, x, seed=0)
    chain = post.exact["z"]
    means, covs = chain.marginals()
    for row in range(3):
        flat = x[row].reshape(-1)
        seen = ~flat.isnan()
        fn = dist.MultivariateNormal(mean_x[seen], cov_x[seen][:, seen])
        assert float(score.value[row]) == pytest.approx(float(fn.log_prob(flat[seen])), abs=1e-9)
        gain = torch.linalg.solve(cov_x[seen][:, seen], cross[seen]).mT
        wanted = mean_z + gain @ (flat[seen] - mean_x[seen])
        spread = cov_z - gain @ cross[seen]
        assert torch.allclose(means[row].reshape(-1), wanted, atol=1e-9)
        for t in range(T):
            assert torch.allclose(covs[row, t], spread[t * M : (t + 1) * M, t * M : (t + 1) * M], atol=1e-9)
        z = torch.randn(4, T, M, dtype=torch.float64)
        joint = dist.MultivariateNormal(wanted, 0.5 * (spread + spread.mT)).log_prob(z.reshape(4, -1))
        own = chain.log_prob(z.unsqueeze(1).expand(4, 3, T, M))[:, row]
        assert torch.allclose(own, joint, atol=1e-7)
    assert post.kind == score.kind == "exact"


def test_the_density_is_that_of_pyros_own_distribution():
    program = made(3)
    x = torch.randn(4, T, 3, dtype=torch.float64)
    zero = torch.zeros(M, dtype=torch.float64)
    # Pyro's chain moves once before the first observation: its first move ignores where it begins
    moves = program.transition.mT.expand(T, M, M).clone()
    moves[0] = 0.0
    shifts = dist.MultivariateNormal(
        torch.stack([program.first_mean, *[zero] * (T - 1)]),
        torch.stack([program.first_covariance, *[program.process_covariance] * (T - 1)]),
    )
    theirs = dist.GaussianHMM(
        dist.MultivariateNormal(zero, torch.eye(M, dtype=torch.float64)), moves, shifts, program.weight.mT.expand(T, M, 3),
        dist.Normal(program.bias, program.noise.sqrt()).to_event(1).expand([T]), duration=T,
    )  # fmt: skip
    assert torch.allclose(dgm.score(program, x).value, theirs.log_prob(x), atol=1e-6)


def test_the_program_and_its_answers_are_one_joint_density():
    program = made(2)
    x = dgm.sample(program, 3, length=T, seed=1)["x"]
    x[0, 1, 0] = torch.nan
    z = dgm.infer(program, x, seed=0).draws["z"][0, 0]
    trace = pyro.poutine.trace(pyro.poutine.condition(program.model, {"z": z})).get_trace(x)
    joint = float(trace.log_prob_sum().detach())
    chain = program.smoother(x)
    assert joint == pytest.approx(float((program.log_prob(x) + chain.log_prob(z)).sum()), abs=1e-9)


def test_draws_have_the_smoother_s_moments_between_steps():
    program = made(1)
    x = dgm.sample(program, 1, length=T, seed=1)["x"]
    draws = dgm.infer(program, x, method=dgm.Exact(draws=40_000), seed=0).draws["z"][0, :, 0].reshape(40_000, -1)
    _, cov_z, _, cov_x, cross = dense(program)
    wanted = cov_z - cross.mT @ torch.linalg.solve(cov_x, cross)
    scale = wanted.diagonal().sqrt()
    bound = 5 * (scale[:, None] * scale) * (2 / 40_000) ** 0.5
    assert bool(((draws.mT.cov() - wanted).abs() < bound).all())


def test_holes_are_filled_with_their_conditional_means():
    program = made(1)
    x = dgm.sample(program, 1, length=T, seed=1)["x"]
    x[0, 2] = torch.nan
    _, _, mean, cov, _ = dense(program)
    seen = torch.tensor([0, 1, 3, 4])
    wanted = mean[2] + cov[2, seen] @ torch.linalg.solve(cov[seen][:, seen], x[0, seen] - mean[seen])
    filled = program.impute(x)
    assert float(filled[0, 2]) == pytest.approx(float(wanted), abs=1e-9) and torch.equal(filled[0, seen], x[0, seen])


@pytest.mark.parametrize("dimensions", [1, 3])
def test_em_never_falls(dimensions):
    program = made(dimensions)
    x = dgm.sample(made(dimensions, 3), 10, length=12, seed=1)["x"]
    x[0, 8:], x[1, 2] = torch.nan, torch.nan
    values = [float(program.em_step(x)) for _ in range(25)]
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(values)) and values[-1] > values[0] + 0.1


@torch.no_grad()
def test_the_m_step_is_where_the_expected_gradient_of_the_joint_vanishes():
    program = made(1)
    x = dgm.sample(made(1, 3), 10, length=T, seed=1)["x"]
    x[0, 3:] = torch.nan
    torch.manual_seed(0)
    z = program.smoother(x).sample((20_000,))  # [draws, n, T, M], from the parameters before the step
    program.em_step(x)
    residual = (x.nan_to_num(0.0) - (z @ program.weight.mT + program.bias).squeeze(-1)) * ~x.isnan()
    moved = z[..., 1:, :] - z[..., :-1, :] @ program.transition.mT
    away = z[..., 0, :] - program.first_mean
    scores = {
        "bias": residual.sum((1, 2)),
        "weight": (residual.unsqueeze(-1) * z).sum((1, 2)),
        "noise": ((residual.square() - program.noise) * ~x.isnan()).sum((1, 2)),
        "transition": torch.einsum("sntj,snti->sij", z[..., :-1, :], moved).flatten(1),
        "process": (torch.einsum("snti,sntj->sij", moved, moved) - 10 * (T - 1) * program.process_covariance).flatten(
            1
        ),
        "first mean": away.sum(1),
        "first covariance": (torch.einsum("sni,snj->sij", away, away) - 10 * program.first_covariance).flatten(1),
    }
    for name, score in scores.items():
        error = score.std(0) / len(score) ** 0.5
        assert bool((score.mean(0).abs() < 5 * error).all()), name


def test_learning_finds_a_slow_signal_in_noise():
    torch.manual_seed(0)
    truth = dgm.models.LinearGaussianStateSpace(1, 2)
    with torch.no_grad():
        truth.transition.fill_(0.95)
        truth.process_factor.fill_(-1.0)
        truth.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    drawn = dgm.sample(truth, 20, length=40, seed=0)
    program = dgm.models.LinearGaussianStateSpace(1, 2)
    fit = dgm.learn(program, drawn["x"], method=dgm.EM(steps=60), seed=0)
    assert -fit.history["objective"].iloc[-1] > float(dgm.score(truth, drawn["x"]).mean().value) - 0.05
    assert float(program.transition) == pytest.approx(0.95, abs=0.06)
    assert torch.allclose(program.noise.detach(), torch.ones(2), atol=0.2)


def test_refusals_name_the_argument():
    with pytest.raises(ProgramError, match="latent must be a whole number"):
        dgm.models.LinearGaussianStateSpace(0)
    with pytest.raises(ProgramError, match="floor must be a positive variance"):
        dgm.models.LinearGaussianStateSpace(1, floor=0.0)
    program = dgm.models.LinearGaussianStateSpace(1, 2)
    with pytest.raises(DataError, match=r"shape \[n, T, 2\]"):
        dgm.score(program, torch.zeros(3, 4))
    with pytest.raises(ProgramError, match="pass length="):
        dgm.sample(program, 2)
