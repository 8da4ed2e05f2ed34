"""The keeper behind its deaths."""

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest
import trio
import trio.testing

from nsupervisor.keeper.client import try_reap
from nsupervisor.keeper.messages import Ended, KeeperLost
from nsupervisor.keeper.reconnecting import ReconnectingKeeper, open_reconnecting_keeper
from tests.needs import ROOT
from tests.timing import deadline

SPEC = {"id": "x#1", "argv": ["sleep", "1000"], "env": {"PATH": "/usr/bin:/bin"}, "cwd": "/", "namespaces": []}


@pytest.fixture
def directory():
    directory = Path(tempfile.mkdtemp(prefix="kept-"))
    yield directory
    shutil.rmtree(directory)


async def hear(kept: ReconnectingKeeper, ends: trio.MemorySendChannel[Ended]) -> None:
    """What the service does, but for the actors."""
    while True:
        async for report in kept.events():
            if isinstance(report, Ended):
                await ends.send(report)
        await trio.sleep(0.01)  # time for somebody to begin to wait
        await kept.connect()
        await trio.sleep(0.01)
        kept.release_waiters(await kept.children())


async def dead(pid: int) -> None:
    """Wait until a keeper that was killed is reaped."""
    while not try_reap(pid):  # noqa: ASYNC110
        await trio.sleep(0.001)


async def test_who_waits_while_there_is_no_keeper_goes_on_with_the_next(directory: Path) -> None:
    """Who began to wait between the loss and the new connection waited for ever."""
    with trio.fail_after(deadline(20)):
        async with open_reconnecting_keeper(directory) as kept, trio.open_nursery() as nursery:
            kept.release_waiters()
            sender, ends = trio.open_memory_channel[Ended](10)
            nursery.start_soon(hear, kept, sender)
            first = kept.pid
            os.kill(first, signal.SIGKILL)
            async with trio.open_nursery() as askers:
                for i in range(30):
                    askers.start_soon(kept.acknowledge, f"nobody#{i}")
                    await trio.sleep(0.001)
            assert kept.pid != first
            await dead(first)
            spawned = await kept.spawn(SPEC)
            assert await kept.signal("x#1", signal.SIGKILL)
            assert await ends.receive() == Ended("x#1", signal.SIGKILL)
            await kept.acknowledge("x#1")
            for fd in (spawned.stdout, spawned.stderr):
                os.close(fd)
            await kept.shutdown()
            nursery.cancel_scope.cancel()


async def test_a_spawn_under_way_when_the_keeper_dies_is_said_to_be_unknown(directory: Path) -> None:
    with trio.fail_after(deadline(20)):
        async with open_reconnecting_keeper(directory) as kept, trio.open_nursery() as nursery:
            kept.release_waiters()
            nursery.start_soon(hear, kept, trio.open_memory_channel[Ended](10)[0])
            first = kept.pid
            os.kill(first, signal.SIGSTOP)
            with pytest.raises(KeeperLost):
                await kept.spawn(SPEC, lambda: os.kill(first, signal.SIGKILL))
            await dead(first)
            await kept.shutdown()
            nursery.cancel_scope.cancel()


async def test_ends_that_were_heard_just_before_the_keeper_died_are_told(directory: Path) -> None:
    """Who was in the middle of hearing of several was told that the channel is closed, which ended the service."""
    with trio.fail_after(deadline(20)):
        async with open_reconnecting_keeper(directory) as kept:
            kept.release_waiters()
            names = [f"x#{number}" for number in range(1, 6)]
            for name in names:
                spawned = await kept.spawn(SPEC | {"id": name, "argv": ["true"]})
                for fd in (spawned.stdout, spawned.stderr):
                    os.close(fd)
            while not all(child.status == 0 for child in await kept.children(without_descriptors=True)):
                pass
            os.kill(kept.pid, signal.SIGKILL)
            await kept.direct.wait_lost()
            await trio.testing.wait_all_tasks_blocked()
            assert sorted([report.id async for report in kept.events() if isinstance(report, Ended)]) == names
            await dead(kept.pid)


async def test_a_keeper_that_dies_at_the_beginning_is_replaced(directory: Path) -> None:
    """The service did not come up, and nobody started it again."""
    with trio.fail_after(deadline(20)):
        async with open_reconnecting_keeper(directory) as kept:
            first = kept.pid
            os.kill(first, signal.SIGKILL)
            assert await kept.first_children() == []
            assert kept.pid != first
            await dead(first)
            await kept.shutdown()


@pytest.mark.parametrize("with_init", [True, False])
async def test_another_version_of_the_keeper_goes_on_with_all_children(directory: Path, with_init: bool) -> None:
    spec = dict(SPEC)
    spec |= {"namespaces": ["pid", "mount"]} if with_init and os.geteuid() == 0 else {}
    with trio.fail_after(deadline(20)):
        async with open_reconnecting_keeper(directory) as kept, trio.open_nursery() as nursery:
            kept.release_waiters()
            sender, ends = trio.open_memory_channel[Ended](10)
            nursery.start_soon(hear, kept, sender)
            pid, spawned = kept.pid, await kept.spawn(spec)
            assert await kept.execute(sys.executable, str(ROOT))
            assert kept.pid == pid
            (child,) = [child for child in await kept.children() if child.id == "x#1"]
            assert (child.pid, child.status) == (spawned.pid, None)
            kept.direct.close_descriptors([child.stdout, child.stderr])
            assert await kept.signal("x#1", signal.SIGTERM)
            assert await ends.receive() == Ended("x#1", signal.SIGTERM)
            await kept.acknowledge("x#1")
            for fd in (spawned.stdout, spawned.stderr):
                os.close(fd)
            await kept.shutdown()
            nursery.cancel_scope.cancel()
