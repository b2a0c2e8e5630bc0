"""How much a guide's draws say about the example they were drawn for."""

import math

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppl_dgm.inference.learning.particles import random_nodes, row_count, row_dim, row_sums
from ppl_dgm.program import Program

__all__ = ["encoder_information"]

_ROWS = 2**14  # rows of one pass


@torch.no_grad()
def encoder_information(program: Program, batch: tuple) -> Tensor:
    """The mutual information of examples and their latent values under the guide, in nats, [],

        I = mean_i [ log q(z_i | x_i) - log (1/N) sum_j q(z_i | x_j) ],      z_i ~ q(z | x_i),

    with the N examples of the batch in place of all data, so that it is at most log N. All N^2 pairs are evaluated.

    Arguments:
        program: its guide's sites all lie inside the plate `data`; use inside `program.running()`.
        batch: the program's arguments.

    Source: Hoffman and Johnson (2016), ELBO surgery; the estimate is that of He et al. (2019).
    """
    count = row_count(batch)

    def rows(of: Tensor) -> tuple:
        return tuple(a[of] if isinstance(a, Tensor) and a.dim() and len(a) == count else a for a in batch)

    with pyro.validation_enabled(False):
        drawn = poutine.trace(program.run_guide).get_trace(*batch)
        nodes = random_nodes(drawn)
        everyone = torch.arange(count, device=program.device)
        total = torch.zeros((), dtype=torch.float64, device=program.device)
        for some in everyone.split(max(1, _ROWS // count)):
            which, other = some.repeat_interleave(count), everyone.repeat(len(some))
            values = {
                name: node["value"].index_select(row_dim(node) + node["value"].dim(), which)
                for name, node in nodes.items()
            }
            trace = poutine.trace(poutine.condition(program.run_guide, values)).get_trace(*rows(other))
            trace.compute_log_prob()
            log_q = sum(row_sums(trace.nodes[name], len(which)) for name in nodes)
            table = torch.as_tensor(log_q).double().reshape(len(some), count)  # [i, j]
            own = table.gather(1, some[:, None])[:, 0]
            total = total + (own - table.logsumexp(1) + math.log(count)).sum()
    return total / count
