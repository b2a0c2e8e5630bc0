"""DiffusionChain: denoising diffusion (DDPM) as a Markov chain of Pyro sites, for ordered grey levels."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_dgm.errors import ProgramError
from ppl_dgm.program import Answer, Program
from ppl_dgm.results import Score

from .denoisers import denoiser as find_denoiser
from .schedules import NoiseSchedule, signal_fraction

__all__ = ["DiffusionChain"]

_DRAWS = 2  # draws of every z_t in the default score
_ROWS = 4096  # rows that go through the network at once while scoring
_GOLDEN = (math.sqrt(5.0) - 1) / 2


class DiffusionChain(Program):
    """Denoising diffusion: T latent sites whose posterior is fixed and whose levels share one network,

        z_T ~ N(0, I),   z_{t-1} ~ N(mu(z_t, t), sigma_t^2 I) for t = T, ..., 2,   x ~ p(x | z_1),
        mu(z_t, t) = (z_t - beta_t / sqrt(1 - alpha-bar_t) eps-hat(z_t, t)) / sqrt(alpha_t),
        q:   z_t ~ N(sqrt(1 - beta_t) z_{t-1}, beta_t I),   z_0 = x scaled to [-1, 1].

    Arguments:
        observed: D, the number of observed dimensions.
        values: V, the number of ordered grey levels of each dimension.
        steps: T.
        hidden: units of each layer of the network.
        schedule: "log-snr", "cosine" or "linear"; see `signal_fraction`. "log-snr" starts where the noise is
            one grey level; finer detail is left to p(x | z_1).
        denoiser: "levels" (eps-hat from a posterior over grey levels, which is also p(x | z_1)) or "noise"
            (eps-hat straight from the network and p(x | z_1) a normal variable over the levels' cells, as
            published). The first scores far better on few data.
        variance: sigma_t^2: "posterior" (beta-tilde_t) or "forward" (beta_t).
        blocks: residual blocks of the network.
        dropout: probability of dropping a hidden unit while learning.

    Sites: `z_T`, ..., `z_1` [D], `x` [D]. Score: a lower bound, the variational bound with every Gaussian
    divergence in closed form and 2 draws of each z_t. Posterior: the noising chain, which holds no
    representation of x.

    Raises:
        ProgramError: an option is unknown or a size is not positive.

    Source: Ho, Jain and Abbeel 2020; Kingma et al. 2021 (the schedule); Tomczak 2024, section 5.5.3.4.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> chain = DiffusionChain(observed=64, values=17, steps=10)
        >>> dgm.sample(chain, 5, seed=0)["x"].shape
        torch.Size([5, 64])
        >>> dgm.score(chain, torch.zeros(3, 64), seed=0).kind
        'lower_bound'
    """

    def __init__(
        self,
        observed: int,
        values: int,
        steps: int = 200,
        hidden: int = 192,
        schedule: str = "log-snr",
        denoiser: str = "levels",
        variance: str = "posterior",
        blocks: int = 3,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        for name, size, least in (
            ("observed", observed, 1),
            ("values", values, 2),
            ("hidden", hidden, 1),
            ("blocks", blocks, 1),
        ):
            if not isinstance(size, int) or isinstance(size, bool) or size < least:
                raise ProgramError(f"DiffusionChain: {name} is {size!r}; give a whole number, at least {least}.")
        if not 0 <= dropout < 1:
            raise ProgramError(f"DiffusionChain: dropout is {dropout!r}; it must be a probability in [0, 1).")
        finest = max(4.0, -2 * math.log(2 / (values - 1)))  # noise of one grey level, at most 0.14
        self.schedule = NoiseSchedule(signal_fraction(schedule, steps, largest=finest), variance)
        self.denoiser = find_denoiser(denoiser)(observed, values, self.schedule, hidden, blocks, dropout)
        self.steps = steps
        self.observed, self.values = observed, values
        self.support = constraints.integer_interval(0, values - 1)

    # -- the story -------------------------------------------------------------------------------------------

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """From pure noise back to the data, one step at a time."""
        count = n if x is None else len(x)
        zero = torch.zeros(count, self.observed or 0, dtype=self.dtype, device=self.device)
        with pyro.plate("data", count):
            z = pyro.sample(f"z_{self.steps}", dist.Normal(zero, 1.0).to_event(1))  # [batch, D]
            for step in pyro.markov(range(self.steps, 1, -1)):
                t = torch.full((count,), step, device=self.device)
                mean = self.schedule.reverse_mean(z, t, self.denoise(z, t)[0])
                z = pyro.sample(f"z_{step - 1}", dist.Normal(mean, self.schedule.reverse_scale[step]).to_event(1))
            features = self.denoise(z, torch.ones(count, dtype=torch.long, device=self.device))[1]
            return pyro.sample("x", self.decoder(features), obs=None if x is None else x.long())

    def guide(self, x: Tensor, n: int = 1) -> None:
        """From the data to pure noise: the noising chain, which is not learned."""
        z = self.scaled(x)
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(1, self.steps + 1)):
                step = dist.Normal(self.schedule.forward_mean[t] * z, self.schedule.forward_scale[t])
                z = pyro.sample(f"z_{t}", step.to_event(1))

    def denoise(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """eps-hat(z_t, t) [batch, D], and what `decoder` needs; z [batch, D], t [batch]."""
        return self.denoiser(z, t, self.schedule)

    def decoder(self, features: Tensor) -> dist.TorchDistribution:
        """p(x | z_1), batch shape [batch], event shape [D]."""
        return self.denoiser.decoder(features)

    def scaled(self, x: Tensor) -> Tensor:
        """Grey levels 0 to V - 1 mapped affinely onto [-1, 1]."""
        return x.to(self.dtype) * (2.0 / ((self.values or 2) - 1)) - 1.0

    # -- the variational bound, all steps in parallel --------------------------------------------------------

    def decoding_loss(self, x: Tensor, noise: Tensor) -> Tensor:
        """L_0: one draw of -ln p(x | z_1), [batch] nats; see `step_losses`."""
        first = torch.ones(len(x), dtype=torch.long, device=x.device)
        return -self.decoder(self.denoise(self.schedule.noised(self.scaled(x), first, noise), first)[1]).log_prob(
            x.long()
        )

    def divergence(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """L_{t-1}, t >= 2: a draw of KL[q(z_{t-1} | z_t, x) || p(z_{t-1} | z_t)], [batch] nats."""
        return self._divergence(t, noise, self.denoise(self.schedule.noised(self.scaled(x), t, noise), t)[0])

    def _divergence(self, t: Tensor, noise: Tensor, guess: Tensor) -> Tensor:
        return (
            self.schedule.kl_slope[t] * ((noise - guess) ** 2).sum(-1) + self.schedule.kl_constant[t] * noise.shape[-1]
        )

    def step_losses(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """One draw of each example's term of -ELBO: `decoding_loss` where t = 1, `divergence` elsewhere.

        Arguments:
            x: [batch, D] grey levels.
            t: [batch], 1 to T.
            noise: [batch, D] standard normal; z_t is x noised by it.

        Returns:
            [batch] nats. Their expectations over noise, summed over t, plus `prior_loss`, are -ELBO.
        """
        guess, features = self.denoise(self.schedule.noised(self.scaled(x), t, noise), t)
        return torch.where(t == 1, -self.decoder(features).log_prob(x.long()), self._divergence(t, noise, guess))

    def prior_loss(self, x: Tensor) -> Tensor:
        """L_T = KL[q(z_T | x) || N(0, I)], [batch] nats: what is left of the data in pure noise."""
        left = self.schedule.alpha_bar[-1]
        return 0.5 * (left * self.scaled(x) ** 2 - left - torch.log1p(-left)).sum(-1)

    def bound(self, x: Tensor, draws: int = _DRAWS) -> tuple[Tensor, Tensor | None]:
        """The variational bound term by term: L_0, ..., L_{T-1}, L_T with ELBO = -sum.

        Arguments:
            x: [batch, D] grey levels.
            draws: independent draws of each z_t.

        Returns:
            The terms [T + 1, batch] in nats, averaged over draws, and the Monte Carlo standard error of their
            sum, [batch] (None for one draw).
        """
        terms = torch.empty(self.steps + 1, len(x), dtype=self.dtype, device=self.device)
        variance = torch.zeros(len(x), dtype=self.dtype, device=self.device)
        size = max(1, _ROWS // draws)
        for rows in (slice(i, i + size) for i in range(0, len(x), size)):
            some = x[rows].repeat(draws, 1)  # [draws * rows, D]
            for t in range(1, self.steps + 1):
                noise = torch.randn(len(some), x.shape[1], dtype=self.dtype, device=self.device)
                losses = (
                    self.decoding_loss(some, noise)
                    if t == 1
                    else self.divergence(some, torch.full_like(some[:, 0], t, dtype=torch.long), noise)
                )
                losses = losses.unflatten(0, (draws, -1))
                terms[t - 1, rows] = losses.mean(0)
                if draws > 1:
                    variance[rows] += losses.var(0) / draws
            terms[-1, rows] = self.prior_loss(x[rows])
        return terms, variance.sqrt() if draws > 1 else None

    def log_density(self, x: Tensor, draws: int = _DRAWS) -> Score:
        """A lower bound of log p(x): minus the sum of `bound`."""
        terms, stderr = self.bound(x, draws)
        return Score(
            -terms.sum(0),
            "lower_bound",
            stderr,
            f"variational bound, {self.steps} steps, {draws} draws of each",
        )

    # -- learning --------------------------------------------------------------------------------------------

    def denoising_loss(self, x: Tensor, weighting: str = "bound") -> Tensor:
        """One random step per example, so that memory does not grow with T.

        - "bound": the term of the variational bound over the probability of its step, plus L_T: its
          expectation is -ELBO. Steps are visited mostly in proportion to the divergence that standard normal
          data would have there.
        - "simple": ||eps - eps-hat||^2 at a uniformly drawn step (the published objective). It weighs small
          noise less than the bound does, and leaves a learned decoder scale alone.

        Arguments:
            x: [batch, D] grey levels.
            weighting: as above.

        Returns:
            [batch]; nats for "bound".

        Raises:
            ProgramError: the weighting is unknown.
        """
        if weighting not in ("bound", "simple"):
            raise ProgramError(f"weighting is {weighting!r}; choose 'bound' or 'simple'.")
        noise = torch.randn(x.shape, dtype=self.dtype, device=self.device)
        # a golden-ratio sequence shifted by one uniform draw: each place is uniform, all are spread evenly
        place = torch.arange(len(x), dtype=self.dtype, device=self.device) * _GOLDEN
        place = (place + torch.rand(1, dtype=self.dtype, device=self.device)) % 1.0
        if weighting == "simple":
            t = (place * self.steps).long().clamp(max=self.steps - 1) + 1
            guess = self.denoise(self.schedule.noised(self.scaled(x), t, noise), t)[0]
            return ((noise - guess) ** 2).sum(-1)
        proposal = self.schedule.proposal
        index = torch.searchsorted(proposal.cumsum(0), place, right=True).clamp(max=self.steps - 1)
        return self.step_losses(x, index + 1, noise) / proposal[index] + self.prior_loss(x)

    def default_method(self, task: str) -> Any:
        if task == "learn":
            from ppl_dgm.inference.denoising import Denoising

            return Denoising()
        return None

    def answers(self) -> dict[str, Answer]:
        steps = self.steps
        return {
            "sample": Answer("exact", "ancestral sampling, step by step", steps, steps),
            "score": Answer(
                "lower_bound",
                f"variational bound, closed-form divergences, {_DRAWS} draws of each z_t",
                _DRAWS * steps,
                1,
            ),
            "infer": Answer("approximate", "the noising chain, which is fixed: no representation", 0, steps),
            "learn": Answer("lower_bound", "denoising: one random step per example", 1, 1),
        }
