"""Change the limits of one workload instance while the service runs: one change after the other, each all or nothing.

If a memory limit is set below what is in use, the kernel reclaims memory within the write, which takes time (0.25 s
per GB). So memory limits are written in a thread, and only the next change of this workload waits for it.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import trio

from nsupervisor.cgroups import Cgroup, CgroupError
from nsupervisor.cgroups import limits as cgroup_limits
from nsupervisor.cgroups.errors import HostProblem
from nsupervisor.config.changes import apply_changes, changed_limits
from nsupervisor.config.load import ConfigError
from nsupervisor.config.model import Resources, WorkloadConfig
from nsupervisor.config.units import DEFAULT_CPU_PERIOD, Percent
from nsupervisor.core.rules.limit_steps import LimitValues
from nsupervisor.logs import call_in_thread

Result = tuple[bool, str]
"""Whether the change was made, and why not."""


@attrs.define(eq=False)
class _LimitChange:
    changes: Mapping[str, Any] | Resources
    """The keys to change, or the complete limits to have afterwards."""
    cause: Mapping[str, Any]
    log_level: str
    finished: trio.Event = attrs.field(factory=trio.Event)
    result: Result = (False, "the service ends")


@attrs.define(eq=False)
class LimitWriter:
    """Change the limits of one cgroup, in the order of the requests."""

    cgroup: Cgroup
    workload: WorkloadConfig
    nursery: trio.Nursery
    log_event: Callable[..., Any]
    """Write a record: `InstanceLog.write` without its first argument."""
    on_change: Callable[[], None]
    """Called after each change of the limits."""
    resources: Resources
    """The limits to have: those of the configuration, with later changes by operators and rules."""
    applied: Resources = attrs.field(init=False)
    """The limits that the cgroup has; they differ from `resources` only until `apply_pending`."""
    _queued: deque[_LimitChange] = attrs.field(init=False, factory=deque)
    _idle: trio.Event = attrs.field(init=False, factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.applied = self.resources
        self._idle.set()

    async def change_limits(self, changes: Mapping[str, Any], by: str) -> Result:
        """Change limits (as parsed by `parse_changes`): all of them, or none.

        The change lasts until the supervisor ends, also in a cgroup that is created again. The instance need not run.
        """
        change = self._queue(_LimitChange(changes, {"by": by}, "info"))
        await change.finished.wait()
        return change.result

    def set_by_rule(self, settings: LimitValues, cause: Mapping[str, Any]) -> None:
        """Queue a change that a rule asked for; it is recorded after it has been made."""
        self._queue(_LimitChange({key: self._value(key, value) for key, value in settings.items()}, cause, "warning"))

    def _value(self, key: str, number: float | None) -> Any:
        if key != "cpu_max":
            return None if number is None else int(number)
        _, period = self.resources.cpu_max or (None, DEFAULT_CPU_PERIOD)
        return (None if number is None else max(1000, round(number * period)), period)

    async def apply(self, resources: Resources) -> None:
        """Apply the limits of a configuration file. Raises CgroupError, and then nothing has changed."""
        change = self._queue(_LimitChange(resources, {}, "info"))
        await change.finished.wait()
        done, reason = change.result
        if not done:
            raise CgroupError(reason)

    def defer(self, resources: Resources) -> None:
        """Have these limits from the next process on: `apply_pending` writes them."""
        self.resources = resources

    async def apply_pending(self) -> None:
        """Apply limits that were deferred until the next process. Raises CgroupError."""
        if self.applied != self.resources:
            await self.wait_idle()
            await self.apply(self.resources)

    async def wait_idle(self) -> None:
        """Wait until no change is in progress."""
        while not self._idle.is_set():
            await self._idle.wait()

    async def verify(self) -> None:
        """Restore limits that another program has changed; log those that the kernel refuses."""
        await self.wait_idle()
        self._verify()

    def _verify(self) -> None:
        if not self.cgroup.exists():  # a reload has removed it meanwhile
            return
        try:
            problems = _write_now(self.cgroup, self.applied, self.applied, optional=True)
        except CgroupError as error:
            self.log_event("limit not enforced", "warning", message=str(error))
            return
        reported = {
            problem.key for problem in self.cgroup.host.check_resources(self.applied, self.cgroup.ancestor_limits())
        }
        for problem in problems:
            if problem.key not in reported:  # the configuration's own warnings name the others
                self.log_event("limit not enforced", "warning", message=str(problem))

    def _queue(self, change: _LimitChange) -> _LimitChange:
        self._queued.append(change)
        if self._idle.is_set():
            self._idle = trio.Event()
            self.nursery.start_soon(self._run_queue)
        return change

    async def reapply_percentages(self) -> str:
        """Write percentage limits again after a limit of an enclosing group changed; return the problem, or ""."""
        await self.wait_idle()
        try:
            await reapply_percentages(self.cgroup, self.resources)
        except CgroupError as error:
            self.log_event("warning", "warning", message=f"set: {error}")
            return str(error)
        self.on_change()
        return ""

    async def _run_queue(self) -> None:
        try:
            while self._queued:
                change = self._queued.popleft()
                try:
                    change.result = await self._run_change(change)
                finally:
                    change.finished.set()
        finally:
            self._idle.set()

    async def _run_change(self, change: _LimitChange) -> Result:
        before = self.resources
        try:
            if isinstance(change.changes, Resources):
                await self._write_limits(change.changes, optional=not change.changes.required)
                return True, ""
            after = apply_changes(self.workload, before, change.changes)
            await self._write_limits(after, optional=False)
        except (ConfigError, CgroupError) as error:
            if not isinstance(change.changes, Resources):
                self.log_event("warning", "warning", message=f"set: {error}")
            return False, str(error)
        was, is_ = changed_limits(before, after)
        self.log_event("action", change.log_level, action="set", cause=change.cause, before=was, after=is_)
        return True, ""

    async def _write_limits(self, after: Resources, *, optional: bool) -> None:
        """Write the limits; with `optional`, a limit that the kernel refuses is logged and is not an error."""
        if after != self.applied:
            for problem in await write_limits(self.cgroup, self.applied, after, optional=optional):
                self.log_event("limit not enforced", "warning", message=str(problem))
        self.resources = self.applied = after
        self.on_change()


async def write_limits(
    cgroup: Cgroup, before: Resources, after: Resources, *, optional: bool = False
) -> list[HostProblem]:
    """Call `change_limits` of `nsupervisor.cgroups.limits`, in a thread if the kernel may take its time.

    Raises CgroupError as that does; with `optional`, returns the limits that the kernel refused instead.
    """
    was, is_ = changed_limits(before, after)
    if not any(key.startswith(("memory_", "unified")) for key in (*was, *is_)):
        return _write_now(cgroup, before, after, optional)
    other = cgroup.detached(after)
    try:
        return await call_in_thread(_write_now, other, before, after, optional, abandon_on_cancel=True)
    finally:
        other.close()


def _write_now(cgroup: Cgroup, before: Resources, after: Resources, optional: bool) -> list[HostProblem]:
    if not optional:
        cgroup_limits.change_limits(cgroup, before, after)
        return []
    cgroup_limits.apply_limits(cgroup, after)
    return list(cgroup.problems)


async def reapply_percentages(cgroup: Cgroup, resources: Resources) -> None:
    """Call `reapply_percentages` of `nsupervisor.cgroups.limits` in a thread. Raises CgroupError as that does."""
    if not any(isinstance(value, Percent) for value in attrs.asdict(resources, recurse=False).values()):
        return
    other = cgroup.detached(resources)
    try:
        await call_in_thread(cgroup_limits.reapply_percentages, other, resources, abandon_on_cancel=True)
    finally:
        other.close()
