"""ConvolutionalEncoder and ConvolutionalDecoder: residual convolutional networks for images that travel as flat rows."""

from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import ProgramError
from ..options import is_count
from .mlp import ACTIVATIONS

__all__ = ["ConvolutionalDecoder", "ConvolutionalEncoder"]


class ResidualBlock(nn.Module):
    """x + W_2 f(W_1 f(x)), two convolutions of 3 x 3, the same shape out as in; the second starts at zero."""

    def __init__(self, channels: int, activation: str, dropout: float) -> None:
        super().__init__()
        act, last = ACTIVATIONS[activation], nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        if last.bias is not None:
            nn.init.zeros_(last.bias)
        first = nn.Conv2d(channels, channels, 3, padding=1)
        self.steps = nn.Sequential(act(), first, act(), nn.Dropout2d(dropout), last)

    def forward(self, x: Tensor) -> Tensor:  # [batch, channels, height, width]
        return x + self.steps(x)


class ConvolutionalEncoder(nn.Module):
    """A residual convolutional network from flat images [batch, height * width] to [batch, outputs].

    At each stage the residual blocks are followed by a convolution of stride two with twice the channels; then a linear layer.

    Arguments:
        shape: (height, width) of the images; `planes` of them side by side, plane after plane.
        outputs: how many numbers come out.
        channels: of the first stage.
        stages: how often height and width are halved.
        blocks: residual blocks of each stage.
        planes: colour planes of the input.
        activation: see `ppl_dgm.nn.mlp`.
        dropout: probability of dropping a whole channel inside a block, while training.

    Raises:
        ProgramError: a size is not positive, or height or width cannot be halved so often.

    Example:
        >>> import torch
        >>> ConvolutionalEncoder((8, 8), 32)(torch.zeros(5, 64)).shape
        torch.Size([5, 32])
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        channels: int = 32,
        stages: int = 1,
        blocks: int = 2,
        planes: int = 1,
        activation: str = "silu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        height, width = _checked("ConvolutionalEncoder", shape, outputs, channels, stages, blocks, planes, activation)
        self.input = (planes, height, width)
        layers: list[nn.Module] = [nn.Conv2d(planes, channels, 3, padding=1)]
        for _ in range(stages):
            layers += [ResidualBlock(channels, activation, dropout) for _ in range(blocks)]
            layers += [nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)]
            channels, height, width = 2 * channels, height // 2, width // 2
        layers += [ResidualBlock(channels, activation, dropout) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers, ACTIVATIONS[activation](), nn.Flatten())
        self.last = nn.Linear(channels * height * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, planes * height * width] -> [batch, outputs]."""
        return self.last(self.layers(x.unflatten(-1, self.input)))


class ConvolutionalDecoder(nn.Module):
    """A residual convolutional network from codes [batch, inputs] to the features of every pixel, [batch, D * features].

    The mirror image of `ConvolutionalEncoder`; the features of one entry of x stand together, as the likelihoods take them.

    Arguments:
        inputs: how many numbers a code has.
        shape: (height, width) of the images.
        features: of each entry of x: `likelihood.features // observed` (V for the categorical likelihood).
        channels, stages, blocks, planes, activation, dropout: as of the encoder.

    Raises:
        ProgramError: a size is not positive, or height or width cannot be halved so often.

    Example:
        >>> import torch
        >>> ConvolutionalDecoder(16, (8, 8), 17)(torch.zeros(5, 16)).shape
        torch.Size([5, 1088])
    """

    def __init__(
        self,
        inputs: int,
        shape: Sequence[int],
        features: int,
        channels: int = 32,
        stages: int = 1,
        blocks: int = 2,
        planes: int = 1,
        activation: str = "silu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        height, width = _checked("ConvolutionalDecoder", shape, inputs, channels, stages, blocks, planes, activation)
        if not is_count(features, 1):
            raise ProgramError(f"ConvolutionalDecoder: features is {features!r}; give a positive whole number.")
        wide, self.planes = channels * 2**stages, planes
        self.first = nn.Linear(inputs, wide * (height >> stages) * (width >> stages))
        self.middle = (wide, height >> stages, width >> stages)
        layers: list[nn.Module] = [ResidualBlock(wide, activation, dropout) for _ in range(blocks)]
        for _ in range(stages):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(wide, wide // 2, 3, padding=1)]
            wide //= 2
            layers += [ResidualBlock(wide, activation, dropout) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers, ACTIVATIONS[activation](), nn.Conv2d(wide, planes * features, 1))

    def forward(self, z: Tensor) -> Tensor:
        """[batch, inputs] -> [batch, planes * height * width * features]."""
        out = self.layers(self.first(z).unflatten(-1, self.middle))  # [batch, planes * features, height, width]
        return out.unflatten(1, (self.planes, -1)).movedim(2, -1).flatten(1)


def _checked(
    name: str, shape: Sequence[int], size: int, channels: int, stages: int, blocks: int, planes: int, activation: str
) -> tuple[int, int]:
    """Height and width, once all is in range."""
    counts = {"size of the code": size, "channels": channels, "planes": planes}
    for what, number in counts.items():
        if not is_count(number, 1):
            raise ProgramError(f"{name}: {what} is {number!r}; give a positive whole number.")
    if not is_count(stages, 0) or not is_count(blocks, 0):
        raise ProgramError(f"{name}: stages and blocks are {stages!r} and {blocks!r}; give whole numbers from 0.")
    if activation not in ACTIVATIONS:
        raise ProgramError(f"{name}: activation {activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}.")
    if len(shape) != 2 or not all(is_count(side, 1) and side % 2**stages == 0 for side in shape):
        raise ProgramError(
            f"{name}: shape is {tuple(shape)!r}, but height and width are halved {stages} times; give multiples of "
            f"{2**stages}, or fewer stages."
        )
    return int(shape[0]), int(shape[1])
