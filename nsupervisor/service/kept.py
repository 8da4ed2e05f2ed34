"""The keeper, whichever process it is at the moment: one that is lost is replaced, and who waited goes on.

What is asked for while there is none waits. A spawn that was under way when the keeper was lost is the one thing about
which nobody knows whether it was done; `spawn` says so by `KeeperLost`, once there is a keeper again.
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
"""Seconds before each attempt to have a new keeper; the last one again and again."""
_ATTEMPTS = 100


@attrs.define(eq=False)
class Kept:
    """Made by `open_kept`."""

    directory: Path
    _nursery: trio.Nursery
    protected: tuple[str, ...] = ()
    """The cgroups whose processes no keeper takes for a supervisor: see `Keeper.protect`."""
    _keeper: Keeper = attrs.field(init=False)
    _up: trio.Event = attrs.field(init=False, factory=trio.Event)
    _children: dict[str, Child] = attrs.field(init=False, factory=dict)
    """After a loss: those that the keeper has told of and that nobody has taken yet."""
    expected: bool = False
    """The loss that comes next is meant: the keeper becomes another version."""
    on_answer: Callable[[str, float], None] | None = None
    """As `Keeper.on_answer`."""

    @property
    def pid(self) -> int:
        """The present one's."""
        return self._keeper.pid

    @property
    def direct(self) -> Keeper:
        """The present one itself, for who brings everything back after a loss."""
        return self._keeper

    async def events(self) -> AsyncIterator[Execed | Ended]:
        """The reports of the present one; ends when it is lost. Those who ask for something wait from then on."""
        async for report in self._keeper.events:
            yield report
        self._down()

    def _down(self) -> None:
        if self._up.is_set():  # else there are some who wait for this very one
            self._up = trio.Event()

    async def connect(self) -> None:
        """Have a keeper: the one that is there, or a new one. Raises KeeperLost and OSError, as `open_keeper`."""
        self._down()
        await self._nursery.start(self._hold)

    async def first_children(self) -> list[Child]:
        """As `children`, for the beginning: where the keeper is lost meanwhile, those of another one."""
        for delay in DELAYS:
            try:
                return await self.children()
            except KeeperLost:
                await trio.sleep(delay)
                await self.connect()
        return await self.children()

    async def children(self, ids: Sequence[str] = (), bare: bool = False) -> list[Child]:
        """As `Keeper.list`: what the present one has."""
        return await self._keeper.list(ids, bare)

    def go_on(self, children: Sequence[Child] = ()) -> None:
        """All is as it was before the loss: whoever waited may go on. ``children`` are those of which nobody knows yet;
        their descriptors are for `spawn` to hand out."""
        self._forget()
        self._children = {child.id: child for child in children}
        self._up.set()

    async def spawn(
        self, spec: Mapping[str, Any], meanwhile: Callable[[], None] = lambda: None, notify: int = -1
    ) -> Spawned:
        """As `Keeper.spawn`. Raises KeeperLost when the keeper was lost meanwhile: there is a new one now, that knows
        nothing of the program; some process of it may be in its cgroup."""
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
        """As `Keeper.signal`."""
        return bool(await self._ask(lambda keeper: keeper.signal(id, signum)))

    async def acknowledge(self, id: str) -> None:  # noqa: A002
        """As `Keeper.acknowledge`."""
        await self._ask(lambda keeper: keeper.acknowledge(id))

    async def execute(self, python: str, package: str) -> bool:
        """As `Keeper.execute`; whether it has come up. Where it has not, there is a new keeper of this version.

        Raises RefusedError where nothing has been done.
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
        """As `Keeper.shutdown`; when it is lost meanwhile, that is as well."""
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
        if not self._up.is_set():  # or else no turn of the scheduler, which would be on the way of each start
            await self._up.wait()
        return self._keeper

    async def _after(self, lost: Keeper) -> None:
        """Wait until ``lost`` has been replaced."""
        while self._keeper is lost or not self._up.is_set():
            if self._up.is_set():  # nobody has noticed yet
                await trio.sleep(0.001)
            else:
                await self._up.wait()

    async def _hold(self, task_status: trio.TaskStatus[None]) -> None:
        async with open_keeper(self.directory, self.protected) as keeper:
            keeper.on_answer = self._answered
            self._keeper = keeper
            task_status.started()
            await keeper.lost()
        for _ in range(_ATTEMPTS):  # it has closed its socket, so where it is dead this is about to be true
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
    """Close the descriptors of what `Keeper.list` has told of."""
    protocol.close_all([fd for fd in (child.stdout, child.stderr, child.notify) if fd >= 0])


@asynccontextmanager
async def open_kept(directory: Path, protected: tuple[str, ...] = ()) -> AsyncIterator[Kept]:
    """A keeper of this runtime directory, which refuses connections from the cgroups ``protected``.

    `go_on` has to be called before anything can be asked for. Raises as `open_keeper` does.
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
