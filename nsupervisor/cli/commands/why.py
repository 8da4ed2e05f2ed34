"""The command `nsupervisor why`."""

from __future__ import annotations

import os
import sys
from datetime import datetime, timedelta

import click

from nsupervisor.api.client import Client
from nsupervisor.cli.commands.status import COLOURS, format_blockage, format_path_trigger
from nsupervisor.cli.episodes import group_episodes, is_standalone
from nsupervisor.cli.options import json_option, socket_option
from nsupervisor.cli.output import print_json
from nsupervisor.cli.workload_output import last_output
from nsupervisor.terminal.lines import fold
from nsupervisor.terminal.numbers import format_count, format_duration, format_span
from nsupervisor.terminal.records import (
    format_choice,
    format_command,
    format_exit,
    format_reading,
    format_record,
    format_start_limit,
    initiator_phrase,
)
from nsupervisor.terminal.style import BOLD, FAINT, colorize, escape_control, has_colour, terminal_width
from nsupervisor.terminal.times import format_time, local_time

SHOWN_OUTPUT = 3
"""The largest number of lines that are shown of what a failed program has written last."""
SEARCHED_OUTPUT = 500
"""The number of latest lines of an instance that are searched for them."""
_LABEL_WIDTH = 9
_DETAIL_INDENT = _LABEL_WIDTH + 3
MAX_OTHER_CANDIDATES = 5
"""The largest number of candidates that are shown in addition to a group's victim."""

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from nsupervisor.cli.episodes import Episode, Record

Row = tuple[str, str]
"""A label and its text."""


@click.command(short_help="Show why a workload is in its state.")
@socket_option
@json_option
@click.option(
    "-n", "--number", type=click.IntRange(1), default=5, show_default=True, help="The number of last episodes to show."
)
@click.argument("name")
def why(socket_path: str, as_json: bool, number: int, name: str) -> None:
    """Show what led to the state of NAME: which rule fired, how programs ended, and what was decided.

    A restart also shows its position in the start limit. NAME is a workload ("web": all its instances), an instance
    ("web@2"), a group ("group/batch": all in it) or a glob in quotes ("web*").
    """
    client = Client(socket_path)
    instances = client.history(name)
    if as_json:
        for instance in instances:
            instance["episodes"] = group_episodes(instance.pop("records"))[-number:]
        print_json(instances)
    else:
        now, colour, width = datetime.now().astimezone(), has_colour(sys.stdout), terminal_width()
        sections = []
        for instance in instances:
            output = [line.record for line in last_output(client, instance, SEARCHED_OUTPUT)]
            lines = Renderer(instance, now, colour, output, refused_call).render(number)
            sections.append("\n".join(fold(line, width, _DETAIL_INDENT if line[:1] == " " else 2) for line in lines))
        print("\n\n".join(sections))


REFUSED_CALL = (
    "SIGSYS: a filter of system calls ended it, by default only for a call of another architecture (a 32-bit program); "
    "the kernel log has the number (journalctl -k -g type=1326). In the table security, "
    'seccomp = "log" reports calls and refuses none, "off" allows all'
)
"""The reason of a SIGSYS, as far as it is known, and the keys about it."""
NAMED_CALL = (
    "SIGSYS: its filter of system calls refused {}. In the table security, "
    'seccomp = "log" reports calls and refuses none, "off" allows all'
)
"""The same, if the kernel's log has the call."""
NOT_PERMITTED = (
    "it may lack a capability, or a filter of system calls refused one (docs/security.md has the keys). In the table "
    'security, seccomp = "log" allows calls that would be refused, and reports them (journalctl -k -g type=1326)'
)
_NOT_PERMITTED_WORDS = ("operation not permitted", "eperm")


def refused_call(pid: int, since: datetime, until: datetime) -> str:
    """Describe the system call for which a process was ended at that time; "" if the kernel's log does not have it."""
    from nsupervisor.cli import kernel_log

    found = kernel_log.find_refused_call(kernel_log.read_kernel_log(), pid, since.timestamp(), until.timestamp())
    return "" if found is None else kernel_log.describe_call(*found)


class Renderer:
    """Renders the history of one instance.

    instance: an object `History` of the API. now: with the time zone of the output. output: records of the latest
    output, oldest first. find_call: `refused_call`.
    """

    def __init__(
        self,
        instance: dict[str, Any],
        now: datetime,
        colour: bool,
        output: Sequence[dict[str, Any]] = (),
        find_call: Callable[[int, datetime, datetime], str] = lambda _pid, _since, _until: "",
    ) -> None:
        self.instance = instance
        self.now = now
        self.colour = colour
        self.output = output
        self.find_call = find_call
        self.started = {r["generation"]: local_time(r) for r in instance["records"] if r["event"] == "started"}

    def render(self, number: int) -> Iterator[str]:
        """Yield the lines: the present state, then the last episodes, oldest first."""
        yield from self.present_state()
        grouped = group_episodes(self.instance["records"])
        if len(grouped) > number or self.instance["forgotten"]:
            yield ""
            yield self.faint(self.hidden_text(len(grouped) - number))
        if self.never_failed and len(grouped) == 1 and not any(record["event"] == "waiting" for record in grouped[0]):
            return  # the present state already shows everything
        for episode in grouped[-number:]:
            yield ""
            yield from self.render_episode(episode)

    def present_state(self) -> Iterator[str]:
        """Yield the present state and its beginning; what comes next."""
        instance = self.instance
        head = colorize(escape_control(instance["name"]), BOLD, self.colour)
        state = colorize(instance["state"], COLOURS.get(instance["state"], ""), self.colour)
        changes = [record for record in instance["records"] if record["event"] == "state"]
        reason = f": {escape_control(instance['reason'])}" if instance["reason"] else ""
        if not instance["generation"] and not changes:
            started = datetime.fromtimestamp(instance["since"]).astimezone()
            began_at = f"{format_time(started, self.now)} ({self.ago(started)})"
            yield f"{head}: {state}{reason or f'; not started since the supervisor began, {began_at}'}"
            yield from self.timer()
            return
        since, status_text = "", instance.get("status_text")
        if changes:
            changed_at = local_time(changes[-1])
            since = f" since {format_time(changed_at, self.now)} ({self.ago(changed_at)})"
        yield f"{head}: {state}{since}{reason}"
        yield from self.timer()
        if blocked := format_blockage(instance):
            yield f"its output is {escape_control(blocked)}"
        if status_text:
            yield f'the program reports "{escape_control(status_text)}"'
        if instance["state"] == "backoff" and (decided := [r for r in instance["records"] if "delay_sec" in r]):
            start = local_time(decided[-1]) + timedelta(seconds=decided[-1]["delay_sec"])
            remaining = max((start - self.now).total_seconds(), 0)
            yield ", ".join(
                ["next start in " + format_span(remaining), *filter(None, [format_start_limit(decided[-1])])]
            )
        if self.never_failed:
            yield "it has never failed"
        else:
            restarts = f", {instance['restarts']} of them by itself" if instance["restarts"] else ""
            yield f"{format_count(instance['generation'], 'start')}{restarts}"

    def timer(self) -> Iterator[str]:
        """Yield when its timer runs next, what became of the last time, and what its paths wait for."""
        if timer := self.instance.get("timer"):
            from nsupervisor.cli.timers import describe_timer  # only here, since few workloads have a timer

            yield f"timer: {escape_control(describe_timer(timer))}"
        for path in self.instance.get("paths", ()):
            yield f"path: {escape_control(format_path_trigger(path))}"

    @property
    def never_failed(self) -> bool:
        """Whether no failure is known."""
        instance = self.instance
        has_failure = any(
            record["level"] not in ("debug", "info") or (record["event"] == "exited" and not self.ended_well(record))
            for record in instance["records"]
        )
        return not (has_failure or instance["forgotten"] or instance["restarts"] or instance["state"] == "failed")

    def ended_well(self, record: Record) -> bool:
        """Return whether a program ended successfully, or at a request."""
        return record["code"] == 0 or record["signal"] in ("SIGHUP", "SIGINT", "SIGTERM", "SIGPIPE")

    def hidden_text(self, hidden_count: int) -> str:
        """Describe what is not shown here, and where it is."""
        parts = []
        if hidden_count > 0:
            parts.append(f"{format_count(hidden_count, 'earlier episode')}: -n shows more")
        if self.instance["forgotten"]:
            parts.append(f"{format_count(self.instance['forgotten'], 'older record')}: in the log only")
        return "; ".join(parts)

    # ---- an episode

    def render_episode(self, episode: Episode) -> Iterator[str]:
        """Yield the time and the title, then a row for each detail."""
        # The title of a start that waited is the command that asked for it, with the time of the command.
        first = next((r for r in episode if r["event"] == "action"), episode[0]) if _waited(episode) else episode[0]
        last = episode[-1] if is_standalone(episode[-1]) else first
        time = local_time(last)
        head = colorize(escape_control(self.title(first, episode)), BOLD, self.colour)
        yield f"{format_time(time, self.now)} {self.faint(f'({self.ago(time)})')}  {head}"
        for label, detail in [*self.causes(last), *self.consequences(first, episode)]:
            yield f"  {self.faint(f'{label:<{_LABEL_WIDTH}}')} {escape_control(detail)}"

    def title(self, first: Record, episode: Sequence[Record]) -> str:
        """Return what was done, and by which rule or caller; or what happened."""
        if first["event"] == "action" and "rule" in first["cause"]:
            cause = first["cause"]
            # A rule of an included file has the line 0.
            location = f", {os.path.basename(self.instance['config'])} line {cause['line']}" if cause["line"] else ""
            suffix = " (dry run: not done)" if first.get("dry_run") else ""
            repetition = ""
            if len(episode) > 1 and is_standalone(first):
                repetition = f", {len(episode)} times since {format_time(local_time(first), self.now)}"
            return f"{format_command(first)}{suffix} by {cause['rule']}{location}{repetition}"
        match first["event"]:
            case "action" if "by" in first["cause"]:
                return f"{format_command(first)} {initiator_phrase(first['cause'])}"
            case "action":
                return f"restart after {first['cause']['reason']}"
            case "exited":
                return format_exit(first)
            case "state":
                return f"{first['to']}: {first['reason']}"
            case "waiting":
                return "start"
            case "timer":
                return f"timer: {self.message_text(first)}"
        return f"{first['event']}: {self.message_text(first)}"

    def causes(self, record: Record) -> Iterator[Row]:
        """Yield the condition of a rule and the readings that fired it."""
        if record["event"] == "action" and "rule" in record["cause"]:
            yield "when", record["cause"]["when"]
            yield "read", format_reading(record["cause"])
            if "victim" in record["cause"]:
                yield from self.choice(record["cause"])

    def choice(self, cause: Record) -> Iterator[Row]:
        """Yield why a group's rule chose this instance and no other."""
        yield "chosen", f"{format_choice(cause)}, in {cause['group']}"
        if "escalates" in cause:
            yield "after", cause["escalates"]
        for candidate in cause["candidates"][1 : 1 + MAX_OTHER_CANDIDATES]:
            rank = "no turn" if candidate["turn"] is None else f"turn {candidate['turn']}"
            yield "beside", f"{candidate['name']}: {rank}, {candidate['why']}"
        if (remaining := len(cause["candidates"]) - 1 - MAX_OTHER_CANDIDATES) > 0:
            yield "", f"and {remaining} more"

    def consequences(self, first: Record, episode: Sequence[Record]) -> Iterator[Row]:
        """Yield the consequences, in order."""

        for record, following in zip(episode, [*episode[1:], None], strict=True):
            match record["event"]:
                case "waiting":
                    until = (
                        f" ({format_span((local_time(following) - local_time(record)).total_seconds())})"
                        if following
                        else ""
                    )
                    is_blocked = record["level"] == "warning"
                    yield "blocked" if is_blocked else "waited", record["message"].removeprefix("waits ") + until
                case "exited":
                    yield ("program" if record is first else "exit"), self.program_text(record, record is not first)
                    if record["signal"] == "SIGSYS":
                        yield "hint", self.refusal(record)
                    if not self.ended_well(record):
                        written = list(self.last_words(record["generation"]))
                        yield from written
                        if any(text in message.lower() for _, message in written for text in _NOT_PERMITTED_WORDS):
                            yield "hint", NOT_PERMITTED
                case "not started" if record is not first:
                    yield "failed", self.message_text(record)
                case "action" if "exit" in record["cause"]:
                    by_rule = "rule" in first.get("cause", {}) and first["action"] == "restart"
                    setting = "" if by_rule else f' (restart = "{record["cause"]["restart"]}")'
                    words = ["in " + format_span(record.get("delay_sec", 0)), format_start_limit(record)]
                    yield "restart", ", ".join(filter(None, words)) + setting
                case "started":
                    yield (
                        "started",
                        f"{format_time(local_time(record), self.now)}, generation {record['generation']}, "
                        f"pid {record['pid']}",
                    )
                case "state":
                    yield from self.outcome(record, first)

    def refusal(self, record: Record) -> str:
        """Explain the end of a program by SIGSYS."""
        until = local_time(record)
        since = self.started.get(record["generation"], until)
        call = self.find_call(record["pid"], since, until) if record.get("pid") else ""
        return NAMED_CALL.format(call) if call else REFUSED_CALL

    def last_words(self, generation: int) -> Iterator[Row]:
        """Yield the last lines that the program of a generation has written, if they are known."""
        written = [r["message"] for r in self.output if r.get("generation") == generation and r["event"] == "output"]
        for number, message in enumerate(written[-SHOWN_OUTPUT:]):
            yield ("" if number else "wrote"), message

    def outcome(self, record: Record, first: Record) -> Iterator[Row]:
        """Yield the resulting state, if no other row shows it."""
        to, took = record["to"], (local_time(record) - local_time(first)).total_seconds()
        if to == "ready":
            yield "ready", f"{format_time(local_time(record), self.now)}"
        elif to == "stopped" and record is not first:
            yield "stopped", f"after {format_span(took)}"
        elif to in ("failed", "exited"):
            given_up, _, _ = record["reason"].partition("; the last: ")
            no_restart = f'not started again (restart = "{self.instance["restart"]}")'
            yield to, given_up if given_up.startswith("given up") else no_restart

    def program_text(self, record: Record, with_exit: bool) -> str:
        """Describe which program ended, after how long, and, with `with_exit`, how."""
        ran = self.format_uptime(record)
        which = f"generation {record['generation']}, pid {record['pid']}"
        return f"{format_exit(record)}, after {ran} ({which})" if with_exit else f"{which}, ran for {ran}"

    def format_uptime(self, record: Record) -> str:
        """Format how long the program of an `exited` record ran. The record itself has it since version 0.2.0."""
        if "uptime_sec" in record:
            return format_span(record["uptime_sec"])
        started = self.started.get(record["generation"])
        return format_span((local_time(record) - started).total_seconds()) if started else "an unknown time"

    # ---- words

    def message_text(self, record: Record) -> str:
        """Return a record's message; the workload's name is in the first line."""
        return format_record(record)

    def ago(self, time: datetime) -> str:
        """Format the time that has passed since `time`."""
        return f"{format_duration(max((self.now - time).total_seconds(), 0))} ago"

    def faint(self, words: str) -> str:
        """Return the words in the faint colour."""
        return colorize(words, FAINT, self.colour)


def _waited(episode: Sequence[Record]) -> bool:
    return bool(episode[0]["event"] == "waiting")
