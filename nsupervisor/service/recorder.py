"""Recordings: what the minds take in, as the lines of a trace, for whoever asks for them over the API.

A recording hears each step of the minds that it is about, and reads besides, time after time, every file that a rule
might look at: so other rules than the present ones can be tried with the trace. What waits for its reader is bounded:
a recording with a gap would be no use, so it ends there, and its last line says why.

Groups, and the host, are in it, too, where all their members are: without one of them nobody could tell whom their
rules would have hit.
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
"""Bytes that may wait for the reader."""
AT_ONCE = 20
"""Workloads whose files are read in one go; others have their turn before the next ones."""
SHARE = 10
"""Of its time the service spends at most one part in so many on samples; where that is too little they come later."""
FILES: Mapping[str, frozenset[str]] = {
    file: frozenset({*COUNTERS.get(file, ()), *LEVELS.get(file, ())}) for file in (COUNTERS | LEVELS)
} | {"host.meminfo": frozenset({*HOST_MEMORY, *HOST_MEMORY.values()})}
"""What rules might look at: files and their keys."""


@attrs.frozen
class Terms:
    """How long and how much is recorded."""

    interval: float | None = 0.25
    """Seconds between two samples; None: only what the present rules see."""
    seconds: float = math.inf
    most: float = math.inf
    """Bytes."""


@attrs.define(eq=False)
class Recording:
    """An asynchronous iterator of bytes: whole lines. Made by `record`."""

    actors: Mapping[str, "Actor"]
    groups: "Groups"
    terms: Terms
    config: str
    """Path of the configuration, for the head."""
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
    """When the next samples are taken."""
    _until: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        now = trio.current_time()
        self._until = now + self.terms.seconds
        workloads = {name: actor.workload for name, actor in self.actors.items()}
        self._recorded = tuple(
            one
            for one in self.groups.all
            if one.members and {member.name for member in one.members} <= workloads.keys()
        )
        groups = {one.name: (one.config, [member.name for member in one.members]) for one in self._recorded}
        about = {"version": __version__, "config": self.config, "host": host(), "interval": self.terms.interval}
        clock = {"monotonic": now, "realtime": datetime.now(UTC).isoformat(timespec="microseconds")}
        self._add([self._writer.head(workloads, groups, clock=clock, **about)])
        for name, actor in self.actors.items():
            self._add(self._writer.limits(name, actor.judge.limits, now))
            self._begin(actor.thinker, now)
        self._begin_groups(now)

    def hear(self, thinker: Thinker, before: Mind, what: Input, moment: Moment, thought: Thought) -> None:
        """A step of a mind."""
        if self._begun.get(thinker.name) is thinker:
            self._add(self._writer.step(thinker.name, thinker.workload, before, what, moment, thought))
        elif thinker.name in self.actors:
            self._begin(thinker, moment.now)

    def hear_group(self, group: "Group", what: News, now: float) -> None:
        """Something that a group went through."""
        if not self._groups_begun:
            return
        if group in self._recorded:
            self._add(self._writer.group(group.name, what, now))
        if isinstance(what, Became) or (group not in self._recorded and isinstance(what, Came)):
            self._tell_memories(now)  # in the first case they are other ones, in the second it has hushed their rules

    def end(self, why: str) -> None:
        """The last line. Nothing comes after it."""
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
        """An instance's recording begins when no rule of it waits for its turn; anew for one that replaces another."""
        if not thinker.mind.due:
            self._begun[thinker.name] = thinker
            self._add(self._writer.changed(thinker.name, thinker.workload, now))
            self._add([self._writer.begin(thinker.name, thinker.mind, now)])

    def _begin_groups(self, now: float) -> None:
        """Their recording begins when no rule of any of them waits for its turn, or for what it has led to."""
        if not self._groups_begun and not any(one.acting for one in self.groups.all):
            self._groups_begun = True
            self._tell_memories(now)

    def _tell_memories(self, now: float) -> None:
        for one in self._recorded:
            self._add(self._writer.limits(one.name, one.limits, now))
            self._add([self._writer.begin_group(one.name, one.engine, one.quiet_since, now)])

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
        """Read the files of all that live; a few workloads at once, for nobody must wait for this."""
        alive = [(name, actor) for name, actor in self.actors.items() if actor.life.alive and name in self._begun]
        spent = 0.0
        for first in range(0, len(alive), AT_ONCE):
            began, now, some = perf_counter(), trio.current_time(), alive[first : first + AT_ONCE]
            for name, actor in some:
                self._add(self._writer.limits(name, actor.judge.limits, now))
            self._add([self._writer.sample(now, {name: snapshot(actor) for name, actor in some})])
            spent += perf_counter() - began
            await trio.lowlevel.checkpoint()
        began, now = perf_counter(), trio.current_time()
        self._begin_groups(now)
        # After their members, which are what their rules choose from.
        groups = [one for one in self._recorded if any(member.life.alive for member in one.members)]
        for one in groups:
            self._add(self._writer.limits(one.name, one.limits, now))
        if groups:
            self._add([self._writer.sample(now, {one.name: _files(one.cgroup) for one in groups})])
        spent += perf_counter() - began
        self._due = max(self._due + interval, trio.current_time() + spent * (SHARE - 1))


def snapshot(actor: "Actor") -> Snapshot:
    """Of each file that a rule might look at, what a rule might look at."""
    return {UPTIME: dict(actor.judge.read(UPTIME)), **_files(actor.cgroup)}


def _files(cgroup: Cgroup) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for file, keys in FILES.items():
        if file in NOT_FILES or not cgroup.offers(file):
            continue
        try:
            values = cgroup.look(file)
        except CgroupError:  # it is being made anew, or its controller is gone
            continue
        # A key of io.stat has its device before it.
        found[file] = {
            key: value for key, value in values.items() if not keys or key.rpartition(" ")[2] in keys or key in keys
        }
    return found


def host() -> dict[str, Any]:
    """What a person who reads the trace elsewhere might want to know of the machine."""
    uname = os.uname()
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {"kernel": uname.release, "machine": uname.machine, "processors": os.cpu_count(), "memory": pages * page}


class Recorder:
    """The recordings that are under way."""

    def __init__(self) -> None:
        self._recordings: set[Recording] = set()
        self._left = trio.lowlevel.ParkingLot()

    @contextmanager
    def record(self, actors: Mapping[str, "Actor"], groups: "Groups", terms: Terms, config: str) -> Iterator[Recording]:
        """A recording of these instances, until the block ends."""
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
        """The service ends: so does each recording. Waits a little for their readers to have it all."""
        for recording in self._recordings:
            recording.end("the service has ended")
        with trio.move_on_after(patience):
            while self._recordings:
                await self._left.park()
