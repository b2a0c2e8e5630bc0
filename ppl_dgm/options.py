"""Options and arguments of an algorithm: checked when it is made, refused in one sentence."""

from typing import Any

from torch import Tensor

from .errors import ProgramError

__all__ = ["is_count", "require", "rows_alone"]


def is_count(value: Any, least: int) -> bool:
    """Whether this is a whole number, and at least so large."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def require(options: Any, *rules: tuple[str, bool, str]) -> None:
    """Every rule (name of the option, whether it is good, what was wanted) holds of an object's options.

    Raises:
        ProgramError: one does not; the message names the object's class, the option and its value.
    """
    for name, good, wanted in rules:
        if not good:
            raise ProgramError(
                f"{type(options).__name__}: {name} must be {wanted}, but it is {getattr(options, name)!r}."
            )


def rows_alone(method: Any, valid: Any) -> Tensor | None:
    """Validation rows for a learner that compares log p(x) on them and takes no further arguments.

    Raises:
        ProgramError: they come with other arguments, (x, y).
    """
    if isinstance(valid, tuple) and len(valid) == 1:
        return valid[0]
    if isinstance(valid, tuple):
        raise ProgramError(
            f"{type(method).__name__} compares log p(x) on validation rows alone, but valid is a tuple of {len(valid)}; pass "
            "valid=x, leave it out, or learn by gradients (method='svi'), where a tuple can be validated."
        )
    return valid
