"""Accepting connections: how many, whose, and what becomes of the others."""

import errno
import json
import socket
import threading
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, nullcontext
from functools import partial

import pytest
import trio
import trio.testing

from nsupervisor.api import application as application_module
from nsupervisor.api.application import app
from nsupervisor.api.client import Client, ClientError, NotPermittedError, WrongRequestError
from nsupervisor.api.http import limits, listener
from nsupervisor.api.http.errors import TCP, ConnectionErrors
from nsupervisor.api.http.listener import serve_connections
from nsupervisor.api.http.messages import json_response
from nsupervisor.api.server import serve
from nsupervisor.linux.peers import WORKLOAD, Peer, PeerRefused, credentials
from tests.api.standin import Standin
from tests.api.talking import INFO, application, statuses
from tests.timing import deadline

in_thread = trio.to_thread.run_sync


class Served:
    """A Unix socket that is served, and what was counted on it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.records: list = []
        self.errors = ConnectionErrors(lambda level, fields: self.records.append((level, fields)))

    @property
    def kinds(self) -> dict[str, int]:
        return {kind: count for (_, kind), count in self.errors.counts.items()}

    async def open(self) -> trio.SocketStream:
        return await trio.open_unix_socket(self.path)

    async def answer(self, data: bytes = INFO) -> bytes:
        """All that comes over a new connection."""
        async with await self.open() as stream:
            await stream.send_all(data)
            await stream.send_eof()
            return b"".join([piece async for piece in stream])


@asynccontextmanager
async def served(tmp_path, what=None, **options):
    it = Served(str(tmp_path / "api.sock"))
    with trio.fail_after(deadline(20)):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve, errors=it.errors, **options), what or app(Standin()), it.path)
            yield it
            nursery.cancel_scope.cancel()


async def until(condition) -> None:
    while not condition():
        await trio.testing.wait_all_tasks_blocked(0.001)


# ---- isolation


async def test_a_handler_that_fails_ends_no_other_connection(tmp_path):
    waiting = trio.Event()

    async def handle(request):
        if request.method == "POST":
            raise ExceptionGroup("bugs", [ValueError("a"), ExceptionGroup("", [OSError("b")])])
        await waiting.wait()
        return json_response({})

    async with served(tmp_path, application(handle)) as it, await it.open() as other:
        await other.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert statuses(await it.answer(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n")) == [500]
        waiting.set()
        assert statuses(await other.receive_some()) == [200]


@pytest.mark.fault("A2")
@pytest.mark.parametrize("length", [0, 1, 2, 60, 117, 118])
async def test_fifty_clients_that_leave_in_the_middle_of_a_request_ended_the_service(tmp_path, length):
    """It took 22 to 60 of them."""
    request = b"POST /v1/plan HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{" + b" " * 100
    async with served(tmp_path) as it:
        for _ in range(50):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(it.path)
                client.sendall(request[:length])
            await trio.lowlevel.checkpoint()
        assert statuses(await it.answer()) == [200]
        assert not {"internal", "handler"} & it.kinds.keys()


async def test_a_client_that_resets_the_connection_is_counted(tmp_path):
    """A Unix socket that is closed with unread input resets the connection, unix(7)."""
    begun = trio.Event()
    go_on = trio.Event()

    async def handle(request):
        begun.set()
        await go_on.wait()
        return json_response({})

    async with served(tmp_path, application(handle)) as it:
        async with await it.open() as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await begun.wait()
        go_on.set()
        await until(lambda: it.kinds == {"disconnect": 1})


# ---- how many


async def test_one_identity_cannot_take_more_than_its_share(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "IDENTITY_CONNECTIONS", 3)
    async with served(tmp_path) as it, await it.open() as a, await it.open(), await it.open():
        answer = await it.answer()
        assert statuses(answer) == [503]
        assert "has 3 connections here already" in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert it.kinds == {"limit": 1}
        await a.send_eof()
        assert await a.receive_some() == b""
        await trio.testing.wait_all_tasks_blocked()
        assert statuses(await it.answer()) == [200]


async def test_the_oldest_idle_connection_makes_room_for_a_new_one(tmp_path):
    async with (
        served(tmp_path, connections=3) as it,
        await it.open() as used,
        await it.open() as oldest,
        await it.open() as idle,
    ):
        await used.send_all(INFO)  # idle again after that, for a shorter time than the second
        assert statuses(await used.receive_some()) == [200]
        await trio.testing.wait_all_tasks_blocked()
        assert statuses(await it.answer()) == [200]
        assert await oldest.receive_some() == b""
        await idle.send_all(INFO)
        assert statuses(await idle.receive_some()) == [200]
        assert it.kinds == {"evicted": 1}


@pytest.mark.parametrize(
    "begin",
    [b"", b"GET /v1/info HT", b"POST /v1/plan HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"],
    ids=["nothing", "half a head", "half a body"],
)
async def test_clients_that_send_slowly_lock_out_nobody(tmp_path, begin):
    """On TCP, 512 connections with half a head each made the service refuse all others, again and again."""
    async with served(tmp_path, connections=3) as it, AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(await it.open()) for _ in range(3)]
        for stream in slow:
            await stream.send_all(begin)
            await trio.testing.wait_all_tasks_blocked()
        assert statuses(await it.answer()) == [200]
        assert await slow[0].receive_some() == b""
        assert it.kinds == {"evicted": 1}


async def test_clients_that_do_not_read_lock_out_nobody(tmp_path):
    standin = Standin()
    standin.instances = {str(i): {"name": str(i), "reason": "x" * 10_000} for i in range(1000)}
    async with served(tmp_path, app(standin), connections=2) as it, await it.open() as a, await it.open() as b:
        for stream in (a, b):
            await stream.send_all(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
            await trio.lowlevel.wait_readable(stream.socket)
        assert statuses(await it.answer()) == [200]
        assert it.kinds == {"evicted": 1}


async def test_on_tcp_a_full_share_makes_room_for_a_new_connection():
    """All local users have the same address, so any of them could lock out Prometheus if it were refused."""
    errors = ConnectionErrors(lambda level, fields: None)
    (listening,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listening, trio.open_nursery() as nursery:
        address = listening.socket.getsockname()
        serve_tcp = partial(serve_connections, name=TCP, connections=2, errors=errors)
        nursery.start_soon(serve_tcp, app(Standin()), listening)
        async with await trio.open_tcp_stream(*address), await trio.open_tcp_stream(*address) as second:
            await second.send_all(INFO)
            assert statuses(await second.receive_some()) == [200]
            async with await trio.open_tcp_stream(*address) as third:
                await third.send_all(INFO)
                assert statuses(await third.receive_some()) == [200]
        assert errors.counts == {("tcp", "evicted"): 2}
        nursery.cancel_scope.cancel()


async def test_one_address_closed_the_connections_of_all_others_on_tcp():
    """About 500 half heads of one address took every connection, and each new one closed one of another address."""
    errors = ConnectionErrors(lambda level, fields: None)
    (listening,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listening, trio.open_nursery() as nursery, AsyncExitStack() as stack:
        host, port = listening.socket.getsockname()
        serve_tcp = partial(serve_connections, name=TCP, connections=4, errors=errors)
        nursery.start_soon(serve_tcp, app(Standin()), listening)
        opened = [await stack.enter_async_context(await trio.open_tcp_stream(host, port, local_address="127.0.0.2"))]
        for _ in range(20):
            stream = await stack.enter_async_context(await trio.open_tcp_stream(host, port))
            await stream.send_all(b"GET /v1/info HT")
            opened.append(stream)
        for stream in opened[1:19]:
            assert await stream.receive_some() == b""
        await opened[0].send_all(INFO)
        assert statuses(await opened[0].receive_some()) == [200]
        assert errors.counts == {("tcp", "evicted"): 18}
        nursery.cancel_scope.cancel()


async def test_the_identity_with_the_most_connections_makes_room(tmp_path):
    names = iter(["db", "web", "web", "new"])

    def admit(accepted):
        return Peer(*credentials(accepted), workload=next(names))

    async with served(tmp_path, connections=3, admit=admit) as it, AsyncExitStack() as stack:
        streams = []
        for _ in range(3):
            streams.append(await stack.enter_async_context(await it.open()))
            await trio.testing.wait_all_tasks_blocked()
        oldest, first, _ = streams
        assert statuses(await it.answer()) == [200]
        assert await first.receive_some() == b""
        await oldest.send_all(INFO)
        assert statuses(await oldest.receive_some()) == [200]


async def test_one_workload_took_all_connections_of_the_socket_for_workloads(tmp_path):
    names = iter(["web", "web", "web", "db"])

    def admit(accepted):
        return Peer(*credentials(accepted), workload=next(names))

    async with served(tmp_path, connections=4, identity_connections=2, admit=admit) as it, AsyncExitStack() as stack:
        for _ in range(2):
            stream = await stack.enter_async_context(await it.open())
            await stream.send_all(b"GET /v1/events?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert statuses(await stream.receive_some()) == [200]
        answer = await it.answer()
        assert statuses(answer) == [503]
        assert b"web has 2 connections here already" in answer
        assert statuses(await it.answer()) == [200]


async def test_a_defect_while_a_connection_begins_ends_only_this_connection(tmp_path, monkeypatch):
    serve_one = listener._Acceptor._serve
    monkeypatch.setattr(listener._Acceptor, "_serve", lambda *_: 1 / 0)
    async with served(tmp_path) as it:
        async with await it.open() as stream:
            assert await stream.receive_some() == b""
        monkeypatch.setattr(listener._Acceptor, "_serve", serve_one)
        assert statuses(await it.answer()) == [200]
        assert it.kinds == {"internal": 1}


async def test_there_are_no_more_traces_than_a_few(tmp_path, monkeypatch):
    """A hundred traces left no request an answer within 10 s: each delays all other tasks with every sample."""
    monkeypatch.setattr(application_module, "TRACES_LIMIT", 2)

    class Endless:
        begun = False

        def __aiter__(self):
            return self

        async def __anext__(self):
            if self.begun:
                await trio.sleep_forever()
            self.begun = True
            return b"{}\n"

    standin = Standin()
    standin.trace = lambda *_: nullcontext(Endless())
    request = b"GET /v1/trace HTTP/1.1\r\nHost: x\r\n\r\n"
    async with served(tmp_path, app(standin)) as it, await it.open() as first, await it.open() as second:
        for stream in (first, second):
            await stream.send_all(request)
            assert statuses(await stream.receive_some()) == [200]
        answer = await it.answer(request)
        assert statuses(answer) == [503]
        assert b"2 traces are being recorded already" in answer
        await first.aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        async with await it.open() as third:
            await third.send_all(request)
            assert statuses(await third.receive_some()) == [200]


async def test_if_all_connections_are_busy_a_new_one_is_refused(tmp_path):
    standin = Standin()
    async with served(tmp_path, app(standin), connections=2) as it, await it.open() as a, await it.open() as b:
        for stream in (a, b):
            await stream.send_all(b"GET /v1/events?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: standin.past.followers == 2)
        assert statuses(await it.answer()) == [503]
        assert it.kinds == {"limit": 1}


async def test_no_more_refusals_than_a_few_take_descriptors(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "REFUSALS_AT_ONCE", 1)
    monkeypatch.setattr(limits, "IDENTITY_CONNECTIONS", 0)
    async with served(tmp_path) as it, await it.open() as first, await it.open() as second:
        answer = b"".join([piece async for piece in second])  # at once: the first one is still being refused
        assert statuses(answer) == [503]
        assert "has 0 connections here already" in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert statuses(await first.receive_some()) == [503]
        assert it.kinds == {"limit": 2}


async def test_our_client_was_not_answered_when_many_were_refused_at_once(tmp_path, monkeypatch):
    """All refusals but 16 were closed without a response, and the client said that the supervisor had ended."""
    monkeypatch.setattr(limits, "REFUSALS_AT_ONCE", 0)
    monkeypatch.setattr(limits, "IDENTITY_CONNECTIONS", 0)
    async with served(tmp_path) as it:
        for _ in range(20):
            with pytest.raises(ClientError, match="has 0 connections here already"):
                await in_thread(Client(it.path).status)


async def test_connections_were_accepted_one_in_each_pass_of_the_event_loop(tmp_path):
    """So a client that connects in a loop, and is refused, filled the queue of the socket while the loop was busy."""

    class Passes(trio.abc.Instrument):
        count = 0

        def before_io_wait(self, timeout):
            self.count += 1

    passes_at_accepts = []
    trio.lowlevel.add_instrument(passes := Passes())

    def admit(accepted):
        passes_at_accepts.append(passes.count)
        return Peer(*credentials(accepted))

    async with served(tmp_path, admit=admit) as it:
        with ExitStack() as stack:
            for _ in range(2 * limits.ACCEPTED_AT_ONCE):
                client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                client.connect(it.path)  # the event loop does not run meanwhile
            await until(lambda: len(passes_at_accepts) == 2 * limits.ACCEPTED_AT_ONCE)
        assert [passes_at_accepts.count(number) for number in sorted(set(passes_at_accepts))] == [16, 16]


async def test_accepting_goes_on_after_descriptors_have_run_out(autojump_clock, tmp_path):
    """EMFILE on accept; idle connections make room."""
    errors = ConnectionErrors(lambda level, fields: None)
    here, there = socket.socketpair()
    accepted = trio.SocketStream(trio.socket.from_stdlib_socket(there))

    answers: list = [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ENFILE, "Too many in the system")]
    answers.insert(0, accepted)

    class Exhausted(trio.abc.Listener):
        async def accept(self):
            await trio.lowlevel.checkpoint()
            if not answers:
                await trio.sleep_forever()
            if isinstance(answer := answers.pop(), OSError):
                raise answer
            return answer

        async def aclose(self):
            raise NotImplementedError

    client = trio.SocketStream(trio.socket.from_stdlib_socket(here))
    async with client, trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(serve_connections, app(Standin()), Exhausted(), name="unix", connections=9, errors=errors)
        )
        await client.send_all(INFO)
        assert statuses(await client.receive_some()) == [200]
        nursery.cancel_scope.cancel()
    assert errors.counts == {("unix", "accept"): 2}


# ---- whose


async def test_a_peer_that_is_not_admitted_gets_the_reason(tmp_path):
    peer = Peer(7, 1000, 1000)

    def admit(accepted):
        raise PeerRefused(WORKLOAD, peer, "is part of a workload", "connect from outside")

    async with served(tmp_path, admit=admit) as it:
        with pytest.raises(
            NotPermittedError, match=r"process 7 \(uid 1000\) is part of a workload; connect from outside"
        ):
            await in_thread(Client(it.path).status)
        assert it.kinds == {"refused": 1}
        assert it.records[0][1]["peer"] == "pid 7, uid 1000"


async def test_an_admitted_peer_reaches_the_handler(tmp_path):
    async def handle(request):
        return json_response([request.peer.pid, request.peer.workload])

    def admit(accepted):
        return Peer(*credentials(accepted), workload="web")

    async with served(tmp_path, application(handle), admit=admit) as it:
        answer = await it.answer(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        pid, workload = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert (pid, workload) == (credentials_of_self(), "web")


def credentials_of_self() -> int:
    a, b = socket.socketpair()
    with a, b:
        return credentials(a)[0]


async def test_workloads_are_counted_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "IDENTITY_CONNECTIONS", 1)
    names = iter(["web", "db", "web"])

    def admit(accepted):
        return Peer(*credentials(accepted), workload=next(names))

    async with served(tmp_path, admit=admit) as it, await it.open(), await it.open() as db:
        await db.send_all(INFO)
        assert statuses(await db.receive_some()) == [200]
        answer = await it.answer()
        assert statuses(answer) == [503]
        assert b"web has 1 connections" in answer


async def test_a_failure_to_identify_a_peer_admits_nobody(tmp_path):
    def admit(accepted):
        raise ZeroDivisionError

    async with served(tmp_path, admit=admit) as it:
        assert statuses(await it.answer()) == [500]
        assert it.kinds == {"internal": 1}


# ---- clients


async def test_our_client_gets_the_refusal_of_a_body_that_it_has_not_sent_to_its_end(tmp_path):
    source = {"path": "/x.toml", "text": "x" * (limits.LARGE_BODY_LIMIT + 1)}
    async with served(tmp_path) as it:
        with pytest.raises(WrongRequestError, match="the body is larger than 32 MiB"):
            await in_thread(Client(it.path).plan, source)
        assert it.kinds == {"too_large": 1}


async def test_our_client_gets_the_refusal_of_a_full_service(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "IDENTITY_CONNECTIONS", 0)
    async with served(tmp_path) as it:
        with pytest.raises(ClientError, match="has 0 connections here already"):
            await in_thread(Client(it.path).status)


async def test_a_half_closed_follower_gets_what_comes(tmp_path):
    standin = Standin()
    async with served(tmp_path, app(standin)) as it, await it.open() as stream:
        await stream.send_all(b"GET /v1/events?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        await stream.send_eof()
        answer = bytearray()
        while b"three" not in answer:
            answer += await stream.receive_some()
        standin.past.add("2026-01-31T12:00:00.000000Z", "info", "x", {"message": "four"})
        while b"four" not in answer:
            answer += await stream.receive_some()
        assert standin.past.followers == 1
        await standin.past.close()
        async for piece in stream:
            answer += piece
        assert answer.endswith(b"0\r\n\r\n")
    assert it.kinds == {}


async def test_a_follower_that_leaves_after_a_half_close_is_noticed(tmp_path):
    standin = Standin()
    async with served(tmp_path, app(standin)) as it:
        async with await it.open() as stream:
            await stream.send_all(b"GET /v1/events?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
            await stream.send_eof()
            await until(lambda: standin.past.followers == 1)
        await until(lambda: standin.past.followers == 0)
        assert it.kinds == {}


async def test_connections_need_no_threads(tmp_path):
    async with served(tmp_path) as it:
        before = threading.active_count()
        assert statuses(await it.answer(INFO * 3)) == [200] * 3
        assert threading.active_count() == before
