"""HistogramQuantile: a learned elementwise bijection from the real line to (0, V) whose pushed-forward normal
is a histogram.
"""

import math

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn

from ..errors import ProgramError

__all__ = ["HistogramQuantile"]


class HistogramQuantile(TransformModule):
    """v_d = F_d^{-1}(Phi(z_d)), where F_d is the distribution function of a histogram with V unit-width bins
    on (0, V).

    If z_d ~ N(0, 1), then v_d falls into bin k = [k, k+1) with probability p_dk = softmax(logits_d)_k and is
    uniform within it. On data dequantised by unit-width uniform noise a flow with this last step and identity
    layers before it is therefore exactly the independent categorical model, with no loss to the
    dequantisation; couplings before it add the dependence. Its inverse is closed form:

        z = Phi^{-1}(F(v)),   log|dv/dz| = log phi(z) - log p_k.

    Both tails are computed from their own end, so that float32 keeps its precision near V as near 0.

    Arguments:
        dimensions: D.
        values: V.
        gain: the logits are `gain` times the parameter, which lets one learning rate serve this table and the
            networks before it.

    Attributes:
        raw: [D, V], logits / gain; zero at first, that is F uniform.

    Raises:
        ProgramError: a size is out of range.

    Source: histogram transforms with a normal base; cf. the logit preprocessing of Dinh et al. (2017),
    section 4.1, which fixes F.

    Example:
        >>> import torch
        >>> HistogramQuantile(1, 4)(torch.tensor([[-1.0], [0.0], [1.0]])).detach().squeeze()
        tensor([0.6346, 2.0000, 3.3654])
    """

    bijective = True
    sign = 1
    domain = constraints.real_vector

    def __init__(self, dimensions: int, values: int, gain: float = 20.0) -> None:
        if dimensions < 1 or values < 2 or gain <= 0:
            raise ProgramError(
                "HistogramQuantile needs at least one dimension, at least two values and a positive gain, "
                f"but got dimensions={dimensions!r}, values={values!r}, gain={gain!r}."
            )
        super().__init__(cache_size=0)
        self.dimensions, self.values, self.gain = dimensions, values, gain
        self.raw = nn.Parameter(torch.zeros(dimensions, values))

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def codomain(self) -> constraints.Constraint:
        return constraints.independent(constraints.interval(0.0, float(self.values)), 1)

    @property
    def logits(self) -> Tensor:
        """[D, V]."""
        return self.gain * self.raw

    @torch.no_grad()
    def fit(self, x: Tensor, pseudo_count: float = 0.1) -> None:
        """Set the bins to the frequencies in x [n, D] of categories 0 to V - 1, each with `pseudo_count`
        added.
        """
        counts = nn.functional.one_hot(x.long(), self.values).sum(0).to(self.raw) + pseudo_count  # [D, V]
        log_p = (counts / counts.sum(-1, keepdim=True)).log()
        self.raw.copy_((log_p - log_p.mean(-1, keepdim=True)) / self.gain)

    def _call(self, z: Tensor) -> Tensor:
        _, p, below, above = self._tables()  # [D, V] each
        left, right = _tail(-z), _tail(z)  # [..., D]
        with torch.no_grad():
            from_left = (left.unsqueeze(-1) >= below + p).sum(-1)
            from_right = self.values - 1 - (right.unsqueeze(-1) >= above + p).sum(-1)
            cell = torch.where(z <= 0, from_left, from_right).clamp(0, self.values - 1)
        p, below, above = self._at(cell, p, below, above)
        inside = torch.where(z <= 0, (left - below) / p, 1 - (right - above) / p).clamp(0, 1)
        return cell + inside

    def _inverse(self, v: Tensor) -> Tensor:
        _, p, below, above = self._tables()
        cell = self._cell(v)
        p, below, above = self._at(cell, p, below, above)
        left, right = below + p * (v - cell), above + p * (cell + 1 - v)
        # one call on the smaller tail: the other branch of a `where` would put infinities into the gradient
        tail = torch.special.ndtri(torch.minimum(left, right).clamp_min(torch.finfo(v.dtype).tiny))
        return torch.where(left <= right, tail, -tail)

    def log_abs_det_jacobian(self, z: Tensor, v: Tensor) -> Tensor:
        """sum_d log|dv_d/dz_d|, shape [...]; infinite outside (0, V), where there is no density."""
        (log_p,) = self._at(self._cell(v), self._tables()[0])
        each = -0.5 * z.square() - 0.5 * math.log(2 * math.pi) - log_p
        outside = (v < 0) | (v > self.values)
        return each.masked_fill(outside, math.inf).sum(-1)

    def _tables(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log p, p, and the mass below and above each bin, [D, V] each."""
        log_p = torch.log_softmax(self.logits, -1)
        p = log_p.exp()
        nothing = torch.zeros_like(p[:, :1])
        below = torch.cat([nothing, p[:, :-1].cumsum(-1)], -1)
        above = torch.cat([p[:, 1:].flip(-1).cumsum(-1).flip(-1), nothing], -1)
        return log_p, p, below, above

    def _cell(self, v: Tensor) -> Tensor:
        return v.detach().floor().long().clamp(0, self.values - 1)

    def _at(self, cell: Tensor, *tables: Tensor) -> tuple[Tensor, ...]:
        """Entries of tables [D, V] at cells [..., D]; one lookup, whose backward pass is one scatter."""
        rows = cell + self.values * torch.arange(self.dimensions, device=cell.device)
        found = nn.functional.embedding(rows, torch.stack(tables, -1).flatten(0, 1))  # [..., D, tables]
        return found.unbind(-1)


def _tail(z: Tensor) -> Tensor:
    """Phi(-z); torch's `special.ndtr` loses the lower tail in float32."""
    return 0.5 * torch.erfc(z * math.sqrt(0.5))
