"""HiddenMarkovModel: a Markov chain of states that is seen only through what each state emits."""

from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_dgm.distributions.discrete_chain import DiscreteChain
from ppl_dgm.errors import DataError, ProgramError
from ppl_dgm.program import Answer, FunctionProgram, Program
from ppl_dgm.results import Score

from .emissions import EMISSIONS

__all__ = ["HiddenMarkovModel", "Smoothed"]


class Smoothed(NamedTuple):
    """What forward-backward finds.

    Attributes:
        log_evidence: log p(x), [n].
        states: p(z_t | x), [n, T, K].
        moves: p(z_t, z_{t+1} | x), [n, T - 1, K, K].
    """

    log_evidence: Tensor
    states: Tensor
    moves: Tensor


class HiddenMarkovModel(Program):
    """z_1 ~ Categorical(initial), z_t ~ Categorical(transition[z_{t-1}]), x_t ~ emission of z_t.

    The chain is one site z, [T], so that its density and its exact posterior, again a chain, are computed for all
    sequences at once; `unrolled` is the same program with a site for each step. Data are [n, T], or [n, T, D] where a step
    has several entries. Steps, or entries of a step, may be missing (NaN or -1), and shorter sequences are those whose end
    is missing: they are summed out exactly.

    Arguments:
        states: K.
        emission: "categorical", "bernoulli" or "gaussian".
        values: number of values of a categorical emission.
        dimensions: D, entries of a step; 1 for a categorical emission.
        length: T, steps of a sequence; None takes that of the data.
        count: pseudo-count of each initial state, move and outcome, added in the M-step.
        floor: smallest variance of a Gaussian emission.

    Attributes:
        initial_logits: [K].
        transition_logits: [K, K], rows: the state before.
        emission: the module that holds the emission's parameters.

    Raises:
        ProgramError: an argument out of range.

    Source: L. Rabiner (1989), A tutorial on hidden Markov models; L. Baum et al. (1970).

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> hmm = HiddenMarkovModel(2, "gaussian")
        >>> x = torch.randn(8, 20)
        >>> fit = dgm.learn(hmm, x, method=dgm.EM(steps=5), seed=0)
        >>> hmm.viterbi(x)[0].shape, dgm.infer(hmm, x, seed=0).exact["z"].marginals.shape
        (torch.Size([8, 20]), torch.Size([8, 20, 2]))
    """

    allows_missing = True

    def __init__(
        self, states: int, emission: str = "categorical", values: int | None = None, dimensions: int = 1,
        length: int | None = None, count: float = 0.0, floor: float = 1e-4,
    ) -> None:  # fmt: skip
        super().__init__()
        if emission not in EMISSIONS:
            raise ProgramError(f"emission must be one of {', '.join(EMISSIONS)}, but it is {emission!r}.")
        if emission == "categorical" and (values is None or values < 2 or dimensions != 1):
            raise ProgramError(
                f"a categorical emission needs values of at least 2 and one entry a step, but values is {values!r} and "
                f"dimensions {dimensions!r}."
            )
        for name, number in (
            ("states", states),
            ("dimensions", dimensions),
            ("length", 1 if length is None else length),
        ):
            if not isinstance(number, int) or number < 1:
                raise ProgramError(f"{name} must be a whole number, at least 1, but it is {number!r}.")
        if count < 0 or floor <= 0:
            raise ProgramError(f"count must be at least 0 and floor positive, but they are {count!r} and {floor!r}.")
        self.states, self.dimensions, self.length, self.count = states, dimensions, length, count
        self.observed = length if dimensions == 1 else None
        self.values = values if emission == "categorical" else None
        self.initial_logits = nn.Parameter(torch.zeros(states))
        self.transition_logits = nn.Parameter(torch.eye(states) + 0.1 * torch.randn(states, states))
        self.emission = EMISSIONS[emission](states, dimensions, count, values, floor)
        self.support = self.emission.support

    # -- the story -------------------------------------------------------------------------------------------

    def model(self, x: Tensor | None = None, n: int = 1, length: int | None = None) -> Tensor:
        """z ~ the chain; x_t ~ the emission of z_t."""
        entries, seen = (None, None) if x is None else self._entries(x)
        steps = (length or self.length) if entries is None else entries.shape[1]
        if steps is None:
            raise ProgramError(
                "how long a sequence is to be is not known; pass length=..., to sample or to the program."
            )
        with pyro.plate("data", n if entries is None else len(entries)):
            z = pyro.sample("z", self.chain(steps))
            fn = self.emission.of(z)  # [n, T] or [n, T, D]
            fn = fn if seen is None else fn.mask(seen)
            return pyro.sample("x", fn.to_event(2 if self.dimensions > 1 else 1), obs=entries)

    def chain(self, steps: int) -> DiscreteChain:
        """The prior of the states."""
        return DiscreteChain(self.initial_logits, self.transition_logits.expand(steps - 1, -1, -1))

    def unrolled(self) -> FunctionProgram:
        """The same model with sites z_0, x_0, z_1, x_1, ..., for enumeration and message passing; it takes x."""

        def story(x: Tensor) -> None:
            entries, seen = self._entries(x)
            logits: Tensor = self.initial_logits
            with pyro.plate("data", len(entries)):
                for t in pyro.markov(range(entries.shape[1])):
                    z = pyro.sample(f"z_{t}", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
                    fn = self.emission.of(z).mask(seen[:, t]).to_event(self.dimensions > 1)
                    pyro.sample(f"x_{t}", fn, obs=entries[:, t])
                    logits = self.transition_logits[z]

        return FunctionProgram(story, name="HiddenMarkovModel, unrolled")

    def _entries(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x with zeros in its holes, and which entries are there, [n, T] or [n, T, D]."""
        x = x.squeeze(-1) if self.dimensions == 1 and x.dim() == 3 else x
        if x.dim() != (2 if self.dimensions == 1 else 3) or (self.dimensions > 1 and x.shape[-1] != self.dimensions):
            wanted = "[n, T]" if self.dimensions == 1 else f"[n, T, {self.dimensions}]"
            raise DataError(f"sequences must have shape {wanted}, but x has {tuple(x.shape)}.")
        real = type(self.emission).__name__ == "GaussianEmission"
        seen = ~x.isnan() if x.is_floating_point() else torch.ones_like(x, dtype=torch.bool)
        seen = seen if real else seen & (x >= 0)
        x = torch.where(seen, x, torch.zeros_like(x))
        if self.values is None:
            return x.to(self.dtype), seen
        if bool((x >= self.values).any()):
            raise DataError(f"x has the value {int(x.max())}, but values go from 0 to {self.values - 1}.")
        return x.long(), seen

    # -- exact answers ---------------------------------------------------------------------------------------

    def step_log_probs(self, x: Tensor) -> Tensor:
        """log p(x_t | z_t = k), [n, T, K], zero for a missing step."""
        entries, seen = self._entries(x)
        every = torch.arange(self.states, device=entries.device)
        if self.dimensions == 1:
            return self.emission.of(every).log_prob(entries.unsqueeze(-1)) * seen.unsqueeze(-1)
        log_p = self.emission.of(every).log_prob(entries.unsqueeze(-2))  # [n, T, K, D]
        return (log_p * seen.unsqueeze(-2)).sum(-1)

    def forward_pass(self, steps: Tensor) -> Tensor:
        """log p(z_t, x_1, ..., x_t) from `step_log_probs`, [n, T, K]."""
        moves = self.transition_logits.log_softmax(-1)
        alpha = self.initial_logits.log_softmax(-1) + steps[:, 0]
        found = [alpha]
        for t in range(1, steps.shape[1]):
            alpha = steps[:, t] + (alpha.unsqueeze(-1) + moves).logsumexp(-2)
            found.append(alpha)
        return torch.stack(found, 1)

    def backward_pass(self, steps: Tensor) -> Tensor:
        """log p(x_{t+1}, ..., x_T | z_t), [n, T, K]."""
        moves = self.transition_logits.log_softmax(-1)
        beta = torch.zeros_like(steps[:, 0])
        found = [beta]
        for t in range(steps.shape[1] - 1, 0, -1):
            beta = (moves + (steps[:, t] + beta).unsqueeze(-2)).logsumexp(-1)
            found.append(beta)
        return torch.stack(found[::-1], 1)

    def forward_backward(self, x: Tensor) -> Smoothed:
        """States and moves given all observations.

        p(z_t | x) is proportional to alpha_t beta_t, p(z_t, z_{t+1} | x) to alpha_t transition emission beta_{t+1}.
        """
        steps = self.step_log_probs(x)
        alpha, beta = self.forward_pass(steps), self.backward_pass(steps)
        evidence = alpha[:, -1].logsumexp(-1)
        moves = self.transition_logits.log_softmax(-1)
        pairs = alpha[:, :-1, :, None] + moves + (steps + beta)[:, 1:, None, :]
        return Smoothed(evidence, (alpha + beta).softmax(-1), (pairs - evidence[:, None, None, None]).exp())

    @torch.no_grad()
    def viterbi(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The most probable states, [n, T], and log p(x, z*) in nats, [n].

        Arguments:
            x: [n, T] or [n, T, D].
            lengths: steps of each sequence, [n], where they differ; the states after them are -1. Without it the states of
                missing steps are chosen too, and the best way on from the last step seen bears on it.
        """
        steps = self.step_log_probs(x)
        total = steps.shape[1]
        ends = torch.full((len(steps),), total, device=steps.device) if lengths is None else lengths.to(steps.device)
        moves = self.transition_logits.log_softmax(-1)
        delta = [self.initial_logits.log_softmax(-1) + steps[:, 0]]
        for t in range(1, total):
            new = steps[:, t] + (delta[-1].unsqueeze(-1) + moves).amax(-2)
            delta.append(torch.where((t < ends).unsqueeze(-1), new, delta[-1]))
        z = delta[-1].argmax(-1)
        path = [z]
        for t in range(total - 2, -1, -1):
            z = torch.where(t + 1 < ends, (delta[t] + moves[:, z].mT).argmax(-1), delta[t].argmax(-1))
            path.append(z)
        found = torch.stack(path[::-1], 1)
        inside = torch.arange(total, device=ends.device) < ends.unsqueeze(-1)
        return torch.where(inside, found, -1), delta[-1].amax(-1)

    def log_density(self, x: Tensor) -> Score:
        """log p(x) in nats, [n], by the forward pass."""
        return Score(self.log_prob(x), "exact", how=f"forward pass over {self.states} states")

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, [n], for `MaximumLikelihood`."""
        return self.forward_pass(self.step_log_probs(x))[:, -1].logsumexp(-1)

    def posterior(self, x: Tensor) -> dict[str, Any]:
        """p(z | x), again a chain: p(z_t | z_{t-1}, x) is proportional to transition emission_t beta_t."""
        steps = self.step_log_probs(x)
        ahead = steps + self.backward_pass(steps)
        moves = self.transition_logits.log_softmax(-1)
        first = self.initial_logits.log_softmax(-1) + ahead[:, 0]
        return {"z": DiscreteChain(first, moves + ahead[:, 1:, None, :])}

    def default_method(self, task: str) -> Any:
        """Baum-Welch, that is EM, with restarts for `learn`."""
        if task != "learn":
            return None
        from ppl_dgm.inference.em import EM

        return EM(restarts=5)

    def answers(self) -> dict[str, Answer]:
        return {
            "sample": Answer("exact", "one step after another"),
            "score": Answer("exact", f"forward pass over {self.states} states"),
            "infer": Answer("exact", "backward pass, a chain"),
            "learn": Answer("approximate", "Baum-Welch, a local optimum"),
        }

    # -- expectation maximisation ----------------------------------------------------------------------------

    @torch.no_grad()
    def em_start(self, x: Tensor) -> None:
        """Sticky transitions, and emissions drawn (Gaussian means: from the data)."""
        entries, seen = self._entries(x)
        self.initial_logits.zero_()
        self.transition_logits.copy_(
            torch.eye(self.states).to(self.initial_logits) + 0.1 * torch.randn_like(self.transition_logits)
        )
        self.emission.start(self._rows(entries), self._rows(seen))

    @torch.no_grad()
    def em_step(self, x: Tensor) -> Tensor:
        """One Baum-Welch step in place; returns the mean log likelihood per sequence in nats before it, []."""
        found = self.forward_backward(x)
        entries, seen = self._entries(x)
        self.initial_logits.copy_(_log_shares(found.states[:, 0].sum(0) + self.count, self.initial_logits))
        self.transition_logits.copy_(_log_shares(found.moves.sum((0, 1)) + self.count, self.transition_logits))
        self.emission.maximise(self._rows(entries), self._rows(seen), found.states.flatten(0, 1))
        return found.log_evidence.mean()

    def _rows(self, entries: Tensor) -> Tensor:
        """The steps of all sequences, [n T, D]."""
        return entries.reshape(-1, self.dimensions)

    def log_prior(self) -> Tensor:
        """Log density of the pseudo-counts' priors up to a constant, in nats, []; EM adds it."""
        if not self.count:
            return self.initial_logits.new_zeros(())
        tables = self.initial_logits.log_softmax(-1).sum() + self.transition_logits.log_softmax(-1).sum()
        return self.count * tables + self.emission.log_prior()


def _log_shares(counts: Tensor, old: Tensor) -> Tensor:
    """log of counts normalised over the last dimension, kept finite; a row without counts stays as it was."""
    total = counts.sum(-1, keepdim=True)
    share = torch.where(total > 0, counts / total.clamp_min(torch.finfo(total.dtype).tiny), old.softmax(-1))
    return share.clamp_min(torch.finfo(share.dtype).tiny).log()
