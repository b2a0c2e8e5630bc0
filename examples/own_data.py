"""A table of your own: read a CSV, choose a mixture on the validation split, score it, and write synthetic rows. About 5 seconds.

    python examples/own_data.py [TABLE.csv] [--out runs/own_data]

Without a table it first writes one: the 13 measurements of 178 wines that scikit-learn ships.
"""

import argparse
from pathlib import Path

import ppl_dgm as dgm


def wine(path: Path) -> Path:
    """A CSV file such as you might have."""
    from sklearn.datasets import load_wine

    path.parent.mkdir(parents=True, exist_ok=True)
    load_wine(as_frame=True).data.to_csv(path, index=False)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/own_data"))
    options = parser.parse_args()

    table = dgm.data.read(options.table or wine(options.out / "wine.csv"), seed=0)
    print(table)
    loc, scale = table.train.mean(0), table.train.std(0)  # measurements come in units of their own
    train, valid, test = ((split - loc) / scale for split in (table.train, table.valid, table.test))

    fits = {}
    for components in (1, 2, 3, 4, 6):
        program = dgm.models.MixtureOfGaussians(observed=table.observed, components=components)
        fits[components] = dgm.learn(program, train, valid=valid, seed=0)
        print(f"{components} components: validation {dgm.score(fits[components].program, valid).mean()}")
    best = max(fits, key=lambda k: dgm.score(fits[k].program, valid).mean().value)
    program = fits[best].program
    print(
        f"chosen: {best} components; test {dgm.score(program, test).mean()} nats per row of standardised measurements"
    )

    posterior = dgm.infer(program, test[:3])
    print("responsibilities of three rows:", posterior.exact["k"].probs.round(decimals=3).tolist())

    synthetic = dgm.sample(program, 200, seed=0)["x"] * scale + loc
    dgm.data.write(options.out / "synthetic.csv", synthetic, table.columns)
    fits[best].save(options.out / "run")
    print(f"200 synthetic rows: {options.out / 'synthetic.csv'}; the program: {options.out / 'run'}")


if __name__ == "__main__":
    main()
