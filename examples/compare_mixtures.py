"""One Bayesian mixture, five ways to its posterior, one table. About a minute on one CPU core.

    python examples/compare_mixtures.py

Three groups of points on a line, with priors on weights, means and precisions. Collapsed Gibbs integrates the parameters
out, Gibbs draws everything in turn, NUTS and the variational fit sum the assignments out, and EM climbs to the posterior
mode. The labels of components have no meaning, so every run's draws are put in one order first; the note on labels says
how many had to be. Look for b² of x: the three samplers agree to below about 0.01, what a hundred independent draws
would give; the variational fit and EM are a few hundredths off, and EM, a point, has nothing to say of widths (b² of x²).
"""

import torch

import ppl_dgm as dgm


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    centres, widths = torch.tensor([-6.0, 0.0, 5.0]), torch.tensor([1.0, 0.6, 1.2])
    k = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), 120, replacement=True, generator=generator)
    x = (centres[k] + widths[k] * torch.randn(120, generator=generator)).unsqueeze(1)
    program = dgm.models.BayesianMixture(observed=1, components=3)
    methods = {
        "collapsed Gibbs": dgm.models.CollapsedMixtureGibbs(chains=16, warmup=10, draws=40),
        "Gibbs": dgm.Gibbs(chains=4, warmup=30, draws=250),
        "NUTS, k summed out": dgm.NUTS(chains=4, warmup=75, draws=200),
        "variational": dgm.SVI(
            guide=program.variational(x=x), elbo="enum", particles=4, epochs=300, lr=0.03, batch_size=None, average=0.97
        ),
        "EM": dgm.models.MixtureEM(),
    }
    reference = dgm.models.CollapsedMixtureGibbs(chains=64, warmup=10, draws=60)
    print(dgm.compare(program, x, methods=methods, reference=reference, seeds=1))


if __name__ == "__main__":
    main()
