"""The command `nsupervisor plan CONFIG`."""

from __future__ import annotations

import os
import sys

import click

from nsupervisor.api.client import Client, NoSupervisorError, WrongFileError
from nsupervisor.cli.options import json_option, socket_option
from nsupervisor.cli.output import DONE, USAGE, print_json, print_message
from nsupervisor.terminal.lines import fold
from nsupervisor.terminal.records import format_change, format_steps
from nsupervisor.terminal.style import (
    BOLD,
    FAINT,
    GREEN,
    MAGENTA,
    RED,
    colorize,
    escape_control,
    has_colour,
    terminal_width,
)

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from nsupervisor.config.problems import ConfigError

LONG_LINE = 100
"""Length from which a change takes several lines, if the width of the terminal is unknown."""
MAX_NAMES = 5
"""How many workloads a difference of their next start lists by name."""
COLOURS = {"none": FAINT, "live": "", "restart": MAGENTA, "start": GREEN, "stop": RED}


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
        print("\n".join(plan_lines(result, has_colour(sys.stdout), terminal_width())))
    return DONE


def _request_plan(socket_path: str, source: dict[str, Any]) -> dict[str, Any]:
    try:
        return Client(socket_path).plan(source)
    except NoSupervisorError as error:
        result = _plan_alone(source)
        print_message(f"{error}; until then, this is what its start would do")
        return result


def read_source(config: str) -> dict[str, Any]:
    """Return the source to send for a file, with the files that it includes.

    They are read here, with the caller's permissions; the first may be a pipe. Raises WrongFileError.
    """
    from nsupervisor.config.compose import read_included
    from nsupervisor.config.files import read_text
    from nsupervisor.config.problems import ConfigError

    try:
        path, text = os.path.abspath(config), read_text(config)
        files = [{"include": file.pattern, "path": file.path, "text": file.text} for file in read_included(text, path)]
        return {"path": path, "text": text, **({"files": files} if files else {})}
    except ConfigError as error:
        raise _to_wrong_file(error) from None


def print_problems(error: WrongFileError, as_json: bool) -> int:
    """Print each problem; return the exit status."""
    if as_json:
        print_json({"ok": False, "problems": error.answer["problems"]})
    else:
        print_message(str(error))
    return USAGE


def _plan_alone(source: dict[str, Any]) -> dict[str, Any]:
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


def plan_lines(result: dict[str, Any], colour: bool, width: int = 0) -> Iterator[str]:
    """Format a plan for people: each workload that it concerns, and how many it leaves unchanged.

    width: of the terminal; 0: unknown, so nothing is cut.
    """
    shown = merge_instances(
        [step for step in result["steps"] if step["do"] != "none" or step["why"] or step["changes"]]
    )
    name_width = max((len(name) for name, _ in shown), default=0)
    for names, step in shown:
        do = colorize(f"{step['do']:<7}", COLOURS[step["do"]], colour)
        name = colorize(f"{names:<{name_width}}", BOLD, colour)
        yield f"{name}  {do}  {escape_control(step['why'])}".rstrip()
        for change in step["changes"]:
            yield from change_lines(change, "    ", width)
    for change in result["groups"]:
        yield from change_lines(change, "", width)
    for change in result["service"]:
        when = "" if change["live"] else "; counts when the service starts the next time"
        yield from change_lines({**change, "key": f"supervisor.{change['key']}"}, "", width, when)
    yield from _next_start_lines(result["steps"], width)
    yield format_steps({do: sum(step["do"] == do for step in result["steps"]) for do in COLOURS})


def merge_instances(steps: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Return the names and the step of each row: successive instances of one workload with equal steps are one row."""
    rows: list[tuple[str, str, dict[str, Any]]] = []
    for step in steps:
        workload, _, number = step["name"].partition("@")
        if rows and number.isdecimal():
            first, last, previous = rows[-1]
            is_next = last == f"{workload}@{int(number) - 1}"
            if is_next and all(step[key] == previous[key] for key in ("do", "why", "changes")):
                rows[-1] = first, step["name"], previous
                continue
        rows.append((step["name"], step["name"], step))
    return [(first if first == last else f"{first} to @{last.partition('@')[2]}", step) for first, last, step in rows]


def _next_start_lines(steps: list[dict[str, Any]], width: int) -> Iterator[str]:
    """Yield what an upgrade changes for running programs: each difference once, with the names that it concerns."""
    concerned: dict[str, list[str]] = {}
    for step in steps:
        for text in step.get("next_start", ()):  # an earlier service has none
            concerned.setdefault(text, []).append(step["name"])
    if not concerned:
        return
    yield "An earlier version started what runs. The next start differs:"
    for text, names in concerned.items():
        rest = len(names) - MAX_NAMES
        shown = ", ".join(names[:MAX_NAMES] if rest > 1 else names) + (f" and {rest} more" if rest > 1 else "")
        yield from fold(f"  {shown}: {text}", width or LONG_LINE, 4).split("\n")


def change_lines(change: dict[str, Any], indent: str, width: int, suffix: str = "") -> Iterator[str]:
    """Yield one line for a changed key, or if that is too long for the terminal, the old and the new value below it.

    What is cut is what both values have in common, so the difference is always visible.
    """
    line = f"{indent}{escape_control(format_change(change))}"
    before, after = change["before"], change["after"]
    if before is None or change["how"] != "changed" or len(line) <= (width or LONG_LINE):
        yield f"{line}{suffix}"
        return
    yield f"{indent}{change['key']}:{suffix}"
    room = (width or LONG_LINE) - len(indent) - 4
    for mark, value in zip("-+", excerpts(escape_control(before), escape_control(after), room), strict=True):
        yield f"{indent}  {mark} {value}"


def excerpts(before: str, after: str, room: int) -> tuple[str, str]:
    """Return both texts, cut to `room` characters around their first difference; `…` marks what is left out."""
    pairs = enumerate(zip(before, after, strict=False))
    common = next((position for position, (old, new) in pairs if old != new), min(len(before), len(after)))
    start = 0 if common <= room // 2 else common - room // 3
    return _cut(before, start, room), _cut(after, start, room)


def _cut(text: str, start: int, room: int) -> str:
    begin = "…" if start else ""
    rest = text[start:] if len(text) - start <= room - len(begin) else text[start : start + room - len(begin) - 1] + "…"
    return begin + rest
