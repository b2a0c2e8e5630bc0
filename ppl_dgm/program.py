"""Program: a generative model, its guide and its parameters, as one object."""

import inspect
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from .autoguides import make_guide
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
        self.known: set[int] = set()

    def _pyro_param(self, msg: Any) -> None:
        name, initial = msg["name"], msg["args"][1] if len(msg["args"]) > 1 else None
        if msg["done"] or msg.get("owned"):
            return
        if isinstance(
            initial, nn.Parameter
        ):  # of a module, which the program holds, or which a plain function closes over
            self._adopt(name, initial)
            msg["value"], msg["done"] = initial, True
            return
        key = _key(name)
        holder = next((m for m in self.owner.modules() if isinstance(m, Program) and key in _free(m)), None)
        if holder is None:
            if _is_pyro_param(self.owner, name):
                msg["owned"] = True  # a program that runs around this one must not take it for its own
                return  # left to Pyro: an attribute of one of our modules, which holds its own value
            if (
                initial is None
            ):  # left to Pyro: an attribute of a module that a plain function closes over, or a name without a value
                store = pyro.get_param_store()
                self._adopt(name, store._params.get(name), store._constraints.get(name, constraints.real))
                return
            holder = self.owner
            constraint = msg["kwargs"].get("constraint", constraints.real)
            start = initial() if callable(initial) else initial
            with torch.no_grad():
                _free(holder)[key] = nn.Parameter(transform_to(constraint).inv(start.detach()).clone())
        if initial is not None:
            holder.constraints[key] = msg["kwargs"].get("constraint", constraints.real)
        value = transform_to(holder.constraints.get(key, constraints.real))(_free(holder)[key])
        value.unconstrained = weakref.ref(_free(holder)[key])
        msg["value"], msg["done"] = value, True

    def _adopt(self, name: str, parameter: Any, constraint: constraints.Constraint = constraints.real) -> None:
        """Make a module's parameter one of the program's, so that it is learned and saved; loaded values go into the module."""
        if parameter is None or id(parameter) in self.known:
            return
        self.known = {id(p) for p in self.owner.parameters()}
        if id(parameter) in self.known:
            return
        key, owner = _key(name), self.owner
        if key in owner.loaded:
            owner.loaded.discard(key)
            with torch.no_grad():
                parameter.copy_(_free(owner)[key])
        _free(owner)[key], owner.constraints[key] = parameter, constraint
        self.known.add(id(parameter))


def _free(program: "Program") -> nn.ParameterDict:
    """`program.free_parameters` without the `pyro.module` statement that reading a module's attribute makes while it runs."""
    return program._modules["free_parameters"]  # type: ignore[return-value]


def _key(name: str) -> str:
    return "p:" + name.replace(".", "|")  # names of parameters in modules may not contain dots


def _is_pyro_param(owner: nn.Module, name: str) -> bool:
    """Whether `name` is Pyro's name of a `PyroParam` attribute of one of the owner's modules."""
    last = name.rpartition(".")[-1]
    held = (
        m for m in owner.modules() if isinstance(m, PyroModule) and last in (getattr(m, "_pyro_params", None) or ())
    )
    return any(module._pyro_get_fullname(last) == name for module in held)


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
    - `start(x)`: where gradient learning begins, from something simple about the training data;
    - `check_arguments(x, ...)`: looks once at all positional arguments of `score`, `infer` and `learn`, and returns them;
    - `default_method(task)`: the algorithm that a verb uses when the caller names none.

    Attributes:
        config: the constructor's arguments, from which a run folder rebuilds the program.
        site: name of the main observed site.
        observed: number of observed dimensions D, for checking data (`None`: unchecked).
        support: constraint on one entry of the data (`None`: unchecked).
        values: number of categories of one entry (`None`: not categorical).
        allows_missing: whether the data may have holes, marked by NaN or -1.
    """

    site: str = "x"
    observed: int | None = None
    support: constraints.Constraint | None = None
    values: int | None = None
    allows_missing: bool = False
    config: dict[str, Any]
    free_parameters: nn.ParameterDict

    def __new__(cls, *args: Any, **kwargs: Any) -> "Program":
        self = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(self, *args, **kwargs)
            bound.apply_defaults()
            config = dict(list(bound.arguments.items())[1:])
        except (
            TypeError
        ):  # copying makes an empty object first; a wrong call fails in __init__ with Python's own message
            config = {}
        object.__setattr__(self, "config", config)
        return self

    def __init__(self) -> None:
        super().__init__()
        self.free_parameters = nn.ParameterDict()  # the values of pyro.param statements in plain functions
        self.constraints: dict[str, constraints.Constraint] = {}
        self.loaded: set[str] = set()  # of those, the ones that came from a file and have not been used yet
        self.register_buffer("_where", torch.empty(0), persistent=False)

    # -- the story ----------------------------------------------------------------------------------------------------

    def model(self, *args: Any, **kwargs: Any) -> Any:
        """The generative story."""
        raise ProgramError(f"program {self.name!r} has no model: define a method model(self, x=None, n=1).")

    guide: Any  # optional: a method guide(self, x=None, n=1), or an attribute such as AutoNormal(self.model)

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
        return getattr(self, "guide", None) is not None

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
        with pyro.get_param_store().scope(), _OwnParameters(self), warnings.catch_warnings():
            # a frozen parameter is no mistake here: programs do not live in the store
            warnings.filterwarnings("ignore", message=".*not registered in the param store because requires_grad=False")
            yield

    def run_model(self, *args: Any, **kwargs: Any) -> Any:
        """The model as a plain callable, with `PyroSample` attributes alive. Use inside `running`."""
        with self._pyro_context:
            return self.model(*args, **kwargs)

    def run_guide(self, *args: Any, **kwargs: Any) -> Any:
        """The guide as a plain callable. Use inside `running`."""
        if not self.has_guide:
            raise ProgramError(
                f"program {self.name!r} has no guide; pass guide=... (a function, or an autoguide's name such as 'AutoNormal')."
            )
        with self._pyro_context:
            return self.guide(*args, **kwargs)

    def load_parameters(self, state: dict[str, Tensor]) -> None:
        """Like `load_state_dict`, and also creates the `pyro.param` values of plain functions that have not run yet.

        Raises:
            ProgramError: names that do not match, with the first of them.
        """
        mine, programs = self.state_dict(), {name: m for name, m in self.named_modules() if isinstance(m, Program)}
        for name, value in state.items():
            path, _, key = name.rpartition("free_parameters.")
            if key != name and name not in mine and path.removesuffix(".") in programs:
                holder = programs[path.removesuffix(".")]
                holder.free_parameters[key] = nn.Parameter(value.clone())
                holder.loaded.add(key)
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ProgramError(f"these weights do not belong to this {self.name}: {reason}") from None


class FunctionProgram(Program):
    """Any callable Pyro model, with or without a guide, as a Program.

    Arguments:
        model: a function or module with `pyro.sample` statements.
        guide: a function or module over the same latent sites, or one of Pyro's autoguides by name ("AutoNormal"), class or
            `functools.partial`.
        name: name in tables (default: the function's own).
    """

    def __init__(self, model: Callable, guide: Any = None, name: str | None = None) -> None:
        super().__init__()
        if not callable(model):
            raise ProgramError(
                f"a program must be callable, but it is a {type(model).__name__}: pass the function itself, not what it returns."
            )
        guide = make_guide(guide, model)
        self._name: str = name or getattr(model, "__name__", None) or type(model).__name__
        self._draws_n = False
        object.__setattr__(self, "_model", model)
        object.__setattr__(self, "_guide", guide)
        # held in a list, so that modules which Pyro has run before keep their own names
        self.parts = nn.ModuleList(
            [part for part in (model, guide, getattr(model, "__self__", None)) if isinstance(part, nn.Module)]
        )

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
    story = program._model if isinstance(program, FunctionProgram) else program.run_model
    other = FunctionProgram(story, guide, program.name)
    other.free_parameters, other.constraints, other.loaded = (
        program.free_parameters,
        program.constraints,
        program.loaded,
    )
    other._draws_n = program.draws_n
    for attribute in ("site", "observed", "support", "values", "allows_missing"):
        setattr(other, attribute, getattr(program, attribute))
    return other
