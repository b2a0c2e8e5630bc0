"""SequenceVAE: its density by enumeration, its cell against torch's, its score by quadrature, and codes that hold the topic."""

import dataclasses
import math

import pytest
import torch
from pyro import poutine
from torch import nn

import ppl_dgm as dgm
from ppl_dgm.errors import DataError, ProgramError
from ppl_dgm.models import SequenceVAE


def made(length=4, values=3, end=2, latent=1, **options):
    torch.manual_seed(0)
    program = SequenceVAE(length, values, latent, hidden=6, embedding=4, end=end, **options).double().eval()
    with torch.no_grad():
        for parameter in program.write.parameters():
            parameter.mul_(1.5)
    return program


def every(length, values):
    return torch.cartesian_prod(*[torch.arange(values)] * length)


def ended(x, end):
    return torch.tensor(
        [all(token == end for token in row[row.index(end) :]) if end in row else True for row in x.tolist()]
    )


@pytest.mark.parametrize("end", [2, None])
def test_the_density_sums_to_one_and_draws_follow_it(end):
    program = made(end=end)
    states = every(4, 3)
    fn = program.tokens(torch.tensor([[0.7]]).double().expand(len(states), 1))
    with torch.no_grad():
        log_p = fn.log_prob(states)
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert torch.equal(log_p.isfinite(), ended(states, end) if end is not None else torch.ones(81).bool())
    drawn = program.tokens(torch.tensor([[0.7]]).double()).sample((20_000,))[:, 0]
    counts = torch.bincount((drawn * torch.tensor([27, 9, 3, 1])).sum(-1), minlength=81) / 20_000
    assert ((counts - log_p.exp()).abs() < 4.5 * (log_p.exp() / 20_000).sqrt() + 1e-9).all()


def test_the_cell_is_the_lstm_of_torch():
    program = made(length=5, end=None)
    cell, reader = nn.LSTM(4, 6, batch_first=True).double(), program.read
    with torch.no_grad():
        cell.weight_ih_l0.copy_(reader.taken.weight)
        cell.weight_hh_l0.copy_(reader.kept.weight)
        cell.bias_ih_l0.copy_(reader.taken.bias)
        cell.bias_hh_l0.zero_()
    x = torch.randint(0, 3, (7, 5))
    _, (output, _) = cell(reader.embedding(x))
    q = program.encode(x)
    torch.testing.assert_close(q.mean, program.encoder(output[0])[:, :1])


def test_padding_does_not_reach_the_code():
    short, long = made(length=3), made(length=6)
    long.load_state_dict(short.state_dict())
    x = torch.tensor([[0, 1, 2], [1, 2, 2]])
    padded = nn.functional.pad(x, (0, 3), value=2)
    torch.testing.assert_close(short.encode(x).mean, long.encode(padded).mean)
    z = torch.tensor([[0.3], [-1.0]]).double()
    torch.testing.assert_close(short.tokens(z).log_prob(x), long.tokens(z).log_prob(padded))


def test_the_score_tends_to_the_density_by_quadrature():
    program = made()
    x = torch.tensor([[0, 0, 1, 0], [1, 2, 2, 2], [2, 2, 2, 2]])
    grid = torch.linspace(-8, 8, 801, dtype=torch.float64)
    with torch.no_grad():
        log_p = torch.stack([program.tokens(grid[:, None]).log_prob(row.expand(801, 4)) for row in x])
    exact = (log_p - grid.square() / 2 - 0.5 * math.log(2 * math.pi) + math.log(0.02)).logsumexp(-1)
    score = dgm.score(program, x, method=dgm.ImportanceWeighted(draws=20_000), seed=0)
    assert ((score.value - exact).abs() < 5 * score.stderr + 1e-3).all() and score.stderr.max() < 0.05
    bound = dgm.score(program, x, method=dgm.ELBO(draws=2000), seed=0)
    assert (bound.value < exact + 4 * bound.stderr).all()


@torch.no_grad()
def test_what_is_not_heard_does_not_matter_while_learning():
    program = made(end=None, word_dropout=1.0)
    z, a, b = torch.zeros(1, 1).double(), torch.tensor([[0, 1, 2, 1]]), torch.tensor([[2, 0, 1, 1]])

    def last(heard):  # of the last token alone: the sum less that of the others
        part = SequenceVAE(3, 3, 1, 6, 4, word_dropout=1.0).double()
        part.load_state_dict(program.state_dict())
        shorter = None if heard is None else heard[:, :3]
        return [
            float(program.tokens(z, heard).log_prob(x) - part.tokens(z, shorter).log_prob(x[:, :3])) for x in (a, b)
        ]

    nothing = last(torch.zeros(1, 4).bool())
    assert nothing[0] == pytest.approx(nothing[1], abs=1e-12)
    everything = last(None)
    assert abs(everything[0] - everything[1]) > 1e-3
    # the program's own story drops all in training, and nothing at rest
    values = []
    for training in (True, False):
        program.train(training)
        with program.running(), torch.no_grad():
            trace = poutine.trace(poutine.condition(program.run_model, {"z": z})).get_trace(a)
            values.append(float(trace.nodes["x"]["fn"].log_prob(a)))
    deaf, hearing = (float(program.tokens(z, h).log_prob(a)) for h in (torch.zeros(1, 4).bool(), None))
    assert values == pytest.approx([deaf, hearing])


def topics(n, seed):
    """Two topics of two words each, of two to five words, ended by 4."""
    generator = torch.Generator().manual_seed(seed)
    topic = torch.randint(0, 2, (n,), generator=generator)
    words = 2 * topic[:, None] + torch.randint(0, 2, (n, 5), generator=generator)
    length = torch.randint(2, 6, (n, 1), generator=generator)
    return torch.where(torch.arange(5) < length, words, 4), topic


def test_the_code_holds_the_topic():
    torch.manual_seed(0)
    x, _ = topics(300, 0)
    program = SequenceVAE(5, 5, latent=2, hidden=16, embedding=8, end=4, word_dropout=0.7)
    method = dataclasses.replace(
        program.default_method("learn"), epochs=60, lr=1e-2, kl_weight=lambda epoch: min(1.0, epoch / 40)
    )
    dgm.learn(program, x, method=method, seed=0)
    new, topic = topics(200, 1)
    with torch.no_grad():
        written = program.most_likely(program.eval().encode(new).mean)
    told = torch.where(written[:, 0] < 4, written[:, 0] // 2, -1)
    assert (told == topic).double().mean() > 0.95
    # the truth: a topic, a length of four, and a word of two at each place
    length = (new < 4).sum(-1)
    exact = -(math.log(2) + math.log(4) + length * math.log(2))
    score = dgm.score(program, new, seed=0).value
    assert (exact - score).mean() < 0.5
    drawn = dgm.sample(program, 300, seed=0)["x"]
    assert ended(drawn, 4).all()
    mixed = ((drawn < 2).any(-1) & ((drawn == 2) | (drawn == 3)).any(-1)).double().mean()
    assert mixed < 0.15


def test_refusals_name_the_remedy():
    with pytest.raises(ProgramError, match="end is 3"):
        SequenceVAE(4, 3, end=3)
    with pytest.raises(ProgramError, match="word_dropout"):
        SequenceVAE(4, 3, word_dropout=1.5)
    with pytest.raises(DataError, match=r"x\[0, 2\] is 1, but the sequence has ended"):
        dgm.score(made(), torch.tensor([[0, 2, 1, 2]]))
