"""Pyro's autoguides by name, each as a guide that every verb can run."""

import inspect
from collections.abc import Callable
from typing import Any

import pyro.infer.autoguide
from pyro import poutine
from pyro.distributions.transforms import affine_autoregressive, iterated
from pyro.infer.autoguide import AutoContinuous, AutoGuide, AutoMessenger, AutoNormalizingFlow
from torch import nn

from .errors import ProgramError

__all__ = ["MessengerGuide", "autoguide", "autoguides", "make_guide"]

_ABSTRACT = (AutoGuide, AutoContinuous, AutoMessenger)
_BY_HAND = {
    "AutoGuideList": "combines other guides; make it yourself, guide = AutoGuideList(model); guide.append(AutoNormal(poutine.block(model, "
    "expose=['mu']))), and pass the object",
    "AutoCallable": "wraps a function of yours; pass that function as the guide",
}


class MessengerGuide(nn.Module):
    """One of Pyro's guides that run the model themselves (AutoNormalMessenger and its kin), as a plain guide.

    What the model observes and computes on the way is hidden, as it is no part of the guide's distribution.

    Arguments:
        guide: the guide.
    """

    def __init__(self, guide: AutoMessenger) -> None:
        super().__init__()
        self.messenger = guide

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Draws the latent sites."""
        with poutine.block(hide_fn=lambda msg: msg["type"] == "sample" and msg["is_observed"]):
            return self.messenger(*args, **kwargs)


def _flow(model: Callable) -> AutoGuide:
    """A normalising flow of two affine autoregressive layers, for want of a transform of the user's."""
    return AutoNormalizingFlow(model, lambda dim: iterated(2, affine_autoregressive, dim))


def autoguides() -> dict[str, Callable[[Callable], Any]]:
    """{name: what makes it from a model} of the autoguides that can be had by name."""
    found = {
        name: kind
        for name, kind in vars(pyro.infer.autoguide).items()
        if inspect.isclass(kind)
        and issubclass(kind, (AutoGuide, AutoMessenger))
        and kind not in _ABSTRACT
        and name not in _BY_HAND
    }
    return {**found, "AutoNormalizingFlow": _flow}


def autoguide(name: str, model: Callable) -> Any:
    """One of Pyro's autoguides over a model.

    Arguments:
        name: such as "AutoMultivariateNormal". "AutoNormalizingFlow" has two affine autoregressive layers; for another transform, hand in
            `functools.partial(AutoNormalizingFlow, init_transform_fn=...)` as the guide.
        model: any Pyro model.

    Raises:
        ProgramError: the name is unknown, or stands for a guide that needs more than a model.
    """
    if name in _BY_HAND:
        raise ProgramError(f"guide {name!r} {_BY_HAND[name]}.")
    known = autoguides()
    if name not in known:
        raise ProgramError(f"guide {name!r} is not one of Pyro's autoguides: {', '.join(sorted(known))}.")
    return _plain(known[name](model))


def make_guide(guide: Any, model: Callable) -> Any:
    """A guide from what a user hands in: an autoguide's name, its class or another function of the model, or the guide itself.

    A class (`AutoNormal`) or a `functools.partial` of one (`partial(AutoNormal, init_scale=0.01)`) is applied to the model.
    """
    if isinstance(guide, str):
        return autoguide(guide, model)
    maker = getattr(guide, "func", guide)
    if inspect.isclass(maker) and issubclass(maker, (AutoGuide, AutoMessenger)):
        return _plain(guide(model))
    return _plain(guide)


def _plain(guide: Any) -> Any:
    return MessengerGuide(guide) if isinstance(guide, AutoMessenger) else guide
