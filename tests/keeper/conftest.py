"""A keeper of one's own per test, and a harness that gathers what it tells."""

import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from nsupervisor.keeper.client import Keeper, open_keeper
from nsupervisor.keeper.messages import Ended, Execed, KeeperLost, SetupFailure, Spawned
from tests.timing import deadline

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ISOLATED = ["mount", "pid", "uts", "ipc", "cgroup"]
WAYS_TO_START = pytest.mark.parametrize(
    "spec",
    [
        pytest.param({}, id="plain"),
        pytest.param({"namespaces": ISOLATED}, id="init"),
        pytest.param({"namespaces": ISOLATED, "init": False}, id="pid1"),
        pytest.param({"namespaces": [*ISOLATED, "user"]}, id="user-namespace"),
        pytest.param({"namespaces": ISOLATED, "uid": 1234, "gid": 1234, "groups": []}, id="init-user"),
    ],
)
"""Runs a test with a program that is started in each way that differs in the descriptors that it inherits."""

_numbers = itertools.count(1)


@attrs.frozen
class Result:
    """How a program ended, and what it wrote."""

    status: int
    failure: SetupFailure | None
    stdout: str
    stderr: str

    @property
    def code(self) -> int:
        return os.waitstatus_to_exitcode(self.status)


class Harness:
    """Spawns with defaults; remembers events by id; closes descriptors."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self.execs: dict[str, Execed] = {}
        self.ends: dict[str, Ended] = {}
        self.repeated: list[str] = []
        self.alive: dict[str, Spawned] = {}
        self._news = trio.Event()

    async def listen(self) -> None:
        async for event in self.keeper.events:
            if isinstance(event, Execed):
                self.execs[event.id] = event
            elif event.id in self.ends:
                self.repeated.append(event.id)
            else:
                self.ends[event.id] = event
            self._news.set()
            self._news = trio.Event()

    async def spawn(self, *argv: str, join_fds: Sequence[int] = (), **spec: object) -> Spawned:
        given = {"id": f"test#{next(_numbers)}", "argv": list(argv), "env": {"PATH": PATH}, "cwd": "/", **spec}
        spawned = await self.keeper.spawn(given, join_fds=join_fds)
        self.alive[spawned.id] = spawned
        return spawned

    async def _until(self, holds: Callable[[], bool]) -> None:
        with trio.fail_after(deadline(20)):
            while not holds():
                await self._news.wait()

    async def execed(self, spawned: Spawned) -> Execed:
        await self._until(lambda: spawned.id in self.execs or spawned.id in self.ends)
        assert spawned.id in self.execs, self.ends[spawned.id]
        return self.execs[spawned.id]

    async def ended(self, spawned: Spawned) -> Ended:
        await self._until(lambda: spawned.id in self.ends)
        return self.ends[spawned.id]

    async def run(self, *argv: str, **spec: Any) -> Result:
        """From spawn to the acknowledgement of the end."""
        return await self.finish(await self.spawn(*argv, **spec))

    async def finish(self, spawned: Spawned) -> Result:
        texts: dict[int, bytes] = {}

        async def read(fd: int) -> None:
            async with trio.lowlevel.FdStream(fd) as stream:
                texts[fd] = b"".join([chunk async for chunk in stream])

        with trio.fail_after(deadline(30)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read, spawned.stdout)
                nursery.start_soon(read, spawned.stderr)
            end = await self.ended(spawned)
            await self.keeper.acknowledge(spawned.id)
        del self.alive[spawned.id]
        return Result(
            end.status, end.failure, texts[spawned.stdout].decode(errors="replace"), texts[spawned.stderr].decode()
        )

    async def run_until_ready(self, *argv: str, **spec: object) -> tuple[Spawned, bytes]:
        """Spawn, and wait for its first output, which says that it is where the test wants it."""
        spawned = await self.spawn(*argv, **spec)
        with trio.fail_after(deadline(20)):
            await trio.lowlevel.wait_readable(spawned.stdout)
        return spawned, os.read(spawned.stdout, 65536)


@pytest.fixture
def runtime_directory() -> Iterator[Path]:
    # Not tmp_path, which is too long for a socket's path.
    directory = Path(tempfile.mkdtemp(prefix="keeper-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
async def harness(runtime_directory: Path) -> AsyncIterator[Harness]:
    async with open_keeper(runtime_directory) as keeper, trio.open_nursery() as nursery:
        harness = Harness(keeper)
        nursery.start_soon(harness.listen)
        yield harness
        await end_all(keeper)
        for spawned in harness.alive.values():
            for fd in (spawned.stdout, spawned.stderr):
                os.close(fd)
        nursery.cancel_scope.cancel()


async def end_all(keeper: Keeper) -> None:
    """Kill what lives, acknowledge everything, and see the keeper leave."""
    with trio.CancelScope(shield=True), trio.fail_after(deadline(20)):
        try:
            for child in await keeper.list():
                for fd in (child.stdout, child.stderr):
                    os.close(fd)
                await keeper.signal(child.id, signal.SIGKILL)
                await acknowledge_when_ended(keeper, child.id)
            await keeper.shutdown()
        except KeeperLost:  # the test has told it to leave
            await gone(keeper.pid)


async def gone(pid: int) -> None:
    """Wait until a keeper, a child of this process, has left, and reap it."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with trio.fail_after(deadline(20)):
        await trio.lowlevel.wait_readable(pidfd)
    os.close(pidfd)
    os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 - it does not wait


async def acknowledge_when_ended(keeper: Keeper, id_: str) -> None:
    """The process is dead; the keeper may not have reaped it yet, which takes it microseconds."""
    while True:
        (status,) = [child.status for child in await list_closed(keeper) if child.id == id_]
        if status is not None:
            await keeper.acknowledge(id_)
            return


async def list_closed(keeper: Keeper) -> list:
    """The table, without its descriptors."""
    children = await keeper.list()
    for child in children:
        for fd in (child.stdout, child.stderr):
            os.close(fd)
    return children
