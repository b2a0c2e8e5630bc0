"""The diagnoses of latents on programs that have learned: collapse, holes and typicality, on the digits of the example."""

import runpy
from pathlib import Path
from typing import Any

import pytest

import ppl_dgm as dgm

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[3] / "examples" / "diagnose_vae.py"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLE))


@pytest.fixture(scope="module")
def digits() -> dgm.data.Dataset:
    return dgm.data.digits()


def test_an_autoregressive_decoder_collapses_is_reported_and_is_cured(
    example: dict[str, Any], digits: dgm.data.Dataset
) -> None:
    found, nats = {}, {}
    for name, method in example["METHODS"].items():
        vae = example["strong_decoder"](digits, method)
        found[name] = dgm.diagnose_latents(vae, digits, gap_rows=0)
        nats[name] = -dgm.score(vae, digits.valid, method=dgm.ImportanceWeighted(draws=16), seed=0).mean().value
    ill = found["ELBO"]
    assert not ill.ok and ill.units.collapsed_levels == ["z"] and ill.units.active == 0
    assert float(ill.units.levels["kl"].sum()) < 0.05
    assert (
        "Posterior collapse: z says nothing about x" in ill.verdict
        and "warm the divergence up more slowly" in ill.verdict
    )
    for name in ("FreeBits", "ELBO, slow warm-up"):
        units = found[name].units
        assert units.ok and units.active >= 4 and float(units.levels["kl"].sum()) > 0.5, name
        assert "collapse" not in units.verdict
        assert nats[name] < nats["ELBO"] + 1.0  # alive for hardly any nats
    assert nats["ELBO"] < 92  # it has collapsed because its decoder is good, not because nothing was learned


def test_the_standard_prior_has_holes_and_the_vamp_prior_fewer(
    example: dict[str, Any], digits: dgm.data.Dataset
) -> None:
    shares: dict[str, list[float]] = {}
    away: dict[str, list[float]] = {}
    told: dict[str, int] = {}
    for prior in example["PRIORS"]:
        reports = [
            dgm.diagnose_latents(example["two_latents"](digits, prior, seed), digits, gap_rows=0) for seed in range(3)
        ]
        shares[prior] = [report.parts["prior"].share for report in reports]
        away[prior] = [report.parts["surgery"]["marginal divergence"] for report in reports]
        told[prior] = sum("Holes" in report.verdict for report in reports)
    assert told["standard"] >= 1 and told["VampPrior"] == 0
    assert min(shares["standard"]) > max(shares["VampPrior"])
    assert sum(shares["standard"]) > 1.5 * sum(shares["VampPrior"])
    assert min(away["standard"]) > 2 * max(away["VampPrior"])  # nats that a better prior would save


def test_typicality_flags_negatives_and_what_is_too_probable(example: dict[str, Any], digits: dgm.data.Dataset) -> None:
    found = example["foreign"](digits, example["two_latents"](digits, "VampPrior", 0))
    low, atypical = found.table["low density"], found.table["atypical"]
    assert low["negatives"] > 0.95 and atypical["negatives"] > 0.95
    assert low["most probable"] < 0.05 and atypical["most probable"] > 0.95
    assert low["digits"] < 0.3 and atypical["digits"] < 0.3
    assert "most probable is flagged by typicality alone" in found.verdict and "digits passes for data" in found.verdict
