"""card: what is said without data, what is measured with it, and passes that are counted."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_dgm as dgm
from ppl_dgm.cards import TASKS, count_passes


def schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, sigma), obs=y)


class Steps(dgm.Program):
    """Runs its network `steps` times for one sample."""

    def __init__(self, steps):
        super().__init__()
        self.steps, self.net, self.once = steps, nn.Linear(2, 2), nn.Linear(2, 2)

    def model(self, x=None, n=1):
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            for _ in range(self.steps):
                z = self.net(z)
            return pyro.sample("x", dist.Normal(self.once(z), 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_passes_are_counted_on_the_busiest_network(steps):
    program = Steps(steps)
    assert count_passes(program) == steps
    assert not any(module._forward_hooks for module in program.modules())
    assert dgm.card(program).passes == steps


@pytest.mark.parametrize(
    ("program", "args", "kinds"),
    [
        (schools, (torch.zeros(3), torch.ones(3)), ("exact", "unavailable", "asymptotic", "approximate")),
        (schools, (), ("exact", "unavailable", "unavailable", "approximate")),
        (
            lambda x: pyro.sample("x", dist.Normal(0.0, 1.0), obs=x),
            (torch.tensor(0.0),),
            ("exact", "exact", "unavailable", "approximate"),
        ),
        (
            lambda x: pyro.sample("x", dist.Normal(pyro.sample("k", dist.Bernoulli(0.5)), 1.0), obs=x),
            (torch.tensor(0.0),),
            ("exact",) * 3 + ("approximate",),
        ),
    ],
)
def test_a_strangers_program_gets_a_card_that_the_verbs_keep(program, args, kinds):
    card = dgm.card(program, *args)
    assert tuple(card.answers[task].kind for task in TASKS) == kinds
    if args and kinds[1] == "exact":
        assert dgm.score(program, *args).kind == "exact"
    if args and kinds[2] == "exact":
        assert dgm.infer(program, *args, seed=0).kind == "exact"


def test_a_guide_changes_what_can_be_answered():
    card = dgm.card(
        schools,
        torch.zeros(3),
        torch.ones(3),
        guide=lambda y, sigma: pyro.sample("mu", dist.Normal(0.0, 1.0)),
    )
    assert (card.answers["score"].kind, card.answers["infer"].kind) == ("lower_bound", "approximate")


def test_keyword_arguments_reach_the_program():
    assert dgm.card(schools, torch.zeros(3), sigma=torch.ones(3)).seconds["sample"] > 0
    assert dgm.card(schools, y=torch.zeros(3), sigma=torch.ones(3)).seconds["sample"] > 0


def test_the_table_and_the_records_agree():
    program = dgm.models.MixtureOfCategoricals(3, 2, 2)
    card = dgm.card(program, torch.zeros(20, 3))
    assert [row["task"] for row in card.rows()] == list(TASKS)
    assert card.parameters == 2 + 2 * 3 * 2
    assert all(card.seconds[task] > 0 for task in ("sample", "score", "infer"))
    lines = str(card).splitlines()
    assert lines[0] == "MixtureOfCategoricals (14 parameters)" and len(lines) == 3 + len(TASKS)
    assert not dgm.card(program).seconds.keys() & {"score", "infer"}


def test_a_card_leaves_the_random_state_and_the_store_alone():
    before = torch.get_rng_state()
    dgm.card(schools, torch.zeros(3), torch.ones(3))
    assert torch.equal(torch.get_rng_state(), before) and not list(pyro.get_param_store().keys())
