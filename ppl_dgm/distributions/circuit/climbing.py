"""M-steps of leaf families without closed form: scoring on weighted entries, which never lowers the likelihood."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import NumericalError

if TYPE_CHECKING:
    from .families import LeafFamily

__all__ = ["climb", "fitted"]

_HALVINGS = 8
_MOST = 1000  # entries that a start is fitted to


def climb(
    family: "LeafFamily", x: Tensor, weight: Tensor, parameters: dict[str, Tensor], steps: int
) -> dict[str, Tensor]:
    """Steps uphill on Q = sum_n weight_n log p(x_n | parameters) of each unit apart.

        step = (sum_n weight_n g_n g_n^T)^-1 sum_n weight_n g_n,        g_n = d log p(x_n) / d parameters

    A unit's step is halved until its Q is not lower than before, and else left out.

    Arguments:
        family: with scalar parameters.
        x: [region, row].
        weight: [region, row, unit], from 0.
        parameters: each [region, unit].
        steps: how many.

    Source: E. Berndt, B. Hall, R. Hall and J. Hausman (1974), Estimation and inference in nonlinear structural models.
    """
    names = list(parameters)
    point = torch.stack([parameters[name] for name in names], -1)  # [region, unit, P]

    def log_prob(point: Tensor) -> Tensor:
        return family.log_prob(x, dict(zip(names, point.unbind(-1), strict=True)))

    def total(point: Tensor) -> Tensor:
        return torch.where(weight > 0, weight * log_prob(point), 0.0).sum(1)

    best = total(point)  # [region, unit]
    for _ in range(steps):
        scores = _scores(log_prob, point).nan_to_num(0.0, 0.0, 0.0)
        weighted = weight.unsqueeze(-1) * scores  # [region, row, unit, P]
        gradient = weighted.sum(1)
        outer = torch.einsum("rnup,rnuq->rupq", weighted, scores)
        ridge = 1e-9 * outer.diagonal(dim1=-2, dim2=-1).amax(-1) + torch.finfo(outer.dtype).tiny ** 0.5
        outer = outer + torch.diag_embed(ridge.unsqueeze(-1).expand_as(gradient))
        step = torch.linalg.solve_ex(outer, gradient.unsqueeze(-1))[0].squeeze(-1).nan_to_num(0.0, 0.0, 0.0)
        moved = torch.zeros_like(best, dtype=torch.bool)
        for _ in range(_HALVINGS):
            tried = torch.where(moved.unsqueeze(-1), point, point + step)
            value = total(tried)
            better = ~moved & (value > best)  # of NaN never
            point = torch.where(better.unsqueeze(-1), tried, point)
            best, moved, step = torch.where(better, value, best), moved | better, step / 2
            if bool(moved.all()):
                break
        if not bool(moved.any()):
            break
    return dict(zip(names, point.unbind(-1), strict=True))


def _scores(log_prob: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """d log p(x_n | unit) / d each parameter, [region, row, unit, P].

    No unit touches another, so that a backward pass whose gradient is linear in weights u of the entries, and the
    gradient of that with respect to u, gives all rows at once.
    """
    with torch.inference_mode(False), torch.enable_grad():
        parts = [part.detach().clone().requires_grad_() for part in point.unbind(-1)]
        value = log_prob(torch.stack(parts, -1))
        u = torch.zeros_like(value, requires_grad=True)
        sums = torch.autograd.grad(value, parts, u, create_graph=True)
        each = [torch.autograd.grad(total.sum(), u, retain_graph=True)[0] for total in sums]
    return torch.stack(each, -1)


def fitted(family: "LeafFamily", x: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of greatest likelihood for the entries x [rows] of one variable, from these, by L-BFGS.

    Raises:
        NumericalError: the density of an entry is not finite at the parameters that it starts from.
    """
    stride = max(1, len(x) // _MOST)
    x = x.sort().values[stride // 2 :: stride][None]  # [1, rows]
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone()
        free = {name: value.detach().clone()[None, None].requires_grad_() for name, value in parameters.items()}
        optimiser = torch.optim.LBFGS(list(free.values()), max_iter=100, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimiser.zero_grad()
            value = -family.log_prob(x, free).mean()
            value.backward()
            return value

        first = float(loss().detach())
        if first - first != 0:
            raise NumericalError(
                f"the leaf family {family!r} has a log density of {-first} at the start; give it a method start(x) that "
                "returns better parameters."
            )
        optimiser.step(loss)
        good = all(bool(value.isfinite().all()) for value in free.values()) and float(loss().detach()) <= first
    return {name: value.detach()[0, 0] if good else parameters[name] for name, value in free.items()}
