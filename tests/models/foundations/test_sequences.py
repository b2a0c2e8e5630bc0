"""Sequences: every table against enumeration, counting against a numeric optimum, n-grams against hand counts."""

import math

import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.errors import DataError, ProgramError
from ppl_dgm.models import ChainTable, IIDSequence, MarkovChain, NGram

PROGRAMS = {
    "iid": lambda: IIDSequence(4, 3),
    "markov": lambda: MarkovChain(4, 3),
    "order 2": lambda: MarkovChain(4, 3, order=2),
    "inhomogeneous": lambda: MarkovChain(4, 3, order=1, homogeneous=False),
    "inhomogeneous, order 2": lambda: MarkovChain(4, 3, order=2, homogeneous=False),
    "chain": lambda: ChainTable(4, 3),
}
EVERY = pytest.mark.parametrize("name", PROGRAMS)
STATES = torch.cartesian_prod(*[torch.arange(3)] * 4)


def random_program(name):
    torch.manual_seed(0)
    program = PROGRAMS[name]().double()
    with torch.no_grad():
        for table in program.tables:
            table.normal_()
    return program


def sticky(n=200, length=30, stay=0.9):
    generator = torch.Generator().manual_seed(0)
    steps = [torch.randint(0, 2, (n,), generator=generator)]
    for _ in range(length - 1):
        steps.append(torch.where(torch.rand(n, generator=generator) < stay, steps[-1], 1 - steps[-1]))
    return torch.stack(steps, -1)


@EVERY
def test_the_density_is_that_of_the_story_and_sums_to_one(name):
    program = random_program(name)
    score = dgm.score(program, STATES)
    assert float(score.value.logsumexp(0)) == pytest.approx(0.0, abs=1e-12)
    from pyro import poutine

    trace = poutine.trace(program.model).get_trace(STATES)
    trace.compute_log_prob()
    told = sum(trace.nodes[f"x_{t}"]["log_prob"] for t in range(1, 5))
    assert torch.allclose(told, score.value, atol=1e-12)


@EVERY
def test_counting_is_the_maximum_of_the_likelihood(name):
    x = dgm.sample(random_program(name), 300, seed=1)["x"]
    program = dgm.learn(PROGRAMS[name]().double(), x).program
    loss = -program.log_prob(x).mean()
    for gradient in torch.autograd.grad(loss, list(program.tables)):
        assert gradient.abs().max() < 1e-9


def test_the_numbers_of_parameters():
    assert ChainTable(5, 3).free_count == 3**5 - 1
    assert MarkovChain(50, 4).free_count == 3 + 4 * 3
    assert MarkovChain(50, 4, homogeneous=False).free_count == 3 + 49 * 4 * 3
    assert IIDSequence(50, 4).free_count == 3
    assert MarkovChain(5, 3, order=4, homogeneous=False).free_count == ChainTable(5, 3).free_count


def test_the_chain_rule_holds_any_joint():
    torch.manual_seed(0)
    joint = torch.rand(3, 3, 3, dtype=torch.float64).flatten().softmax(0).reshape(3, 3, 3)
    program = ChainTable(3, 3).double()
    with torch.no_grad():
        program.tables[0].copy_(joint.sum((1, 2))[None].log())
        program.tables[1].copy_(joint.sum(2).log())
        program.tables[2].copy_(joint.flatten(0, 1).log())
    states = torch.cartesian_prod(*[torch.arange(3)] * 3)
    assert torch.allclose(dgm.score(program, states).value, joint.flatten().log(), atol=1e-12)


def test_memory_helps_where_steps_depend_on_one_another():
    x = sticky()
    scores = {
        name: dgm.score(dgm.learn(program, x[:100]).program, x[100:]).mean()
        for name, program in {"iid": IIDSequence(30, 2), "markov": MarkovChain(30, 2)}.items()
    }
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert scores["iid"].value == pytest.approx(-30 * math.log(2), abs=0.3)
    assert scores["markov"].value == pytest.approx(-math.log(2) - 29 * entropy, abs=5 * scores["markov"].stderr)


def test_the_stationary_distribution_is_left_alone_and_reached():
    chain = MarkovChain(3, 3).double()
    transition = torch.tensor([[0.8, 0.2, 0.0], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6]], dtype=torch.float64)
    chain.assign(torch.tensor([1.0, 0.0, 0.0]), transition)
    pi = chain.stationary()
    assert torch.allclose(pi @ transition, pi, atol=1e-12) and float(pi.sum()) == pytest.approx(1.0)
    assert torch.allclose(torch.linalg.matrix_power(transition, 200)[0], pi, atol=1e-10)
    chain.assign(torch.ones(3) / 3, torch.eye(3))
    with pytest.raises(ProgramError, match="do not reach one another"):
        chain.stationary()


@EVERY
def test_tempering_whole_sequences_is_not_tempering_each_step(name):
    program = random_program(name)
    if isinstance(program, MarkovChain):
        target = dgm.score(program, STATES).value / 0.5
        target = target - target.logsumexp(0)
        tempered = program.tempered(0.5)
        assert torch.allclose(dgm.score(tempered, STATES).value, target, atol=1e-10)
        assert torch.allclose(
            dgm.score(program.tempered(1.0), STATES).value, dgm.score(program, STATES).value, atol=1e-10
        )
        stepwise = _of_steps(program, 0.5)
        assert float((stepwise.exp() - target.exp()).abs().max()) > 0.003
    drawn = dgm.sample(program, 20_000, temperature=0.5, seed=0)["x"]
    code = (drawn * torch.tensor([27, 9, 3, 1])).sum(-1)
    shares = torch.bincount(code, minlength=81) / 20_000
    expected = _of_steps(program, 0.5).exp()
    assert bool(((shares - expected).abs() < 5 * (expected * (1 - expected) / 20_000).sqrt() + 1e-3).all())


def _of_steps(program, temperature):
    twin = type(program)(**program.config).double()
    with torch.no_grad():
        for mine, table in zip(twin.tables, program.tables):
            mine.copy_(table / temperature)
    return dgm.score(twin, STATES).value


def test_a_beginning_can_be_given():
    drawn = dgm.sample(random_program("markov"), 50, given={"x_1": 2}, seed=0)
    assert bool((drawn["x"][:, 0] == 2).all()) and len(drawn["x"][:, 1].unique()) > 1


def test_the_pseudo_count_is_the_best_on_validation_or_by_leaving_one_out():
    x = sticky(n=40, length=10, stay=0.97)
    program = MarkovChain(10, 2, order=4, pseudo_count=None)
    fit = dgm.learn(program, x[:20], valid=x[20:])
    chosen = fit.notes["pseudo_count"]
    values = {}
    for other in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0):
        twin = dgm.learn(MarkovChain(10, 2, order=4, pseudo_count=other), x[:20]).program
        values[other] = dgm.score(twin, x[20:]).mean().value
    assert fit.notes["chosen_by"] == "validation" and values[chosen] == max(values.values())
    assert dgm.learn(MarkovChain(10, 2, order=4, pseudo_count=None), x[:20]).notes["chosen_by"] == "leaving one out"


def test_leaving_one_out_is_what_it_says():
    from ppl_dgm.models.foundations.sequence import _left_out

    x, alpha = torch.tensor([[0, 1, 1, 2, 0, 1, 0, 0, 2]]), 0.3
    counts = MarkovChain(9, 3).counts(x)
    slow = 0.0
    for table in counts:
        for context, value in table.nonzero().tolist():
            for _ in range(int(table[context, value])):
                rest = table.clone()
                rest[context, value] -= 1
                slow += math.log((rest[context, value] + alpha) / (rest[context].sum() + 3 * alpha))
    assert _left_out(counts, alpha) == pytest.approx(slow, abs=1e-9)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ChainTable(1000, 17), r"about 10\^1230"),
        (lambda: MarkovChain(4, 3, order=4), "order must be below observed=4"),
        (lambda: MarkovChain(4, 3, order=-1), "order must be a whole number from 0"),
        (lambda: IIDSequence(4, 0), "values must be a whole number from 1"),
        (lambda: IIDSequence(4, 2, -1.0), "pseudo_count must be None or a number from 0"),
        (lambda: dgm.sample(IIDSequence(4, 2), temperature=0.0), "temperature must be a positive number"),
        (lambda: MarkovChain(4, 3, order=2).stationary(), "homogeneous chain of order 1"),
        (lambda: NGram(n=0), "n must be a whole number from 1"),
        (lambda: NGram(unit="syllable"), "unit must be one of character, word"),
    ],
)
def test_wrong_arguments_are_refused(make, words):
    with pytest.raises(ProgramError, match=words):
        make()


# -- n-grams -----------------------------------------------------------------------------------------------------------


def test_an_ngram_counts_windows():
    program = NGram.of_text("abracadabra", n=2, pseudo_count=0.5)
    after_a = dict(program.most_likely("a", 10))  # a is followed by b, c, d, b; six symbols with <unk>
    assert after_a["b"] == pytest.approx((2 + 0.5) / (4 + 6 * 0.5)) and after_a["<unk>"] == pytest.approx(0.5 / 7)
    score = program.score_text("abra")
    nats = -sum(
        math.log(p) for p in ((5 + 0.5) / 14, 2.5 / 7, 2.5 / (2 + 3), 2.5 / (2 + 3))
    )  # p(a) p(b|a) p(r|b) p(a|r)
    assert score.perplexity == pytest.approx(math.exp(nats / 4), rel=1e-5)
    assert score.bits_per_symbol == score.bits_per_character == pytest.approx(nats / 4 / math.log(2), rel=1e-5)


def test_a_program_that_knows_nothing_has_the_perplexity_of_its_alphabet():
    program = NGram(["a", "b", "c"], n=2)
    assert program.score_text("abcabcz").perplexity == pytest.approx(4.0, rel=1e-6)


def test_longer_windows_predict_better_until_the_data_run_out():
    text = " ".join(["the cat sat on the mat", "the dog sat on the log", "a cat and a dog ran"] * 20)
    cut = len(text) * 3 // 4
    bits = [NGram.of_text(text[:cut], n, valid=text[cut:]).score_text(text[cut:]).bits_per_character for n in (1, 2, 4)]
    assert bits[0] > bits[1] > bits[2]


def test_words_know_their_characters_and_unknown_words():
    text = "The cat sat. The dog sat. The cat ran."
    program = NGram.of_text(text, n=2, unit="word", pseudo_count=0.1, rarest=2)
    assert set(program.symbols) == {"the", "cat", "sat", ".", "<unk>"}
    assert program.decode(program.encode("the zebra sat.")[0]) == "the <unk> sat ."
    score = program.score_text("the cat sat.")
    assert score.symbols == 4 and score.bits_per_character == pytest.approx(score.bits_per_symbol * 4 / 12)
    assert program.generate(8, "the", seed=3) == program.generate(8, "the", seed=3)
    assert program.generate(4, "the", temperature=0.01, seed=0).startswith("the ")


def test_texts_of_any_length_are_scored_and_other_numbers_refused():
    program = NGram.of_text("hello world", n=3)
    assert dgm.score(program, program.encode("hell")).value.shape == (1,)
    with pytest.raises(DataError, match="numbers of symbols from 0 to"):
        dgm.score(program, torch.tensor([[99, 0, 0]]))
    with pytest.raises(DataError, match="2 characters, but n=3"):
        program.encode("ab")
    assert dgm.sample(program, 2, seed=0)["x"].shape == (2, 80)
