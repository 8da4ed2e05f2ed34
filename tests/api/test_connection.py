"""One connection is a fault domain: whatever comes, the task ends without an exception, within the limits."""

import math
from contextlib import contextmanager, nullcontext

import pytest
import trio
import trio.testing

from nsupervisor.api.http import limits
from nsupervisor.api.http.connection import BufferBudget
from nsupervisor.api.http.hosts import AllowedHosts
from nsupervisor.api.http.messages import HTTPError, Response, Stream
from nsupervisor.linux.peers import Peer
from tests.api.talking import HOST, INFO, Talk, application, body_of, echo, post, statuses

# ---- packets that ended the service, or might have


@pytest.mark.fault("A1")
async def test_one_h2c_upgrade_to_the_metrics_ended_the_service():
    """The settings were decoded (binascii.Error) in the task of all connections."""
    talk = Talk()
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: A\r\n"
    answer = await talk(b"GET /metrics HTTP/1.1\r\n" + HOST + upgrade + b"\r\n")
    assert statuses(answer) == [200]
    assert talk.kinds == {}


@pytest.mark.fault("A1")
@pytest.mark.parametrize("behind", [b"\x81\x05hello", b"x\r\n", b"\x00" * 100])
async def test_a_websocket_upgrade_with_a_frame_behind_the_head_ended_the_service(behind):
    talk = Talk()
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n"
    answer = await talk(b"GET /v1/info HTTP/1.1\r\n" + HOST + upgrade + b"\r\n" + behind)
    assert statuses(answer) == [200, 400]


@pytest.mark.fault("A1")
@pytest.mark.parametrize(
    ("data", "status", "kind"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "protocol"),
        (b"GET / HTTP/3.0\r\n" + HOST + b"\r\n", 505, "protocol"),
        (b"GET /\r\n\r\n", 400, "protocol"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "protocol"),
        (b"\x00" * 1000, 400, "protocol"),
        (b"GET / HTTP/1.1\r\nHost: a\x00\r\n\r\n", 400, "protocol"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "protocol"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400, "protocol"),
        (b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n", 400, "protocol"),
        (b"CONNECT x:1 HTTP/1.1\r\n" + HOST + b"\r\n", 400, "protocol"),
        (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", 400, "protocol"),
        (b"GET /%ff HTTP/1.1\r\n" + HOST + b"\r\n", 400, "protocol"),
        (b"GET /v1/status?name=%ff HTTP/1.1\r\n" + HOST + b"\r\n", 400, "protocol"),
        (b"GET /v1/status?" + b"a&" * 2000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 400, "protocol"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n", 501, "protocol"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", 400, "protocol"),
        (b"POST /v1/plan HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "protocol"),
        (b"POST /v1/plan HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nxyz", 400, "protocol"),
        (
            b"POST /v1/plan HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 30 + b"\r\n",
            400,
            "protocol",
        ),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1e3\r\n\r\n", 400, "protocol"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", 400, "protocol"),
        (b"POST /v1/plan HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999999999999\r\n\r\n", 413, "too_large"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * limits.HEAD_LIMIT + b"\r\n\r\n", 431, "protocol"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: a\r\n" * 35_000 + b"\r\n", 431, "protocol"),
        (b"GET /" + b"a" * 200_000, 431, "protocol"),
    ],
)
async def test_invalid_requests_are_answered_with_an_explanation_and_a_close(data, status, kind, autojump_clock):
    talk = Talk()
    answer = await talk(data)
    assert statuses(answer) == [status]
    assert b"connection: close" in answer.lower()
    assert body_of(answer)["error"]
    assert talk.kinds == {kind: 1}


@pytest.mark.fault("A2")
@pytest.mark.parametrize(
    "part",
    [
        post("/v1/plan", b"x" * 100)[:-99],
        post("/v1/plan", b"x" * 100)[:-101],
        b"POST /v1/plan HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
    ],
)
async def test_a_client_that_leaves_in_the_middle_of_a_body_ended_the_service(part):
    """BusyResourceError: the answer was sent while the end of the connection was noticed."""
    talk = Talk()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk.connection.run)
        await talk.client.send_all(part)
        await talk.client.aclose()
    assert talk.kinds == {"disconnect": 1}


async def test_a_connection_that_only_opens_and_closes_is_no_error():
    talk = Talk()
    assert await talk(b"") == b""
    assert talk.kinds == {}


# ---- limits


@pytest.mark.fault("A3")
@pytest.mark.parametrize(("path", "limit"), [("/v1/workloads/stop", "1 MiB"), ("/v1/plan", "32 MiB")])
async def test_a_body_of_400_mb_was_kept_in_memory(path, limit, autojump_clock):
    """It is refused before it is read: nothing of it has been sent here."""
    talk = Talk()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {400 << 20}\r\n\r\n".encode()
    answer = await talk(head, half_close=False)
    assert statuses(answer) == [413]
    assert f"larger than {limit}" in body_of(answer)["error"]
    assert talk.kinds == {"too_large": 1}


@pytest.mark.fault("A3")
async def test_a_chunked_body_is_cut_at_the_limit(autojump_clock):
    talk = Talk(application(echo, body_limit=100_000))
    head = b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    answer = await talk(head + b"10000\r\n" + b"x" * 0x10000 + b"\r\n" + b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
    assert statuses(answer) == [413]


async def test_a_body_at_the_limit_is_read():
    talk = Talk(application(echo, body_limit=1000))
    assert statuses(await talk(post("/", b"x" * 1000))) == [200]


async def test_a_body_of_single_bytes_is_refused(autojump_clock):
    talk = Talk(application(echo))
    head = b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    answer = await talk(head + b"1\r\nx\r\n" * (limits.SMALL_CHUNKS_LIMIT + 1) + b"0\r\n\r\n")
    assert statuses(answer) == [413]
    assert "too many small chunks" in body_of(answer)["error"]


async def test_bodies_and_responses_of_all_connections_are_bounded_together(autojump_clock):
    buffered = BufferBudget(limit_bytes=1000)
    assert buffered.reserve(900)
    talk = Talk(application(echo), buffered=buffered)
    answer = await talk(post("/", b"x" * 200))
    assert statuses(answer) == [503]
    assert talk.kinds == {"limit": 1}
    assert buffered.used_bytes == 900  # what this connection held is released
    talk = Talk(application(echo), buffered=buffered)
    assert statuses(await talk(post("/", b"x" * 50) * 4)) == [200] * 4
    assert buffered.used_bytes == 900


async def test_a_large_response_that_does_not_fit_is_refused(autojump_clock):
    async def large(request):
        return Response(b"x" * (limits.PIECE_SIZE + 1))

    buffered = BufferBudget(limit_bytes=limits.PIECE_SIZE)
    assert buffered.reserve(1)
    assert statuses(await Talk(application(large), buffered=buffered)(b"GET / HTTP/1.0\r\n\r\n")) == [503]


@pytest.mark.parametrize(
    ("request_line", "status", "message"),
    [
        ("POST /v1/plan", 403, "workload panel may not use plan"),
        ("POST /v1/reload", 403, "workload panel may not use reload"),
        ("POST /v1/nothing", 404, "there is no POST /v1/nothing"),
        ("PUT /v1/plan", 405, "there is no PUT /v1/plan"),
        ("GET /v1/info", 413, "send no body here"),
        ("HEAD /v1/info", 413, ""),
        ("GET /v1/trace", 403, "workload panel may not use trace"),
    ],
)
@pytest.mark.parametrize("length", [b"Content-Length: 33554432", b"Transfer-Encoding: chunked"])
async def test_what_is_refused_whatever_the_body_is_was_refused_only_after_32_mib(
    request_line, status, message, length, autojump_clock
):
    talk = Talk(peer=Peer(1, 0, 0, workload="panel"), identity="panel")
    head = request_line.encode() + b" HTTP/1.1\r\nHost: x\r\n" + length + b"\r\n\r\n"
    begin = b"10\r\n" + b"x" * 16 if b"chunked" in length else b""
    answer = await talk(head + begin, half_close=False)
    assert statuses(answer) == [status]
    if message:
        assert message in body_of(answer)["error"]
    assert trio.current_time() < limits.BODY_TIMEOUT_S
    assert talk.kinds == ({"too_large": 1} if status == 413 else {})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET\x00 / HTTP/1.1\r\nHost: x\r\n\r\n", "illegal request line"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", "illegal header line"),
        (b"GET / HTTP/1.1\r\nHost: a\x00\r\n\r\n", "illegal header line"),
    ],
)
async def test_errors_showed_values_of_python(data, reason, autojump_clock):
    error = body_of(await Talk()(data))["error"]
    assert error == f"this is not a valid HTTP/1.1 request: {reason}"


async def test_a_refused_request_without_a_body_keeps_the_connection():
    talk = Talk(peer=Peer(1, 0, 0, workload="panel"))
    trace = b"GET /v1/trace HTTP/1.1\r\nHost: x\r\n\r\n"
    nothing = b"POST /v1/nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    assert statuses(await talk(trace + nothing + INFO)) == [403, 404, 200]


async def test_one_identity_could_take_the_whole_buffer_of_a_listener(autojump_clock):
    budget = BufferBudget(limit_bytes=1000)
    assert budget.reserve(700, "uid 0")
    body = post("/", b"x" * 100)
    assert statuses(await Talk(application(echo), buffered=budget)(body)) == [503]
    assert statuses(await Talk(application(echo), buffered=budget, identity="web")(body)) == [200]
    assert statuses(await Talk(application(echo), buffered=budget, listener="tcp")(body)) == [200]
    assert dict(budget.used_by) == {"uid 0": 700}
    budget.release(700, "uid 0")
    assert (budget.used_bytes, dict(budget.used_by)) == (0, {})


async def test_pieces_of_streams_did_not_count_as_held(autojump_clock):
    class Pieces:
        def __init__(self):
            self.left = [b"begin", b"x" * (limits.PIECE_SIZE + 1)]

        def __aiter__(self):
            return self

        async def __anext__(self):
            await trio.lowlevel.checkpoint()
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop(0)

    async def stream(request):
        return Stream(nullcontext(Pieces()), "text/plain")

    buffered = BufferBudget(limit_bytes=limits.PIECE_SIZE)
    assert buffered.reserve(1)
    talk = Talk(application(stream), buffered=buffered)
    answer = await talk(INFO.replace(b"/v1/info", b"/"))
    assert statuses(answer) == [200]
    assert answer.endswith(b"5\r\nbegin\r\n")  # cut off, so that the client does not take it for complete
    assert talk.kinds == {"limit": 1}
    assert buffered.used_bytes == 1
    buffered.used_bytes = 0
    assert (await Talk(application(stream), buffered=buffered)(INFO.replace(b"/v1/info", b"/"))).endswith(b"0\r\n\r\n")
    assert buffered.used_bytes == 0


# ---- times


async def test_a_head_that_does_not_come_is_waited_for_5_s(autojump_clock):
    talk = Talk()
    assert await talk(b"", half_close=False) == b""
    assert trio.current_time() == pytest.approx(limits.HEAD_TIMEOUT_S)
    assert talk.kinds == {"timeout": 1}


async def test_a_head_that_comes_byte_by_byte_has_5_s(autojump_clock):
    talk = Talk()
    answer = bytearray()

    async def read() -> None:
        async for piece in talk.client:
            answer.extend(piece)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk.connection.run)
        await talk.client.send_all(INFO)
        await trio.sleep(60)  # idle for less than the limit
        nursery.start_soon(read)
        for byte in INFO[:5]:
            await talk.client.send_all(bytes([byte]))
            await trio.sleep(1.1)
    assert statuses(bytes(answer)) == [200, 408]
    assert trio.current_time() == pytest.approx(60 + limits.HEAD_TIMEOUT_S + limits.LINGER_TIMEOUT_S, abs=0.5)
    assert talk.kinds == {"timeout": 1}


async def test_a_body_has_30_s(autojump_clock):
    talk = Talk()
    answer = await talk(post("/v1/plan", b"x" * 100)[:-1], half_close=False)
    assert statuses(answer) == [408]
    assert trio.current_time() == pytest.approx(limits.BODY_TIMEOUT_S + limits.LINGER_TIMEOUT_S)
    assert talk.kinds == {"timeout": 1}


async def test_an_idle_connection_is_closed_without_an_error(autojump_clock):
    talk = Talk()
    assert statuses(await talk(INFO * 2, half_close=False)) == [200, 200]
    assert trio.current_time() == pytest.approx(limits.IDLE_TIMEOUT_S)
    assert talk.kinds == {}


async def test_a_client_that_does_not_read_is_given_up(autojump_clock):
    """The stream takes nothing until the other side reads."""
    talk = Talk(streams=trio.testing.lockstep_stream_pair())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk.connection.run)
        await talk.client.send_all(INFO)
    assert trio.current_time() == pytest.approx(limits.WRITE_TIMEOUT_S)
    assert talk.kinds == {"timeout": 1}


async def test_a_follower_that_does_not_read_is_given_up_later(autojump_clock):
    talk = Talk(streams=trio.testing.lockstep_stream_pair())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk.connection.run)
        await talk.client.send_all(b"GET /v1/events?follow=1 HTTP/1.1\r\n" + HOST + b"\r\n")
    assert trio.current_time() == pytest.approx(limits.STREAM_WRITE_TIMEOUT_S)
    assert talk.kinds == {"timeout": 1}


# ---- what HTTP/1.1 asks for


async def test_requests_behind_each_other_are_answered_in_their_order():
    talk = Talk(application(echo))
    answer = await talk(b"".join(post("/", b"%d" % number) for number in range(50)))
    assert statuses(answer) == [200] * 50
    bodies = [piece.split(b'"body":"')[1].split(b'"')[0] for piece in answer.split(b"HTTP/1.1 ")[1:]]
    assert bodies == [b"%d" % number for number in range(50)]
    assert talk.kinds == {}


async def test_a_half_closed_client_gets_its_response():
    talk = Talk()
    assert statuses(await talk(INFO, half_close=True)) == [200]
    assert talk.kinds == {}


async def test_a_client_that_waits_for_100_continue_gets_it():
    talk = Talk(application(echo))
    head, _, body = post("/", b"hello", b"Expect: 100-continue\r\n").partition(b"\r\n\r\n")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk.connection.run)
        await talk.client.send_all(head + b"\r\n\r\n")
        assert (await talk.client.receive_some()).startswith(b"HTTP/1.1 100 ")
        await talk.client.send_all(body)
        answer = await talk.client.receive_some()
        await talk.client.send_eof()
    assert body_of(answer)["body"] == "hello"


async def test_a_body_that_is_too_large_is_not_continued(autojump_clock):
    talk = Talk(application(echo, body_limit=10))
    head = post("/", b"y" * 11, b"Expect: 100-continue\r\n").partition(b"y")[0]
    assert statuses(await talk(head, half_close=False)) == [413]


@pytest.mark.parametrize("path", ["/v1/info", "/metrics", "/v1/events", "/v1/nothing"])
async def test_head_is_get_without_the_body(path):
    get, head = [
        await Talk()(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        for method in ("GET", "HEAD")
    ]
    assert head.endswith(b"\r\n\r\n")
    if path != "/v1/nothing":  # its text has the method in it

        def fields(answer):
            lines = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")
            return [line for line in lines if not line.startswith(b"date:")]

        assert fields(head) == fields(get)


async def test_a_wrong_method_is_answered_with_those_there_are():
    answer = await Talk()(b"DELETE /v1/status HTTP/1.1\r\n" + HOST + b"\r\n")
    assert statuses(answer) == [405]
    assert b"\r\nallow: GET, HEAD\r\n" in answer


async def test_the_absolute_form_of_a_target_is_understood():
    assert statuses(await Talk()(b"GET http://localhost/v1/info HTTP/1.1\r\n" + HOST + b"\r\n")) == [200]


# ---- handlers that fail


async def test_a_handler_that_fails_is_answered_with_500_and_the_next_request_is_served():
    async def fail(request):
        if request.method == "GET":
            raise ExceptionGroup("several", [ExceptionGroup("inner", [ValueError("a bug")]), KeyError("b")])
        return Response(b"{}")

    talk = Talk(application(fail))
    answer = await talk(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n" + post("/", b""))
    assert statuses(answer) == [500, 200]
    assert b"failed over this request (ValueError: a bug)" in answer
    assert talk.kinds == {"handler": 1}
    ((level, fields),) = talk.records
    assert level == "error"
    assert fields["message"].startswith("GET /: ValueError: a bug (at ")
    assert "\n" not in fields["message"]


async def test_an_error_that_a_handler_means_is_not_counted():
    async def refuse(request):
        raise HTTPError(404, "not here", {"x-more": "1"})

    talk = Talk(application(refuse))
    answer = await talk(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    assert statuses(answer) == [404]
    assert b"x-more: 1" in answer
    assert talk.kinds == {}


async def test_a_stream_that_fails_is_cut_off_so_that_it_is_not_taken_for_complete():
    @contextmanager
    def source():
        async def pieces():
            yield b"one\n"
            raise ValueError("a bug")

        yield pieces()

    async def fail(request):
        return Stream(source(), "text/plain")

    talk = Talk(application(fail))
    answer = await talk(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    assert answer.endswith(b"4\r\none\n\r\n")  # no chunk of length 0
    assert talk.kinds == {"handler": 1}


async def test_a_stream_that_cannot_begin_is_500():
    @contextmanager
    def source():
        raise ValueError("a bug")
        yield

    async def fail(request):
        return Stream(source(), "text/plain")

    talk = Talk(application(fail))
    assert statuses(await talk(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")) == [500]
    assert talk.kinds == {"handler": 1}


async def test_a_handler_that_fails_while_the_service_ends_does_not_keep_it():
    async def fail(request):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("on the way out")

    talk = Talk(application(fail))
    with trio.move_on_after(math.inf) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk.connection.run)
            await talk.client.send_all(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert talk.kinds == {"handler": 1}


async def test_a_defect_of_a_stream_does_not_leave_the_connection():
    class Broken(trio.abc.Stream):
        async def receive_some(self, max_bytes=None):
            raise ExceptionGroup("tls", [OSError("bad record")])

        async def send_all(self, data):
            raise NotImplementedError

        async def wait_send_all_might_not_block(self):
            raise NotImplementedError

        async def aclose(self):
            await trio.lowlevel.checkpoint()

    talk = Talk(streams=(Broken(), Broken()))
    await talk.connection.run()
    assert talk.kinds == {"internal": 1}


# ---- names of the host


@pytest.mark.fault("A14")
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:9631", 200),
        ("LOCALHOST:1", 200),
        ("box.", 200),
        ("evil.example", 421),
        ("evil.example:9631", 421),
        ("127.0.0.2", 421),
        ("", 421),
        ("127.0.0.1.evil.example", 421),
        ("user@localhost", 400),
        ("a b", 400),
        ("[::1", 400),
    ],
)
async def test_a_page_whose_name_resolves_to_us_could_read_the_metrics(host, status, autojump_clock):
    talk = Talk(hosts=AllowedHosts("127.0.0.1", names={"localhost", "box"}))
    answer = await talk(f"GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert statuses(answer) == [status]
    assert talk.kinds == ({} if status == 200 else {"host" if status == 421 else "protocol": 1})


async def test_the_host_of_an_absolute_target_counts(autojump_clock):
    talk = Talk(hosts=AllowedHosts("127.0.0.1", names={"localhost"}))
    answer = await talk(b"GET http://evil.example/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert statuses(answer) == [421]
