"""The command line: every command on a small table, its JSON, its exit status, and a run that was interrupted."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import ppl_dgm as dgm
from ppl_dgm.cli import app

RUNNER = CliRunner()


def call(*arguments, status=0):
    result = RUNNER.invoke(app, [str(a) for a in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result.output


def call_json(*arguments, status=0):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(call(*arguments, "--json", status=status), parse_constant=refuse)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "table.csv"
    rows = np.random.default_rng(0).integers(0, 3, (60, 4))
    np.savetxt(path, rows, fmt="%d", delimiter=",", header="a,b,c,d", comments="")
    return path


@pytest.fixture(scope="module")
def run(table):
    out = table.parent / "run"
    call(
        "learn",
        "vae",
        "--data",
        table,
        "--out",
        out,
        "--set",
        "latent=2",
        "--set",
        "hidden=8",
        "--epochs",
        2,
        "--seed",
        1,
    )
    return out


def test_learn_writes_a_whole_run_folder(run):
    assert {"config.json", "weights.safetensors", "history.json", "run.json", "history.png"} <= {
        p.name for p in run.iterdir()
    }
    assert not (run / "checkpoint.safetensors").exists()
    fit = dgm.Fit.load(run)
    assert (fit.program.observed, fit.program.values, fit.program.latent) == (4, 3, 2) and len(fit.history) == 2


def test_score_is_what_the_library_says_and_is_kept(run, table):
    row = call_json("score", run, "--split", "valid", "--seed", 4)
    score = dgm.score(dgm.Fit.load(run).program, dgm.data.load(table).valid, seed=4)
    assert (row["kind"], row["examples"]) == ("lower_bound", 6)
    assert row["nats"] == pytest.approx(score.mean().value) and row["stderr"] == pytest.approx(score.mean().stderr)
    text = call("score", run, "--split", "valid", "--method", "elbo")
    assert "(lower bound)" in text and "nats per example" in text
    assert [r["split"] for r in json.loads((run / "scores.json").read_text())[-2:]] == ["valid", "valid"]


def test_sample_writes_a_table_with_the_datas_columns(run, tmp_path):
    told = call_json("sample", run, "-n", 7, "--seed", 2, "--out", tmp_path / "s.csv")
    assert told["shape"] == [7, 4]
    assert (tmp_path / "s.csv").read_text().splitlines()[0] == "a,b,c,d"
    x = dgm.sample(dgm.Fit.load(run).program, 7, seed=2)["x"]
    assert np.array_equal(np.loadtxt(tmp_path / "s.csv", delimiter=",", skiprows=1), x.numpy())
    assert call("sample", run, "-n", 3) and (run / "samples.csv").exists()


def test_infer_prints_means_and_keeps_draws(run):
    told = call_json("infer", run, "--rows", 100, "--seed", 3)  # more than there are
    post = dgm.Posterior.load(run)
    assert told["kind"] == post.kind == "approximate" and len(told["posterior"]) == 6 == post.draws["z"].shape[2]
    assert torch.allclose(torch.tensor([r["mean"] for r in told["posterior"]]), post.mean("z"), atol=1e-5)
    assert "mean ± sd" in call("infer", run, "--rows", 2)


def test_card_and_models(run, table):
    assert [row["task"] for row in call_json("card", "mixture-of-categoricals", "--set", "components=2")["tasks"]] == [
        "sample",
        "score",
        "infer",
        "learn",
    ]
    measured = call_json("card", run)
    assert measured["program"] == "VAE" and {r["task"] for r in measured["tasks"] if r["seconds"]} == {
        "sample",
        "score",
        "infer",
    }
    rows = call_json("models")
    assert [row["model"] for row in rows] == dgm.models.names() and all(row["summary"] and row["score"] for row in rows)
    assert "importance weighting" in call("card", "vae", "--data", table)


def test_check_exits_with_one_if_something_is_wrong(tmp_path, table):
    path = tmp_path / "mine.py"
    path.write_text(
        "import pyro, pyro.distributions as dist\n"
        "def good(x):\n    with pyro.plate('data', len(x)):\n        pyro.sample('x', dist.Poisson(1.0).expand([4]).to_event(1), obs=x)\n"
        "def bad(x):\n    with pyro.plate('data', 3):\n        pyro.sample('x', dist.Poisson(1.0).expand([4]).to_event(1), obs=x)\n"
    )
    good = call_json("check", f"{path}:good", "--data", table)
    assert good["problems"] == [] and good["sites"][0]["name"] == "x"
    bad = call_json("check", f"{path}:bad", "--data", table, status=1)
    assert "plate 'data' of size 3" in bad["problems"][0]
    assert "wrong:" in call("check", f"{path}:bad", "--data", table, status=1)


def test_overwrite_replaces_the_run_and_what_was_said_of_it(table, tmp_path):
    arguments = (
        "learn",
        "mixture-of-categoricals",
        "--data",
        table,
        "--out",
        tmp_path,
        "--set",
        "components=2",
        "--epochs",
        1,
    )
    assert call_json(*arguments)["out"] == str(tmp_path)
    call("score", tmp_path)
    call(*arguments, "--overwrite")
    assert not (tmp_path / "scores.json").exists()  # those were another program's


@pytest.mark.parametrize("arguments", [("learn",), ("score", "x", "--nonsense"), ("nonsense",)])
def test_wrong_usage_exits_with_two(arguments):
    call(*arguments, status=2)


def test_help_exits_with_zero():
    assert all(name in call("--help") for name in ("models", "learn", "score", "sample", "infer", "card", "check"))


def test_an_interrupted_run_goes_on_as_if_nothing_had_been(table, tmp_path, monkeypatch):
    """Stopped after the second of four epochs; the same command then gives the history of a run without a stop."""
    from ppl_dgm import cli
    from ppl_dgm.inference.learning import training

    old, write, written = cli._learner, training.write_checkpoint, []
    monkeypatch.setattr(cli, "_learner", lambda *a: dataclasses.replace(old(*a), checkpoint_seconds=0.0))

    def stop_after_two(*arguments):
        write(*arguments)
        written.append(1)
        if len(written) == 2:
            raise KeyboardInterrupt

    def learn(out):
        return RUNNER.invoke(
            app,
            [
                "learn",
                "vae",
                "--data",
                str(table),
                "--out",
                str(out),
                "--set",
                "latent=2",
                "--set",
                "hidden=8",
                "--epochs",
                "4",
            ],
        )

    monkeypatch.setattr(training, "write_checkpoint", stop_after_two)
    assert learn(tmp_path / "broken").exit_code != 0 and not (tmp_path / "broken" / "config.json").exists()
    monkeypatch.setattr(training, "write_checkpoint", write)
    assert learn(tmp_path / "broken").exit_code == 0 and learn(tmp_path / "whole").exit_code == 0
    one, other = (dgm.Fit.load(tmp_path / name) for name in ("broken", "whole"))
    columns = ["epoch", "objective", "valid"]
    assert one.history[columns].equals(other.history[columns]) and len(one.history) == 4
    assert all(
        torch.allclose(p, q, atol=1e-6)
        for p, q in zip(one.program.state_dict().values(), other.program.state_dict().values(), strict=True)
    )


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(table, tmp_path):
    """kill -9 after the first checkpoint; the same command then finishes, as if nothing had been."""
    learn = (
        "import sys, ppl_dgm.cli as cli, dataclasses\n"
        "old = cli._learner\n"
        "cli._learner = lambda *a: dataclasses.replace(old(*a), checkpoint_seconds=0.0, patience=None)\n"
        "cli.main()\n"
    )

    def command(out, epochs):
        options = f"learn vae --data {table} --out {out} --set latent=2 --set hidden=8 --epochs {epochs}"
        return [sys.executable, "-c", learn, *options.split()]

    broken = tmp_path / "broken"
    process = subprocess.Popen(command(broken, 100000), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (broken / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    from ppl_dgm.files import load_tensors

    done = load_tensors(broken / "checkpoint.safetensors")[1]["epoch"]  # whole, whenever the process died
    assert done >= 1 and not (broken / "config.json").exists()
    subprocess.run(command(broken, done + 2), check=True, stdout=subprocess.DEVNULL)
    assert list(dgm.Fit.load(broken).history["epoch"]) == list(range(1, done + 3))


# -- compare -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schools(tmp_path_factory):
    """A function of two arguments, and a file with them."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "mine.py").write_text(
        "import pyro, pyro.distributions as dist\n"
        "def schools(y, sigma):\n"
        "    mu = pyro.sample('mu', dist.Normal(0.0, 5.0))\n"
        "    tau = pyro.sample('tau', dist.HalfCauchy(5.0))\n"
        "    with pyro.plate('schools', len(y)):\n"
        "        t = pyro.sample('t', dist.Normal(0.0, 1.0))\n"
        "        theta = pyro.deterministic('theta', mu + tau * t)\n"
        "        pyro.sample('y', dist.Normal(theta, sigma), obs=y)\n"
    )
    y, sigma = [28.0, 8, -3, 7, -1, 1, 18, 12], [15.0, 10, 16, 11, 9, 11, 10, 18]
    (folder / "data.json").write_text(json.dumps({"y": y, "sigma": sigma}))
    return folder


def test_compare_writes_a_table_a_file_and_a_figure(schools, tmp_path):
    told = call_json(
        "compare", f"{schools / 'mine.py'}:schools", "--args", schools / "data.json", "--reference", "eight_schools",
        "--methods", "laplace", "importance,amortised", "--seeds", 1, "--out", tmp_path,
    )  # fmt: skip
    rows = {row["method"]: row for row in told["table"]}
    assert set(rows) == {"laplace", "importance", "amortised"} and told["out"] == str(tmp_path)
    assert rows["importance"]["failed"] and rows["importance"]["b2_x_max"] is None and rows["laplace"]["seeds"] == 1
    assert rows["laplace"]["b2_square_max"] > 0 and rows["laplace"]["gradients"] > 0
    assert (tmp_path / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert lines[0].startswith("method,") and len(lines) == 4
    again = dgm.Comparison.load(tmp_path / "comparison.json")
    assert list(again.table.index) == [row["method"] for row in told["table"]] and again.notes == told["notes"]
    assert again.settings["sites"] == ["mu", "tau", "theta"]  # theta is deterministic here


def test_compare_takes_a_target_by_name_and_a_budget(tmp_path):
    text = call("compare", "beta-binomial", "--methods", "hmc", "--seeds", 1, "--budget", 300)
    assert "300 gradients each" in text and "reference: closed form" in text and "hmc" in text


def test_compare_fails_when_nothing_ran(schools):
    out = call("compare", f"{schools / 'mine.py'}:schools", "--args", schools / "data.json", "--reference", "eight-schools",
               "--methods", "importance", "--seeds", 1, status=1)  # fmt: skip
    assert "importance gave no result" in out


def test_compare_lists_targets_and_algorithms():
    told = call_json("compare", "--list")
    assert {"funnel", "eight-schools"} <= {row["target"] for row in told["targets"]} and "chees" in told["algorithms"]
    assert all(row["summary"] for row in told["targets"])
    assert "ill-conditioned-gaussian" in call("compare", "--list")


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("funel",), "did you mean 'funnel'"),
        (("nuts", "--methods", "chees"), "'nuts' is an algorithm"),
        (("funnel", "--methods", "nutz"), "did you mean 'nuts'"),
        ((), "compare needs a target"),
        (("funnel", "--budget", 5, "--seconds", 1), "give one of them"),
    ],
)
def test_compare_says_what_was_wrong(arguments, sentence):
    result = RUNNER.invoke(app, ["compare", *map(str, arguments)])
    assert result.exit_code != 0 and sentence in str(result.exception)


def test_compare_reads_arguments_or_says_why_not(schools, tmp_path):
    for content, sentence in (("[1]", "must hold a JSON object"), ('{"y": [1, [2]]}', "argument 'y' is no array")):
        (tmp_path / "bad.json").write_text(content)
        result = RUNNER.invoke(app, ["compare", f"{schools / 'mine.py'}:schools", "--args", str(tmp_path / "bad.json")])
        assert sentence in str(result.exception)
