"""Run a Python function of tensors once, keep the tensor graph, replay it without handlers or autograd.

`record` runs the function under a dispatch mode that sees every ATen call, those of autograd's backward
included; `passes` folds what cannot change and removes what is not needed; `replay` turns the rest into
straight-line Python (or hands it to inductor). `recorded` wraps a function with a small cache of such graphs
and falls back to the function itself where it cannot be recorded. `tolerant_pyro` keeps Pyro's ELBO classes
from reading values on the way; inside `NaNForSingular` a matrix without a factor is NaN, not an error.

    >>> import torch
    >>> weight = torch.ones(3, requires_grad=True)
    >>> def loss_and_gradient(x):
    ...     loss = (weight * x).pow(2).sum()
    ...     return loss, torch.autograd.grad(loss, weight)[0]
    >>> step = recorded(loss_and_gradient, live=[weight])
    >>> step(torch.arange(3.0))
    (tensor(5.), tensor([0., 2., 8.]))
    >>> step(torch.arange(3.0))
    (tensor(5.), tensor([0., 2., 8.]))
    >>> step.path
    'recorded'
"""

from ppl_dgm.graphs.factorising import NaNForSingular
from ppl_dgm.graphs.recorded import Recorder, record, recorded, value_and_gradient
from ppl_dgm.graphs.replay import Graph
from ppl_dgm.graphs.tape import NotRecordable
from ppl_dgm.graphs.tolerant import short_bernoulli, tolerant_pyro

__all__ = [
    "Graph",
    "NaNForSingular",
    "NotRecordable",
    "Recorder",
    "record",
    "recorded",
    "short_bernoulli",
    "tolerant_pyro",
    "value_and_gradient",
]
