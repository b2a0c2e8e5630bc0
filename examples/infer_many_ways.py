"""Who fails where, and does it say so? Ten samplers on three posteriors that are hard to sample. About five minutes.

    python examples/infer_many_ways.py [--methods nuts chees] [--targets funnel]

A cell is the largest b² (squared bias over variance) of the averages of x, x² and, on the Cauchy, of being below a
quantile, over all coordinates; a hundred independent draws have 0.01. Behind it stands how many findings
`Posterior.diagnose` has. The runs are short, and the same options serve all three targets.
"""

import argparse
import warnings

import ppl_dgm as dgm
from ppl_dgm.inference.targets import find, squared_bias

SAMPLERS = {
    "hmc": dgm.HMC(chains=32, warmup=150, draws=150),
    "nuts": dgm.NUTS(chains=16, warmup=150, draws=300, max_depth=6),
    "chees": dgm.ChEES(chains=32, warmup=150, draws=150, max_steps=32),
    "mala": dgm.MALA(chains=32, warmup=150, draws=150),
    "random-walk": dgm.RandomWalk(chains=32, warmup=300, draws=300),
    "meads": dgm.MEADS(chains=64, warmup=150, draws=100),
    "mclmc": dgm.MCLMC(chains=32, warmup=150, draws=200),
    "adjusted-mclmc": dgm.AdjustedMCLMC(chains=32, warmup=150, draws=150),
    "parallel-tempering": dgm.ParallelTempering(chains=8, warmup=200, draws=300, temperatures=8),
    "tempered-smc": dgm.TemperedSMC(particles=1000),
}
TARGETS = ("funnel", "far-modes", "cauchy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # the findings say it

    print(f"{'':20s}" + "".join(f"{name:>24s}" for name in options.targets))
    for name in options.methods:
        cells = []
        for target in map(find, options.targets):
            post = dgm.infer(target.program, *target.args, method=SAMPLERS[name], seed=0)
            worst, found = max(squared_bias(post, target).values()), len(post.diagnose())
            cells.append(f"{worst:.3f}, {found} finding{'s' if found != 1 else ' '}")
        print(f"{name:20s}" + "".join(f"{cell:>24s}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
