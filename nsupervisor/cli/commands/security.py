"""The command `nsupervisor security`."""

from __future__ import annotations

import sys

import click

from nsupervisor.api.client import Client
from nsupervisor.cli.options import json_option, socket_option
from nsupervisor.cli.output import DONE, USAGE, print_json, print_message
from nsupervisor.terminal.lines import fold
from nsupervisor.terminal.style import escape_control, terminal_width
from nsupervisor.terminal.table import format_table

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from typing import Any

    from nsupervisor.core.exposure import Exposure


@click.command(short_help="Show how exposed the host is to each workload.")
@socket_option
@click.option("--config", metavar="CONFIG", help="Read this file, not that of the running service.")
@json_option
@click.argument("names", metavar="[NAME...]", nargs=-1)
def security(socket_path: str, config: str | None, as_json: bool, names: tuple[str, ...]) -> int:
    """Print a score from 0.0 (confined) to 10.0 for each workload, like `systemd-analyze security`.

    With a NAME, print each reason with its part of the score, and the line of the workload's table that removes it. The
    score compares what the file says; it does not know the program, or which items this host lacks (see `check`).
    """
    from nsupervisor.config.files import read_text
    from nsupervisor.config.load import ConfigError, parse
    from nsupervisor.core.exposure import exposure

    path = config or Client(socket_path).info()["config"]
    try:
        workloads = parse(read_text(path), path).workloads
    except ConfigError as error:
        print_message(str(error))
        return USAGE
    if unknown := [name for name in names if name not in workloads]:
        print_message(f"{path} has no workload {', '.join(unknown)}; it has {', '.join(workloads) or 'none'}")
        return USAGE
    found = {name: exposure(workloads[name]) for name in names or workloads}
    if as_json:
        print_json([_as_object(name, result) for name, result in found.items()])
    elif names:
        print("\n\n".join("\n".join(_details(name, result)) for name, result in found.items()))
    else:
        print("\n".join(_overview(found)))
    return DONE


def _overview(found: dict[str, Exposure]) -> list[str]:
    worst = sorted(found.items(), key=lambda item: -item[1].score)
    rows = [
        (name, f"{result.score:.1f}", result.level, result.findings[0].reason if result.findings else "")
        for name, result in worst
    ]
    return format_table(("NAME", "SCORE", "LEVEL", "FIRST REASON"), rows, right=(1,), width=_width())


def _details(name: str, result: Exposure) -> list[str]:
    from nsupervisor.core.exposure import share

    lines = [escape_control(f"{name}: {result.score:.1f} of 10.0 ({result.level})")]
    if result.findings:
        lines += ["", f"PART  REASON, and what removes it in [workload.{escape_control(name)}]"]
    for check in result.findings:
        lines.append(fold(f"{share(check):.2f}  {check.reason}", _width(), 6))
        lines.append(f"      {check.line}")
    return lines


def _width() -> int:
    return terminal_width() if sys.stdout.isatty() else 0


def _as_object(name: str, result: Exposure) -> dict[str, Any]:
    from nsupervisor.core.exposure import share

    findings = [
        {"check": check.name, "part": share(check), "reason": check.reason, "line": check.line}
        for check in result.findings
    ]
    return {"name": name, "score": result.score, "level": result.level, "findings": findings}
