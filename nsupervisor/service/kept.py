"""A client that always has a keeper: a lost one is replaced, and pending requests continue with the new one.

Requests wait while there is no keeper. The exception is a spawn in progress when the keeper is lost: it is unknown
whether it was done. `spawn` then raises KeeperLost once there is a keeper again.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import attrs
import trio

from nsupervisor.keeper import protocol
from nsupervisor.keeper.client import Keeper, open_keeper, reaped
from nsupervisor.keeper.told import Child, Ended, Execed, KeeperLost, Spawned

T = TypeVar("T")
DELAYS = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
"""Seconds before each attempt to connect to a new keeper; the last delay repeats."""
_ATTEMPTS = 100


@attrs.define(eq=False)
class Kept:
    """A keeper client that reconnects. Made by `open_reconnecting_keeper`."""

    directory: Path
    _nursery: trio.Nursery
    protected: tuple[str, ...] = ()
    """Cgroups whose processes the keeper does not accept as supervisors: see `Keeper.protect`."""
    _keeper: Keeper = attrs.field(init=False)
    _up: trio.Event = attrs.field(init=False, factory=trio.Event)
    _children: dict[str, Child] = attrs.field(init=False, factory=dict)
    """After a loss: the children that the keeper has listed and no caller has claimed yet."""
    expected: bool = False
    """Whether the next loss is intended, because the keeper becomes another version."""
    on_answer: Callable[[str, float], None] | None = None
    """Called with each answered request, as `Keeper.on_answer`."""

    @property
    def tree(self) -> str:
        """The path of the tree's version 2 cgroup, as /proc/PID/cgroup shows it."""
        return next((text[1:] for text in self.protected if text.startswith(":")), "")

    @property
    def pid(self) -> int:
        """The pid of the present keeper."""
        return self._keeper.pid

    @property
    def direct(self) -> Keeper:
        """The client of the present keeper, for the code that restores everything after a loss."""
        return self._keeper

    async def events(self) -> AsyncIterator[Execed | Ended]:
        """Yield the reports of the present keeper; end when it is lost. Requests wait from then on."""
        async for report in self._keeper.events:
            yield report
        self._down()

    def _down(self) -> None:
        if self._up.is_set():  # otherwise requests wait for this very event
            self._up = trio.Event()

    async def connect(self) -> None:
        """Connect to the keeper that exists, or start a new one. Raises KeeperLost and OSError, as `open_keeper`."""
        self._down()
        await self._nursery.start(self._hold)

    async def first_children(self) -> list[Child]:
        """List the children at the start; if the keeper is lost meanwhile, those of another keeper."""
        for delay in DELAYS:
            try:
                return await self.children()
            except KeeperLost:
                await trio.sleep(delay)
                await self.connect()
        return await self.children()

    async def children(self, ids: Sequence[str] = (), bare: bool = False) -> list[Child]:
        """Call `Keeper.list` on the present keeper."""
        return await self._keeper.list(ids, bare)

    def go_on(self, children: Sequence[Child] = ()) -> None:
        """Let pending requests continue, after everything has been restored.

        `children` are those that no actor knows yet; `spawn` hands out their descriptors.
        """
        self._forget()
        self._children = {child.id: child for child in children}
        self._up.set()

    async def spawn(
        self, spec: Mapping[str, Any], meanwhile: Callable[[], None] = lambda: None, notify: int = -1
    ) -> Spawned:
        """Call `Keeper.spawn`.

        Raises KeeperLost if the keeper was lost meanwhile. The new keeper then does not know the program, but a process
        of it may be in its cgroup.
        """
        keeper = await self._current()
        try:
            return await keeper.spawn(spec, meanwhile, notify)
        except KeeperLost:
            await self._after(keeper)
            child = self._children.pop(spec["id"], None)
            if child is None:
                raise
            if child.notify >= 0:
                protocol.close_all([child.notify])
            return Spawned(child.id, child.pid, child.stdout, child.stderr)

    async def signal(self, id: str, signum: int) -> bool:  # noqa: A002
        """Call `Keeper.signal`, again after a loss."""
        return bool(await self._ask(lambda keeper: keeper.signal(id, signum)))

    async def acknowledge(self, id: str) -> None:  # noqa: A002
        """Call `Keeper.acknowledge`, again after a loss."""
        await self._ask(lambda keeper: keeper.acknowledge(id))

    async def execute(self, python: str, package: str) -> bool:
        """Call `Keeper.execute`; return whether the other version came up.

        If it did not, there is a new keeper of this version. Raises RefusedError if nothing has been done.
        """
        keeper = await self._current()
        self.expected = True
        try:
            await keeper.execute(python, package)
        except KeeperLost:
            await self._after(keeper)
            return self.pid == keeper.pid
        finally:
            self.expected = False
        return False

    async def shutdown(self) -> None:
        """Call `Keeper.shutdown`; a loss of the keeper counts as its shutdown."""
        try:
            await self._keeper.shutdown()
        except KeeperLost:
            pass

    async def _ask(self, question: Callable[[Keeper], Any]) -> Any:
        while True:
            keeper = await self._current()
            try:
                return await question(keeper)
            except KeeperLost:
                await self._after(keeper)

    async def _current(self) -> Keeper:
        if not self._up.is_set():  # avoid a checkpoint, which would delay each start
            await self._up.wait()
        return self._keeper

    async def _after(self, lost: Keeper) -> None:
        """Wait until `lost` has been replaced."""
        while self._keeper is lost or not self._up.is_set():
            if self._up.is_set():  # the loss has not been noticed yet
                await trio.sleep(0.001)
            else:
                await self._up.wait()

    async def _hold(self, task_status: trio.TaskStatus[None]) -> None:
        async with open_keeper(self.directory, self.protected) as keeper:
            keeper.on_answer = self._answered
            self._keeper = keeper
            task_status.started()
            await keeper.lost()
        for _ in range(_ATTEMPTS):  # its socket is closed, so if the process is dead, it can be reaped soon
            if reaped(keeper.pid):
                break
            await trio.sleep(0.01)

    def _answered(self, request: str, seconds: float) -> None:
        if self.on_answer is not None:
            self.on_answer(request, seconds)

    def _forget(self) -> None:
        for child in self._children.values():
            close(child)
        self._children = {}


def close(child: Child) -> None:
    """Close the descriptors of a child that `Keeper.list` returned."""
    protocol.close_all([fd for fd in (child.stdout, child.stderr, child.notify) if fd >= 0])


@asynccontextmanager
async def open_kept(directory: Path, protected: tuple[str, ...] = ()) -> AsyncIterator[Kept]:
    """Open a client for the keeper of this runtime directory, which refuses connections from the cgroups `protected`.

    `release_waiters` has to be called before any request. Raises as `open_keeper` does.
    """
    problem: Exception | None = None
    async with trio.open_nursery() as nursery:
        kept = Kept(directory, nursery, protected)
        try:
            await kept.connect()
            yield kept
        except Exception as error:  # passed on below as it is, not in the nursery's group
            problem = error
        finally:
            kept._forget()
            nursery.cancel_scope.cancel()
    if problem is not None:
        raise problem
