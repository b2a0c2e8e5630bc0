"""Program: its own parameters and no one else's, guides of every kind, copies, files, dtypes."""

import copy
import inspect

import pyro
import pyro.distributions as dist
import pyro.infer.autoguide as autoguide
import pytest
import torch
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

import ppl_dgm as dgm
from ppl_dgm.errors import FileError, ProgramError


def noisy(x):
    """x_i ~ N(loc, scale) with both parameters from pyro.param."""
    loc = pyro.param("loc", torch.tensor(0.5))
    scale = pyro.param("scale", lambda: torch.tensor(2.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


def schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("data", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


class Shift(dgm.Program):
    """mu ~ N(0, 1), x_i ~ N(mu, 1), the guide an attribute: AutoNormal, or what is given."""

    def __init__(self, guide="AutoNormal"):
        super().__init__()
        self.guide = getattr(autoguide, guide)(self.model)

    def model(self, x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def parameters_of(program):
    return {name: p.detach().clone() for name, p in program.named_parameters()}


# -- parameters ----------------------------------------------------------------------------------------------------


def test_pyro_param_of_a_function_is_the_programs_and_is_learned():
    """The maximum of the Gaussian likelihood: the mean and the (biased) standard deviation of the data."""
    x = torch.randn(200) * 3 + 1
    program = dgm.as_program(noisy)
    assert not list(program.parameters())
    fit = dgm.learn(program, x, method=dgm.SVI(epochs=300, batch_size=None, lr=0.05, schedule="cosine"), seed=0)
    loc, scale = program.free_parameters["p:loc"], program.free_parameters["p:scale"].exp()
    assert fit.program is program and len(list(program.parameters())) == 2
    assert float(loc.detach()) == pytest.approx(float(x.mean()), abs=1e-3)
    assert float(scale.detach()) == pytest.approx(float(x.std(correction=0)), rel=1e-3)
    score = dgm.score(program, x)
    wanted = dist.Normal(x.mean(), x.std(correction=0)).log_prob(x)
    assert score.kind == "exact"
    assert torch.allclose(score.value, wanted, atol=1e-2)


def test_two_programs_never_share_parameters_by_name():
    first, second = dgm.as_program(noisy), dgm.as_program(noisy)
    x = torch.randn(50) + 4
    dgm.score(second, x)
    before = parameters_of(second)
    dgm.learn(first, x, method=dgm.SVI(epochs=5, lr=0.5), seed=0)
    assert all(torch.equal(before[name], p) for name, p in parameters_of(second).items())
    assert float(first.free_parameters["p:loc"].detach()) != 0.5


def test_running_hides_the_callers_store_and_leaves_it_untouched():
    pyro.param("loc", torch.tensor(100.0))
    store = pyro.get_param_store()
    inner, outer = dgm.as_program(noisy), dgm.as_program(lambda x: pyro.param("loc", torch.tensor(7.0)))
    with outer.running():
        assert float(outer.run_model(None)) == 7.0
        with inner.running():
            trace = pyro.poutine.trace(inner.run_model).get_trace(torch.zeros(3))
            assert float(trace.nodes["loc"]["value"]) == 0.5
        assert float(outer.run_model(None)) == 7.0
    assert list(store.keys()) == ["loc"] and float(pyro.param("loc")) == 100.0
    pyro.clear_param_store()


@pytest.mark.parametrize("broken", [False, True])
def test_the_store_comes_back_after_an_error_too(broken):
    def program(x):
        pyro.param("w", torch.tensor(1.0))
        if broken:
            raise ValueError("on purpose")
        pyro.sample("x", dist.Normal(0.0, 1.0))

    if broken:
        with pytest.raises(ProgramError, match="on purpose"):
            dgm.sample(program, 2, 0.0)
    else:
        dgm.sample(program, 2, 0.0)
    assert not list(pyro.get_param_store().keys())


def test_pyro_module_of_a_closure_is_learned():
    """x_i ~ N(W z_i + b, 1) with z known: least squares through pyro.module."""
    net = nn.Linear(1, 1)
    z = torch.linspace(-1, 1, 40).unsqueeze(1)
    x = (3 * z + 2).squeeze(1)

    def line(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(net(z).squeeze(-1), 1.0), obs=x)

    fit = dgm.learn(line, x, method=dgm.SVI(epochs=300, batch_size=None, lr=0.1, schedule="cosine"), seed=0)
    assert float(net.weight) == pytest.approx(3.0, abs=0.02)
    assert float(net.bias) == pytest.approx(2.0, abs=0.02)
    assert {id(p) for p in net.parameters()} == {id(p) for p in fit.program.parameters()}


def test_a_closures_module_gets_its_weights_back_from_a_file(tmp_path):
    x = torch.randn(12)

    def make(net):
        def line(x):
            pyro.module("net", net)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(net(torch.ones(1)), 1.0), obs=x)

        return line

    learned, fresh = nn.Linear(1, 1), nn.Linear(1, 1)
    fit = dgm.learn(make(learned), x, method=dgm.SVI(epochs=2), seed=0)
    fit.save(tmp_path)
    again = dgm.Fit.load(tmp_path, program=make(fresh)).program
    assert torch.equal(dgm.score(again, x).value, dgm.score(fit.program, x).value)
    assert torch.equal(fresh.weight, learned.weight)


def test_constrained_attributes_of_a_closures_pyro_module_are_learned_within_their_support():
    class Noise(PyroModule):
        def __init__(self):
            super().__init__()
            self.scale = PyroParam(torch.tensor(1.0), dist.constraints.positive)

        def forward(self):
            return dist.Normal(0.0, self.scale)

    noise = Noise()

    def centred(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", noise(), obs=x)

    x = torch.randn(100) * 4
    dgm.learn(centred, x, method=dgm.SVI(epochs=300, batch_size=None, lr=0.05, schedule="cosine"), seed=0)
    assert float(noise.scale) == pytest.approx(float(x.square().mean().sqrt()), rel=1e-2)


class Nested(dgm.Program):
    """`pyro.param("scale")` of the story beside a module's attribute of the same last name."""

    def __init__(self):
        super().__init__()
        self.inner = PyroModule()
        self.inner.scale = PyroParam(torch.tensor(2.0), dist.constraints.positive)

    def model(self, x=None, n=1):
        loc = pyro.param("scale", torch.tensor(5.0))
        with pyro.plate("data", n if x is None else len(x)):
            return pyro.sample("x", dist.Normal(loc, self.inner.scale), obs=x)


def test_a_free_parameter_and_a_modules_attribute_of_the_same_last_name_stay_apart():
    program = Nested()
    dgm.sample(program, 1)
    assert set(parameters_of(program)) == {"free_parameters.p:scale", "inner.scale_unconstrained"}
    wanted = dist.Normal(5.0, 2.0).log_prob(torch.tensor([4.0]))
    assert torch.allclose(dgm.score(program, torch.tensor([4.0])).value, wanted)


def test_pyro_sample_attributes_are_sites():
    class Regression(dgm.Program):
        def __init__(self):
            super().__init__()
            self.weight = PyroSample(dist.Normal(torch.zeros(2), 1.0).to_event(1))
            self.scale = PyroParam(torch.tensor(0.5), dist.constraints.positive)

        def model(self, x, y=None):
            mean = x @ self.weight
            with pyro.plate("data", len(x)):
                return pyro.sample("y", dist.Normal(mean, self.scale), obs=y)

    program, x = Regression(), torch.eye(2)
    drawn = dgm.sample(program, 500, x, seed=0)
    assert drawn["weight"].shape == (500, 2)
    assert float((drawn["y"] - drawn["weight"]).std()) == pytest.approx(0.5, rel=0.1)  # x is the identity
    report = dgm.check(program, x, torch.zeros(2))
    assert report.ok and {s.name: s.kind for s in report.sites}["weight"] == "latent"


@pytest.mark.parametrize(
    "constraint",
    [dist.constraints.simplex, dist.constraints.unit_interval, dist.constraints.greater_than(2.0)],
)
def test_initial_values_survive_their_constraint(constraint):
    start = {
        "Simplex": torch.tensor([0.2, 0.3, 0.5]),
        "Interval": torch.tensor(0.25),
        "GreaterThan": torch.tensor(3.5),
    }[type(constraint).__name__.lstrip("_")]

    def holds(x):
        value = pyro.param("value", start, constraint=constraint)
        pyro.deterministic("seen", value)
        pyro.sample("x", dist.Normal(0.0, 1.0))

    assert torch.allclose(dgm.sample(holds, 1, None)["seen"][0], start, atol=1e-6)


def test_a_parameter_without_a_value_keeps_the_constraint_of_its_program():
    """The guide reads what the model has made: 2.0, not its logarithm."""

    def model(x):
        scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
        z = pyro.sample("z", dist.Normal(0.0, scale))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(0.0, pyro.param("scale")))

    program = dgm.as_program(model)
    x = torch.tensor(0.3)
    dgm.sample(program, 1, x)
    other = dgm.as_program(program, guide)
    with other.running(), pyro.poutine.trace() as trace:
        other.run_guide(x)
    assert float(trace.trace.nodes["z"]["fn"].scale.detach()) == pytest.approx(2.0)


# -- guides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "AutoNormal",
        "AutoDiagonalNormal",
        "AutoMultivariateNormal",
        "AutoLowRankMultivariateNormal",
        "AutoDelta",
    ],
)
def test_autoguides_by_name_learn_and_stay_out_of_the_store(name):
    fit = dgm.learn(schools, Y, SIGMA, method=dgm.SVI(guide=name, epochs=3, batch_size=None), seed=0)
    assert fit.program.has_guide and list(fit.program.parameters())
    if name != "AutoDelta":
        post = fit.posterior(Y, SIGMA, draws=7, seed=0)
        assert post.draws["theta"].shape == (1, 7, 8) and (post.draws["tau"] > 0).all()
    assert not list(pyro.get_param_store().keys())


@pytest.mark.parametrize("guide", ["AutoNormal", "AutoMultivariateNormal"])
def test_a_guide_as_attribute_finds_the_conjugate_posterior(guide):
    x = torch.randn(20) + 1
    program = Shift(guide)
    assert program.has_guide
    dgm.learn(
        program,
        x,
        method=dgm.SVI(epochs=500, batch_size=None, lr=0.05, schedule="cosine", particles=4),
        seed=0,
    )
    draws = dgm.infer(program, x, seed=0).draws["mu"]
    assert float(draws.mean()) == pytest.approx(float(x.sum() / 21), abs=0.05)
    assert float(draws.std()) == pytest.approx(21**-0.5, rel=0.15)


def test_another_guide_shares_the_programs_parameters():
    program = Nested()
    other = dgm.as_program(program, lambda x=None, n=1: None)
    assert other is not program and other.draws_n and other.site == program.site
    x = torch.randn(30) + 9
    dgm.learn(other, x, method=dgm.SVI(epochs=2, lr=0.1), seed=0)
    assert torch.equal(dgm.score(program, x).value, dgm.score(other, x).value)
    assert float(program.free_parameters["p:scale"]) != 5.0


def test_an_unknown_autoguide_and_a_program_that_is_no_function_are_refused():
    with pytest.raises(ProgramError, match=r"guide 'AutoNorml' is not one of .*AutoNormal"):
        dgm.as_program(schools, "AutoNorml")
    with pytest.raises(ProgramError, match=r"must be callable.*pass the function itself"):
        dgm.sample(3, 2)
    with pytest.raises(ProgramError, match=r"has no model: define a method model"):
        dgm.sample(dgm.Program(), 2)
    with pytest.raises(ProgramError, match=r"has no guide; pass guide="):
        program = dgm.as_program(schools)
        program.run_guide(Y, SIGMA)


# -- copies and files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: dgm.as_program(noisy), lambda: dgm.as_program(noisy, lambda x: None), Nested])
def test_a_deep_copy_is_equal_and_independent(make):
    program, x = make(), torch.randn(20)
    dgm.score(program, x)
    twin = copy.deepcopy(program)
    assert twin.config.keys() == program.config.keys() and twin.name == program.name
    assert torch.equal(dgm.score(twin, x).value, dgm.score(program, x).value)
    before = parameters_of(program)
    dgm.learn(twin, x, method=dgm.SVI(epochs=2, lr=0.3), seed=0)
    assert all(torch.equal(before[name], p) for name, p in parameters_of(program).items())
    assert not torch.equal(dgm.score(twin, x).value, dgm.score(program, x).value)


def test_a_deep_copy_takes_its_autoguide_along():
    program, x = Shift(), torch.randn(20)
    dgm.learn(program, x, method=dgm.SVI(epochs=1, batch_size=None), seed=0)
    twin = copy.deepcopy(program)
    before = parameters_of(program)
    dgm.learn(twin, x, method=dgm.SVI(epochs=3, batch_size=None, lr=0.3), seed=0)
    assert all(torch.equal(before[name], p) for name, p in parameters_of(program).items())
    assert not torch.equal(
        dict(twin.named_parameters())["guide.locs.mu_unconstrained"], before["guide.locs.mu_unconstrained"]
    )


@pytest.mark.parametrize("guide", [None, "AutoMultivariateNormal"])
def test_function_programs_survive_a_file_with_their_guide(tmp_path, guide):
    """Whether the caller or the learner has chosen the autoguide."""
    program = schools if guide is None else dgm.as_program(schools, guide)
    fit = dgm.learn(program, Y, SIGMA, method=dgm.SVI(epochs=20, batch_size=None, lr=0.1), seed=0)
    fit.save(tmp_path)
    again = dgm.Fit.load(
        tmp_path, program=program if guide is None else dgm.as_program(schools, guide), args=(Y, SIGMA)
    )
    one, other = (f.posterior(Y, SIGMA, draws=5, seed=3).draws for f in (fit, again))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert again.history.equals(fit.history) and again.stopped == fit.stopped and again.cost == fit.cost
    with pytest.raises(FileError, match=r"pass load\(folder, program=\.\.\., args="):
        dgm.Fit.load(tmp_path, program=dgm.as_program(schools, guide))
    with pytest.raises(FileError, match=r"not one of the zoo; pass load\(folder, program="):
        dgm.Fit.load(tmp_path)


def test_weights_of_another_program_are_refused(tmp_path):
    dgm.learn(noisy, torch.randn(5), method=dgm.SVI(epochs=1), seed=0).save(tmp_path)
    with pytest.raises(ProgramError, match=r"these weights do not belong to this Nested: .*scale"):
        dgm.Fit.load(tmp_path, program=Nested())


def test_config_holds_the_constructors_arguments_with_defaults():
    program = dgm.models.VAE(4, values=3, latent=2, hidden=8)
    wanted = {n: p.default for n, p in inspect.signature(dgm.models.VAE).parameters.items()}
    assert program.config == {**wanted, "observed": 4, "values": 3, "latent": 2, "hidden": 8}


# -- dtype and device ----------------------------------------------------------------------------------------------


def test_dtype_and_device_follow_the_parameters(device):
    program = dgm.models.ProbabilisticPCA(observed=3, latent=2).to(device).double()
    assert program.dtype == torch.float64 and program.device.type == device.type
    x = dgm.sample(program, 4, seed=0)["x"]
    assert x.dtype == torch.float64 and x.device.type == device.type
    score = dgm.score(program, x).value
    assert score.dtype == torch.float64 and score.device.type == device.type


def test_a_program_without_parameters_still_has_a_dtype(device):
    program = dgm.Program().double().to(device)
    assert program.dtype == torch.float64 and program.device.type == device.type


def test_float64_observations_of_a_function_stay_float64():
    def program(x):
        mu = pyro.param("mu", torch.tensor(1.0, dtype=torch.float64))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    x = torch.tensor([1.0 + 1e-9], dtype=torch.float64)
    value = dgm.score(program, x).value
    assert value.dtype == torch.float64
    assert float(value - dist.Normal(torch.tensor(1.0, dtype=torch.float64), 1.0).log_prob(x)) == 0.0
