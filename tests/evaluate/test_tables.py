"""Report cards of tables: each card catches what it is for, and real rows pass all four; associations against scipy; items."""

import math

import pytest
import torch
from scipy.stats import spearmanr

import ppl_dgm as dgm
from ppl_dgm.errors import DataError, ProgramError
from ppl_dgm.evaluate import report_cards
from ppl_dgm.evaluate.associations import association

COLUMNS = {"kind": "categorical-3", "a": "number", "b": "gaussian", "flag": "binary", "noise": "number"}


def world(n, seed):
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(3, (n,), generator=generator)
    a = torch.randn(n, generator=generator) + 2 * kind
    b = 0.8 * a + 0.6 * torch.randn(n, generator=generator)
    flag = torch.rand(n, generator=generator) < torch.sigmoid(3 * (b - 2))
    return torch.stack([kind, a, b, flag, torch.randn(n, generator=generator)], 1)


TRAIN, TEST = world(500, 0), world(400, 1)


def shuffled(table, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([column[torch.randperm(len(table), generator=generator)] for column in table.T], 1)


def test_fresh_real_rows_pass_all_four_cards():
    cards = report_cards(TRAIN, TEST, world(500, 2), COLUMNS)
    assert cards.worst_columns == [] and not cards.leaks and cards.copies == 0.0
    assert cards.correlation_error < 0.06 and 0.85 < cards.kept_utility < 1.15
    assert 0.8 < cards.privacy < 1.25 and "No sign of copying" in cards.verdict


def test_columns_drawn_one_by_one_have_the_marginals_and_neither_correlations_nor_use():
    cards = report_cards(TRAIN, TEST, shuffled(TRAIN), COLUMNS)
    assert cards.worst_columns == []
    assert cards.correlation_error > 5 * cards.correlation_baseline and cards.kept_utility < 0.4
    assert not cards.leaks


def test_a_shifted_column_and_wrong_shares_of_categories_are_named():
    made = world(500, 2)
    made[:, 2] += 1.0
    made[torch.arange(500) % 3 == 0, 3] = 1.0
    assert report_cards(TRAIN, TEST, made, COLUMNS).worst_columns == ["b", "flag"]


def test_copies_of_training_records_leak_though_the_other_cards_are_full():
    rows = torch.randint(500, (500,), generator=torch.Generator().manual_seed(5))
    copied = report_cards(TRAIN, TEST, TRAIN[rows], COLUMNS)
    assert copied.leaks and copied.copies == 1.0 and copied.copies_held_out == 0.0
    assert copied.kept_utility > 0.8 and "leak" in copied.sentences["privacy"]
    near = TRAIN[rows] + 0.02 * torch.randn(500, 5, generator=torch.Generator().manual_seed(6)) * torch.tensor(
        [0.0, 1, 1, 0, 1]
    )
    close = report_cards(TRAIN, TEST, near, COLUMNS)
    assert close.leaks and close.copies == 0.0 and close.privacy < 0.3


def test_repeats_are_no_leak_where_data_repeat_themselves():
    generator = torch.Generator().manual_seed(0)
    few = [torch.randint(0, 3, (300, 2), generator=generator).float() for _ in range(3)]
    cards = report_cards(*few, {"a": "categorical-3", "b": "categorical-3"})
    assert cards.copies > 0.9 and not cards.leaks


def test_associations_are_those_of_scipy_and_of_known_tables():
    x = world(1000, 3).double()
    kinds = {"kind": 3, "a": 0, "b": 0, "flag": 2, "noise": 0}
    found = association(x, kinds)
    assert torch.equal(found, found.mT) and bool((found.diagonal() == 1).all())
    assert float(found[1, 2]) == pytest.approx(abs(spearmanr(x[:, 1], x[:, 2]).statistic), abs=1e-10)
    assert float(found[0, 4]) < 0.1 and float(found[3, 4]) < 0.15
    # a category decides another, or says nothing of it
    same = torch.arange(600).double() % 3
    table = torch.stack([same, (same + 1) % 3, torch.arange(600).double() // 3 % 2], 1)
    exact = association(table, {"a": 3, "b": 3, "c": 2})
    assert float(exact[0, 1]) == pytest.approx(1.0, abs=1e-9) and float(exact[0, 2]) == pytest.approx(0.0, abs=1e-9)
    # the ranks' variance between two groups of which one lies wholly above the other is 3/4 of the whole
    halves = torch.stack([(torch.arange(1000) >= 500).double(), torch.arange(1000).double()], 1)
    assert float(association(halves, {"g": 2, "x": 0})[0, 1]) == pytest.approx(math.sqrt(0.75), abs=2e-3)


def test_kinds_are_guessed_targets_chosen_and_the_picture_drawn(tmp_path):
    cards = report_cards(TRAIN, TEST, world(300, 2), targets=["2", "3"])
    assert list(cards.marginals["kind"]) == ["categorical-3", "number", "number", "categorical-2", "number"]
    assert list(cards.utility.index) == ["2", "3"] and cards.utility.loc["2", "real"] > 0.6
    cards.plot(tmp_path / "cards.png")
    assert (tmp_path / "cards.png").stat().st_size > 10_000


def test_the_seed_repeats_and_leaves_the_callers_state():
    before = torch.get_rng_state()
    first, second = (report_cards(TRAIN, TEST, world(300, 2), COLUMNS, rows=100) for _ in range(2))
    assert str(first) == str(second) and torch.equal(before, torch.get_rng_state())


def test_tables_that_do_not_go_together_are_refused():
    with pytest.raises(DataError, match="synthetic has shape"):
        report_cards(TRAIN, TEST, TRAIN[:, :4], COLUMNS)
    with pytest.raises(DataError, match="missing entries"):
        report_cards(TRAIN, TEST, torch.where(TRAIN > 5, torch.nan, TRAIN), ["number"] * 5)
    with pytest.raises(DataError, match="'flag' of synthetic holds values"):
        report_cards(TRAIN, TEST, TRAIN + torch.tensor([0.0, 0, 0, 1, 0]), COLUMNS)
    with pytest.raises(ProgramError, match="is of kind 'banana'"):
        report_cards(TRAIN, TEST, TRAIN, {**COLUMNS, "a": "banana"})
    with pytest.raises(ProgramError, match="no column"):
        report_cards(TRAIN, TEST, TRAIN, COLUMNS, targets=["z"])


# -- the made items -----------------------------------------------------------------------------------------------------


def test_items_have_the_density_and_the_entropy_that_they_claim():
    items = dgm.data.items(4000, 0, 10)
    value = items.log_density(items.train.double())
    assert float(value.mean()) == pytest.approx(-items.entropy, abs=4 * float(value.std()) / math.sqrt(4000))
    assert items.train.shape == (4000, 31) and items.columns == list(dgm.data.ITEM_COLUMNS)
    assert torch.equal(items.train[:, 0].long(), items.labels["train"])
    assert torch.equal(items.train, dgm.data.items(4000, 100, 0).train)
    assert dgm.data.load("items").train.shape == (2000, 31)
    shares = torch.bincount(items.labels["train"], minlength=20) / 4000
    assert bool((shares > 0).all()) and float(shares[0]) > 5 * float(shares[19])
    with pytest.raises(DataError, match="draw at least one"):
        dgm.data.items(0)


def test_a_mixed_vae_of_items_beats_columns_drawn_one_by_one():
    items = dgm.data.items(800, 0, 400)
    columns = list(dgm.data.ITEM_COLUMNS.values())
    torch.manual_seed(0)
    vae = dgm.models.VAE(
        31, latent=8, hidden=32, depth=1, likelihood="mixed", likelihood_options={"columns": columns},
        encoder_dropout=0.0, decoder_dropout=0.0,
    )  # fmt: skip
    dgm.learn(vae, items.train, method=dgm.SVI(elbo="mean_field", epochs=30, batch_size=100, lr=1e-2), seed=0)
    made = dgm.sample(vae, 800, seed=0)["x"]
    cards, plain = (
        report_cards(items.train, items.test, table, dgm.data.ITEM_COLUMNS) for table in (made, shuffled(items.train))
    )
    assert cards.correlation_error < 0.6 * plain.correlation_error and cards.kept_utility > plain.kept_utility + 0.2
    assert not cards.leaks
