"""Probes against real servers: what succeeds, what fails and why, and what a hostile program can make of it."""

import contextlib
import os
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from nsupervisor.config.probes import HttpGet, ProbeConfig, TcpSocket
from nsupervisor.service.platform import probe_client
from nsupervisor.service.platform.probe_client import MAX_ANSWER_BYTES, probe
from tests.needs import needs

Answer = Callable[[bytes], bytes]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextlib.asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Answer requests on loopback; yield the port, and the list of the heads that were received."""
    heads: list[bytes] = []

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            head = b""
            while b"\r\n\r\n" not in head:
                if not (data := await stream.receive_some(4096)):
                    return
                head += data
            heads.append(head)
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(answer(head))

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, handle, 0)
        yield listeners[0].socket.getsockname()[1], heads
        nursery.cancel_scope.cancel()


def http(port: int, timeout_sec: float = 5.0, **keys: object) -> ProbeConfig:
    return ProbeConfig(http_get=HttpGet(port=port, **keys), timeout_sec=timeout_sec)


def status(code: int, *headers: str) -> bytes:
    return "\r\n".join((f"HTTP/1.1 {code} X", *headers, "Content-Length: 0", "", "")).encode()


@pytest.mark.parametrize("code", [200, 204, 301, 302, 304, 399, 400, 404, 500, 503])
async def test_a_status_from_200_to_399_is_a_success(code: int) -> None:
    async with server(lambda _: status(code)) as (port, _):
        assert await probe(http(port)) == (code < 400, f"HTTP {code}")


async def test_the_request_has_the_path_and_the_headers() -> None:
    async with server(lambda _: OK) as (port, heads):
        headers = {"host": "www.example.org", "X-Probe": "a b"}
        assert (await probe(http(port, path="/health?full=1", http_headers=headers))).is_success
        lines = heads[0].decode().split("\r\n")
    assert lines[0] == "GET /health?full=1 HTTP/1.1"
    assert {line.lower() for line in lines[1:] if line} == {
        "host: www.example.org",
        "x-probe: a b",
        "user-agent: nsupervisor",
        "accept: */*",
        "connection: close",
    }


async def test_redirections_on_the_same_host_are_followed() -> None:
    def answer(head: bytes) -> bytes:
        return status(302, "Location: /b?c") if head.startswith(b"GET /a ") else OK

    async with server(answer) as (port, heads):
        assert await probe(http(port, path="/a")) == (True, "HTTP 200")
    assert [head.split()[1] for head in heads] == [b"/a", b"/b?c"]


async def test_more_than_ten_redirections_are_a_failure() -> None:
    async with server(lambda _: status(301, "Location: /again")) as (port, heads):
        assert await probe(http(port)) == (False, "more than 10 redirections")
    assert len(heads) == 11


async def test_a_redirection_to_another_host_is_a_success_and_is_not_followed() -> None:
    async with server(lambda _: status(302, "Location: http://localhost.invalid/")) as (port, heads):
        assert await probe(http(port)) == (True, "HTTP 302 to another host, which was not asked")
    assert len(heads) == 1


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/", "file:///etc/passwd", "http://127.0.0.1:99999/", "http://[/"])
async def test_a_redirection_to_something_else_is_a_failure(target: str) -> None:
    async with server(lambda _: status(302, f"Location: {target}")) as (port, heads):
        assert not (await probe(http(port))).is_success
    assert len(heads) == 1


async def test_a_server_that_does_not_answer_fails_after_the_timeout(autojump_clock: trio.testing.MockClock) -> None:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with listener:
        port = listener.socket.getsockname()[1]
        began = trio.current_time()
        autojump_clock.autojump_threshold = 0.01
        assert await probe(http(port, timeout_sec=1.5)) == (False, "no answer within 1.5 s")
        assert trio.current_time() - began == pytest.approx(1.5)


async def test_a_port_without_a_listener_is_a_failure() -> None:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    for config in (http(port), ProbeConfig(tcp_socket=TcpSocket(port=port))):
        assert await probe(config) == (False, "Connection refused")


async def test_a_tcp_probe_only_connects() -> None:
    async with server(lambda _: OK) as (port, heads):
        assert await probe(ProbeConfig(tcp_socket=TcpSocket(port=port))) == (True, "connected")
        assert await probe(ProbeConfig(tcp_socket=TcpSocket(port=port, host="localhost"), timeout_sec=10.0)) == (
            True,
            "connected",
        )
    assert heads == []


async def test_an_unknown_host_is_a_failure() -> None:
    for host in ("no-such-host.invalid", "a..b", "." * 200):
        result = await probe(ProbeConfig(tcp_socket=TcpSocket(port=1, host=host), timeout_sec=10.0))
        assert not result.is_success


async def test_the_certificate_of_a_server_is_not_checked(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    await trio.run_process(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", key, "-out", certificate, "-days", "1", "-subj", "/CN=other.example"),
        ],
        capture_stderr=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def handle(stream: trio.SSLStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(OK)

    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_ssl_over_tcp, handle, 0, context, https_compatible=True, host="127.0.0.1")
        listeners = await nursery.start(serve)
        port = listeners[0].transport_listener.socket.getsockname()[1]
        assert await probe(http(port, scheme="https")) == (True, "HTTP 200")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "not HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * (2 * MAX_ANSWER_BYTES), "longer than 64 KiB"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * MAX_ANSWER_BYTES, "longer than 64 KiB"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "not HTTP"),
    ],
)
async def test_an_answer_that_is_no_answer_is_a_failure(answer: bytes, words: str) -> None:
    async with server(lambda _: answer) as (port, _):
        result = await probe(http(port))
    assert not result.is_success
    assert words in result.detail
    assert len(result.detail) < 300


async def test_a_long_body_is_not_read_to_its_end() -> None:
    body = b"x" * (8 << 20)
    async with server(lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body) as (port, _):
        assert await probe(http(port)) == (True, "HTTP 200")


@given(answer=st.one_of(st.binary(max_size=200), st.binary(max_size=100).map(lambda data: b"HTTP/1.1 " + data)))
@settings(max_examples=60, deadline=None)
def test_no_answer_raises(answer: bytes) -> None:
    async def ask() -> None:
        async with server(lambda _: answer) as (port, _):
            assert isinstance((await probe(http(port))).detail, str)

    trio.run(ask)


@needs("root")
async def test_a_probe_in_the_network_namespace_of_the_program() -> None:
    """The same port outside has no listener."""
    code = (
        "import fcntl, socket, struct, sys\n"
        "s = socket.socket(); fcntl.ioctl(s, 0x8914, struct.pack('16sh14x', b'lo', 0x49))\n"
        "l = socket.create_server(('127.0.0.1', 18181)); print('ready', flush=True); sys.stdin.read()"
    )
    program = subprocess.Popen(  # noqa: ASYNC220
        ["unshare", "--net", "python3", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        config = ProbeConfig(tcp_socket=TcpSocket(port=18181), timeout_sec=10.0)
        own = os.stat("/proc/self/ns/net").st_ino
        pidfd = os.pidfd_open(program.pid)
        try:
            assert await probe(config, pidfd) == (True, "connected")
            assert (await probe(config)).detail == "Connection refused"
            program.stdin.close()
            program.wait()
            result = await probe(config, pidfd)
            assert (result.is_success, result.detail) == (False, "cannot enter its network namespace: No such process")
        finally:
            os.close(pidfd)
        assert await trio.to_thread.run_sync(lambda: os.stat("/proc/thread-self/ns/net").st_ino) == own


async def test_a_cancelled_probe_leaves_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    pidfd = os.pidfd_open(os.getpid())
    try:
        with trio.CancelScope() as scope:
            scope.cancel()
            await probe_client.probe(ProbeConfig(tcp_socket=TcpSocket(port=9)), pidfd)
    finally:
        os.close(pidfd)
    assert len(os.listdir("/proc/self/fd")) == before
