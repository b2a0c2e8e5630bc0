"""Messages on a sprinkler and on a hidden Markov chain, printed as they are sent. A few seconds.

    python examples/message_passing.py

The sprinkler has a loop, so that it is summed by elimination and by a junction tree, and belief propagation refuses it; the
chain is a tree, where the messages between its states are those of forward-backward.
"""

import torch

import ppl_dgm as dgm
from ppl_dgm.errors import TaskUnavailable


def sprinkler() -> None:
    net = dgm.models.BayesianNetwork.sprinkler()
    method = dgm.VariableElimination()
    print("The grass is wet. Before anything is computed:")
    print(" ", method.plan(net, grass=1))
    post = dgm.infer(net, grass=1, method=method, seed=0)
    print(post.explain())
    for site in ("cloudy", "sprinkler", "rain"):
        print(f"  P({site} | grass) = {float(post.tables[site][0, 1]):.4f}")
    also = dgm.infer(net, grass=1, rain=1, method=method, seed=0)
    print(
        f"  P(sprinkler | grass, rain) = {float(also.tables['sprinkler'][0, 1]):.4f}: rain explains the wet grass away"
    )
    print(" ", dgm.map_configuration(net, grass=1))
    try:
        dgm.infer(net, grass=1, method=dgm.BeliefPropagation())
    except TaskUnavailable as refusal:
        print(f"Belief propagation: {refusal}")
    alarm = dgm.models.BayesianNetwork.alarm()
    tree = dgm.infer(alarm, john=1, method=dgm.JunctionTree(), seed=0)
    print(f"\nA neighbour calls ({tree.how}):")
    print(tree.explain())
    both = dgm.infer(alarm, john=1, mary=1, method=dgm.JunctionTree(), seed=0)
    print(f"  P(burglary | john) = {float(tree.tables['burglary'][0, 1]):.4f}, "
          f"P(burglary | john, mary) = {float(both.tables['burglary'][0, 1]):.4f}")  # fmt: skip


@torch.no_grad()
def chain() -> None:
    hmm = dgm.models.HiddenMarkovModel(2, values=2)
    hmm.transition_logits.copy_(torch.tensor([[0.7, 0.3], [0.3, 0.7]]).log())
    hmm.emission.logits.copy_(torch.tensor([[0.1, 0.9], [0.8, 0.2]]).log())
    x = torch.tensor([[1, 1, 0]])  # the umbrella: seen, seen, not seen
    states = [f"z_{t}" for t in range(x.shape[1])]
    post = dgm.infer(hmm.unrolled(), x, method=dgm.VariableElimination(order=states), seed=0)
    print("\nThe umbrella, eliminated in the order of time: messages forwards, then backwards.")
    print(post.explain())
    smooth = hmm.forward_backward(x)
    for t, site in enumerate(states):
        print(f"  P(rain on day {t} | x): messages {float(post.tables[site][0, 0]):.4f}, "
              f"forward-backward {float(smooth.states[0, t, 0]):.4f}")  # fmt: skip
    path, log_best = hmm.viterbi(x)
    best = dgm.map_configuration(hmm.unrolled(), x)
    print(f"  Viterbi {path[0].tolist()}, max-product {[int(best.values[site]) for site in states]}, "
          f"log p(x, z*) = {float(log_best):.4f}")  # fmt: skip


if __name__ == "__main__":
    sprinkler()
    chain()
