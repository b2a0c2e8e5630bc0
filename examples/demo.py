"""The main job, from data to answers: learn seven programs on digits, score them on images never seen, infer eight schools.

    make demo            # or: python examples/demo.py --out runs/demo

At most 4 minutes on two cores. Prints one table and writes the pictures with an index.html that shows them.
"""

import argparse
import html
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import ppl_dgm as dgm
from ppl_dgm import plots
from ppl_dgm.cards import count_passes
from ppl_dgm.evaluate import ChowLiuTree, IndependentCategorical
from ppl_dgm.text import table

GREY = {"observed": 64, "values": 17}
# name -> constructor's arguments, and the grey level from which a pixel counts as ink (for binary programs).
# The slowest come first, so that two processes end at about the same time.
PROGRAMS: dict[str, tuple[dict[str, Any], int | None]] = {
    "DiffusionChain": (GREY, None),
    "TopDownVAE": (GREY, None),
    "VAE": ({**GREY, "latent": 16}, None),
    "RBM": ({"observed": 64, "hidden": 16}, 8),
    "MixtureOfCategoricals": ({**GREY, "components": 30, "pseudo_count": 1.0, "prior": "marginal"}, None),
    "MixtureOfGaussians": ({"observed": 64, "components": 10}, None),
    "Circuit": (GREY, None),
}
NOTES = {
    "MixtureOfGaussians": "a density of grey levels as real numbers: not comparable with probabilities of images",
    "RBM": "binary images (ink where grey >= 8): compare with the baselines in this row only",
}


def splits(ink: int | None) -> tuple[Any, list[Tensor]]:
    digits = dgm.data.digits()
    return digits, [x if ink is None else (x >= ink).to(x.dtype) for x in (digits.train, digits.valid, digits.test)]


def learn_and_score(name: str, out: Path) -> dict[str, Any]:
    """One program: learned on train, every choice on valid, scored once on test."""
    torch.set_num_threads(1)
    arguments, ink = PROGRAMS[name]
    digits, (train, valid, test) = splits(ink)
    torch.manual_seed(0)  # the initial weights
    program = getattr(dgm.models, name)(**arguments)
    fit = dgm.learn(program, train, valid=valid, seed=0)
    fit.save(out / name)
    begun = time.perf_counter()
    score = dgm.score(program, test, seed=0)
    seconds = time.perf_counter() - begun
    x = dgm.sample(program, 64, seed=0)[program.site]
    plots.save(plots.images(x, digits.shape, values=2 if ink else 17, title=f"{name}: 64 samples"), out / f"{name}.png")
    if len(fit.history) > 1:
        plots.save(plots.curves(fit.history, f"{name}: {fit.objective}"), out / f"{name}-history.png")
    mean = score.mean()
    return {
        "program": name, "kind": mean.kind, "nats": -mean.value, "stderr": mean.stderr, "how": score.how, "baselines": baselines(ink),
        "passes": count_passes(program) or program.answers()["sample"].passes,
        "learn_seconds": fit.cost.seconds, "score_seconds": seconds, "note": NOTES.get(name, ""),
        "curve": len(fit.history) > 1,
    }  # fmt: skip


def baselines(ink: int | None) -> list[float]:
    """Nats per test image of independent categoricals and of a Chow-Liu tree, their pseudo-counts chosen on validation."""
    _, (train, valid, test) = splits(ink)
    values = 2 if ink else 17
    return [
        -float(kind.fit(train, values, valid=valid).log_prob(test).mean())
        for kind in (IndependentCategorical, ChowLiuTree)
    ]


def schools(y: Tensor, sigma: Tensor) -> None:
    """Eight schools, non-centred (Rubin 1981)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(sigma)):
        t = pyro.sample("t", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * t)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def infer_schools(out: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    posterior = dgm.infer(schools, y, sigma, method=dgm.NUTS(target_accept=0.95), seed=0)
    posterior.save(out / "schools")
    return {"summary": posterior.summary(var_names=["mu", "tau"]).to_string(), "findings": posterior.diagnose()}


def report(rows: list[dict[str, Any]], answers: dict[str, Any], seconds: float, out: Path) -> None:
    header = (
        "program",
        "kind of score",
        "nats per image",
        "± se",
        "independent",
        "Chow-Liu",
        "passes",
        "learn s",
        "score s",
    )
    lines = [
        (r["program"] + (" *" if r["note"] else ""), r["kind"].replace("_", " "), f"{r['nats']:.2f}", f"{r['stderr']:.2f}",
         *(f"{b:.2f}" for b in r["baselines"]), r["passes"], f"{r['learn_seconds']:.0f}", f"{r['score_seconds']:.1f}")
        for r in rows
    ]  # fmt: skip
    print(table(header, lines))
    for row in rows:
        if row["note"]:
            print(f"* {row['program']}: {row['note']}")
    print(
        "447 test images, -log p(x), lower is better; a lower bound on log p(x) is an upper bound here. ± se: over images."
    )
    print(f"\neight schools, by the No-U-Turn sampler\n{answers['summary']}")
    print("findings:", "; ".join(answers["findings"]) or "none")
    (out / "report.json").write_text(json.dumps({"rows": rows, "schools": answers, "seconds": seconds}, indent=1))
    (out / "index.html").write_text(page(header, lines, rows, answers))
    print(f"\n{seconds:.0f} s; pictures: {out / 'index.html'}")


def page(header: tuple, lines: list[tuple], rows: list[dict[str, Any]], answers: dict[str, Any]) -> str:
    def cells(tag: str, values: tuple) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(v))}</{tag}>" for v in values) + "</tr>"

    figures = []
    for row in rows:
        history = f'<img src="{row["program"]}-history.png" alt="learning curve">' if row["curve"] else ""
        about = html.escape(
            f"{row['program']}: {row['nats']:.2f} ± {row['stderr']:.2f} nats per image ({row['kind'].replace('_', ' ')}; {row['how'] or 'closed form'})"
        )
        note = f"<p>{html.escape(row['note'])}.</p>" if row["note"] else ""
        figures.append(f'<h2>{about}</h2>{note}<img src="{row["program"]}.png" alt="samples">{history}')
    style = (
        "body{font:16px/1.5 sans-serif;max-width:75em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
        "td,th{padding:.2em .8em;text-align:right}tr+tr{border-top:1px solid #ccc}"
        "td:first-child,th:first-child,td:nth-child(2),th:nth-child(2){text-align:left}"
        "img{max-width:48%;vertical-align:top}h2{font-size:1.1em}"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>ppl_dgm: digits</title><style>{style}</style>'
        "<h1>Seven programs, one table</h1><p>447 test images of 8x8 digits; -log p(x) in nats per image, lower is better.</p>"
        f"<table>{cells('th', header)}{''.join(cells('td', line) for line in lines)}</table>{''.join(figures)}"
        f"<h2>Eight schools</h2><pre>{html.escape(answers['summary'])}</pre></html>"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = {pool.submit(learn_and_score, name, options.out): name for name in PROGRAMS}
        inference = pool.submit(infer_schools, options.out)
        done = {}
        for job in as_completed(jobs):
            done[jobs[job]] = job.result()
            row = done[jobs[job]]
            print(
                f"[{time.perf_counter() - begun:4.0f} s] {row['program']}: {row['nats']:.2f} nats per image", flush=True
            )
        answers = inference.result()
    order = ["MixtureOfGaussians", "MixtureOfCategoricals", "VAE", "TopDownVAE", "RBM", "DiffusionChain", "Circuit"]
    report([done[name] for name in order], answers, time.perf_counter() - begun, options.out)


if __name__ == "__main__":
    main()
