"""The error of a step between clone and exec."""

from __future__ import annotations


class StepError(Exception):
    """A step failed. The text is a whole sentence for people; `number` is the errno, or 0."""

    def __init__(self, message: str, number: int = 0) -> None:
        super().__init__(message)
        self.number = number


def step_error(operation: str, error: OSError, hint: str = "") -> StepError:
    """Build the error of a failed step: `cannot enter /srv/site: No such file or directory`."""
    return StepError(f"cannot {operation}: {error.strerror}{f' ({hint})' if hint else ''}", error.errno or 0)
