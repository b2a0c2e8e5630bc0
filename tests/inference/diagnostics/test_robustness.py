"""Attacks on codes against closed forms of linear encoders, and the defence's chains against exact posteriors."""

import pytest
import torch
from torch import nn

import ppl_dgm as dgm
from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.inference.diagnostics import latent
from ppl_dgm.models import VAE

D, L = 6, 2
NOISE, SPREAD = 0.3, 0.5  # of x given z, and of the encoder's posterior


def linear_vae(gain=1.0, **options):
    """x = A z + noise; an encoder z ~ N(gain W x, SPREAD^2), of which only the mean moves with x."""
    torch.manual_seed(0)
    options = {"likelihood": "gaussian", "likelihood_options": {"scale": NOISE}, **options}
    program = VAE(D, latent=L, depth=0, encoder=nn.Linear(D, 2 * L), decoder=nn.Linear(L, D), **options).double().eval()
    with torch.no_grad():
        program.encoder.weight[:L].mul_(gain)
        program.encoder.weight[L:].zero_()
        program.encoder.bias.copy_(torch.tensor([0.0, 0.0] + [2 * torch.tensor(SPREAD).log()] * 2))
    return program


def rows(program, n=8):
    return dgm.sample(program, n, seed=1)["x"]


@pytest.mark.parametrize("measure", ["kl", "distance"])
def test_a_linear_encoder_s_worst_change_is_its_first_singular_vector(measure):
    program = linear_vae()
    found = latent.attack(program, rows(program), 0.7, measure=measure, steps=100)
    largest = torch.linalg.matrix_norm(program.encoder.weight[:L], 2).item()
    exact = (0.7 * largest) ** 2 / (2 * SPREAD**2 if measure == "kl" else 1.0)  # both divergences are |W e|^2 / 2 s^2
    assert torch.allclose(found.shift, torch.full((8,), exact, dtype=torch.float64), rtol=1e-3)
    assert (found.attacked - found.x).norm(dim=-1).max() <= 0.7 + 1e-9
    assert (found.control < found.shift).all() and found.undone == 0 and "times" in found.verdict


def test_the_worst_bounded_change_of_a_linear_encoder_is_a_corner():
    program = linear_vae()
    found = latent.attack(program, rows(program), 0.2, norm="linf", measure="distance", steps=100)
    corners = torch.cartesian_prod(*[torch.tensor([-0.2, 0.2], dtype=torch.float64)] * D)
    exact = (corners @ program.encoder.weight[:L].mT).square().sum(-1).max()
    assert torch.allclose(found.shift, exact.expand(8), rtol=1e-3)
    assert (found.attacked - found.x).abs().max() <= 0.2 + 1e-9


def test_changes_of_whole_numbers_stay_in_the_box_and_are_rounded():
    torch.manual_seed(0)
    program = VAE(D, values=5, latent=L, hidden=8)
    x = torch.randint(0, 5, (20, D))
    found = latent.attack(program, x, 1.0, norm="linf", steps=10)
    assert found.inputs.abs().max() <= 1 + 1e-6
    assert ((found.attacked >= 0) & (found.attacked <= 4) & (found.attacked == found.attacked.round())).all()
    assert (program.likelihood.scaled(found.attacked, program.dtype) - found.inputs).abs().max() <= 0.25 + 1e-6
    tiny = latent.attack(program, x, 0.2, norm="linf", steps=10)  # less than half a level, which is 0.5
    assert tiny.undone == 1 and "Rounding takes back the change of 100%" in tiny.verdict and (tiny.shift > 0).all()
    bits = latent.attack(VAE(D, likelihood="bernoulli", latent=L, hidden=8), (x > 2).float(), 3.0, steps=5)
    assert ((bits.attacked == 0) | (bits.attacked == 1)).all() and bits.undone < 1


def test_the_defence_s_chain_has_the_exact_posterior_and_so_undoes_the_harm():
    program = linear_vae(gain=4.0)
    with torch.no_grad():
        program.decoder.weight.copy_(torch.linalg.qr(torch.randn(D, L, dtype=torch.float64)).Q)
    # an encoder that is right about x = A z, and blown up by what is at right angles to it
    a = program.decoder.weight.detach()
    left = torch.linalg.svd(a).U[:, L:]
    shrink = 1 / (1 + NOISE**2)
    with torch.no_grad():
        program.encoder.weight[:L] = shrink * (a.mT + 8 * torch.randn(L, D - L, dtype=torch.float64) @ left.mT)
        program.encoder.bias[:L] = -program.encoder.weight[:L] @ program.decoder.bias
    x = rows(program) @ a @ a.mT + program.decoder.bias  # on the plane, where the encoder is right
    hit = latent.attack(program, x, 0.3)
    found = latent.defend(program, hit, warmup=40, draws=150, leapfrog=5)
    exact = shrink * (hit.attacked - program.decoder.bias) @ a
    error = found.codes.mean(0) - exact
    # posterior standard deviation NOISE / sqrt(1 + NOISE^2) = 0.287; two draws are worth one independent one, at least
    assert error.abs().max() < 6 * 0.287 / 75**0.5
    assert (found.codes.std(0) / 0.287 - 1).abs().max() < 0.4
    assert 0.6 < found.acceptance.mean() < 0.97
    assert (
        found.repaired > 0.8
        and found.table.loc["chain", "shift of code"] < 0.3 * found.table.loc["encoder", "shift of code"]
    )
    assert "takes back" in found.verdict


def test_a_defence_of_an_attack_that_did_no_harm_says_so():
    program = linear_vae(gain=0.0)
    found = latent.defend(program, latent.attack(program, rows(program), 0.3, steps=3), warmup=5, draws=5, leapfrog=3)
    assert found.shift[0].max() == 0 and "hardly any harm" in found.verdict


def test_both_repeat_under_a_seed_and_draw(tmp_path):
    torch.manual_seed(0)
    program = VAE(4, values=3, latent=L, hidden=8)
    x = torch.randint(0, 3, (5, 4))
    first, second = (latent.attack(program, x, 0.8, steps=5, seed=3) for _ in range(2))
    assert torch.equal(first.inputs, second.inputs)
    a, b = (latent.defend(program, first, warmup=4, draws=3, leapfrog=2, shape=(2, 2), seed=3) for _ in range(2))
    assert torch.equal(a.codes, b.codes)
    first.plot(tmp_path / "attack.png")
    a.plot(tmp_path / "images.png")
    latent.defend(program, first, warmup=4, draws=3, leapfrog=2).plot(tmp_path / "table.png")
    assert len(list(tmp_path.iterdir())) == 3


def test_refusals_name_the_remedy():
    program = linear_vae()
    x = rows(program)
    with pytest.raises(ProgramError, match="radius must be positive"):
        latent.attack(program, x, 0.0)
    with pytest.raises(ProgramError, match="'l2' or 'linf'"):
        latent.attack(program, x, 1.0, norm="l1")
    with pytest.raises(ProgramError, match="warmup, draws"):
        latent.defend(program, latent.attack(program, x, 1.0, steps=1), draws=0)
    with pytest.raises(TaskUnavailable, match="pass a VAE"):
        latent.attack(dgm.models.ProbabilisticPCA(D, 2), x.float(), 1.0)
    planar = VAE(D, latent=L, hidden=8, likelihood="gaussian", posterior="planar").double()
    with pytest.raises(TaskUnavailable, match="measure='distance'"):
        latent.attack(planar, x, 1.0)
    sphere = VAE(D, latent=3, hidden=8, likelihood="gaussian", posterior="von-mises-fisher").double()
    with pytest.raises(TaskUnavailable, match="one site of real numbers"):
        latent.defend(sphere, latent.attack(sphere, x, 1.0, measure="distance", steps=1))
