"""Gradients that every sampler needs on every target, beside published figures; and how the references are made.

    python benchmarks/targets.py                                     # HMC, NUTS and ChEES on the analytic targets, 3 seeds
    python benchmarks/targets.py --targets item-response --methods chees nuts --chains 16
    python benchmarks/targets.py --methods mclmc adjusted-mclmc --draws 2000 --save runs/targets
    python benchmarks/targets.py --posteriordb                       # the eight posteriors of $PPL_DGM_DATA/posteriordb
    python benchmarks/targets.py --write breast-cancer               # makes inference/targets/references/breast-cancer.json

Printed is the median over seeds of how many gradients, summed over chains, were spent when the average of x^2 over all
draws of all chains was within b^2 < 0.01 of the truth for good: with warm-up and, in brackets, without; for the worst
coordinate and for the mean b^2 over coordinates; "-" if never. That is by x^2 alone, as the published figures are; the
column "x and x²" has the worst coordinate by the larger of both, since of symmetric modes only x can tell. Then the worst
b^2 of x and of x^2 at the end, R-hat, and what diagnose() found. A Cauchy variable has no moments: x stands for
its surprise -log p, whose mean is the entropy, and the quantiles of x come third. `--chains`, `--warmup` and `--draws`
replace those of every method; without them each runs with its defaults.

Published figures are gradients without warm-up of one chain, from sampler-benchmarks (2026-03); its item response and
stochastic volatility have other data, the latter 2500 days of the S&P 500, so that orders of magnitude compare.
"""

import argparse
import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import torch

import ppl_dgm as dgm
from ppl_dgm.inference.comparing.measuring import reached
from ppl_dgm.inference.targets import TARGETS, cauchy, find, posteriordb
from ppl_dgm.inference.targets.reference import write_reference
from ppl_dgm.registry import resolve

ANALYTIC = [
    "ill-conditioned-gaussian",
    "banana",
    "funnel",
    "far-modes",
    "cauchy",
    "beta-binomial",
    "linear-regression",
    "normal-gamma",
]

# target -> {method: gradients until b^2 < 0.01 for the worst coordinate, and for the mean over coordinates}
PUBLISHED: dict[str, dict[str, tuple[float, float]]] = {
    "item-response": {"NUTS": (76043, 6944), "MAMS": (45371, 3955), "MCLMC": (21660, 1474)},
    "stochastic-volatility": {"NUTS": (1628519, 29872), "MAMS": (482668, 35783), "MCLMC": (318704, 17788)},
    "cauchy-100": {"NUTS": (2.88e6, 159096), "MAMS": (math.inf, 206803), "MCLMC": (math.inf, math.inf)},
    "funnel": {"NUTS": (math.inf, 26392), "MAMS": (1.43e6, 96921), "MCLMC": (1.97e7, 28098)},
    # condition number 100 and no metric learned by either, so a different problem
    "ill-conditioned-gaussian": {"NUTS": (8105, math.nan), "MCLMC": (978, math.nan)},
}
PUBLISHED["stochastic-volatility-2500"] = PUBLISHED["stochastic-volatility"]

# -- references: long runs in float64 ------------------------------------------------------------------------

NUTS = {"method": "nuts", "chains": 32, "warmup": 600, "draws": 1000, "target_accept": 0.9}
# name -> (options of the long run, sites that are stored; None: all of them)
LONG_RUNS: dict[str, tuple[dict[str, Any], list[str] | None]] = {
    "eight-schools": (NUTS | {"warmup": 1000, "target_accept": 0.99, "draws": 4000}, ["mu", "tau", "theta"]),
    "breast-cancer": (NUTS, None),
    "german-credit": (NUTS, None),
    "sparse-logistic": (
        {"method": "chees", "chains": 64, "warmup": 400, "draws": 800, "target_accept": 0.97},
        None,
    ),
    "item-response": ({"method": "chees", "chains": 32, "warmup": 250, "draws": 350}, None),
    "stochastic-volatility": (
        {"method": "chees", "chains": 32, "warmup": 400, "draws": 2000, "target_accept": 0.95},
        None,
    ),
    "stochastic-volatility-2500": (
        {"method": "chees", "chains": 16, "warmup": 500, "draws": 800, "target_accept": 0.9},
        ["sigma", "mean", "half", "phi", "some_days"],
    ),
    "radon": (NUTS, None),
    "bayesian-mixture": ({"method": "chees", "chains": 32, "warmup": 250, "draws": 450}, ["density", "scale_sum"]),
    "bayesian-ppca": (NUTS, ["mu", "noise", "covariance"]),
    "bayesian-network": ({"method": "chees", "chains": 64, "warmup": 400, "draws": 600}, ["prediction"]),
}


def write(name: str, seed: int) -> None:
    """Run for long, and store the moments."""
    target = find(name)
    options, sites = LONG_RUNS[name]
    chosen = {key: value for key, value in options.items() if key != "method"}
    method = {"nuts": dgm.NUTS, "chees": dgm.ChEES}[options["method"]](dtype=torch.float64, **chosen)
    begun = time.perf_counter()
    posterior = dgm.infer(target.program, *target.args, method=method, seed=seed)
    path = write_reference(name, target.args, posterior, {**options, "seed": seed}, sites)
    made = find(name).made
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB, {time.perf_counter() - begun:.0f} s")
    for key, value in made.items():
        print(f"    {key}: {value}")


# -- samplers on targets -------------------------------------------------------------------------------------


def methods(options: argparse.Namespace) -> dict[str, Any]:
    """{name: algorithm}, with the lengths that were asked for."""
    chosen = {name: resolve(name) for name in options.methods}
    lengths = {k: getattr(options, k) for k in ("chains", "warmup", "draws") if getattr(options, k) is not None}
    for name, method in chosen.items():
        known = {field.name for field in dataclasses.fields(method)}
        chosen[name] = dataclasses.replace(method, **{k: v for k, v in lengths.items() if k in known})
    return chosen


def bench(name: str, options: argparse.Namespace) -> None:
    """One target by all methods, and the published figures."""
    target = cauchy(dim=100) if name == "cauchy-100" else find(name)
    if options.device != "cpu":
        target = target.to(options.device)
    begun = time.perf_counter()
    found = dgm.compare(target, methods=methods(options), seeds=options.seeds)
    print(f"\n## {target.name}: {target.dim} coordinates ({target.hard}), {time.perf_counter() - begun:.0f} s")
    if target.made:
        print(f"reference: largest MCSE / sd {target.made.get('largest_mcse_over_sd')}")
    print(
        "| method | worst coordinate, x² | mean over coordinates, x² | worst, x and x² | b² of x, x² | R-hat | diagnose() |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for method, row in found.table.iterrows():
        if not row["seeds"]:
            print(f"| {method} | {row['failed'][:100]} | | | | | |")
            continue
        runs = found.runs[(found.runs["method"] == method) & (found.runs["failed"] == "")]
        cells = [crossing(found, str(method), which, name.startswith("cauchy")) for which in ("max", "mean")]
        said = sum(bool(findings) for findings in runs["findings"])
        kinds = [f"b2_{kind}_max" for kind in ("x", "square", "quantile")]
        bias = ", ".join(f"{row[kind]:.2g}" for kind in kinds if kind in row)
        cells.append(amount(row["reach_max"]))
        print(f"| {method} | {' | '.join(cells)} | {bias} | {row['r_hat']:.3f} | {finding(runs, said)} |")
    for method, (worst, mean) in PUBLISHED.get(name, {}).items():
        print(f"| {method}, published | ({amount(worst)}) | ({amount(mean)}) | | | | |")
    if options.save:
        Path(options.save).mkdir(parents=True, exist_ok=True)
        found.save(Path(options.save) / f"{name}.json")


def crossing(found: Any, method: str, which: str, entropy: bool) -> str:
    """Gradients until b^2 of x^2 < 0.01, with warm-up and without, medians over seeds; of the entropy where there are no moments."""
    runs = found.runs[(found.runs["method"] == method) & (found.runs["failed"] == "")]
    if not entropy:
        total, sampling = runs[f"reach_square_{which}"].median(), runs[f"reach_square_{which}_sampling"].median()
        return f"{amount(total)} ({amount(sampling)})"
    totals = []
    for seed in runs["seed"]:
        curve = found.curves[(found.curves["method"] == method) & (found.curves["seed"] == seed)]
        totals.append(reached(torch.tensor(curve[f"x_{which}"].values), torch.tensor(curve["gradients"].values)))
    total = float(torch.tensor(totals).median())
    return f"{amount(total)} ({amount(total - runs['warmup_gradients'].median())})"


def finding(runs: Any, said: int) -> str:
    """In how many seeds diagnose() said something, and the first words of what."""
    first = [findings[0][:60] for findings in runs["findings"] if findings]
    return f"{said} of {len(runs)}" + (f": {first[0]}..." if first else "")


def amount(value: float) -> str:
    return "" if math.isnan(value) else "-" if math.isinf(value) else f"{value:,.0f}"


def bench_posteriordb(options: argparse.Namespace) -> None:
    """The eight posteriors whose programs are here: the largest error, R-hat and divergences of each method."""
    folder = posteriordb.default_folder()
    if folder is None:
        raise SystemExit("set PPL_DGM_DATA to the folder that holds posteriordb/")
    print("| posterior | method | largest error (combined standard errors) | largest R-hat | divergences | gradients |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in posteriordb.PROGRAMS:
        target, entry = posteriordb.target(name), posteriordb.read(folder, name)
        for label, method in methods(options).items():
            posterior = dgm.infer(target.program, *target.args, method=method, seed=0)
            table = entry.errors(posterior)
            worst, r_hat = table[["mean", "square"]].abs().max().max(), table["r_hat"].max()
            diverging = posterior.stats["diverging"] if "diverging" in posterior.stats else torch.zeros(1)
            counts = f"{int(diverging.sum())} of {diverging.numel()}"
            print(
                f"| {name} | {label} | {worst:.2f} | {r_hat:.4f} | {counts} | {posterior.cost.gradients:,} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--targets", nargs="+", choices=[*TARGETS, "cauchy-100"], default=ANALYTIC, metavar="NAME", help="which targets"
    )
    parser.add_argument("--methods", nargs="+", default=["hmc", "nuts", "chees"], metavar="NAME", help="which samplers")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--chains", type=int, help="of every method, instead of its default")
    parser.add_argument("--warmup", type=int, help="likewise")
    parser.add_argument("--draws", type=int, help="likewise")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--save", metavar="FOLDER", help="keep each comparison as JSON")
    parser.add_argument("--posteriordb", action="store_true", help="the eight posteriors instead")
    parser.add_argument("--write", nargs="+", choices=list(LONG_RUNS), metavar="NAME", help="make these references")
    parser.add_argument("--seed", type=int, default=0, help="of --write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.write:
        for name in options.write:
            write(name, options.seed)
    elif options.posteriordb:
        bench_posteriordb(options)
    else:
        for name in options.targets:
            bench(name, options)


if __name__ == "__main__":
    main()
