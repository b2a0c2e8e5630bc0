"""check: the table is right, every mistake is named with its remedy, and sound programs have no problems."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.nn import PyroModule, PyroSample
from torch import nn

import ppl_dgm as dgm
from ppl_dgm.checking import first_nonfinite
from ppl_dgm.errors import ProgramError

X = torch.tensor([0.3, -1.0, 2.0])


def good(x):
    mu = pyro.sample("mu", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def observing(distribution, x, plate=None):
    def model(x):
        with pyro.plate("data", len(x) if plate is None else plate):
            pyro.sample("x", distribution, obs=x)

    return model, x


class NoDensity(dist.TorchDistribution):
    arg_constraints = {}
    support = dist.constraints.real

    def sample(self, sample_shape=()):
        return torch.randn(sample_shape)


# -- the table -----------------------------------------------------------------------------------------------------


def test_the_table_says_what_the_program_says():
    def program(x):
        scale = pyro.param("scale", torch.ones(2))
        w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("data", 3):
            k = pyro.sample("k", dist.Categorical(w))
            pyro.deterministic("double", 2.0 * k)
            with pyro.plate("inner", 2, dim=-2):
                pyro.sample("y", dist.Normal(torch.zeros(2, 3, 4), scale[0]).to_event(1), obs=x)
        pyro.factor("energy", torch.tensor(0.5))

    report = dgm.check(program, torch.zeros(2, 3, 4))
    assert report.ok and "nothing wrong was found" in str(report)
    rows = {s.name: (s.kind, s.distribution, s.shape, s.plates, s.support) for s in report.sites}
    assert list(rows) == ["scale", "w", "k", "double", "y", "energy"]
    assert rows["scale"] == ("parameter", "", "(2,)", "", "")
    assert rows["w"] == ("latent", "Dirichlet", "() | (3,)", "", "a vector that sums to one")
    assert rows["k"] == ("latent", "Categorical", "(3,) | ()", "data[3]", "an integer from 0 to 2")
    assert rows["double"][0] == "deterministic"
    assert (
        rows["y"] == ("observed", "Normal", "(2, 3) | (4,)", "inner[2] data[3]", "a real number")
        or rows["y"][3] == "data[3] inner[2]"
    )
    assert rows["energy"][0] == "factor"


def test_a_report_with_problems_prints_them():
    report = dgm.check(*observing(dist.Normal(0.0, 1.0), X, plate=4))
    assert not report.ok and "wrong: site 'x'" in str(report) and "nothing wrong" not in str(report)


# -- mistakes ------------------------------------------------------------------------------------------------------


def twice():
    for _ in range(2):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def negative_scale():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(mu, -1.0))


def same_dim():
    with pyro.plate("a", 3, dim=-1), pyro.plate("b", 4, dim=-1):
        pyro.sample("x", dist.Normal(0.0, 1.0))


def reopened():
    for site in "xy":
        with pyro.plate("rows", 3):
            pyro.sample(site, dist.Normal(0.0, 1.0))


def mismatched(x):
    pyro.sample("mu", dist.Normal(0.0, 1.0))
    return torch.ones(3, 2) @ torch.ones(3, 2)


MISTAKES = {  # name: (program, arguments, guide, words that must occur)
    "plate too short": (*observing(dist.Normal(0.0, 1.0), X, plate=4), None, ["site 'x'", "(3,)", "plate 'data' of size 4", "len(x)"]),
    "distribution against plate": (*observing(dist.Normal(torch.zeros(5), 1.0), X), None, ["site 'x'", "5 rows", "plate 'data' of size 3", "len(x)"]),
    "binary support": (*observing(dist.Bernoulli(0.5), torch.tensor([0.0, 1.0, 3.0])), None, ["site 'x'", "3 at index (2,)", "Bernoulli", "0 or 1"]),
    "category too large": (
        lambda x: pyro.sample("x", dist.Categorical(torch.ones(3)).expand([4]).to_event(1), obs=x), torch.tensor([0, 1, 7, 2]), None,
        ["site 'x'", "7 at index (2,)", "an integer from 0 to 2"],
    ),
    "negative where positive": (*observing(dist.Gamma(1.0, 1.0), X), None, ["site 'x'", "-1 at index (1,)", "a number above 0"]),
    "NaN": (*observing(dist.Normal(0.0, 1.0), torch.tensor([1.0, float("nan")])), None, ["site 'x'", "nan at index (1,)", "remove or impute"]),
    "infinite": (*observing(dist.Normal(0.0, 1.0), torch.tensor([float("inf"), 1.0])), None, ["site 'x'", "inf at index (0,)", "remove or impute"]),
    "extra column": (*observing(dist.Normal(0.0, 1.0), X.unsqueeze(1)), None, ["site 'x'", "(3, 1)", "(3,)", "reshape"]),
    "site twice": (twice, None, None, ["site 'z'", "drawn twice", "f'z_{i}'"]),
    "scale negative": (negative_scale, None, None, ["after site 'mu'", "Normal", "parameter scale", "positive number", "softplus"]),
    "no plate": (lambda: pyro.sample("x", dist.Normal(torch.zeros(3), 1.0)), None, None, ["site 'x'", "(3,)", "plate", ".to_event(1)"]),
    "plates on one dimension": (same_dim, None, None, ["'a'", "'b'", "dimension -1", "dim=-2"]),
    "plate opened twice": (reopened, None, None, ["plate 'rows' is opened twice", "with p:"]),
    "no density": (lambda: pyro.sample("x", NoDensity()), None, None, ["site 'x'", "NoDensity has no log density", "log_prob"]),
    "no distribution": (lambda: pyro.sample("x", torch.tensor(1.0)), None, None, ["site 'x'", "Tensor", "needs a distribution"]),
    "no site": (lambda: 3, None, None, ["has no site", "pyro.sample("]),
    "NaN factor": (lambda: pyro.factor("f", torch.tensor(float("nan"))), None, None, ["pyro.factor", "not a number", "check"]),
    "arguments missing": (good, None, None, ["called with 0 positional arguments", "'x'", "give the model's own arguments"]),
    "shapes in the code": (mismatched, X, None, ["raised RuntimeError at or after site 'mu'", "3x2 and 3x2", "correct it"]),
    "guide misses a site": (good, X, lambda x: None, ["guide does not draw", "'mu'", "add pyro.sample('mu'"]),
    "guide draws another": (
        good, X, lambda x: [pyro.sample(name, dist.Gamma(1.0, 1.0)) for name in ("mu", "nu")],
        ["guide draws 'nu'", "no latent site", "is_auxiliary"],
    ),
    "guide of another shape": (good, X, lambda x: pyro.sample("mu", dist.Gamma(1.0, torch.ones(2)).to_event(1)), ["site 'mu'", "(2,) in the guide", "()"]),
    "guide outside the support": (good, X, lambda x: pyro.sample("mu", dist.Normal(-9.0, 1.0)), ["site 'mu'", "guide's Normal", "Gamma", "above 0"]),
    "guide breaks": (good, X, lambda x: 1 / 0, ["the guide raised ZeroDivisionError", "division by zero"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_with_the_place_and_the_remedy(name):
    program, argument, guide, words = MISTAKES[name]
    args = () if argument is None else (argument,)
    problems = dgm.check(program, *args, guide=guide).problems
    assert problems
    assert all(word in problems[0] for word in words), problems[0]
    assert "\n" not in problems[0] and problems[0].endswith(".") and "Trace Shapes" not in problems[0]


@pytest.mark.parametrize(
    "name",
    ["plate too short", "binary support", "site twice", "scale negative", "distribution against plate"],
)
def test_the_verbs_raise_the_same_sentence(name):
    program, argument, _, _ = MISTAKES[name]
    args = () if argument is None else (argument,)
    wanted = dgm.check(program, *args).problems[0]
    with pytest.raises(ProgramError) as caught:
        dgm.score(program, *args)
    assert str(caught.value) == wanted


def test_a_structure_that_changes_is_a_note():
    def program():
        if pyro.sample("k", dist.Bernoulli(0.5)).item():
            pyro.sample("b", dist.Normal(0.0, 1.0))

    report = dgm.check(program)
    assert report.ok and "site 'b' is not always there" in report.notes[0]


# -- sound programs ------------------------------------------------------------------------------------------------

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])


def schools(y, sigma):
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(pyro.sample("theta", dist.Normal(mu, tau)), sigma), obs=y)


def schools_not_centred(y, sigma):
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("data", len(y)):
        theta = pyro.deterministic("theta", mu + tau * pyro.sample("eta", dist.Normal(0.0, 1.0)))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def hidden_markov(x):
    """x: [sequence, time], two states."""
    with pyro.plate("states", 2):
        rows = pyro.sample("rows", dist.Dirichlet(torch.ones(2)))
    sequences, k = pyro.plate("data", len(x), dim=-1), 0
    for t in pyro.markov(range(x.shape[1])):
        with sequences:
            k = pyro.sample(f"k_{t}", dist.Categorical(rows[k]), infer={"enumerate": "parallel"})
            pyro.sample(f"x_{t}", dist.Normal(2.0 * k, 1.0), obs=x[:, t])


class BayesianNet(PyroModule):
    def __init__(self):
        super().__init__()
        self.layer = PyroModule[nn.Linear](2, 3)
        self.layer.weight = PyroSample(dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
        self.layer.bias = PyroSample(dist.Normal(torch.zeros(3), 1.0).to_event(1))

    def forward(self, x, y):
        mean = self.layer(x).sum(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def topics(words):
    """words: [word, document]; two topics over five words."""
    with pyro.plate("topics", 2):
        topic = pyro.sample("topic", dist.Dirichlet(torch.ones(5)))
    with pyro.plate("data", words.shape[1], dim=-1):
        share = pyro.sample("share", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("words", len(words), dim=-2):
            k = pyro.sample("k", dist.Categorical(share))
            pyro.sample("w", dist.Categorical(topic[k]), obs=words)


@config_enumerate
def enumerated_mixture(x):
    with pyro.plate("components", 2):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.ones(2)))
        pyro.sample("x", dist.Normal(loc[k], 1.0), obs=x)


def energy(n):
    with pyro.plate("data", n):
        x = pyro.sample("x", dist.Bernoulli(torch.full((4,), 0.5)).to_event(1))
        pyro.factor("energy", x.sum(-1) * 0.3)


def subsampled(x):
    with pyro.plate("data", len(x), subsample_size=2) as rows:
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x[rows])


def masked(x):
    with pyro.plate("data", len(x)), poutine.mask(mask=x > 0):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


SOUND = {
    "eight schools": (schools, (Y, torch.full((8,), 10.0)), ["mu", "tau", "theta"]),
    "eight schools, not centred": (schools_not_centred, (Y, torch.full((8,), 10.0)), ["mu", "tau", "eta"]),
    "hidden Markov": (hidden_markov, (torch.randn(3, 4),), ["rows", "k_0", "k_1", "k_2", "k_3"]),
    "Bayesian network": (BayesianNet(), (torch.randn(5, 2), torch.randn(5)), ["layer.bias", "layer.weight"]),
    "topics": (topics, (torch.randint(0, 5, (6, 4)),), ["topic", "share", "k"]),
    "enumerated mixture": (enumerated_mixture, (X,), ["loc", "k"]),
    "factors": (energy, (3,), ["x"]),
    "subsampled": (subsampled, (X,), []),
    "masked": (masked, (X,), []),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_program_has_no_problems(name):
    program, args, latent = SOUND[name]
    report = dgm.check(program, *args)
    assert report.ok, report
    assert sorted(s.name for s in report.sites if s.kind == "latent") == sorted(latent)


@pytest.mark.parametrize("name", ["eight schools", "Bayesian network"])
@pytest.mark.parametrize("guide", ["AutoNormal", "AutoMultivariateNormal"])
def test_sound_programs_are_sound_with_an_autoguide(name, guide):
    program, args, _ = SOUND[name]
    report = dgm.check(program, *args, guide=guide)
    assert report.ok, report


# -- finding a NaN ---------------------------------------------------------------------------------------------------


def test_the_first_place_that_is_not_finite_is_named():
    class Program(dgm.Program):
        def __init__(self, weight, loc):
            super().__init__()
            self.weight, self.loc = nn.Parameter(torch.tensor(weight)), loc

        def model(self, x):
            z = pyro.sample("z", dist.Normal(torch.tensor(self.loc), 1.0, validate_args=False))
            pyro.sample("x", dist.Normal(z * self.weight, 1.0, validate_args=False), obs=x)

    nan = float("nan")
    assert first_nonfinite(Program(1.0, 0.0), (torch.tensor(0.0),)) is None
    assert "parameter 'weight' holds nan" in first_nonfinite(Program(nan, 0.0), (torch.tensor(0.0),))
    assert "in the model, site 'z' (Normal) has loc = nan" in first_nonfinite(Program(1.0, nan), (torch.tensor(0.0),))
    assert "site 'x' has the value inf" in first_nonfinite(Program(1.0, 0.0), (torch.tensor(float("inf")),))
