"""sd_notify(3), with a real client of it where there is one."""

import itertools
import os
import socket
import stat
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from nsupervisor.notify_socket import MAX_BACKLOG_FDS, Datagram, notify_socket, socket_path
from nsupervisor.service.instance.readiness import (
    MAX_UNUSUAL_FDS,
    MAX_WAITING,
    NotificationReader,
    host_owner,
    parse,
    receive,
)
from nsupervisor.service.instance.status_texts import REPORT_INTERVAL_S
from tests.needs import needs
from tests.timing import deadline


@pytest.fixture
def directory():
    """A runtime directory that other users can pass through, as the real one."""
    with tempfile.TemporaryDirectory() as parent:
        os.chmod(parent, 0o711)
        yield Path(parent) / "notify"


@pytest.fixture
def path(directory):
    return socket_path(directory.parent, "web#1", "0123456789abcdef")


def everyone(pid):
    return True


def never(pid):
    raise AssertionError(f"refused process {pid}")


@pytest.mark.fault("B9", "F4")
def test_only_a_newline_separates_assignments():
    """READY=1 in a text with another separator, which a program passed on, counted as its own."""
    for separator in "\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029":
        text = f"x{separator}READY=1"
        assert parse(f"STATUS={text}".encode()) == {"STATUS": text}
    assert parse(b"READY=1\nSTATUS=a=b \xff\nrubbish\n\n") == {"READY": "1", "STATUS": "a=b \ufffd"}
    assert parse(b"") == {}


async def test_a_message_comes_with_its_sender(directory, path):
    asked = []

    def is_own(pid):
        asked.append(pid)
        return True

    with notify_socket(path, None) as ours, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
        theirs.connect(str(path))
        theirs.send(b"READY=1")
        assert parse((await receive(ours, is_own, never)).data) == {"READY": "1"}
    assert asked == [os.getpid()]
    assert os.listdir(directory) == []


@pytest.mark.fault("A7")
async def test_a_message_of_another_workload_is_dropped(path):
    refused = []
    with notify_socket(path, None) as ours, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
        theirs.sendto(b"WATCHDOG=trigger", str(path))
        theirs.sendto(b"READY=1", str(path))
        answers = iter((False, True))
        assert parse((await receive(ours, lambda pid: next(answers), refused.append)).data) == {"READY": "1"}
    assert refused == [os.getpid()]


@pytest.mark.fault("A7")
async def test_what_waited_while_no_service_ran_counts_by_its_socket(path):
    """Its sender may be gone, and its pid may be another process."""
    with notify_socket(path, None) as first, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
        theirs.sendto(b"READY=1", str(path))
        theirs.sendto(b"STATUS=x", str(path))
        fd = os.dup(first.socket.fileno())
        with notify_socket(directory_of_another(path), None, fd) as second:
            assert second.path == path, "it stays where the program knows it"
            assert parse((await receive(second, lambda pid: False, never)).data) == {"READY": "1"}
            assert parse((await receive(second, lambda pid: False, never)).data) == {"STATUS": "x"}


def directory_of_another(path):
    return path.parent.parent / "fedcba9876543210" / path.name


async def test_refusals_are_said_once_a_minute(path, autojump_clock):
    said = []
    with notify_socket(path, None) as ours, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            reader = NotificationReader(ours, 0, lambda *what: said.append(what), never, lambda pid: False)
            nursery.start_soon(reader.run, scope)
            for _ in range(3):
                theirs.sendto(b"READY=1", str(path))
            await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(61)
            theirs.sendto(b"READY=1", str(path))
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    text = (
        f"ignored a message of process {os.getpid()}, which is not part of this workload, or not heard (notify_access)"
    )
    assert said == [("REFUSED", text)] * 2


def test_the_place_that_0_1_0_chose_is_found_again(directory):
    token = "0123456789abcdef"
    assert socket_path(directory.parent, "web#1", token, again=True) == directory / token / "socket"
    directory.mkdir()
    (directory / "web#1").touch()
    assert socket_path(directory.parent, "web#1", token, again=True) == directory / "web#1"
    assert socket_path(directory.parent, "web#1", token) == directory / token / "socket", "a new generation"


@needs("program:systemd-notify")
async def test_systemds_own_client_is_understood(path):
    with notify_socket(path, None) as ours:
        env = {**os.environ, "NOTIFY_SOCKET": str(path)}
        with trio.fail_after(deadline(10)):
            command = ["systemd-notify", "--ready", "--status=warm"]
            await trio.run_process(command, env=env, check=False)  # the socket keeps what is sent before it is read
            said = parse((await receive(ours, everyone, never)).data)
        assert said["READY"] == "1"
        assert said["STATUS"] == "warm"


@needs("root")
async def test_only_the_programs_user_may_speak(path):
    with notify_socket(path, (65534, 65534)):
        mode = os.lstat(path)
        assert (stat.S_IMODE(mode.st_mode), mode.st_uid) == (0o600, 65534)
        talk = f"import socket; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', {str(path)!r})"
        for uid, status in ((65534, 0), (65533, 1)):
            result = await trio.run_process(
                ["/usr/bin/python3", "-c", talk], user=uid, check=False, capture_stderr=True, stdout=subprocess.DEVNULL
            )
            assert result.returncode == status, result.stderr


def test_the_owner_on_the_host_follows_the_mappings():
    def spec(uid, gid, mappings=()):
        return {"uid": uid, "gid": gid, "uid_mappings": list(mappings), "gid_mappings": list(mappings)}

    assert host_owner(spec(None, None)) is None
    assert host_owner(spec(33, 33)) == (33, 33)
    assert host_owner(spec(33, None, [[0, 100000, 65536]])) == (100033, 100000)


@pytest.mark.fault("B6")
async def test_messages_that_no_task_has_read_are_read_at_the_exit(path):
    """The exit of a program that sends READY=1 and exits may be reported before the task has run."""
    said, statuses, answers = [], [], iter((True, False))
    with notify_socket(path, None) as ours, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
        ours.backlog.append(Datagram(b"STATUS=lost with the task"))
        reader = NotificationReader(
            ours, 0, lambda *what: said.append(what), lambda *status: statuses.append(status), lambda _: next(answers)
        )
        reader.read_waiting()
        assert not reader.is_ready
        theirs.sendto(b"READY=1", str(path))
        theirs.sendto(b"WATCHDOG=trigger", str(path))
        reader.read_waiting()
        assert reader.is_ready
    assert [kind for kind, _ in said] == ["READY", "REFUSED"]


# ---- status texts


@contextmanager
def statuses(nursery, path, scope):
    """A program's socket that is watched, and the reports of its status."""
    reports = []
    with notify_socket(path, None) as ours, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
        theirs.connect(str(path))
        reader = NotificationReader(ours, 0, never, lambda *report: reports.append(report))
        nursery.start_soon(reader.run, scope)
        yield theirs, reports


async def test_a_program_wrote_a_record_for_each_of_its_status_texts(path, autojump_clock):
    """110 MB in 8 s."""
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        with statuses(nursery, path, scope) as (theirs, reports):
            for number in range(1000):
                theirs.send(b"STATUS=%d" % number)
                if number % 5 == 0:  # net.unix.max_dgram_qlen is 10 by default
                    await trio.testing.wait_all_tasks_blocked()
            await trio.testing.wait_all_tasks_blocked()
            assert reports == [("0", 0)], "the first one at once"
            await trio.sleep(2 * REPORT_INTERVAL_S)
            assert reports == [("0", 0), ("999", 998)]
            await trio.sleep(2 * REPORT_INTERVAL_S)
            theirs.send(b"STATUS=later")
            await trio.testing.wait_all_tasks_blocked()
            assert reports[2:] == [("later", 0)]
            scope.cancel()


async def test_a_status_text_that_has_not_changed_is_not_reported_again(path, autojump_clock):
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        with statuses(nursery, path, scope) as (theirs, reports):
            for text in (b"same", b"same", b"other", b"same"):
                theirs.send(b"STATUS=" + text)
                await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(2 * REPORT_INTERVAL_S)
            assert reports == [("same", 0)]
            theirs.send(b"STATUS=new")
            await trio.testing.wait_all_tasks_blocked()
            assert reports == [("same", 0), ("new", 3)]
            scope.cancel()


async def test_the_last_status_text_of_a_program_that_ends_is_reported(path, autojump_clock):
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        with statuses(nursery, path, scope) as (theirs, reports):
            theirs.send(b"STATUS=works")
            theirs.send(b"STATUS=no space is left")
            await trio.testing.wait_all_tasks_blocked()
            assert reports == [("works", 0)]
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert reports == [("works", 0), ("no space is left", 0)]


async def test_nothing_is_read_before_it_is_known_who_may_speak(path, autojump_clock):
    """A helper was heard in spite of `notify_access = "main"` until the execution of the program was reported."""
    with reading(path) as (reader, theirs, notified):
        known = []
        reader.is_own = lambda pid: pid in known
        reader.hold()
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            nursery.start_soon(reader.run, scope)
            theirs.send(b"READY=1")
            await trio.sleep(1)
            assert notified == []  # neither taken nor refused
            known.append(os.getpid())
            reader.may_read.set()
            await trio.sleep(1)
            assert notified == [("READY", "")]
            scope.cancel()


async def test_a_sender_that_never_pauses_does_not_keep_the_service(path):
    """The service read what waited until nothing did, at the exit of a program whose children sent all the time."""
    read = []

    def receive_now(*_):
        read.append(b"READY=1")
        assert len(read) < 5000
        return b"READY=1", [], 0, None

    with reading(path) as (reader, _theirs, notified):
        reader.socket.receive_now = receive_now
        reader.read_waiting()
    assert len(notified) == len(read) == MAX_WAITING


async def test_what_waits_is_not_read_for_longer_than_a_second(path, mock_clock):
    with reading(path) as (reader, _theirs, notified):
        reader.on_notification = lambda *news: (notified.append(news), mock_clock.jump(0.4))
        reader.socket.receive_now = lambda *_: (b"READY=1", [], 0, None)
        reader.read_waiting()
    assert len(notified) == 3


async def test_expensive_messages_leave_nine_tenths_of_the_time_to_others(path, autojump_clock):
    """A flood of MAINPID= had all processes of the workload looked at without a pause."""
    at = []

    def work(*_):
        at.append(trio.current_time())
        autojump_clock.jump(0.01)

    with reading(path) as (reader, theirs, _notified):
        reader.on_notification = work
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            nursery.start_soon(reader.run, scope)
            for _ in range(5):
                theirs.send(b"MAINPID=77")
            await trio.sleep(5)
            scope.cancel()
    assert len(at) == 5
    assert min(later - earlier for earlier, later in itertools.pairwise(at)) >= 0.0999


async def test_a_program_may_ask_for_more_time_but_not_for_ever(path):
    notified = []
    with notify_socket(path, None) as ours, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
        reader = NotificationReader(ours, 0.0, lambda *news: notified.append(news), lambda *news: None)
        for value in ("2500000", "0", "31622400000000", "31622400000001", "-1", "1e6", "", "٣", "9" * 50):
            theirs.sendto(f"EXTEND_TIMEOUT_USEC={value}".encode(), str(path))
        reader.read_waiting()
    assert notified == [("EXTEND", "2.5"), ("EXTEND", "0.0"), ("EXTEND", "31622400.0")]


@contextmanager
def reading(path, on_barrier=os.close):
    """A program's socket, its reader, and what that reports."""
    notified = []
    with notify_socket(path, None) as ours, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
        theirs.connect(str(path))
        yield (
            NotificationReader(ours, 0.0, lambda *news: notified.append(news), never, everyone, on_barrier),
            theirs,
            notified,
        )


async def test_a_reload_that_is_done_is_reported_in_one_message(path):
    with reading(path) as (reader, theirs, notified):
        theirs.send(b"READY=1\nMONOTONIC_USEC=2500000\nRELOADING=1")
        theirs.send(b"RELOADING=1\nMONOTONIC_USEC=soon")
        reader.read_waiting()
    assert notified == [("RELOADING", "2.5"), ("READY", ""), ("RELOADING", "")]


async def test_other_notifications(path):
    with reading(path) as (reader, theirs, notified):
        theirs.send(b"STOPPING=1\nERRNO=28\nBUSERROR=org.example.Error\nRESTART_RESET=1\nEXIT_STATUS=3")
        theirs.send(b"STOPPING=0\nERRNO=-1\nRESTART_RESET=yes")
        theirs.send(b"ERRNO=99999999999999999999")
        reader.read_waiting()
    assert notified == [("RESTART_RESET", ""), ("ERRNO", "28"), ("BUSERROR", "org.example.Error"), ("STOPPING", "")]


def is_closed(reader_fd):
    """Return whether no process has the other end of a pipe."""
    with os.fdopen(os.dup(reader_fd), "rb", buffering=0) as pipe:
        os.set_blocking(pipe.fileno(), False)
        return pipe.read() == b""


async def test_a_barrier_is_given_on_after_the_messages_before_it(path):
    order = []
    with reading(path, order.append) as (reader, theirs, notified):
        before, (readable, writable) = {*os.listdir("/proc/self/fd")}, os.pipe()
        theirs.send(b"READY=1")
        socket.send_fds(theirs, [b"BARRIER=1"], [writable])
        os.close(writable)
        theirs.send(b"STOPPING=1")
        reader.read_waiting()
        assert notified == [("READY", ""), ("STOPPING", "")]
        assert len(order) == 1
        assert not is_closed(readable)
        os.close(order[0])
        assert is_closed(readable)
        os.close(readable)
        assert {*os.listdir("/proc/self/fd")} == before


@pytest.mark.parametrize("message", [b"READY=1", b"BARRIER=1\nREADY=1", b"BARRIER=0"])
async def test_other_descriptors_are_closed(path, message):
    barriers = []
    with reading(path, barriers.append) as (reader, theirs, _):
        before = {*os.listdir("/proc/self/fd")}
        socket.send_fds(theirs, [message], [theirs.fileno()] * 100)
        reader.read_waiting()
        assert {*os.listdir("/proc/self/fd")} == before
    assert barriers == []


async def test_the_descriptor_of_another_process_is_closed(path):
    with notify_socket(path, None) as ours, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
        theirs.connect(str(path))
        refused, before = [], {*os.listdir("/proc/self/fd")}
        socket.send_fds(theirs, [b"BARRIER=1"], [theirs.fileno()])
        reader = NotificationReader(ours, 0.0, lambda *news: refused.append(news), never, lambda _: False, never)
        reader.read_waiting()
        assert [kind for kind, _ in refused] == ["REFUSED"]
        assert {*os.listdir("/proc/self/fd")} == before


async def test_a_barrier_that_waited_while_no_service_ran_is_kept(path):
    readable, writable = os.pipe()
    with notify_socket(path, None) as first, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
        theirs.connect(str(path))
        theirs.send(b"READY=1")
        socket.send_fds(theirs, [b"BARRIER=1"], [writable])
        os.close(writable)
        with notify_socket(directory_of_another(path), None, os.dup(first.socket.fileno())) as second:
            assert not is_closed(readable)
            reader = NotificationReader(second, 0.0, lambda *_: None, never)
            reader.read_waiting()
            assert reader.is_ready
            assert is_closed(readable)
    os.close(readable)


# ---- descriptors


async def test_after_some_files_no_descriptor_is_received_any_more(path):
    """Each of them might have to be closed by a thread that waits for the workload."""
    came, closed = [], []

    def discard(fds):
        closed.extend(fds)
        for fd in fds:
            os.close(fd)
        return len(fds)

    with notify_socket(path, None) as ours, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
        theirs.connect(str(path))
        reader = NotificationReader(
            *(ours, 0.0, lambda *news: came.append(news), never, everyone, os.close, False),
            max_stored=3,
            on_store=lambda request, fds: discard(fds) and "files",
            discard=discard,
        )
        for number in range(MAX_UNUSUAL_FDS // 2 + 2):
            socket.send_fds(theirs, [b"STATUS=%d" % number], [0, 1])
            reader.read_waiting()
    assert len(closed) == MAX_UNUSUAL_FDS


async def test_more_descriptors_than_a_store_can_have_are_said_to_be_lost(path):
    came, stored = [], []
    with notify_socket(path, None) as ours, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
        theirs.connect(str(path))
        reader = NotificationReader(
            *(ours, 0.0, lambda *news: came.append(news), never, everyone, os.close, False),
            max_stored=2,
            on_store=lambda request, fds: stored.extend(fds) or "",
        )
        socket.send_fds(theirs, [b"FDSTORE=1"], [theirs.fileno()] * 250)
        reader.read_waiting()
    assert 2 <= len(stored) <= 3, "the kernel rounds the room up"
    for fd in stored:
        assert not os.get_inheritable(fd)
        os.close(fd)
    assert came == [("STORE", "descriptor store: more than 2 descriptors in one message")]


async def test_descriptors_that_waited_while_no_service_ran_are_taken_up_to_a_limit(path):
    """The messages behind stay in the socket, until these have been handled."""
    with notify_socket(path, None) as first, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
        theirs.connect(str(path))
        for _ in range(5):
            socket.send_fds(theirs, [b"FDSTORE=1"], [theirs.fileno()] * 60)
        with notify_socket(directory_of_another(path), None, os.dup(first.socket.fileno())) as second:
            taken = list(second.backlog)
            assert sum(len(datagram.fds) for datagram in taken) <= MAX_BACKLOG_FDS
            for fd in (fd for datagram in taken for fd in datagram.fds):
                os.close(fd)
            second.backlog.clear()
            left = await receive(second, everyone, never, 60)
            assert left.data == b"FDSTORE=1"
            for fd in left.fds:
                os.close(fd)
