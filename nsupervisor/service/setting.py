"""Change the limits of one workload instance while the service runs: one change after the other, each all or nothing.

If a memory limit is set below what is in use, the kernel reclaims memory within the write, which takes time (0.25 s
per GB). So memory limits are written in a thread, and only the next change of this workload waits for it.
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
"""Whether the change was made, and why not."""


@attrs.define(eq=False)
class _Turn:
    changes: Mapping[str, Any] | Resources
    """The keys to change, or the complete limits to have afterwards."""
    cause: Mapping[str, Any]
    level: str
    done: trio.Event = attrs.field(factory=trio.Event)
    result: Result = (False, "the service ends")


@attrs.define(eq=False)
class Setter:
    """Change the limits of one cgroup, in the order of the requests."""

    cgroup: Cgroup
    workload: Workload
    nursery: trio.Nursery
    say: Callable[..., Any]
    """Write a record: `InstanceLog.write` without its first argument."""
    changed: Callable[[], None]
    """Called after each change of the limits."""
    resources: Resources
    """The limits to have: those of the configuration, with later changes by operators and rules."""
    given: Resources = attrs.field(init=False)
    """The limits that the cgroup has; they differ from `resources` only until `apply_pending`."""
    _turns: deque[_Turn] = attrs.field(init=False, factory=deque)
    _idle: trio.Event = attrs.field(init=False, factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.given = self.resources
        self._idle.set()

    async def change(self, changes: Mapping[str, Any], by: str) -> Result:
        """Change limits (as parsed by `parse_changes`): all of them, or none.

        The change lasts until the supervisor ends, also in a cgroup that is created again. The instance need not run.
        """
        turn = self._queue(_Turn(changes, {"by": by}, "info"))
        await turn.done.wait()
        return turn.result

    def adjust(self, settings: Settings, cause: Mapping[str, Any]) -> None:
        """Queue a change that a rule asked for; it is recorded after it has been made."""
        self._queue(_Turn({key: self._value(key, value) for key, value in settings.items()}, cause, "warning"))

    def _value(self, key: str, number: float | None) -> Any:
        if key != "cpu_max":
            return None if number is None else int(number)
        _, period = self.resources.cpu_max or (None, DEFAULT_CPU_PERIOD)
        return (None if number is None else max(1000, round(number * period)), period)

    async def go(self, resources: Resources) -> None:
        """Apply the limits of a configuration file. Raises CgroupError, and then nothing has changed."""
        turn = self._queue(_Turn(resources, {}, "info"))
        await turn.done.wait()
        done, reason = turn.result
        if not done:
            raise CgroupError(reason)

    async def catch_up(self) -> None:
        """Apply limits that were deferred until the next process. Raises CgroupError."""
        if self.given != self.resources:
            await self.settled()
            await self.go(self.resources)

    async def settled(self) -> None:
        """Wait until no change is in progress."""
        while not self._idle.is_set():
            await self._idle.wait()

    async def verify(self) -> None:
        """Restore limits that another program has changed; log those that the kernel refuses."""
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
        reported = {problem.key for problem in self.cgroup.host.problems(self.given, self.cgroup.around())}
        for problem in problems:
            if problem.key not in reported:  # the configuration's own warnings name the others
                self.say("limit not enforced", "warning", message=str(problem))

    def _queue(self, turn: _Turn) -> _Turn:
        self._turns.append(turn)
        if self._idle.is_set():
            self._idle = trio.Event()
            self.nursery.start_soon(self._work)
        return turn

    async def remeasure(self) -> str:
        """Write percentage limits again after a limit of an enclosing group changed; return the problem, or ""."""
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
        """Write the limits; with `optional`, a limit that the kernel refuses is logged and is not an error."""
        if after != self.given:
            for problem in await write(self.cgroup, self.given, after, optional=optional):
                self.say("limit not enforced", "warning", message=str(problem))
        self.resources = self.given = after
        self.changed()


async def write(cgroup: Cgroup, before: Resources, after: Resources, *, optional: bool = False) -> list[Problem]:
    """Call `Cgroup.change_limits`, in a thread if the kernel may take its time.

    Raises CgroupError as that does; with `optional`, returns the limits that the kernel refused instead.
    """
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
    """Call `Cgroup.reapply_percentages` in a thread. Raises CgroupError as that does."""
    if not any(isinstance(value, Percent) for value in attrs.asdict(resources, recurse=False).values()):
        return
    other = cgroup.apart(resources)
    try:
        await trio.to_thread.run_sync(other.remeasure, resources, abandon_on_cancel=True)
    finally:
        other.close()
