"""diagnose: synthetic draws with one known fault each, and draws without any."""

import math
import re
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.errors import ProgramError
from ppl_dgm.inference import targets
from ppl_dgm.inference.diagnostics.chain_checks import tail_shapes
from ppl_dgm.inference.diagnostics.diagnosis import diagnose, nested_r_hat
from ppl_dgm.randomness import seeded
from ppl_dgm.results import Posterior


def chains(*shape: int, chains: int = 4, draws: int = 1000) -> torch.Tensor:
    return torch.randn(chains, draws, *shape)


def slow(draws: int = 1000) -> torch.Tensor:
    """Autoregressive chains, correlation 0.99: well mixed in the end, but few effective draws."""
    x = torch.randn(4, draws)
    for t in range(1, draws):
        x[:, t] = 0.99 * x[:, t - 1] + math.sqrt(1 - 0.99**2) * x[:, t]
    return x


def shifted() -> torch.Tensor:
    x = chains(3)
    x[2, :, 1] += 1.0
    return x


def cauchy() -> torch.Tensor:
    """Four Cauchy chains, one four times as wide: R-hat without ranks says 0.9999."""
    x = torch.distributions.Cauchy(0.0, 1.0).sample((4, 1000))
    x[0] *= 4
    return x


def stuck() -> torch.Tensor:
    x = chains(2)
    x[1, :, 0] = 0.3
    return x


def flags(count: int) -> torch.Tensor:
    return torch.arange(4000).reshape(4, 1000) < count


def modes() -> torch.Tensor:
    x = 0.05 * chains(3)
    x[:, :, 2] += torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None]
    return x


def left_low() -> torch.Tensor:
    return torch.randn(4, 1000) + torch.tensor([0.0, 0.0, -50.0, 0.0])[:, None]


def flags_like() -> torch.Tensor:
    return torch.full((4, 1000), 7)


def missing() -> torch.Tensor:
    x = chains()
    x[0, 5] = math.nan
    return x


FAULTS = {
    "shifted chain": (shifted, {}, ["R-hat", r"b\[1\]", "non-centred"]),
    "one chain wider": (lambda: chains() * torch.tensor([3.0, 1, 1, 1])[:, None], {}, ["R-hat"]),
    "heavy tails, one chain wider": (cauchy, {}, ["R-hat"]),
    "slow mixing": (slow, {}, ["ess bulk is below 400", "more draws"]),
    "stuck": (stuck, {}, [r"never move for b\[0\] in chain 1"]),
    "too few": (lambda: chains(draws=3), {}, ["only 3 draws"]),
    "short": (lambda: chains(draws=50), {}, ["ess tail is below 400"]),
    "not a number": (missing, {}, ["NaN"]),
    "divergences": (chains, {"diverging": lambda: flags(20)}, ["20 of 4000", "0.5 %", "target_accept"]),
    "tree depth": (chains, {"reached_max_treedepth": lambda: flags(1)}, ["1 of 4000", "max_tree_depth"]),
    "separate modes": (modes, {}, [r"chains 1, 3 near -1\S* and chains 0, 2 near 1\S* in b\[2\]", "tempered-smc"]),
    "chains left low": (chains, {"lp": left_low}, [r"log density of chain 2 \(-\S+\) stays far below"]),
    "no mean": (lambda: torch.distributions.Cauchy(0.0, 1.0).sample((4, 1000)), {}, ["mean may not exist", "median"]),
    "no variance to speak of": (
        lambda: torch.distributions.StudentT(1.25).sample((4, 5000)),
        {},
        ["is known far worse than its standard error"],
    ),
    "acceptance": (
        chains,
        {"acceptance_rate": lambda: torch.full((4, 1000), 0.1), "n_steps": flags_like},
        ["Only 10 % of the proposals"],
    ),
    "one chain rejects": (
        chains,
        {"acceptance_rate": lambda: torch.tensor([0.8, 0.8, 0.01, 0.8])[:, None].expand(4, 1000)},
        [r"rejected in chain 2 \(1 %\)"],
    ),
    "steps": (chains, {"reached_max_steps": lambda: flags(3000)}, ["3000 of 4000", "raise max_steps"]),
    "swaps": (chains, {"swap_rate": lambda: torch.full((4, 1000), 0.01)}, ["hardly exchange", "more temperatures"]),
    "lowest swap": (
        chains,
        {"lowest_swap_rate": lambda: torch.full((4, 1000), 0.08)},
        ["ladder of temperatures is broken"],
    ),
    "no round trips": (
        chains,
        {"round_trips": lambda: torch.tensor([3, 0, 1, 0])[:, None] * (torch.arange(1000) > 500)},
        ["back in 2 of 4 chains"],
    ),
    "some families": (chains, {"ancestor": lambda: torch.arange(1000).expand(4, 1000) % 19}, ["descend from 19"]),
    "relocated": (
        chains,
        {"relocated": lambda: torch.tensor([1, 1, 0, 0])[:, None].expand(4, 1000)},
        ["2 of 4 chains were moved"],
    ),
    "unadjusted": (chains, {"energy_variance": lambda: torch.full((4, 1000), 0.5)}, ["no Metropolis correction"]),
    "ancestors": (chains, {"ancestor": lambda: torch.arange(1000).expand(4, 1000) % 3}, ["descend from 3"]),
    "energy": (chains, {"energy": lambda: torch.randn(4, 1000).cumsum(1)}, ["BFMI", "chain 0"]),
}


@pytest.mark.parametrize(("draws", "stats", "words"), FAULTS.values(), ids=FAULTS)
def test_each_fault_is_named_with_its_remedy(draws: Callable, stats: dict, words: list[str]) -> None:
    posterior = Posterior({"b": draws()}, stats={k: v() for k, v in stats.items()}, kind="asymptotic")
    sentences = posterior.diagnose()
    assert sentences
    for word in words:
        assert any(re.search(word, sentence) for sentence in sentences), (word, sentences)
    assert all(sentence.endswith(".") for sentence in sentences)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_good_draws_are_not_complained_about(shape: tuple[int, ...]) -> None:
    stats = {"diverging": flags(0), "reached_max_treedepth": flags(0), "energy": torch.randn(4, 1000)}
    assert diagnose(Posterior({"b": chains(*shape)}, stats=stats, kind="asymptotic")) == []


def test_many_short_chains_need_400_effective_draws_in_all() -> None:
    """64 chains of 300 with an ESS of some 3400 are enough, though R-hat is 1.02: each alone has only 50. Of one, 100 are."""
    mild = torch.randn(64, 300)
    for t in range(1, 300):
        mild[:, t] = 0.7 * mild[:, t - 1] + math.sqrt(1 - 0.7**2) * mild[:, t]
    assert diagnose(Posterior({"b": mild}, kind="asymptotic")) == []
    assert diagnose(Posterior({"b": torch.randn(1, 300)}, kind="asymptotic")) == []
    few = diagnose(Posterior({"b": torch.randn(8, 30)}, kind="asymptotic"))
    assert any("is below 400" in sentence for sentence in few)
    apart = mild + 0.5 * torch.randn(64, 1)
    assert any("R-hat" in sentence for sentence in diagnose(Posterior({"b": apart}, kind="asymptotic")))


def test_elements_that_no_chain_moves_are_constant_by_construction() -> None:
    x = chains(3, 3).tril()
    assert diagnose(Posterior({"root": x}, kind="asymptotic")) == []
    still = diagnose(Posterior({"b": torch.ones(4, 100)}, kind="asymptotic"))
    assert any("never move" in sentence for sentence in still)


@pytest.mark.parametrize("kind", [torch.int64, torch.float32], ids=str)
def test_discrete_elements_may_be_certain_but_not_in_different_ways(kind: torch.dtype) -> None:
    """Six assignments: one that moves, one that one chain alone never moves, and four that are certain."""
    z = (torch.rand(4, 1000, 6) < 0.5).to(kind)
    z[..., 2:4], z[..., 4:] = 0, 1
    z[1, :, 1] = 1
    still = [sentence for sentence in diagnose(Posterior({"z": z}, kind="asymptotic")) if "never" in sentence]
    assert still == []
    z[2, :, 4] = 0
    (sentence,) = [s for s in diagnose(Posterior({"z": z}, kind="asymptotic")) if "never" in s]
    assert "different values of z[4], discrete" in sentence


def test_a_run_of_parallel_tempering_that_goes_through_its_ladder_is_not_complained_about() -> None:
    stats = {
        "lowest_swap_rate": torch.full((4, 1000), 0.3),
        "round_trips": (torch.arange(1000) // 100).expand(4, 1000),
        "ancestor": (torch.arange(1000) % 50).expand(4, 1000),
    }
    assert diagnose(Posterior({"b": chains()}, stats=stats, kind="asymptotic")) == []


def test_a_few_chains_of_many_with_low_energy_change_are_chance() -> None:
    energy = torch.randn(64, 300)
    energy[:5] = energy[:5].cumsum(1)
    stats = {"energy": energy}
    assert diagnose(Posterior({"b": chains(chains=64, draws=300)}, stats=stats, kind="asymptotic")) == []


# -- nested R-hat --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("many", "draws"), [(5, 7), (5, 1), (1, 7)])
def test_nested_r_hat_is_its_definition(many: int, draws: int) -> None:
    x = torch.randn(4 * many, draws, 2, dtype=torch.float64)
    groups = torch.arange(4).repeat(many)  # the chains of a superchain need not be neighbours
    inner, means = [], []
    for k in range(4):
        mine = x[groups == k][..., 1].tolist()
        centres = [sum(chain) / draws for chain in mine]
        mean = sum(centres) / many
        between = sum((c - mean) ** 2 for c in centres) / (many - 1) if many > 1 else 0.0
        spread = (
            [sum((v - c) ** 2 for v in chain) / (draws - 1) for chain, c in zip(mine, centres)] if draws > 1 else [0.0]
        )
        inner.append(between + sum(spread) / len(spread))
        means.append(mean)
    centre = sum(means) / 4
    b, w = sum((m - centre) ** 2 for m in means) / 3, sum(inner) / 4
    found = nested_r_hat(x, groups)
    assert found.shape == (2,) and float(found[1]) == pytest.approx(math.sqrt(1 + b / w), rel=1e-12)


def test_nested_r_hat_tells_chains_that_remember_their_start_from_those_that_do_not() -> None:
    groups = torch.arange(64) // 16
    settled = torch.randn(64, 1)
    assert float(nested_r_hat(settled, groups)) < 1.2
    remembering = settled + 2 * torch.randn(4)[groups][:, None]
    assert float(nested_r_hat(remembering, groups)) > 1.2
    for draws in (1, 50):
        superchain = groups[:, None].expand(64, draws)
        fine = {"b": torch.randn(64, draws)}
        assert not any(
            "nested" in s for s in diagnose(Posterior(fine, stats={"superchain": superchain}, kind="asymptotic"))
        )
        wrong = {"b": fine["b"] + 2 * torch.tensor([0.0, 1.0, 2.0, 3.0])[groups][:, None]}
        found = diagnose(Posterior(wrong, stats={"superchain": superchain}, kind="asymptotic"))
        assert "remember where they started: nested R-hat" in found[0]


def test_nested_r_hat_refuses_what_has_no_variance_within() -> None:
    with pytest.raises(ProgramError, match="two chains in each superchain, or two draws"):
        nested_r_hat(torch.randn(4, 1), torch.arange(4))
    with pytest.raises(ProgramError, match=r"sizes \[3, 1\]"):
        nested_r_hat(torch.randn(4, 5), torch.tensor([0, 0, 0, 1]))
    with pytest.raises(ProgramError, match=r"each of 4 chains, not have shape \(3,\)"):
        nested_r_hat(torch.randn(4, 5), torch.arange(3))


@pytest.mark.parametrize("degrees", [1.0, 2.0, 5.0])
def test_the_shape_of_tails_is_one_over_the_degrees_of_freedom(degrees: float) -> None:
    x = torch.distributions.StudentT(torch.tensor(degrees, dtype=torch.float64)).sample((4, 10_000))
    assert float(tail_shapes(x)) == pytest.approx(1 / degrees, abs=0.2)


# -- the hard targets ----------------------------------------------------------------------------------------


def found_for(target: targets.Target, **options: float) -> list[str]:
    post = dgm.infer(target.program, *target.args, method=dgm.HMC(**options), seed=0)
    return post.diagnose()


def test_the_funnel_is_reported() -> None:
    found = found_for(targets.funnel(), chains=8, warmup=200, draws=200)
    assert any("BFMI" in sentence for sentence in found) and any("R-hat" in sentence for sentence in found)


def test_far_modes_are_reported() -> None:
    found = found_for(targets.far_modes(), chains=8, warmup=150, draws=150)
    assert any("separate modes" in sentence for sentence in found)


def test_a_mode_that_no_chain_has_visited_is_found() -> None:
    """All chains start in one mode, of weight 0.7, so that they agree with one another."""
    target = targets.far_modes()
    sampler = dgm.HMC(chains=4, warmup=200, draws=500)
    density = dgm.LogDensity(target.program, *target.args)
    with seeded(0):
        run = sampler.sample(density, initial=torch.full((4, 2), 9.0) + torch.rand(4, 2))
    draws, _ = density.constrain(torch.stack(run.draws, 1))
    post = Posterior(draws, kind="asymptotic", program=dgm.as_program(target.program), arguments=(target.args, {}))
    post.cost.gradients = run.gradients
    assert diagnose(post, search=False) == []
    (sentence,) = diagnose(post)
    told = re.search(r"at x = \[-(\d+\S*), .* about (0\.4\d) times the mass", sentence)  # 0.3 / 0.7
    assert told and float(told[1].strip(",")) == pytest.approx(10.0, abs=0.1)


def test_a_posterior_with_one_mode_has_no_other() -> None:
    y, sigma = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12]), torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])

    def schools(y: torch.Tensor, sigma: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", 8):
            t = pyro.sample("t", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu + tau * t, sigma), obs=y)

    post = dgm.infer(schools, y, sigma, method=dgm.ChEES(chains=32, warmup=200, draws=200), seed=0)
    assert post.diagnose() == []


def test_the_cauchy_is_reported() -> None:
    found = found_for(targets.cauchy(dim=3), chains=8, warmup=200, draws=400)
    assert any("heavy tails" in sentence for sentence in found) and any("R-hat" in sentence for sentence in found)


# -- draws of a guide, and weighted ones -----------------------------------------------------------------------


def test_independent_draws_of_a_guide_have_no_chains_to_compare() -> None:
    assert diagnose(Posterior({"z": torch.randn(1, 30, 5)}, kind="approximate")) == []


@pytest.mark.parametrize(
    ("log_weights", "words"),
    [
        (lambda: 5 * torch.randn(1000), ["Pareto k", "effective sample size"]),
        (lambda: torch.cat([torch.zeros(999), torch.tensor([12.0])]), ["effective sample size"]),
        (lambda: torch.stack([torch.zeros(1000), 5 * torch.randn(1000)], 1), ["1 of 2 observations"]),
        (lambda: torch.full((1000,), -math.inf), ["support"]),
    ],
    ids=["heavy", "one dominates", "one observation of two", "none"],
)
def test_bad_weights_are_named(log_weights: Callable, words: list[str]) -> None:
    posterior = Posterior({"z": torch.randn(1, 1000, 2)}, log_weights=log_weights(), how="importance")
    sentences = diagnose(posterior)
    for word in words:
        assert any(word in sentence for sentence in sentences), (word, sentences)


def test_statistics_of_approximations() -> None:
    draws = {"z": torch.randn(1, 1000)}

    def told(**stats: torch.Tensor) -> str:
        return " ".join(diagnose(Posterior(draws, stats={k: v.expand(1, 1000) for k, v in stats.items()})))

    assert "Pareto k up to 1.20, reliable below 0.67" in told(pareto_k=torch.tensor(1.2))
    assert told(pareto_k=torch.tensor(0.3)) == ""
    assert "2 more were found" in told(other_modes=torch.tensor(2))
    assert "Stein discrepancy 0.5 against 0.1" in told(ksd=torch.tensor(0.5), ksd_independent=torch.tensor(0.1))

    assert "Stein discrepancy 0.11 against 0.1" in told(ksd=torch.tensor(0.11), ksd_independent=torch.tensor(0.1))
    assert told(ksd=torch.tensor(0.09), ksd_independent=torch.tensor(0.1), other_modes=torch.tensor(0)) == ""


def test_annealed_weights_ask_for_more_temperatures_and_those_of_a_guide_for_a_better_guide() -> None:
    bad = 5 * torch.randn(1000)
    for how, wanted, other in (
        ("annealed importance sampling from the prior, 10 temperatures", "more temperatures", "guide"),
        ("importance sampling", "better guide", "temperatures"),
    ):
        found = diagnose(Posterior({"z": torch.randn(1, 1000)}, log_weights=bad, how=how))
        assert len(found) == 2 and wanted in found[1] and not any(other in sentence for sentence in found)


@pytest.mark.parametrize("batch", [(), (3,)])
def test_good_weights_are_not_complained_about(batch: tuple[int, ...]) -> None:
    for log_weights in (torch.zeros(1000, *batch), 0.3 * torch.randn(1000, *batch)):
        assert diagnose(Posterior({"z": torch.randn(1, 1000, 2)}, log_weights=log_weights)) == []
