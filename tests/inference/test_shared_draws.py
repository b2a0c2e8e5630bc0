"""Many draws from one run of a guide: the same answers, and networks that see each row once."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import ppl_dgm as dgm
from ppl_dgm import Program


class Counted(nn.Linear):
    """A linear layer that notes how many rows it has seen at once."""

    rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows = max(self.rows, len(x))
        return super().forward(x)


class Pair(Program):
    """z ~ N(0, I), x = z + N(0, 0.25), z split over two sites where `apart`; q(z | x) is wider than the posterior."""

    def __init__(self, apart: bool = False) -> None:
        super().__init__()
        self.apart, self.encoder = apart, Counted(2, 2)
        with torch.no_grad():
            self.encoder.weight.copy_(0.8 * torch.eye(2))
            self.encoder.bias.zero_()

    def draws(self, loc: Tensor, scale: float) -> Tensor:
        if not self.apart:
            return pyro.sample("z", dist.Normal(loc, scale).to_event(1))
        first = pyro.sample("a", dist.Normal(loc[:, 0], scale))
        return torch.stack([first, pyro.sample("b", dist.Normal(loc[:, 1] + 0 * first, scale))], -1)

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        with pyro.plate("data", n if x is None else len(x)):
            z = self.draws(torch.zeros(n if x is None else len(x), 2), 1.0)
            return pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def guide(self, x: Tensor, n: int = 1) -> Any:
        loc = self.encoder(x)
        with pyro.plate("data", len(x)):
            return self.draws(loc, 0.6)


X = torch.tensor([[0.3, -1.0], [2.0, 0.1], [0.0, 0.0], [1.0, -2.0], [0.5, 0.5]])


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("apart", [False, True])
def test_the_evidence_and_how_many_rows_the_encoder_sees(apart: bool, rows: int) -> None:
    pair, x = Pair(apart), X[:rows]
    score = dgm.score(pair, x, method=dgm.ImportanceWeighted(draws=4000), seed=0)
    exact = dist.Normal(0.0, 1.25**0.5).log_prob(x).sum(-1)
    assert ((score.value - exact).abs() < 4.5 * score.stderr).all()
    # a trial takes three rows at most
    assert (pair.encoder.rows > 100) if apart else (pair.encoder.rows <= max(3, rows))


def test_draws_are_those_of_the_guide() -> None:
    pair = Pair()
    for draws in (dgm.infer(pair, X, seed=0).draws["z"].flatten(0, 1), _weighted(pair)):
        deviation = (draws - 0.8 * X) / 0.6  # [draw, row, 2]
        count = len(draws)
        assert (deviation.mean(0).abs() < 4.5 / count**0.5).all()
        assert ((deviation.var(0) - 1).abs() < 4.5 * (2 / count) ** 0.5).all()
        between = (deviation[:, :-1] * deviation[:, 1:]).mean(0)  # rows are independent of one another
        assert (between.abs() < 4.5 / count**0.5).all()


def _weighted(pair: Pair) -> Tensor:
    """The draws behind the weights."""
    return dgm.infer(pair, X, method=dgm.Importance(draws=2000), seed=1).draws["z"][0]


def test_a_guide_that_looks_at_its_draws_is_run_over_repeated_rows() -> None:
    class Needs(Pair):
        def guide(self, x: Tensor, n: int = 1) -> Any:
            z = super().guide(x)
            if len(z) != len(x):
                raise ValueError("as many draws as rows")
            return z

    needs = Needs()
    score = dgm.score(needs, X, method=dgm.ImportanceWeighted(draws=4000), seed=0)
    exact = dist.Normal(0.0, 1.25**0.5).log_prob(X).sum(-1)
    assert ((score.value - exact).abs() < 4.5 * score.stderr).all()
    assert needs.encoder.rows > 100
