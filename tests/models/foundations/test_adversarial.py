"""Adversarial noise against the distance to the boundary, which for linear log odds decides."""

import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.errors import ProgramError
from ppl_dgm.models import Heights, LinearDiscriminant, QuadraticDiscriminant, adversarial_noise


def data(classes=2):
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, classes, (200,), generator=generator)
    x = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    return x + 1.5 * torch.nn.functional.one_hot(y, 3), y


def test_a_linear_classifier_flips_at_the_distance_to_its_boundary():
    x, y = data()
    program = dgm.learn(LinearDiscriminant(3, 2).double(), x, y).program
    weights, offset = (value.detach() for value in program.coefficients)
    normal, shift = weights[1] - weights[0], offset[1] - offset[0]
    distance = (x @ normal + shift).abs() / normal.norm()
    for size in (0.2, 1.0):
        found = adversarial_noise(program, x, size)
        assert torch.equal(found.flipped, distance < size) and 0 < int(found.flipped.sum()) < 200
        assert bool(((found.x - x).norm(dim=-1) <= size + 1e-9).all())


def test_it_flips_more_decisions_than_random_changes_of_that_length():
    x, y = data(3)
    program = dgm.learn(QuadraticDiscriminant(3, 3).double(), x, y).program
    found = adversarial_noise(program, x, 0.5)
    noise = torch.nn.functional.normalize(torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), dim=-1)
    at_random = program.decide(x + 0.5 * noise).label != program.decide(x).label
    assert int(found.flipped.sum()) > 2 * int(at_random.sum())
    assert torch.equal(found.before, program.decide(x).label) and torch.equal(
        found.after, program.decide(found.x).label
    )
    assert torch.allclose(found.log_density_after, dgm.score(program, found.x).value)


def test_what_is_no_classifier_is_refused():
    with pytest.raises(ProgramError, match="Heights is no classifier"):
        adversarial_noise(Heights(), torch.zeros(1, 1), 1.0)
    with pytest.raises(ProgramError, match="size and steps must be positive"):
        adversarial_noise(LinearDiscriminant(3), torch.zeros(1, 3), 0.0)
