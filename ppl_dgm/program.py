"""Program: a generative model, its guide and its parameters, as one object."""

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from .errors import ProgramError

__all__ = ["Answer", "FunctionProgram", "Program", "as_program"]


@dataclass(frozen=True)
class Answer:
    """What a program answers to one task: a line of its capability card.

    Attributes:
        kind: how exact: `exact`, `lower_bound`, `upper_bound`, `estimate`, `asymptotic`, `approximate`, `unnormalised`, `unavailable`.
        how: the method in words, e.g. "importance weighting, K = 512".
        passes: how often the busiest network runs for one example (`None`: not counted).
        depth: how many of those runs must wait for one another (the serial depth).
    """

    kind: str
    how: str
    passes: int | None = 1
    depth: int | None = 1


class _OwnParameters(Messenger):
    """Answers `pyro.param` from the program itself, so that Pyro's global store is never touched."""

    def __init__(self, owner: "Program") -> None:
        super().__init__()
        self.owner = owner

    def _pyro_param(self, msg: Any) -> None:
        name, initial = msg["name"], msg["args"][1] if len(msg["args"]) > 1 else None
        if msg["done"]:
            return
        if isinstance(initial, nn.Parameter):  # a module's parameter: the program (or the caller) holds it already
            msg["value"], msg["done"] = initial, True
            return
        key = "p:" + name.replace(".", "|")  # module names may not contain dots
        held = next((m.free_parameters for m in self.owner.modules() if isinstance(m, Program) and key in m.free_parameters), None)
        if held is None:
            if initial is None or _is_pyro_param(self.owner, name):
                return  # an attribute of a PyroModule, which holds its own value, or a name without a value: left to Pyro
            held = self.owner.free_parameters
            constraint = msg["kwargs"].get("constraint", constraints.real)
            start = initial() if callable(initial) else initial
            with torch.no_grad():
                held[key] = nn.Parameter(transform_to(constraint).inv(start.detach()).clone())
        if initial is not None:
            self.owner.constraints[key] = msg["kwargs"].get("constraint", constraints.real)
        value = transform_to(self.owner.constraints.get(key, constraints.real))(held[key])
        value.unconstrained = weakref.ref(held[key])
        msg["value"], msg["done"] = value, True


def _is_pyro_param(owner: nn.Module, name: str) -> bool:
    """Whether `name` is a `PyroParam` attribute of one of the owner's modules."""
    *path, last = name.split(".")
    for module in owner.modules():
        for part in path:
            module = module._modules.get(part) if module is not None else None  # type: ignore[assignment]
        if last in (getattr(module, "_pyro_params", None) or ()):
            return True
    return False


class Program(PyroModule):
    """A generative model with its guide.

    Subclasses write the generative story in `model` and, where there is one, the approximate posterior in `guide`:

        class Coin(Program):
            def model(self, x=None, n=1):
                p = pyro.sample("p", dist.Beta(1.0, 1.0))
                with pyro.plate("data", n if x is None else len(x)):
                    return pyro.sample("x", dist.Bernoulli(p), obs=x)

    `x` given: the observations are conditioned on; `x` None: `n` of them are drawn. The plate over observations is named `data`.
    The verbs (`sample`, `score`, `infer`, `learn`) do the rest. A program that knows a better answer than the general one says so by
    defining any of these:

    - `log_density(x) -> Score`: the answer of `score`;
    - `posterior(x) -> {site: Distribution}`: the exact posterior, batch shape [len(x)], used by `infer`;
    - `simulate(n, given=None) -> {site: Tensor}`: how to sample, where running `model` forward is not the way;
    - `default_method(task)`: the algorithm that a verb uses when the caller names none.

    Attributes:
        config: the constructor's arguments, from which a run folder rebuilds the program.
        site: name of the main observed site.
        observed: number of observed dimensions D, for checking data (`None`: unchecked).
        support: constraint on one entry of the data (`None`: unchecked).
        values: number of categories of one entry (`None`: not categorical).
    """

    site: str = "x"
    observed: int | None = None
    support: constraints.Constraint | None = None
    values: int | None = None
    config: dict[str, Any]
    free_parameters: nn.ParameterDict

    def __new__(cls, *args: Any, **kwargs: Any) -> "Program":
        self = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(self, *args, **kwargs)
            bound.apply_defaults()
            config = dict(list(bound.arguments.items())[1:])
        except TypeError:  # copying makes an empty object first; a wrong call fails in __init__ with Python's own message
            config = {}
        object.__setattr__(self, "config", config)
        return self

    def __init__(self) -> None:
        super().__init__()
        self.free_parameters = nn.ParameterDict()  # the values of pyro.param statements in plain functions
        self.constraints: dict[str, constraints.Constraint] = {}
        self.register_buffer("_where", torch.empty(0), persistent=False)

    # -- the story ----------------------------------------------------------------------------------------------------

    def model(self, *args: Any, **kwargs: Any) -> Any:
        """The generative story."""
        raise ProgramError(f"program {self.name!r} has no model: define a method model(self, x=None, n=1).")

    guide: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    # -- what the verbs need ------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Name in tables and messages."""
        return type(self).__name__

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.parameters(), self._where).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the parameters."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), self._where.dtype)

    @property
    def has_guide(self) -> bool:
        """Whether there is an approximate posterior."""
        return self.guide is not None

    @property
    def draws_n(self) -> bool:
        """Whether `model` takes `n`, that is draws n examples in one run."""
        return "n" in inspect.signature(self.model).parameters

    def default_method(self, task: str) -> Any:
        """The algorithm for `task` ("score", "infer", "learn") when the caller names none; None leaves it to the verb."""
        return None

    def answers(self) -> dict[str, Answer]:
        """The capability card: one `Answer` per task."""
        return {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run model and guide with this program's own parameters; nothing reaches Pyro's global parameter store."""
        with pyro.get_param_store().scope(), _OwnParameters(self):
            yield

    def run_model(self, *args: Any, **kwargs: Any) -> Any:
        """The model as a plain callable, with `PyroSample` attributes alive. Use inside `running`."""
        with self._pyro_context:
            return self.model(*args, **kwargs)

    def run_guide(self, *args: Any, **kwargs: Any) -> Any:
        """The guide as a plain callable. Use inside `running`."""
        if self.guide is None:
            raise ProgramError(f"program {self.name!r} has no guide; pass guide=... (a function, or an autoguide's name such as 'AutoNormal').")
        with self._pyro_context:
            return self.guide(*args, **kwargs)

    def load_parameters(self, state: dict[str, Tensor]) -> None:
        """Like `load_state_dict`, and also creates the `pyro.param` values of plain functions that have not run yet.

        Raises:
            ProgramError: names that do not match, with the first of them.
        """
        prefix = "free_parameters."
        for name, value in state.items():
            if name.startswith(prefix) and name not in self.state_dict():
                self.free_parameters[name.removeprefix(prefix)] = nn.Parameter(value.clone())
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ProgramError(f"these weights do not belong to this {self.name}: {reason}") from None


class FunctionProgram(Program):
    """Any callable Pyro model, with or without a guide, as a Program.

    Arguments:
        model: a function or module with `pyro.sample` statements.
        guide: a function or module over the same latent sites, or the name of one of Pyro's autoguides, e.g. "AutoNormal".
        name: name in tables (default: the function's own).
    """

    def __init__(self, model: Callable, guide: Any = None, name: str | None = None) -> None:
        super().__init__()
        if not callable(model):
            raise ProgramError(f"a program must be callable, but it is a {type(model).__name__}: pass the function itself, not what it returns.")
        if isinstance(guide, str):
            guide = _autoguide(guide, model)
        self._name = name or getattr(model, "__name__", type(model).__name__)
        self._draws_n = False
        object.__setattr__(self, "_model", model)
        object.__setattr__(self, "_guide", guide)
        # held in a list, so that modules which Pyro has run before keep their own names
        self.parts = nn.ModuleList([part for part in (model, guide, getattr(model, "__self__", None)) if isinstance(part, nn.Module)])

    @property
    def name(self) -> str:
        return self._name

    @property
    def draws_n(self) -> bool:
        return self._draws_n

    @property
    def guide(self) -> Any:  # type: ignore[override]
        return self._guide

    def model(self, *args: Any, **kwargs: Any) -> Any:
        return self._model(*args, **kwargs)


def _autoguide(name: str, model: Callable) -> AutoGuide:
    kinds = {k: v for k, v in vars(pyro.infer.autoguide).items() if inspect.isclass(v) and issubclass(v, AutoGuide)}
    if name not in kinds:
        raise ProgramError(f"guide {name!r} is not one of Pyro's autoguides: {', '.join(sorted(kinds))}.")
    story = model.run_model if isinstance(model, Program) else model
    return kinds[name](story)


def as_program(program: Any, guide: Any = None) -> Program:
    """A Program from what a user hands in: a Program, a function or a module, and perhaps another guide.

    Raises:
        ProgramError: it is not callable, or the autoguide's name is unknown.
    """
    if isinstance(program, Program) and guide is None:
        return program
    if isinstance(program, Program):
        return _with_guide(program, guide)
    return FunctionProgram(program, guide)


def _with_guide(program: Program, guide: Any) -> Program:
    """The same program, with its own parameters, under another guide."""
    if isinstance(guide, str):
        guide = _autoguide(guide, program)
    other = FunctionProgram(program.run_model, guide, program.name)
    other._draws_n = program.draws_n
    for attribute in ("site", "observed", "support", "values"):
        setattr(other, attribute, getattr(program, attribute))
    return other
