"""The command `nsupervisor doctor`."""

from __future__ import annotations

import shutil
import sys
import textwrap

import click

from nsupervisor.cli.options import json_option
from nsupervisor.cli.output import (
    DONE,
    FAILED,
    FAINT,
    GREEN,
    RED,
    YELLOW,
    colorize,
    escape_control,
    has_colour,
    print_json,
)

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from nsupervisor.cli.probes import Finding

COLOURS = {"ok": GREEN, "limited": YELLOW, "missing": RED}
TEXT_INDENT = 30


@click.command(short_help="Report what this host offers, and what that means.")
@json_option
def doctor(as_json: bool) -> int:
    """Report what this host and your privileges offer, and what that means. Leaves nothing behind.

    Features are tested by using them. Exit status 0 if workloads can be run in namespaces and cgroups of their own, 1
    if not.
    """
    from nsupervisor.cli.probes import MISSING, sections

    fatal: list[Finding] = []
    report: dict[str, list[dict[str, object]]] = {}
    colour = has_colour(sys.stdout)
    width = max(shutil.get_terminal_size().columns, 60) if sys.stdout.isatty() else 0
    for title, findings in sections():
        if not as_json:
            print(colorize(title, FAINT, colour))
        report[title] = []
        for finding in findings:
            report[title].append(_as_object(finding))
            if finding.essential and finding.state == MISSING:
                fatal.append(finding)
            if not as_json:
                print(_format_finding(finding, width, colour))
    if as_json:
        print_json({"ok": not fatal, "sections": report})
    elif fatal:
        print(f"\nWorkloads cannot be run here: see {', '.join(finding.name for finding in fatal)} above.")
    else:
        print("\nWorkloads can be run here. What is limited or missing matters only to configurations that ask for it.")
    return FAILED if fatal else DONE


def _as_object(finding: Finding) -> dict[str, object]:
    return {
        "name": finding.name,
        "state": finding.state,
        "text": finding.text,
        "instead": finding.remedy,
        "essential": finding.essential,
    }


def _format_finding(finding: Finding, width: int, colour: bool) -> str:
    text = escape_control(finding.text + (f". To do: {finding.remedy}" if finding.remedy else ""))
    if width:
        text = textwrap.fill(text, max(width - TEXT_INDENT, 30), break_on_hyphens=False).replace(
            "\n", "\n" + " " * TEXT_INDENT
        )
    return f"  {finding.name:<18} {colorize(f'{finding.state:<8}', COLOURS[finding.state], colour)} {text}"
