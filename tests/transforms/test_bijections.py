"""Householder, planar, Sylvester and inverse autoregressive maps: determinants, inverses, gradients, and what the book misprints."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from ppl_dgm.transforms import Householder, InverseAutoregressive, Planar, Sylvester, autoregressive_network, bjorck
from ppl_dgm.transforms.tanh_root import tanh_root

D = 4


def made(kind: str, batch: tuple[int, ...] = ()):
    """A transform of R^4 with random parameters of a batch shape, float64."""
    normal = lambda *shape: torch.randn((*batch, *shape), dtype=torch.float64)  # noqa: E731
    if kind == "householder":
        return Householder(normal(3, D))
    if kind == "planar":
        return Planar(2 * normal(D), normal(D), normal())
    if kind == "inverse-autoregressive":
        return InverseAutoregressive(autoregressive_network(D, 2, (16,), reverse=True).double(), normal(2))
    units = {"sylvester": 2, "sylvester, all units": D}[kind]
    r, r_tilde = normal(units, units), normal(units, units)
    for matrix in (r, r_tilde):
        matrix.diagonal(dim1=-2, dim2=-1).tanh_()
    return Sylvester(bjorck(normal(D, units), 60), r, r_tilde, normal(units))


EVERY = pytest.mark.parametrize(
    "kind", ["householder", "planar", "inverse-autoregressive", "sylvester", "sylvester, all units"]
)


@EVERY
def test_determinants_are_those_of_the_jacobian(kind: str) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        transform, x = made(kind), 2 * torch.randn(D, dtype=torch.float64)
        sign, log_det = torch.linalg.slogdet(jacobian(transform, x))
        assert sign == (-1) ** 3 if kind == "householder" else sign == 1
        torch.testing.assert_close(transform.log_abs_det_jacobian(x, transform(x)), log_det, atol=1e-10, rtol=0)
        if hasattr(transform, "call_and_log_det"):
            y, both = transform.call_and_log_det(x)
            torch.testing.assert_close(y, transform(x))
            torch.testing.assert_close(both, log_det, atol=1e-10, rtol=0)


@EVERY
def test_the_inverse_undoes_and_broadcasts(kind: str) -> None:
    transform, x = made(kind, (3,)), 2 * torch.randn(7, 3, D, dtype=torch.float64)
    y = transform(x)
    assert y.shape == x.shape
    assert transform.log_abs_det_jacobian(x, y).shape == (7, 3)
    torch.testing.assert_close(transform.inv(y), x, atol=1e-9, rtol=0)
    single = transform(x[0])  # the batch shape of the parameters without draws in front
    torch.testing.assert_close(single, y[0])


@EVERY
def test_the_inverse_has_the_gradient_of_an_inverse(kind: str) -> None:
    transform = made(kind)
    y = transform(torch.randn(D, dtype=torch.float64))
    x = transform.inv(y)
    product = jacobian(transform.inv, y) @ jacobian(transform, x)
    torch.testing.assert_close(product, torch.eye(D).double(), atol=1e-8, rtol=0)


def test_parameters_get_the_gradient_through_the_inverse() -> None:
    torch.manual_seed(3)
    y = torch.randn(5, D, dtype=torch.float64)
    parameters = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((D,), (D,), ())]
    assert torch.autograd.gradcheck(lambda *p: Planar(*p).inv(y), parameters, atol=1e-6)
    q = bjorck(torch.randn(D, 2, dtype=torch.float64), 60)
    r = 0.5 * torch.eye(2, dtype=torch.float64) + torch.randn(2, 2, dtype=torch.float64).triu(1)
    free = [x.clone().requires_grad_() for x in (r, -r, torch.randn(2, dtype=torch.float64))]
    assert torch.autograd.gradcheck(lambda *p: Sylvester(q, *p).inv(y), free, atol=1e-6)


@pytest.mark.parametrize("gain, slope", [(0.0, 1.0), (30.0, 5.0), (-0.999, 1.0), (200.0, -0.00499)])
def test_the_root_is_a_root(gain: float, slope: float) -> None:
    """Also where the left side is almost flat."""
    target = torch.linspace(-40, 40, 81, dtype=torch.float64)
    a, b = torch.full_like(target, gain), torch.full_like(target, slope)
    for offset in (0.0, 0.7):
        y = tanh_root(target, a, b, torch.full_like(target, offset))
        assert (y + gain * torch.tanh(slope * y + offset) - target).abs().max() < 1e-11


def test_a_reflection() -> None:
    """H = H^T = H^-1, H v = -v, det H = -1; a vector of zeros reflects nothing."""
    v = torch.randn(1, D, dtype=torch.float64)
    h = Householder(v).matrix()
    torch.testing.assert_close(h, h.T)
    torch.testing.assert_close(h @ h, torch.eye(D).double())
    torch.testing.assert_close(h @ v[0], -v[0])
    assert float(torch.linalg.det(h)) == pytest.approx(-1)
    x = torch.randn(D, dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(1, D, dtype=torch.float64, requires_grad=True)
    y = Householder(zeros)(x)
    assert torch.equal(y, x)
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(y.sum(), (x, zeros)))


@pytest.mark.parametrize("reflections", [1, 2, 3])
def test_reflections_move_as_many_dimensions_as_they_are(reflections: int) -> None:
    """The basis-kernel representation U = I - Y S Y^T: rank(U - I) <= K."""
    u = Householder(torch.randn(reflections, 6, dtype=torch.float64)).matrix()
    values = torch.linalg.svdvals(u - torch.eye(6).double())
    assert int((values > 1e-9).sum()) == reflections


def factorised(u: Tensor, reflections: int) -> Tensor:
    """Vectors of so many reflections, which turn the first columns of I into those of U (Householder's own method)."""
    found, rest = [], u.clone()
    for k in range(reflections):
        v = rest[:, k] - torch.eye(len(u)).to(u)[k]
        found.append(v if v.norm() > 1e-12 else torch.zeros_like(v))
        rest = Householder(found[-1][None])(rest.T).T
    return torch.stack(found[::-1])


@pytest.mark.parametrize("case", ["minus one", "rotation", "random"])
def test_every_orthogonal_matrix_needs_as_many_reflections_as_dimensions(case: str) -> None:
    """The book's M - 1 reach it but for the sign of the last column: so a 2-D rotation, or -I, is out of their reach."""
    if case == "random":
        u = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
        u = u * torch.linalg.det(u).sign() * (-1.0)  # of determinant -(-1)^(5-1), which four reflections do not have
    else:
        angle = math.pi if case == "minus one" else 1.0
        c, s = math.cos(angle), math.sin(angle)
        u = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    size = len(u)
    torch.testing.assert_close(Householder(factorised(u, size)).matrix(), u, atol=1e-10, rtol=0)
    short = Householder(factorised(u, size - 1)).matrix()
    assert (short - u).abs().max() > 0.1
    short[:, -1] *= -1
    short_signs = (short.T @ u).diagonal().abs()
    torch.testing.assert_close(short_signs, torch.ones(size).double(), atol=1e-10, rtol=0)
    if size == 2:  # and no other single reflection does better
        turns = torch.linspace(0, math.pi, 400, dtype=torch.float64)
        every = Householder(torch.stack([turns.cos(), turns.sin()], -1).unsqueeze(-2)).matrix()
        assert (every - u).flatten(1).norm(dim=1).min() > 1


def test_sylvesters_identity_and_what_makes_the_map_invertible() -> None:
    a, b = torch.randn(5, 2, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    wide, narrow = torch.linalg.det(torch.eye(5) + a @ b), torch.linalg.det(torch.eye(2) + b @ a)
    torch.testing.assert_close(wide, narrow)
    # r r~ < -1 folds space: the determinant changes its sign
    q = torch.eye(2, 1, dtype=torch.float64)
    fold = Sylvester(q, torch.full((1, 1), -2.0).double(), torch.ones(1, 1).double(), torch.zeros(1).double())
    inside, outside = (torch.tensor([x, 0.0], dtype=torch.float64) for x in (0.0, 3.0))
    assert torch.linalg.det(jacobian(fold, inside)) < 0 < torch.linalg.det(jacobian(fold, outside))


def test_only_upper_triangles_are_used() -> None:
    full = torch.randn(3, 3, dtype=torch.float64)
    q, b = torch.eye(D, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    x = torch.randn(6, D, dtype=torch.float64)
    assert torch.equal(Sylvester(q, full, full, b)(x), Sylvester(q, full.triu(), full.triu(), b)(x))


def test_bjorck_finds_the_nearest_orthonormal_columns() -> None:
    start = torch.randn(20, 6, 3, dtype=torch.float64)
    q = bjorck(start, 40)
    torch.testing.assert_close(q.mT @ q, torch.eye(3).double().expand(20, 3, 3), atol=1e-12, rtol=0)
    u, _, v = torch.linalg.svd(start, full_matrices=False)
    torch.testing.assert_close(q, u @ v, atol=1e-9, rtol=0)
    single = bjorck(start.float(), 30)
    assert (single.mT @ single - torch.eye(3)).abs().max() < 1e-6
    assert torch.autograd.gradcheck(lambda x: bjorck(x, 40), start[0].clone().requires_grad_(), atol=1e-6)


def test_bjorck_cannot_help_a_matrix_without_full_rank() -> None:
    start = torch.randn(6, 1, dtype=torch.float64) @ torch.randn(1, 3, dtype=torch.float64)
    q = bjorck(start, 30)
    assert float((q.mT @ q - torch.eye(3)).norm()) == pytest.approx(math.sqrt(2), abs=1e-3)  # two of three are missing
    assert bjorck(torch.zeros(3, 2), 30).isfinite().all()


def test_planar_is_the_identity_without_u_and_bounded_below() -> None:
    w, b, x = torch.randn(D).double(), torch.tensor(0.3).double(), torch.randn(9, D).double()
    torch.testing.assert_close(Planar(torch.zeros(D).double(), w, b)(x), x, atol=1e-12, rtol=0)
    extreme = Planar(-1e6 * w, w, b)
    assert -1 < float(extreme.inner) < -0.99
    at = -b * w / w.square().sum()  # where the map is flattest
    assert extreme.log_abs_det_jacobian(at, at).isfinite()
    plain = Planar.__new__(Planar)  # the formula without the change of u has no inverse there
    plain.u, plain.w, plain.b = -w, w, b
    plain.inner = -w.square().sum()
    if float(w.square().sum()) > 1:
        assert plain.log_abs_det_jacobian(at, at).isnan()


def test_autoregressive_networks_see_only_what_came_before() -> None:
    for reverse in (False, True):
        network = autoregressive_network(D, 2, (32, 32), reverse).double()
        layer = InverseAutoregressive(network, torch.randn(2).double())
        matrix = jacobian(layer, torch.randn(D).double())
        inside = matrix.tril() if not reverse else matrix.triu()
        torch.testing.assert_close(inside, matrix)
        assert (matrix - torch.diag(matrix.diagonal())).abs().max() > 1e-3  # and of that, they do see something
    one = InverseAutoregressive(autoregressive_network(1, 1), torch.ones(1))
    torch.testing.assert_close(one.inv(one(torch.tensor([0.4]))), torch.tensor([0.4]))
