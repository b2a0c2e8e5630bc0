"""FairVAE: the discrepancy against its kernel, and a probe that cannot tell the groups from the codes."""

import math

import pytest
import torch
from torch import Tensor

import ppl_dgm as dgm
from ppl_dgm.models import VAE, ConditionalVAE, FairVAE


def test_the_discrepancy_is_that_of_the_gaussian_kernel() -> None:
    torch.manual_seed(0)
    program = FairVAE(4, 3, latent=2, likelihood="gaussian", bandwidth=1.5, directions=200_000)
    s = torch.tensor([0, 1, 1, 2, 2, 2, 0, 1])
    z = torch.randn(8, 2) + s[:, None]
    kernel = (-torch.cdist(z, z).square() / (2 * 1.5**2)).exp()
    exact, apart = 0.0, ~torch.eye(8, dtype=torch.bool)
    for group in range(3):
        mine, others = s == group, s != group
        within = [kernel[m][:, m][apart[m][:, m]].mean() for m in (mine, others)]
        share = float(mine.double().mean())
        exact += (1 - share) ** 2 * float(within[0] + within[1] - 2 * kernel[mine][:, others].mean())
    assert float(program.discrepancy(z, s)) == pytest.approx(exact, abs=0.01)
    assert float(program.discrepancy(z, torch.zeros(8).long())) == 0.0


def test_the_discrepancy_is_zero_on_average_where_groups_are_alike() -> None:
    torch.manual_seed(0)
    program = FairVAE(4, 2, latent=2, likelihood="gaussian")
    s = torch.tensor([0] * 5 + [1] * 11)
    found = torch.stack([program.discrepancy(torch.randn(16, 2), s) for _ in range(2000)])
    assert abs(float(found.mean())) < 4.5 * float(found.std()) / 2000**0.5 and bool((found < 0).any())
    far = program.discrepancy(torch.randn(16, 2) + 2.0 * s[:, None], s)
    assert float(far) > 0.2


def people(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """x has two columns of a merit m, two of the group s and their noise."""
    generator = torch.Generator().manual_seed(0)
    s = torch.randint(0, 2, (rows,), generator=generator)
    merit = torch.randn(rows, generator=generator)
    clean = torch.stack([merit, merit, 2.0 * s - 1.0, 2.0 * s - 1.0], 1)
    return clean + 0.3 * torch.randn((rows, 4), generator=generator), s, merit


def probe(z: Tensor, s: Tensor) -> float:
    """Accuracy of a quadratic logistic regression of s on z, on rows that it has not seen."""
    z = (z - z.mean(0)) / z.std(0)
    products = (z[:, :, None] * z[:, None]).flatten(1)
    features, half = torch.cat([z, products], 1), len(z) // 2
    torch.manual_seed(0)
    net = torch.nn.Linear(features.shape[1], 1)
    optimiser = torch.optim.LBFGS(net.parameters(), max_iter=100)

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits = net(features[:half])[:, 0]
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, s[:half].float())
        value = value + 1e-3 * net.weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return float(((net(features[half:])[:, 0] > 0) == s[half:].bool()).double().mean())


def test_the_code_of_a_fair_program_does_not_tell_the_group() -> None:
    x, s, merit = people(1000)
    options = {"latent": 2, "hidden": 16, "likelihood": "gaussian", "encoder_dropout": 0.0, "decoder_dropout": 0.0}
    torch.manual_seed(0)
    plain, fair = VAE(4, **options), FairVAE(4, 2, mmd=20.0, **options)
    steps: dict = {"elbo": "mean_field", "epochs": 50, "lr": 0.01, "kl_weight": lambda epoch: min(1.0, epoch / 25)}
    dgm.learn(plain, x, method=dgm.SVI(**steps), seed=0)
    fit = dgm.learn(fair, x, s, method=dgm.PenalisedSVI(**steps), seed=0)
    assert fit.cost.path == "recorded"
    with torch.no_grad():
        torch.manual_seed(1)
        of_plain, of_fair = plain.eval().encode(x).sample(), fair.eval().encode_given(x, s).sample()
    chance = float(torch.maximum(s[500:].double().mean(), 1 - s[500:].double().mean()))
    error = math.sqrt(0.25 / 500)
    assert probe(of_plain, s) > 0.95
    assert probe(of_fair, s) < chance + 4 * error
    told = torch.corrcoef(torch.cat([of_fair.T, merit[None]]))[2, :2].abs().max()
    assert float(told) > 0.9  # of what it may know, it knows much


def test_the_penalty_takes_out_what_a_weak_prior_leaves_in() -> None:
    x, s, _ = people(600)
    x = x + 1.5 * (2 * s[:, None] - 1)
    left = []
    for mmd in (0.0, 20.0):
        torch.manual_seed(0)
        program = FairVAE(4, 2, mmd=mmd, latent=2, hidden=16, likelihood="gaussian", encoder_dropout=0.0)
        method = dgm.PenalisedSVI(elbo="mean_field", epochs=20, lr=0.01, kl_weight=0.02)
        dgm.learn(program, x[:400], s[:400], method=method, seed=0)
        with torch.no_grad():
            torch.manual_seed(0)
            left.append(float(program.discrepancy(program.encode_given(x[400:], s[400:]).sample(), s[400:])))
    assert left[0] > 0.02 and left[1] < 0.25 * left[0]


def test_without_the_penalty_it_is_the_conditional_program() -> None:
    x, s, _ = people(20)
    torch.manual_seed(0)
    fair = FairVAE(4, 2, latent=2, hidden=8, likelihood="gaussian", mmd=0.0)
    twin = ConditionalVAE(4, classes=2, latent=2, hidden=8, likelihood="gaussian")
    twin.load_state_dict({k: v for k, v in fair.state_dict().items() if k in twin.state_dict()})
    assert torch.equal(dgm.score(fair, x, s, seed=0).value, dgm.score(twin, x, s, seed=0).value)
    assert fair.penalty(x, s).item() == 0.0 and not isinstance(fair.default_method("learn"), dgm.PenalisedSVI)
    assert dgm.sample(fair, 3, given={"s": 1}, seed=0)["x"].shape == (3, 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mmd": -1.0}, "mmd"),
        ({"bandwidth": 0.0}, "bandwidth"),
        ({"directions": 0}, "directions"),
        ({"prior": "conditional"}, "depend on s"),
        ({"groups": 1}, "classes is 1"),
    ],
)
def test_refusals(options: dict, words: str) -> None:
    with pytest.raises(dgm.ProgramError, match=words):
        FairVAE(4, likelihood="gaussian", **options)
    with pytest.raises(dgm.DataError, match="of x given s"):
        dgm.score(FairVAE(4, likelihood="gaussian"), torch.zeros(2, 4))
