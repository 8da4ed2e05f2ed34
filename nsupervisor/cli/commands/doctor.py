"""The command `nsupervisor doctor`."""

from __future__ import annotations

import sys
from collections import Counter

import click

from nsupervisor.cli.options import json_option
from nsupervisor.cli.output import DONE, FAILED, print_json
from nsupervisor.terminal.lines import fold, wrap
from nsupervisor.terminal.style import FAINT, GREEN, MAGENTA, RED, colorize, escape_control, has_colour, terminal_width

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nsupervisor.cli.probes import Finding

COLOURS = {"ok": GREEN, "limited": MAGENTA, "missing": RED}
NAME_WIDTH, STATE_WIDTH = 18, 8
TEXT_INDENT = NAME_WIDTH + STATE_WIDTH + 4
MIN_WIDTH = TEXT_INDENT + 30
_INSTEAD = 'With isolation = "auto" in [supervisor] they run without what is missing.'
LONG_LINE = 120
"""Length from which names continue on the next line, if the width of the terminal is unknown."""


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
    for title, findings in sections():
        section = list(findings)
        report[title] = [_as_object(finding) for finding in section]
        fatal += [finding for finding in section if finding.essential and finding.state == MISSING]
        if not as_json:
            print("\n".join([colorize(title, FAINT, colour), *section_lines(section, terminal_width(), colour)]))
    if as_json:
        print_json({"ok": not fatal, "sections": report})
    elif fatal:
        names = ", ".join(finding.name for finding in fatal)
        print(f"\n{fold(f'Workloads cannot be run here: see {names} above. {_INSTEAD}', terminal_width(), 0)}")
    else:
        summary = (
            "Workloads can be run here. What is limited or missing matters only to configurations that ask for it."
        )
        print(f"\n{fold(summary, terminal_width(), 0)}")
    return FAILED if fatal else DONE


def section_lines(findings: Sequence[Finding], width: int, colour: bool) -> Iterator[str]:
    """Yield the lines of a section. What has the same state and text is one line, and each remedy is shown once.

    A remedy of several findings follows at the end, with its number.
    """
    groups: dict[tuple[str, str, str], list[str]] = {}
    for finding in findings:
        groups.setdefault((finding.state, finding.text, finding.remedy), []).append(finding.name)
    counts = Counter(remedy for _, _, remedy in groups if remedy)
    shared = [remedy for remedy, count in counts.items() if count > 1]
    for (state, text, remedy), names in groups.items():
        advice = ""
        if remedy in shared:
            advice = f" [{shared.index(remedy) + 1}]"
        elif remedy:
            advice = f". To do: {remedy}"
        yield from _columns(", ".join(names), state, text + advice, width, colour)
    for number, remedy in enumerate(shared, 1):
        yield from _columns(f"[{number}] to do", "", remedy, width, colour)


def _as_object(finding: Finding) -> dict[str, object]:
    return {
        "name": finding.name,
        "state": finding.state,
        "text": finding.text,
        "instead": finding.remedy,
        "essential": finding.essential,
    }


def _columns(names: str, state: str, text: str, width: int, colour: bool) -> Iterator[str]:
    """Yield a line of name, state and text, continued below if it is longer than the terminal is wide."""
    head = f"  {names:<{NAME_WIDTH}} {colorize(f'{state:<{STATE_WIDTH}}', COLOURS.get(state, ''), colour)} "
    if len(names) > NAME_WIDTH:
        for line in wrap(names, max(width or LONG_LINE, MIN_WIDTH) - 2):
            yield f"  {line}"
        head = f"  {'':<{NAME_WIDTH}} {colorize(f'{state:<{STATE_WIDTH}}', COLOURS.get(state, ''), colour)} "
    lines = wrap(escape_control(text), max(width, MIN_WIDTH) - TEXT_INDENT) if width else [escape_control(text)]
    yield head + f"\n{' ' * TEXT_INDENT}".join(lines)
