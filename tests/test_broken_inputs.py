"""Broken inputs: each gives one sentence with the place and the remedy, and what was saved stays as it was."""

import gzip
import hashlib
import json
import shutil
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm import cli
from ppl_dgm.errors import DgmError

DIGITS = "--data digits"
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run folder of a mixture learned on a small table, with everything that the commands write."""
    root = tmp_path_factory.mktemp("finished")
    np.savetxt(root / "table.csv", np.arange(120).reshape(40, 3) % 3, fmt="%d", delimiter=",")
    commands = (
        f"learn mixture-of-categoricals --data {root}/table.csv --out {root}/run --set components=2 --epochs 2",
        f"score {root}/run",
        f"infer {root}/run --rows 2",
    )
    for command in commands:
        assert run_command(command)[0] == 0
    return root


@pytest.fixture
def place(finished, tmp_path):
    """A copy of it for each case: `table.csv` and `run/`."""
    shutil.copytree(finished, tmp_path / "place")
    run = json.loads((tmp_path / "place/run/run.json").read_text())
    (tmp_path / "place/run/run.json").write_text(json.dumps({**run, "data": str(tmp_path / "place/table.csv")}))
    return tmp_path / "place"


def run_command(line):
    """The exit status, stdout and stderr of `ppl-dgm` with these arguments."""
    import contextlib
    import io

    out, err = io.StringIO(), io.StringIO()
    old, sys.argv = sys.argv, ["ppl-dgm", *line.split()]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    finally:
        sys.argv = old
    return status, out.getvalue(), err.getvalue()


def files(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }


# -- through the library -------------------------------------------------------------------------------------------

IMAGES = torch.randint(0, 17, (6, 64), generator=torch.Generator().manual_seed(0)).float()


def with_entry(value, row=3, column=19):
    x = IMAGES.clone()
    x[row, column] = value
    return x


def mixture():
    return dgm.models.MixtureOfCategoricals(64, 17, 2)


def no_data_plate(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def fixed_plate(x):
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    with pyro.plate("data", 4):
        pyro.sample("x", dist.Bernoulli(p), obs=x)


def twice(x):
    for _ in range(2):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def negative(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(mu, torch.tensor(-1.0)), obs=x)


def gamma(x):
    rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Exponential(rate), obs=x)


def powers(x):
    shape = pyro.sample("shape", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Gamma(shape, 1.0), obs=x)


class NoDensity(dist.TorchDistribution):
    arg_constraints = {}
    support = dist.constraints.real

    def sample(self, sample_shape=()):
        return torch.randn(sample_shape)


def no_density(x):
    pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("x", NoDensity(), obs=x)


def diverging(x):
    w = pyro.param("w", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(1.0 / (w - w), 1.0, validate_args=False), obs=x)


def svi(**options):
    return dgm.SVI(epochs=2, **options)


LIBRARY = {  # name: (what to do, words that must occur)
    "wrong number of columns": (lambda: dgm.learn(mixture(), IMAGES[:, :60]), ["60 columns", "64", "observed=60"]),
    "a row instead of a matrix": (lambda: dgm.score(mixture(), IMAGES[0]), ["(64,)", "unsqueeze(0)"]),
    "images not flattened": (lambda: dgm.score(mixture(), IMAGES.reshape(6, 8, 8)), ["(6, 8, 8)", "flatten(1)"]),
    "value outside the support": (lambda: dgm.learn(mixture(), with_entry(18)), ["x[3, 19]", "18", "from 0 to 16", "values=19"]),
    "rescaled to fractions": (lambda: dgm.learn(mixture(), IMAGES / 16), ["x[0, ", "(x * 16).round()"]),
    "NaN": (lambda: dgm.learn(mixture(), with_entry(NAN)), ["x[3, 19]", "missing (NaN)", "fill"]),
    "infinite": (lambda: dgm.learn(mixture(), with_entry(INF)), ["x[3, 19]", "infinite", "leave their rows out"]),
    "empty array": (lambda: dgm.learn(mixture(), IMAGES[:0]), ["empty", "at least one example"]),
    "text as data": (lambda: dgm.score(mixture(), [["a"] * 64]), ["x", "numbers"]),
    "pixel in a data set": (
        lambda: dgm.learn(mixture(), dgm.data.Dataset("mine", with_entry(18).long(), IMAGES.long(), IMAGES.long(), shape=(8, 8))),
        ["train", "pixel (2, 3)", "18"],
    ),
    "plate of another size": (lambda: dgm.infer(fixed_plate, torch.ones(3)), ["site 'x'", "(3,)", "plate 'data' of size 4", "len(x)"]),
    "no plate 'data' with minibatches": (lambda: dgm.learn(no_data_plate, torch.randn(9), method=svi()), ["plate named 'data'", "batch_size=None"]),
    "guide misses a site": (lambda: dgm.score(gamma, torch.ones(3), guide=lambda x: None), ["'rate'", "add pyro.sample('rate'"]),
    "guide outside the support": (
        lambda: dgm.score(gamma, torch.ones(3), guide=lambda x: pyro.sample("rate", dist.Normal(-5.0, 1.0))), ["'rate'", "support", "give it"],
    ),
    "scale negative": (lambda: dgm.score(negative, torch.tensor(0.0)), ["after site 'mu'", "scale", "positive", "softplus"]),
    "site twice": (lambda: dgm.score(twice, torch.tensor(0.0)), ["site 'x'", "twice", "name of its own"]),
    "score without a density": (lambda: dgm.score(no_density, torch.tensor(0.0)), ["site 'x'", "no log density", "log_prob"]),
    "score without a guide": (lambda: dgm.score(powers, torch.ones(3)), ["'shape'", "pass guide="]),
    "negative data where positive": (lambda: dgm.infer(gamma, torch.tensor([1.0, -2.0])), ["site 'x'", "-2 at index (1,)", "at least 0|above 0"]),
    "the same, with a positive total": (lambda: dgm.infer(gamma, torch.tensor([3.0, -1.0])), ["site 'x'", "-1 at index (1,)"]),
    "model is no function": (lambda: dgm.infer(torch.ones(3)), ["must be callable", "pass the function itself"]),
    "arguments missing": (lambda: dgm.infer(gamma), ["'x'", "give the model's own arguments"]),
    "unknown method": (lambda: dgm.infer(gamma, torch.ones(2), method="nuts!"), ["'nuts!'", "pyro-nuts"]),
    "unknown option": (lambda: dgm.SVI(elbo="tracy"), ["elbo", "'tracy'", "trace, mean_field"]),
    "impossible option": (lambda: dgm.SVI(epochs=0), ["epochs", "at least 1", "0"]),
    "objective not finite": (lambda: dgm.learn(diverging, torch.randn(9), method=svi()), ["site 'x'", "epoch 1", "lr"]),
    "nothing to learn": (lambda: dgm.learn(lambda x: no_parameters(x), torch.randn(9), method=svi()), ["no parameters", "pyro.param"]),
    "unknown autoguide": (lambda: dgm.learn(gamma, torch.ones(9), guide="AutoNormol"), ["'AutoNormol'", "AutoNormal"]),
    "n is zero": (lambda: dgm.sample(gamma, 0, torch.ones(2)), ["n must be a positive", "0"]),
}  # fmt: skip


def no_parameters(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def is_one_sentence(text):
    return (
        "\n" not in text
        and text.rstrip().endswith((".", "'", '"', ")"))
        and "Traceback" not in text
        and "Trace Shapes" not in text
    )


@pytest.mark.parametrize("name", LIBRARY)
def test_the_library_says_it_in_one_sentence(name):
    act, words = LIBRARY[name]
    with pytest.raises(DgmError) as caught:
        act()
    message = str(caught.value)
    assert is_one_sentence(message), message
    for word in words:
        assert any(either in message for either in word.split("|")), message


# -- through the command line --------------------------------------------------------------------------------------


def write(name, content):
    def prepare(place):
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return prepare


def change(name, how):
    def prepare(place):
        (place / name).write_bytes(how((place / name).read_bytes()))

    return prepare


def objects(place):
    np.save(place / "table.npy", np.array([{"evil": 1}] * 12, dtype=object), allow_pickle=True)


def another_checkpoint(place):
    program = dgm.models.VAE(3, 3, latent=2, hidden=4)
    dgm.learn(
        program,
        torch.zeros(20, 3),
        method=dgm.SVI(epochs=1, checkpoint=place / "new" / "checkpoint.safetensors"),
        seed=0,
    )


def truncated_checkpoint(place):
    another_checkpoint(place)
    change("new/checkpoint.safetensors", lambda raw: raw[: len(raw) // 2])(place)


def wrong_hash(place):
    small = np.zeros
    np.savez(
        place / "debd.npz",
        **{
            "nltcs/train": small((16181, 16), np.uint8),
            "nltcs/valid": small((2157, 16), np.uint8),
            "nltcs/test": small((3236, 16), np.uint8),
        },
    )


LEARN = "learn mixture-of-categoricals --set components=2 --epochs 2 --out {place}/new --data"
SMALL_VAE = "learn vae --set latent=2 --set hidden={hidden} --epochs 1 --out {{place}}/new --data {{place}}/table.csv"
ROWS = "0,1,2\n" * 12
COMMANDS = {  # name: (what is done to the folder, the command, words that must occur)
    "empty file": (write("table.csv", ""), f"{LEARN} {{place}}/table.csv", ["table.csv", "empty"]),
    "half a row": (write("table.csv", ROWS + "0,1"), f"{LEARN} {{place}}/table.csv", ["table.csv, line 13", "2 cells", "expected 3"]),
    "text in a column": (write("table.csv", ROWS + "0,one,2\n"), f"{LEARN} {{place}}/table.csv", ["line 13", "column 1", "'one'"]),
    "missing cell": (write("table.csv", ROWS + "0,,2\n"), f"{LEARN} {{place}}/table.csv", ["line 13", "column 1", "fill such cells in"]),
    "not text at all": (write("table.csv", gzip.compress(b"0,1\n")), f"{LEARN} {{place}}/table.csv", ["table.csv", "UTF-8"]),
    "pickled objects": (objects, f"{LEARN} {{place}}/table.npy", ["table.npy", "never unpickled", "astype(float)"]),
    "damaged npy": (write("table.npy", b"\x93NUMPY\x01\x00v"), f"{LEARN} {{place}}/table.npy", ["table.npy", "damaged|not a .npy"]),
    "no such file": (None, f"{LEARN} {{place}}/none.csv", ["none.csv", "check the name"]),
    "no MNIST folder": (None, f"{LEARN} mnist", ["mnist", "PPL_DGM_DATA", "https://"]),
    "wrong hash": (wrong_hash, f"{LEARN} nltcs", ["nltcs", "SHA-256", "fetch the file again"]),
    "unknown data set": (None, f"{LEARN} digitz", ["'digitz'", "did you mean 'digits'"]),
    "unknown model": (None, "learn vaee --data {place}/table.csv --out {place}/new", ["'vaee'", "did you mean VAE"]),
    "unknown method": (None, f"{LEARN} {{place}}/table.csv --method emm", ["'emm'", "did you mean 'em'"]),
    "unknown argument": (None, f"{LEARN} {{place}}/table.csv --set layers=3", ["--set layers", "components"]),
    "argument without a value": (None, f"{LEARN} {{place}}/table.csv --set layers", ["--set layers", "name=value"]),
    "missing argument": (None, "learn mixture-of-categoricals --data {place}/table.csv --out {place}/new", ["components", "--set components="]),
    "wrong support": (
        write("table.csv", ROWS + "0,1.5,2\n"),
        "learn circuit --out {place}/new --data {place}/table.csv",
        ["[6, 1]", "1.5", "an integer from 0 to"],
    ),
    "occupied folder": (None, "learn mixture-of-categoricals --set components=2 --data {place}/table.csv --out {place}/run", ["run", "--overwrite"]),
    "out is a file": (None, "learn mixture-of-categoricals --set components=2 --epochs 1 --data {place}/table.csv --out {place}/table.csv", ["table.csv"]),
    "no run folder": (None, "score {place}/nowhere", ["nowhere", "ppl-dgm learn"]),
    "truncated weights": (change("run/weights.safetensors", lambda raw: raw[:-9]), "score {place}/run", ["weights.safetensors", "restore"]),
    "damaged config": (change("run/config.json", lambda raw: raw[:30]), "sample {place}/run", ["config.json", "JSON", "restore"]),
    "damaged run.json": (change("run/run.json", lambda raw: b"{}"), "score {place}/run", ["run.json", "learn"]),
    "damaged scores": (change("run/scores.json", lambda raw: raw[:5]), "score {place}/run", ["scores.json", "restore"]),
    "weights of another program": (
        change("run/config.json", lambda raw: raw.replace(b'"components": 2', b'"components": 3')), "score {place}/run",
        ["weights do not belong", "MixtureOfCategoricals"],
    ),
    "truncated checkpoint": (truncated_checkpoint, SMALL_VAE.format(hidden=4), ["checkpoint.safetensors", "restore"]),
    "checkpoint of another program": (another_checkpoint, SMALL_VAE.format(hidden=5), ["checkpoint", "another program", "remove it"]),
    "data of another program": (write("other.csv", "0,1\n" * 12), "score {place}/run --data {place}/other.csv", ["2 columns", "3"]),
    "unknown split": (None, "score {place}/run --split tset", ["--split", "train, valid or test", "'tset'"]),
    "no rows": (None, "infer {place}/run --rows 0", ["--rows", "at least 1"]),
    "no samples": (None, "sample {place}/run -n 0", ["n must be a positive"]),
    "no picture of a table": (None, "sample {place}/run --out {place}/samples.png", ["3 columns", ".csv"]),
    "no such function": (write("mine.py", "def model(): ..."), "check {place}/mine.py:modle", ["mine.py", "'modle'", "model"]),
    "broken program file": (write("mine.py", "def model(:"), "check {place}/mine.py:model", ["mine.py"]),
    "no such device": (None, "score {place}/run --device tpu9", ["tpu9"]),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_says_it_in_one_line_and_loses_nothing(name, place, monkeypatch):
    prepare, command, words = COMMANDS[name]
    if prepare is not None:
        prepare(place)
    monkeypatch.delenv("PPL_DGM_DEBUG", raising=False)
    if name == "wrong hash":
        monkeypatch.setenv("PPL_DGM_DATA", str(place))
    else:
        monkeypatch.delenv("PPL_DGM_DATA", raising=False)
    before = files(place)
    status, _, err = run_command(command.format(place=place))
    assert status == 2, err
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
    assert is_one_sentence(err.strip()), err
    for word in words:
        assert any(either in err for either in word.split("|")), err
    after = files(place)
    assert {name: after.get(name) for name in before} == before, "something that was saved has changed"


def test_a_finished_run_still_works_after_all_that(place):
    status, out, _ = run_command(f"score {place}/run --json")
    assert status == 0 and json.loads(out)["kind"] == "exact"
