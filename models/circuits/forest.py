"""Decision forests as circuits: the cells that a classifier's trees cut, with a distribution of all variables in each."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_dgm.errors import ProgramError

from .counted import CountedCircuit

__all__ = ["forest_circuit", "learn_forest"]


def forest_circuit(forest: Any, x: Tensor, values: int, target: int) -> CountedCircuit:
    """A generative forest from a fitted scikit-learn forest or tree: the even mixture of its trees.

    A question "x_v <= t?" is a sum of two sides, weighted by how many rows went there; a leaf is a product of all
    variables, the target among them, each restricted to the values that lead to the leaf. The class given all features
    is the forest's own vote, weighted by how probable the features are in each tree; features may be missing.

    Arguments:
        forest: a fitted RandomForestClassifier, ExtraTreesClassifier or DecisionTreeClassifier of x without the target.
        x: [n, D] categories 0 to K - 1, which are counted.
        values: K.
        target: the variable that the forest predicts.

    Raises:
        ProgramError: the forest is not fitted to D - 1 features, or predicts several outputs.

    Source: A. Correia, R. Peharz and C. de Campos (2020), Joints in random forests.
    """
    trees = list(getattr(forest, "estimators_", [forest]))
    features = [v for v in range(x.shape[1]) if v != target]
    if not hasattr(trees[0], "tree_") or trees[0].n_features_in_ != len(features) or trees[0].tree_.n_outputs != 1:
        raise ProgramError(
            f"forest is {type(forest).__name__}, but a fitted forest of trees with {len(features)} features (all "
            "variables but the target) and one output was expected."
        )
    made = CountedCircuit(values)
    rows = x.cpu().numpy()
    tops = [_write(made, tree.tree_, rows, features) for tree in trees]
    if len(tops) > 1:
        made.sum(tops, [1.0] * len(tops))
    return made


def learn_forest(
    x: Tensor, values: int, target: int = -1, trees: int = 10, min_rows: int | None = None, max_depth: int | None = None
) -> CountedCircuit:
    """Fit a random forest that predicts one variable from the others, and make it a circuit.

    Arguments:
        x: [n, D] categories 0 to K - 1.
        values: K.
        target: the variable to predict; negative: counted from the last.
        trees: how many.
        min_rows: in a leaf; None: one in a hundred rows, and at least 10.
        max_depth: questions above a leaf.

    Raises:
        ProgramError: an option is out of range.
    """
    from sklearn.ensemble import RandomForestClassifier

    width = x.shape[1]
    min_rows = max(10, len(x) // 100) if min_rows is None else min_rows
    if not -width <= target < width or width < 2 or trees < 1 or min_rows < 1:
        raise ProgramError(
            f"forest: target {target} must be one of at least two variables ({width} here), trees {trees} and min_rows "
            f"{min_rows} at least 1."
        )
    target %= width
    rows = x.cpu().numpy()
    seed = int(torch.randint(2**31 - 1, ()))
    forest = RandomForestClassifier(
        trees, min_samples_leaf=min_rows, max_depth=max_depth, random_state=seed, n_jobs=1
    ).fit(np.delete(rows, target, 1), rows[:, target])
    return forest_circuit(forest, x, values, target)


def _write(made: CountedCircuit, tree: Any, rows: np.ndarray, features: list[int]) -> str:
    """One tree from its root down; returns its root's name."""
    columns, values = rows.shape[1], np.arange(made.values)

    def grow(node: int, here: np.ndarray, possible: np.ndarray) -> str:
        if tree.children_left[node] < 0:
            counts = [np.bincount(here[:, v], minlength=made.values) for v in range(columns)]
            return made.product([made.input(v, counts[v], possible[v]) for v in range(columns)])
        variable = features[tree.feature[node]]
        branches, sizes = [], []
        for child, side in (
            (tree.children_left[node], values <= tree.threshold[node]),
            (tree.children_right[node], values > tree.threshold[node]),
        ):
            cell = possible.copy()
            cell[variable] &= side
            if cell[variable].any():
                part = here[side[here[:, variable]]]
                branches.append(grow(child, part, cell))
                sizes.append(len(part))
        return made.sum(branches, sizes) if len(branches) > 1 else branches[0]

    return grow(0, rows, np.ones((columns, made.values), dtype=bool))
