"""Keeps Pyro's ELBO classes from reading values while their loss is recorded."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["short_bernoulli", "tolerant_pyro"]

# modules whose `.item()` only turns a loss into a number to report
_REPORTERS = (
    "pyro.infer.trace",
    "pyro.infer.renyi_elbo",
    "pyro.infer.rws",
    "pyro.infer.csis",
    "pyro.infer.svi",
)


@contextmanager
def tolerant_pyro() -> Iterator[None]:
    """Inside, Pyro computes the same losses and gradients but does not look at them.

    Its ELBO classes read values only to report them or to warn of NaN. Here `torch_item(x)` and `.item()` in
    those classes give the detached tensor, `warn_if_nan` and `warn_if_inf` give their argument, `torch_isnan`
    and `torch_isinf` say no, and the DiCE estimator of `TraceEnum_ELBO` masks outcomes of probability zero
    instead of cutting them out. A loss that was a float is therefore a tensor. Put it *inside* the function
    to record, so that a fallback to plain Pyro returns the same types; validation has to be off too
    (`pyro.validation_enabled(False)`).

    Everything is put back on leaving, after an error as well. The replacement is global: do not use it in one
    thread while another runs Pyro.
    """
    if "pyro" not in sys.modules:
        yield
        return
    import pyro.infer.util as infer_util
    import pyro.util as util

    changes: list[tuple[Any, Any]] = [
        (infer_util.torch_item, lambda x: x.detach() if isinstance(x, Tensor) else x),
        (infer_util._fulldot, _masked_dot(infer_util._fulldot)),
        (util.warn_if_nan, lambda value, *args, **kwargs: value),
        (util.warn_if_inf, lambda value, *args, **kwargs: value),
        (util.torch_isnan, _unless_tensor(util.torch_isnan)),
        (util.torch_isinf, _unless_tensor(util.torch_isinf)),
    ]
    modules = [m for name, m in list(sys.modules.items()) if name.split(".")[0] == "pyro"]
    with ExitStack() as stack:
        for old, new in changes:
            if getattr(old, "_tolerant", False):
                continue  # entered a second time
            new._tolerant = True
            for module in modules:
                for attribute in [key for key, value in vars(module).items() if value is old]:
                    setattr(module, attribute, new)
                    stack.callback(setattr, module, attribute, old)
        if "item" not in torch.Tensor.__dict__:
            _put(stack, "item", _item(torch.Tensor.item))
        if "__bool__" not in torch.Tensor.__dict__:
            _put(stack, "__bool__", _bool(torch.Tensor.__bool__))
        yield


def _put(stack: ExitStack, name: str, method: Any) -> None:
    """Shadows a method that Tensor inherits."""
    setattr(torch.Tensor, name, method)
    stack.callback(delattr, torch.Tensor, name)


def _unless_tensor(original: Callable[[Any], Any]) -> Any:
    return lambda x: False if isinstance(x, Tensor) else original(x)


def _item(original: Any) -> Any:
    def item(self: Tensor) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        return self.detach() if caller.startswith(_REPORTERS) else original(self)

    return item


def _bool(original: Any) -> Any:
    """`if not mask.all()` in `Dice.compute_expectation`: the masked product makes either branch right."""

    def truth(self: Tensor) -> bool:
        caller = sys._getframe(1)
        place = (caller.f_globals.get("__name__"), caller.f_code.co_name)
        return place == ("pyro.infer.util", "compute_expectation") or bool(original(self))

    return truth


def _masked_dot(original: Any) -> Any:
    """The sum of probability times cost, where an infinite cost of probability zero counts nothing."""
    return lambda prob, cost: original(prob, torch.where(prob > 0, cost, torch.zeros_like(cost)))


@contextmanager
def short_bernoulli() -> Iterator[None]:
    """Inside, Bernoulli's log probability is (1 - y) x - log sigmoid(x), negated.

    That is how torch computes binary cross-entropy with logits; its rule for `vmap` is another, of 20 calls.
    """
    module: Any = torch.distributions.bernoulli
    original = module.binary_cross_entropy_with_logits

    def short(logits: Tensor, target: Tensor, reduction: str = "none") -> Tensor:
        return (1 - target) * logits - torch.nn.functional.logsigmoid(logits)

    module.binary_cross_entropy_with_logits = short
    try:
        yield
    finally:
        module.binary_cross_entropy_with_logits = original
