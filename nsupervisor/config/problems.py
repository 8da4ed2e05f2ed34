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


def sort_problems(problems: Iterable[Problem]) -> list[Problem]:
    """Sort problems by file, in the order in which files first have one, and by line."""
    listed = list(problems)
    order = {path: number for number, path in enumerate(dict.fromkeys(problem.path for problem in listed))}
    return sorted(listed, key=lambda problem: (order[problem.path], problem.line))


def sort_warnings(warnings: Iterable[tuple[Problem, str]]) -> list[tuple[Problem, str]]:
    """Sort warnings, each with its reason, as `sort_problems` does."""
    listed = list(warnings)
    order = {problem: number for number, problem in enumerate(sort_problems(problem for problem, _ in listed))}
    return sorted(listed, key=lambda warning: order[warning[0]])


class ConfigError(Exception):
    """A file that cannot be used, with every problem found, in the order of the files and lines."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sort_problems(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))
