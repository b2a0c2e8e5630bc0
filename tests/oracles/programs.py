"""Programs whose graphs were written down by hand: nodes with their kinds, edges, plates with their sizes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import config_enumerate
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn

from ppl_dgm import models
from ppl_dgm.program import Program

__all__ = ["CASES", "Case"]

_KINDS = {
    "l": "latent",
    "o": "observed",
    "d": "deterministic",
    "f": "factor",
    "p": "parameter",
    "i": "input",
}


@dataclass(frozen=True)
class Case:
    """A program and the truth about it.

    Attributes:
        make: returns the program and its positional arguments.
        nodes: {name: (kind, plates)}.
        edges: pairs.
        plates: {name: size}.
        probe: edges that leave torch, so that provenance cannot see them.
        guide: edges of the guide, without parameters; None: there is no guide.
    """

    make: Callable[[], tuple]
    nodes: dict[str, tuple[str, tuple[str, ...]]]
    edges: set[tuple[str, str]]
    plates: dict[str, int] = field(default_factory=dict)
    probe: set[tuple[str, str]] = field(default_factory=set)
    guide: set[tuple[str, str]] | None = None


CASES: dict[str, Case] = {}


def _pairs(text: str) -> set[tuple[str, str]]:
    """ "a b > c; d > e" as pairs."""
    found = set()
    for part in filter(None, (part.strip() for part in text.split(";"))):
        parents, children = part.split(">")
        found |= {(parent, child) for parent in parents.split() for child in children.split()}
    return found


def case(
    nodes: str,
    edges: str = "",
    plates: dict[str, int] | None = None,
    probe: str = "",
    guide: str | None = None,
) -> Callable:
    """Registers the truth: nodes as "l:z@data o:x@data p:decoder" (kind:name@plates), edges as "z decoder >
    x; ...".
    """

    def register(make: Callable[[], tuple]) -> Callable[[], tuple]:
        parsed = {}
        for entry in nodes.split():
            kind, rest = entry.split(":", 1)
            name, _, inside = rest.partition("@")
            parsed[name] = (_KINDS[kind], tuple(inside.split(",")) if inside else ())
        CASES[make.__name__] = Case(
            make,
            parsed,
            _pairs(edges),
            plates or {},
            _pairs(probe),
            None if guide is None else _pairs(guide),
        )
        return make

    return register


# -- the zoo -----------------------------------------------------------------------------------------------


@case(
    "p:weight_logits l:k@data p:means p:log_variances o:x@data",
    "weight_logits > k; k means log_variances > x",
    {"data": 5},
)
def mixture_of_gaussians() -> tuple:
    return models.MixtureOfGaussians(observed=3, components=2), torch.randn(5, 3)


@case("p:weight_logits l:k@data p:logits o:x@data", "weight_logits > k; k logits > x", {"data": 5})
def mixture_of_categoricals() -> tuple:
    return models.MixtureOfCategoricals(observed=3, values=4, components=2), torch.randint(4, (5, 3))


@case(
    "l:z@data p:weight p:bias p:log_variance o:x@data",
    "z weight bias log_variance > x",
    {"data": 5},
    guide="x > z",
)
def ppca() -> tuple:
    return models.ProbabilisticPCA(observed=4, latent=2), torch.randn(5, 4)


@case("l:z@data p:decoder o:x@data", "z decoder > x", {"data": 5}, guide="x > z")
def vae() -> tuple:
    return models.VAE(observed=6, values=3, latent=2, hidden=8), torch.randint(3, (5, 6))


@case(
    "l:z2@data p:prior_1 l:z1@data p:decoder o:x@data",
    "z2 prior_1 > z1; z1 decoder > x",
    {"data": 5},
    guide="x > z2 z1; z2 > z1",
)
def top_down_vae() -> tuple:
    return models.TopDownVAE(observed=6, values=3, latents=(4, 2), hidden=8), torch.randint(3, (5, 6))


@case(
    "p:couplings p:histogram l:v@data o:x@data",
    "couplings histogram > v; v > x",
    {"data": 5},
    guide="x > v",
)
def real_nvp() -> tuple:
    return models.RealNVP(observed=4, values=3, hidden=8), torch.randint(3, (5, 4))


@case(
    "o:x@data l:h@data p:weight p:bias p:hidden_bias f:energy@data",
    "x h weight bias hidden_bias > energy",
    {"data": 5},
)
def rbm() -> tuple:
    return models.RBM(observed=4, hidden=3), torch.randint(2, (5, 4)).float()


@case(
    "l:z_3@data l:z_2@data l:z_1@data p:denoiser o:x@data",
    "z_3 denoiser > z_2; z_2 denoiser > z_1; z_1 denoiser > x",
    {"data": 5},
    guide="x > z_1; z_1 > z_2; z_2 > z_3",
)
def diffusion_chain() -> tuple:
    return models.DiffusionChain(observed=4, values=3, steps=3, hidden=8), torch.randint(3, (5, 4))


@case("p:weights o:x@data", "weights > x", {"data": 5})
def circuit() -> tuple:
    return models.Circuit(observed=4, values=3), torch.randint(3, (5, 4))


# -- textbook models ---------------------------------------------------------------------------------------


@case("l:mu l:tau l:theta@J i:sigma o:y@J", "mu tau > theta; theta sigma > y", {"J": 8})
def eight_schools() -> tuple:
    def schools(y: Tensor, sigma: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("J", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    return schools, torch.randn(8), torch.rand(8) + 1


@case(
    "l:mu l:tau l:eta@J d:theta@J i:sigma o:y@J",
    "mu tau eta > theta; theta sigma > y",
    {"J": 8},
)
def eight_schools_not_centred() -> tuple:
    def schools(y: Tensor, sigma: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("J", len(y)):
            eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            theta = pyro.deterministic("theta", mu + tau * eta)
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    return schools, torch.randn(8), torch.rand(8) + 1


@case(
    "l:transition@states l:emission@states l:z_0 o:x_0 l:z_1 o:x_1 l:z_2 o:x_2 l:z_3 o:x_3",
    "transition > z_0 z_1 z_2 z_3; emission > x_0 x_1 x_2 x_3; z_0 > x_0 z_1; z_1 > x_1 z_2; z_2 > x_2 z_3; z_3 > x_3",
    {"states": 3},
)
def hidden_markov_model() -> tuple:
    @config_enumerate
    def hmm(x: Tensor) -> None:
        with pyro.plate("states", 3):
            transition = pyro.sample("transition", dist.Dirichlet(torch.ones(3)))
            emission = pyro.sample("emission", dist.Normal(0.0, 1.0))
        z: Any = 0
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]))
            pyro.sample(f"x_{t}", dist.Normal(emission[z], 1.0), obs=x[t])

    return hmm, torch.randn(4)


@case(
    "l:topic@topics l:theta@documents l:z@documents,words o:w@documents,words",
    "theta > z; z topic > w",
    {"topics": 3, "documents": 4, "words": 5},
)
def latent_dirichlet_allocation() -> tuple:
    def lda(w: Tensor) -> None:
        with pyro.plate("topics", 3):
            topic = pyro.sample("topic", dist.Dirichlet(torch.ones(7)))
        with pyro.plate("documents", 4, dim=-2):
            theta = pyro.sample("theta", dist.Dirichlet(torch.ones(3)))
            with pyro.plate("words", 5, dim=-1):
                z = pyro.sample("z", dist.Categorical(theta))
                pyro.sample("w", dist.Categorical(topic[z]), obs=w)

    return lda, torch.randint(7, (4, 5))


@case(
    "l:A l:z_0 o:x_0 l:z_1 o:x_1 l:z_2 o:x_2",
    "A z_0 > z_1; A z_1 > z_2; z_0 > x_0; z_1 > x_1; z_2 > x_2",
)
def linear_state_space() -> tuple:
    def lds(x: Tensor) -> None:
        a = pyro.sample("A", dist.Normal(torch.zeros(2, 2), 0.5).to_event(2))
        z = pyro.sample("z_0", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x_0", dist.Normal(z, 0.1).to_event(1), obs=x[0])
        for t in range(1, len(x)):
            z = pyro.sample(f"z_{t}", dist.MultivariateNormal(a @ z, torch.eye(2)))
            pyro.sample(f"x_{t}", dist.Normal(z, 0.1).to_event(1), obs=x[t])

    return lds, torch.randn(3, 2)


@case("l:W l:psi l:z@data o:x@data", "W psi z > x", {"data": 6})
def factor_analysis() -> tuple:
    def analysis(x: Tensor) -> None:
        w = pyro.sample("W", dist.Normal(torch.zeros(4, 2), 1.0).to_event(2))
        psi = pyro.sample("psi", dist.HalfNormal(torch.ones(4)).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ w.mT, psi).to_event(1), obs=x)

    return analysis, torch.randn(6, 4)


@case("l:rain l:sprinkler l:wet", "rain > sprinkler; rain sprinkler > wet")
def sprinkler() -> tuple:
    def network() -> None:
        rain = pyro.sample("rain", dist.Bernoulli(0.2))
        on = pyro.sample("sprinkler", dist.Bernoulli(0.4 - 0.39 * rain))
        pyro.sample("wet", dist.Bernoulli(1 - (1 - 0.9 * on) * (1 - 0.8 * rain)))

    return (network,)


@case(
    "l:burglary l:earthquake l:alarm l:john l:mary",
    "burglary earthquake > alarm; alarm > john mary",
)
def alarm_network() -> tuple:
    table = torch.tensor([[0.001, 0.29], [0.94, 0.95]])

    def network() -> None:
        burglary = pyro.sample("burglary", dist.Bernoulli(0.3)).long()
        earthquake = pyro.sample("earthquake", dist.Bernoulli(0.4)).long()
        alarm = pyro.sample("alarm", dist.Bernoulli(table[burglary, earthquake])).long()
        pyro.sample("john", dist.Bernoulli(torch.tensor([0.05, 0.9])[alarm]))
        pyro.sample("mary", dist.Bernoulli(torch.tensor([0.01, 0.7])[alarm]))

    return (network,)


@case("l:pi l:phi@classes l:c@data o:w@data", "pi > c; phi c > w", {"classes": 2, "data": 6})
def naive_bayes() -> tuple:
    def bayes(w: Tensor) -> None:
        pi = pyro.sample("pi", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("classes", 2):
            phi = pyro.sample("phi", dist.Beta(torch.ones(5), 1.0).to_event(1))
        with pyro.plate("data", len(w)):
            c = pyro.sample("c", dist.Categorical(pi))
            pyro.sample("w", dist.Bernoulli(phi[c]).to_event(1), obs=w)

    return bayes, torch.randint(2, (6, 5)).float()


@case(
    "l:alpha l:pi l:theta@components,pixels l:k@data o:x@data",
    "alpha > pi; pi > k; theta k > x",
    {"components": 3, "pixels": 4, "data": 6},
)
def mixture_of_bernoullis() -> tuple:
    def mixture(x: Tensor) -> None:
        alpha = pyro.sample("alpha", dist.Gamma(1.0, 1.0))
        pi = pyro.sample("pi", dist.Dirichlet(alpha.expand(3)))
        with pyro.plate("components", 3, dim=-2), pyro.plate("pixels", 4, dim=-1):
            theta = pyro.sample("theta", dist.Beta(1.0, 1.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(pi), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Bernoulli(theta[k]).to_event(1), obs=x)

    return mixture, torch.randint(2, (6, 4)).float()


@case(
    "l:bias@raters l:quality@items o:rating@items,raters",
    "bias quality > rating",
    {"raters": 3, "items": 4},
)
def raters_and_items() -> tuple:
    def ratings(y: Tensor) -> None:
        raters, items = pyro.plate("raters", 3, dim=-1), pyro.plate("items", 4, dim=-2)
        with raters:
            bias = pyro.sample("bias", dist.Normal(0.0, 1.0))
        with items:
            quality = pyro.sample("quality", dist.Normal(0.0, 1.0))
        with items, raters:
            pyro.sample("rating", dist.Normal(quality + bias, 1.0), obs=y)

    return ratings, torch.randn(4, 3)


@case("l:a l:b l:c f:agree f:pull", "a b > agree; b c > pull")
def markov_random_field() -> tuple:
    def field() -> None:
        a, b, c = (pyro.sample(name, dist.Bernoulli(0.5)) for name in "abc")
        pyro.factor("agree", 2.0 * a * b)
        pyro.factor("pull", -1.0 * b * c)

    return (field,)


@case(
    "l:noise l:linear.weight l:linear.bias i:x o:y@data",
    "linear.weight linear.bias noise x > y",
    {"data": 7},
)
def bayesian_regression() -> tuple:
    class Regression(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.linear = PyroModule[nn.Linear](2, 1)
            self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
            self.linear.bias = PyroSample(dist.Normal(0.0, 1.0).expand([1]).to_event(1))

        def forward(self, x: Tensor, y: Tensor) -> None:
            noise = pyro.sample("noise", dist.HalfNormal(1.0))
            mean = self.linear(x).squeeze(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(mean, noise), obs=y)

    return Regression(), torch.randn(7, 2), torch.randn(7)


@case(
    "p:loc p:scale p:network l:z@data o:x@data",
    "loc scale > z; z network > x",
    {"data": 4},
)
def module_parameters() -> tuple:
    class Learned(Program):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2))
            self.scale = PyroParam(torch.ones(2), constraint=dist.constraints.positive)
            self.network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 5))

        def model(self, x: Tensor) -> None:
            origin = self.network[0].weight.new_zeros(2)  # the shape and type of a parameter, not its value
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(origin + self.loc, self.scale).to_event(1))
                pyro.sample("x", dist.Normal(self.network(z), 1.0).to_event(1), obs=x)

    return Learned(), torch.randn(4, 5)


@case(
    "p:probability p:net l:z@data o:x@data",
    "probability > z; z net > x",
    {"data": 4},
    guide="x > z",
)
def params_of_a_function() -> tuple:
    net = nn.Linear(1, 2)

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        p = pyro.param("probability", torch.tensor(0.4), constraint=dist.constraints.unit_interval)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(p))
            pyro.sample("x", dist.Normal(net(z.unsqueeze(-1)), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.sigmoid(x.sum(-1))))

    return model, torch.randn(4, 2), {"guide": guide}


# -- where edges get lost ----------------------------------------------------------------------------------


@case("l:q l:r o:y", "q r > y")
def written_in_place() -> tuple:
    def program(y: Tensor) -> None:
        q = pyro.sample("q", dist.Beta(1.0, 1.0))
        r = pyro.sample("r", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        p = torch.zeros(4)
        p[..., 0] = q
        z = torch.zeros(2)
        z[:] = r
        pyro.sample("y", dist.Normal(p.sum() + z.sum(), 1.0), obs=y)

    return program, torch.tensor(0.3)


@case("l:a o:y", "a > y", probe="a > y")
def through_numpy() -> tuple:
    def program(y: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(torch.tensor(a.detach().numpy() ** 2), 1.0), obs=y)

    return program, torch.tensor(0.3)


@case("l:a l:b o:y", "a b > y", probe="a > y")
def through_float() -> tuple:
    def program(y: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(float(a) + b, 1.0), obs=y)

    return program, torch.tensor(0.3)


@case("l:c l:d l:e o:y", "c e > y", probe="c > y")
def python_branch() -> tuple:
    def program(y: Tensor) -> None:
        c = pyro.sample("c", dist.Normal(0.0, 1.0))
        pyro.sample("d", dist.Normal(0.0, 1.0))
        e = pyro.sample("e", dist.Normal(0.0, 1.0))
        loc = 5.0 if c > 0 else -5.0
        pyro.sample("y", dist.Normal(loc + e, 1.0), obs=y)

    return program, torch.tensor(0.3)


@case("l:k l:m o:y", "k m > y", probe="k > y")
def python_index() -> tuple:
    def program(y: Tensor) -> None:
        k = pyro.sample("k", dist.Categorical(torch.ones(4)))
        m = pyro.sample("m", dist.Normal(torch.arange(4.0) * 3, 1.0).to_event(1))
        means = [m[0], m[1], m[2], m[3]]
        pyro.sample("y", dist.Normal(means[int(k)], 1.0), obs=y)

    return program, torch.tensor(0.3)


@case("l:eta@data l:cuts o:y@data", "eta cuts > y", {"data": 5})
def ordered_logistic() -> tuple:
    def program(y: Tensor) -> None:
        cuts = pyro.sample(
            "cuts",
            dist.TransformedDistribution(
                dist.Normal(torch.zeros(3), 1.0).to_event(1), [dist.transforms.OrderedTransform()]
            ),
        )
        with pyro.plate("data", len(y)):
            eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.OrderedLogistic(eta, cuts), obs=y)

    return program, torch.tensor([0, 1, 2, 3, 1])


@case(
    "l:phi o:y_0 o:y_1 o:y_2 o:y_3",
    "phi y_0 > y_1; phi y_1 > y_2; phi y_2 > y_3",
)
def autoregression_on_the_data() -> tuple:
    def program(y: Tensor) -> None:
        phi = pyro.sample("phi", dist.Normal(0.0, 1.0))
        pyro.sample("y_0", dist.Normal(0.0, 1.0), obs=y[0])
        for t in range(1, len(y)):  # reads the data themselves, not the sites' values
            pyro.sample(f"y_{t}", dist.Normal(phi * y[t - 1], 1.0), obs=y[t])

    return program, torch.randn(4)


@case("l:mu o:x@data", "mu > x", {"data": 3})
def sequential_plate() -> tuple:
    def program(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"x_{i}", dist.Normal(mu, 1.0), obs=x[i])

    return program, torch.randn(3)


@case("l:mu o:x@data", "mu > x", {"data": 20})
def subsampled_plate() -> tuple:
    def program(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=4) as index:
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x[index])

    return program, torch.randn(20)
