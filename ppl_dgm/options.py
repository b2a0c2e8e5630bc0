"""Options of an algorithm: checked when it is made, refused in one sentence."""

from typing import Any

from .errors import ProgramError

__all__ = ["is_count", "require"]


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
