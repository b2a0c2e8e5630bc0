"""The errors that a user can meet: each message is one sentence that names the place and the remedy."""

__all__ = ["DataError", "DgmError", "FileError", "NumericalError", "ProgramError", "TaskUnavailable"]


class DgmError(Exception):
    """Any error that ppl_dgm raises on purpose."""


class ProgramError(DgmError, ValueError):
    """A program, a guide or an argument is not what the task needs."""


class DataError(DgmError, ValueError):
    """Data do not fit: shape, type, support, missing values."""


class FileError(DgmError, ValueError):
    """A file is missing, truncated, or holds something else than expected."""


class NumericalError(DgmError, ArithmeticError):
    """A computation left the finite numbers; `fit`, where there is one, holds the best state before that."""

    def __init__(self, message: str, fit: object = None) -> None:
        super().__init__(message)
        self.fit = fit


class TaskUnavailable(DgmError, NotImplementedError):
    """A program cannot answer this question; the message gives the reason and the nearest thing that works."""
