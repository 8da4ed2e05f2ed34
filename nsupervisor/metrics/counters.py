"""What is counted of one workload instance while it lives. Plain numbers: a step of an actor pays for an addition.

Counters begin at 0 with the supervisor, and go on over the generations.
"""

from __future__ import annotations

from nsupervisor.config.model import Workload
from nsupervisor.core.events import Event, Exited
from nsupervisor.core.exits import Exit
from nsupervisor.core.lifecycle import Life, Then

EXITS = ("code", "signal", "oom", "failure")
"""How a generation ends: with an exit code, by a signal, by the OOM killer; or it never began."""

RESTARTS = ("exit-code", "signal", "oom", "failure", "timeout", "watchdog", "success", "rule")
"""Why the supervisor starts one again. The words of `nsupervisor.core.exits.Outcome`, with "oom" and "failure" told
from other signals and exit codes; "rule" is a policy's restart, whatever the program then ended with."""

STREAMS = ("stdout", "stderr")


class Volume:
    """How much came out of one of a program's streams."""

    __slots__ = ("bytes", "lines")

    def __init__(self) -> None:
        self.bytes = 0
        self.lines = 0
        """Ends of lines."""

    def add(self, size: int, lines: int) -> None:
        """Count what was read."""
        self.bytes += size
        self.lines += lines


class Counters:
    """The counters of one instance. What has not happened yet has no entry."""

    __slots__ = ("actions", "exits", "output", "restarts")

    def __init__(self) -> None:
        self.exits: dict[str, int] = {}
        self.restarts: dict[str, int] = {}
        self.actions: dict[tuple[str, str], int] = {}
        """By (rule, action)."""
        self.output = {stream: Volume() for stream in STREAMS}

    def stepped(self, old: Life, event: Event, new: Life, workload: Workload) -> None:
        """Count what a step of the lifecycle was: an end, a restart, or both."""
        ended = event.exit if isinstance(event, Exited) else None
        if ended is not None:
            kind = exit_kind(ended)
            self.exits[kind] = self.exits.get(kind, 0) + 1
        if new.restarts > old.restarts:
            cause = restart_cause(old, ended or old.exit, workload)
            self.restarts[cause] = self.restarts.get(cause, 0) + 1

    def acted(self, rule: str, action: str) -> None:
        """A rule has gone off."""
        key = rule, action
        self.actions[key] = self.actions.get(key, 0) + 1


def exit_kind(exit_: Exit) -> str:
    """Which of `EXITS` it is."""
    if exit_.failure is not None:
        return "failure"
    if exit_.oom_killed:
        return "oom"
    return "code" if exit_.signal is None else "signal"


def restart_cause(old: Life, exit_: Exit | None, workload: Workload) -> str:
    """Which of `RESTARTS` made the policy start a workload again. `old`: the life before that step."""
    if old.then is Then.RECYCLE:
        return "rule"
    if old.fault is not None:
        return old.fault.value
    assert exit_ is not None, "a program that has not ended is not restarted"
    kind = exit_kind(exit_)
    return kind if kind in ("oom", "failure") else exit_.outcome(workload.success_exit_status).value
