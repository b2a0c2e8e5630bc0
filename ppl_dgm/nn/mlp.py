"""mlp: fully connected networks, which most programs of the zoo are made of."""

from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import ProgramError

__all__ = ["ACTIVATIONS", "mlp"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation; a batch of one row, which has no spread, is normalised by the running values."""

    def forward(self, x: Tensor) -> Tensor:  # [batch, features]
        if self.training and len(x) > 1:
            return super().forward(x)
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


_NORMS: dict[str, type[nn.Module]] = {"layer": nn.LayerNorm, "batch": BatchNorm}


def mlp(
    inputs: int,
    outputs: int,
    hidden: Sequence[int] = (256, 256),
    activation: str = "leaky_relu",
    dropout: float = 0.0,
    norm: str | None = None,
) -> nn.Sequential:
    """A fully connected network: hidden layers of linear, norm, activation and dropout, then a linear layer.

    Arguments:
        inputs, outputs: sizes of the first and of the last layer.
        hidden: sizes of the hidden layers; an empty sequence makes the network one linear layer.
        activation: one of `ACTIVATIONS`.
        dropout: probability of dropping a hidden unit while training; 0 leaves the layer out.
        norm: "layer", "batch" or None. "batch" couples the examples of a batch while training, and the
            network then takes matrices only.

    Returns:
        A module from [..., inputs] to [..., outputs] ([batch, inputs] only under "batch").

    Raises:
        ProgramError: a size is not a positive whole number, or a name or the dropout rate is out of range.

    Example:
        >>> mlp(64, 32, hidden=(256,), activation="silu", dropout=0.1)
        Sequential(
          (0): Linear(in_features=64, out_features=256, bias=True)
          (1): SiLU()
          (2): Dropout(p=0.1, inplace=False)
          (3): Linear(in_features=256, out_features=32, bias=True)
        )
    """
    for size in (inputs, outputs, *hidden):
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ProgramError(f"mlp: a layer has {size!r} units; give sizes as positive whole numbers.")
    if activation not in ACTIVATIONS:
        raise ProgramError(f"mlp: activation {activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}.")
    if norm is not None and norm not in _NORMS:
        raise ProgramError(f"mlp: norm {norm!r} is unknown; choose 'layer', 'batch' or None.")
    if not 0.0 <= dropout < 1.0:
        raise ProgramError(f"mlp: dropout is {dropout!r}; it must be a probability in [0, 1).")
    layers: list[nn.Module] = []
    for size in hidden:
        layers.append(nn.Linear(inputs, size))
        if norm is not None:
            layers.append(_NORMS[norm](size))
        layers.append(ACTIVATIONS[activation]())
        if dropout > 0.0:
            layers.append(nn.Dropout(dropout))
        inputs = size
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))
