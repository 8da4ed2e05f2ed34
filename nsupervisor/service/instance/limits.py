"""Change the limits of one cgroup while the service runs: one change after the other, each all or nothing.

A workload instance and a group each have one `LimitWriter`, which owns their limits. Each change is a request in its
queue, so a change never begins from limits that another one is about to replace.

If a memory limit is set below what is in use, the kernel reclaims memory within the write, which takes time (0.25 s
per GB). So memory limits are written in a thread, and only the next change of the same cgroup waits for it.
"""

import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Any

import attrs
import trio

from nsupervisor.cgroups import Cgroup, CgroupError
from nsupervisor.cgroups import limits as cgroup_limits
from nsupervisor.cgroups.errors import HostProblem
from nsupervisor.config.changes import apply_changes, changed_limits
from nsupervisor.config.load import ConfigError
from nsupervisor.config.model import GroupConfig, Resources, WorkloadConfig
from nsupervisor.config.units import DEFAULT_CPU_PERIOD, Percent
from nsupervisor.core.initiators import Initiator
from nsupervisor.core.rules.limit_steps import LimitValues
from nsupervisor.logs import call_in_thread
from nsupervisor.service.state.checkpoint import limit_overrides, limits_digest

Target = Callable[[Resources], Resources]
"""Returns the limits to have, from those in force; called when its turn comes, so that no earlier change is lost."""
Result = tuple[bool, str]
"""Whether the change was made, and the problem in words, or ""."""


@attrs.define(eq=False)
class _Request:
    run: Callable[[], Awaitable[Result]]
    finished: trio.Event = attrs.field(factory=trio.Event)
    result: Result = (False, "the service ends")

    async def complete(self) -> str:
        """Make the change; return an unexpected problem, or "". The changes after it are made in any case."""
        try:
            self.result = await self.run()
        except (OSError, ValueError) as error:
            self.result = False, str(error)
            return str(error)
        finally:
            self.finished.set()
        return ""


_Queue = tuple[trio.MemorySendChannel[_Request], trio.MemoryReceiveChannel[_Request]]


async def _nothing_inside() -> list[str]:
    return []


@attrs.define(eq=False)
class LimitWriter:
    """Owns the limits of one cgroup, and changes them in the order of the requests."""

    cgroup: Cgroup
    owner: WorkloadConfig | GroupConfig
    """The configuration of the workload or group; changes must not conflict with its rules."""
    resources: Resources
    """The limits to have: those of the configuration, with later changes by operators and rules."""
    nursery: trio.Nursery
    log_event: Callable[..., Any]
    """Write a record about the owner: (event, level, **fields)."""
    on_change: Callable[[], None]
    """Called after each change of the limits."""
    reapply_inside: Callable[[], Awaitable[list[str]]] = _nothing_inside
    """Called after a change of these limits: writes the limits inside the cgroup that are percentages of them again.

    Returns what failed."""
    applied: Resources = attrs.field(init=False)
    """The limits that the cgroup has; they differ from `resources` only until `apply_pending`."""
    _queue: _Queue | None = attrs.field(init=False, default=None)
    """The requests, for a task that is started with the first one."""
    _unfinished_count: int = attrs.field(init=False, default=0)
    _is_closed: bool = attrs.field(init=False, default=False)
    _deferred: list[Target] = attrs.field(init=False, factory=list)
    """The targets deferred since the present change began, which the limits that it writes lack."""
    _prepared: Resources | None = attrs.field(init=False, default=None)
    """The limits in the file of a reload that is being prepared."""
    _digest: tuple[Resources | None, str] = attrs.field(init=False, default=(None, ""))

    def __attrs_post_init__(self) -> None:
        self.applied = self.resources

    @property
    def applied_digest(self) -> str:
        """The digest of the limits that the cgroup has, for the checkpoint."""
        if self._digest[0] is not self.applied:
            self._digest = self.applied, limits_digest(self.applied)
        return self._digest[1]

    @property
    def overrides(self) -> Mapping[str, Any]:
        """The limits that operators and rules have changed, for the checkpoint.

        While a reload is prepared, limits of its file are already in force. They are no such changes: the supervisor
        may die before the file is in force, and the next one may find the earlier file again.
        """
        changed = limit_overrides(self.owner.resources, self.resources)
        if not changed or self._prepared is None:
            return changed
        also = limit_overrides(self._prepared, self.resources)
        return {name: value for name, value in changed.items() if name in also}

    # ---- requests

    async def change_limits(self, changes: Mapping[str, Any], by: Initiator) -> Result:
        """Change limits (as parsed by `parse_changes`): all of them, or none.

        The change lasts until the supervisor ends, also in a cgroup that is created again. The instance need not run.
        """
        return await self._submit(partial(self._change, changes, by.cause(), "info"))

    def set_by_rule(self, settings: LimitValues, cause: Mapping[str, Any]) -> None:
        """Queue a change that a rule asked for; it is recorded after it has been made."""
        changes = {key: self._value(key, value) for key, value in settings.items()}
        self._post(partial(self._change, changes, cause, "warning"))

    def _value(self, key: str, number: float | None) -> Any:
        if key != "cpu_max":
            return None if number is None else int(number)
        _, period = self.resources.cpu_max or (None, DEFAULT_CPU_PERIOD)
        return (None if number is None else max(1000, round(number * period)), period)

    async def apply(self, target: Target) -> None:
        """Apply the limits of a configuration file. Raises CgroupError, and then nothing has changed."""
        done, reason = await self._submit(partial(self._apply, target))
        if not done:
            raise CgroupError(reason)

    async def apply_prepared(self, target: Target, wanted: Resources) -> None:
        """Apply limits as `apply` for a reload that is being prepared; `wanted` are those of its file.

        `configure` or `undo_prepared` must follow.
        """
        self._prepared = wanted
        try:
            await self.apply(target)
        except CgroupError:
            self._prepared = None
            raise

    async def undo_prepared(self, target: Target) -> None:
        """Apply the limits from before a reload that is refused. Raises CgroupError."""
        try:
            await self.apply(target)
        finally:
            self._prepared = None

    def defer(self, target: Target) -> None:
        """Have other limits from the next process on: `apply_pending` writes them."""
        self.resources = target(self.resources)
        if self._unfinished_count:
            self._deferred.append(target)

    async def apply_pending(self) -> None:
        """Apply limits that were deferred until the next process. Raises CgroupError."""
        if self.applied != self.resources:
            await self.apply(lambda resources: resources)

    async def reapply_percentages(self) -> str:
        """Write percentage limits again after a limit of an enclosing group changed; return the problem, or ""."""
        if not _has_percentages(self.resources):
            return ""  # a queued change that adds one is written with the present limits of the group
        _, problem = await self._submit(self._reapply_percentages)
        return problem

    async def verify(self) -> None:
        """Restore limits that another program has changed; log those that the kernel refuses."""
        await self.run_exclusively(self._verify)

    async def restore(self, *, is_thorough: bool) -> None:
        """Restore limits that another program has changed since they were written, and log that.

        is_thorough: also limits that the configuration does not set, see `find_foreign_changes`.
        """
        if self._unfinished_count or self._find_foreign_changes(is_thorough):
            await self._submit(partial(self._restore, is_thorough))

    async def run_exclusively(self, operation: Callable[[], None]) -> None:
        """Call `operation` while no change is in progress. Raises what it raises."""
        if not self._unfinished_count:
            operation()
            return
        errors: list[Exception] = []

        async def run() -> Result:
            try:
                operation()
            except Exception as error:  # raised below, in the task that asked for it
                errors.append(error)
            return True, ""

        await self._submit(run)
        if errors:
            raise errors[0]

    def close(self) -> None:
        """End the task of the queue after the requests in it; later ones are refused."""
        self._is_closed = True
        if self._queue is not None:
            self._queue[0].close()

    # ---- the owner's changes

    def configure(self, owner: WorkloadConfig | GroupConfig) -> None:
        """Switch to another configuration of the owner; its limits are applied, or deferred, separately."""
        self.owner, self._prepared = owner, None

    def attach(self, cgroup: Cgroup) -> None:
        """Continue with a cgroup that was made with the limits `resources`."""
        self.cgroup, self.applied = cgroup, self.resources

    # ---- the queue

    def _post(self, run: Callable[[], Awaitable[Result]]) -> _Request:
        if self._is_closed:
            request = _Request(run, result=(False, "it has just been removed"))
            request.finished.set()
            return request
        if self._queue is None:
            self._queue = trio.open_memory_channel[_Request](math.inf)
            self.nursery.start_soon(self._run_requests, self._queue[1])
        request = _Request(run)
        self._queue[0].send_nowait(request)
        self._unfinished_count += 1
        return request

    async def _submit(self, run: Callable[[], Awaitable[Result]]) -> Result:
        """Queue a request and wait until it is finished; it is carried out even if the caller is cancelled."""
        request = self._post(run)
        await request.finished.wait()
        return request.result

    async def _run_requests(self, requests: trio.MemoryReceiveChannel[_Request]) -> None:
        async for request in requests:
            try:
                if problem := await request.complete():
                    self.log_event("warning", "error", message=f"limits: {problem}")
            finally:
                self._unfinished_count -= 1

    # ---- one change

    def _find_foreign_changes(self, is_thorough: bool) -> dict[str, str]:
        return cgroup_limits.find_foreign_changes(self.cgroup, self.applied, is_thorough)

    async def _restore(self, is_thorough: bool = True) -> Result:
        changes = self._find_foreign_changes(is_thorough)
        if not changes:
            return True, ""
        described = "; ".join(f"{key}: {change}" for key, change in changes.items())
        self.log_event("limit changed", "warning", message=f"another program has changed it; restored: {described}")
        try:
            await _restore_limits(self.cgroup, self.applied, changes)
        except CgroupError as error:
            self.log_event("limit not enforced", "warning", message=str(error))
            return False, str(error)
        self.on_change()
        return True, ""

    async def _change(self, changes: Mapping[str, Any], cause: Mapping[str, Any], log_level: str) -> Result:
        await self._restore()
        before = self._begin_change()
        try:
            after = apply_changes(self.owner, before, changes)
            await self._write(after, optional=False)
        except (ConfigError, CgroupError) as error:
            self.log_event("warning", "warning", message=f"set: {error}")
            return False, str(error)
        was, is_ = changed_limits(before, after)
        self.log_event("action", log_level, action="set", cause=cause, before=was, after=is_)
        return True, "; ".join(await self.reapply_inside())

    async def _apply(self, target: Target) -> Result:
        await self._restore()
        after = target(self._begin_change())
        try:
            await self._write(after, optional=not after.required)
        except CgroupError as error:
            return False, str(error)
        await self.reapply_inside()
        return True, ""

    def _begin_change(self) -> Resources:
        """Return the limits to begin with."""
        self._deferred.clear()
        return self.resources

    async def _write(self, after: Resources, *, optional: bool) -> None:
        """Write the limits; with `optional`, a limit that the kernel refuses is logged and is not an error."""
        if after != self.applied:
            for problem in await _write_limits(self.cgroup, self.applied, after, optional=optional):
                self.log_event("limit not enforced", "warning", message=str(problem))
        self.resources = self.applied = after
        for target in self._deferred:
            self.resources = target(self.resources)
        self.on_change()

    async def _reapply_percentages(self) -> Result:
        resources = self.resources
        other = self.cgroup.detached(resources)
        try:
            await call_in_thread(cgroup_limits.reapply_percentages, other, resources, abandon_on_cancel=True)
        except CgroupError as error:
            self.log_event("warning", "warning", message=f"set: {error}")
            return False, str(error)
        finally:
            other.close()
        self.on_change()
        return True, ""

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


def _has_percentages(resources: Resources) -> bool:
    return any(isinstance(value, Percent) for value in attrs.asdict(resources, recurse=False).values())


async def _write_limits(
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


async def _restore_limits(cgroup: Cgroup, resources: Resources, keys: Collection[str]) -> None:
    """Call `restore_limits` of `nsupervisor.cgroups.limits`, in a thread if the kernel may take its time."""
    if not any(key.startswith("memory_") for key in keys):
        cgroup_limits.restore_limits(cgroup, resources, keys)
        return
    other = cgroup.detached(resources)
    try:
        await call_in_thread(cgroup_limits.restore_limits, other, resources, keys, abandon_on_cancel=True)
    finally:
        other.close()


def _write_now(cgroup: Cgroup, before: Resources, after: Resources, optional: bool) -> list[HostProblem]:
    if not optional:
        cgroup_limits.change_limits(cgroup, before, after)
        return []
    cgroup_limits.apply_limits(cgroup, after)
    return list(cgroup.problems)
