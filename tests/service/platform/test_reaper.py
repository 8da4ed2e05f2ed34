"""Reaping of what is not ours, with real children; the rest is in tests/deployment/test_container.py."""

import os
import signal
from types import SimpleNamespace

import pytest
import trio

from nsupervisor.linux.children import expect_child
from nsupervisor.service.instance.hooks import run_hook
from nsupervisor.service.platform.reaper import reap, reap_all, reap_orphans
from tests.timing import deadline


def ended_child(status: int) -> int:
    """A child that has ended and is not reaped."""
    pid = os.fork()
    if pid == 0:
        os._exit(status)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid


def subprocess_like(pid: int) -> SimpleNamespace:
    """What is told of a child that has been started."""
    return SimpleNamespace(pid=pid)


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_takes_all_that_have_ended_but_not_the_one_that_is_spared():
    reap(0)  # what tests before this one have left
    strangers = {ended_child(1), ended_child(2)}
    assert set(reap(0)) == strangers
    assert reap(0) == []
    ours = ended_child(7)
    assert reap(ours) == []
    assert os.waitstatus_to_exitcode(os.waitpid(ours, 0)[1]) == 7


def test_leaves_those_alone_that_live():
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    os.close(read)
    assert reap(0) == []
    os.close(write)
    os.waitpid(pid, 0)


async def test_does_nothing_where_it_is_not_process_1():
    before = signal.getsignal(signal.SIGCHLD)
    with trio.fail_after(deadline(5)):
        await reap_orphans(lambda: 0)
    assert signal.getsignal(signal.SIGCHLD) is before


async def test_spares_the_keeper_that_replaces_another_and_reaps_those_behind_the_dead_one():
    first, second, stranger = ended_child(7), ended_child(8), ended_child(1)
    keepers, asked = [first], trio.Event()

    def spared() -> int:
        asked.set()
        return keepers[-1]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reap_all, spared)
        with trio.fail_after(deadline(5)):
            await asked.wait()
            keepers.append(second)
            assert status_of(first) == 7
            asked = trio.Event()
            await asked.wait()
        assert status_of(second) == 8
    with pytest.raises(ChildProcessError):
        status_of(stranger)


def test_nobody_is_reaped_while_a_child_of_ours_has_no_number_yet_nor_that_child_afterwards():
    with expect_child() as claim:
        pid = ended_child(7)
        assert reap(0) == []  # it may be this one
        claim.started(subprocess_like(pid))
        stranger = ended_child(1)
        assert pid not in reap(0)
        assert status_of(pid) == 7
        assert set(reap(0)) <= {stranger}
    reap(0)
    with pytest.raises(ChildProcessError):
        status_of(stranger)


async def test_the_status_of_a_hook_is_not_reaped_as_a_strangers() -> None:
    """As process 1, a program of a rule that had failed was at times taken for one that had exited with 0."""

    async def reap_without_end() -> None:
        while True:
            reap(0)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reap_without_end)
        with trio.fail_after(deadline(10)):
            said = [await run_hook(("false",), {}) for _ in range(20)]
        nursery.cancel_scope.cancel()
    assert said == ["false ended with exit status 1"] * 20
