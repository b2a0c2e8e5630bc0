"""The features of one entry of x stand together, so that a convolutional decoder goes with every likelihood of images."""

from typing import Any

import pytest
import torch

from ppl_dgm.nn import ConvolutionalDecoder, make_likelihood

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("categorical", {"values": 5}),
    ("bernoulli", {}),
    ("gaussian", {}),
    ("gaussian", {"options": {"scale": "decoder"}}),
    ("discretised-logistic", {"values": 5}),
    ("discretised-logistic", {"values": 5, "options": {"scale": "learned"}}),
    ("logistic-mixture", {"values": 5}),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_the_features_of_one_pixel_move_that_pixel_alone(kind: str, options: dict[str, Any]) -> None:
    part = make_likelihood(kind, observed=16, **options).double()
    decoder = ConvolutionalDecoder(3, (4, 4), part.features // 16, channels=4, blocks=1).double()
    last = decoder.layers[-1]  # a convolution of 1 x 1: its output at a pixel is that of the pixel's channels
    z = torch.randn(1, 3, dtype=torch.float64)
    with torch.no_grad():
        p = part(decoder(z))
        x = part.observation(p.sample(), torch.float64)
        still = p.base_dist.log_prob(x)
        for row, column in ((0, 0), (1, 2), (3, 3)):
            handle = last.register_forward_hook(lambda module, inputs, out, at=(row, column): _moved(out, at))
            other = part(decoder(z)).base_dist.log_prob(x)
            handle.remove()
            changed = ((other - still).abs() > 1e-9)[0]
            assert changed.sum() == 1 and changed[4 * row + column]


def _moved(out: torch.Tensor, at: tuple[int, int]) -> torch.Tensor:
    """The output with all channels of one pixel changed, each by another amount."""
    out = out.clone()
    out[:, :, at[0], at[1]] += torch.linspace(0.3, 0.9, out.shape[1], dtype=out.dtype)
    return out


@pytest.mark.parametrize("kind", ["gaussian", "discretised-logistic"])
def test_location_and_scale_are_neighbours(kind: str) -> None:
    values = {"values": 5} if kind != "gaussian" else {}
    part = make_likelihood(kind, observed=3, options={"scale": "decoder"}, **values)
    features = torch.tensor([[0.1, -4.0, 0.2, 0.0, 0.3, 4.0]])
    p = part(features).base_dist
    assert (p.scale.diff() > 0.1).all()
    if kind == "gaussian":
        torch.testing.assert_close(p.loc, torch.tensor([[0.1, 0.2, 0.3]]))
    else:
        torch.testing.assert_close(p.loc, 2 * (1 + torch.tensor([[0.1, 0.2, 0.3]])))
