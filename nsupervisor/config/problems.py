"""Problems of a configuration file, with their locations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Problem(NamedTuple):
    """One problem to fix.

    `line` counts from 1; it is 0 if the file has no lines (it cannot be read). `key` may be "".
    """

    path: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        """Format as `FILE:LINE: key.path: what is wrong; what to write instead`."""
        location = f"{self.path}:{self.line}" if self.line else self.path
        return ": ".join(part for part in (location, self.key, self.message) if part)


class ConfigError(Exception):
    """A file that cannot be used, with every problem found, in the order of the lines."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(problems, key=lambda problem: problem.line)
        super().__init__("\n".join(str(problem) for problem in self.problems))
