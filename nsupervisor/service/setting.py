"""The limits of one workload instance while the service runs: changed one after the other, and never by half.

Where memory is to be less than what is in use, the kernel takes it away within the write, which takes its time (0.25 s
a GB). So limits of memory are written by a thread, and only this workload's next change waits for it.
"""

import os
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import trio

from nsupervisor.cgroups import Cgroup, CgroupError
from nsupervisor.cgroups.errors import Problem
from nsupervisor.config.changes import changed, difference
from nsupervisor.config.load import ConfigError
from nsupervisor.config.model import Resources, Workload
from nsupervisor.config.units import DEFAULT_CPU_PERIOD, Percent
from nsupervisor.core.adjusting import Settings

Result = tuple[bool, str]
"""Whether it was done, and why not."""


@attrs.define(eq=False)
class _Turn:
    changes: Mapping[str, Any] | Resources
    """What changes, or all that there is to be."""
    cause: Mapping[str, Any]
    level: str
    done: trio.Event = attrs.field(factory=trio.Event)
    result: Result = (False, "the service ends")


@attrs.define(eq=False)
class Setter:
    """Changes limits, in the order in which it is asked to."""

    cgroup: Cgroup
    workload: Workload
    nursery: trio.Nursery
    say: Callable[..., Any]
    """Write a record: `Voice.say` without its first argument."""
    changed: Callable[[], None]
    """Called after each change."""
    resources: Resources
    """The limits to have: the configuration's, with what has been made of them."""
    given: Resources = attrs.field(init=False)
    """The limits that the cgroup has got: others than those only until `catch_up`."""
    _turns: deque[_Turn] = attrs.field(init=False, factory=deque)
    _idle: trio.Event = attrs.field(init=False, factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.given = self.resources
        self._idle.set()

    async def change(self, changes: Mapping[str, Any], by: str) -> Result:
        """Change limits (`parse_changes`), whether it runs or not: all of them, or none. They last until the supervisor
        ends, also in a cgroup that is made anew."""
        turn = self._queue(_Turn(changes, {"by": by}, "info"))
        await turn.done.wait()
        return turn.result

    def adjust(self, settings: Settings, cause: Mapping[str, Any]) -> None:
        """What a rule has set. It is written down once it is done."""
        self._queue(_Turn({key: self._value(key, value) for key, value in settings.items()}, cause, "warning"))

    def _value(self, key: str, number: float | None) -> Any:
        if key != "cpu_max":
            return None if number is None else int(number)
        _, period = self.resources.cpu_max or (None, DEFAULT_CPU_PERIOD)
        return (None if number is None else max(1000, round(number * period)), period)

    async def go(self, resources: Resources) -> None:
        """Go over to the limits of a file. CgroupError: nothing has changed, and why."""
        turn = self._queue(_Turn(resources, {}, "info"))
        await turn.done.wait()
        done, why = turn.result
        if not done:
            raise CgroupError(why)

    async def catch_up(self) -> None:
        """Give the cgroup what it has yet to get: limits that were to come with a new process. CgroupError."""
        if self.given != self.resources:
            await self.settled()
            await self.go(self.resources)

    async def settled(self) -> None:
        """Wait until no change is under way."""
        while not self._idle.is_set():
            await self._idle.wait()

    async def verify(self) -> None:
        """Set again whatever somebody else has changed of the limits meanwhile; what cannot be had is said."""
        await self.settled()
        self._verify()

    def _verify(self) -> None:
        if not os.path.exists(self.cgroup.path):  # a reload has removed it meanwhile
            return
        try:
            problems = _change(self.cgroup, self.given, self.given, optional=True)
        except CgroupError as error:
            self.say("limit not enforced", "warning", message=str(error))
            return
        told = {problem.key for problem in self.cgroup.host.problems(self.given, self.cgroup.around())}
        for problem in problems:
            if problem.key not in told:  # else the configuration's own warnings have said so
                self.say("limit not enforced", "warning", message=str(problem))

    def _queue(self, turn: _Turn) -> _Turn:
        self._turns.append(turn)
        if self._idle.is_set():
            self._idle = trio.Event()
            self.nursery.start_soon(self._work)
        return turn

    async def remeasure(self) -> str:
        """A limit of a group around it has changed: set anew what is in per cent of it. Why not, if that failed."""
        await self.settled()
        try:
            await remeasure(self.cgroup, self.resources)
        except CgroupError as error:
            self.say("warning", "warning", message=f"set: {error}")
            return str(error)
        self.changed()
        return ""

    async def _work(self) -> None:
        try:
            while self._turns:
                turn = self._turns.popleft()
                try:
                    turn.result = await self._do(turn)
                finally:
                    turn.done.set()
        finally:
            self._idle.set()

    async def _do(self, turn: _Turn) -> Result:
        before = self.resources
        try:
            if isinstance(turn.changes, Resources):
                await self._become(turn.changes, optional=not turn.changes.required)
                return True, ""
            after = changed(self.workload, before, turn.changes)
            await self._become(after, optional=False)
        except (ConfigError, CgroupError) as error:
            if not isinstance(turn.changes, Resources):
                self.say("warning", "warning", message=f"set: {error}")
            return False, str(error)
        was, is_ = difference(before, after)
        self.say("action", turn.level, action="set", cause=turn.cause, before=was, after=is_)
        return True, ""

    async def _become(self, after: Resources, *, optional: bool) -> None:
        """``optional``: what cannot be had is said, and is no reason to fail."""
        if after != self.given:
            for problem in await write(self.cgroup, self.given, after, optional=optional):
                self.say("limit not enforced", "warning", message=str(problem))
        self.resources = self.given = after
        self.changed()


async def write(cgroup: Cgroup, before: Resources, after: Resources, *, optional: bool = False) -> list[Problem]:
    """`Cgroup.change`, in a thread where the kernel may take its time. CgroupError as there; with ``optional`` what
    could not be had is returned instead."""
    was, is_ = difference(before, after)
    if not any(key.startswith(("memory_", "unified")) for key in (*was, *is_)):
        return _change(cgroup, before, after, optional)
    other = cgroup.apart(after)
    try:
        return await trio.to_thread.run_sync(_change, other, before, after, optional, abandon_on_cancel=True)
    finally:
        other.close()


def _change(cgroup: Cgroup, before: Resources, after: Resources, optional: bool) -> list[Problem]:
    if not optional:
        cgroup.change(before, after)
        return []
    cgroup.apply(after)
    return list(cgroup.problems)


async def remeasure(cgroup: Cgroup, resources: Resources) -> None:
    """`Cgroup.remeasure`, in a thread. CgroupError as there."""
    if not any(isinstance(value, Percent) for value in attrs.asdict(resources, recurse=False).values()):
        return
    other = cgroup.apart(resources)
    try:
        await trio.to_thread.run_sync(other.remeasure, resources, abandon_on_cancel=True)
    finally:
        other.close()
