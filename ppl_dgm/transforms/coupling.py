"""BoundedCoupling: Pyro's affine coupling with a bounded log-scale and without memory between calls."""

from typing import Any

import torch
from pyro.distributions.transforms import AffineCoupling
from torch import Tensor, nn

from ..errors import ProgramError
from ..nn.mlp import mlp

__all__ = ["BoundedCoupling", "coupling_network"]


class BoundedCoupling(AffineCoupling):
    """y_a = x_a,  y_b = exp(s(x_a)) x_b + t(x_a),  log|det J| = sum_j s_j(x_a),  with |s_j| < bound.

    Pyro's `AffineCoupling`, changed where it would surprise:

    - its log-scale is clamped with the gradient let through, so that a saturated scale is pushed ever further
      out; here s = bound tanh(raw / bound), which is smooth and keeps deep stacks finite;
    - it remembers the last pair (x, y) and answers from memory whenever it sees the same tensor object again,
      also after a training step has changed the weights, or without gradients after a call under `no_grad`;
      here the memory lasts from a call to the log-determinant that follows it, which is what spares a second
      run of the network and gives both the same dropout mask;
    - what it remembers cannot be copied while it hangs on a gradient graph; here a copy forgets.

    Arguments:
        split: size of x_a, the first entries of the last dimension.
        network: from x_a [..., split] to the pair t, raw s, each [..., D - split].
        bound: largest |s_j|; a layer scales an entry by at most e^bound either way.

    Raises:
        ProgramError: the split or the bound is not positive.

    Source: Dinh, Sohl-Dickstein and Bengio (2017), Density estimation using Real NVP.

    Example:
        >>> import torch
        >>> layer = BoundedCoupling(2, coupling_network(2, 3, hidden=(16,)))
        >>> x = torch.randn(4, 5)
        >>> y = layer(x)
        >>> torch.equal(layer.inv(y), x), layer.log_abs_det_jacobian(x, y).shape
        (True, torch.Size([4]))
    """

    def __init__(self, split: int, network: nn.Module, bound: float = 2.0) -> None:
        if split < 1:
            raise ProgramError(
                f"BoundedCoupling: split must be at least 1, but it is {split!r}; something must pass unchanged."
            )
        if not 0 < bound < 20:
            raise ProgramError(
                f"BoundedCoupling: bound must lie between 0 and 20 on the log scale, but it is {bound!r}."
            )
        super().__init__(split, _Bounded(network, bound), log_scale_min_clip=-bound, log_scale_max_clip=bound)
        self._cache_size = 0
        self.forget()

    def forget(self) -> None:
        """Drop what the last call left for the log-determinant."""
        self._cached_x_y: Any = (None, None)
        self._cached_log_scale: Tensor | None = None

    def _call(self, x: Tensor) -> Tensor:
        y = super()._call(x)
        self._cached_x_y = (x, y)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x = super()._inverse(y)
        self._cached_x_y = (x, y)
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """sum_j s_j(x_a), shape [...]."""
        try:
            return super().log_abs_det_jacobian(x, y)
        finally:
            self.forget()

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return state | {"_cached_x_y": (None, None), "_cached_log_scale": None}


class _Bounded(nn.Module):
    """Splits a network's output into t and raw s where needed, and bounds s."""

    def __init__(self, network: nn.Module, bound: float) -> None:
        super().__init__()
        self.network, self.bound = network, bound

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.network(x)
        shift, raw = out if isinstance(out, tuple) else out.chunk(2, -1)
        return shift, self.bound * torch.tanh(raw / self.bound)


def coupling_network(
    inputs: int,
    outputs: int,
    hidden: tuple[int, ...] = (128, 128),
    activation: str = "silu",
    dropout: float = 0.0,
) -> nn.Module:
    """A network for shift and raw log-scale, [..., inputs] -> [..., 2 outputs], that starts at zero: the
    layer starts as the identity.

    Arguments:
        inputs, outputs: sizes of x_a and x_b.
        hidden, activation, dropout: see `ppl_dgm.nn.mlp`.
    """
    network = mlp(inputs, 2 * outputs, hidden, activation, dropout)
    last = network[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return network
