"""Counters of one workload instance: plain numbers, so that counting costs an actor only an addition.

Counters start at 0 with the supervisor and continue across generations.
"""

from __future__ import annotations

from nsupervisor.config.model import WorkloadConfig
from nsupervisor.core.events import Exited, HookDone, Input, Timeout
from nsupervisor.core.exits import Exit
from nsupervisor.core.lifecycle import (
    AfterStop,
    Lifecycle,
    exit_outcome,
    has_timed_out,
    hook_commands,
    hook_prefixes,
)
from nsupervisor.core.phases import HOOK_KEYS, Phase

EXIT_KINDS = ("code", "signal", "oom", "failure")
"""How a generation ends: with an exit code, by a signal, by the OOM killer, or without being executed ("failure")."""

RESTART_CAUSES = ("exit-code", "signal", "oom", "failure", "timeout", "watchdog", "protocol", "success", "rule")
"""Why the supervisor restarts an instance: the values of `nsupervisor.core.exits.Outcome`, with "oom" and "failure"
separate from other signals and exit codes. "rule" is a restart by a policy rule, however the program then ended."""

STREAMS = ("stdout", "stderr")


class OutputVolume:
    """The amount of output read from one stream of a program, and how much of it was dropped."""

    __slots__ = ("bytes", "dropped_lines", "limited_bytes", "lines")

    def __init__(self) -> None:
        self.bytes = 0
        self.lines = 0
        """The number of line ends."""
        self.dropped_lines = 0
        """The number of lines that a destination lacks."""
        self.limited_bytes = 0
        """The number of bytes that the rate limit has dropped."""

    def add(self, size: int, lines: int) -> None:
        """Add what was read."""
        self.bytes += size
        self.lines += lines

    def drop(self, lines: int) -> None:
        """Count lines that a destination lacks; called by the thread that would have written them."""
        self.dropped_lines += lines

    def limit(self, size: int) -> None:
        """Count bytes that the rate limit drops, called as `drop`."""
        self.limited_bytes += size


class Counters:
    """The counters of one instance. Causes that have not occurred yet have no entry."""

    __slots__ = ("actions", "exits", "hook_failures", "hook_seconds", "output", "probes", "restarts")

    def __init__(self) -> None:
        self.exits: dict[str, int] = {}
        self.restarts: dict[str, int] = {}
        self.actions: dict[tuple[str, str], int] = {}
        """The number of firings by (rule, action)."""
        self.probes: dict[tuple[str, bool], int] = {}
        """The number of results by probe and success."""
        self.hook_seconds: dict[str, float] = {}
        """By key of a hook: how long its latest command took."""
        self.hook_failures: dict[str, int] = {}
        """By key of a hook: how many of its commands have failed."""
        self.output = {stream: OutputVolume() for stream in STREAMS}

    def count_transition(
        self, before: Lifecycle, event: Input, after: Lifecycle, workload: WorkloadConfig, now: float
    ) -> None:
        """Count the exit, the restart and the end of a command of a hook in a transition of the lifecycle."""
        if before.phase in HOOK_KEYS:
            self._count_hook(before, event, after, workload, now)
        exit_ = event.exit if isinstance(event, Exited) else None
        if exit_ is not None and exit_.skipped is None:
            kind = exit_kind(exit_)
            self.exits[kind] = self.exits.get(kind, 0) + 1
        if after.restarts > before.restarts:
            cause = restart_cause(before, exit_ or before.exit, workload)
            self.restarts[cause] = self.restarts.get(cause, 0) + 1

    def _count_hook(
        self, before: Lifecycle, event: Input, after: Lifecycle, workload: WorkloadConfig, now: float
    ) -> None:
        key, has_failed = HOOK_KEYS[before.phase], False
        if isinstance(event, HookDone) and (event.phase, event.step) == (before.phase, before.step):
            self.hook_seconds[key] = max(now - before.step_since, 0.0)
            commands = hook_commands(workload, before.phase)
            is_ignored = before.step < len(commands) and "-" in hook_prefixes(commands[before.step])
            has_failed = not (event.is_success or is_ignored or has_timed_out(before))
        elif isinstance(event, Timeout):  # it is the failure; the end of the command comes later
            is_slow_reload = before.phase is Phase.RELOAD and bool(after.reload_failure)
            has_failed = is_slow_reload or (after.hook_failure != before.hook_failure and bool(after.hook_failure))
            if is_slow_reload:
                self.hook_seconds[key] = max(now - before.step_since, 0.0)
        if has_failed:
            self.hook_failures[key] = self.hook_failures.get(key, 0) + 1

    def count_probe(self, probe: str, is_success: bool) -> None:
        """Count the result of a probe."""
        key = probe, is_success
        self.probes[key] = self.probes.get(key, 0) + 1

    def count_firing(self, rule: str, action: str) -> None:
        """Count a firing of a rule."""
        key = rule, action
        self.actions[key] = self.actions.get(key, 0) + 1


def exit_kind(exit_: Exit) -> str:
    """Classify an exit as one of `EXIT_KINDS`."""
    if exit_.setup_failure is not None:
        return "failure"
    if exit_.oom_killed:
        return "oom"
    return "code" if exit_.signal is None else "signal"


def restart_cause(before: Lifecycle, exit_: Exit | None, workload: WorkloadConfig) -> str:
    """Return which of `RESTART_CAUSES` caused a restart. `before` is the lifecycle before the transition that decided
    on it."""
    if before.after_stop is AfterStop.BACKOFF:
        return "rule"
    if exit_ is None:  # a command before the program has failed, and no program was started
        return before.fault_outcome.value if before.fault_outcome is not None else "failure"
    outcome, kind = exit_outcome(before, exit_, workload), exit_kind(exit_)
    return kind if before.fault_outcome is None and kind in ("oom", "failure") else outcome.value
