"""Codes under other rows, under the prior, and decoded: the passes that the diagnoses of latents share."""

from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_dgm.conditioning import Unobserve
from ppl_dgm.errors import TaskUnavailable
from ppl_dgm.inference.diagnostics.latent.codes import ROWS, Layout, mean_of, per_row, traces
from ppl_dgm.program import Program
from ppl_dgm.tracing import sites

__all__ = ["PAIRS", "decode", "joint_log_density", "pair_log_density", "prior_codes", "prior_log_density"]

PAIRS = 2**21
"""Numbers in the widest tensor of densities of pairs."""


def _value(node: Any) -> Tensor:
    return node["value"]


def pair_log_density(program: Program, known: Layout, codes: Tensor, x: Tensor) -> Tensor:
    """log q(z_l of code s | x_n, the code's sites before it) for every pair of a code and a row, in nats; inside `at_rest`.

    A guide of one level runs once over the rows, and its distributions take all codes. Any other runs for every pair.

    Arguments:
        program: with an amortised guide.
        known: its latent sites.
        codes: [S, dim].
        x: [N, D], the rows.

    Returns:
        [level, S, N].

    Raises:
        TaskUnavailable: the guide's distributions give densities of their own draws only.
    """
    try:
        if len(known.names) == 1:
            return _one_level(program, known, codes, x)
        return _every_pair(program, known, codes, x)
    except NotImplementedError as error:
        raise TaskUnavailable(
            f"the guide of {program.name!r} knows the density of its own draws alone ({error}), so that its aggregated "
            "posterior cannot be computed; use a posterior with an inverse, such as 'gaussian'."
        ) from error


def _one_level(program: Program, known: Layout, codes: Tensor, x: Tensor) -> Tensor:
    name = known.names[0]
    drawn, _ = traces(program, x)
    fn = drawn.nodes[name]["fn"]
    if fn.batch_shape != (len(x),):
        return _every_pair(program, known, codes, x)
    parts = []
    for some in codes.split(max(1, PAIRS // (len(x) * known.dim))):
        value = some.unflatten(-1, known.shapes[name]) if known.shapes[name] else some.squeeze(-1)
        parts.append(fn.log_prob(value.unsqueeze(1)))  # [s, N]
    return torch.cat(parts)[None]


def _every_pair(program: Program, known: Layout, codes: Tensor, x: Tensor) -> Tensor:
    parts = []
    for some in codes.split(max(1, 4 * ROWS // len(x))):
        rows = x.repeat(len(some), *(1,) * (x.dim() - 1))  # [s * N, D]
        given = known.as_sites(some.repeat_interleave(len(x), 0))
        drawn = poutine.trace(poutine.condition(program.run_guide, given)).get_trace(rows)
        drawn.compute_log_prob()
        levels = [per_row(drawn.nodes[name], len(rows)).unflatten(0, (len(some), len(x))) for name in known.names]
        parts.append(torch.stack(levels))
    return torch.cat(parts, 1)


def prior_codes(program: Program, known: Layout, x: Tensor, n: int) -> Tensor:
    """[n, dim] draws of the latent sites from the model; inside `at_rest`.

    The model runs on rows like x, whose latent sites it draws from its prior as long as no guide's draws are put in.
    """
    parts = []
    for begin in range(0, n, ROWS):
        count = min(ROWS, n - begin)
        story = poutine.trace(program.run_model).get_trace(x[torch.arange(count, device=x.device) % len(x)])
        parts.append(known.joined({name: known.flat(name, _value(story.nodes[name])) for name in known.names}))
    return torch.cat(parts)


def prior_log_density(program: Program, known: Layout, codes: Tensor, x: Tensor) -> Tensor:
    """log p(z) of each code, [n], in nats; inside `at_rest`.

    Arguments:
        program, known: the program and its latent sites.
        codes: [n, dim].
        x: any rows of data, for their shape alone.
    """
    parts = []
    for some in codes.split(ROWS):
        story = poutine.condition(program.run_model, known.as_sites(some))
        trace = poutine.trace(story).get_trace(x[torch.arange(len(some), device=x.device) % len(x)])
        trace.compute_log_prob(lambda name, site: name in known.names)
        parts.append(torch.stack([per_row(trace.nodes[name], len(some)) for name in known.names]).sum(0))
    return torch.cat(parts)


def joint_log_density(program: Program, known: Layout, codes: Tensor, x: Tensor) -> Tensor:
    """log p(x_n, z_n) of each row and its code, [N], in nats; differentiable in the codes where gradients are on.

    Arguments:
        program, known: the program and its latent sites.
        codes: [N, dim].
        x: [N, D].
    """
    story = poutine.trace(poutine.condition(program.run_model, known.as_sites(codes))).get_trace(x)
    story.compute_log_prob()
    terms = [per_row(node, len(x)) for node in sites(story).values() if not (node["infer"] or {}).get("_deterministic")]
    return torch.stack(terms).sum(0)


def decode(program: Program, known: Layout, codes: Tensor, x: Tensor, site: str | None = None) -> Tensor:
    """E[x | code] of each code, [n, *shape]; inside `at_rest`.

    Categories are averaged as numbers; a distribution that does not know its mean gives a draw.

    Arguments:
        program, known: the program and its latent sites.
        codes: [n, dim].
        x: any rows of data, for their shape alone: what the model observes is drawn anew.
        site: the observed site; the program's main one by default.
    """
    name = site or (program.site if program.site in known.observed else known.observed[0])
    rows = x[torch.arange(len(codes), device=x.device) % len(x)]
    story = poutine.condition(Unobserve()(program.run_model), known.as_sites(codes))
    node = poutine.trace(story).get_trace(rows).nodes[name]
    inner = node["fn"]
    while isinstance(inner, torch.distributions.Independent):
        inner = inner.base_dist
    if isinstance(inner, torch.distributions.Categorical):
        return inner.probs @ torch.arange(inner.probs.shape[-1], device=x.device).to(inner.probs)
    return mean_of(node["fn"], _value(node))
