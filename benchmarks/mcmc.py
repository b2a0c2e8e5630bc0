"""Many chains at once against Pyro's NUTS, and against NumPyro and BlackJAX where they are installed.

    python benchmarks/mcmc.py                        # logistic regression, about two minutes on one CPU thread
    python benchmarks/mcmc.py --problem eight-schools
    python benchmarks/mcmc.py --device cuda --chains 1024

Each method runs in processes of its own. Cold: the first run after imports, with everything that it records or compiles; warm:
the second run in the same process. The clock stops before effective sample sizes are computed. Printed are the medians over seeds of
seconds, of the smallest bulk effective sample size (ESS) over all coordinates and of the largest R-hat (ArviZ's, for
every method), and the ratio of ESS per second to Pyro's in the same run. The methods take turns, seed by seed, since
other work on the machine slows all of them.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

DRAWS = {
    "pyro": (1, 500, 500),
    "numpyro": (64, 300, 300),
    "blackjax": (64, 300, 300),
}  # chains, warm-up, draws


# -- the problems, as arrays ---------------------------------------------------------------------------------


def problem(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Logistic regression: 569 x 31 with intercept, standardised. Eight schools: effects and standard errors."""
    if name == "eight-schools":
        return np.array([28.0, 8, -3, 7, -1, 1, 18, 12]), np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    return np.c_[np.ones(len(x)), (x - x.mean(0)) / x.std(0)], y.astype(float)


def pyro_program(name: str) -> Callable[..., None]:
    import pyro
    import pyro.distributions as dist

    def logistic(x, y):
        b = pyro.sample("b", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)

    def schools(y, sigma):
        mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
        with pyro.plate("schools", len(y)):
            t = pyro.sample("t", dist.Normal(y.new_tensor(0.0), 1.0))
            pyro.sample("y", dist.Normal(mu + tau * t, sigma), obs=y)

    return schools if name == "eight-schools" else logistic


# -- the methods: each returns seconds and draws {site: [chain, draw, ...]} of two runs in this process ----------


def ours(options: Any, method: Callable[..., Any]) -> Callable[[int], dict[str, np.ndarray]]:
    import torch

    import ppl_dgm as dgm

    torch.set_num_threads(1)
    args = [torch.tensor(a, dtype=torch.float32, device=options.device) for a in problem(options.problem)]
    program = pyro_program(options.problem)
    kind = method(dgm)

    def run(seed: int) -> dict[str, np.ndarray]:
        post = dgm.infer(program, *args, method=kind, seed=seed)
        return {name: value.cpu().numpy() for name, value in post.draws.items()}

    return run


def numpyro(options: Any) -> Callable[[int], dict[str, np.ndarray]]:
    import jax
    import jax.numpy as jnp
    import numpyro.distributions as dist
    from numpyro import plate, sample
    from numpyro.infer import MCMC, NUTS

    def logistic(x, y):
        b = sample("b", dist.Normal(jnp.zeros(x.shape[1]), 1.0).to_event(1))
        with plate("data", len(y)):
            sample("y", dist.Bernoulli(logits=x @ b), obs=y)

    def schools(y, sigma):
        mu, tau = sample("mu", dist.Normal(0.0, 5.0)), sample("tau", dist.HalfCauchy(5.0))
        with plate("schools", len(y)):
            sample("y", dist.Normal(mu + tau * sample("t", dist.Normal(0.0, 1.0)), sigma), obs=y)

    chains, warmup, draws = DRAWS["numpyro"]
    model = schools if options.problem == "eight-schools" else logistic
    args = [jnp.asarray(a, jnp.float32) for a in problem(options.problem)]
    mcmc = MCMC(
        NUTS(model),
        num_warmup=warmup,
        num_samples=draws,
        num_chains=chains,
        chain_method="vectorized",
        progress_bar=False,
    )

    def run(seed: int) -> dict[str, np.ndarray]:
        mcmc.run(jax.random.PRNGKey(seed), *args)
        return {k: np.asarray(v) for k, v in mcmc.get_samples(group_by_chain=True).items()}

    return run


def blackjax(options: Any) -> Callable[[int], dict[str, np.ndarray]]:
    import blackjax as bj
    import jax
    import jax.numpy as jnp
    import optax

    chains, warmup, draws = DRAWS["blackjax"]
    a, b = (jnp.asarray(v, jnp.float32) for v in problem(options.problem))

    def logistic(w):
        logits = a @ w
        return -0.5 * w @ w + jnp.sum(b * logits - jnp.logaddexp(0.0, logits))

    def schools(u):
        mu, log_tau, t = u[0], u[1], u[2:]
        tau = jnp.exp(log_tau)
        prior = -0.5 * (mu / 5) ** 2 - jnp.log1p((tau / 5) ** 2) + log_tau - 0.5 * t @ t
        return prior - 0.5 * jnp.sum(((a - mu - tau * t) / b) ** 2)

    density, d = (schools, 10) if options.problem == "eight-schools" else (logistic, a.shape[1])

    def whole(key):
        first, second, third = jax.random.split(key, 3)
        start = jax.random.uniform(first, (chains, d), minval=-2.0, maxval=2.0)
        adapt = bj.chees_adaptation(density, chains)
        (states, parameters), _ = adapt.run(
            second, start, 0.5, optax.adam(0.05), warmup
        )  # the best of twelve settings tried
        kernel = jax.vmap(bj.dynamic_hmc(density, **parameters).step)

        def step(states, key):
            states, _ = kernel(jax.random.split(key, chains), states)
            return states, states.position

        return jax.lax.scan(step, states, jax.random.split(third, draws))[1]

    compiled = jax.jit(whole)
    return lambda seed: {"z": np.asarray(compiled(jax.random.PRNGKey(seed))).swapaxes(0, 1)}


METHODS: dict[str, tuple[str, Callable[[Any], Callable[[int], dict[str, np.ndarray]]]]] = {
    "chees": ("ppl_dgm", lambda o: ours(o, lambda dgm: dgm.ChEES(chains=o.chains))),
    "chees-inductor": (
        "ppl_dgm",
        lambda o: ours(o, lambda dgm: dgm.ChEES(chains=o.chains, backend="inductor")),
    ),
    "nuts": ("ppl_dgm", lambda o: ours(o, lambda dgm: dgm.NUTS(chains=o.chains, warmup=300, draws=300))),
    "pyro-nuts": ("pyro", lambda o: ours(o, lambda dgm: dgm.PyroNUTS(chains=1, warmup=500, draws=500))),
    "numpyro-nuts": ("numpyro", numpyro),
    "blackjax-chees": ("blackjax", blackjax),
}


def measure(options: Any) -> None:
    """In a process of its own: two runs, and what came out, as one line of JSON."""
    warnings.simplefilter("ignore")
    import arviz  # imports are not counted, of whatever

    run = METHODS[options.only][1](options)
    rows = []
    for phase in ("cold", "warm"):
        begun = time.perf_counter()
        draws = run(options.seed)
        rows.append({"phase": phase, "seconds": time.perf_counter() - begun})
        data = arviz.convert_to_dataset(draws)
        rows[-1]["ess"] = float(min(arviz.ess(data)[v].min() for v in data.data_vars))
        many = next(iter(draws.values())).shape[0] > 1
        rows[-1]["r_hat"] = float(max(arviz.rhat(data)[v].max() for v in data.data_vars)) if many else float("nan")
    print(json.dumps(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=["logistic", "eight-schools"], default="logistic")
    parser.add_argument("--device", default="cpu", help="of ours and of Pyro")
    parser.add_argument("--chains", type=int, default=64, help="of ours")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--methods", nargs="+", choices=list(METHODS), default=[m for m in METHODS if m != "chees-inductor"]
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        measure(options)
        return
    names = [m for m in options.methods if importlib.util.find_spec(METHODS[m][0])]
    for missing in sorted(set(options.methods) - set(names)):
        print(f"{missing}: {METHODS[missing][0]} is not installed", file=sys.stderr)
    results: dict[str, list[Any]] = {name: [] for name in names}
    for seed in range(options.seeds):
        for name in names:
            command = [
                sys.executable,
                __file__,
                "--only",
                name,
                "--seed",
                str(seed),
                "--problem",
                options.problem,
            ]
            command += ["--device", options.device, "--chains", str(options.chains)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr}")
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
    table = summarise(results)
    if options.json:
        print(
            json.dumps(
                {
                    "problem": options.problem,
                    "device": options.device,
                    "chains": options.chains,
                    "rows": table,
                }
            )
        )
        return
    for row in table:
        ratio = f"{row['ratio']:8.0f} x Pyro" if "ratio" in row else ""
        print(
            f"{row['method']:15s} {row['phase']}  {row['seconds']:7.2f} s  ESS {row['ess']:7.0f}  "
            f"R-hat {row['r_hat']:.4f}  {row['rate']:9.1f} ESS/s  {ratio}"
        )


def summarise(results: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Medians over seeds for each method, cold and warm."""
    table = []
    for name, runs in results.items():
        for phase in (0, 1):
            rows = [run[phase] for run in runs]
            medians = {key: median(row[key] for row in rows) for key in ("seconds", "ess", "r_hat")}
            rate = median(row["ess"] / row["seconds"] for row in rows)
            table.append({"method": name, "phase": ("cold", "warm")[phase], **medians, "rate": rate})
    base = {row["phase"]: row["rate"] for row in table if row["method"] == "pyro-nuts"}
    for row in table:
        if row["phase"] in base:
            row["ratio"] = row["rate"] / base[row["phase"]]
    return table


if __name__ == "__main__":
    main()
