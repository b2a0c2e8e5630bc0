"""The comparison of algorithms: what it measures on draws of known laws, budgets counted, references, files, words."""

import json
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.errors import FileError, ProgramError, TaskUnavailable
from ppl_dgm.inference.comparing import comparison_task
from ppl_dgm.inference.comparing.budgets import Budget, Lengths
from ppl_dgm.inference.comparing.comparison import Comparison, compare
from ppl_dgm.inference.comparing.measuring import Spent, Yardstick, measure, reached
from ppl_dgm.inference.comparing.references import Reference
from ppl_dgm.inference.targets import find
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Cost, Posterior, Score

DIM, MEAN, SD = 3, 1.0, 2.0


def program() -> None:
    """x ~ N(1, 2) in three dimensions, nothing observed."""
    pyro.sample("x", dist.Normal(MEAN, SD).expand([DIM]).to_event(1))


def truth(**more) -> Reference:
    full = lambda value: {"x": torch.full((DIM,), value, dtype=torch.float64)}  # noqa: E731
    square, fourth = MEAN**2 + SD**2, MEAN**4 + 6 * MEAN**2 * SD**2 + 3 * SD**4
    draws = {"x": MEAN + SD * torch.randn(2000, DIM, generator=torch.Generator().manual_seed(9)).double()}
    known = {
        "mean": full(MEAN), "square": full(square), "variance": full(SD**2), "square_variance": full(fourth - square**2),
        "mcse_mean": full(0.0), "mcse_square": full(0.0), "draws": draws,
    }  # fmt: skip
    return Reference("normal", "closed form", **(known | more))


@algorithm("test-independent")
@dataclass(frozen=True)
class Independent:
    """Independent draws of the program above, which pretend to have cost gradients."""

    chains: int = 4
    warmup: int = 20
    draws: int = 250
    steps: int = 5
    bias: float = 0.0
    kind: str = "asymptotic"

    def run(self, program, *args, **kwargs):
        x = MEAN + self.bias + SD * torch.randn(self.chains, self.draws, DIM)
        steps = torch.randint(1, 2 * self.steps, (1, self.draws)).expand(self.chains, -1)
        warmup = 2 * self.chains * self.warmup * self.steps
        cost = Cost(
            self.draws, 1.5, 0.5, gradients=warmup + int(steps.sum()), warmup_gradients=warmup, sampling_seconds=0.75
        )
        return Posterior({"x": x}, stats={"n_steps": steps}, cost=cost, how="made up", kind=self.kind)


@algorithm("test-weighted")
@dataclass(frozen=True)
class Weighted:
    """Draws of N(0, 3) with their weights."""

    draws: int = 4000

    def run(self, program, *args, **kwargs):
        proposal, posterior = dist.Normal(0.0, 3.0), dist.Normal(MEAN, SD)
        x = proposal.sample((1, self.draws, DIM))
        weights = (posterior.log_prob(x) - proposal.log_prob(x)).sum(-1)[0]
        evidence = Score((weights.logsumexp(0) - math.log(self.draws)).double(), "estimate")
        return Posterior({"x": x}, log_weights=weights, log_evidence=evidence, cost=Cost(gradients=7, seconds=1.0))


@algorithm("test-failing")
@dataclass(frozen=True)
class Failing:
    how: str = "unavailable"

    def run(self, program, *args, **kwargs):
        if self.how == "unavailable":
            raise TaskUnavailable("site 'x' is too odd; use another method.")
        raise RuntimeError("shapes\ndiffer")


# -- what is measured --------------------------------------------------------------------------------------------------


def test_independent_draws_are_as_good_as_theory_says() -> None:
    """b^2 has expectation 1 / N; of the largest of three, at most a few times that."""
    found = compare(program, methods={"iid": Independent(draws=2500)}, reference=truth(), seeds=4)
    runs = found.runs
    assert runs["b2_x_mean"].mean() == pytest.approx(1 / 10_000, rel=4 * math.sqrt(2 / (4 * DIM)))
    assert (runs["b2_square_max"] < 0.01).all() and (runs["worst_error"] < 5).all()
    assert (runs["ess_bulk"] > 6000).all() and (runs["r_hat"] < 1.01).all()
    assert runs["reach_max"].max() < runs["gradients"].min()
    assert (runs["reach_max"] - runs["reach_max_sampling"] == runs["warmup_gradients"]).all()
    assert (runs["sliced_wasserstein"] < 3 * runs["sliced_wasserstein_floor"]).all()
    assert not any("is off by more" in note for note in found.notes)


def test_a_biased_algorithm_is_ranked_last_and_flagged() -> None:
    methods = {"biased": Independent(bias=1.0), "good": Independent()}
    found = compare(program, methods=methods, reference=truth(), seeds=3)
    table = found.table
    assert list(table.index) == ["good", "biased"]
    assert table.loc["biased", "b2_x_mean"] == pytest.approx(1 / SD**2, rel=0.2)
    assert math.isinf(table.loc["biased", "reach_max"]) and math.isfinite(table.loc["good", "reach_max"])
    assert table.loc["biased", "sliced_wasserstein"] > 3 * table.loc["biased", "sliced_wasserstein_floor"]
    [note] = [note for note in found.notes if "is off by more" in note]
    assert note.startswith("biased ") and "x[" in note and "has not converged" in note


def test_a_curve_is_the_cumulative_average_and_begins_after_warmup() -> None:
    method = Independent(draws=60)
    post = dgm.infer(program, method=method, seed=0)
    spent = Spent.by(post, method, 0.0)
    record, curve = measure(post, spent, Yardstick(truth(), ["x"]))
    x = post.draws["x"].double()
    for place, draw in enumerate(curve["draw"]):
        mean = x[:, :draw].mean((0, 1))
        assert curve["x_max"][place] == pytest.approx(float(((mean - MEAN) ** 2).max() / SD**2))
        paid = post.cost.warmup_gradients + int(post.stats["n_steps"][:, :draw].sum())
        assert curve["gradients"][place] == pytest.approx(paid)
    assert record["b2_x_max"] == curve["x_max"][-1] and record["gradients"] == post.cost.gradients
    assert record["seconds"] == 1.0 and record["compile_seconds"] == 0.5  # recording stands apart
    assert curve["seconds"][-1] == pytest.approx(1.0) and record["warmup_seconds"] == pytest.approx(0.25)


def test_what_is_reached_is_told_by_x_and_by_its_square_together() -> None:
    """Two far modes of unequal shares in the chains, N(+-5, 1/10): x^2 is right at once, x never."""

    def one(value: float) -> dict[str, torch.Tensor]:
        return {"x": torch.tensor(value).double()}

    square, spread = 25.01, 4 * 25 * 0.01 + 2 * 0.01**2
    reference = Reference("modes", "closed form", one(0.0), one(square), one(square), one(spread), one(0.0), one(0.0))
    post = Posterior({"x": torch.tensor([5.0, 5, 5, -5])[:, None] + 0.1 * torch.randn(4, 2000)})
    steps = torch.arange(1.0, 2001).double()
    spent = Spent(10 * steps, steps, 0.0, 0.0, 0.0, False)
    record, _ = measure(post, spent, Yardstick(reference, ["x"]))
    assert record["b2_x_max"] == pytest.approx(0.25, rel=0.01) and record["b2_square_max"] < 0.01
    assert record["reach_max"] == record["reach_max_seconds"] == record["reach_mean"] == math.inf
    assert record["reach_square_max"] < 20_000 and record["reach_square_max_sampling"] == record["reach_square_max"]
    fair = replace(post, draws={"x": post.draws["x"] * torch.tensor([1.0, 1, -1, 1])[:, None]})
    record, _ = measure(fair, spent, Yardstick(reference, ["x"]))
    assert record["reach_square_max"] <= record["reach_max"] < math.inf


def test_reached_is_the_last_crossing() -> None:
    spent = torch.tensor([10.0, 20, 30, 40])
    assert reached(torch.tensor([0.5, 0.001, 0.5, 0.001]), spent) == 40
    assert reached(torch.tensor([0.001, 0.001, 0.001, 0.001]), spent) == 10
    assert reached(torch.tensor([0.001, 0.001, 0.001, 0.01]), spent) == math.inf


def test_chains_in_step_wait_for_the_longest_trajectory() -> None:
    steps = torch.tensor([[1, 3, 2], [4, 1, 2]])
    draws = {"x": torch.zeros(2, 3, 1)}
    # each draw is evaluated 2 * max times, after 5 gradients of warm-up
    cost = Cost(gradients=5 + 2 * (4 + 3 + 2), warmup_gradients=5, seconds=1.0)
    spent = Spent.by(Posterior(draws, stats={"n_steps": steps}, cost=cost), SimpleNamespace(warmup=1), 0.0)
    assert spent.gradients.tolist() == [13, 19, 23] and spent.gradients_before == 5
    # one chain after another, without a count of warm-up
    cost = Cost(gradients=33, seconds=1.0)
    spent = Spent.by(Posterior(draws, stats={"n_steps": steps}, cost=cost), SimpleNamespace(warmup=1), 0.0)
    assert spent.gradients.tolist() == [25, 29, 33] and spent.gradients_before == 20


def test_a_method_without_gradients_is_charged_its_evaluations() -> None:
    cost = Cost(gradients=4, evaluations=96, warmup_gradients=4, seconds=1.0)
    post = Posterior({"x": torch.zeros(2, 30, 1)}, cost=cost)
    spent = Spent.by(post, SimpleNamespace(warmup=10), 0.0)
    assert float(spent.gradients[-1]) == pytest.approx(100) and spent.gradients_before == pytest.approx(25)


def test_weighted_draws() -> None:
    """The weighted average, the ESS of the weights, the evidence, and the sentence about it."""
    reference = truth(log_evidence=Score(torch.tensor(0.0).double(), "exact"))
    found = compare(program, methods={"w": Weighted(), "iid": Independent()}, reference=reference, seeds=2)
    row = found.runs[found.runs["method"] == "w"].iloc[0]
    post = dgm.infer(program, method=Weighted(), seed=0)
    weights = torch.softmax(post.log_weights.double(), 0)
    mean = (weights[:, None] * post.draws["x"][0].double()).sum(0)
    assert row["b2_x_max"] == pytest.approx(float(((mean - MEAN) ** 2).max() / SD**2))
    assert row["ess_bulk"] == pytest.approx(float(1 / weights.square().sum()))
    assert math.isnan(row["ess_tail"]) and row["worst_error"] < 5 and row["gradients"] == 7
    assert abs(row["log_evidence_error"]) < 0.2
    assert any(note.startswith("w: weighted draws") for note in found.notes)
    assert any(note == "iid: no log evidence." for note in found.notes)
    assert len(found.curves[found.curves["method"] == "w"]) == 2  # one point for each seed


def test_what_is_approximate_is_said_to_be() -> None:
    methods = {"iid": Independent(), "short cut": Independent(kind="approximate")}
    found = compare(program, methods=methods, reference=truth(), seeds=1)
    assert any(note.startswith("short cut: approximate, so that its bias does not vanish") for note in found.notes)


def test_a_target_without_moments_is_judged_by_quantiles() -> None:
    x = dist.Normal(MEAN, SD).icdf(torch.tensor([0.1, 0.5, 0.9])).double()
    quantiles = {"x": {p: q.expand(DIM) for p, q in zip((0.1, 0.5, 0.9), x, strict=True)}}
    reference = Reference("quantiles", "closed form", quantiles=quantiles)
    methods = {"good": Independent(draws=1000), "biased": Independent(draws=1000, bias=3.0)}
    found = compare(program, methods=methods, reference=reference, seeds=2)
    assert list(found.table.index) == ["good", "biased"]
    assert found.table.loc["good", "b2_quantile_max"] < 0.01 and found.table.loc["good", "worst_error"] < 5
    # of being below the median: (P(N(4, 2) < 1) - 1/2)^2 / (1/4)
    below = float(dist.Normal(MEAN + 3, SD).cdf(torch.tensor(MEAN)))
    post = dgm.infer(program, method=methods["biased"], seed=0)
    assert float((post.draws["x"] <= MEAN).double().mean()) == pytest.approx(below, abs=0.03)
    assert found.table.loc["biased", "b2_quantile_max"] >= (below - 0.5) ** 2 / 0.25 - 0.05
    assert any("no moments" in note for note in found.notes) and "b² of quantiles" in str(found)


def test_a_reference_that_is_too_short_judges_nothing() -> None:
    error = {"x": torch.full((DIM,), 0.5, dtype=torch.float64)}
    reference = truth(mcse_mean=error, mcse_square={"x": 3 * error["x"]})
    found = compare(program, methods={"iid": Independent()}, reference=reference, seeds=1)
    assert math.isnan(found.runs["reach_max"][0])
    assert found.runs["b2_x_floor"][0] == pytest.approx(0.25 / SD**2)
    assert any("cannot be judged" in note for note in found.notes)
    assert any("within the reference's own error" in note for note in found.notes)
    assert "its own error makes a b²" in str(found)


# -- budgets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [300, 3000, 40_000])
def test_a_budget_is_spent_and_not_exceeded(limit: float) -> None:
    methods = {"cheap": Independent(steps=2), "dear": Independent(steps=20), "few": Independent(chains=1, draws=20)}
    found = compare(program, methods=methods, reference=truth(), seeds=2, budget=limit)
    good = found.runs[found.runs["failed"] == ""]
    assert (good["gradients"] <= limit).all()
    if limit >= 3000:
        assert len(good) == 6 and (good["gradients"] > 0.9 * limit).all()
    assert (good["draws"] >= 1).all()


def test_warmup_and_draws_are_shortened_alike_and_draws_alone_lengthened() -> None:
    def infer(method):
        post = method.run(None)
        return post, Spent.by(post, method, 0.0)

    torch.manual_seed(0)
    short = Lengths(Independent(warmup=200, draws=1000), Budget(4000.0))
    post, spent = short.run(infer)
    assert short.method.warmup / 200 == pytest.approx(short.method.draws / 1000, rel=0.25) and short.method.warmup < 100
    assert post.draws["x"].shape[1] == post.stats["n_steps"].shape[1] == len(spent.gradients) <= short.method.draws
    long = Lengths(Independent(warmup=200, draws=100), Budget(50_000.0))
    long.run(infer)
    assert long.method.warmup == 200 and long.method.draws > 1000
    assert Lengths(Independent(draws=77), None).run(infer)[0].draws["x"].shape[1] == 77


def test_a_warmup_beyond_the_budget_is_a_reason_not_a_number() -> None:
    found = compare(program, methods={"iid": Independent(steps=5)}, reference=truth(), seeds=1, budget=3)
    assert "more than 3 gradients" in found.runs["failed"][0] and math.isnan(found.table.loc["iid", "b2_x_max"])
    assert "gave no result" in str(found)


def test_reported_gradients_are_those_of_a_counting_density(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    for name in ("value_and_grad", "gradient"):
        whole = getattr(dgm.LogDensity, name)

        def counting(self, z, whole=whole):
            counted.append(1 if z.dim() == 1 else len(z))
            return whole(self, z)

        monkeypatch.setattr(dgm.LogDensity, name, counting)
    method = dgm.HMC(chains=2, warmup=20, draws=30, max_steps=4)
    free = compare(program, methods={"hmc": method}, reference=truth(), seeds=1)
    assert free.runs["gradients"][0] == sum(counted)
    budget = 200
    cut = compare(program, methods={"hmc": method}, reference=truth(), seeds=1, budget=budget)
    assert 0.9 * budget < cut.runs["gradients"][0] <= budget
    # the same options again, without a budget, go on as the cut run began
    text = cut.runs["options"][0]
    lengths = {name: int(text.split(f"{name}=")[1].split(",")[0]) for name in ("warmup", "draws")}
    counted.clear()
    again = dgm.infer(program, method=dgm.HMC(chains=2, max_steps=4, **lengths), seed=0)
    assert sum(counted) == again.cost.gradients >= budget
    kept = int(cut.runs["draws"][0])
    mean = again.draws["x"][:, :kept].double().mean((0, 1))
    assert cut.runs["b2_x_max"][0] == pytest.approx(float(((mean - MEAN) ** 2).max() / SD**2))


def test_seconds_as_a_budget() -> None:
    found = compare(program, methods={"iid": Independent()}, reference=truth(), seeds=1, seconds=0.5)
    assert found.runs["seconds"][0] <= 0.5 and found.settings["budget"] == [0.5, "seconds"]
    with pytest.raises(ProgramError, match="give one of them"):
        compare(program, methods=["test-independent"], reference=truth(), budget=1, seconds=1)


def test_runs_of_different_length_are_said_to_be() -> None:
    methods = {"long": Independent(draws=2000), "short": Independent(draws=100)}
    assert any("The runs are unequal" in n for n in compare(program, methods=methods, reference=truth(), seeds=1).notes)
    equal = compare(program, methods=methods, reference=truth(), seeds=1, budget=5000)
    assert not any("unequal" in note for note in equal.notes)


def test_learning_a_guide_is_part_of_what_its_draws_cost() -> None:
    def observed(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([DIM]).to_event(1))
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    method = dgm.SVI(guide="AutoNormal", epochs=30, particles=2, batch_size=None)
    found = compare(observed, torch.zeros(DIM), methods={"svi": method}, reference=truth(), seeds=1)
    assert found.runs["failed"][0] == "" and found.runs["gradients"][0] == 60 and found.runs["seconds"][0] > 0


# -- seeds, failures, sites --------------------------------------------------------------------------------------------


def test_seeds_repeat_bit_for_bit() -> None:
    def once() -> Comparison:
        methods = {"hmc": dgm.HMC(chains=2, warmup=10, draws=20, max_steps=3), "iid": Independent()}
        return compare(program, methods=methods, reference=truth(), seeds=[3, 5], budget=150)

    one, other = once(), once()
    timed = [c for c in one.runs.columns if "second" in c]
    pd.testing.assert_frame_equal(one.runs.drop(columns=timed), other.runs.drop(columns=timed))
    pd.testing.assert_frame_equal(one.curves.drop(columns="seconds"), other.curves.drop(columns="seconds"))
    assert list(one.runs["seed"]) == [3, 3, 5, 5]


def test_a_method_that_fails_keeps_its_row_with_the_reason() -> None:
    methods = {"odd": Failing(), "broken": Failing(how="broken"), "iid": Independent()}
    found = compare(program, methods=methods, reference=truth(), seeds=2)
    assert found.table.index[0] == "iid" and found.table.loc["odd", "seeds"] == 0
    assert found.table.loc["odd", "failed"] == "site 'x' is too odd; use another method."
    assert found.table.loc["broken", "failed"] == "RuntimeError: shapes differ"
    assert any(note.startswith("odd gave no result: site 'x'") for note in found.notes)
    nothing = compare(program, methods={"odd": Failing()}, reference=truth(), seeds=1)
    assert len(nothing.notes) == 1 and "odd gave no result" in str(nothing)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"methods": ["nutz"]}, "did you mean 'nuts'"),
        ({"methods": []}, "methods is empty"),
        ({"seeds": 0}, "seeds must be"),
        ({"seeds": [1, 1]}, "seeds must be"),
        ({"budget": -1}, "budget must be positive"),
        ({"reference": "funel"}, "did you mean 'funnel'"),
        ({"reference": "eight-schools"}, "the reference is of 'mu'"),
    ],
)
def test_mistakes_are_told_before_anything_runs(arguments: dict, sentence: str) -> None:
    with pytest.raises(ProgramError, match=sentence):
        compare(program, **({"methods": ["test-failing"], "reference": truth()} | arguments))


def test_targets_by_name() -> None:
    with pytest.raises(ProgramError, match="did you mean 'funnel'"):
        compare("funel", methods=["laplace"])
    with pytest.raises(ProgramError, match="has its own arguments"):
        compare("funnel", torch.zeros(3), methods=["laplace"])


def test_sites_that_are_not_everywhere_are_left_out_in_words() -> None:
    def matrix():
        pyro.sample("m", dist.Normal(0.0, 1.0).expand([2, 2]).to_event(2))
        pyro.sample("k", dist.Categorical(torch.ones(3)))

    @dataclass(frozen=True)
    class Partial:
        draws: int = 50

        def run(self, program, *args, **kwargs):
            x = torch.randn(1, self.draws, 2, 2)
            k = torch.randint(3, (1, self.draws))
            return Posterior({"m": x, "k": k, "own": x[..., 0]}, cost=Cost(gradients=1), kind="exact")

    @dataclass(frozen=True)
    class Summed:
        draws: int = 50

        def run(self, program, *args, **kwargs):
            return Posterior({"m": torch.randn(1, self.draws, 2, 2)}, how="made; 'k' summed out, so without draws")

    long = Posterior({"m": torch.randn(4, 500, 2, 2), "k": torch.randint(3, (4, 500))}, kind="asymptotic", how="long")
    found = compare(matrix, methods={"a": Partial(), "b": Summed()}, reference=Reference.from_posterior(long), seeds=1)
    assert found.settings["sites"] == ["m"] and found.settings["coordinates"] == 4
    assert any(note.startswith("b: not compared: k (no draws of it)") for note in found.notes)
    assert any("own (not in the reference)" in note for note in found.notes)
    assert any("discrete sites are summed out" in note for note in found.notes)
    both = compare(matrix, methods={"a": Partial()}, reference=Reference.from_posterior(long), seeds=1)
    assert both.settings["sites"] == ["m", "k"] and both.runs["b2_x_max"][0] < 1


def test_without_a_reference_there_is_an_exact_one_or_a_long_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison_task, "LONG_RUN", {"chains": 2, "warmup": 30, "draws": 40, "max_depth": 3})

    def cubed():
        x = pyro.sample("x", dist.Normal(MEAN, SD).expand([DIM]).to_event(1))
        pyro.sample("y", dist.Normal(x.pow(3), 1e3).to_event(1), obs=torch.zeros(DIM))

    found = compare(cubed, methods={"iid": Independent()}, seeds=1)
    assert found.reference.how.startswith("NUTS, 2 chains of 30 + 40")
    assert any("The reference is a run itself (NUTS" in note for note in found.notes)
    assert float(found.reference.mcse_mean["x"].min()) > 0

    def coin(heads):
        fair = pyro.sample("fair", dist.Bernoulli(0.5))
        pyro.sample("heads", dist.Binomial(10, 0.2 + 0.3 * fair), obs=heads)

    exact = compare(coin, torch.tensor(5.0), methods=["exact"], seeds=1)
    assert exact.reference.exact and exact.runs["b2_x_max"][0] < 0.05


# -- references --------------------------------------------------------------------------------------------------------


def test_the_errors_of_a_reference_are_those_of_its_draws() -> None:
    torch.manual_seed(0)
    post = Posterior({"x": MEAN + SD * torch.randn(4, 1000, DIM)}, kind="asymptotic", how="made")
    reference = Reference.from_posterior(post, "mine")
    assert torch.allclose(reference.mcse_mean["x"], torch.full((DIM,), SD / math.sqrt(4000)).double(), rtol=0.15)
    square = math.sqrt(2 * SD**4 + 4 * MEAN**2 * SD**2)
    assert torch.allclose(reference.mcse_square["x"], torch.full((DIM,), square / math.sqrt(4000)).double(), rtol=0.2)
    assert not reference.exact and reference.draws["x"].shape == (4000, DIM) and reference.findings == []


def test_a_closed_form_is_an_exact_reference() -> None:
    normal = dist.Normal(torch.tensor([1.0, 2.0]), 0.5)
    post = Posterior({"z": normal.sample((1, 100))}, exact={"z": normal}, kind="exact", how="closed form")
    reference = Reference.from_posterior(post)
    assert reference.exact and torch.allclose(reference.square["z"], torch.tensor([1.25, 4.25]).double())


def test_a_reference_survives_its_file(tmp_path) -> None:
    reference = truth(log_evidence=Score(torch.tensor(-3.5).double(), "estimate", torch.tensor(0.1).double(), "SMC"))
    reference.save(tmp_path / "r.json", draws=100)
    again = Reference.load(tmp_path / "r.json")
    assert torch.equal(again.square_variance["x"], reference.square_variance["x"]) and len(again.draws["x"]) == 100
    assert float(again.log_evidence.value) == -3.5 and again.log_evidence.kind == "estimate"
    (tmp_path / "bad.json").write_text('{"format": "ppl-dgm reference 1", "name": "x"}')
    (tmp_path / "other.json").write_text('{"a": 1}')
    for name, sentence in (("bad", "damaged reference"), ("other", "neither a reference"), ("none", "no file")):
        with pytest.raises(FileError, match=sentence):
            Reference.load(tmp_path / f"{name}.json")


def test_an_entry_of_posteriordb_is_a_reference(tmp_path) -> None:
    """10 000 independent draws of N(1, 2) would have these errors."""
    names, n = ["x[1]", "x[2]", "x[3]"], 10_000
    square, spread = MEAN**2 + SD**2, math.sqrt(2 * SD**4 + 4 * MEAN**2 * SD**2)
    content = {
        "name": "normal",
        "mean": {"names": names, "mean_value": [MEAN] * 3, "mcse_mean": [SD / math.sqrt(n)] * 3},
        "mean_squared": {"names": names, "mean_squared_value": [square] * 3, "mcse_mean": [spread / math.sqrt(n)] * 3},
    }
    (tmp_path / "entry.json").write_text(json.dumps(content))
    found = compare(program, methods={"iid": Independent()}, reference=tmp_path / "entry.json", seeds=1)
    assert torch.allclose(found.reference.square_variance["x"], torch.full((3,), spread**2).double())
    assert found.runs["b2_x_floor"][0] == pytest.approx(1 / n) and found.runs["b2_square_max"][0] < 0.02
    content["mean"]["names"] = ["x[1", "x[2]", "x[3]"]
    (tmp_path / "entry.json").write_text(json.dumps(content))
    with pytest.raises(FileError, match="damaged entry of posteriordb"):
        Reference.load(tmp_path / "entry.json")


def test_a_target_is_a_reference() -> None:
    target = find("funnel")
    reference = Reference.from_target(target)
    assert reference.exact and torch.equal(reference.variance["v"], target.variance["v"])
    assert reference.draws["v"].std() == pytest.approx(3.0, rel=0.1)  # its own exact sampler
    stored = Reference.from_target(find("eight-schools"))
    assert not stored.exact and "stored long run" in stored.how
    assert compare("funnel", methods=["test-failing"], seeds=1).reference.name == target.name


# -- files and words ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found() -> Comparison:
    methods = {"iid": Independent(), "biased": Independent(bias=1.0), "weighted": Weighted(), "odd": Failing()}
    return compare(program, methods=methods, reference=truth(), seeds=2)


def test_a_comparison_survives_its_file(found: Comparison, tmp_path) -> None:
    found.save(tmp_path / "c.json")
    json.loads((tmp_path / "c.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    again = Comparison.load(tmp_path / "c.json")
    pd.testing.assert_frame_equal(again.table, found.table)
    pd.testing.assert_frame_equal(again.curves, found.curves)
    assert str(again) == str(found) and again.notes == found.notes
    (tmp_path / "c.json").write_text('{"format": "ppl-dgm comparison 1"}')
    with pytest.raises(FileError, match="damaged comparison"):
        Comparison.load(tmp_path / "c.json")


def test_the_report_reads_as_a_table(found: Comparison) -> None:
    text = str(found)
    assert all(word in text for word in ("Accuracy", "Cost", "Draws", "Notes", "reference: closed form", "never"))
    assert max(map(len, text.split("Notes")[0].splitlines())) < 170
    assert "Comparison('program': iid, biased, weighted, odd" in repr(found)


def test_the_figure(found: Comparison, tmp_path) -> None:
    path = found.plot(tmp_path / "c.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
    figure = found.plot()
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert sorted(labels) == ["biased", "iid", "weighted"]  # what failed has nothing to draw
    assert len(figure.axes) == 4 and figure.axes[0].get_xscale() == "log"
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 5]
    assert len(lines) == 2 * 3  # two methods: two seeds and their median
