"""The autoregressive likelihood: mass one, an order of entries, a bounded reach, draws, broadcasting, every verb, learning."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import ppl_dgm as dgm
from ppl_dgm.batched import batched_runs
from ppl_dgm.nn import make_likelihood

KINDS: dict[str, dict[str, Any]] = {
    "sequence": {},
    "sequence, reach 2": {"reach": 2},
    "sequence of mixtures": {"components": 2},
    "image": {"shape": (2, 3)},
    "image, reach 1": {"shape": (2, 3), "reach": 1},
    "image of mixtures, reach 1": {"shape": (2, 3), "reach": 1, "components": 2},
}


def made(values: int = 3, observed: int = 6, **options: Any) -> Any:
    part = make_likelihood("autoregressive", observed, values, options={"hidden": 8, **options}).double()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return part


def features(part: Any, *batch: int) -> Tensor:
    return torch.randn(*batch, part.features, dtype=torch.float64)


def every(values: int, observed: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(values), repeat=observed)))


def seen(part: Any, d: int) -> list[int]:
    """The entries whose change changes the probability of entry d, found by trying."""
    x = torch.randint(part.values, (40, part.observed))
    given = part(features(part, 1))
    numbers = given.features + given.network(x)
    found = []
    for e in range(part.observed):
        other = x.clone()
        other[:, e] = (x[:, e] + 1) % part.values
        moved = (given.features + given.network(other) - numbers).abs().amax((0, -1))  # [D]
        if moved[d] > 1e-9:
            found.append(e)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_masses_of_all_configurations_add_up_to_one(kind: str) -> None:
    for values in (2, 3):
        part = made(values, **KINDS[kind])
        p = part(features(part, 1))
        assert float(p.log_prob(every(values, 6)).exp().sum().detach()) == pytest.approx(1.0, abs=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_have_the_probabilities_of_the_density(kind: str) -> None:
    part = made(2, **KINDS[kind])
    p = part(features(part, 1))
    mass = p.log_prob(every(2, 6)).exp().detach()
    draws = p.sample(torch.Size([100_000]))[:, 0]
    counts = torch.bincount((draws * 2 ** torch.arange(5, -1, -1)).sum(-1), minlength=64)
    chi_squared = float(((counts - 1e5 * mass).square() / (1e5 * mass)).sum())
    assert chi_squared < 63 + 5 * (2 * 63) ** 0.5


def test_an_entry_sees_those_before_it_within_reach_and_no_others() -> None:
    assert [seen(made(), d) for d in (0, 1, 5)] == [[], [0], [0, 1, 2, 3, 4]]
    assert seen(made(reach=2), 5) == [3, 4]
    image: dict[str, Any] = {"observed": 12, "shape": (3, 4)}
    assert seen(made(**image), 6) == [0, 1, 2, 3, 4, 5]
    assert seen(made(**image, reach=1), 6) == [1, 2, 3, 5]  # three above and one to the left
    assert seen(made(**image, reach=1), 7) == [2, 3, 6]  # at the right edge
    assert seen(made(**image, reach=1), 4) == [0, 1]  # at the left edge: nothing of the row before wraps around
    assert seen(made(**image, reach=2), 10) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_an_image_shares_its_weights_between_places() -> None:
    part = made(values=4, observed=30, shape=(5, 6), reach=1)
    with torch.no_grad():
        part.network.bias.fill_(0.1)
    p = part(torch.zeros(1, part.features, dtype=torch.float64))
    x = torch.randint(4, (8, 5, 6))
    numbers = p.network(x.flatten(1)).unflatten(1, (5, 6))
    shifted = p.network(x.roll((1, 1), (1, 2)).flatten(1)).unflatten(1, (5, 6))
    torch.testing.assert_close(shifted[:, 2:, 2:5], numbers[:, 1:4, 1:4])


@pytest.mark.parametrize("kind", KINDS)
def test_one_entry_at_a_time_is_what_all_at_once_gives(kind: str) -> None:
    part = made(**KINDS[kind])
    x = torch.randint(3, (4, 5, 6))
    together = part.network(x)
    for d in range(6):
        torch.testing.assert_close(part.network.entry(x[..., :d]), together[..., d, :])


@pytest.mark.parametrize("kind", KINDS)
def test_draws_of_z_broadcast_against_x_and_share_what_x_alone_decides(kind: str) -> None:
    part = made(**KINDS[kind])
    x, f = torch.randint(3, (5, 6)), features(part, 7, 5)
    seen_by_network: list[torch.Size] = []
    hook = part.network.register_forward_pre_hook(lambda _, inputs: seen_by_network.append(inputs[0].shape))
    found = part(f).log_prob(x)  # [draw, row]
    hook.remove()
    assert seen_by_network == [(5, 6)]  # once for all draws
    one_by_one = torch.stack([part(f[k]).log_prob(x) for k in range(7)])
    torch.testing.assert_close(found, one_by_one)
    torch.testing.assert_close(torch.func.vmap(lambda each: part(each).log_prob(x))(f), one_by_one)
    wide = part(f[0]).expand((7, 5))
    assert (wide.batch_shape, wide.event_shape) == ((7, 5), (6,))
    torch.testing.assert_close(wide.log_prob(x), one_by_one[:1].expand(7, 5))
    assert wide.sample().shape == (7, 5, 6) and wide.sample((2,)).shape == (2, 7, 5, 6)
    drawn = batched_runs(lambda: part(f[0]).sample(), 200)
    assert drawn.shape == (200, 5, 6) and drawn.unique(dim=0).shape[0] > 100


def test_a_mixture_starts_with_components_apart() -> None:
    part: Any = make_likelihood("autoregressive", 1, 17, options={"components": 3})
    assert part.law(torch.zeros(9)).loc.tolist() == [4.0, 8.0, 12.0]


def test_what_the_network_is_told_of_a_value_tells_few_values_apart() -> None:
    for values in (2, 3, 4):  # any function of so few values is an affine one of these numbers
        codes = made(values).network.codes
        assert codes.shape == (values, values - 1)
        assert torch.linalg.matrix_rank(torch.cat([codes, torch.ones(values, 1)], 1).detach()) == values
    assert made(17).network.codes.shape == (17, 3)


def test_dropout_is_for_learning_alone() -> None:
    part = made(dropout=0.5)
    x, f = torch.randint(3, (4, 6)), features(part, 4)
    part.train()
    assert not torch.equal(part(f).log_prob(x), part(f).log_prob(x))
    part.eval()
    assert torch.equal(part(f).log_prob(x), part(f).log_prob(x))


def copies(n: int) -> Tensor:
    """Rows whose last two entries repeat the first two."""
    x = torch.randint(0, 4, (n, 2))
    return torch.cat([x, x], -1)


def test_a_vae_with_it_answers_every_verb_and_learns_in_a_recorded_step() -> None:
    torch.manual_seed(0)
    vae = dgm.models.VAE(
        observed=4, values=4, latent=2, hidden=16, likelihood="autoregressive", encoder_dropout=0.0, decoder_dropout=0.0
    )
    x, held_out = copies(400), copies(200)
    dgm.check(vae, x[:5])
    fit = dgm.learn(
        vae, x, method=dgm.SVI(elbo="mean_field", epochs=60, batch_size=100, lr=2e-2, schedule="cosine"), seed=0
    )
    assert fit.cost.path != "python"  # a step was recorded
    score = dgm.score(vae, held_out, method=dgm.ImportanceWeighted(draws=64), seed=0)
    assert score.kind == "lower_bound"
    entropy = 2 * torch.tensor(4.0).log()
    assert entropy - 0.15 < -score.mean().value < entropy + 0.15  # independent entries: twice as much
    drawn = dgm.sample(vae, 500, seed=0)["x"]
    assert float((drawn[:, :2] == drawn[:, 2:]).float().mean()) > 0.9
    again = dgm.sample(vae, 500, seed=0)["x"]
    assert torch.equal(drawn, again)
    posterior = dgm.infer(vae, held_out[:3], seed=0)
    assert posterior.draws["z"].shape[-2:] == (3, 2)
    iwae = dgm.score(vae, held_out[:20], method=dgm.IWAE(particles=50), seed=0)
    assert float(iwae.mean().value) == pytest.approx(-float(entropy), abs=0.3)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"hidden": 0}, "hidden"),
        ({"reach": 0}, "reach"),
        ({"components": 0}, "components"),
        ({"dropout": 1.0}, "dropout"),
        ({"floor": 0.0}, "floor"),
        ({"shape": (2, 2)}, "6 entries"),
        ({"shape": (6,)}, "6 entries"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(dgm.ProgramError, match=what):
        make_likelihood("autoregressive", 6, 3, options=options)


def test_it_needs_values() -> None:
    with pytest.raises(dgm.ProgramError, match="values"):
        make_likelihood("autoregressive", 6)
