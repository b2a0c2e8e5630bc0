"""Truth and data drawn together from a program, and the program made to observe those data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_dgm.conditioning import Unobserve
from ppl_dgm.densities.coordinates import base_of, is_deterministic
from ppl_dgm.densities.joint import unchecked
from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.program import Program, as_program
from ppl_dgm.registry import resolve
from ppl_dgm.results import Posterior

__all__ = ["Replication", "Simulator"]


@dataclass(frozen=True)
class Replication:
    """One truth and its data: {site: value} of latent and of observed sites."""

    latent: dict[str, Tensor]
    observed: dict[str, Tensor]


class Simulator:
    """Draws (truth, data) from a program and infers the truth back from the data.

    The data reach the algorithm as the user's own would: in the argument that held the observations, where there is
    one. Where there is none, or the program makes something else of that argument too (a prior centred on the data,
    lagged values), the program runs with the arguments as they were given and its observed sites are put in place.

    Arguments:
        program, args, kwargs: as in `infer`.
        guide: a guide to use instead of the program's.
        observe: {observed site: value} to the positional arguments, instead of looking for them.

    Raises:
        TaskUnavailable: the program observes nothing, or cannot be drawn from.
    """

    def __init__(
        self,
        program: Any,
        args: tuple,
        kwargs: dict[str, Any],
        guide: Any = None,
        observe: Callable[[dict[str, Tensor]], tuple] | None = None,
    ) -> None:
        self.program: Program = as_program(program, guide)
        self.args, self.kwargs = args, kwargs
        self.observe = observe
        self.substitutes: bool | None = None  # whether changed arguments alone make the program observe the data
        with torch.no_grad(), self.program.running():
            trace = self._trace(self.program.run_model)
        self.holders = self._find(trace)
        self.parameters = {name: value.detach().clone() for name, value in self.program.state_dict().items()}

    def _trace(self, story: Callable[..., Any], args: tuple | None = None, kwargs: dict | None = None) -> Any:
        args, kwargs = (self.args, self.kwargs) if args is None or kwargs is None else (args, kwargs)
        try:
            return poutine.trace(story).get_trace(*args, **kwargs)
        except NotImplementedError as error:
            reason = str(error).strip().split("\n")[0] or "a flat prior"
            raise TaskUnavailable(
                f"{self.program.name!r} cannot be drawn from ({reason}); calibration needs proper priors."
            ) from error

    def _find(self, trace: Any) -> dict[str, list[int | str]]:
        """{observed site: the arguments that hold its value}; by identity, else by equality."""
        observed = {}
        for name, node in trace.nodes.items():
            if node["type"] != "sample" or is_deterministic(node) or type(base_of(node["fn"])).__name__ == "_Subsample":
                continue
            if type(base_of(node["fn"])).__name__ == "Unit":
                raise TaskUnavailable(
                    f"factor {name!r} of {self.program.name!r} changes the density by a term that cannot be drawn from, "
                    "so truths cannot be simulated; write it as the distribution of a site."
                )
            if node["is_observed"]:
                observed[name] = node["value"]
        if not observed:
            raise TaskUnavailable(
                f"{self.program.name!r} observes nothing for these arguments, so there is no posterior to calibrate; pass "
                "observations of the right shapes (their values do not matter)."
            )
        places: dict[int | str, Any] = dict(enumerate(self.args))
        places.update(self.kwargs)
        tensors = {place: value for place, value in places.items() if isinstance(value, Tensor)}
        found: dict[str, list[int | str]] = {}
        for name, value in observed.items():
            same = [place for place, arg in tensors.items() if arg is value]
            equal = [p for p, arg in tensors.items() if arg.shape == value.shape and bool((arg == value).all())]
            found[name] = same or equal[:1]
        return found

    def draw(self, count: int) -> list[Replication]:
        """So many truths with their data, at once where vmap can follow the program."""
        from ppl_dgm.tasks import _stacked, evaluating

        with torch.no_grad(), self.program.running(), evaluating(self.program):
            story = Unobserve()(self.program.run_model)
            trace = self._trace(story)
            latent = [
                name for name, node in trace.nodes.items()
                if node["type"] == "sample" and name not in self.holders and not is_deterministic(node)
            ]  # fmt: skip
            values = _stacked(story, count, {}, self.args, self.kwargs)
        return [
            Replication(
                {name: values[name][i] for name in latent if name in values},
                {name: values[name][i] for name in self.holders},
            )
            for i in range(count)
        ]

    def infer(self, replication: Replication, method: Any, seed: int) -> Posterior:
        """The posterior given the data of a replication; parameters that a learner changes are put back."""
        from ppl_dgm.tasks import infer

        args, kwargs = self._arguments(replication)
        if self.substitutes is None:
            self.substitutes = self.observe is not None or self._suffices(replication, args, kwargs)
        program = self.program if self.substitutes else _Observing(self, replication)
        method = method or self.program.default_method("infer")
        try:
            return infer(program, *args, method=resolve(method) if method is not None else None, seed=seed, **kwargs)
        finally:
            with torch.no_grad():
                for name, value in self.program.state_dict().items():
                    if name in self.parameters:
                        value.copy_(self.parameters[name])

    def _arguments(self, replication: Replication) -> tuple[tuple, dict[str, Any]]:
        """The model's arguments with the data in place of the observations."""
        if self.observe is not None:
            made = self.observe(dict(replication.observed))
            if not isinstance(made, tuple):
                raise ProgramError(
                    f"calibrate: observe must return the model's positional arguments as a tuple, not a {type(made).__name__}."
                )
            return made, self.kwargs
        args, kwargs = list(self.args), dict(self.kwargs)
        for name, places in self.holders.items():
            for place in places:
                if isinstance(place, int):
                    args[place] = replication.observed[name].to(args[place].dtype)
                else:
                    kwargs[place] = replication.observed[name].to(kwargs[place].dtype)
        return tuple(args), kwargs

    def _suffices(self, replication: Replication, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Whether the program with these arguments has the density of the one whose sites are put in place."""
        if not all(self.holders.values()):
            return False
        with torch.no_grad(), self.program.running(), unchecked():
            held = poutine.condition(self.program.run_model, replication.latent)
            changed = self._trace(held, args, kwargs)
            placed = self._trace(poutine.condition(held, replication.observed))
            for name in [*replication.latent, *replication.observed]:
                one, other = changed.nodes[name], placed.nodes[name]
                if name in replication.observed and not torch.equal(
                    one["value"], other["value"].to(one["value"].dtype)
                ):
                    return False
                first, second = (node["fn"].log_prob(node["value"]) for node in (one, other))
                if first.shape != second.shape or not torch.allclose(first, second, equal_nan=True):
                    return False
        return True


class _Observing(Program):
    """A program that observes given values whatever its arguments say; its guide reads the arguments."""

    def __init__(self, simulator: Simulator, replication: Replication) -> None:
        super().__init__()
        object.__setattr__(self, "_simulator", simulator)
        object.__setattr__(self, "_replication", replication)
        self.inner = simulator.program

    @property
    def name(self) -> str:
        return self._simulator.program.name

    @property
    def has_guide(self) -> bool:
        return self._simulator.program.has_guide

    def model(self, *args: Any, **kwargs: Any) -> Any:
        simulator = self._simulator
        story = poutine.condition(simulator.program.run_model, self._replication.observed)
        return story(*simulator.args, **simulator.kwargs)

    def guide(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        return self._simulator.program.run_guide(*args, **kwargs)
