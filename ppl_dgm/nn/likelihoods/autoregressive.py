"""Autoregressive levels: a decoder whose every entry sees the entries before it, so strong that z may be left unused."""

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional

from ...distributions import MixtureOfDiscretisedLogistics
from ...errors import ProgramError
from .likelihood import Likelihood, check_floor

__all__ = ["AutoregressiveEntries", "AutoregressiveLikelihood"]


class AutoregressiveLikelihood(Likelihood):
    """p(x | z) = prod_d p(x_d | f_d(z) + g_d(x_1, ..., x_{d-1})), with f the decoder and g a network of one hidden layer.

    The numbers f_d + g_d, n of them for an entry, are the logits of its V categories, or the parameters of a mixture of
    discretised logistics. g_d sees of the entries before d those within `reach`:

        images       hidden_d = sum_o C_o e(x_{d-o}) + b_d      a masked convolution over offsets o above or to the left (PixelCNN)
        sequences    hidden_d = sum_{e<d} C_e e(x_e) + b_d      (NADE; also for columns in any order)

    with a few learned numbers e(x) for each value. A draw takes D passes, a density one; where z has several draws for each
    x, g runs once for all of them.

    With full reach g alone can carry p(x): then the bound is best where q(z | x) is the prior, and the code collapses
    (`ppl_dgm.diagnose_latents` tells). Against that: `FreeBits`, a slow KL warm-up, and with it a short reach, so that z must
    carry what is far apart (Chen et al. 2017).

    Arguments:
        observed: D.
        values: V; entries are 0 to V - 1, bits with V = 2.
        hidden: units of the hidden layer, for each entry.
        reach: how far back an entry sees, in rows and columns of an image or entries of a sequence; None: everything before it.
        shape: (height, width) of images, row after row; None: x is a sequence.
        components: J, of a mixture of discretised logistics, which knows that levels are in order; None: categories.
        dropout: probability of dropping a hidden unit while learning.
        floor: the smallest scale of a mixture, in levels.

    Raises:
        ProgramError: values is missing, a size is less than 1, dropout is no probability below 1, floor is not positive, or
            the shape is not D.

    Source: Larochelle and Murray (2011), NADE; van den Oord et al. (2016), PixelCNN; Gulrajani et al. (2017), PixelVAE; Chen et
        al. (2017), Variational lossy autoencoder.

    Example:
        >>> part = AutoregressiveLikelihood(observed=64, values=17, shape=(8, 8), reach=2)
        >>> part(torch.zeros(5, part.features)).sample().shape
        torch.Size([5, 64])
    """

    name = "autoregressive"
    places: Tensor

    def __init__(
        self,
        observed: int,
        values: int | None = None,
        hidden: int = 64,
        reach: int | None = None,
        shape: Sequence[int] | None = None,
        components: int | None = None,
        dropout: float = 0.0,
        floor: float = 1e-3,
    ) -> None:
        super().__init__(observed, values)
        self._needs_values()
        for option, size in (("hidden", hidden), ("reach", reach), ("components", components)):
            if not (isinstance(size, int) and size >= 1) and (size is not None or option == "hidden"):
                raise ProgramError(f"likelihood {self.name!r}: {option} is {size!r}; give a number of at least 1.")
        if not 0.0 <= dropout < 1.0:
            raise ProgramError(f"likelihood {self.name!r}: dropout is {dropout!r}; it must be a probability in [0, 1).")
        if shape is not None and (len(shape) != 2 or shape[0] * shape[1] != observed):
            raise ProgramError(f"likelihood {self.name!r}: shape is {tuple(shape)!r}, but x has {observed} entries.")
        self.floor, self.components = check_floor(floor), components
        count = int(values or 0)
        each = count if components is None else 3 * components
        self.features = each * observed
        if shape is None:
            self.network: _Before = _Sequence(observed, count, hidden, each, reach, dropout)
        else:
            self.network = _Image((shape[0], shape[1]), count, hidden, each, reach, dropout)
        places = torch.linspace(-1, 1, (components or 0) + 2)[1:-1]
        self.register_buffer("places", places, persistent=False)  # [J], where locations begin

    @property
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, (self.values or 0) - 1)

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        return AutoregressiveEntries(
            features.unflatten(-1, (self.observed, -1)), self.network, self.law, int(self.values or 0)
        )

    def law(self, numbers: Tensor) -> dist.TorchDistribution:
        """The distribution of entries, [...], from their own numbers [..., n]."""
        if self.components is None:
            return dist.Categorical(logits=numbers)
        logits, a, b = numbers.unflatten(-1, (3, self.components)).unbind(-2)  # [..., J] each
        middle = (int(self.values or 0) - 1) / 2
        loc = middle * (1 + self.places + a)
        scale = self.floor + middle / 2 * functional.softplus(b)
        return MixtureOfDiscretisedLogistics(logits, loc, scale, int(self.values or 0))

    def observation(self, x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        return None if x is None else x.long()


class AutoregressiveEntries(dist.TorchDistribution):
    """P(x) = prod_d law(features_d + network(x)_d), with network(x)_d a function of x_1, ..., x_{d-1} alone.

    Arguments:
        features: [..., D, n].
        network: from values [..., D] to numbers [..., D, n]; its `entry(before)` gives the d-th, [..., n], for values [..., d].
        law: from numbers [..., n] to the distribution of entries, batch shape [...].
        values: V.
    """

    arg_constraints = {"features": constraints.independent(constraints.real, 2)}

    def __init__(
        self,
        features: Tensor,
        network: Any,
        law: Callable[[Tensor], dist.TorchDistribution],
        values: int,
        validate_args: bool | None = None,
    ) -> None:
        self.features, self.network, self.law, self.values = features, network, law, values
        super().__init__(features.shape[:-2], features.shape[-2:-1], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.integer_interval(0, self.values - 1), 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "AutoregressiveEntries":
        new = self._get_checked_instance(AutoregressiveEntries, _instance)
        batch = torch.Size(batch_shape)
        new.features = self.features.expand(batch + self.features.shape[-2:])
        new.network, new.law, new.values = self.network, self.law, self.values
        super(AutoregressiveEntries, new).__init__(batch, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass in nats, the batch's shape; what depends on x alone is computed before x meets the draws of z."""
        if self._validate_args:
            self._validate_sample(value)
        return self.law(self.features + self.network(value)).log_prob(value).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """One entry after another, int64 [*sample_shape, ..., D]."""
        batch = torch.Size(sample_shape) + self.batch_shape
        drawn = torch.zeros((*batch, 0), dtype=torch.long, device=self.features.device)
        for d in range(self.event_shape[0]):
            numbers = self.features[..., d, :] + self.network.entry(drawn)
            drawn = torch.cat([drawn, self.law(numbers).sample().long().unsqueeze(-1)], -1)
        return drawn


class _Before(nn.Module):
    """From values [..., D] to numbers [..., D, n] of which the d-th depend on the d - 1 values before alone.

    Arguments:
        observed: D.
        values: V.
        sources: how many entries, or offsets, have weights into the hidden layer.
        seen: how many of them count for one entry, about, for the scale of the first weights.
        hidden: units of the hidden layer, for each entry.
        each: n.
        tied: 1 where all entries share the weights out of the hidden layer, else D.
        dropout: of the hidden layer.
    """

    def __init__(
        self, observed: int, values: int, sources: int, seen: float, hidden: int, each: int, tied: int, dropout: float
    ) -> None:
        super().__init__()
        # what the network is told of a value: its place in the range, whether it is the lowest, whether the highest
        codes = torch.stack([torch.linspace(-1, 1, values), *torch.eye(values)[[0, -1]]], -1)
        self.codes = nn.Parameter(codes[:, : min(values - 1, 3)].clone())  # [V, channels]
        channels = self.codes.shape[1]
        scale = (2 * max(seen, 1.0) * channels) ** -0.5
        self.coupling = nn.Parameter(scale * torch.randn(sources, channels, hidden))
        self.bias = nn.Parameter(torch.zeros(observed, hidden))
        self.out = nn.Parameter(hidden**-0.5 * (2 * torch.rand(tied, hidden, each) - 1))
        self.dropout = nn.Dropout(dropout)

    def encoded(self, x: Tensor) -> Tensor:
        """[..., channels] for values [...]."""
        return functional.embedding(x.long(), self.codes)

    def active(self, hidden: Tensor) -> Tensor:
        return self.dropout(functional.silu(hidden))

    def entry(self, before: Tensor) -> Tensor:
        """The numbers of entry d, [..., n], for the values [..., d] before it."""
        raise NotImplementedError


class _Sequence(_Before):
    """hidden_d = sum_{e near d} C_e e(x_e) + b_d; each entry has its own weights out of the hidden layer (NADE)."""

    near: Tensor

    def __init__(self, observed: int, values: int, hidden: int, each: int, reach: int | None, dropout: float) -> None:
        reach = min(reach or observed, observed)
        super().__init__(observed, values, observed, reach, hidden, each, observed, dropout)
        apart = torch.arange(observed)[:, None] - torch.arange(observed)
        self.register_buffer("near", ((apart > 0) & (apart <= reach)).float(), persistent=False)  # [D, D]

    def forward(self, x: Tensor) -> Tensor:
        added = torch.einsum("...ec,ech->...eh", self.encoded(x), self.coupling)  # by each entry to those that see it
        active = self.active(self.near @ added + self.bias)  # [..., D, hidden]
        return (active.unsqueeze(-2) @ self.out).squeeze(-2)

    def entry(self, before: Tensor) -> Tensor:
        d = before.shape[-1]
        seen = self.encoded(before) * self.near[d, :d, None]
        hidden = torch.einsum("...ec,ech->...h", seen, self.coupling[:d])
        return self.active(hidden + self.bias[d]) @ self.out[d]


class _Image(_Before):
    """hidden_d = sum_o C_o e(x_{d-o}) + b_d: a convolution whose kernel is zero from the middle of its last row on (PixelCNN)."""

    def __init__(
        self, shape: tuple[int, int], values: int, hidden: int, each: int, reach: int | None, dropout: float
    ) -> None:
        height, width = shape
        rows, columns = min(reach or height, height - 1), min(reach or width, width - 1)
        offsets = rows * (2 * columns + 1) + columns
        # of the offsets about half lie in the image
        super().__init__(height * width, values, offsets, offsets / 2, hidden, each, 1, dropout)
        self.shape, self.rows, self.columns = shape, rows, columns

    def forward(self, x: Tensor) -> Tensor:
        window = self.rows + 1, 2 * self.columns + 1
        kernel = functional.pad(self.coupling.permute(2, 1, 0), (0, self.columns + 1)).unflatten(-1, window)
        padded = self._padded(self.encoded(x)).movedim(-1, -3)  # [..., channels, rows + height, width + 2 columns]
        found = functional.conv2d(padded.reshape(-1, *padded.shape[-3:]), kernel)
        hidden = found.flatten(-2).mT.reshape(*x.shape, -1)  # [..., D, hidden]
        return self.active(hidden + self.bias) @ self.out[0]

    def entry(self, before: Tensor) -> Tensor:
        d = before.shape[-1]
        row, column = divmod(d, self.shape[1])
        later = self.shape[0] * self.shape[1] - d
        padded = self._padded(functional.pad(self.encoded(before), (0, 0, 0, later)))
        window = padded[..., row : row + self.rows + 1, column : column + 2 * self.columns + 1, :]
        seen = window.flatten(-3, -2)[..., : len(self.coupling), :]  # those before d
        hidden = torch.einsum("...oc,och->...h", seen, self.coupling)
        return self.active(hidden + self.bias[d]) @ self.out[0]

    def _padded(self, codes: Tensor) -> Tensor:
        """[..., D, channels] as images with zeros above, to the left and to the right."""
        return functional.pad(codes.unflatten(-2, self.shape), (0, 0, self.columns, self.columns, self.rows, 0))
