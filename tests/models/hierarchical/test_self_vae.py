"""SelfVAE: the coarsening by hand, its bound against quadrature, and draws of a given coarse version."""

from typing import Any

import pytest
import torch
from torch import Tensor

import ppl_dgm as dgm
from ppl_dgm.models import SelfVAE

X = torch.randint(0, 5, (30, 4), generator=torch.Generator().manual_seed(0))


def test_the_coarse_version_by_hand() -> None:
    program = SelfVAE(4, 17, levels=4)
    assert program.reduced(torch.tensor([[0, 4, 5, 16], [8, 9, 12, 13]])).tolist() == [[0, 0, 1, 3], [1, 2, 2, 3]]
    image = torch.tensor([[1, 2, 0, 0], [3, 4, 0, 1], [16, 16, 8, 0], [16, 16, 0, 0]]).flatten()[None]
    program = SelfVAE(16, 17, reduction="downscale", shape=(4, 4))
    assert program.reduced(image).tolist() == [[3, 0, 16, 2]]  # means 2.5, 0.25, 16, 2, rounded half up
    program = SelfVAE(16, 17, reduction="downscale", shape=(4, 4), levels=3)
    assert program.reduced(image).tolist() == [[0, 0, 2, 0]]
    program = SelfVAE(3, likelihood="gaussian", reduction=lambda x: (x > 0).sum(-1, keepdim=True), levels=4)
    assert program.reduced(torch.tensor([[-1.0, 2.0, 3.0]])).tolist() == [[2]]


def quadrature(program: SelfVAE, x: Tensor) -> Tensor:
    """log p(x, d(x)) for one-dimensional u and z, by a sum over a fine grid, [batch]."""
    grid = torch.linspace(-7, 7, 281).double()
    normal = torch.distributions.Normal(torch.zeros(()).double(), 1.0)
    values = []
    with torch.no_grad():
        for row in x:
            coarse = program.reduced(row[None])
            y = program.coarse.scaled(coarse, torch.float64)
            log_u = normal.log_prob(grid) + program.coarse(program.decoder_y(grid[:, None])).log_prob(coarse)
            loc, log_variance = program.prior_z(torch.cat([grid[:, None], y.expand(281, -1)], 1)).chunk(2, -1)
            log_z = torch.distributions.Normal(loc, (0.5 * log_variance).exp()).log_prob(grid)  # [u, z]
            log_x = program.likelihood(program.decoder_x(torch.cat([grid[:, None], y.expand(281, -1)], 1))).log_prob(
                row
            )
            step = 2 * torch.log(grid[1] - grid[0])
            values.append((log_u[:, None] + log_z + log_x).flatten().logsumexp(0) + step)
    return torch.stack(values)


def small() -> SelfVAE:
    torch.manual_seed(0)
    program = SelfVAE(4, 5, latents=(1, 1), hidden=8, depth=1, levels=2)
    with torch.no_grad():
        for net in (program.decoder_y, program.decoder_x, program.prior_z):
            net[-1].weight.mul_(2.0)
    return program.double().eval()


def test_the_bound_tends_to_the_joint_density_with_the_coarse_version() -> None:
    program = small()
    x = X[:4]
    exact = quadrature(program, x)
    elbo = dgm.score(program, x, method=dgm.ELBO(draws=4000), seed=0)
    assert (elbo.value < exact + 4 * elbo.stderr).all()
    tight = dgm.score(program, x, method=dgm.ImportanceWeighted(draws=100_000), seed=0)
    assert ((tight.value - exact).abs() < 5 * tight.stderr + 1e-3).all() and tight.stderr.max() < 0.05


def test_both_objectives_estimate_the_same_bound() -> None:
    """Analytic divergences, with none for y, against draws."""
    program, repeats = small(), 4000
    x = X[:1].expand(repeats, 4)
    bound = dgm.score(program, X[:1], method=dgm.ELBO(draws=20_000), seed=0)
    with program.running(), torch.no_grad():
        torch.manual_seed(0)
        found = -dgm.SVI(elbo="mean_field").objective(program, repeats)(x)
    assert abs(float(found - bound.value)) < 4.5 * float(bound.stderr) * (1 + (20_000 / repeats) ** 0.5)


def test_draws_of_one_coarse_version() -> None:
    program = small()
    y = torch.tensor([0, 1, 1, 0])
    drawn = dgm.sample(program, 50, given={"u": torch.zeros(1).double(), "y": y}, seed=0)
    assert torch.equal(drawn["y"], y.expand(50, 4)) and len(drawn["x"].unique(dim=0)) > 5
    assert dgm.sample(program, 5, given={"u": torch.zeros(1).double()}, seed=0)["y"].shape == (5, 4)
    with pytest.raises(dgm.TaskUnavailable, match="'y' depends on site 'u'"):
        dgm.sample(program, 5, given={"y": y})
    posterior = dgm.infer(program, X[:3], seed=0).draws["y"]
    assert torch.equal(posterior, program.reduced(X[:3]).expand_as(posterior))


def test_it_learns_images_whose_coarse_version_it_keeps() -> None:
    """Images of 4 by 4 pixels, one corner bright: a drawn x has the coarse version that was drawn before it."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.randint(0, 4, (400,), generator=generator)
    coarse = torch.nn.functional.one_hot(corner, 4).reshape(-1, 1, 2, 2)
    x = 3 * coarse.repeat_interleave(2, 2).repeat_interleave(2, 3).flatten(1)
    x = torch.where(torch.rand(x.shape, generator=generator) < 0.05, 1, x)
    program = SelfVAE(16, 4, reduction="downscale", shape=(4, 4), levels=2, latents=(2, 2), hidden=32, depth=1)
    before = dgm.score(program, x[:50], seed=0).mean().value
    fit = dgm.learn(program, x, method=dgm.SVI(elbo="mean_field", epochs=25, lr=0.01), seed=0)
    assert fit.cost.path == "recorded"
    assert dgm.score(program, x[:50], seed=0).mean().value > before + 5.0
    drawn = dgm.sample(program, 300, seed=0)
    assert float((program.reduced(drawn["x"]) == drawn["y"]).double().mean()) > 0.85


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reduction": "blur"}, "reduction 'blur' is unknown"),
        ({"reduction": "downscale"}, "shape is None"),
        ({"reduction": "downscale", "shape": (1, 4)}, "both even"),
        ({"levels": 5}, "levels is 5"),
        ({"levels": 1}, "levels is 1"),
        ({"reduction": lambda x: x}, "needs levels"),
        ({"reduction": lambda x: x.sum(), "levels": 2}, "must keep the rows"),
        ({"latents": (3,)}, "two positive numbers"),
        ({"depth": -1}, "depth"),
        ({"prior": "vamp"}, "prior 'vamp'"),
    ],
)
def test_refusals(options: dict[str, Any], words: str) -> None:
    with pytest.raises(dgm.ProgramError, match=words):
        SelfVAE(4, 5, **options)


def test_real_numbers_need_a_reduction_of_ones_own() -> None:
    with pytest.raises(dgm.ProgramError, match="needs values"):
        SelfVAE(4, likelihood="gaussian")
