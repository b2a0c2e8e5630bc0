"""posteriordb: eight posteriors by NUTS and ChEES with the defaults, and the reader of both layouts of the database."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_dgm as dgm
from ppl_dgm.errors import FileError, ProgramError
from ppl_dgm.inference.chees import ChEES
from ppl_dgm.inference.nuts import NUTS
from ppl_dgm.inference.targets import posteriordb, squared_bias
from ppl_dgm.results import Posterior

FAST = {("earnings-logearn_interaction_z", "chees"), ("eight_schools-eight_schools_noncentered", "chees")}
METHODS = {"nuts": NUTS(), "chees": ChEES()}
# eight schools: log tau has a right tail in which the curvature grows with tau^2, so that a few trajectories
# in a thousand that climb it end there
DIVERGENCES = {"eight_schools-eight_schools_noncentered": 0.005}

CASES = [
    pytest.param(
        name,
        which,
        id=f"{name.split('-')[0]}-{which}",
        marks=() if (name, which) in FAST else pytest.mark.slow,
    )
    for name in posteriordb.PROGRAMS
    for which in METHODS
]
needs_folder = pytest.mark.skipif(
    posteriordb.default_folder() is None, reason="PPL_DGM_DATA names no folder with posteriordb/"
)


@needs_folder
@pytest.mark.parametrize("name, which", CASES)
def test_the_reference_is_met(name: str, which: str) -> None:
    target = posteriordb.target(name)
    entry = posteriordb.read(posteriordb.default_folder(), name)  # type: ignore[arg-type]
    post = dgm.infer(target.program, *target.args, method=METHODS[which], seed=0)
    table = entry.errors(post)
    diverging = float(post.stats["diverging"].double().mean())
    largest = table[["mean", "square"]].abs().max().max()
    print(
        f"{name} by {which}: errors up to {largest:.2f}, R-hat up to {table['r_hat'].max():.4f}, diverging {diverging:.5f}"
    )
    wrong = table[
        (table[["mean", "square"]].abs() >= 4).any(axis=1) | (table["r_hat"] > 1.01) | table.isna().any(axis=1)
    ]
    assert len(table) == len(entry.mean) and wrong.empty, wrong.to_string()
    assert diverging <= DIVERGENCES.get(name, 0.0)


@needs_folder
def test_every_reference_of_the_folder_is_read() -> None:
    folder = posteriordb.default_folder()
    assert folder is not None and set(posteriordb.PROGRAMS) <= set(posteriordb.names(folder))
    for name in posteriordb.PROGRAMS:
        target = posteriordb.target(name)
        for site, mean in target.mean.items():
            known = ~mean.isnan()
            assert bool((target.variance[site][known] > 0).all()) and bool((target.mcse_mean[site][known] > 0).all())
            assert bool((target.square_variance[site][known] > 0).all())


# -- the reader, on a made database --------------------------------------------------------------------------

Y = [1.0, 2.0, 4.0, 5.0]


def normal(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean.sum(-1), 1.0), obs=y)


def exact(n: int, chains: int = 1) -> Tensor:
    """Draws of the posterior of `mean`, [chain, n, 2]: precision I + 4 J, with J all ones."""
    precision = torch.eye(2, dtype=torch.float64) + len(Y)
    covariance = torch.linalg.inv(precision)
    centre = covariance @ torch.full((2,), sum(Y), dtype=torch.float64)
    noise = torch.randn(chains, n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return centre + noise @ torch.linalg.cholesky(covariance).T


def _zipped(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path.with_suffix(".json.zip"), "w") as archive:
        archive.writestr(path.name, json.dumps(content))


def _plain(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _block(x: Tensor, key: str) -> dict[str, Any]:
    """A summary of independent draws [draw, 2], as the database writes it."""
    mcse = x.std(0) / len(x) ** 0.5
    return {"names": ["mean[1]", "mean[2]"], key: x.mean(0).tolist(), "mcse_mean": mcse.tolist()}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with four posteriors: with draws and summaries, with either, and with neither."""
    base = tmp_path / "posterior_database"
    draws = exact(500, chains=4)
    for name in ("both", "draws", "summaries", "neither"):
        reference = None if name == "neither" else f"reference-{name}"
        about = {"name": name, "data_name": "four", "reference_posterior_name": reference, "model_name": "normal"}
        _plain(base / "posteriors" / f"{name}.json", about)
        if name in ("both", "draws"):
            chains = [{f"mean[{i + 1}]": chain[:, i].tolist() for i in range(2)} for chain in draws]
            _zipped(base / "reference_posteriors/draws/draws" / f"{reference}.json", chains)
        if name in ("both", "summaries"):
            for power, key in enumerate(("mean_value", "mean_squared_value"), 1):
                folder = base / "reference_posteriors/summary_statistics" / key / key
                _plain(folder / f"{reference}.json", _block(draws.flatten(0, 1) ** power, key))
    _zipped(base / "data/data/four.json", {"N": 4, "y": Y})
    return tmp_path


@pytest.mark.parametrize("name", ["both", "draws", "summaries"])
def test_the_official_layout_is_read(clone: Path, name: str) -> None:
    draws = exact(500, chains=4)
    for folder in (clone, clone / "posterior_database"):
        entry = posteriordb.read(folder, name)
        assert entry.data == {"N": 4, "y": Y} and entry.about["model_name"] == "normal"
        assert posteriordb.names(folder) == ["both", "draws", "neither", "summaries"]
        for i in range(2):
            value, mcse = entry.mean_squared[f"mean[{i + 1}]"]
            assert value == pytest.approx(float(draws[..., i].square().mean()), rel=1e-12)
            assert mcse == pytest.approx(float(draws[..., i].square().std()) / 2000**0.5, rel=0.15)
    if name == "summaries":
        assert entry.draws is None
    else:
        assert entry.draws is not None and torch.equal(entry.draws["mean[2]"], draws[..., 1])


@pytest.mark.parametrize("name", ["both", "summaries"])
def test_an_entry_makes_a_target_for_the_users_program(clone: Path, name: str) -> None:
    entry = posteriordb.read(clone, name)
    target = entry.target(normal, torch.tensor(entry.data["y"], dtype=torch.float64))
    draws = exact(500, chains=4).flatten(0, 1)
    assert target.dim == 2 and not target.exact
    torch.testing.assert_close(target.mean["mean"], draws.mean(0))
    torch.testing.assert_close(target.variance["mean"], draws.var(0), rtol=1e-3, atol=0)
    torch.testing.assert_close(target.square_variance["mean"], draws.square().var(0), rtol=1e-2, atol=0)
    post = dgm.infer(target.program, *target.args, method=NUTS(warmup=200, draws=300), seed=0)
    table = entry.errors(post)
    assert list(table.index) == ["mean[1]", "mean[2]"]
    assert float(table[["mean", "square"]].abs().max().max()) < 4 and float(table["r_hat"].max()) < 1.02
    assert squared_bias(post, target)["square"] < 0.02


def test_a_program_that_is_not_the_references_is_seen(clone: Path) -> None:
    entry = posteriordb.read(clone, "both")
    shifted = Posterior({"mean": exact(300, chains=4) + 0.2}, kind="asymptotic")
    assert float(entry.errors(shifted)["mean"].abs().min()) > 4
    other = entry.target(lambda y: normal(y), torch.tensor(Y), rename={"mean": "centre"})
    assert list(other.mean) == ["centre"]
    with pytest.raises(ProgramError, match=r"'mean\[1\]'.*only 'centre'"):
        entry.scalars({"centre": torch.zeros(2)})


def test_a_posterior_without_reference_still_has_data(clone: Path) -> None:
    entry = posteriordb.read(clone, "neither")
    assert entry.data["N"] == 4 and entry.mean == {} and entry.draws is None


def test_names_with_several_indices_become_arrays() -> None:
    values = {"a[1,1]": (1.0, 0.1), "a[2,3]": (6.0, 0.2), "b": (7.0, 0.3)}
    entry = posteriordb.Entry("x", {}, values, {k: (v * v + 1, e) for k, (v, e) in values.items()})
    target = entry.target(normal, torch.tensor(Y))
    assert target.mean["a"].shape == (2, 3) and target.mean["b"].shape == ()
    assert float(target.mean["a"][1, 2]) == 6.0 and bool(target.mean["a"][0, 1].isnan())
    picked = entry.scalars({"a": torch.arange(12.0).reshape(2, 2, 3), "b": torch.tensor([1.0, 2.0])})
    assert picked["a[2,3]"].tolist() == [5.0, 11.0] and picked["b"].tolist() == [1.0, 2.0]


def test_what_cannot_be_read_is_named(clone: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"no posterior 'nothing'.*both, draws, neither"):
        posteriordb.read(clone, "nothing")
    with pytest.raises(FileError, match="no posteriors"):
        posteriordb.read(tmp_path / "empty", "both")
    (clone / "posterior_database/data/data/four.json.zip").write_bytes(b"no zip")
    with pytest.raises(FileError, match=r"both in .* cannot be read"):
        posteriordb.read(clone, "both")
    with pytest.raises(ProgramError, match=r"no Pyro program of 'both'"):
        posteriordb.target("both", clone)
