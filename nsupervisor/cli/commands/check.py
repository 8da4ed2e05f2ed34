"""`nsupervisor check`."""

from __future__ import annotations

import sys

import click

from nsupervisor.cli.options import json_option
from nsupervisor.cli.output import DONE, USAGE, emit_json, plural, printable, say

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from nsupervisor.config.model import Config
    from nsupervisor.config.positions import Positions
    from nsupervisor.config.problems import Problem


@click.command(short_help="Tell whether a configuration is right.")
@click.option("--no-host", is_flag=True, help="Check the file alone, not whether this host can do what it asks for.")
@json_option
@click.argument("config", metavar="CONFIG")
def check(config: str, no_host: bool, as_json: bool) -> int:
    """Tell whether CONFIG is right, and whether this host can do what it asks for; else every problem, with its line.

    What the host cannot do is a problem (exit status 2), except for resources with required = false, where it is a
    warning. So is a rule that can never go off, or always does. Nothing is changed or started. CONFIG may be
    /dev/stdin.
    """
    problems, warnings, count = inspect(config, not no_host)
    if as_json:
        emit_json(
            {
                "path": config,
                "ok": not problems,
                "workloads": count,
                "problems": [_object(problem) for problem in problems],
                "warnings": [_object(warning) for warning, _ in warnings],
            }
        )
        return USAGE if problems else DONE
    for warning, why in warnings:
        say(f"{warning} (a warning only: {why})")
    for problem in problems:
        say(str(problem))
    if problems:
        return USAGE
    print(printable(f"{config}: ok, {plural(count, 'workload')}"), file=sys.stdout)
    return DONE


def inspect(path: str, host: bool) -> tuple[list[Problem], list[tuple[Problem, str]], int]:
    """All problems, all warnings, and the number of workloads (0 where the file cannot be used)."""
    from nsupervisor.config.doubts import DOUBTFUL, doubtful
    from nsupervisor.config.files import read_text
    from nsupervisor.config.load import ConfigError, parse
    from nsupervisor.config.positions import scan

    try:
        text = read_text(path)  # once: it may be a pipe
        config = parse(text, path)
    except ConfigError as error:
        return error.problems, [], 0
    problems: list[Problem] = []
    positions = scan(text)
    warnings = [(doubt, DOUBTFUL) for doubt in doubtful(config, positions)]
    if host:
        for problem, warning in _host_problems(config, positions):
            if warning:
                warnings.append((problem, warning))
            else:
                problems.append(problem)
        problems.sort(key=lambda problem: problem.line)
        warnings.sort(key=lambda warning: warning[0].line)
    return problems, warnings, len(config.workloads)


def _host_problems(config: Config, positions: Positions) -> Iterator[tuple[Problem, str]]:
    """What this host cannot do, and why that is a warning only; "" where it is not."""
    from nsupervisor.cgroups.errors import CgroupError
    from nsupervisor.cgroups.host import Host
    from nsupervisor.config.problems import Problem
    from nsupervisor.service.requirements import unmet

    try:
        host = Host.discover()
    except CgroupError as error:
        yield Problem(config.path, 0, "", str(error)), ""
        return
    yield from unmet(config, positions, host, here=False)


def _object(problem: Problem) -> dict[str, Any]:
    return {"line": problem.line or None, "key": problem.key, "message": problem.message, "text": str(problem)}
