"""The command `nsupervisor plan CONFIG`."""

from __future__ import annotations

import os
import sys

import click

from nsupervisor.api.client import Client, NoSupervisorError, WrongFileError
from nsupervisor.cli.options import json_option, socket_option
from nsupervisor.cli.output import (
    BLUE,
    BOLD,
    DONE,
    FAINT,
    GREEN,
    RED,
    USAGE,
    YELLOW,
    colorize,
    escape_control,
    has_colour,
    print_json,
    print_message,
)

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from nsupervisor.config.problems import ConfigError

COLOURS = {"none": FAINT, "live": BLUE, "restart": YELLOW, "start": GREEN, "stop": RED}


@click.command(short_help="Show what a reload would do.")
@socket_option
@json_option
@click.argument("config", metavar="CONFIG")
def plan(socket_path: str, as_json: bool, config: str) -> int:
    """Show what a reload of CONFIG would do to each workload, and why; nothing is changed.

    none: nothing differs. live: the running program takes the change. restart: it needs a new process. start: it is
    new. stop: it has been removed. Values of environment variables are never shown. If no service answers, CONFIG is
    compared with nothing.
    """
    try:
        result = _request_plan(socket_path, read_source(config))
    except WrongFileError as error:
        return print_problems(error, as_json)
    if as_json:
        print_json(result)
    else:
        print("\n".join(plan_lines(result, has_colour(sys.stdout))))
    return DONE


def _request_plan(socket_path: str, source: dict[str, str]) -> dict[str, Any]:
    try:
        return Client(socket_path).plan(source)
    except NoSupervisorError as error:
        result = _plan_alone(source)
        print_message(f"{error}; until then, this is what its start would do")
        return result


def read_source(config: str) -> dict[str, str]:
    """Return the source to send for a file.

    The file is read here, with the caller's permissions; it may be a pipe. Raises WrongFileError.
    """
    from nsupervisor.config.files import read_text
    from nsupervisor.config.problems import ConfigError

    try:
        return {"path": os.path.abspath(config), "text": read_text(config)}
    except ConfigError as error:
        raise _to_wrong_file(error) from None


def print_problems(error: WrongFileError, as_json: bool) -> int:
    """Print each problem; return the exit status."""
    if as_json:
        print_json({"ok": False, "problems": error.answer["problems"]})
    else:
        print_message(str(error))
    return USAGE


def _plan_alone(source: dict[str, str]) -> dict[str, Any]:
    from nsupervisor.config.load import ConfigError, parse
    from nsupervisor.core.reload.plan import make_plan as make_plan

    try:
        return make_plan(None, parse(source["text"], source["path"]), ()).to_json(source["path"])
    except ConfigError as error:
        raise _to_wrong_file(error) from None


def _to_wrong_file(error: ConfigError) -> WrongFileError:
    """Return the error that the service would return for this file."""
    problems = [
        {"line": problem.line or None, "key": problem.key, "message": problem.message, "text": str(problem)}
        for problem in error.problems
    ]
    return WrongFileError({"error": str(error), "problems": problems})


def plan_lines(result: dict[str, Any], colour: bool) -> Iterator[str]:
    """Format a plan for people."""
    steps = result["steps"]
    width = max((len(step["name"]) for step in steps), default=0)
    for step in steps:
        do = colorize(f"{step['do']:<7}", COLOURS[step["do"]], colour)
        name = colorize(f"{step['name']:<{width}}", BOLD, colour)
        yield f"{name}  {do}  {escape_control(step['why'])}".rstrip()
        for change in step["changes"]:
            yield f"{'':<{width}}    {escape_control(format_change(change))}"
    for change in result["groups"]:
        yield escape_control(format_change(change))
    for change in result["service"]:
        when = "" if change["live"] else "; counts when the service starts the next time"
        yield escape_control(f"supervisor.{format_change(change)}{when}")
    counts = {do: sum(step["do"] == do for step in steps) for do in COLOURS}
    yield ", ".join(f"{count} {do}" for do, count in counts.items() if count) or "no workloads"


def format_change(change: dict[str, Any]) -> str:
    """Format one changed key: `resources.memory_max: "64M" → "128M"`, `environment.TOKEN: changed`."""
    if change["how"] == "contents":
        return f"{change['key']}: the contents differ"
    if change["before"] is None or change["how"] == "reordered":
        return f"{change['key']}: {change['how']}"
    return f"{change['key']}: {change['before']} → {change['after']}"
