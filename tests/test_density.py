"""LogDensity against Pyro's potential, finite differences and sums done by hand; refusals, fallbacks."""

import itertools
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.mcmc.util import initialize_model
from pyro.poutine.messenger import Messenger
from torch import Tensor

import ppl_dgm as dgm
from oracles.posteriors import (
    POSTERIORDB,
    PROGRAMS,
    breast_cancer,
    flat,
    logistic,
    normal_data,
    posteriordb,
    posteriordb_folder,
)
from ppl_dgm import LogDensity

DTYPES = [torch.float32, torch.float64]
SMALL = [name for name in POSTERIORDB if not name.startswith("hmm")]
needs_posteriordb = pytest.mark.skipif(posteriordb_folder() is None, reason="PPL_DGM_DATA has no posteriordb")


def density(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> LogDensity:
    program, args = posteriordb(name)[:2] if name in POSTERIORDB else PROGRAMS[name]()
    if isinstance(program, torch.nn.Module):
        program = program.to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LogDensity(program, *args, dtype=dtype, **options)


class _Values(Messenger):
    """Values for sites that cannot be drawn from."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"] = self.values[msg["name"]]


def potential(d: LogDensity, z: Tensor) -> Tensor:
    """Minus Pyro's potential at each row of z."""
    draws = d.constrain(z)[0]
    with d._context():
        story = _Values({name: value[0] for name, value in draws.items()})(d._story)
        _, function, _, _ = initialize_model(story, initial_params={})
        rows = [{k: row[s.place].reshape(s.shape) for k, s in d.sites.items()} for row in z]
        return -torch.stack([torch.as_tensor(function(row)) for row in rows])


def agrees_with_pyro(name: str, dtype: torch.dtype) -> None:
    d = density(name, dtype, check=False)
    assert d.path == "recorded" and (d.vectorize == "vmap" or name == "ordinal")
    z = d.initial(3, seed=1, radius=1.0)
    assert z.dtype == dtype and z.shape == (3, d.dim)
    tolerance = 1e-8 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(d.log_prob(z), potential(d, z).to(dtype), rtol=tolerance, atol=tolerance)
    draws, _ = d.constrain(z)
    # where a value is near the edge of its support, float32 loses digits on the way back
    torch.testing.assert_close(d.unconstrain(draws), z, rtol=1e-3, atol=1e-3 if dtype == torch.float32 else 1e-8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name in PROGRAMS if name != "dependent"])
def test_density_is_pyros_potential_and_coordinates_go_round(name: str, dtype: torch.dtype) -> None:
    agrees_with_pyro(name, dtype)


@needs_posteriordb
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_posteriordb_density_is_pyros_potential(name: str, dtype: torch.dtype) -> None:
    agrees_with_pyro(name, dtype)


@needs_posteriordb
def test_hidden_markov_reference_is_pyros_potential() -> None:
    program, (y,) = posteriordb("hmm_example-hmm_example", dtype=torch.float64)[:2]
    d = LogDensity(program, y[:20], check=False)
    z = d.initial(2, seed=0, radius=0.5)
    torch.testing.assert_close(d.value_and_grad(z)[0], potential(d, z), rtol=1e-8, atol=1e-8)


@needs_posteriordb
def test_reference_names_are_found_among_the_values() -> None:
    for name in SMALL:
        reference = posteriordb(name)
        d = LogDensity(reference.program, *reference.args)
        draws, deterministic = d.constrain(d.initial(4, seed=0))
        scalars = reference.scalars({**draws, **deterministic})
        assert scalars.keys() == reference.mean.keys() == reference.mean_squared.keys()
        assert all(value.shape == (4,) for value in scalars.values())


@pytest.mark.parametrize("name", PROGRAMS)
def test_gradient_is_a_finite_difference(name: str) -> None:
    d = density(name)
    z = d.initial(2, seed=3, radius=0.7)
    value, gradient = d.value_and_grad(z)
    torch.testing.assert_close(d.gradient(z), gradient, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(d.log_prob(z), value, rtol=1e-10, atol=1e-10)
    assert d.path == "recorded"
    step = 1e-5
    for i in range(d.dim):
        move = torch.zeros(d.dim, dtype=z.dtype)
        move[i] = step
        numeric = (d.log_prob(z + move) - d.log_prob(z - move)) / (2 * step)
        torch.testing.assert_close(gradient[:, i], numeric, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["logistic", "mixture", "covariance", "dependent"])
def test_many_chains_are_as_one_at_a_time_and_agree_with_their_parts(name: str) -> None:
    d = density(name)
    z = d.initial(6, seed=0)
    value, gradient = d.value_and_grad(z)
    for i in range(6):
        one, slope = d.value_and_grad(z[i])
        torch.testing.assert_close(one, value[i])
        torch.testing.assert_close(slope, gradient[i])
    assert d.gradients >= 12
    torch.testing.assert_close(d.log_prior(z) + d.log_likelihood(z), value)
    prior, likelihood, first, second = d.parts_and_grads(z)
    torch.testing.assert_close(prior + likelihood, value)
    torch.testing.assert_close(first + second, gradient)


def test_log_prior_has_the_jacobian_and_pointwise_sums_to_the_likelihood() -> None:
    d = density("eight schools centred")
    z = d.initial(5, seed=0)
    draws, _ = d.constrain(z)
    prior = dist.Normal(0.0, 5.0).log_prob(draws["mu"]) + dist.HalfCauchy(5.0).log_prob(draws["tau"])
    prior = (
        prior
        + draws["tau"].log()
        + dist.Normal(draws["mu"][:, None], draws["tau"][:, None]).log_prob(draws["theta"]).sum(1)
    )
    torch.testing.assert_close(d.log_prior(z), prior)
    pointwise = d.pointwise(z.reshape(5, 1, -1))
    assert pointwise["y"].shape == (5, 1, 8)
    torch.testing.assert_close(pointwise["y"].sum((1, 2)), d.log_likelihood(z))


# -- discrete sites ------------------------------------------------------------------------------------------


def test_mixture_is_the_sum_over_components() -> None:
    d = density("mixture")
    x = (2 * normal_data(20)).double()
    z = d.initial(4, seed=0)
    draws, deterministic = d.constrain(z)
    assert d.summed == ["c"] and deterministic == {}  # `where` depends on the component
    each = torch.distributions.Normal(draws["mean"][:, None], draws["scale"][:, None]).log_prob(x[:, None])
    logits = draws["weights"].log()[:, None] + each  # [chain, data, component]
    torch.testing.assert_close(d.log_likelihood(z), logits.logsumexp(-1).sum(-1))


def test_hidden_markov_model_is_the_forward_algorithm_and_the_sum_over_paths() -> None:
    d = density("hmm")
    x = (3 * normal_data(6)).double()
    z = d.initial(3, seed=0)
    draws, _ = d.constrain(z)
    for i, likelihood in enumerate(d.log_likelihood(z)):
        moves, mean = draws["moves"][i].log(), draws["mean"][i]
        emission = torch.distributions.Normal(mean, 1.0).log_prob(x[:, None])  # [t, state]
        forward = moves[0] + emission[0]
        for t in range(1, 6):
            forward = (forward[:, None] + moves).logsumexp(0) + emission[t]
        torch.testing.assert_close(likelihood, forward.logsumexp(0))
        paths = [
            sum(moves[a, b] + emission[t, b] for t, (a, b) in enumerate(zip((0, *path), path, strict=False)))
            for path in itertools.product((0, 1), repeat=6)
        ]
        torch.testing.assert_close(likelihood, torch.stack(paths).logsumexp(0))


def test_discrete_hmm_distribution_is_mapped() -> None:
    def program(x: Tensor) -> None:
        moves = pyro.sample("moves", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
        emission = dist.Normal(torch.tensor([-1.0, 2.0]), 1.0)
        pyro.sample("x", dist.DiscreteHMM(torch.zeros(2), moves.log(), emission), obs=x)

    d = LogDensity(program, normal_data(16))
    assert d.vectorize == "vmap"
    value, gradient = d.value_and_grad(d.initial(3, seed=0))
    assert d.path == "recorded" and bool(value.isfinite().all() and gradient.isfinite().all())


# -- routes --------------------------------------------------------------------------------------------------


def test_routes_agree() -> None:
    routes = {route: density("masked and scaled", vectorize=route) for route in ("vmap", "plate", "loop")}
    z = routes["vmap"].initial(4, seed=0)
    expected, slope = routes["vmap"].value_and_grad(z)
    for route, d in routes.items():
        assert d.vectorize == route and d.path == "recorded"
        value, gradient = d.value_and_grad(z)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradient, slope)


def test_plate_where_vmap_cannot_follow() -> None:
    class Square(torch.autograd.Function):
        """No rule for vmap."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return 2 * g * ctx.saved_tensors[0]

    def program(y: Tensor) -> None:
        with pyro.plate("groups", 2, dim=-2):
            a = pyro.sample("a", dist.Gamma(2.0, 1.0))
            with pyro.plate("data", 3, dim=-1):
                c = pyro.sample("c", dist.Bernoulli(0.3))
                pyro.sample("y", dist.Normal(Square.apply(a) + c, 1.0), obs=y)

    y = normal_data(2, 3)
    d = LogDensity(program, y)
    assert d.vectorize == "plate" and d.path == "recorded" and "vmap fails at or after site 'c'" in d.reason
    z = d.initial(5, seed=0)
    one = LogDensity(program, y, vectorize="loop", check=False)
    torch.testing.assert_close(d.value_and_grad(z), one.value_and_grad(z))
    assert d.constrain(z)[0]["a"].shape == (5, 2, 1)


def test_branch_on_a_value_runs_in_python_with_one_warning() -> None:
    def program() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        scale = 1.0 if a > 0 else 3.0
        pyro.sample("b", dist.Normal(a, scale), obs=torch.tensor(1.5))

    with pytest.warns(RuntimeWarning, match=r"site 'a'") as caught:
        d = LogDensity(program)
        z = torch.tensor([[0.5], [-0.5]])
        value, gradient = d.value_and_grad(z)
        d.log_prob(z)
    assert len(caught) == 1
    assert (d.vectorize, d.path) == ("loop", "python") and "recording fails" in d.reason
    for i, scale in enumerate((1.0, 3.0)):
        a = z[i].clone().requires_grad_()
        truth = dist.Normal(0.0, 1.0).log_prob(a) + dist.Normal(a, scale).log_prob(torch.tensor(1.5))
        truth.backward()
        torch.testing.assert_close(value[i], truth[0].detach())
        torch.testing.assert_close(gradient[i], a.grad)


def test_loop_says_so_once() -> None:
    program, args = PROGRAMS["ordinal"]()
    with pytest.warns(RuntimeWarning, match="one after another") as caught:
        d = LogDensity(program, *args)
        d.value_and_grad(d.initial(3, seed=0))
    assert len(caught) == 1 and (d.vectorize, d.path) == ("loop", "recorded")


# -- points, types, state ------------------------------------------------------------------------------------


def test_initial_obeys_its_seed_and_radius_and_spares_the_callers_random_state() -> None:
    d = density("logistic")
    state = torch.random.get_rng_state()
    z = d.initial(50, seed=5, radius=1.5)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.testing.assert_close(d.initial(50, seed=5, radius=1.5), z, rtol=0, atol=0)
    assert not torch.equal(d.initial(50, seed=6, radius=1.5), z)
    assert 1.4 < float(z.abs().max()) <= 1.5


def test_construction_spares_the_callers_random_state() -> None:
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    density("mixture")
    assert torch.equal(torch.random.get_rng_state(), state)


def test_constrain_keeps_chains_and_draws_apart() -> None:
    d = density("eight schools")
    z = d.initial(6, seed=0).reshape(2, 3, -1)
    draws, deterministic = d.constrain(z)
    assert draws["t"].shape == deterministic["theta"].shape == (2, 3, 8) and draws["mu"].shape == (2, 3)
    truth = draws["mu"][..., None] + draws["tau"][..., None] * draws["t"]
    torch.testing.assert_close(deterministic["theta"], truth)
    torch.testing.assert_close(d.unconstrain(draws), z)


@pytest.mark.parametrize("name", PROGRAMS)
def test_one_point_has_the_values_of_the_sites_without_a_leading_dimension(name: str) -> None:
    d = density(name)
    z = d.initial(2, seed=0)
    for one, many in zip(d.constrain(z[1]), d.constrain(z), strict=True):
        assert one.keys() == many.keys()
        for site, value in one.items():
            torch.testing.assert_close(value, many[site][1])
    torch.testing.assert_close(d.unconstrain(d.constrain(z[1])[0]), z[1])
    if not d.summed:
        for site, value in d.pointwise(z).items():
            torch.testing.assert_close(d.pointwise(z[1])[site], value[1])


def test_a_mixture_is_a_coordinate_where_its_components_share_a_support() -> None:
    def story() -> None:
        two = dist.Categorical(logits=torch.zeros(2))
        with pyro.plate("rows", 3):
            pyro.sample(
                "z", dist.MixtureSameFamily(two, dist.Normal(torch.tensor([[-2.0, 0.0], [2.0, 1.0]]), 1.0).to_event(1))
            )
        pyro.sample("s", dist.MixtureSameFamily(two, dist.Gamma(torch.tensor([2.0, 3.0]), 1.0)))

    mixed = LogDensity(story)
    z = torch.randn(4, mixed.dim)
    sites, _ = mixed.constrain(z)
    assert (sites["s"] > 0).all()
    runs = [poutine.condition(story, {k: v[i] for k, v in sites.items()}) for i in range(4)]
    exact = (
        torch.stack([poutine.trace(run).get_trace().log_prob_sum() for run in runs]) + sites["s"].log()
    )  # s = exp(u) has the log-determinant u
    torch.testing.assert_close(mixed.log_prob(z), exact, atol=1e-4, rtol=1e-4)


def test_dependent_support_follows_the_other_site() -> None:
    d = density("dependent")
    assert d.sites["low"].depends and not d.sites["high"].depends
    z = d.initial(200, seed=0)
    draws, _ = d.constrain(z)
    assert bool((draws["low"].abs() < draws["high"]).all()) and float(draws["high"].max()) > 3
    torch.testing.assert_close(d.unconstrain(draws), z)
    # the width of the support cancels between the density of `low` and its Jacobian
    jacobian = z[:, 0] + torch.nn.functional.logsigmoid(z[:, 1]) + torch.nn.functional.logsigmoid(-z[:, 1])
    with_jacobian = dist.Gamma(2.0, 1.0).log_prob(draws["high"]) + jacobian
    torch.testing.assert_close(d.log_prior(z), with_jacobian)


def test_number_type_follows_the_data() -> None:
    x, y = breast_cancer()
    assert LogDensity(logistic, x[:20], y[:20]).dtype == torch.float32
    d = LogDensity(logistic, x[:20].double(), y[:20].double())
    assert d.dtype == torch.float64 and d.log_prob(d.initial(2, seed=0)).dtype == torch.float64
    x = x[:20].double()

    def closure() -> None:
        logistic(x, y[:20].double())

    assert LogDensity(closure).dtype == torch.float64
    assert torch.get_default_dtype() == torch.float32


def test_parameters_are_live() -> None:
    class Line(dgm.Program):
        def __init__(self) -> None:
            super().__init__()
            self.slope = torch.nn.Parameter(torch.tensor(2.0))

        def model(self, y: Tensor) -> None:
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(self.slope * a, 1.0), obs=y)

    program = Line()
    d = LogDensity(program, torch.tensor(1.0))
    z = torch.tensor([[0.5]])
    before = d.value_and_grad(z)[0]
    with torch.no_grad():
        program.slope.mul_(3.0)
    after = d.value_and_grad(z)[0]
    truth = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.5)) + dist.Normal(3.0, 1.0).log_prob(torch.tensor(1.0))
    torch.testing.assert_close(after[0], truth)
    assert float(before) != float(after) and program.slope.grad is None


def test_on_each_device(device: torch.device) -> None:
    x, y = (a[:30].to(device) for a in breast_cancer())

    def program(x: Tensor, y: Tensor) -> None:
        b = pyro.sample("b", dist.Normal(x.new_zeros(31), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)

    d = LogDensity(program, x, y)
    value, gradient = d.value_and_grad(d.initial(4, seed=0))
    assert d.device.type == value.device.type == gradient.device.type == device.type


# -- refusals ------------------------------------------------------------------------------------------------


def _subsampled() -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 10, subsample_size=3) as index:
        pyro.sample("y", dist.Normal(a, 1.0), obs=torch.zeros(10)[index])


def _poisson() -> None:
    rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
    pyro.sample("count", dist.Poisson(rate))


def _no_bijection() -> None:
    pyro.sample("direction", dist.ProjectedNormal(torch.ones(3)))


def _only_discrete() -> None:
    pyro.sample("c", dist.Categorical(torch.ones(3)))


def _observed() -> None:
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))


def _comes_and_goes() -> None:
    if torch.rand(()) < 0.5:
        pyro.sample("left", dist.Normal(0.0, 1.0))
    else:
        pyro.sample("right", dist.Normal(0.0, 1.0))


def _noisy() -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(a + torch.randn(()), 1.0), obs=torch.tensor(0.0))


@pytest.mark.parametrize(
    "program, words",
    [
        (_subsampled, "plate 'rows' draws 3 of 10 rows"),
        (_poisson, r"site 'count' \(Poisson\) is discrete"),
        (_no_bijection, r"site 'direction' \(ProjectedNormal\) has a support that no bijection"),
        (_only_discrete, "every latent site of '_only_discrete' \\('c'\\) is discrete"),
        (_observed, "'_observed' has no latent site"),
        (_comes_and_goes, "site '(left|right)' is not there in every run"),
        (_noisy, "draws random numbers outside of pyro.sample"),
    ],
)
def test_refusals_name_the_site(program: Any, words: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(dgm.TaskUnavailable, match=words):
        LogDensity(program)


def _nan_observation() -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(a, 1.0), obs=torch.tensor(float("nan")))


def _impossible_observation() -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.HalfNormal(a.exp()), obs=torch.tensor(-1.0))


def _no_gradient() -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.factor("root", (a - a).abs().sqrt())


@pytest.mark.parametrize(
    "program, words",
    [
        (_no_gradient, "site 'root' the log density is finite but its gradient is not"),
    ],
)
def test_no_start_names_the_site(program: Any, words: str) -> None:
    d = LogDensity(program)
    with pytest.raises(dgm.NumericalError, match=words):
        d.initial(2, seed=0)


@pytest.mark.parametrize("program, found", [(_nan_observation, "nan"), (_impossible_observation, "-1")])
def test_observations_outside_the_support_name_the_site(program: Any, found: str) -> None:
    with pytest.raises(dgm.ProgramError, match=rf"site 'y': its value {found} at index \(\) lies outside the support"):
        LogDensity(program)


def test_wrong_arguments_are_named() -> None:
    d = density("eight schools")
    with pytest.raises(dgm.ProgramError, match=r"z has shape \(3, 4\).*\[chains, 10\]"):
        d.log_prob(torch.zeros(3, 4, dtype=torch.float64))
    with pytest.raises(dgm.ProgramError, match="site 'tau' has no value"):
        d.unconstrain({"mu": torch.zeros(2), "t": torch.zeros(2, 8)})
    with pytest.raises(dgm.ProgramError, match="vectorize must be one of"):
        density("eight schools", vectorize="pmap")
    with pytest.raises(dgm.TaskUnavailable, match="site 'c' is summed out"):
        density("mixture").pointwise(torch.zeros(2, 8, dtype=torch.float64))


def test_flat_priors_start_without_a_draw() -> None:
    d = LogDensity(lambda: pyro.factor("f", -pyro.sample("z", flat((2,))).pow(2).sum()))
    assert bool(d.value_and_grad(d.initial(3, seed=0))[0].isfinite().all())
