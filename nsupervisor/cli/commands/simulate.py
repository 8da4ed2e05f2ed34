"""The command `nsupervisor simulate`."""

from __future__ import annotations

import shutil
import sys
import textwrap
from itertools import zip_longest

import click

from nsupervisor.cli.options import json_option
from nsupervisor.cli.output import DONE, USAGE, print_json, print_message
from nsupervisor.terminal.numbers import format_count, format_span
from nsupervisor.terminal.records import format_record
from nsupervisor.terminal.style import FAINT, MAGENTA, colorize, has_colour
from nsupervisor.terminal.table import format_table

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from nsupervisor.core.replay.compare import ComparisonRow
    from nsupervisor.core.replay.simulate import SimulationResult

HEADS = ("TIME", "WORKLOAD", "WHAT WAS DONE", "WHAT WOULD HAVE BEEN DONE")
AS_RECORDED = "the same"


@click.command(short_help="Show what a configuration would have done.")
@json_option
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the jitter that the trace lacks.")
@click.option("--steps", is_flag=True, help="Show the signals that carry out each decision, too.")
@click.argument("config", metavar="CONFIG")
@click.argument("trace", metavar="TRACE")
def simulate(as_json: bool, seed: int, steps: bool, config: str, trace: str) -> int:
    """Replay TRACE, written by `nsupervisor record`, through CONFIG, and compare the actions with the recorded ones.

    For each action it shows when and why it was done, or would have been done. Nothing is started, no supervisor is
    needed, and the same input gives the same output.

    A line with "~" follows a decision that is not in the trace: the program would have behaved differently from then
    on, so these lines are a guess. docs/simulate.md describes how it is made.
    """
    from nsupervisor.config.files import read_text
    from nsupervisor.config.load import ConfigError, parse
    from nsupervisor.core.replay.simulate import simulate as replay
    from nsupervisor.core.replay.trace import TraceError, parse_trace

    try:
        parsed_config = parse(read_text(config), config)
        with open(trace, "rb") as file:
            recorded = parse_trace(file.read(), trace)
    except ConfigError as error:
        for problem in error.problems:
            print_message(str(problem))
        return USAGE
    except (TraceError, OSError) as error:
        print_message(str(error) if isinstance(error, TraceError) else f"cannot read {trace}: {error.strerror}")
        return USAGE
    result = replay(parsed_config, recorded, seed)
    if as_json:
        print_json(result_object(result))
        return DONE
    for warning in result.warnings:
        print_message(warning)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    print("\n".join(comparison_lines(result, steps, width, has_colour(sys.stdout))))
    return DONE


def result_object(result: SimulationResult) -> dict[str, Any]:
    """Return the object that --json prints."""
    from nsupervisor.wire_names import by_wire_name

    return {
        "seconds": result.duration_s,
        "same": is_same(result),
        "parted": dict(result.diverged_at),
        "warnings": list(result.warnings),
        "rows": [by_wire_name(row) for row in result.rows],
    }


def is_same(result: SimulationResult) -> bool:
    """Return whether the simulation has the same actions, at the same times, and no others."""
    return all(row.is_same for row in result.rows)


def comparison_lines(result: SimulationResult, steps: bool, width: int, colour: bool) -> Iterator[str]:
    """Yield the table, and the summary."""
    shown = [row for row in result.rows if steps or not _is_step(row)]

    def paint(column: int, value: str, padded: str) -> str:
        faint = column in (-1, 0) or value == AS_RECORDED
        return colorize(padded, FAINT if faint else MAGENTA if value.startswith("~") else "", colour)

    cells = [(f"{row.time_s:+.3f}", row.workload, action_text(row.recorded), simulated_text(row)) for row in shown]
    if cells:
        yield from format_table(
            HEADS, [part for row in cells for part in wrap_row(row, cells, width)], right=(0,), paint=paint
        )
        yield ""
    recorded = sum(row.recorded is not None for row in shown)
    common = sum(row.recorded is not None and row.simulated is not None for row in shown)
    added = sum(row.recorded is None for row in shown)
    summary = f"{format_span(result.duration_s)}: {format_count(recorded, 'action')} recorded"
    if is_same(result):
        yield f"{summary}; this configuration would have done the same"
    else:
        yield f"{summary}, {common} of them would have been done, and {added} others"
    alone = result.diverged_at.keys() - result.groups
    for name, since in result.diverged_at.items():
        subject = "its life" if name in alone else "a member's life"
        yield f"{name}: from {since:+.3f} on a guess (~): {subject} would have differed from the recorded one"


def wrap_row(row: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[Sequence[str]]:
    """Split a row into several, so that both sides fit into `width`; 0: do not split."""
    room = (
        width
        - sum(max(len(head), *(len(other_row[i]) for other_row in rows)) + 2 for i, head in enumerate(HEADS[:2]))
        - 2
    ) // 2
    sides = [textwrap.wrap(side, max(room, 24)) if width else [side] for side in row[2:]]
    for i, (left, right) in enumerate(zip_longest(*sides, fillvalue="")):
        yield (*(row[:2] if i == 0 else ("", "")), left, right)


def _is_step(row: ComparisonRow) -> bool:
    """Return whether the action only carries out the decision of another row."""
    action = row.recorded or row.simulated or {}
    return "cause" not in action and action["action"] in ("signal", "kill", "freeze", "thaw")


def simulated_text(row: ComparisonRow) -> str:
    """Format the right side of a row."""
    if row.simulated is None:
        return "-"
    if row.is_same:
        return AS_RECORDED
    time_suffix = "" if row.simulated_time_s in (None, row.time_s) else f" (at {row.simulated_time_s:+.3f})"
    return ("~ " if row.diverged else "") + action_text(row.simulated) + time_suffix


def action_text(action: dict[str, Any] | None) -> str:
    """Format an action as `events` does."""
    if action is None:
        return "-"
    if "cause" in action:
        return format_record({"event": "action", **action})
    number = f" generation {action['generation']}" if action["action"] == "start" else ""
    delay = f" {format_span(action['delay_sec'])}" if "delay_sec" in action else ""
    return f"{action['action']}{number}{delay}: {action['why']}"
