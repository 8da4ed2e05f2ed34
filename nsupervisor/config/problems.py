"""What is wrong with a file, and where."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Problem(NamedTuple):
    """One thing to mend. `line` counts from 1, 0 where the file has no lines (it cannot be read); `key` may be ""."""

    path: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        """`FILE:LINE: key.path: what is wrong; what to write instead`."""
        place = f"{self.path}:{self.line}" if self.line else self.path
        return ": ".join(part for part in (place, self.key, self.message) if part)


class ConfigError(Exception):
    """A file that cannot be used, with every problem found, in the order of the lines."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(problems, key=lambda problem: problem.line)
        super().__init__("\n".join(str(problem) for problem in self.problems))
