"""What can go wrong inside a VAE, and how it is told: a code that says nothing, holes in the prior, pictures from elsewhere.

    python examples/diagnose_vae.py                    # about a minute on one core
    python examples/diagnose_vae.py --out runs/ills    # with figures

On the 8x8 digits:

- A decoder that sees the pixels before each pixel needs no code: learned by the plain ELBO its posterior collapses. Some
  nats that cost nothing (`FreeBits`), or a slow warm-up of the divergence, keep the code alive.
- The standard prior on two latent variables draws codes where no digit is; the VampPrior, made of posteriors, fewer.
- Negatives of digits are flagged as foreign by their low density and by typicality. The pictures that the decoder finds most
  probable are more probable than any digit: a test of the likelihood lets them pass, typicality does not.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

import ppl_dgm as dgm
from ppl_dgm.inference.diagnostics import latent
from ppl_dgm.text import table

STEPS: dict[str, Any] = {"lr": 1e-2, "batch_size": 50, "average": 0.95}
METHODS: dict[str, Any] = {
    "ELBO": dgm.SVI(elbo="mean_field", epochs=12, patience=12, **STEPS),
    "FreeBits": dgm.FreeBits(nats=0.5, epochs=12, patience=12, **STEPS),
    "ELBO, slow warm-up": dgm.SVI(
        elbo="mean_field", epochs=20, patience=20, kl_weight=lambda epoch: min(1.0, epoch / 18), **STEPS
    ),
}
PRIORS: dict[str, dict[str, Any]] = {
    "standard": {"prior": "standard"},
    "VampPrior": {"prior": "vamp", "prior_options": {"components": 64}},
}


def strong_decoder(digits: dgm.data.Dataset, method: Any) -> dgm.models.VAE:
    """A VAE whose decoder could do without its code."""
    torch.manual_seed(0)  # the initial weights
    decoder = {"likelihood": "autoregressive", "likelihood_options": {"components": 3}}
    vae = dgm.models.VAE(observed=64, values=17, latent=8, hidden=64, depth=1, **decoder)
    dgm.learn(vae, digits, method=method, seed=0)
    return vae


def two_latents(digits: dgm.data.Dataset, prior: str, seed: int) -> dgm.models.VAE:
    """A VAE whose codes can be drawn on paper."""
    torch.manual_seed(seed)
    vae = dgm.models.VAE(observed=64, values=17, latent=2, likelihood="discretised-logistic", **PRIORS[prior])
    method = dgm.SVI(
        elbo="mean_field", epochs=30, lr=3e-3, batch_size=50, average=0.99, schedule="cosine",
        patience=30, kl_weight=lambda epoch: min(1.0, epoch / 15),
    )  # fmt: skip
    dgm.learn(vae, digits, method=method, seed=seed)
    return vae


def most_probable(vae: Any, n: int) -> torch.Tensor:
    """The picture with the most probable level at every pixel, for codes drawn from the prior, [n, D]."""
    with torch.no_grad():
        given = vae.likelihood(vae.decode(dgm.sample(vae, n, seed=0)["z"]))
    return given.base_dist.probs.argmax(-1)


def foreign(digits: dgm.data.Dataset, vae: dgm.models.VAE) -> latent.Novelty:
    """Digits and other pictures, five at a time."""
    sets = {"digits": digits.test, "negatives": 16 - digits.test, "most probable": most_probable(vae, len(digits.test))}
    method = dgm.ImportanceWeighted(draws=32)
    return latent.novelty(vae, digits.train, digits.valid, sets, batch=5, method=method)


def show_collapse(digits: dgm.data.Dataset, out: Path | None) -> None:
    lines, sentences = [], []
    for name, method in METHODS.items():
        vae = strong_decoder(digits, method)
        units = dgm.diagnose_latents(vae, digits, gap_rows=0).units
        score = dgm.score(vae, digits.valid, method=dgm.ImportanceWeighted(draws=64), seed=0).mean()
        kl, active = float(units.levels["kl"].sum()), f"{units.active} of {len(units.table)}"
        lines.append([name, f"{kl:.2f}", active, f"{-score.value:.2f} ± {score.stderr:.2f}"])
        sentences.append(f"{name}: {units.verdict}")
        if out is not None:
            units.plot(out / f"units, {name}.png")
    print("An autoregressive decoder, 8 latent variables\n")
    print(table(["learned by", "KL, nats", "active units", "-log p, validation"], lines))
    print("\n" + "\n".join(sentences))


def show_holes(digits: dgm.data.Dataset, seeds: int, out: Path | None) -> dgm.models.VAE:
    """Returns a VAE with a VampPrior."""
    lines, sentences, kept = [], [], {}
    for name in PRIORS:
        for seed in range(seeds):
            vae = kept[name] = two_latents(digits, name, seed)
            report = dgm.diagnose_latents(vae, digits, gap_rows=0)
            assert report.prior is not None and report.surgery is not None
            away = report.surgery["marginal divergence"]
            lines.append([name, str(seed), f"{report.prior.share:.1%}", f"{away:.2f}"])
            if seed == 0:
                sentences.append(f"{name}: {report.prior.verdict}")
                if out is not None:
                    report.prior.plot(out / f"prior, {name}.png")
    print("\nTwo latent variables\n")
    print(table(["prior", "seed", "prior's codes in holes", "KL[q(z), p(z)], nats"], lines))
    print("\n" + "\n".join(sentences))
    return kept["VampPrior"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a folder for figures")
    parser.add_argument("--seeds", type=int, default=3, help="of each prior")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
    digits = dgm.data.digits()
    show_collapse(digits, arguments.out)
    vae = show_holes(digits, arguments.seeds, arguments.out)
    found = foreign(digits, vae)
    print(f"\nDigits and other pictures, five at a time\n\n{found}")
    if arguments.out is not None:
        found.plot(arguments.out / "novelty.png")
        print(f"\nfigures in {arguments.out}")


if __name__ == "__main__":
    main()
