"""A client that always has a keeper: a lost one is replaced, and pending requests continue with the new one.

Requests wait while there is no keeper. The exception is a spawn in progress when the keeper is lost: it is unknown
whether it was done. `spawn` then raises KeeperLost once there is a keeper again.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import attrs
import trio

from nsupervisor.keeper.client import open_keeper
from nsupervisor.keeper.connection import KeeperConnection, OpenKeeper
from nsupervisor.keeper.entry import Entry, KeptEntry
from nsupervisor.keeper.messages import Child, Ended, Execed, KeeperLost, Spawned
from nsupervisor.nurseries import open_background_nursery

T = TypeVar("T")
RECONNECT_DELAYS_S = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
"""Seconds before each attempt to connect to a new keeper; the last delay repeats."""
_REAP_ATTEMPTS = 100


@attrs.define(eq=False)
class ReconnectingKeeper:
    """A keeper client that reconnects. Made by `open_reconnecting_keeper`."""

    directory: Path
    _nursery: trio.Nursery
    protected: tuple[str, ...] = ()
    """Cgroups whose processes the keeper does not accept as supervisors: see `Keeper.protect`."""
    _open: OpenKeeper = open_keeper
    _keeper: KeeperConnection = attrs.field(init=False)
    _connected: trio.Event = attrs.field(init=False, factory=trio.Event)
    _unclaimed: dict[str, Child] = attrs.field(init=False, factory=dict)
    """After a loss: the children that the keeper has listed and no caller has claimed yet."""
    expected: bool = False
    """Whether the next loss is intended, because the keeper becomes another version."""
    on_answer: Callable[[str, float], None] | None = None
    """Called with each answered request, as `Keeper.on_answer`."""
    filter_program: Callable[[str], bytes] | None = None
    """Returns the program of a seccomp filter, as `Keeper.filter_program`."""

    @property
    def tree(self) -> str:
        """The path of the tree's version 2 cgroup, as /proc/PID/cgroup shows it."""
        return next((text[1:] for text in self.protected if text.startswith(":")), "")

    @property
    def pid(self) -> int:
        """The pid of the present keeper."""
        return self._keeper.pid

    @property
    def direct(self) -> KeeperConnection:
        """The client of the present keeper, for the code that restores everything after a loss."""
        return self._keeper

    async def events(self) -> AsyncIterator[Execed | Ended]:
        """Yield the reports of the present keeper; end when it is lost. Requests wait from then on."""
        events = self._keeper.events
        async for report in events:
            yield report
            # All that have arrived, without a checkpoint for each: the last of thousands of exits would come late.
            with suppress(trio.WouldBlock, trio.EndOfChannel):
                while True:
                    yield events.receive_nowait()
        self._disconnected()

    def _disconnected(self) -> None:
        if self._connected.is_set():  # otherwise requests wait for this very event
            self._connected = trio.Event()

    async def connect(self) -> None:
        """Connect to the keeper that exists, or start a new one. Raises KeeperLost and OSError, as `open_keeper`."""
        self._disconnected()
        await self._nursery.start(self._hold_connection)

    async def first_children(self) -> list[Child]:
        """List the children at the start; if the keeper is lost meanwhile, those of another keeper."""
        for delay in RECONNECT_DELAYS_S:
            try:
                return await self.children()
            except KeeperLost:
                await trio.sleep(delay)
                await self.connect()
        return await self.children()

    async def children(self, ids: Sequence[str] = (), without_descriptors: bool = False) -> list[Child]:
        """Call `Keeper.list` on the present keeper."""
        return await self._keeper.list(ids, without_descriptors)

    def release_waiters(self, children: Sequence[Child] = ()) -> None:
        """Let pending requests continue, after everything has been restored.

        `children` are those that no actor knows yet; `spawn` hands out their descriptors.
        """
        self._close_unclaimed()
        self._unclaimed = {child.id: child for child in children}
        self._connected.set()

    async def spawn(
        self,
        spec: Mapping[str, Any],
        while_waiting: Callable[[], None] = lambda: None,
        notify: int = -1,
        join_fds: Sequence[int] = (),
    ) -> Spawned:
        """Call `Keeper.spawn`.

        Raises KeeperLost if the keeper was lost meanwhile. The new keeper then does not know the program, but a process
        of it may be in its cgroup.
        """
        keeper = await self._current()
        try:
            return await keeper.spawn(spec, while_waiting, notify, join_fds)
        except KeeperLost:
            await self._reconnected_after(keeper)
            child = self._unclaimed.pop(spec["id"], None)
            if child is None:
                raise
            if child.notify >= 0:
                self._keeper.close_descriptors([child.notify])
            return Spawned(child.id, child.pid, child.stdout, child.stderr, child.readiness)

    async def enter(
        self,
        into: str | None,
        spec: Mapping[str, Any],
        stdio: Sequence[int],
        has_terminal: bool,
        kept_fds: Sequence[int] = (),
    ) -> Entry:
        """Call `Keeper.enter`, which is not repeated after a loss. Raises KeeperLost, too."""
        return await (await self._current()).enter(into, spec, stdio, has_terminal, kept_fds)

    async def signal(self, id: str, *signums: int) -> bool:  # noqa: A002
        """Call `Keeper.signal`, again after a loss."""
        return bool(await self._call(lambda keeper: keeper.signal(id, *signums)))

    async def find_kept(self, id: str) -> KeptEntry | None:  # noqa: A002
        """Return a kept entry of the present keeper, after a loss of the earlier one; None: it has ended with that.

        A keeper that has become another version still has it.
        """
        found = None
        for kept in await self._call(lambda keeper: keeper.list_kept()):
            if kept.entry.id == id:
                found = kept
            else:
                self._keeper.close_descriptors(kept.outputs)
        return found

    async def set_main(self, id: str, process: tuple[int, int], pidfd: int) -> None:  # noqa: A002
        """Call `Keeper.set_main`, again after a loss. Raises RefusedError."""
        await self._call(lambda keeper: keeper.set_main(id, process, pidfd))

    async def acknowledge(self, id: str) -> None:  # noqa: A002
        """Call `Keeper.acknowledge`, again after a loss."""
        await self._call(lambda keeper: keeper.acknowledge(id))

    async def execute(self, python: str, package: str) -> bool:
        """Call `Keeper.execute`; return whether the other version came up.

        If it did not, there is a new keeper of this version. Raises RefusedError if nothing has been done.
        """
        keeper = await self._current()
        self.expected = True
        try:
            await keeper.execute(python, package)
        except KeeperLost:
            await self._reconnected_after(keeper)
            return self.pid == keeper.pid
        finally:
            self.expected = False
        return False

    async def hold(self, key: str, fd: int) -> None:
        """Call `Keeper.hold`, again after a loss."""
        await self._call(lambda keeper: keeper.hold(key, fd))

    async def release(self, keys: Sequence[str]) -> None:
        """Call `Keeper.release`, again after a loss."""
        await self._call(lambda keeper: keeper.release(keys))

    async def listen_again(self) -> bool:
        """Call `Keeper.listen_again`; a keeper that is lost meanwhile is replaced by one that listens."""
        try:
            return await (await self._current()).listen_again(self.directory)
        except KeeperLost:
            return False

    async def shutdown(self) -> None:
        """Call `Keeper.shutdown`; a loss of the keeper counts as its shutdown."""
        try:
            await self._keeper.shutdown()
        except KeeperLost:
            pass

    async def _call(self, request: Callable[[KeeperConnection], Any]) -> Any:
        while True:
            keeper = await self._current()
            try:
                return await request(keeper)
            except KeeperLost:
                await self._reconnected_after(keeper)

    async def _current(self) -> KeeperConnection:
        if not self._connected.is_set():  # avoid a checkpoint, which would delay each start
            await self._connected.wait()
        return self._keeper

    async def _reconnected_after(self, lost: KeeperConnection) -> None:
        """Wait until `lost` has been replaced."""
        while self._keeper is lost or not self._connected.is_set():
            if self._connected.is_set():  # the loss has not been noticed yet
                await trio.sleep(0.001)
            else:
                await self._connected.wait()

    async def _hold_connection(self, task_status: trio.TaskStatus[None]) -> None:
        async with self._open(self.directory, self.protected) as keeper:
            keeper.on_answer = self._answered
            keeper.filter_program = self._filter_program
            self._keeper = keeper
            task_status.started()
            await keeper.wait_lost()
        for _ in range(_REAP_ATTEMPTS):  # its socket is closed, so if the process is dead, it can be reaped soon
            if keeper.reap():
                break
            await trio.sleep(0.01)

    def _answered(self, request: str, seconds: float) -> None:
        if self.on_answer is not None:
            self.on_answer(request, seconds)

    def _filter_program(self, name: str) -> bytes:
        if self.filter_program is None:
            raise KeyError(name)
        return self.filter_program(name)

    def _close_unclaimed(self) -> None:
        for child in self._unclaimed.values():
            fds = (child.stdout, child.stderr, child.notify, child.readiness)
            self._keeper.close_descriptors([fd for fd in fds if fd >= 0])
        self._unclaimed = {}


@asynccontextmanager
async def open_reconnecting_keeper(
    directory: Path,
    protected: tuple[str, ...] = (),
    open_connection: OpenKeeper = open_keeper,
    filter_program: Callable[[str], bytes] | None = None,
) -> AsyncIterator[ReconnectingKeeper]:
    """Open a client for the keeper of this runtime directory, which refuses connections from the cgroups `protected`.

    `filter_program` returns the program of a seccomp filter, as `Keeper.filter_program`.

    `release_waiters` has to be called before any request. Raises as `open_connection` does.
    """
    async with open_background_nursery() as nursery:
        kept = ReconnectingKeeper(directory, nursery, protected, open_connection, filter_program=filter_program)
        try:
            await kept.connect()
            yield kept
        finally:
            kept._close_unclaimed()
