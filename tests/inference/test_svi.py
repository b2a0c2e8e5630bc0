"""SVI: right against conjugacy, the same on every path, and safe to interrupt."""

import os
import signal
import subprocess
import sys
import textwrap

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import nn

import ppl_dgm as dgm
from ppl_dgm.errors import FileError, NumericalError, ProgramError
from ppl_dgm.inference.svi import SVI


class NormalMean(dgm.Program):
    """mu ~ N(0, 1), x_i ~ N(mu, 1): the posterior of mu and the evidence are known."""

    def __init__(self):
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(-1.0))

    def model(self, x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(self, x):
        pyro.sample("mu", dist.Normal(self.loc, self.log_scale.exp()))


class TinyVAE(dgm.Program):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 4))
        self.decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 4))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


@pytest.fixture
def x():
    return torch.randn(40) + 1.5


@pytest.fixture
def bits():
    return (torch.rand(90, 4) < torch.tensor([0.1, 0.9, 0.5, 0.7])).float()


def evidence(x):
    """log N(x | 0, I + 11') of NormalMean."""
    return dist.MultivariateNormal(torch.zeros(len(x)), torch.eye(len(x)) + 1).log_prob(x)


def test_minibatch_objective_is_unbiased_with_a_global_latent(x):
    """The same draw of mu: the mean over disjoint batches is the objective of the whole."""
    program = NormalMean()
    objective = SVI().objective(program, total=len(x))

    def value(rows):
        torch.manual_seed(3)
        with program.running():
            return float(objective(rows).detach())

    batches = [value(rows) for rows in x.split(8)]
    assert sum(batches) / len(batches) == pytest.approx(value(x), rel=1e-5)
    assert max(batches) - min(batches) > 0.01  # the batches do differ


@pytest.mark.parametrize("elbo", ["trace", "mean_field", "graph"])
def test_finds_the_conjugate_posterior_and_its_evidence(x, elbo):
    method = SVI(elbo=elbo, batch_size=None, epochs=600, lr=0.02, schedule="cosine", particles=4)
    fit = dgm.learn(NormalMean(), x, method=method, seed=0)
    variance = 1 / (1 + len(x))
    assert fit.program.loc.item() == pytest.approx(float(x.sum() * variance), abs=0.02)
    assert fit.program.log_scale.exp().item() == pytest.approx(variance**0.5, rel=0.05)
    bound = dgm.score(fit.program, x, method="elbo", seed=0)
    assert float(bound.value) == pytest.approx(float(evidence(x)), abs=0.05)


@pytest.mark.parametrize("backend", ["eager", "python"])
def test_the_renyi_bound_is_pyros_own_per_example(x, backend):
    """Its log densities are averaged as weights, so they must not be rescaled inside."""
    torch.manual_seed(4)
    with pyro.get_param_store().scope(), torch.no_grad():
        program = NormalMean()
        wanted = pyro.infer.RenyiELBO(alpha=0.0, num_particles=2000).loss(program.model, program.guide, x) / len(x)
    method = SVI(elbo="renyi", particles=300, epochs=1, batch_size=None, lr=1e-9, backend=backend)
    fit = dgm.learn(NormalMean(), x, method=method, seed=0)
    assert fit.history["objective"][0] == pytest.approx(wanted, abs=0.02)
    assert wanted == pytest.approx(-float(evidence(x)) / len(x), abs=0.03)


@pytest.mark.parametrize("elbo", ["trace", "mean_field", "graph", "renyi"])
def test_recorded_and_plain_pyro_agree(bits, elbo):
    histories = []
    for backend in ("eager", "python"):
        torch.manual_seed(1)
        program = TinyVAE(dropout=0.2)
        method = SVI(elbo=elbo, particles=2 if elbo == "renyi" else 1, epochs=3, batch_size=40, backend=backend)
        fit = dgm.learn(program, bits, valid=bits[:20], method=method, seed=5)
        assert fit.cost.path == ("recorded" if backend == "eager" else "python")
        histories.append(fit.history[["objective", "valid"]].to_numpy())
    assert histories[0] == pytest.approx(histories[1], rel=1e-4)


def test_same_seed_same_result_and_the_callers_random_state_is_kept(bits):
    before = torch.get_rng_state()
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        program = TinyVAE()
        torch.set_rng_state(before)
        dgm.learn(program, bits, method=SVI(epochs=2), seed=7)
        weights.append(program.encoder[0].weight.detach())
    assert torch.equal(*weights)
    assert torch.equal(torch.get_rng_state(), before)


def test_keeps_the_best_weights_and_stops_early(bits):
    program = TinyVAE()
    method = SVI(epochs=200, batch_size=16, lr=0.5, patience=4)  # far too large a step: it gets worse
    fit = dgm.learn(program, bits, valid=bits[:30], method=method, seed=0)
    assert "no better" in fit.stopped and len(fit.history) < 200
    with torch.no_grad(), program.running():
        torch.manual_seed(0)
        now = float(method.validation(program, len(bits))(bits[:30]))
    assert now == pytest.approx(fit.history["valid"].min(), rel=1e-5)


def test_kl_weight_follows_its_schedule(bits):
    seen = []

    def weight(epoch):
        seen.append(epoch)
        return 0.0 if epoch == 1 else 1.0

    torch.manual_seed(0)
    fit = dgm.learn(
        TinyVAE(), bits, method=SVI(elbo="mean_field", epochs=2, batch_size=None, lr=1e-9, kl_weight=weight), seed=0
    )
    assert seen == [1, 2]
    torch.manual_seed(0)
    program = TinyVAE()
    q, p = (pyro.poutine.trace(f).get_trace(bits).nodes["z"]["fn"] for f in (program.guide, program.model))
    kl = torch.distributions.kl_divergence(q, p).mean()
    free, whole = fit.history["objective"]
    assert whole - free == pytest.approx(
        float(kl.detach()), abs=0.15
    )  # the reconstruction term is drawn anew each epoch
    assert float(kl) > 0.3


@pytest.mark.parametrize(
    "options",
    [
        {"elbo": Trace_ELBO(num_particles=2)},
        {"elbo": TraceMeanField_ELBO(), "optim": pyro.optim.ClippedAdam({"lr": 0.05})},
        {"optim": pyro.optim.Adam({"lr": 0.05})},
        {"optim": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01)},
        {"optim": "adamax", "lr": 0.05, "clip": 1.0},
        {"average": 0.9, "lr": 0.05, "schedule": "cosine"},
        {"optim": "adamw", "weight_decay": 0.1, "lr": 0.05, "backend": "python"},
    ],
    ids=["elbo object", "elbo and Pyro optimiser", "Pyro optimiser", "torch optimiser", "clipping", "moving average", "plain Pyro"],
)  # fmt: skip
def test_every_elbo_and_optimiser_object_learns(bits, options):
    fit = dgm.learn(TinyVAE(), bits, valid=bits, method=SVI(epochs=25, batch_size=30, **options), seed=0)
    assert fit.history["valid"].iloc[-1] < fit.history["valid"].iloc[0] - 0.05


def test_a_function_with_pyro_param_learns_and_leaves_the_store_empty(x):
    def model(x):
        mu = pyro.param("mu", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, scale), obs=x)

    fit = dgm.learn(model, x, method=SVI(epochs=400, batch_size=None, lr=0.05), seed=0)
    with torch.no_grad(), fit.program.running():
        trace = pyro.poutine.trace(fit.program.run_model).get_trace(x)
    assert float(trace.nodes["mu"]["value"]) == pytest.approx(float(x.mean()), abs=1e-2)
    assert float(trace.nodes["scale"]["value"]) == pytest.approx(float(x.std(correction=0)), abs=1e-2)
    assert len(pyro.get_param_store()) == 0


def test_infer_with_a_learner_fits_an_autoguide(x):
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    method = SVI(guide="AutoNormal", epochs=500, batch_size=None, lr=0.02, schedule="cosine", particles=4)
    posterior = dgm.infer(model, x, method=method, seed=0)
    assert posterior.draws["mu"].shape[0] == 1
    assert float(posterior.mean("mu")) == pytest.approx(float(x.sum() / (1 + len(x))), abs=0.04)


# -- interruptions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optim", ["adam", "adamax", pyro.optim.Adam({"lr": 1e-2})], ids=["adam", "adamax", "Pyro optimiser"]
)
def test_resuming_gives_the_same_run_bit_for_bit(bits, tmp_path, optim):
    def run(epochs, path):
        torch.manual_seed(0)
        method = SVI(epochs=epochs, batch_size=30, optim=optim, average=0.9, checkpoint=path, checkpoint_seconds=0)
        return dgm.learn(TinyVAE(), bits, valid=bits[:20], method=method, seed=3)

    if isinstance(optim, str):
        whole = run(6, tmp_path / "a")
    else:
        whole, optim = run(6, tmp_path / "a"), pyro.optim.Adam({"lr": 1e-2})
    run(3, tmp_path / "b")
    halves = run(6, tmp_path / "b")
    assert len(halves.history) == 6
    assert halves.history["objective"].tolist() == whole.history["objective"].tolist()
    for one, other in zip(whole.program.parameters(), halves.program.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_kill_in_the_middle_of_a_write_loses_nothing(bits, tmp_path):
    script = textwrap.dedent(f"""
        import os, signal, sys, torch
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        import ppl_dgm as dgm, ppl_dgm.files as files
        from test_svi import TinyVAE
        from ppl_dgm.inference.svi import SVI
        real, writes = os.fsync, []
        def fsync(handle):
            real(handle)
            writes.append(handle)
            if len(writes) == 3:
                os.ftruncate(handle, 100)
                os.kill(os.getpid(), signal.SIGKILL)
        files.os.fsync = fsync
        bits = torch.load({str(tmp_path / "bits.pt")!r})
        torch.manual_seed(0)
        dgm.learn(TinyVAE(), bits, method=SVI(epochs=9, batch_size=30, checkpoint={str(tmp_path / "c")!r}, checkpoint_seconds=0), seed=3)
    """)
    torch.save(bits, tmp_path / "bits.pt")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    torch.manual_seed(0)
    method = SVI(epochs=9, batch_size=30, checkpoint=tmp_path / "c", checkpoint_seconds=0)
    resumed = dgm.learn(TinyVAE(), bits, method=method, seed=3)
    torch.manual_seed(0)
    whole = dgm.learn(TinyVAE(), bits, method=SVI(epochs=9, batch_size=30), seed=3)
    assert resumed.history["epoch"].tolist() == list(range(1, 10))
    assert resumed.history["objective"].tolist() == pytest.approx(whole.history["objective"].tolist(), rel=1e-6)


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_refused_and_kept(bits, tmp_path):
    path = tmp_path / "checkpoint"
    dgm.learn(TinyVAE(), bits, method=SVI(epochs=1, checkpoint=path), seed=0)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(FileError, match="not a whole safetensors file"):
        dgm.learn(TinyVAE(), bits, method=SVI(epochs=2, checkpoint=path), seed=0)
    assert path.stat().st_size == 200


def test_nan_at_the_start_names_the_site(bits):
    class Broken(TinyVAE):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
                logits = self.decoder(z)
                pyro.sample(
                    "x", dist.Bernoulli(logits=torch.where(logits > -9, logits / 0 * 0, logits)).to_event(1), obs=x
                )

    with pytest.raises(ProgramError, match="after site 'z', a Bernoulli got an invalid parameter logits"):
        dgm.learn(Broken(), bits, method=SVI(epochs=2), seed=0)


def test_nan_in_the_middle_names_the_place_and_hands_over_what_was_learned(bits):
    with pytest.raises(NumericalError, match=r"epoch \d+, step \d+.*(parameter|site).*smaller lr") as caught:
        dgm.learn(TinyVAE(), bits, valid=bits, method=SVI(epochs=50, lr=1e25, optim="sgd"), seed=0)
    assert isinstance(caught.value.fit, dgm.Fit)


def test_minibatches_without_the_plate_data_are_refused():
    def model(x):
        mu = pyro.param("mu", torch.tensor(0.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    with pytest.raises(ProgramError, match="no plate named 'data'"):
        dgm.learn(model, torch.randn(100), method=SVI(epochs=1, batch_size=10))


def test_nothing_to_learn_is_said():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(ProgramError, match="no parameters to learn"):
        dgm.learn(model, torch.randn(10), method=SVI(epochs=1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": -1}, "lr must be positive"),
        ({"elbo": "elbow"}, "elbo must be one of"),
        ({"elbo": "renyi"}, "particles must be at least 2"),
        ({"optim": "adamant"}, "optim must be"),
        ({"patience": 0}, "patience must be"),
        ({"average": 1.0}, "average must be"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ProgramError, match=words):
        SVI(**options)


def test_discrete_latents_without_a_guide_are_summed_out(x):
    """A two-component mixture: the objective is the exact log likelihood, with and without naming the ELBO."""

    def model(x):
        loc = pyro.param("loc", torch.tensor([0.0, 2.0]))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("x", dist.Normal(loc[k], 1.0), obs=x)

    mixture = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.3, 0.7])), dist.Normal(torch.tensor([0.0, 2.0]), 1.0)
    )
    for elbo in ("trace", "enum"):
        fit = dgm.learn(model, x, method=SVI(elbo=elbo, epochs=1, batch_size=None), seed=0)
        assert fit.history["objective"][0] == pytest.approx(-float(mixture.log_prob(x).mean()), rel=1e-5)
        assert fit.cost.path == "recorded"


@pytest.mark.parametrize("elbo", ["trace", "enum"])
def test_a_weight_of_what_only_the_model_sums_out_is_refused(x, elbo):
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor([0.0, 2.0]))[k], 1.0), obs=x)

    with pytest.raises(ProgramError, match="k of 'model' is summed out in the model"):
        dgm.learn(model, x, method=SVI(elbo=elbo, epochs=1, batch_size=None, kl_weight=0.5), seed=0)


@pytest.mark.parametrize("elbo", ["enum", TraceEnum_ELBO(max_plate_nesting=1)])
def test_a_guide_whose_sites_are_summed_out_has_its_divergence_weighed(x, elbo):
    """-E_q log p(x | k) + w KL(q, p) in closed form."""
    prior, loc = torch.tensor([0.3, 0.7]), torch.tensor([0.0, 2.0])
    logits = torch.tensor([0.2, -0.4])

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(prior))
            pyro.sample("x", dist.Normal(loc[k], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample(
                "k", dist.Categorical(logits=pyro.param("logits", logits.clone())), infer={"enumerate": "parallel"}
            )

    q = logits.softmax(0)
    fit = (dist.Normal(loc, 1.0).log_prob(x[:, None]) @ q).mean()
    divergence = (q * (q / prior).log()).sum()
    for weight in (0.25, 1.0, 3.0):
        pyro.clear_param_store()
        method = SVI(elbo=elbo, guide=guide, epochs=1, batch_size=None, lr=1e-9, kl_weight=weight)
        found = dgm.learn(model, x, method=method, seed=0).history["objective"][0]
        assert found == pytest.approx(float(weight * divergence - fit), rel=1e-5)


def test_a_site_that_the_guide_leaves_to_the_sum_is_named(x):
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("x", dist.Normal(mu + k, 1.0), obs=x)

    def guide(x):
        pyro.sample("mu", dist.Normal(pyro.param("at", torch.tensor(0.0)), 1.0))

    with pytest.raises(ProgramError, match="k of 'model' is summed out in the model and drawn by no guide"):
        dgm.learn(model, x, method=SVI(elbo="enum", guide=guide, epochs=1, batch_size=None, kl_weight=0.5), seed=0)
