"""Hidden Chow-Liu trees: region graphs found in the data, alone or as a mixture with one tree for each cluster."""

from ppl_dgm.distributions.circuit.regions import RegionGraph

__all__ = ["hidden_tree_regions"]


def hidden_tree_regions(trees: list[list[int]]) -> tuple[RegionGraph, dict[tuple[int, int], int]]:
    """A hidden Chow-Liu tree: p(x) = sum_z prod_d p(z_d | z_parent(d)) p(x_d | z_d); a mixture of several.

    Arguments:
        trees: for each component the parent of each variable, -1 for the root.

    Returns:
        The region graph: leaf c D + d is x_d in component c; each variable but the root has the sum region
        p(. | z_parent); the root of the region graph mixes the components and their roots' states. And the
        position of the sum region of each (component, variable).

    Source: A. Liu and G. Van den Broeck (2021), Tractable regularization of probabilistic circuits.
    """
    count, variables = len(trees), len(trees[0])
    sums: list[tuple[tuple[int, ...], ...]] = []
    tops, places = [], {}
    for c, parents in enumerate(trees):
        children: list[list[int]] = [[] for _ in parents]
        for d, above in enumerate(parents):
            if above >= 0:
                children[above].append(d)
        order = [parents.index(-1)]
        for d in order:
            order += children[d]
        name: dict[int, int] = {}
        for d in reversed(order):
            product = (c * variables + d, *(name[child] for child in children[d]))
            if parents[d] < 0:
                tops.append(product)
            else:
                name[d] = count * variables + len(sums)
                places[c, d] = len(sums)
                sums.append((product,))
    return RegionGraph(variables, tuple(range(variables)) * count, (*sums, tuple(tops))), places
