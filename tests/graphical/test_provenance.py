"""Provenance: what a tensor was computed from, through everything that torch does to it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ppl_dgm.graphical.provenance import Provenance, Region, mark, sources


def into_slice(a: Tensor, b: Tensor) -> Tensor:
    p = torch.zeros(3)
    p[..., 0] = a[0]
    return p


def into_a_view(a: Tensor, b: Tensor) -> Tensor:
    p = torch.zeros(3)
    p[1:].add_(a[1:])
    return p


KEPT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "arithmetic": lambda a, b: 2 * a + 1,
    "where": lambda a, b: torch.where(a > 0, 1.0, 0.0),
    "cat and stack": lambda a, b: torch.cat([torch.stack([a, a]).flatten(), torch.ones(1)]),
    "einsum": lambda a, b: torch.einsum("i,j->ij", a, torch.ones(2)),
    "index by it": lambda a, b: torch.arange(3)[a.long().clamp(0, 2)],
    "slice by view": lambda a, b: a.view(3, 1).mT[..., :1],
    "attributes": lambda a, b: a.view(3, 1).T,
    "linear": lambda a, b: nn.functional.linear(a, torch.ones(2, 3)),
    "detach": lambda a, b: a.detach(),
    "in-place into a plain tensor": into_slice,
    "in-place through a view": into_a_view,
    "copy_": lambda a, b: torch.zeros(3).copy_(a),
    "one of two": lambda a, b: torch.broadcast_tensors(a, b)[0],
    "split": lambda a, b: a.split(1)[2],
    "unbind": lambda a, b: next(iter(a)),
    "the type of another": lambda a, b: a.to(b).type_as(b).expand_as(b),
}
LOST: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "zeros_like": lambda a, b: torch.zeros_like(a),
    "new_zeros": lambda a, b: a.new_zeros(3),
    "shape": lambda a, b: torch.ones(a.shape),
    "item": lambda a, b: torch.tensor(a[0].item()),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_keeps_a_mark(name: str) -> None:
    a, b = torch.randn(3), torch.randn(3)
    mark(a, ["a"])
    mark(b, ["b"])
    with Provenance():
        assert sources(KEPT[name](a, b)) == {"a"}


@pytest.mark.parametrize("name", LOST)
def test_what_has_none(name: str) -> None:
    a = torch.randn(3)
    mark(a, ["a"])
    with Provenance() as provenance:
        assert sources(LOST[name](a, a)) == frozenset()
    assert provenance.escaped == ({"a"} if name == "item" else set())


@pytest.mark.parametrize(
    "escape", [float, bool, int, lambda t: t.tolist(), lambda t: t.numpy(), lambda t: 1 if t > 0 else 0]
)
def test_what_leaves_torch_is_written_down(escape: Callable) -> None:
    a = torch.tensor(1.0)
    mark(a, ["a"])
    with Provenance() as provenance:
        escape(a)
    assert provenance.escaped == {"a"}


def test_parameters_of_modules_are_followed_without_wrapping() -> None:
    net = nn.GRU(2, 3)
    for parameter in net.parameters():
        mark(parameter, ["net"])
    with Provenance():
        assert sources(net(torch.randn(4, 1, 2))[0]) == {"net"}


def test_views_of_an_input_know_their_place() -> None:
    x = torch.randn(4, 3)
    with Provenance() as provenance:
        provenance.register("x", x)
        (row,), (column,), (copied,) = sources(x[1]), sources(x[:, 2]), sources(x.double()[3])
        (other,) = sources(x[2])
        assert all(isinstance(place, Region) for place in (row, column, copied, other))
        assert row.overlaps(column) and not row.overlaps(other) and not copied.overlaps(row)
        assert sources(x[0] + 1) == sources(x[0])


def test_what_is_made_entry_by_entry_keeps_its_places() -> None:
    x = torch.randn(4, 3)
    with Provenance() as provenance:
        provenance.register("x", x)
        seen = ~x.isnan() & (x >= -9)
        filled = torch.where(seen, x, torch.zeros_like(x)).double()
        holes = x.clone()
        holes[holes.isnan()] = 0.0
        kept = [sources(made[:, 1]) for made in (filled, seen, holes, x.log1p() * 2 + x)]
        shifted = x.clone()
        shifted[:, 1] = shifted[:, 0]
        summed = sources(x.sum(-1).long()[:1])
        mixed = [sources(made[:, 1]) for made in (x - x.mean(0), shifted, x.mT.reshape(4, 3) + x)]
    whole = Region.of("x", x)
    assert kept == 4 * [{Region.of("x", x[:, 1])}]
    assert summed == {whole}
    assert all(any(source.overlaps(Region.of("x", x[:, 0])) for source in found) for found in mixed)
