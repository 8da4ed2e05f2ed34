"""Recordings: the inputs of workload instances as the lines of a trace, for clients of the API.

A recording receives each transition of its instances. It also samples every file that a rule may reference, so that
other rules than the present ones can be tried with the trace. The lines that wait for the reader are bounded: a
recording with a gap would be useless, so it ends there, and its last line says why.

Groups, and the host, are recorded too if all their members are: without one of the members, the victims of their rules
could not be determined.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from time import perf_counter
from typing import TYPE_CHECKING, Any

import attrs
import trio

from nsupervisor import __version__
from nsupervisor.cgroups import Cgroup, CgroupError
from nsupervisor.condition_variable import ConditionVariable
from nsupervisor.config.condition_terms import COUNTERS, HOST_MEMORY_TOTALS, LEVELS, NOT_FILES, PROBE, UPTIME
from nsupervisor.config.model import WorkloadConfig
from nsupervisor.core.decider import Transition, WorkloadInput, WorkloadState
from nsupervisor.core.lifecycle import Instant
from nsupervisor.core.replay.trace import Line, TraceWriter, encode_line
from nsupervisor.core.rules.group_policy import ActionOutcome, GroupConfigChanged, GroupEvent
from nsupervisor.core.rules.rules import Snapshot
from nsupervisor.line_stream import LineStream

if TYPE_CHECKING:
    from nsupervisor.service.group.group import Group
    from nsupervisor.service.group.groups import Groups
    from nsupervisor.service.instance.actor import Actor

SAMPLES_PER_CHECKPOINT = 20
"""Workloads whose files are read without a checkpoint; other tasks run before the next ones."""
MAX_CPU_SHARE = 10
"""Samples take at most a tenth of the service's time (the inverse of this number); otherwise they are delayed."""
RECORDED_KEYS: Mapping[str, frozenset[str]] = {
    file: frozenset({*COUNTERS.get(file, ()), *LEVELS.get(file, ())}) for file in (COUNTERS | LEVELS)
} | {"host.meminfo": frozenset({*HOST_MEMORY_TOTALS, *HOST_MEMORY_TOTALS.values()})}
"""The files that rules may reference, with their keys."""


@attrs.frozen
class RecordingTerms:
    """How long and how much to record."""

    interval: float | None = 0.25
    """Seconds between two samples; None to record only what the present rules see."""
    seconds: float = math.inf
    max_bytes: float = math.inf
    """Size at which the recording ends, in bytes."""


@attrs.define(eq=False)
class Recording:
    """An asynchronous iterator of bytes: whole lines. Made by `Recorder.record`."""

    actors: Mapping[str, "Actor"]
    groups: "Groups"
    terms: RecordingTerms
    config: str
    """Path of the configuration, for the header line."""
    _writer: TraceWriter = attrs.field(factory=TraceWriter)
    _stream: LineStream[None] = attrs.field(factory=LineStream)
    _total_bytes: int = 0
    _recorded_states: dict[str, WorkloadState] = attrs.field(factory=dict)
    """By instance: the state that the next transition begins with, unless another instance has taken its place."""
    _recorded_groups: tuple["Group", ...] = attrs.field(init=False)
    """The groups that are recorded."""
    _groups_begun: bool = False
    _next_sample_at: float = attrs.field(factory=trio.current_time)
    """When the next samples are due, on trio's clock."""
    _ends_at: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        now = trio.current_time()
        self._ends_at = now + self.terms.seconds
        workloads = {name: actor.workload for name, actor in self.actors.items()}
        self._recorded_groups = tuple(
            group
            for group in self.groups.all_groups
            if group.members and {member.name for member in group.members} <= workloads.keys()
        )
        groups = {
            group.name: (group.config, [member.name for member in group.members]) for group in self._recorded_groups
        }
        about = {"version": __version__, "config": self.config, "host": host_facts(), "interval": self.terms.interval}
        clock = {"monotonic": now, "realtime": datetime.now(UTC).isoformat(timespec="microseconds")}
        self._add([self._writer.head(workloads, groups, clock=clock, **about)])
        for name, actor in self.actors.items():
            self._add(self._writer.limits(name, actor.limits, now))
            self._begin_instance(name, actor.workload, actor.decisions.state, now)
        self._begin_groups(now)

    def record_transition(
        self,
        name: str,
        workload: WorkloadConfig,
        before: WorkloadState,
        workload_input: WorkloadInput,
        instant: Instant,
        transition: Transition,
    ) -> None:
        """Record a transition of an instance."""
        if self._recorded_states.get(name) is before:
            self._recorded_states[name] = transition.state
            self._add(self._writer.transition(name, workload, before, workload_input, instant, transition))
        elif name in self.actors:
            self._begin_instance(name, workload, transition.state, instant.now)

    def record_group_event(self, name: str, event: GroupEvent, now: float) -> None:
        """Record an event of a group."""
        if not self._groups_begun:
            return
        is_recorded = any(group.name == name for group in self._recorded_groups)
        if is_recorded:
            self._add(self._writer.group_event(name, event, now))
        if isinstance(event, GroupConfigChanged) or (not is_recorded and isinstance(event, ActionOutcome)):
            self._write_rule_states(now)  # a new configuration has other rules; an action has started their cooldowns

    def close(self, reason: str) -> None:
        """Write the last line of the recording."""
        self._stream.end(encode_line({"t": trio.current_time(), "end": reason}))

    def __aiter__(self) -> "Recording":
        return self

    async def __anext__(self) -> bytes:
        while True:
            if trio.current_time() >= self._ends_at:
                self.close("the time is over")
            if (
                not self._stream.is_complete
                and self.terms.interval is not None
                and trio.current_time() >= self._next_sample_at
            ):
                await self._sample(self.terms.interval)
            if lines := self._stream.take():
                return lines
            if self._stream.is_complete:
                raise StopAsyncIteration
            with trio.move_on_at(
                self._ends_at if self.terms.interval is None else min(self._next_sample_at, self._ends_at)
            ):
                await self._stream.wait()

    def _begin_instance(self, name: str, workload: WorkloadConfig, state: WorkloadState, now: float) -> None:
        """Begin with an instance when no rule of it has a pending action, and again for one that replaces another."""
        if not state.pending:
            self._recorded_states[name] = state
            self._add(self._writer.config_change(name, workload, now))
            self._add([self._writer.workload_start(name, state, now)])

    def _begin_groups(self, now: float) -> None:
        """Begin with the groups when no rule of any of them has an action that is pending or in progress."""
        if not self._groups_begun and not any(group.is_acting for group in self.groups.all_groups):
            self._groups_begun = True
            self._write_rule_states(now)

    def _write_rule_states(self, now: float) -> None:
        for group in self._recorded_groups:
            if group.is_retired:
                continue
            self._add(self._writer.limits(group.name, group.limits, now))
            self._add([self._writer.group_start(group.name, group.engine, group.last_action_at, now)])

    def _add(self, lines: Iterable[Line]) -> None:
        for line in lines:
            if self._stream.is_complete:
                return
            text = encode_line(line)
            if not self._stream.has_room(len(text)):
                self.close("the reader is too slow")
                return
            self._stream.add(text)
            self._total_bytes += len(text)
            if self._total_bytes >= self.terms.max_bytes:
                self.close("it has the size that it may have")

    async def _sample(self, interval: float) -> None:
        """Sample the files of all running instances, a few at a time, so that no other task waits for long."""
        alive = [
            (name, actor)
            for name, actor in self.actors.items()
            if actor.lifecycle.is_alive and name in self._recorded_states
        ]
        spent = 0.0
        for first in range(0, len(alive), SAMPLES_PER_CHECKPOINT):
            began_at, now, batch = perf_counter(), trio.current_time(), alive[first : first + SAMPLES_PER_CHECKPOINT]
            for name, actor in batch:
                self._add(self._writer.limits(name, actor.limits, now))
            self._add([self._writer.sample(now, {name: full_snapshot(actor) for name, actor in batch})])
            spent += perf_counter() - began_at
            await trio.lowlevel.checkpoint()
        began_at, now = perf_counter(), trio.current_time()
        self._begin_groups(now)
        # The members come first, because the rules of the groups choose among them.
        groups = [
            group for group in self._recorded_groups if any(member.lifecycle.is_alive for member in group.members)
        ]
        for group in groups:
            self._add(self._writer.limits(group.name, group.limits, now))
        if groups:
            self._add([self._writer.sample(now, {group.name: _read_files(group.cgroup) for group in groups})])
        spent += perf_counter() - began_at
        self._next_sample_at = max(self._next_sample_at + interval, trio.current_time() + spent * (MAX_CPU_SHARE - 1))


def full_snapshot(actor: "Actor") -> Snapshot:
    """Return the keys that rules may reference, for every file they may reference."""
    probes = dict(actor.observer.read(PROBE))
    own = {UPTIME: dict(actor.observer.read(UPTIME)), **({PROBE: probes} if probes else {})}
    return {**own, **_read_files(actor.cgroup)}


def _read_files(cgroup: Cgroup) -> dict[str, dict[str, float]]:
    values_by_file: dict[str, dict[str, float]] = {}
    for file, keys in RECORDED_KEYS.items():
        if file in NOT_FILES or not cgroup.supports(file):
            continue
        try:
            values = cgroup.read_once(file)
        except CgroupError:  # the cgroup is being created again, or its controller is missing
            continue
        # A key of io.stat is preceded by its device.
        values_by_file[file] = {
            key: value for key, value in values.items() if not keys or key.rpartition(" ")[2] in keys or key in keys
        }
    return values_by_file


def host_facts() -> dict[str, Any]:
    """Return facts about the machine, for readers of the trace on another one."""
    uname = os.uname()
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {"kernel": uname.release, "machine": uname.machine, "processors": os.cpu_count(), "memory": pages * page}


class Recorder:
    """The recordings that are in progress."""

    def __init__(self) -> None:
        self._recordings: set[Recording] = set()
        self._reader_left = ConditionVariable()

    @contextmanager
    def record(
        self, actors: Mapping[str, "Actor"], groups: "Groups", terms: RecordingTerms, config: str
    ) -> Iterator[Recording]:
        """Record these instances until the block ends."""
        recording, context = Recording(actors, groups, terms, config), groups.host.context
        self._recordings.add(recording)
        context.listeners.add(recording.record_transition)
        context.group_listeners.add(recording.record_group_event)
        try:
            yield recording
        finally:
            context.listeners.discard(recording.record_transition)
            context.group_listeners.discard(recording.record_group_event)
            self._recordings.discard(recording)
            self._reader_left.notify()

    async def close(self, timeout_s: float) -> None:
        """End every recording when the service ends; wait a short time for their readers."""
        for recording in self._recordings:
            recording.close("the service has ended")
        with trio.move_on_after(timeout_s):
            await self._reader_left.wait_for(lambda: not self._recordings)
