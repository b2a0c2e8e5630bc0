"""BoundedCoupling: inverse, log-determinant against autograd, no stale memory, copies."""

import copy
import math

import pyro.distributions as dist
import pytest
import torch

from ppl_dgm.errors import ProgramError
from ppl_dgm.transforms import BoundedCoupling, coupling_network


def layer(split: int = 2, rest: int = 3, dropout: float = 0.0, bound: float = 2.0) -> BoundedCoupling:
    """A coupling in float64 with weights large enough to saturate its scales."""
    network = coupling_network(split, rest, hidden=(16, 16), dropout=dropout)
    torch.nn.init.normal_(network[-1].weight)
    return BoundedCoupling(split, network, bound).double()


@pytest.mark.parametrize(("split", "rest"), [(1, 1), (2, 3), (3, 2)])
def test_it_inverts_and_its_log_determinant_is_autograds(split: int, rest: int) -> None:
    coupling = layer(split, rest)
    x = torch.randn(6, split + rest, dtype=torch.float64)
    y = coupling(x)
    torch.testing.assert_close(coupling.inv(y), x, rtol=0, atol=1e-12)
    jacobian = torch.stack([torch.autograd.functional.jacobian(coupling, row) for row in x])
    torch.testing.assert_close(coupling.log_abs_det_jacobian(x, y), torch.linalg.slogdet(jacobian).logabsdet)


def test_it_starts_as_the_identity() -> None:
    coupling = BoundedCoupling(2, coupling_network(2, 3))
    x = torch.randn(4, 5)
    y = coupling(x)
    assert torch.equal(y, x)
    assert torch.equal(coupling.log_abs_det_jacobian(x, y), torch.zeros(4))


def test_scales_stay_within_the_bound_and_keep_a_gradient() -> None:
    coupling = layer(bound=1.5)
    x = 100 * torch.randn(50, 5, dtype=torch.float64)
    log_det = coupling.log_abs_det_jacobian(x, coupling(x))
    assert log_det.abs().max() <= 3 * 1.5
    assert log_det.abs().max() > 1.5  # the weights do reach far out
    log_det.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in coupling.parameters())


def test_the_same_tensor_is_inverted_anew_after_the_weights_have_changed() -> None:
    """Pyro's own layer answers from memory here: a score of the training data would never change."""
    coupling = layer()
    y = torch.randn(4, 5, dtype=torch.float64)
    before = coupling.inv(y)
    with torch.no_grad():
        for parameter in coupling.parameters():
            parameter.add_(0.1)
    after = coupling.inv(y)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(coupling(after), y)


def test_a_score_without_gradients_leaves_the_next_one_its_gradient() -> None:
    flow = dist.TransformedDistribution(dist.Normal(torch.zeros(5).double(), 1.0).to_event(1), [layer()])
    y = torch.randn(4, 5, dtype=torch.float64)
    with torch.no_grad():
        flow.log_prob(y)
    flow.log_prob(y).sum().backward()
    gradients = [p.grad for p in flow.transforms[0].parameters()]
    assert all(g is not None and g.abs().sum() > 0 for g in gradients)


def test_inverse_and_log_determinant_see_one_dropout_mask() -> None:
    """With s and t from one run of the network, two points that share y_a and the mask differ by exp(-s)
    exactly.
    """
    coupling = layer(split=2, rest=1, dropout=0.5).train()
    kept = torch.randn(1, 2, dtype=torch.float64)
    low, high = (torch.cat([kept, torch.full((1, 1), end, dtype=torch.float64)], -1) for end in (0.0, 1.0))
    steps = []
    for y in (low, high):
        torch.manual_seed(1)  # the same mask for both points
        x = coupling.inv(y)
        steps.append((x[0, 2], coupling.log_abs_det_jacobian(x, y)[0]))
    (x_low, log_det), (x_high, _) = steps
    torch.testing.assert_close((x_high - x_low).log(), -log_det)
    assert not torch.allclose(coupling.log_abs_det_jacobian(x, y)[0], log_det)  # asked again, the network runs again


def test_it_can_be_copied_in_the_middle_of_a_gradient() -> None:
    coupling = layer()
    x = torch.randn(4, 5, dtype=torch.float64)
    y = coupling(x)  # leaves tensors with a graph behind, which copy.deepcopy refuses
    twin = copy.deepcopy(coupling)
    assert torch.equal(twin(x), y)


@pytest.mark.parametrize(("split", "bound"), [(0, 2.0), (2, 0.0), (2, math.inf)])
def test_impossible_sizes_are_refused(split: int, bound: float) -> None:
    with pytest.raises(ProgramError, match=r"split|bound"):
        BoundedCoupling(split, coupling_network(2, 3), bound)
