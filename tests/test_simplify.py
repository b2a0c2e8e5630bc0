"""Rewriting the graphs of densities: each rule fires where it should, nowhere else, and keeps the numbers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ppl_dgm.graphs import record

MATRIX = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))


def _gradient(values: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(values.sum(), x)[0]


def product(x: Tensor) -> Tensor:
    return (MATRIX @ x.T).T + 1


def negated_product(x: Tensor) -> Tensor:
    return torch.exp(-(x @ MATRIX.T))


def negated_product_used_twice(x: Tensor) -> Tensor:
    y = x @ MATRIX.T
    return torch.exp(-y) + y


def padded_product(x: Tensor) -> Tensor:
    return x + x.exp().repeat(1, 3)[:, :7] @ MATRIX


def negated_sum(x: Tensor) -> Tensor:
    return (-x.exp()).sum(1) * x[:, 0]


def slope_of_log_sigmoid(x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return _gradient(torch.nn.functional.logsigmoid(x), x)


def log_sigmoid_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    value = torch.nn.functional.logsigmoid(x)
    return value.detach(), _gradient(value, x)


def parts(x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return _gradient(x[:, :1].exp() * x[:, 1:].sin().sum(1, keepdim=True), x)


def overlapping_parts(x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return _gradient(x[:, :2].exp() * x[:, 1:].sin(), x)


def missing_part(x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return _gradient(x[:, :1].exp() * x[:, 2:].sin(), x)


def scalings(x: Tensor) -> Tensor:
    return -(torch.full((4, 3), 0.25) * (2.0 * x)) / 3.0 + x


def scaled_constant(x: Tensor) -> Tensor:
    return MATRIX[:4] * (2.0 * x) + x


def single_sum(x: Tensor) -> Tensor:
    return (x.sum(1) + 1).unsqueeze(-1).sum(-1) * 2


def sum_of_another_dimension(x: Tensor) -> Tensor:
    return (x + 1).unsqueeze(-1).sum(1) * 2


@pytest.mark.parametrize(
    "function, gone, kept",
    [
        (product, "permute", "mm"),
        (negated_product, "neg", "mm"),
        (negated_product_used_twice, "nothing", "neg"),
        (padded_product, "nothing", "slice.Tensor"),
        (slope_of_log_sigmoid, "log_sigmoid", "sigmoid"),
        (log_sigmoid_and_slope, "aten.sigmoid", "log_sigmoid_backward"),
        (parts, "slice_backward", "cat"),
        (overlapping_parts, "cat", "slice_backward"),
        (missing_part, "cat", "slice_backward"),
        (scalings, "neg", "mul.Scalar"),
        (scaled_constant, "mul.Scalar", "mul.Tensor"),
        (single_sum, "unsqueeze", "sum"),
        (sum_of_another_dimension, "clone", "sum"),
    ],
)
def test_rule(function: Callable[[Tensor], Tensor], gone: str, kept: str) -> None:
    first, second = torch.randn(4, 3), 5 * torch.randn(4, 3)
    graph = record(function, first)
    listing = graph.describe()
    assert gone not in listing and kept in listing
    torch.testing.assert_close(graph(second), function(second))


def test_a_sum_is_negated_after_it() -> None:
    listing = record(negated_sum, torch.randn(4, 3)).describe().splitlines()
    assert [line.split("#")[1].strip() for line in listing if "neg" in line] == ["[4]"]
    x = torch.randn(4, 3)
    torch.testing.assert_close(record(negated_sum, x)(x), negated_sum(x))


def test_slopes_of_log_sigmoid_hold_far_out() -> None:
    x = torch.tensor([[-200.0, -20.0, 0.0, 20.0, 200.0]])
    torch.testing.assert_close(
        record(slope_of_log_sigmoid, torch.zeros(1, 5))(x), slope_of_log_sigmoid(x), rtol=1e-6, atol=0
    )


def test_live_tensors_are_not_taken_for_constants() -> None:
    weight = torch.full((4, 3), 0.5)

    def function(x: Tensor) -> Tensor:
        return -(weight * (2.0 * x))

    x = torch.randn(4, 3)
    graph = record(function, x, live=[weight])
    weight.mul_(3.0)
    torch.testing.assert_close(graph(x), function(x))
    matrix = torch.randn(5, 3)
    graph = record(lambda x: (matrix @ x.T).T + 1, x, live=[matrix])
    matrix.add_(1.0)
    torch.testing.assert_close(graph(x), (matrix @ x.T).T + 1)


def test_written_values_are_left_alone() -> None:
    def function(x: Tensor) -> Tensor:
        y = 2.0 * x
        z = -y
        y.add_(1.0)
        return z * 3.0 + y

    x = torch.randn(4, 3)
    torch.testing.assert_close(record(function, torch.zeros(4, 3))(x), function(x))


def test_indexing_by_a_constant_mask_is_recorded() -> None:
    mask = torch.tensor([True, False, True])
    x = torch.randn(4, 3)
    torch.testing.assert_close(record(lambda x: x[:, mask] * 2, torch.zeros(4, 3))(x), x[:, mask] * 2)
