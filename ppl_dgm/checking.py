"""check: a table of a program's sites, and in words what is wrong with it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from .errors import DgmError
from .program import Program, as_program
from .randomness import seeded
from .text import table
from .tracing import latent_sites, sites

__all__ = ["Report", "Site", "check", "explain", "first_nonfinite", "outside_support", "support_in_words"]


@dataclass(frozen=True)
class Site:
    """One row of the table: a `pyro.sample`, `deterministic`, `factor` or `param` statement."""

    name: str
    kind: str
    distribution: str
    shape: str
    plates: str
    support: str


@dataclass
class Report:
    """What `check` found.

    Attributes:
        sites: one row per site of the model, in the order in which they run.
        problems: sentences, each with its remedy; empty when nothing is wrong.
        notes: what is not wrong but worth knowing.
    """

    program: str
    sites: list[Site] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        rows = [(s.name, s.kind, s.distribution, s.shape, s.plates, s.support) for s in self.sites]
        lines = [self.program, table(("site", "kind", "distribution", "batch | event", "plates", "support"), rows)]
        lines += [f"wrong: {p}" for p in self.problems] + [f"note: {n}" for n in self.notes]
        return "\n".join(lines if self.problems else [*lines, "nothing wrong was found"])

    __repr__ = __str__


class _LastSite(Messenger):
    """Remembers the last sample statement, so that an error can be blamed on it."""

    name: str | None = None
    fn: Any = None

    def _pyro_sample(self, msg: Any) -> None:
        if type(msg["fn"]).__name__ != "_Subsample":
            self.name, self.fn = msg["name"], msg["fn"]


def check(program: Any, *args: Any, guide: Any = None, **kwargs: Any) -> Report:
    """Run a program (and its guide) once, and say what its sites are and what is wrong.

    Arguments:
        program: a `Program` or any callable Pyro model.
        *args, **kwargs: go to the model.
        guide: a guide to use instead of the program's.

    Returns:
        A `Report`; print it. Its `problems` are sentences that name the site and the remedy.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def coins(x):
        ...     p = pyro.sample("p", dist.Beta(1.0, 1.0))
        ...     with pyro.plate("data", 4):
        ...         pyro.sample("x", dist.Bernoulli(p), obs=x)
        >>> check(coins, torch.ones(3)).problems[0]
        "site 'x': its shape (3,) does not fit the plate 'data' of size 4; give the plate the number of observations, e.g. pyro.plate('data', len(x))."
    """
    program = as_program(program, guide)
    report = Report(program.name)
    with torch.no_grad(), seeded(0), program.running():
        trace = _run(program.run_model, args, kwargs, report, "model")
        if trace is not None:
            _describe(trace, report)
            _check_sites(trace, report)
            _check_stability(program, args, kwargs, trace, report)
            if (
                program.has_guide and not args and program.observed is not None
            ):  # a guide wants observations: those just drawn
                args = (trace.nodes[program.site]["value"],)
                observed = _run(program.run_model, args, kwargs, report, "model")
                trace = trace if observed is None else observed
            if program.has_guide:
                _check_guide(program, args, kwargs, trace, report)
    return report


def explain(program: Program, args: tuple, kwargs: dict, error: Exception) -> str | None:
    """The sentence that `check` has for a program that raised `error`, or None where it finds nothing wrong."""
    try:
        problems = check(program, *args, **kwargs).problems
    except Exception:  # the check itself may fail on a broken program; the caller then sees the first error
        return None
    return problems[0] if problems else None


# -- running -----------------------------------------------------------------------------------------------------------


def _run(story: Callable, args: tuple, kwargs: dict, report: Report, what: str) -> Any:
    """A trace of one run, or None with the problem written down."""
    last = _LastSite()
    try:
        with pyro.validation_enabled(True), last:
            return poutine.trace(story).get_trace(*args, **kwargs)
    except DgmError as error:
        report.problems.append(str(error))
    except Exception as error:  # whatever the user's own code raises is what we are here to report
        report.problems.append(_sentence(error, last, args, what))
    return None


def _sentence(error: Exception, last: _LastSite, args: tuple, what: str) -> str:
    """Say in one sentence what Pyro, torch or the user's code complain about."""
    text = " ".join(str(error).split()).split(" Trace Shapes:")[0].rstrip(".")
    place = f"site {last.name!r}" if last.name else f"the {what}"
    if "Shape mismatch inside plate" in text or "invalid log_prob shape" in text:
        return _shape_complaint(text, last, place)
    if "sample sites named" in text:
        name = _between(text, "named '", "'")
        if name != last.name:
            return (
                f"the plate {name!r} is opened twice in one run; make it once, p = pyro.plate({name!r}, ...), and use `with p:` in each place, "
                "or give the second a name of its own."
            )
        return f"site {name!r} is drawn twice in one run; every site needs a name of its own, e.g. f'{name}_{{i}}' in a loop."
    if "collide at dim" in text:
        one, other, dim = (
            _between(text, 'plates "', '"'),
            _between(text, 'and "', '"'),
            _between(text, "collide at dim=", " "),
        )
        return f"the plates {one!r} and {other!r} share the dimension {dim}; give one of them another, e.g. pyro.plate({one!r}, ..., dim={int(dim) - 1})."
    if "within the support" in text:
        return f"{place}: its value lies outside the support of {_name(last.fn)}; {_support_hint(last.fn)}."
    if "Expected parameter" in text:
        return _parameter_complaint(text, f"after {place}, " if last.name else "")
    if last.fn is not None and not callable(last.fn):
        return f"{place}: pyro.sample got a {type(last.fn).__name__} where it needs a distribution, e.g. pyro.sample({last.name!r}, dist.Normal(0.0, 1.0))."
    if isinstance(error, TypeError) and ("argument" in text or "positional" in text):
        return f"the {what} was called with {len(args)} positional arguments and does not accept them: {text}; give the model's own arguments."
    where = f"at or after {place}" if last.name else "before its first site"
    return f"the {what} raised {type(error).__name__} {where}: {text or 'without a reason'}; correct it there."


def _between(text: str, begin: str, end: str) -> str:
    """What stands between two marks, or "" where the first is missing."""
    return text.split(begin, 1)[1].split(end, 1)[0] if begin in text else ""


def _shape_complaint(text: str, last: _LastSite, place: str) -> str:
    plate, name = _between(text, "plate('", "')"), _between(text, "at site ", " dim ")
    if not plate:
        shape = tuple(getattr(last.fn, "batch_shape", ()))
        return f"{place}: its batch shape {shape} is not declared by plates; put it in a plate, or call .to_event({len(shape)}) on its distribution."
    size, found = text.rsplit(", ", 1)[-1].split(" vs ")  # "... at site x dim -1, 4 vs 3", the plate's first
    return (
        f"{f'site {name!r}' if name else place}: its distribution has {found} rows and does not fit the plate {plate!r} of size {size}; "
        f"give the plate the number of observations, e.g. pyro.plate({plate!r}, len(x))."
    )


def _parameter_complaint(text: str, after: str) -> str:
    parameter, family = _between(text, "Expected parameter ", " "), _between(text, "distribution ", "(")
    if family == "Unit":
        return f"{after}a pyro.factor got a log density that is not a number; check what it is computed from."
    wanted = _between(text, "to satisfy the constraint ", ", but")
    for constraint, words in (
        ("GreaterThan(lower_bound=0.0)", "a positive number"), ("Interval(lower_bound=0.0, upper_bound=1.0)", "a number from 0 to 1"),
        ("Simplex()", "non-negative entries that sum to one"), ("Real()", "a number"), ("IndependentConstraint(Real(), 1)", "numbers"),
        ("PositiveDefinite()", "a positive-definite matrix"), ("LowerCholesky()", "a lower Cholesky factor with a positive diagonal"),
    ):  # fmt: skip
        wanted = words if wanted == constraint else wanted
    return f"{after}a {family} got an invalid parameter {parameter}: {wanted} was expected; transform it (softplus, exp) or check the inputs for NaN."


def _name(fn: Any) -> str:
    while type(fn).__name__ in ("Independent", "MaskedDistribution", "ExpandedDistribution"):
        fn = fn.base_dist
    return type(fn).__name__


def _support_hint(fn: Any) -> str:
    try:
        return f"expected {_words(fn.support)}"
    except NotImplementedError:
        return "check the data"


def _words(support: Any) -> str:
    """A constraint as words."""
    while type(support).__name__ in ("_IndependentConstraint", "IndependentConstraint", "independent"):
        support = support.base_constraint
    name = type(support).__name__.strip("_")
    if hasattr(support, "lower_bound") and hasattr(support, "upper_bound"):
        kind = "an integer" if getattr(support, "is_discrete", False) else "a number"
        return f"{kind} from {_number(support.lower_bound)} to {_number(support.upper_bound)}"
    plain = {
        "Real": "a real number",
        "Boolean": "0 or 1",
        "Positive": "a positive number",
        "Simplex": "a vector that sums to one",
    }
    if hasattr(support, "lower_bound"):
        return f"a number above {_number(support.lower_bound)}"
    return plain.get(name, name.lower())


def _number(value: Any) -> str:
    return f"{float(value):g}" if not isinstance(value, Tensor) or value.numel() == 1 else "a bound of its own"


# -- looking at a trace ------------------------------------------------------------------------------------------------


def _describe(trace: Any, report: Report) -> None:
    for name, node in trace.nodes.items():
        if node["type"] == "param":
            report.sites.append(
                Site(name.replace("$$$", "."), "parameter", "", str(tuple(node["value"].shape)), "", "")
            )
        if node["type"] != "sample" or type(node["fn"]).__name__ == "_Subsample":
            continue
        fn = node["fn"]
        kind = "observed" if node["is_observed"] else "latent"
        kind = "deterministic" if node["infer"].get("_deterministic") else "factor" if _name(fn) == "Unit" else kind
        plates = " ".join(f"{frame.name}[{frame.size}]" for frame in node["cond_indep_stack"])
        shape = f"{tuple(fn.batch_shape)} | {tuple(fn.event_shape)}"
        support = "" if kind in ("deterministic", "factor") else support_in_words(fn)
        report.sites.append(Site(name, kind, "" if kind == "deterministic" else _name(fn), shape, plates, support))
    if not any(site.kind in ("latent", "observed", "factor") for site in report.sites):
        report.problems.append(f"{report.program!r} has no site: write pyro.sample('name', distribution) in its model.")


def support_in_words(fn: Any) -> str:
    """What a distribution's values are, e.g. "an integer from 0 to 16"; empty where it is not known."""
    try:
        return _words(fn.support)
    except (NotImplementedError, AttributeError):
        return ""


def _check_sites(trace: Any, report: Report) -> None:
    for name, node in sites(trace).items():
        fn, value = node["fn"], node["value"]
        if node["infer"].get("_deterministic"):
            continue
        if value.is_floating_point() and not value.isfinite().all():
            where = tuple((~value.isfinite()).nonzero()[0].tolist())
            report.problems.append(
                f"site {name!r}: its value is {float(value[where])} at index {where}; remove or impute such entries."
            )
            continue
        expected = tuple(fn.shape())
        if tuple(value.shape) != expected:
            report.problems.append(_shape_sentence(name, node, tuple(value.shape), expected))
            continue
        try:
            log_prob = fn.log_prob(value)
        except ValueError:  # Pyro's own check of the support
            report.problems.append(f"site {name!r}: {outside_support(fn, value)}.")
            continue
        except NotImplementedError:
            report.problems.append(
                f"site {name!r}: its distribution {_name(fn)} has no log density; give it a method log_prob, or use another."
            )
            continue
        if (
            bool((log_prob == -torch.inf).any())
            and not log_prob.isnan().any()
            and node["is_observed"]
            and latent_sites(trace)
        ):
            report.notes.append(
                f"site {name!r} has probability zero under one draw of the prior: samplers that start from the prior will not move."
            )
        elif not log_prob.isfinite().all():
            report.problems.append(
                f"site {name!r}: its log density is {_first_bad(log_prob)}; {_support_hint(fn)}, and check its parameters."
            )
        declared = {frame.dim for frame in node["cond_indep_stack"] if frame.vectorized}
        loose = [d for d in range(-len(fn.batch_shape), 0) if fn.batch_shape[d] > 1 and d not in declared]
        if loose:
            report.problems.append(
                f"site {name!r}: its batch shape {tuple(fn.batch_shape)} is not covered by plates, so its entries are not independent to Pyro; "
                f"put it in a plate, or call .to_event({len(loose)}) on its distribution."
            )


def _shape_sentence(name: str, node: dict, found: tuple, expected: tuple) -> str:
    """Observations that fit a site only by broadcasting, or not at all."""
    plate = next(
        (
            f
            for f in node["cond_indep_stack"]
            if f.vectorized and found and len(found) == len(expected) and f.size not in found
        ),
        None,
    )
    if plate is not None:
        return (
            f"site {name!r}: its shape {found} does not fit the plate {plate.name!r} of size {plate.size}; "
            f"give the plate the number of observations, e.g. pyro.plate({plate.name!r}, len(x))."
        )
    return f"site {name!r}: the observations have shape {found} but the distribution has {expected}; reshape one to fit the other."


def outside_support(fn: Any, value: Tensor) -> str | None:
    """Which entry lies outside the support, and what was expected there; None where all is well or nothing is known."""
    try:
        support = fn.support
        if support is None or bool(support.check(value).all()):
            return None
    except NotImplementedError:
        return None
    while hasattr(support, "base_constraint"):  # that of a single entry
        support = support.base_constraint
    good = support.check(value)
    while good.dim() < value.dim():
        good = good.unsqueeze(-1)
    bad = (~good.expand(value.shape)).nonzero()
    where = tuple(bad[0].tolist()) if len(bad) else ()
    return f"its value {float(value[where]):g} at index {where} lies outside the support of {_name(fn)}; {_support_hint(fn)}"


def _check_stability(program: Program, args: tuple, kwargs: dict, trace: Any, report: Report) -> None:
    """Programs whose sites change from run to run are legal, but few algorithms accept them."""
    with seeded(1):
        other = _run(program.run_model, args, kwargs, Report(program.name), "model")
    if other is not None and set(other.nodes) != set(trace.nodes):
        differing = min(set(other.nodes) ^ set(trace.nodes))
        report.notes.append(
            f"the structure differs from run to run (site {differing!r} is not always there): use methods that allow it, such as 'svi'."
        )


def _check_guide(program: Program, args: tuple, kwargs: dict, trace: Any, report: Report) -> None:
    drawn = _run(program.run_guide, args, kwargs, report, "guide")
    if drawn is None:
        return
    every = latent_sites(trace)
    latent = {name for name, node in every.items() if not node["infer"].get("enumerate")}
    mine = {name for name, node in latent_sites(drawn).items() if not node["infer"].get("is_auxiliary")}
    for name in sorted(latent - mine):
        report.problems.append(
            f"the guide does not draw the latent site {name!r}; add pyro.sample({name!r}, ...) to it."
        )
    for name in sorted(mine - set(every)):
        report.problems.append(
            f"the guide draws {name!r}, which is no latent site of the model; rename it, or mark it infer={{'is_auxiliary': True}}."
        )
    for name in sorted(mine & set(every)):
        guide_shape, model_shape = tuple(drawn.nodes[name]["fn"].shape()), tuple(trace.nodes[name]["fn"].shape())
        if guide_shape != model_shape:
            report.problems.append(
                f"site {name!r} has shape {guide_shape} in the guide and {model_shape} in the model; make them equal."
            )
            continue
        fn, value = trace.nodes[name]["fn"], drawn.nodes[name]["value"]
        if not fn.support.check(value).all():
            report.problems.append(
                f"site {name!r}: the guide's {_name(drawn.nodes[name]['fn'])} leaves the support of the model's {_name(fn)}; "
                f"{_support_hint(fn)}, so give it a distribution over that support."
            )


# -- finding a NaN -----------------------------------------------------------------------------------------------------


def first_nonfinite(program: Program, batch: tuple) -> str | None:
    """The first place where numbers stop being finite: a parameter, or a site's parameters, value or log density."""
    for name, parameter in program.named_parameters():
        if not parameter.isfinite().all():
            return f"the parameter {name!r} holds {_first_bad(parameter)}"
    with torch.no_grad(), pyro.validation_enabled(False), program.running():
        drawn = poutine.trace(program.run_guide).get_trace(*batch) if program.has_guide else None
        story = poutine.replay(program.run_model, trace=drawn) if drawn is not None else program.run_model
        for what, trace in (("guide", drawn), ("model", poutine.trace(story).get_trace(*batch))):
            found = _nonfinite_site(trace) if trace is not None else None
            if found:
                return f"in the {what}, {found}"
    return None


def _nonfinite_site(trace: Any) -> str | None:
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or type(node["fn"]).__name__ == "_Subsample":
            continue
        fn = node["fn"]
        while hasattr(fn, "base_dist") and not getattr(fn, "arg_constraints", None):
            fn = fn.base_dist
        for argument in getattr(fn, "arg_constraints", None) or ():
            value = getattr(fn, argument, None)
            if isinstance(value, Tensor) and not value.isfinite().all():
                return f"site {name!r} ({_name(node['fn'])}) has {argument} = {_first_bad(value)}"
        if (
            isinstance(node["value"], Tensor)
            and node["value"].is_floating_point()
            and not node["value"].isfinite().all()
        ):
            return f"site {name!r} has the value {_first_bad(node['value'])}"
        log_prob = node["fn"].log_prob(node["value"])
        if not log_prob.isfinite().all():
            return f"site {name!r} ({_name(node['fn'])}) has the log density {_first_bad(log_prob)}"
    return None


def _first_bad(value: Tensor) -> str:
    return f"{float(value.detach()[~value.isfinite()].flatten()[0])}"
