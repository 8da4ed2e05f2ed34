"""`nsupervisor exec --debug`: a command in the sandbox of an instance that does not run, in place of its program.

The command is in a sandbox like that of the program, with its root, namespaces, user, limits, filters and directories,
and in the instance's cgroup. It is no generation: no rule, restart or record of the lifecycle counts it. It belongs to
the connection of its client, as each command of `exec` does, and it ends, with all that it has left, when the instance
starts: the cgroup has to be empty then.

Race: a start may come at any time. So the command is started by the actor between two messages, and the actor ends it
before it prepares the cgroup for a generation.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import trio

from nsupervisor.api.control import ExecRefused
from nsupervisor.cgroups import Cgroup
from nsupervisor.keeper.entry import Entry
from nsupervisor.logs import call_in_thread
from nsupervisor.service.context import ServiceContext
from nsupervisor.service.instance.readiness import host_owner

_POLL_S = 0.005
"""Seconds between two looks at a cgroup whose processes have been killed."""


@attrs.define(eq=False)
class DebugSandbox:
    """The command without a program that an instance has, if it has one."""

    context: ServiceContext
    _entry: Entry | None = attrs.field(init=False, default=None)
    _ended: trio.Event = attrs.field(init=False, factory=trio.Event)

    @property
    def is_active(self) -> bool:
        """Whether there is a command, or what it has left is still being removed."""
        return self._entry is not None

    async def start(
        self,
        spec: Mapping[str, Any],
        directories: Sequence[Mapping[str, Any]],
        cgroup: Cgroup,
        stdio: Sequence[int],
        has_terminal: bool,
    ) -> Entry:
        """Start the command; the cgroup is empty. Raises ExecRefused, SpawnError, KeeperLost and OSError."""
        if self._entry is not None:
            raise ExecRefused("it has such a command already; end that first")
        kernel, owner = self.context.kernel, host_owner(spec)
        if directories:
            kernel.make_directories(directories, owner)
        if spec.get("root", {}).get("overlay"):
            kernel.make_overlay_directory(spec)
        entry = await self.context.keeper.enter(None, spec, stdio, has_terminal)
        self._entry, self._ended = entry, trio.Event()
        self.context.nursery.start_soon(self._remove_after, entry, directories, cgroup)
        return entry

    async def end(self) -> None:
        """End the command, and wait until nothing is left of it."""
        if self._entry is not None:
            if not self._entry.has_ended:
                await self.context.keeper.signal(self._entry.id, signal.SIGKILL)
            await self._ended.wait()

    async def _remove_after(self, entry: Entry, directories: Sequence[Mapping[str, Any]], cgroup: Cgroup) -> None:
        """Wait for the end of the command, and remove what it has left: processes, and runtime directories."""
        try:
            await entry.wait_ended()
            if cgroup.is_populated():  # the last processes of its PID namespace
                cgroup.kill()
                while cgroup.is_populated():  # noqa: ASYNC110 - rare and brief
                    await trio.sleep(_POLL_S)
            if directories:
                await call_in_thread(self.context.kernel.remove_directories, directories)
        finally:
            self._entry = None
            self._ended.set()
