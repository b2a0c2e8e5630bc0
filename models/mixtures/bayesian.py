"""BayesianMixture and DirichletProcessMixture: mixtures whose parameters are latent sites with conjugate priors."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer.autoguide import AutoNormal, init_to_sample, init_to_value
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_dgm.errors import ProgramError
from ppl_dgm.program import Answer, Program
from ppl_dgm.results import Posterior

from .labels import relabel, reordered

__all__ = ["BayesianMixture", "DirichletProcessMixture", "VariationalMixture", "stick_weights"]

_LIKELIHOODS = {
    "gaussian": constraints.real,
    "bernoulli": constraints.boolean,
    "poisson": constraints.nonnegative_integer,
}
_PARAMETERS = {"gaussian": ("means", "precisions"), "bernoulli": ("theta",), "poisson": ("rates",)}


class BayesianMixture(Program):
    """A mixture of factorised components with a prior on all that is unknown.

        weights ~ Dirichlet(concentration, ..., concentration),        k_n ~ Categorical(weights)
        gaussian:  precision_kd ~ Gamma(shape, rate), mean_kd ~ N(centre, 1 / (strength precision_kd)),
                   x_nd ~ N(mean_kd, 1 / precision_kd)
        bernoulli: theta_kd ~ Beta(shape, rate),   x_nd ~ Bernoulli(theta_kd)
        poisson:   rate_kd ~ Gamma(shape, rate),   x_nd ~ Poisson(rate_kd)

    The sampler of the same posterior may be `NUTS` (k is summed out), `Gibbs` (every conditional is conjugate),
    `CollapsedMixtureGibbs` (all but k is integrated out) or `SVI`. The components' labels have no meaning: see `relabel`.

    Arguments:
        observed: D, entries of an example.
        components: K.
        likelihood: "gaussian", "bernoulli" or "poisson".
        concentration: of the Dirichlet.
        shape, rate: of the Gamma (of precisions or rates) or Beta.
        centre, strength: of the Gaussian means.

    Raises:
        ProgramError: an argument out of range.

    Source: C. Bishop (2006), PRML, 10.2; J. Diebolt and C. Robert (1994).

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> program = dgm.models.BayesianMixture(1, 2)
        >>> x = torch.cat([torch.randn(30, 1) - 3, torch.randn(30, 1) + 3])
        >>> dgm.infer(program, x, method=dgm.NUTS(chains=2, warmup=50, draws=50), seed=0).draws["means"].shape
        torch.Size([2, 50, 2, 1])
    """

    def __init__(
        self,
        observed: int,
        components: int,
        likelihood: str = "gaussian",
        concentration: float = 1.0,
        shape: float = 1.0,
        rate: float = 1.0,
        centre: float = 0.0,
        strength: float = 0.1,
    ) -> None:
        super().__init__()
        if isinstance(self, DirichletProcessMixture) and components == 1:
            raise ProgramError("components must be at least 2 for a stick to break, but it is 1.")
        if likelihood not in _LIKELIHOODS:
            raise ProgramError(f"likelihood must be one of {', '.join(_LIKELIHOODS)}, but it is {likelihood!r}.")
        for name, count in (("observed", observed), ("components", components)):
            if count < 1:
                raise ProgramError(f"{name} must be at least 1, but it is {count!r}.")
        for name, value in (
            ("concentration", concentration), ("shape", shape), ("rate", rate), ("strength", strength)
        ):  # fmt: skip
            if not 0 < value < math.inf:
                raise ProgramError(f"{name} must be a positive number, but it is {value!r}.")
        self.observed, self.components, self.likelihood = observed, components, likelihood
        self.concentration, self.shape, self.rate, self.centre, self.strength = (
            concentration, shape, rate, centre, strength
        )  # fmt: skip
        self.support = _LIKELIHOODS[likelihood]

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """Weights and components from their priors; k ~ Categorical(weights); x ~ component k."""
        zero = self._zero(x)
        weights = self.draw_weights(zero)
        with pyro.plate("components", self.components, dim=-1):
            parameters = self.draw_components(zero)
        with pyro.plate("data", n if x is None else len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
            return pyro.sample("x", self.component(k, *parameters), obs=None if x is None else x.to(zero.dtype))

    def _zero(self, x: Tensor | None) -> Tensor:
        """A zero of the number type and on the device that the model runs in."""
        if x is not None and x.is_floating_point():
            return torch.zeros((), dtype=x.dtype, device=x.device)
        return torch.zeros((), device=self.device if x is None else x.device)

    def draw_weights(self, zero: Tensor) -> Tensor:
        """Site `weights`, [K]."""
        return pyro.sample("weights", dist.Dirichlet((zero + self.concentration).expand(self.components)))

    def draw_components(self, zero: Tensor) -> tuple[Tensor, ...]:
        """The sites of the components' parameters, [K, D] each, inside their plate."""
        shape, rate = (zero + value for value in (self.shape, self.rate))
        entries = (self.observed,)
        if self.likelihood == "bernoulli":
            return (pyro.sample("theta", dist.Beta(shape, rate).expand(entries).to_event(1)),)
        if self.likelihood == "poisson":
            return (pyro.sample("rates", dist.Gamma(shape, rate).expand(entries).to_event(1)),)
        precisions = pyro.sample("precisions", dist.Gamma(shape, rate).expand(entries).to_event(1))
        scale = (self.strength * precisions).rsqrt()
        return pyro.sample("means", dist.Normal(self.centre + 0 * scale, scale).to_event(1)), precisions

    def component(self, k: Tensor, *parameters: Tensor) -> TorchDistributionMixin:
        """The distribution of x given k and the components' parameters, event shape [D]."""
        first = parameters[0][k]
        if self.likelihood == "bernoulli":
            return dist.Bernoulli(first).to_event(1)
        if self.likelihood == "poisson":
            return dist.Poisson(first).to_event(1)
        return dist.Normal(first, parameters[1][k].rsqrt()).to_event(1)

    def variational(self, init_scale: float = 0.05, x: Tensor | None = None) -> "VariationalMixture":
        """A guide for `SVI(elbo="enum")`: Gaussian parameters in unconstrained coordinates, k exact given them.

        Arguments:
            init_scale: standard deviations at the start.
            x: examples, at whose posterior mode (`MixtureEM`) the guide starts; None: at a draw from the prior, from
                where the fit may end with two groups in one component.

        Example:
            >>> import torch, ppl_dgm as dgm
            >>> program, x = dgm.models.BayesianMixture(1, 2), torch.randn(20, 1)
            >>> method = dgm.SVI(elbo="enum", epochs=2, batch_size=None)
            >>> fit = dgm.learn(program, x, guide=program.variational(), method=method, seed=0)
            >>> sorted(fit.posterior(x, draws=10, seed=0).draws)
            ['k', 'means', 'precisions', 'weights']
        """
        return VariationalMixture(self, init_scale, x)

    def log_joint_of(self, x: Tensor, weights: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
        """log weight_k + log p(x_n | component k) in nats, [N, K]."""
        every = torch.arange(self.components, device=x.device)
        return self.component(every, *parameters).log_prob(x.unsqueeze(1)) + weights.log()

    def default_method(self, task: str) -> Any:
        """NUTS with k summed out for `infer`."""
        return "nuts" if task == "infer" else None

    def answers(self) -> dict[str, Answer]:
        return {
            "sample": Answer("exact", "parameters from their prior, then examples"),
            "score": Answer(
                "unavailable", "examples are tied by the unknown parameters; see log_evidence of tempered-smc"
            ),
            "infer": Answer("asymptotic", "NUTS, k summed out"),
            "learn": Answer("approximate", "variational, k summed out: guide=program.variational()"),
        }

    # -- what conjugacy gives --------------------------------------------------------------------------------------

    def log_marginal(self, count: Tensor, total: Tensor, squares: Tensor) -> Tensor:
        """log p(the examples of one component), its parameters integrated out, up to what only the data decide.

        Left out is sum_nd log(1 / x_nd!) of Poisson counts, the same for every assignment.

        Arguments:
            count: examples of the component, [...].
            total: sum of x, [..., D].
            squares: sum of x^2, [..., D] (Gaussian only).

        Returns:
            Nats, [...].

        Source: K. Murphy (2007), Conjugate Bayesian analysis of the Gaussian distribution.
        """
        n, a, b = count.unsqueeze(-1), self.shape, self.rate
        if self.likelihood == "bernoulli":
            found = _log_beta(a + total, b + n - total) - _log_beta(total * 0 + a, total * 0 + b)
        elif self.likelihood == "poisson":
            found = torch.lgamma(a + total) - math.lgamma(a) + a * math.log(b) - (a + total) * (b + n).log()
        else:
            after = self.strength + n
            spread = squares + self.strength * self.centre**2 - (self.strength * self.centre + total).square() / after
            found = (
                torch.lgamma(a + n / 2) - math.lgamma(a) + a * math.log(b) - (a + n / 2) * (b + spread / 2).log()
                + 0.5 * (math.log(self.strength) - after.log()) - n / 2 * math.log(2 * math.pi)
            )  # fmt: skip
        return found.sum(-1)

    def draw_parameters(self, count: Tensor, total: Tensor, squares: Tensor) -> dict[str, Tensor]:
        """The components' parameters given their examples' sums (as in `log_marginal`), each [..., D]."""
        n, a, b = count.unsqueeze(-1), self.shape, self.rate
        if self.likelihood == "bernoulli":
            return {"theta": dist.Beta(a + total, b + n - total).sample()}
        if self.likelihood == "poisson":
            return {"rates": dist.Gamma(a + total, b + n).sample()}
        after = self.strength + n
        mean = (self.strength * self.centre + total) / after
        spread = squares + self.strength * self.centre**2 - after * mean.square()
        precisions = dist.Gamma(a + n / 2, b + spread.clamp_min(0) / 2).sample()
        return {"precisions": precisions, "means": dist.Normal(mean, (after * precisions).rsqrt()).sample()}

    def mode_parameters(self, count: Tensor, total: Tensor, squares: Tensor) -> dict[str, Tensor]:
        """The parameters of highest posterior density given the components' sums (as in `log_marginal`), each [..., D].

        Where a prior that is unbounded at the edge would win, they stay just inside.
        """
        n, a, b = count.unsqueeze(-1), self.shape, self.rate
        if self.likelihood == "bernoulli":
            heads, tails = (a + total - 1).clamp_min(1e-12), (b + n - total - 1).clamp_min(1e-12)
            return {"theta": heads / (heads + tails)}
        if self.likelihood == "poisson":
            return {"rates": (a + total - 1).clamp_min(1e-12) / (b + n)}
        after = self.strength + n
        mean = (self.strength * self.centre + total) / after
        spread = squares + self.strength * self.centre**2 - after * mean.square()
        # the density of the mean given the precision adds half a power of it
        precisions = (a + n / 2 - 0.5).clamp_min(1e-12) / (b + spread.clamp_min(0) / 2)
        return {"means": mean, "precisions": precisions}

    def log_prior_of(self, weights: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """log p(weights, parameters) in nats, []."""
        alpha, shape, rate = (
            torch.full_like(weights, self.concentration),
            *weights.new_tensor([self.shape, self.rate]),
        )
        found = dist.Dirichlet(alpha, validate_args=False).log_prob(weights)
        if self.likelihood == "bernoulli":
            beta = dist.Beta(shape, rate, validate_args=False)
            return found + beta.log_prob(parameters["theta"]).sum()
        prior = dist.Gamma(shape, rate, validate_args=False)
        if self.likelihood == "poisson":
            return found + prior.log_prob(parameters["rates"]).sum()
        precisions, scale = parameters["precisions"], (self.strength * parameters["precisions"]).rsqrt()
        found = found + prior.log_prob(precisions).sum()
        return found + dist.Normal(self.centre + 0 * scale, scale).log_prob(parameters["means"]).sum()

    # -- labels ----------------------------------------------------------------------------------------------------

    def identified(self, posterior: Posterior) -> Posterior:
        """The posterior with labels that mean the same in every draw, and in other posteriors of the same program.

        Each draw's components are matched with those of one draw (see `relabel`); the labels are then in ascending order
        of the first entry's parameter, averaged over draws. `compare` does this to every run, so that two runs that found
        the same components in another order agree. It is reliable where components are separated.
        """
        first, *rest = [name for name in _PARAMETERS[self.likelihood] if name in posterior.draws]
        weights = [name for name in ("weights",) if name in {**posterior.draws, **posterior.deterministic}]
        labels = [name for name in ("k",) if name in posterior.draws]
        found = relabel(posterior, [first, *rest, *weights], labels)
        centres = found.draws[first].flatten(0, 1)[..., 0].double().mean(0)  # [K]
        return reordered(found, [first, *rest, *weights], labels, centres.argsort())


class VariationalMixture(nn.Module):
    """q(parameters) q(k | parameters): an AutoNormal, and the exact conditional of the labels given its draw.

    With k summed out in this way the bound is as tight as if the model had been written without k.

    Arguments:
        program: the mixture.
        init_scale: standard deviations at the start, in unconstrained coordinates.
        x: examples, at whose posterior mode it starts; None: at a draw from the prior, which tells the components apart.
    """

    program: BayesianMixture

    def __init__(self, program: BayesianMixture, init_scale: float, x: Tensor | None = None) -> None:
        super().__init__()
        object.__setattr__(self, "program", program)  # no submodule: its parameters are not the guide's
        story = pyro.poutine.block(program.model, hide=["k"])
        begin: Any = init_to_sample
        if x is not None:
            from ppl_dgm.tasks import infer

            found = infer(program, x, method="mixture-em", seed=0).draws
            begin = init_to_value(values={name: value[0, 0] for name, value in found.items() if name != "k"})
        self.parameters_of = AutoNormal(story, init_loc_fn=begin, init_scale=init_scale)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Draw all latent sites."""
        program = self.program
        drawn = self.parameters_of(x)
        parameters = tuple(drawn[name] for name in _PARAMETERS[program.likelihood])
        weights = drawn["weights"] if "weights" in drawn else stick_weights(drawn["sticks"])
        logits = program.log_joint_of(x.to(weights.dtype), weights, parameters)
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
        return {**drawn, "k": k}


class DirichletProcessMixture(BayesianMixture):
    """A Dirichlet-process mixture, its stick-breaking truncated at `components` weights.

        stick_k ~ Beta(1, concentration), k < K,        weight_k = stick_k prod_{j<k} (1 - stick_j)

    and the last weight what is left of the stick. The data decide how many components are used; `components` is only
    to be larger than that. All else is as in `BayesianMixture`.

    Source: J. Sethuraman (1994); H. Ishwaran and L. James (2001) for the truncation; D. Blei and M. Jordan (2006) for
    the variational approximation.
    """

    def draw_weights(self, zero: Tensor) -> Tensor:
        """Site `sticks`, [K - 1]; deterministic site `weights`, [K]."""
        one = zero + 1
        sticks = pyro.sample(
            "sticks", dist.Beta(one, one * self.concentration).expand((self.components - 1,)).to_event(1)
        )
        return pyro.deterministic("weights", stick_weights(sticks))


def stick_weights(sticks: Tensor) -> Tensor:
    """weight_k = stick_k prod_{j<k} (1 - stick_j), and what is left, [..., K - 1] -> [..., K]."""
    one = torch.ones_like(sticks[..., :1])
    return torch.cat([sticks, one], -1) * torch.cat([one, (1 - sticks).cumprod(-1)], -1)


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
