"""The simple programs, each with a line of what it shows, in numbers. About ten seconds.

python examples/teaching.py [--diagrams FOLDER]
"""

import argparse
import math
from pathlib import Path

import pyro.distributions as dist
import torch

import ppl_dgm as dgm
from ppl_dgm import models as zoo

TEXT = "the cat sat on the mat and the dog sat on the log; a cat and a dog ran to the log and sat on the mat. " * 6


def show(title, *lines):
    print(f"\n{title}")
    for line in lines:
        print(f"  {line}")


def heights():
    truth = dist.Normal(172.0, 8.0)
    torch.manual_seed(0)
    x = truth.sample((25, 1))
    program = dgm.learn(zoo.Heights(), x).program
    prior = zoo.BayesianHeights(centre=170.0, strength=1.0, shape=2.0, rate=100.0)
    post = dgm.infer(prior, x, seed=0)
    low, high = torch.quantile(post.draws["mean"].flatten(), torch.tensor([0.05, 0.95])).tolist()
    show(
        "Heights: 25 draws from N(172, 8^2)",
        f"maximum likelihood: mean {program.mean.item():.1f}, deviation {program.variance.sqrt().item():.2f}",
        f"posterior ({post.how}): 90 % of it has the mean in [{low:.1f}, {high:.1f}]",
        f"three new people: {[round(v, 1) for v in dgm.sample(program, 3, seed=1)['x'][:, 0].tolist()]}",
    )


def coins():
    x = torch.tensor([[1], [1], [1]])
    post = dgm.infer(zoo.BayesianCoinTosses(), x, seed=0)
    show(
        "CoinTosses: heads three times in a row",
        f"maximum likelihood says {dgm.learn(zoo.CoinTosses(), x).program.heads.item():.3f}, "
        f"Laplace's rule of succession {post.exact['heads'].mean.item():.3f}",
    )


def ladder():
    rows = []
    for name, step in zoo.ladder().items():
        rung = zoo.Rung(name)
        rows.append(f"{name:22}{step.below or '-':13}{step.kind:11}{step.how:53}{rung.gap():.0e}")
    show("The ladder: rung, the one below, the step, and the largest |p by the step - p in closed form|", *rows)


def gaussian():
    few, many = (zoo.central_limit(dist.Exponential(1.0), terms, seed=0) for terms in (1, 100))
    cauchy = zoo.central_limit(dist.Cauchy(0.0, 1.0), 100, seed=0)
    jaynes = zoo.maximum_entropy(torch.arange(1.0, 7.0), [lambda x: x], [4.5])
    show(
        "Why the Gaussian",
        f"distance of sums from N(0, 1): 1 exponential {few.distance:.3f}, 100 of them {many.distance:.3f}, "
        f"100 Cauchy {cauchy.distance:.3f}",
        "entropies at variance one: " + ", ".join(f"{name} {value:.3f}" for name, value in zoo.entropies().items()),
        f"Jaynes' die, mean 4.5, and otherwise nothing known: {[round(p, 3) for p in jaynes.probabilities.tolist()]}",
    )


def sequences():
    chain = zoo.MarkovChain(12, 3)
    transition = torch.tensor([[0.8, 0.15, 0.05], [0.2, 0.6, 0.2], [0.1, 0.3, 0.6]])
    chain.assign(torch.ones(3) / 3, transition)
    x, held_out = (dgm.sample(chain, 300, seed=seed)["x"] for seed in (0, 1))
    rows = []
    for program in (
        zoo.IIDSequence(12, 3), zoo.MarkovChain(12, 3), zoo.MarkovChain(12, 3, homogeneous=False),
        zoo.MarkovChain(12, 3, order=3, pseudo_count=None), zoo.ChainTable(12, 3, pseudo_count=None),
    ):  # fmt: skip
        fit = dgm.learn(program, x, valid=held_out[:100])
        name = f"{program.name}, order {program.order}{'' if program.homogeneous else ', every step its own'}"
        rows.append(
            f"{name:45}{program.free_count:8} parameters, held out {dgm.score(fit.program, held_out[100:]).mean()}"
        )
    pi = chain.stationary()
    show(
        "Sequences of a Markov chain: memory against cost (nats)",
        *rows,
        f"stationary: {[round(p, 3) for p in pi.tolist()]}",
    )


def ngrams():
    cut = int(0.8 * len(TEXT))
    rows = []
    for n in (1, 2, 3, 5):
        program = zoo.NGram.of_text(TEXT[:cut], n, valid=TEXT[cut:])
        score = program.score_text(TEXT[cut:])
        rows.append(f"n = {n}: perplexity {score.perplexity:5.2f}, {score.bits_per_character:.2f} bits a character: ")
        rows[-1] += repr(program.generate(40, "the ", temperature=0.7, seed=0))
    show("NGram: characters", *rows)


def classifiers():
    torch.manual_seed(0)
    y = torch.randint(0, 2, (600,))
    x = torch.randn(600, 2) @ torch.tensor([[1.0, 0.6], [0.0, 0.8]]) * (1 + 1.5 * y[:, None]) + 1.5 * y[:, None]
    few = torch.where(torch.arange(300) < 12, y[:300], -1)
    rows: list[str] = []
    learned = zoo.QuadraticDiscriminant(2)
    for program in (zoo.NaiveBayes(["gaussian"] * 2), zoo.LinearDiscriminant(2), zoo.QuadraticDiscriminant(2)):
        learned = dgm.learn(program, x[:300], y[:300]).program
        right = (learned.decide(x[300:]).label == y[300:]).float().mean().item()
        rows.append(f"{program.name:22} right {right:.3f}, log p(x, y) {dgm.score(learned, x[300:], y[300:]).mean()}")
        partly = dgm.learn(type(program)(**program.config), x[:300], few, seed=0).program
        right = (partly.decide(x[300:]).label == y[300:]).float().mean().item()
        rows[-1] += f"; with 12 labels of 300 right {right:.3f}"
    far = learned.decide(torch.tensor([[60.0, -40.0]]))
    typical = learned.decide(x[300:]).log_joint
    rows.append(
        f"far from all data p(y | x) = {far.probability.item():.6f}, but log p(x, y) = {far.log_joint.item():.0f}, "
        f"where the least of the data is {typical.min().item():.1f}"
    )
    noisy = zoo.adversarial_noise(learned, x[300:], 0.3)
    fall = (noisy.log_density_before - noisy.log_density_after)[noisy.flipped].mean().item()
    rows.append(
        f"a change of length 0.3 can flip {noisy.flipped.float().mean():.0%} of decisions; log p(x) falls by {fall:.2f}"
    )
    drawn = dgm.sample(learned, 1000, given={"y": 1}, seed=0)["x"].mean(0)
    rows.append(f"x ~ p(x | y = 1): mean {[round(v, 2) for v in drawn.tolist()]}")
    show("Classifiers that can also generate (where the form is wrong, examples without labels may mislead)", *rows)


def algebra():
    one, other = dist.Normal(-1.0, 1.0), dist.Normal(2.0, 0.5)
    mixture, product = zoo.mixture_of([one, other], [0.4, 0.6]), zoo.product_of([one, other], [0, 0])
    both = dgm.infer(product, seed=0)
    split = zoo.total_variance([0.4, 0.6], [-1.0, 2.0], [1.0, 0.25])
    squashed = zoo.transformed(one, torch.distributions.transforms.SigmoidTransform())
    chain = zoo.composed(one, lambda z: dist.Normal(2 * z, 1.0))
    at = torch.tensor([0.5])
    show(
        "The algebra of programs: N(-1, 1) and N(2, 0.5^2)",
        f"mixture:     p(0.5) = {dgm.score(mixture, at).value.exp().item():.4f} ({dgm.score(mixture, at).kind}); "
        f"variance {split.within.item():.2f} within + {split.between.item():.2f} between",
        f"product:     score {dgm.score(product, at[:, None]).kind}; N({both.exact['x'].mean.item():.2f}, "
        f"{both.exact['x'].variance.item():.2f}), log Z = {both.log_evidence.value.item():.4f} ({both.kind})",
        f"transformed: sigmoid, p(0.5) = {dgm.score(squashed, at).value.exp().item():.4f} ({dgm.score(squashed, at).kind})",
        f"composed:    p(0.5) = {dgm.score(chain, at).value.exp().item():.4f} ({dgm.score(chain, at).kind}), "
        f"N(-2, 5) has {math.exp(dist.Normal(-2.0, 5**0.5).log_prob(at).item()):.4f}",
    )


def draw(folder):
    folder.mkdir(parents=True, exist_ok=True)
    zeros = torch.zeros
    for program, args in (
        (zoo.Heights(), (zeros(5, 1),)), (zoo.BayesianHeights(), (zeros(5, 1),)), (zoo.MarkovChain(4, 3), (zeros(5, 4),)),
        (zoo.ChainTable(4, 3), (zeros(5, 4),)), (zoo.GaussianClassifier(2), (zeros(5, 2),)),
    ):  # fmt: skip
        dgm.diagram(program, *args).save(folder / f"{program.name}.svg")
    print(f"\ndiagrams in {folder}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diagrams", type=Path, help="a folder for plate diagrams")
    folder = parser.parse_args().diagrams
    for part in (heights, coins, ladder, gaussian, sequences, ngrams, classifiers, algebra):
        part()
    if folder is not None:
        draw(folder)
