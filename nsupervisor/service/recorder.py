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
from nsupervisor.config.facts import COUNTERS, HOST_MEMORY, LEVELS, NOT_FILES, UPTIME
from nsupervisor.core.grouping import Became, Came, News
from nsupervisor.core.lifecycle import Moment
from nsupervisor.core.mind import Input, Mind, Thought
from nsupervisor.core.rules import Snapshot
from nsupervisor.core.trace import Line, Writer, encode
from nsupervisor.service.thinker import Thinker

if TYPE_CHECKING:
    from nsupervisor.service.actor import Actor
    from nsupervisor.service.group import Group
    from nsupervisor.service.groups import Groups

WAITING = 8 << 20
"""Most bytes that may wait for the reader."""
AT_ONCE = 20
"""Workloads whose files are read without a checkpoint; other tasks run before the next ones."""
SHARE = 10
"""Samples take at most a tenth of the service's time (the inverse of this number); otherwise they are delayed."""
FILES: Mapping[str, frozenset[str]] = {
    file: frozenset({*COUNTERS.get(file, ()), *LEVELS.get(file, ())}) for file in (COUNTERS | LEVELS)
} | {"host.meminfo": frozenset({*HOST_MEMORY, *HOST_MEMORY.values()})}
"""The files that rules may reference, with their keys."""


@attrs.frozen
class Terms:
    """How long and how much to record."""

    interval: float | None = 0.25
    """Seconds between two samples; None to record only what the present rules see."""
    seconds: float = math.inf
    most: float = math.inf
    """Size at which the recording ends, in bytes."""


@attrs.define(eq=False)
class Recording:
    """An asynchronous iterator of bytes: whole lines. Made by `Recorder.record`."""

    actors: Mapping[str, "Actor"]
    groups: "Groups"
    terms: Terms
    config: str
    """Path of the configuration, for the header line."""
    _writer: Writer = attrs.field(factory=Writer)
    _waiting: list[bytes] = attrs.field(factory=list)
    _size: int = 0
    _written: int = 0
    _begun: dict[str, Thinker] = attrs.field(factory=dict)
    _recorded: tuple["Group", ...] = attrs.field(init=False)
    """The groups that are recorded."""
    _groups_begun: bool = False
    _ended: bool = False
    _heard: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    _due: float = attrs.field(factory=trio.current_time)
    """When the next samples are due, on trio's clock."""
    _until: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        now = trio.current_time()
        self._until = now + self.terms.seconds
        workloads = {name: actor.workload for name, actor in self.actors.items()}
        self._recorded = tuple(
            group
            for group in self.groups.all
            if group.members and {member.name for member in group.members} <= workloads.keys()
        )
        groups = {group.name: (group.config, [member.name for member in group.members]) for group in self._recorded}
        about = {"version": __version__, "config": self.config, "host": host(), "interval": self.terms.interval}
        clock = {"monotonic": now, "realtime": datetime.now(UTC).isoformat(timespec="microseconds")}
        self._add([self._writer.head(workloads, groups, clock=clock, **about)])
        for name, actor in self.actors.items():
            self._add(self._writer.limits(name, actor.judge.limits, now))
            self._begin(actor.thinker, now)
        self._begin_groups(now)

    def hear(self, thinker: Thinker, before: Mind, what: Input, moment: Moment, thought: Thought) -> None:
        """Record a transition of an instance."""
        if self._begun.get(thinker.name) is thinker:
            self._add(self._writer.step(thinker.name, thinker.workload, before, what, moment, thought))
        elif thinker.name in self.actors:
            self._begin(thinker, moment.now)

    def hear_group(self, group: "Group", what: News, now: float) -> None:
        """Record an event of a group."""
        if not self._groups_begun:
            return
        if group in self._recorded:
            self._add(self._writer.group(group.name, what, now))
        if isinstance(what, Became) or (group not in self._recorded and isinstance(what, Came)):
            self._tell_memories(now)  # a new configuration has other rules; an action has started their cooldowns

    def end(self, why: str) -> None:
        """Write the last line of the recording."""
        if not self._ended:
            self._waiting.append(encode({"t": trio.current_time(), "end": why}))
            self._ended = True
        self._heard.unpark_all()

    def __aiter__(self) -> "Recording":
        return self

    async def __anext__(self) -> bytes:
        while True:
            if not self._ended and trio.current_time() >= self._until:
                self.end("the time is over")
            if not self._ended and self.terms.interval is not None and trio.current_time() >= self._due:
                await self._sample(self.terms.interval)
            if self._waiting:
                lines, self._waiting, self._size = b"".join(self._waiting), [], 0
                return lines
            if self._ended:
                raise StopAsyncIteration
            with trio.move_on_at(self._until if self.terms.interval is None else min(self._due, self._until)):
                await self._heard.park()

    def _begin(self, thinker: Thinker, now: float) -> None:
        """Begin with an instance when no rule of it has a pending action, and again for one that replaces another."""
        if not thinker.mind.due:
            self._begun[thinker.name] = thinker
            self._add(self._writer.changed(thinker.name, thinker.workload, now))
            self._add([self._writer.begin(thinker.name, thinker.mind, now)])

    def _begin_groups(self, now: float) -> None:
        """Begin with the groups when no rule of any of them has an action that is pending or in progress."""
        if not self._groups_begun and not any(group.acting for group in self.groups.all):
            self._groups_begun = True
            self._tell_memories(now)

    def _tell_memories(self, now: float) -> None:
        for group in self._recorded:
            self._add(self._writer.limits(group.name, group.limits, now))
            self._add([self._writer.begin_group(group.name, group.engine, group.quiet_since, now)])

    def _add(self, lines: Iterable[Line]) -> None:
        for line in lines:
            if self._ended:
                return
            text = encode(line)
            self._waiting.append(text)
            self._size += len(text)
            self._written += len(text)
            if self._written >= self.terms.most:
                self.end("it has the size that it may have")
            elif self._size > WAITING:
                self.end("the reader is too slow")
        self._heard.unpark_all()

    async def _sample(self, interval: float) -> None:
        """Sample the files of all running instances, a few at a time, so that no other task waits for long."""
        alive = [(name, actor) for name, actor in self.actors.items() if actor.life.alive and name in self._begun]
        spent = 0.0
        for first in range(0, len(alive), AT_ONCE):
            began_at, now, batch = perf_counter(), trio.current_time(), alive[first : first + AT_ONCE]
            for name, actor in batch:
                self._add(self._writer.limits(name, actor.judge.limits, now))
            self._add([self._writer.sample(now, {name: snapshot(actor) for name, actor in batch})])
            spent += perf_counter() - began_at
            await trio.lowlevel.checkpoint()
        began_at, now = perf_counter(), trio.current_time()
        self._begin_groups(now)
        # The members come first, because the rules of the groups choose among them.
        groups = [group for group in self._recorded if any(member.life.alive for member in group.members)]
        for group in groups:
            self._add(self._writer.limits(group.name, group.limits, now))
        if groups:
            self._add([self._writer.sample(now, {group.name: _files(group.cgroup) for group in groups})])
        spent += perf_counter() - began_at
        self._due = max(self._due + interval, trio.current_time() + spent * (SHARE - 1))


def snapshot(actor: "Actor") -> Snapshot:
    """Return the keys that rules may reference, for every file they may reference."""
    return {UPTIME: dict(actor.judge.read(UPTIME)), **_files(actor.cgroup)}


def _files(cgroup: Cgroup) -> dict[str, dict[str, float]]:
    values_by_file: dict[str, dict[str, float]] = {}
    for file, keys in FILES.items():
        if file in NOT_FILES or not cgroup.offers(file):
            continue
        try:
            values = cgroup.look(file)
        except CgroupError:  # the cgroup is being created again, or its controller is missing
            continue
        # A key of io.stat is preceded by its device.
        values_by_file[file] = {
            key: value for key, value in values.items() if not keys or key.rpartition(" ")[2] in keys or key in keys
        }
    return values_by_file


def host() -> dict[str, Any]:
    """Return facts about the machine, for readers of the trace on another one."""
    uname = os.uname()
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {"kernel": uname.release, "machine": uname.machine, "processors": os.cpu_count(), "memory": pages * page}


class Recorder:
    """The recordings that are in progress."""

    def __init__(self) -> None:
        self._recordings: set[Recording] = set()
        self._left = trio.lowlevel.ParkingLot()

    @contextmanager
    def record(self, actors: Mapping[str, "Actor"], groups: "Groups", terms: Terms, config: str) -> Iterator[Recording]:
        """Record these instances until the block ends."""
        recording, world = Recording(actors, groups, terms, config), groups.host.world
        self._recordings.add(recording)
        world.listeners.add(recording.hear)
        world.group_listeners.add(recording.hear_group)
        try:
            yield recording
        finally:
            world.listeners.discard(recording.hear)
            world.group_listeners.discard(recording.hear_group)
            self._recordings.discard(recording)
            self._left.unpark_all()

    async def end(self, patience: float) -> None:
        """End every recording when the service ends; wait a short time for their readers."""
        for recording in self._recordings:
            recording.end("the service has ended")
        with trio.move_on_after(patience):
            while self._recordings:
                await self._left.park()
