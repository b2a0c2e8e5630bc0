"""Items of a shop: learn a VAE for a table of mixed columns, make a synthetic table, judge it by four report cards, walk its latents.

    python examples/item_vae.py --out runs/items

About a minute and a half on one core. One category and 30 numbers become a code of 16 numbers; the divergence counts
half (beta = 0.5), which keeps more of each item in its code, but lets the codes stray from the prior: the report says how far.
"""

import argparse
from pathlib import Path

import torch

import ppl_dgm as dgm
from ppl_dgm.evaluate import report_cards
from ppl_dgm.inference.diagnostics import latent


def learn(items: dgm.data.Dataset, beta: float, epochs: int) -> dgm.Program:
    columns = list(dgm.data.ITEM_COLUMNS.values())
    torch.manual_seed(0)  # the initial weights
    vae = dgm.models.VAE(
        observed=len(columns), latent=16, hidden=64, likelihood="mixed", likelihood_options={"columns": columns},
        encoder_dropout=0.0, decoder_dropout=0.0,
    )  # fmt: skip
    method = dgm.SVI(elbo="mean_field", epochs=epochs, batch_size=100, lr=3e-3, kl_weight=lambda _: beta)
    return dgm.learn(vae, items.train, method=method, seed=0).program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/items"))
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--beta", type=float, default=0.5)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    items = dgm.data.items()
    vae = learn(items, arguments.beta, arguments.epochs)
    score = dgm.score(vae, items.test, method=dgm.ImportanceWeighted(draws=200), seed=0)
    assert items.entropy is not None and items.labels is not None
    print(f"test: {score.mean()} nats per item; the truth has {-items.entropy:.2f}")

    synthetic = dgm.sample(vae, 2000, seed=0)["x"]
    independent = torch.stack([column[torch.randperm(len(column))] for column in items.train.T], 1)
    for name, table in {"VAE": synthetic, "columns drawn one by one": independent}.items():
        cards = report_cards(items.train, items.test, table, dgm.data.ITEM_COLUMNS)
        print(f"\n{name}\n{cards}")
        cards.plot(arguments.out / f"cards_{name.split()[0]}.png")

    near = latent.neighbours(vae, items.test, items.train, 5)
    share = near.agreement(items.labels["train"], items.labels["test"])
    print(f"\n{share:.0%} of an item's 5 nearest neighbours by the angle between codes share its category")
    walk = latent.interpolate(vae, items.test[:3], items.test[3:6], path="spherical")
    walk.plot(arguments.out / "walk.png")
    print(walk)
    report = dgm.diagnose_latents(vae, items, gap_rows=20)
    report.plot(arguments.out)
    print(f"\n{report}\n\npictures in {arguments.out}")


if __name__ == "__main__":
    main()
