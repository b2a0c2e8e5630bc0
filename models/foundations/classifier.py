"""GenerativeClassifier: what every classifier shares that models each class and applies Bayes' rule."""

from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_dgm.errors import DataError
from ppl_dgm.program import Answer, Program
from ppl_dgm.results import Score

from ..mixtures.mixture import Mixture

__all__ = ["Decision", "GenerativeClassifier"]


class Decision(NamedTuple):
    """A class for each example, and how far it can be trusted.

    Attributes:
        label: the class of largest p(x, y), which is that of largest p(y | x), [batch].
        probability: p(label | x), [batch]: all that a discriminative classifier knows.
        log_joint: log p(x, label) in nats, [batch]: low also where p(label | x) is near one, but nothing like x was ever seen.
    """

    label: Tensor
    probability: Tensor
    log_joint: Tensor


class GenerativeClassifier(Program):
    """y ~ Categorical(w), x ~ p(x | y), so that p(y | x) = w_y p(x | y) / sum_c w_c p(x | c).

    It is a mixture whose component is sometimes seen: to learn from labels is one M-step with known responsibilities, and
    where labels are missing, expectation maximisation (the default learner, which with all labels there is done at once).

        learn(program, x, y)     score(program, x)        log p(x)        sample(program, n, given={"y": 1})    x ~ p(x | y)
        infer(program, x)        score(program, x, y)     log p(x, y)

    Arguments:
        mixture: a mixture program with one component for each class; its components become p(x | y).

    Attributes:
        mixture: the same; its `weights` are w.
    """

    mixture: Mixture

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        self.mixture = mixture
        self.observed, self.support, self.values = mixture.observed, mixture.support, mixture.values
        self.allows_missing, self.classes = mixture.allows_missing, mixture.components

    # -- the story -------------------------------------------------------------------------------------------

    def model(self, x: Tensor | None = None, y: Tensor | None = None, n: int = 1) -> Tensor:
        """y ~ Categorical(w); x ~ p(x | y)."""
        with pyro.plate("data", n if x is None else len(x)):
            prior = dist.Categorical(logits=self.mixture.weight_logits)
            y = pyro.sample("y", prior, obs=self._complete(x, y), infer={"enumerate": "parallel"})
            if x is None:
                return pyro.sample("x", self.mixture.component(y))
            fn, x = self.mixture._of_seen(y, self.mixture.as_data(x))
            return pyro.sample("x", fn, obs=x)

    def _labels(self, x: Tensor, y: Any) -> Tensor | None:
        """y as [batch] integers, -1 where it is missing."""
        if y is None:
            return None
        y = torch.as_tensor(y, device=x.device)
        if y.shape != (len(x),):
            raise DataError(f"y must hold one label for each of {len(x)} examples, but its shape is {tuple(y.shape)}.")
        y = torch.where(y.isnan(), -1.0, y).long() if y.is_floating_point() else y.long()
        if bool(((y < -1) | (y >= self.classes)).any()):
            wrong = int(y[(y < -1) | (y >= self.classes)][0])
            raise DataError(
                f"y holds the label {wrong}, but {self.name} has classes 0, ..., {self.classes - 1}; -1 marks a missing one."
            )
        return y

    def _complete(self, x: Tensor | None, y: Any) -> Tensor | None:
        if x is None or y is None:
            return None if y is None else torch.as_tensor(y)
        y = self._labels(x, y)
        if y is not None and bool((y < 0).any()):
            raise DataError(
                "y has missing labels (-1), which the story cannot observe; learn with method='em' (the default), or "
                "leave y out."
            )
        return y

    # -- exact answers ---------------------------------------------------------------------------------------

    def log_joint(self, x: Tensor) -> Tensor:
        """log p(x, y) = log w_y + log p(x | y) in nats for each class, [batch, classes]."""
        return self.mixture.log_joint(x)

    def _of_labels(self, x: Tensor, y: Any) -> Tensor:
        """log p(x, y), minus infinity for the classes that a label excludes, [batch, classes]."""
        log_joint, y = self.log_joint(x), self._labels(x, y)
        if y is None:
            return log_joint
        excluded = (y >= 0)[:, None] & (torch.arange(self.classes, device=x.device) != y[:, None])
        return log_joint.masked_fill(excluded, -torch.inf)

    def log_prob(self, x: Tensor, y: Any = None) -> Tensor:
        """log p(x), or log p(x, y) where a label is given, in nats, [batch]."""
        return self._of_labels(x, y).logsumexp(-1)

    def log_density(self, x: Tensor, y: Any = None) -> Score:
        """log p(x), or log p(x, y) where a label is given, in nats, [batch]."""
        how = f"sum over {self.classes} classes" if y is None else "of the example and its label"
        return Score(self.log_prob(x, y), "exact", how=f"{how}, density of {self.mixture.density_of}")

    def posterior(self, x: Tensor, y: Any = None) -> dict[str, Any]:
        """p(y | x) by Bayes' rule, certain where a label is given; batch shape [len(x)]."""
        return {"y": dist.Categorical(logits=self._of_labels(x, y).log_softmax(-1))}

    @torch.no_grad()
    def decide(self, x: Tensor) -> Decision:
        """The most probable class of each example, with p(y | x) and log p(x, y)."""
        log_joint = self.log_joint(x)
        best, label = log_joint.max(-1)
        return Decision(label, (best - log_joint.logsumexp(-1)).exp(), best)

    # -- learning --------------------------------------------------------------------------------------------

    def log_prior(self) -> Tensor:
        """Log density of the pseudo-counts' priors up to a constant, in nats, []; EM adds it."""
        known = getattr(self.mixture, "log_prior", None)
        return torch.zeros((), dtype=self.dtype, device=self.device) if known is None else known()

    @torch.no_grad()
    def fit_closed_form(self, train: Tensor, y: Any = None, *, valid: Tensor | None = None) -> dict[str, Any]:
        """Shares of the classes, and p(x | y) from each class's own examples.

        Arguments:
            train: [N, D].
            y: [N], every label.
            valid: not needed.

        Raises:
            DataError: labels are missing, or a class has no example.
        """
        labels = self._labels(train, y)
        if labels is None or bool((labels < 0).any()):
            raise DataError("the closed form needs every label: learn(program, x, y); without some, use method='em'.")
        counts = torch.bincount(labels, minlength=self.classes)
        if bool((counts == 0).any()):
            empty = int((counts == 0).nonzero()[0])
            raise DataError(
                f"class {empty} of {self.classes} has no example; give some, or make the program with fewer."
            )
        self._set_from(self.mixture.as_data(train), nn.functional.one_hot(labels, self.classes).to(self.dtype))
        return {"examples_of_class": counts.tolist()}

    def _set_from(self, x: Tensor, shares: Tensor) -> None:
        self.mixture.set_weights(shares.sum(0) + self.mixture.weight_count)
        for _ in range(2):  # moments are taken about the means so far: the second time about the right ones
            self.mixture.maximise(x, shares)

    @torch.no_grad()
    def em_start(self, x: Tensor, y: Any = None) -> None:
        """From the labelled examples alone; where there are none, as a mixture starts."""
        labels = self._labels(x, y)
        self.mixture.em_start(x)
        if labels is not None and bool((labels >= 0).any()):
            there = labels >= 0
            shares = nn.functional.one_hot(labels[there], self.classes).to(self.dtype)
            self._set_from(self.mixture.as_data(x[there]), shares)
            if bool((shares.sum(0) == 0).any()):  # a class that only the unlabelled examples may have
                self.mixture.set_weights(shares.sum(0) + 1)

    @torch.no_grad()
    def em_step(self, x: Tensor, y: Any = None) -> Tensor:
        """One EM step in place: responsibilities p(y | x), certain where a label is given, then the M-step.

        Returns:
            The mean of log p(x, y) over labelled and log p(x) over other examples, in nats, before the step, [].
        """
        log_joint = self._of_labels(x, y)
        value = log_joint.logsumexp(-1, keepdim=True)
        shares = (log_joint - value).exp()
        self.mixture.set_weights(shares.sum(0) + self.mixture.weight_count)
        self.mixture.maximise(self.mixture.as_data(x), shares)
        return value.mean()

    def default_method(self, task: str) -> Any:
        """Expectation maximisation for `learn`, which with every label there is the closed form."""
        return "em" if task == "learn" else None

    def answers(self) -> dict[str, Answer]:
        how = f"sum over {self.classes} classes"
        return {
            "sample": Answer("exact", "a class, then an example"),
            "score": Answer("exact", f"{how}, density of {self.mixture.density_of}"),
            "infer": Answer("exact", "Bayes' rule"),
            "learn": Answer(
                "exact", "closed form from labelled examples; EM, a local optimum, where labels are missing"
            ),
        }
