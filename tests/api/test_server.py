"""The socket: who may use it, what becomes of old ones, and how it ends."""

import contextlib
import gc
import os
import socket
import stat
import threading
from pathlib import Path

import pytest
import trio

from nsupervisor.api.application import app
from nsupervisor.api.client import Client
from nsupervisor.api.server import MAX_PATH_BYTES, listen, serve
from tests.api.standin import Standin
from tests.timing import deadline


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "api.sock")


def there(path):
    return os.path.exists(path)


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_the_socket_is_for_its_owner_only_from_its_first_moment(path, umask, monkeypatch):
    modes = []
    bind = socket.socket.bind

    def watched(self, address):
        bind(self, address)
        modes.append(stat.S_IMODE(os.stat(address).st_mode))

    monkeypatch.setattr(socket.socket, "bind", watched)
    before = os.umask(umask)
    try:
        listen(path).close()
    finally:
        os.umask(before)
    assert modes == [0o600]


def test_a_stale_socket_is_replaced(path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
        dead.listen()
    listen(path).close()


def test_a_live_socket_is_refused_and_stays(path):
    with listen(path) as alive:
        with pytest.raises(OSError, match="another supervisor answers there"):
            listen(path)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
        alive.accept()[0].close()


def test_a_live_socket_whose_queue_is_full_is_refused(path):
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(path)
        busy.listen(0)
        first.connect(path)
        with pytest.raises(OSError, match="another supervisor answers there"):
            listen(path)


def test_a_file_that_is_no_socket_is_not_removed(path):
    Path(path).write_text("precious")
    with pytest.raises(OSError, match="is not a socket"):
        listen(path)
    assert Path(path).read_text() == "precious"


def test_a_path_that_is_too_long_is_told(tmp_path):
    with pytest.raises(OSError, match=f"longer than the {MAX_PATH_BYTES} bytes"):
        listen(str(tmp_path / ("x" * 120)))


def test_a_missing_directory_is_told_with_its_path(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        listen(str(tmp_path / "nope" / "api.sock"))
    assert "nope" in str(caught.value)


async def test_the_socket_goes_when_the_service_does(path, nursery):
    async with trio.open_nursery() as inner:
        assert await inner.start(serve, app(Standin()), path) == path
        assert there(path)
        inner.cancel_scope.cancel()
    assert not there(path)


async def test_the_socket_of_a_successor_stays(path):
    async with trio.open_nursery() as inner:
        await inner.start(serve, app(Standin()), path)
        os.unlink(path)
        successor = listen(path)
        inner.cancel_scope.cancel()
    assert there(path)
    successor.close()


async def test_a_client_that_does_not_read_cannot_hold_up_the_end(path):
    """The server sends with cancellation shielded: a stopped client with a full socket would keep it for ever."""
    standin = Standin()
    standin.instances = {str(i): {"name": str(i), "reason": "x" * 10_000} for i in range(1000)}
    with trio.fail_after(deadline(20)), socket.socket(socket.AF_UNIX) as stuck:
        async with trio.open_nursery() as inner:
            await inner.start(serve, app(standin), path)
            stuck.connect(path)
            stuck.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
            while not await trio.to_thread.run_sync(lambda: stuck.recv(1, socket.MSG_PEEK)):
                pass
            inner.cancel_scope.cancel()


async def test_followers_cannot_hold_up_the_end(path):
    """One that waits for news, and one that has stopped to read with everything full."""
    standin = Standin()
    request = b"GET /v1/events?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n"
    with trio.fail_after(deadline(20)), socket.socket(socket.AF_UNIX) as waits, socket.socket(socket.AF_UNIX) as stuck:
        async with trio.open_nursery() as inner:
            await inner.start(serve, app(standin), path)
            for client in (waits, stuck):
                client.connect(path)
                client.sendall(request)
            while standin.past.followers < 2:
                await trio.testing.wait_all_tasks_blocked(0.01)
            for _ in range(3000):
                standin.past.add("2026-01-31T12:00:00.000000Z", "info", "x", {"message": "x" * 1000})
                if standin.past.followers:
                    await trio.lowlevel.checkpoint()
            await standin.past.close()
            inner.cancel_scope.cancel()


async def test_idle_and_half_sent_requests_end_with_the_service(path):
    with trio.fail_after(deadline(20)), socket.socket(socket.AF_UNIX) as idle, socket.socket(socket.AF_UNIX) as half:
        async with trio.open_nursery() as inner:
            await inner.start(serve, app(Standin()), path)
            idle.connect(path)
            half.connect(path)
            half.sendall(b"POST /v1/workloads/stop HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            await trio.testing.wait_all_tasks_blocked(0.05)
            inner.cancel_scope.cancel()
        assert idle.recv(1) == b""


async def test_it_ends_without_a_word(path, capfd, caplog):
    async with trio.open_nursery() as inner:
        await inner.start(serve, app(Standin()), path)
        await trio.to_thread.run_sync(Client(path).status)
        inner.cancel_scope.cancel()
    gc.collect()  # unclosed sockets would warn now, and warnings are errors
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


async def test_it_leaves_signal_handlers_alone(path):
    import signal

    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    async with trio.open_nursery() as inner:
        await inner.start(serve, app(Standin()), path)
        assert before == {signum: signal.getsignal(signum) for signum in before}
        inner.cancel_scope.cancel()


async def test_requests_need_no_threads(path):
    async with trio.open_nursery() as inner:
        await inner.start(serve, app(Standin()), path)
        before = threading.active_count()
        stream = await trio.open_unix_socket(path)
        async with stream:
            await stream.send_all(b"GET /v1/status HTTP/1.0\r\n\r\n")
            answer = b"".join([chunk async for chunk in stream])
        assert b" 200 " in answer
        assert threading.active_count() == before
        inner.cancel_scope.cancel()


def test_100_connections_in_a_loop_filled_the_backlog(tmp_path):
    """Other clients then got EAGAIN."""
    somaxconn = int(Path("/proc/sys/net/core/somaxconn").read_text())
    path = str(tmp_path / "api.sock")
    with listen(path), contextlib.ExitStack() as stack:
        for _ in range(min(somaxconn, 300)):
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            client.connect(path)
