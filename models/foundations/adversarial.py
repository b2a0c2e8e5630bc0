"""adversarial_noise: the small change of an example that turns a classifier's decision round."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ppl_dgm.errors import ProgramError

__all__ = ["Adversarial", "adversarial_noise"]


class Adversarial(NamedTuple):
    """What the change did to each example.

    Attributes:
        x: the changed examples, [batch, D].
        before, after: the decisions, [batch].
        log_density_before, log_density_after: log p(x) in nats, [batch]: whether the change shows.
    """

    x: Tensor
    before: Tensor
    after: Tensor
    log_density_before: Tensor
    log_density_after: Tensor

    @property
    def flipped(self) -> Tensor:
        """Where the decision changed, [batch]."""
        return self.before != self.after


def adversarial_noise(program: Any, x: Tensor, size: float, steps: int = 20) -> Adversarial:
    """x + e with |e| <= size that makes max_{c != y} log p(x, c) - log p(x, y) as large as gradient ascent finds it.

    y is the decision on x. Steps go along the gradient's direction, and back into the ball where they leave it. For
    classes with linear log odds the answer is exact: two classes flip where `size` exceeds the distance to their boundary.

    Arguments:
        program: a classifier with `log_joint(x)`, [batch, classes], such as `LinearDiscriminant`.
        x: [batch, D], real.
        size: largest Euclidean length of the change, in the units of x.
        steps: gradient steps.

    Raises:
        ProgramError: the program is no such classifier, or size is not positive.

    Source: I. Goodfellow, J. Shlens and C. Szegedy (2015), Explaining and harnessing adversarial examples; A. Madry et
    al. (2018) for the projected steps; J. Tomczak (2024), Deep Generative Modeling, 1.1.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> program = dgm.models.LinearDiscriminant(2, 2)
        >>> program.mixture.assign(torch.tensor([0.5, 0.5]), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.eye(2))
        >>> x = torch.tensor([[0.3, 5.0]])  # 0.3 from the boundary
        >>> [bool(adversarial_noise(program, x, size).flipped) for size in (0.29, 0.31)]
        [False, True]
    """
    if not hasattr(program, "log_joint") or not hasattr(program, "classes"):
        raise ProgramError(f"adversarial_noise: {type(program).__name__} is no classifier with log_joint(x); give one.")
    if not size > 0 or steps < 1:
        raise ProgramError(f"adversarial_noise: size and steps must be positive, but they are {size!r} and {steps!r}.")
    with torch.no_grad():
        x = x.to(program.dtype)
        before = program.log_joint(x)
    chosen = nn.functional.one_hot(before.argmax(-1), program.classes).bool()
    change = torch.zeros_like(x)
    for _ in range(steps):
        with torch.enable_grad():
            at = (x + change).requires_grad_()
            log_joint = program.log_joint(at)
            margin = log_joint.masked_fill(chosen, -torch.inf).amax(-1) - log_joint[chosen]
            slope = torch.autograd.grad(margin.sum(), at)[0]
        change = change + 2.5 * size / steps * nn.functional.normalize(slope, dim=-1)
        change = change * (size / change.norm(dim=-1, keepdim=True).clamp_min(1e-30)).clamp_max(1.0)
    with torch.no_grad():
        after = program.log_joint(x + change)
    return Adversarial(x + change, before.argmax(-1), after.argmax(-1), before.logsumexp(-1), after.logsumexp(-1))
