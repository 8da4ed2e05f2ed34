"""`nsupervisor why`."""

from __future__ import annotations

import os
import sys
from datetime import datetime, timedelta

import click

from nsupervisor.api.client import Client
from nsupervisor.cli.commands.status import COLOURS
from nsupervisor.cli.options import json_option, socket_option
from nsupervisor.cli.output import BOLD, FAINT, coloured, duration, emit_json, has_colour, plural, printable
from nsupervisor.cli.records import asked, chosen_for, clock, ended, moment, place, reading, span, text
from nsupervisor.cli.story import episodes, stands_alone

RIVALS = 5
"""Candidates beside a group's victim that are told, at most."""

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from nsupervisor.cli.story import Episode, Record

Row = tuple[str, str]
"""A label and what it says."""


@click.command(short_help="Tell how a workload came to where it is.")
@socket_option
@json_option
@click.option(
    "-n", "--number", type=click.IntRange(1), default=5, show_default=True, help="Tell of so many of the last episodes."
)
@click.argument("name")
def why(socket_path: str, as_json: bool, number: int, name: str) -> None:
    """Tell what led to the state that NAME is in: which rule saw what, how programs ended, what was decided, and where
    that stands in the start limit.

    NAME is a workload ("web": all its instances), an instance ("web@2"), a group ("group/batch": all in it) or a glob
    in quotes ("web*").
    """
    found = Client(socket_path).history(name)
    if as_json:
        for one in found:
            one["episodes"] = episodes(one.pop("records"))[-number:]
        emit_json(found)
    else:
        now = datetime.now().astimezone()
        print("\n\n".join("\n".join(Teller(one, now, has_colour(sys.stdout)).tell(number)) for one in found))


class Teller:
    """Tells the story of one instance. one: an object `History` of the API. now: with the zone to show times in."""

    def __init__(self, one: dict[str, Any], now: datetime, colour: bool) -> None:
        self.one = one
        self.now = now
        self.colour = colour
        self.started = {r["generation"]: moment(r) for r in one["records"] if r["event"] == "started"}

    def tell(self, number: int) -> Iterator[str]:
        """The lines: where it is, then the last episodes, oldest first."""
        yield from self.present()
        told = episodes(self.one["records"])
        if len(told) > number or self.one["forgotten"]:
            yield ""
            yield self.faint(self.earlier(len(told) - number))
        if self.calm and len(told) == 1 and not any(record["event"] == "waiting" for record in told[0]):
            return  # its first lines have said all
        for episode in told[-number:]:
            yield ""
            yield from self.episode(episode)

    def present(self) -> Iterator[str]:
        """Where it is and since when; what comes next."""
        one = self.one
        head = coloured(printable(one["name"]), BOLD, self.colour)
        state = coloured(one["state"], COLOURS.get(one["state"], ""), self.colour)
        changes = [record for record in one["records"] if record["event"] == "state"]
        reason = f": {printable(one['reason'])}" if one["reason"] else ""
        if not one["generation"] and not changes:
            began = datetime.fromtimestamp(one["since"]).astimezone()
            began_at = f"{clock(began, self.now)} ({self.ago(began)})"
            yield f"{head}: {state}{reason or f'; not started since the supervisor began, {began_at}'}"
            return
        since = ""
        if changes:
            at = moment(changes[-1])
            since = f" since {clock(at, self.now)} ({self.ago(at)})"
        yield f"{head}: {state}{since}{reason}"
        if one["state"] == "backoff" and (decided := [r for r in one["records"] if "delay_sec" in r]):
            start = moment(decided[-1]) + timedelta(seconds=decided[-1]["delay_sec"])
            left = max((start - self.now).total_seconds(), 0)
            yield ", ".join(["next start in " + span(left), *filter(None, [place(decided[-1])])])
        if self.calm:
            yield "it has never failed"
        else:
            restarts = f", {one['restarts']} of them by itself" if one["restarts"] else ""
            yield f"{plural(one['generation'], 'start')}{restarts}"

    @property
    def calm(self) -> bool:
        """Nothing ever went wrong, as far as is known."""
        one = self.one
        bad = any(
            record["level"] not in ("debug", "info") or (record["event"] == "exited" and not self.clean(record))
            for record in one["records"]
        )
        return not (bad or one["forgotten"] or one["restarts"] or one["state"] == "failed")

    def clean(self, record: Record) -> bool:
        """It ended well, or because somebody asked for it."""
        return record["code"] == 0 or record["signal"] in ("SIGHUP", "SIGINT", "SIGTERM", "SIGPIPE")

    def earlier(self, untold: int) -> str:
        """What is not told here, and where it is."""
        parts = []
        if untold > 0:
            parts.append(f"{plural(untold, 'earlier episode')}: -n shows more")
        if self.one["forgotten"]:
            parts.append(f"{plural(self.one['forgotten'], 'older record')}: in the log only")
        return "; ".join(parts)

    # ---- an episode

    def episode(self, episode: Episode) -> Iterator[str]:
        """When and what, then a row for each thing that belongs to it."""
        # What starts by itself is told by what was asked for, and when that was heard.
        first = next((r for r in episode if r["event"] == "action"), episode[0]) if _waited(episode) else episode[0]
        last = episode[-1] if stands_alone(episode[-1]) else first
        at = moment(last)
        head = coloured(printable(self.title(first, episode)), BOLD, self.colour)
        yield f"{clock(at, self.now)} {self.faint(f'({self.ago(at)})')}  {head}"
        for label, said in [*self.causes(last), *self.consequences(first, episode)]:
            yield f"  {self.faint(f'{label:<9}')} {printable(said)}"

    def title(self, first: Record, episode: Sequence[Record]) -> str:
        """What was done, and who or what did it; or what happened."""
        if first["event"] == "action" and "rule" in first["cause"]:
            cause = first["cause"]
            where = f"{os.path.basename(self.one['config'])} line {cause['line']}"
            tried = " (dry run: not done)" if first.get("dry_run") else ""
            again = ""
            if len(episode) > 1 and stands_alone(first):
                again = f", {len(episode)} times since {clock(moment(first), self.now)}"
            return f"{asked(first)}{tried} by {cause['rule']}, {where}{again}"
        match first["event"]:
            case "action" if "by" in first["cause"]:
                return f"{asked(first)} by {first['cause']['by']}"
            case "action":
                return f"restart after {first['cause']['reason']}"
            case "exited":
                return ended(first)
            case "state":
                return f"{first['to']}: {first['reason']}"
            case "waiting":
                return "start"
        return f"{first['event']}: {self.message(first)}"

    def causes(self, record: Record) -> Iterator[Row]:
        """What a rule saw."""
        if record["event"] == "action" and "rule" in record["cause"]:
            yield "when", record["cause"]["when"]
            yield "read", reading(record["cause"])
            if "victim" in record["cause"]:
                yield from self.choice(record["cause"])

    def choice(self, cause: Record) -> Iterator[Row]:
        """Why a group's rule hit this one and no other."""
        yield "chosen", f"{chosen_for(cause)}, in {cause['group']}"
        if "escalates" in cause:
            yield "after", cause["escalates"]
        for one in cause["candidates"][1 : 1 + RIVALS]:
            turn = "no turn" if one["turn"] is None else f"turn {one['turn']}"
            yield "beside", f"{one['name']}: {turn}, {one['why']}"
        if (more := len(cause["candidates"]) - 1 - RIVALS) > 0:
            yield "", f"and {more} more"

    def consequences(self, first: Record, episode: Sequence[Record]) -> Iterator[Row]:
        """What came of it, in order."""

        for record, following in zip(episode, [*episode[1:], None], strict=True):
            match record["event"]:
                case "waiting":
                    until = f" ({span((moment(following) - moment(record)).total_seconds())})" if following else ""
                    yield "waited", record["message"].removeprefix("waits ") + until
                case "exited":
                    yield ("program" if record is first else "exit"), self.program(record, record is not first)
                case "not started" if record is not first:
                    yield "failed", self.message(record)
                case "action" if "exit" in record["cause"]:
                    by_rule = "rule" in first.get("cause", {}) and first["action"] == "restart"
                    setting = "" if by_rule else f' (restart = "{record["cause"]["restart"]}")'
                    words = ["in " + span(record.get("delay_sec", 0)), place(record)]
                    yield "restart", ", ".join(filter(None, words)) + setting
                case "started":
                    yield (
                        "started",
                        f"{clock(moment(record), self.now)}, generation {record['generation']}, pid {record['pid']}",
                    )
                case "state":
                    yield from self.outcome(record, first)

    def outcome(self, record: Record, first: Record) -> Iterator[Row]:
        """The state that it led to, where that is not told by other rows."""
        to, took = record["to"], (moment(record) - moment(first)).total_seconds()
        if to == "ready":
            yield "ready", f"{clock(moment(record), self.now)}"
        elif to == "stopped" and record is not first:
            yield "stopped", f"after {span(took)}"
        elif to in ("failed", "exited"):
            given_up, _, _ = record["reason"].partition("; the last: ")
            no_restart = f'not started again (restart = "{self.one["restart"]}")'
            yield to, given_up if given_up.startswith("given up") else no_restart

    def program(self, record: Record, how: bool) -> str:
        """Which program ended, after how long, and, with ``how``, how."""
        started = self.started.get(record["generation"])
        ran = span((moment(record) - started).total_seconds()) if started else "an unknown time"
        which = f"generation {record['generation']}, pid {record['pid']}"
        return f"{ended(record)}, after {ran} ({which})" if how else f"{which}, ran for {ran}"

    # ---- words

    def message(self, record: Record) -> str:
        """A record's message without the workload's name, which is in the first line."""
        return text(record).removeprefix(f"workload {self.one['name']}: ")

    def ago(self, time: datetime) -> str:
        return f"{duration(max((self.now - time).total_seconds(), 0))} ago"

    def faint(self, words: str) -> str:
        return coloured(words, FAINT, self.colour)


def _waited(episode: Sequence[Record]) -> bool:
    return bool(episode[0]["event"] == "waiting")
