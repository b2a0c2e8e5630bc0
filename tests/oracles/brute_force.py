"""Random discrete networks as plain Pyro programs, and their answers by listing every configuration."""

from itertools import product

import pyro
import pyro.distributions as dist
import torch


def random_network(seed: int, tree: bool, size: int = 6) -> tuple[list, dict]:
    """Parents by number and tables in float64: a tree (or forest), or a graph with up to three parents each."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(2, 4, (size,), generator=generator).tolist()
    parents = []
    for child in range(size):
        most = min(child, 1 if tree else 3)
        count = int(torch.randint(0 if child < 2 else 1, most + 1, (), generator=generator)) if most else 0
        parents.append(sorted(torch.randperm(child, generator=generator)[:count].tolist()))
    tables = {}
    for child in range(size):
        shape = [values[p] for p in parents[child]] + [values[child]]
        tables[child] = torch.rand(shape, generator=generator, dtype=torch.float64).add(0.05)
        tables[child] /= tables[child].sum(-1, keepdim=True)
    return parents, tables


def program_of(parents, tables, observed=()):
    """A Pyro program with sites z0, z1, ...; those in `observed` take their values from the argument."""

    def story(seen=None):
        found = {}
        for child, above in enumerate(parents):
            fn = dist.Categorical(tables[child][tuple(found[p] for p in above)])
            obs = torch.tensor(seen[child]) if child in observed else None
            found[child] = pyro.sample(f"z{child}", fn, obs=obs)

    return story


def listed(parents, tables, seen):
    """{configuration: probability} of all variables, those in `seen` held fixed."""
    ranges = [[seen[c]] if c in seen else range(tables[c].shape[-1]) for c in range(len(parents))]
    joint = {}
    for z in product(*ranges):
        p = 1.0
        for child, above in enumerate(parents):
            p *= float(tables[child][(*tuple(z[a] for a in above), z[child])])
        joint[z] = p
    return joint


def marginal(joint, child, values):
    total = sum(joint.values())
    return torch.tensor([sum(p for z, p in joint.items() if z[child] == v) / total for v in range(values)]).double()
