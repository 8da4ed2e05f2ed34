"""The kernel and the simulated machine answer the same calls of the seam in the same way, with the same errno.

Each expectation is what Linux does; the test with `kernel` in its name proves that, the one with `simulated` that the
simulation does the same. Sources: cgroups(7), admin-guide/cgroup-v2.rst, inotify(7), pidfd_open(2), signal(7),
flock(2).
"""

import os
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from nsupervisor.linux.inotify import IN_IGNORED, IN_MODIFY, InotifyEvent
from tests.needs import needs
from tests.simulation.sides import KernelSide, Side, SimulatedSide, kernel_side, outcome

EMPTY, POPULATED = "populated 0\nfrozen 0\n", "populated 1\nfrozen 0\n"
EMPTY_FROZEN, FROZEN = "populated 0\nfrozen 1\n", "populated 1\nfrozen 1\n"
NO_PID = 1 << 22
"""The kernel's PID_MAX_LIMIT: no process has this pid."""
NO_FD = 1 << 19


@pytest.fixture(
    params=[
        pytest.param("kernel", marks=[pytest.mark.host_only, needs("root", "cgroup")]),
        pytest.param("simulated"),
    ]
)
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Side]:
    """Return one side after the other."""
    if request.param == "simulated":
        yield SimulatedSide()
    else:
        with kernel_side(tmp_path) as opened:
            yield opened


# ---- directories


def test_directories(side: Side) -> None:
    cgroup = f"{side.root}/a"
    assert side.call("make_directory", cgroup) is None
    assert side.call("make_directory", cgroup) == "EEXIST"
    assert side.call("make_directory", f"{side.root}/missing/a") == "ENOENT"
    assert side.call("make_directories", f"{cgroup}/b/c") is None
    assert side.call("make_directories", f"{cgroup}/b/c") is None
    assert side.call("list_directories", cgroup) == ["b"]
    assert side.call("list_directories", f"{cgroup}/b/c") == []
    assert side.call("list_directories", f"{cgroup}/missing") == "ENOENT"
    assert [side.call("has_directories", path) for path in (cgroup, f"{cgroup}/b/c")] == [True, False]
    assert side.call("has_directories", f"{cgroup}/missing") == "ENOENT"
    assert side.call("remove_directory", cgroup) == "EBUSY"
    assert side.call("remove_directory", f"{cgroup}/missing") == "ENOENT"
    assert [side.call("exists", path) for path in (cgroup, f"{cgroup}/cgroup.procs", f"{cgroup}/missing")] == [
        True,
        True,
        False,
    ]
    for path in (f"{cgroup}/b/c", f"{cgroup}/b", cgroup):
        assert side.call("remove_directory", path) is None
    assert side.call("exists", cgroup) is False
    assert side.call("exists", f"{cgroup}/cgroup.procs") is False


def test_a_cgroup_with_a_zombie_is_empty_and_one_with_a_process_is_not(side: Side) -> None:
    cgroup = f"{side.root}/a"
    side.cgroups.make_directory(cgroup)
    assert side.cgroups.read_text(f"{cgroup}/cgroup.events") == EMPTY
    pid = side.start(cgroup)
    assert side.cgroups.read_text(f"{cgroup}/cgroup.events") == POPULATED
    assert side.cgroups.read_text(f"{side.root}/cgroup.events") == POPULATED
    assert side.cgroups.read_text(f"{cgroup}/cgroup.procs") == f"{pid}\n"
    assert side.call("remove_directory", cgroup) == "EBUSY"
    side.cgroups.write(f"{cgroup}/cgroup.kill", "1")
    side.wait_zombie(pid)
    assert side.cgroups.read_text(f"{cgroup}/cgroup.events") == EMPTY
    assert side.cgroups.read_text(f"{cgroup}/cgroup.procs") == ""
    assert side.call("remove_directory", cgroup) is None
    assert side.reap(pid) == signal.SIGKILL


def test_a_removed_cgroup(side: Side) -> None:
    """What is open fails with ENODEV, a path with ENOENT; one that is made again is another cgroup."""
    cgroup = f"{side.root}/a"
    side.cgroups.make_directory(cgroup)
    fd = side.cgroups.open(f"{cgroup}/cgroup.events")
    assert side.call("read", fd) == EMPTY.encode()
    side.cgroups.remove_directory(cgroup)
    for _ in range(2):
        assert side.call("read", fd) == "ENODEV"
        side.call("make_directory", cgroup)
    side.cgroups.remove_directory(cgroup)
    assert side.call("read_text", f"{cgroup}/cgroup.events") == "ENOENT"
    assert side.call("open", f"{cgroup}/cgroup.events") == "ENOENT"
    assert side.call("write", f"{cgroup}/cgroup.freeze", "1") == "ENOENT"
    assert side.call("remove_directory", cgroup) == "ENOENT"
    assert side.call("close", fd) is None
    assert side.call("close", fd) == "EBADF"


def test_locks(side: Side) -> None:
    """flock(2): a lock belongs to the open directory, not to its path, and ends with the descriptor."""
    cgroup = f"{side.root}/a"
    assert side.call("lock", cgroup) == "ENOENT"
    side.cgroups.make_directory(cgroup)
    fd = side.cgroups.lock(cgroup)
    assert side.call("lock", cgroup) == "EAGAIN"
    side.cgroups.close(fd)
    fd = side.cgroups.lock(cgroup)
    side.cgroups.remove_directory(cgroup)
    side.cgroups.make_directory(cgroup)
    other = side.cgroups.lock(cgroup)
    side.cgroups.close(fd)
    assert side.call("lock", cgroup) == "EAGAIN"
    side.cgroups.close(other)


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("missing", "1", "ENOENT"),
        ("cgroup.events", "1", "EINVAL"),
        ("cgroup.controllers", "memory", "EINVAL"),
        ("cgroup.freeze", "1", None),
        ("cgroup.freeze", "2", "ERANGE"),
        ("cgroup.freeze", "-1", "ERANGE"),
        ("cgroup.freeze", "yes", "EINVAL"),
        ("cgroup.freeze", "", "EINVAL"),
        ("cgroup.kill", "0", "ERANGE"),
        ("cgroup.kill", "yes", "EINVAL"),
        ("cgroup.subtree_control", "+nothing", "EINVAL"),
        ("cgroup.subtree_control", "memory", "EINVAL"),
        ("cgroup.subtree_control", "-memory", None),
    ],
)
def test_writes(side: Side, file: str, text: str, expected: str | None) -> None:
    cgroup = f"{side.root}/a"
    side.cgroups.make_directory(cgroup)
    assert side.call("write", f"{cgroup}/{file}", text) == expected


def test_a_file_that_cannot_be_read(side: Side) -> None:
    cgroup = f"{side.root}/a"
    side.cgroups.make_directory(cgroup)
    assert side.call("open", f"{cgroup}/missing") == "ENOENT"
    assert side.call("read_text", f"{cgroup}/missing") == "ENOENT"
    assert side.call("read_text", f"{cgroup}/cgroup.kill") == "EINVAL"
    assert side.call("exists", f"{cgroup}/cgroup.kill") is True


# ---- freezing and signals


def test_an_empty_cgroup_is_frozen_at_once(side: Side) -> None:
    """cgroup_do_freeze of kernel/cgroup/freezer.c: all of its zero processes are frozen."""
    cgroup = f"{side.root}/a"
    side.cgroups.make_directories(f"{cgroup}/b")
    side.cgroups.write(f"{cgroup}/cgroup.freeze", "1")
    side.wait_text(f"{cgroup}/cgroup.events", EMPTY_FROZEN)
    side.wait_text(f"{cgroup}/b/cgroup.events", EMPTY_FROZEN)
    assert side.cgroups.read_text(f"{cgroup}/cgroup.freeze") == "1\n"
    assert side.cgroups.read_text(f"{cgroup}/b/cgroup.freeze") == "0\n"
    assert side.cgroups.read_text(f"{side.root}/cgroup.events") == EMPTY
    side.cgroups.write(f"{cgroup}/cgroup.freeze", "0")
    side.wait_text(f"{cgroup}/b/cgroup.events", EMPTY)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_whose_default_is_to_terminate_ends_a_frozen_process(side: Side, signum: signal.Signals) -> None:
    """complete_signal of kernel/signal.c turns it into SIGKILL for the whole process when it is sent."""
    cgroup = f"{side.root}/a"
    side.cgroups.make_directory(cgroup)
    pid = side.start(cgroup)
    side.cgroups.write(f"{cgroup}/cgroup.freeze", "1")
    side.wait_text(f"{cgroup}/cgroup.events", FROZEN)
    side.cgroups.send_signal(side.cgroups.open_pidfd(pid), signum)
    assert side.reap(pid) == signum
    assert side.cgroups.read_text(f"{cgroup}/cgroup.events") == EMPTY_FROZEN


@pytest.mark.parametrize(
    ("signum", "traps", "status"),
    [
        (signal.SIGTERM, "exit", 7 << 8),
        (signal.SIGSEGV, "", signal.SIGSEGV),
        (signal.SIGABRT, "", signal.SIGABRT),
    ],
)
def test_a_signal_that_is_caught_or_dumps_core_waits_until_a_process_is_thawed(
    side: Side, signum: signal.Signals, traps: str, status: int
) -> None:
    cgroup = f"{side.root}/a"
    side.cgroups.make_directory(cgroup)
    pid = side.start(cgroup, traps)
    side.cgroups.write(f"{cgroup}/cgroup.freeze", "1")
    side.wait_text(f"{cgroup}/cgroup.events", FROZEN)
    pidfd = side.processes.pin(pid)
    side.cgroups.send_signal(pidfd, signum)
    side.flush()
    assert not side.processes.has_ended(pidfd)
    side.cgroups.write(f"{cgroup}/cgroup.freeze", "0")
    assert side.reap(pid) & ~0x80 == status


def test_a_signal_waits_until_a_stopped_process_is_continued(side: Side) -> None:
    """wants_signal of kernel/signal.c is false for a stopped process: only SIGKILL ends it."""
    cgroup = f"{side.root}/a"
    side.cgroups.make_directory(cgroup)
    pid, other = side.start(cgroup), side.start(cgroup)
    pidfd, other_pidfd = side.processes.pin(pid), side.processes.pin(other)
    for fd, stopped in ((pidfd, pid), (other_pidfd, other)):
        side.cgroups.send_signal(fd, signal.SIGSTOP)
        side.wait_stopped(stopped)
        side.cgroups.send_signal(fd, signal.SIGTERM)
    side.flush()
    assert [side.processes.has_ended(fd) for fd in (pidfd, other_pidfd)] == [False, False]
    side.cgroups.send_signal(pidfd, signal.SIGCONT)
    side.cgroups.send_signal(other_pidfd, signal.SIGKILL)
    assert (side.reap(pid), side.reap(other)) == (signal.SIGTERM, signal.SIGKILL)
    for fd in (pidfd, other_pidfd):
        side.processes.close(fd)


def test_a_signal_that_is_ignored_does_nothing_and_cgroup_kill_ends_a_frozen_process(side: Side) -> None:
    cgroup = f"{side.root}/a"
    side.cgroups.make_directory(cgroup)
    pid = side.start(cgroup, "ignore")
    pidfd = side.processes.pin(pid)
    side.cgroups.send_signal(pidfd, signal.SIGTERM)
    side.flush()
    assert not side.processes.has_ended(pidfd)
    side.cgroups.write(f"{cgroup}/cgroup.freeze", "1")
    side.wait_text(f"{cgroup}/cgroup.events", FROZEN)
    side.cgroups.send_signal(pidfd, signal.SIGTERM)
    side.flush()
    assert not side.processes.has_ended(pidfd)
    side.cgroups.write(f"{cgroup}/cgroup.kill", "1")
    assert side.reap(pid) == signal.SIGKILL


# ---- notifications


def test_watches(side: Side) -> None:
    """inotify_add_watch(2): one watch per file; a removed watch ends with IN_IGNORED, a removed cgroup ends none."""
    cgroup = f"{side.root}/a"
    side.cgroups.make_directory(cgroup)
    notifications = side.open_notifications()
    assert notifications.add(f"{cgroup}/cgroup.events", IN_MODIFY) == 1
    assert notifications.add(f"{cgroup}/cgroup.events", IN_MODIFY) == 1
    assert outcome(notifications.add, f"{cgroup}/missing", IN_MODIFY) == "ENOENT"
    assert notifications.add(f"{side.root}/cgroup.events", IN_MODIFY) == 2
    side.cgroups.remove_directory(cgroup)
    assert side.queued(notifications, 0) == 0
    assert outcome(notifications.add, f"{cgroup}/cgroup.events", IN_MODIFY) == "ENOENT"
    side.cgroups.make_directory(cgroup)
    assert notifications.add(f"{cgroup}/cgroup.events", IN_MODIFY) == 3
    notifications.remove(1)
    notifications.remove(1)
    assert side.queued(notifications, 1) == 1
    assert notifications.read() == [InotifyEvent(1, IN_IGNORED)]
    assert notifications.read() == []


def test_each_change_of_an_event_file_is_notified_here_and_above(side: Side) -> None:
    cgroup = f"{side.root}/a"
    side.cgroups.make_directory(cgroup)
    notifications = side.open_notifications()
    here = notifications.add(f"{cgroup}/cgroup.events", IN_MODIFY)
    above = notifications.add(f"{side.root}/cgroup.events", IN_MODIFY)
    pid = side.start(cgroup)
    assert _changes(side, notifications, 2) == {here, above}
    side.cgroups.write(f"{cgroup}/cgroup.freeze", "1")
    assert _changes(side, notifications, 1) == {here}
    side.cgroups.write(f"{cgroup}/cgroup.freeze", "1")
    assert _changes(side, notifications, 0) == set()
    side.cgroups.write(f"{cgroup}/cgroup.kill", "1")
    side.wait_zombie(pid)
    assert _changes(side, notifications, 2) == {here, above}
    side.reap(pid)
    assert _changes(side, notifications, 0) == set()
    side.cgroups.write(f"{cgroup}/cgroup.freeze", "0")
    assert _changes(side, notifications, 1) == {here}
    notifications.remove(above)
    assert notifications.read() == [InotifyEvent(above, IN_IGNORED)]
    side.start(cgroup)
    assert _changes(side, notifications, 1) == {here}


def _changes(side: Side, notifications: Any, count: int) -> set[int]:
    """Return the watches whose files have changed. The order of different files is free: kernfs_notify has a stack."""
    side.queued(notifications, count)
    events = notifications.read()
    assert {event.mask for event in events} <= {IN_MODIFY}
    return {event.wd for event in events}


def test_an_event_is_merged_with_an_equal_one_at_the_end_of_the_queue_only(side: Side) -> None:
    """inotify(7): "If successive output inotify events produced on the inotify file descriptor are identical"."""
    cgroups = [f"{side.root}/{name}" for name in "ab"]
    notifications = side.open_notifications()
    for cgroup in cgroups:
        side.cgroups.make_directory(cgroup)
        notifications.add(f"{cgroup}/cgroup.events", IN_MODIFY)
    for cgroup, value, queued in ((0, "1", 1), (0, "0", 1), (1, "1", 2), (1, "0", 2), (0, "1", 3)):
        side.cgroups.write(f"{cgroups[cgroup]}/cgroup.freeze", value)
        assert side.queued(notifications, queued) == queued
    assert notifications.read() == [InotifyEvent(1, IN_MODIFY), InotifyEvent(2, IN_MODIFY), InotifyEvent(1, IN_MODIFY)]
    assert notifications.read() == []


def test_changes_within_a_moment_are_notified_once_more_at_its_end(side: Side) -> None:
    """CGROUP_FILE_NOTIFY_MIN_INTV of kernel/cgroup/cgroup.c: the first change at once, then one for all others."""
    cgroup = f"{side.root}/a"
    side.cgroups.make_directory(cgroup)
    notifications = side.open_notifications()
    wd = notifications.add(f"{cgroup}/cgroup.events", IN_MODIFY)
    for value in "10101":
        side.cgroups.write(f"{cgroup}/cgroup.freeze", value)
    assert side.queued(notifications, 1) == 1
    assert notifications.read() == [InotifyEvent(wd, IN_MODIFY)]
    assert side.cgroups.read_text(f"{cgroup}/cgroup.events") == EMPTY_FROZEN


# ---- processes


def test_a_process_and_its_pidfd(side: Side) -> None:
    """pidfd_open(2), pidfd_send_signal(2): a zombie is still a process, and receives signals without effect."""
    cgroup = f"{side.root}/a"
    side.cgroups.make_directory(cgroup)
    pid = side.start(cgroup)
    facts = side.processes
    start = facts.start_time(pid)
    assert start is not None
    assert (facts.parent_pid(pid), facts.command_name(pid)) == (os.getpid(), "sh")
    pidfd, same, signals = facts.pin(pid), facts.open_pidfd(pid, start), side.cgroups.open_pidfd(pid)
    assert facts.open_pidfd(pid, start - 1) == -1
    assert [facts.has_ended(fd) for fd in (pidfd, same)] == [False, False]
    assert facts.exit_status(pidfd, pid) is None
    assert side.call("send_signal", signals, 0) is None
    assert side.call("send_signal", signals, 99) == "EINVAL"
    assert not facts.has_ended(pidfd)
    assert side.call("send_signal", signals, signal.SIGTERM) is None
    side.wait_zombie(pid)
    assert side.call("send_signal", signals, 0) is None
    assert side.call("send_signal", signals, signal.SIGTERM) is None
    assert facts.has_ended(pidfd)
    assert facts.exit_status(pidfd, pid) == signal.SIGTERM
    assert (facts.start_time(pid), facts.parent_pid(pid), facts.command_name(pid)) == (start, os.getpid(), "sh")
    late = facts.open_pidfd(pid, start)
    assert facts.has_ended(late)
    assert side.reap(pid) == signal.SIGTERM
    assert side.call("send_signal", signals, 0) == "ESRCH"
    assert facts.has_ended(pidfd)
    assert facts.exit_status(pidfd, pid) == (signal.SIGTERM if side.statuses_of_others else None)
    assert (facts.start_time(pid), facts.parent_pid(pid), facts.command_name(pid)) == (None, None, "")
    assert facts.open_pidfd(pid, start) == -1
    assert outcome(facts.pin, pid) == side.call("open_pidfd", pid) == "ESRCH"
    for fd in (pidfd, same, late):
        facts.close(fd)
    side.cgroups.close(signals)


def test_pids_and_descriptors_that_do_not_exist(side: Side) -> None:
    facts = side.processes
    for pin in (facts.pin, side.cgroups.open_pidfd):
        assert [outcome(pin, pid) for pid in (NO_PID, 0, -1)] == ["ESRCH", "EINVAL", "EINVAL"]
    assert facts.open_pidfd(NO_PID, 1) == -1
    assert (facts.start_time(NO_PID), facts.parent_pid(NO_PID), facts.command_name(NO_PID)) == (None, None, "")
    assert outcome(facts.close, NO_FD) == outcome(facts.duplicate, NO_FD) == "EBADF"
    assert side.call("send_signal", NO_FD, 0) == side.call("read", NO_FD) == side.call("close", NO_FD) == "EBADF"


# ---- pipes


async def test_a_pipe(side: Side) -> None:
    """pipe(7): EAGAIN while it is empty and has a writer, nothing at its end."""
    pipe, write, close = side.make_pipe()
    assert outcome(pipe.peek) == "EAGAIN"
    write(b"one\n")
    await pipe.wait_readable()
    assert (pipe.peek(), pipe.peek(2), pipe.available_bytes()) == (b"one\n", b"on", 4)
    pipe.discard(2)
    write(b"two\n")
    assert (pipe.peek(), pipe.available_bytes()) == (b"e\ntwo\n", 6)
    close()
    assert pipe.peek() == b"e\ntwo\n"
    pipe.discard(6)
    await pipe.wait_readable()
    assert (pipe.peek(), pipe.available_bytes()) == (b"", 0)
    pipe.close()


async def test_a_pipe_of_which_only_the_inode_is_known(side: Side) -> None:
    pipe, _, close = side.make_pipe()
    facts = side.processes
    again = facts.duplicate(pipe.fd)
    assert facts.pipe_inode(again) == pipe.inode
    assert facts.open_pipe(pipe.inode, [NO_PID]) == facts.open_pipe(pipe.inode, []) == -1
    close()
    facts.close(again)
    pipe.close()
    ended = facts.open_ended_pipe()
    assert facts.pipe_inode(ended) != pipe.inode
    facts.close(ended)


# ---- notify sockets


async def test_a_notify_socket(side: Side) -> None:
    with trio.fail_after(10), side.open_notify_socket() as opened:
        sender = side.send(opened.path, b"READY=1")
        side.send(opened.path, b"long message")
        received = [await _receive(opened) for _ in range(2)]
        assert received == [(b"READY=1", sender, False), (b"long mes", sender, True)]
        assert list(opened.backlog) == []


async def _receive(opened: Any) -> tuple[bytes, int, bool]:
    data, ancillary, flags, _ = await opened.socket.recvmsg(8, socket.CMSG_SPACE(12))
    ((_, kind, credentials),) = ancillary
    assert kind == socket.SCM_CREDENTIALS
    return data, struct.unpack("iII", credentials)[0], bool(flags & socket.MSG_TRUNC)


async def test_a_notify_socket_is_taken_over_with_its_messages(side: Side) -> None:
    first = side.open_notify_socket()
    with first as opened:
        side.send(opened.path, b"READY=1")
        side.send(opened.path, b"WATCHDOG=1")
        fd = side.processes.duplicate(opened.socket.fileno())
        with side.open_notify_socket(fd) as again:
            assert again.path == opened.path
            assert [datagram.data for datagram in again.backlog] == [b"READY=1", b"WATCHDOG=1"]
            side.send(again.path, b"STATUS=")
            with trio.fail_after(10):
                assert (await _receive(again))[0] == b"STATUS="


# ---- files


def test_files(side: Side) -> None:
    files = side.files
    if isinstance(side, KernelSide):
        assert side.directory.is_dir()
    one, two = side.directory / "one", side.directory / "two"
    create = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    assert outcome(files.open, one, os.O_WRONLY | os.O_APPEND) == "ENOENT"
    assert outcome(files.read, one) == "ENOENT"
    assert outcome(files.rename, one, two) == "ENOENT"
    assert outcome(files.unlink, one) is None
    assert not files.exists(one)
    fd = files.open(one, create | os.O_TRUNC)
    assert files.write(fd, b"abc") == 3
    files.rename(one, two)
    assert (files.exists(one), files.exists(two)) == (False, True)
    assert files.write(fd, b"def") == 3
    assert files.read(two) == b"abcdef"
    other = files.open(one, create)
    files.write(other, b"x")
    files.rename(one, two)
    files.write(fd, b"ghi")
    assert files.read(two) == b"x"
    files.close(other)
    other = files.open(two, create)
    files.write(other, b"y")
    assert files.read(two) == b"xy"
    files.close(files.open(two, create | os.O_TRUNC))
    files.write(other, b"z")
    assert files.read(two) == b"z"
    files.unlink(two)
    files.write(other, b"z")
    assert not files.exists(two)
    assert outcome(files.read, two) == "ENOENT"
    files.close(other)
    files.close(fd)
    assert outcome(files.close, fd) == "EBADF"
    assert outcome(files.write, fd, b"") == "EBADF"
    assert outcome(files.open, two, create | os.O_EXCL, 0o600) != "EEXIST"
