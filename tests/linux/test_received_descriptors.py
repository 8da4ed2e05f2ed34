"""Descriptors that others have sent: which may be held, which are the same, and how they are closed."""

import os
import select
import socket
import struct
import threading

import pytest

from nsupervisor.linux import received_descriptors
from nsupervisor.linux.received_descriptors import HangupPoll, discard, find_refusal, is_same


@pytest.fixture
def pair():
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        return client, server.accept()[0]


def test_what_never_blocks_may_be_held(pair):
    reading, writing = os.pipe()
    made = [reading, writing, os.memfd_create("x"), os.pidfd_open(os.getpid()), select.epoll().fileno(), os.eventfd(0)]
    try:
        assert [find_refusal(fd) for fd in (pair[0].fileno(), *made[:4], made[5])] == [""] * 6
    finally:
        for fd in (*made[:4], made[5]):
            os.close(fd)


def test_a_file_of_a_file_system_is_refused_with_what_can_be_stored(tmp_path):
    """It may be one of FUSE, which waits for another process at each close."""
    for fd in (os.open("/proc/self/status", os.O_RDONLY), os.open("/", os.O_PATH)):
        assert "only these can be stored: sockets, pipes, memory" in find_refusal(fd)
        os.close(fd)


def test_a_file_cannot_pass_itself_off_as_a_socket(tmp_path):
    path = tmp_path / "socket:[1]"
    path.touch()
    fd = os.open(path, os.O_PATH)
    assert find_refusal(fd)
    os.close(fd)


def test_other_address_families_are_refused(monkeypatch):
    """There is no further family that each kernel has, so one of those that are accepted is left out here."""
    monkeypatch.setattr(received_descriptors, "_FAMILIES", frozenset({socket.AF_INET}))
    with socket.socket(socket.AF_UNIX) as other:
        assert find_refusal(other.fileno()) == f"it is a socket of the address family {int(socket.AF_UNIX)}"


def test_duplicates_are_the_same(pair):
    duplicate = os.dup(pair[0].fileno())
    assert is_same(pair[0].fileno(), duplicate)
    assert not is_same(pair[0].fileno(), pair[1].fileno())
    os.close(duplicate)


def test_a_socket_is_closed_without_waiting_for_its_peer():
    """SO_LINGER made the process that closes the last descriptor wait."""
    ours, theirs = tcp_pair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
        fd = os.dup(ours.fileno())
        assert discard([fd]) == 0
        assert struct.unpack("ii", ours.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))[0] == 0
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)


def test_what_may_block_is_closed_by_another_thread(tmp_path, monkeypatch):
    closers = []
    fd = os.open("/proc/self/status", os.O_RDONLY)
    done, close = threading.Event(), os.close

    def note(number):
        closers.append(threading.current_thread())
        close(number)
        done.set()

    monkeypatch.setattr(os, "close", note)
    assert discard([fd]) == 1
    assert done.wait(60)
    monkeypatch.undo()
    assert closers != [threading.current_thread()]


def test_a_hangup_is_reported_until_the_descriptor_is_removed(pair):
    poll = HangupPoll()
    poll.add(pair[0].fileno())
    assert poll.read() == []
    pair[0].shutdown(socket.SHUT_RDWR)
    assert poll.read() == [pair[0].fileno()]
    poll.remove(pair[0].fileno())
    assert poll.read() == []
    poll.close()


def test_memory_is_not_watched():
    fd, poll = os.memfd_create("x"), HangupPoll()
    poll.add(fd)
    poll.remove(fd)
    assert poll.read() == []
    poll.close()
    os.close(fd)
