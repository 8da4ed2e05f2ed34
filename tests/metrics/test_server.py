"""Metrics on TCP: there and nothing else, for as long as the service lives and no longer."""

import gc
import socket
import urllib.error
import urllib.request
from functools import partial

import pytest
import trio

from nsupervisor.api.http.errors import ConnectionErrors
from nsupervisor.metrics.server import listen, serve_metrics
from tests.api.standin import Standin
from tests.timing import deadline


class Large(Standin):
    async def metrics(self, accept):
        return b"x" * 20_000_000, "text/plain; charset=utf-8"


def get(address, path="/metrics", method="GET"):
    request = urllib.request.Request(f"http://127.0.0.1:{address[1]}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=deadline(10)) as response:
            return response.status, response.headers["content-type"], response.read()
    except urllib.error.HTTPError as response:
        with response:
            return response.status, response.headers["content-type"], response.read()


@pytest.mark.parametrize(("path", "method", "status"), [("/v1/status", "GET", 404), ("/metrics", "POST", 405)])
async def test_there_is_nothing_but_the_metrics(path, method, status, nursery):
    address = await nursery.start(serve_metrics, Standin(), ("127.0.0.1", 0))
    found = await trio.to_thread.run_sync(get, address)
    assert found == (200, "text/plain; charset=utf-8", b"# EOF\n")
    refused = await trio.to_thread.run_sync(get, address, path, method)
    error = f'{{"error":"there is no {method} {path}; there are: GET /metrics"}}'
    assert refused == (status, "application/json", error.encode())
    nursery.cancel_scope.cancel()


def test_an_address_in_use_is_told_with_its_key():
    with listen(("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
        with pytest.raises(OSError, match=f"^supervisor.metrics: cannot listen at 127.0.0.1:{port}: Address.*; choose"):
            listen(("127.0.0.1", port))


def test_an_address_of_another_machine_is_told():
    with pytest.raises(OSError, match=r"cannot listen at 192\.0\.2\.1:9631: "):
        listen(("192.0.2.1", 9631))


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_ipv6_addresses_are_shown_in_brackets():
    with pytest.raises(OSError, match=r"cannot listen at \[2001:db8::1\]:9631: "):
        listen(("2001:db8::1", 9631))


async def test_who_does_not_read_cannot_hold_up_the_end(capfd):
    with trio.fail_after(deadline(20)), socket.socket() as stuck:
        async with trio.open_nursery() as inner:
            address = await inner.start(serve_metrics, Large(), ("127.0.0.1", 0))
            stuck.connect(address)
            stuck.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await trio.to_thread.run_sync(lambda: stuck.recv(1, socket.MSG_PEEK))
            inner.cancel_scope.cancel()
    gc.collect()  # unclosed sockets would warn now, and warnings are errors
    assert capfd.readouterr() == ("", "")


async def test_who_takes_all_connections_loses_the_oldest(nursery):
    address = await nursery.start(partial(serve_metrics, connections=8), Standin(), ("127.0.0.1", 0))
    taken = []
    try:
        while len(taken) < 8:
            taken += [await trio.open_tcp_stream(*address)]
        found = await trio.to_thread.run_sync(get, address)
        assert found[0] == 200
        with trio.fail_after(deadline(2)):  # sooner than the server would have closed it for its silence
            assert await taken[0].receive_some(1) == b""
    finally:
        for stream in taken:
            await stream.aclose()
        nursery.cancel_scope.cancel()


async def ask(address, host):
    """The status of a response to a request with that `Host`."""
    async with await trio.open_tcp_stream(*address) as stream:
        await stream.send_all(f"GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join([piece async for piece in stream])
    return int(answer.split()[1])


async def test_any_host_was_answered(nursery):
    """So a web page whose name resolves to this address could read the metrics."""
    errors = ConnectionErrors(lambda level, fields: None)
    address = await nursery.start(partial(serve_metrics, errors=errors), Standin(), ("127.0.0.1", 0))
    with trio.fail_after(deadline(10)):
        assert await ask(address, "evil.example") == 421
        assert await ask(address, f"evil.example:{address[1]}") == 421
        assert await ask(address, f"localhost:{address[1]}") == 200
        assert await ask(address, "127.0.0.1") == 200
        assert await ask(address, "127.0.0.2") == 421
    assert errors.counts == {("tcp", "host"): 3}
    nursery.cancel_scope.cancel()


async def test_scrapes_with_a_body_that_does_not_come_could_shut_out_all_others(nursery):
    """64 bodies of 1 MiB without their last bytes filled the buffer of the listener for 30 s."""
    errors = ConnectionErrors(lambda level, fields: None)
    address = await nursery.start(partial(serve_metrics, errors=errors), Standin(), ("127.0.0.1", 0))
    for method, status in (("GET", 413), ("HEAD", 413), ("POST", 405)):
        async with await trio.open_tcp_stream(*address) as stream:
            head = f"{method} /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1048576\r\n\r\n"
            await stream.send_all(head.encode())
            with trio.fail_after(deadline(10)):
                answer = await stream.receive_some()
            assert int(answer.split()[1]) == status
    assert errors.counts == {("tcp", "too_large"): 2}
    nursery.cancel_scope.cancel()


async def test_a_wildcard_address_answers_to_those_of_all_interfaces(nursery):
    address = await nursery.start(serve_metrics, Standin(), ("0.0.0.0", 0))
    with trio.fail_after(deadline(10)):
        assert await ask(("127.0.0.1", address[1]), "127.0.0.1") == 200
        assert await ask(("127.0.0.1", address[1]), "127.0.0.2") == 200
        assert await ask(("127.0.0.1", address[1]), "198.51.100.1") == 421
    nursery.cancel_scope.cancel()


async def test_many_loopback_addresses_take_no_more_connections_than_one(nursery):
    errors = ConnectionErrors(lambda level, fields: None)
    address = await nursery.start(partial(serve_metrics, errors=errors, connections=4), Standin(), ("127.0.0.1", 0))
    with trio.fail_after(deadline(10)):
        streams = [await trio.open_tcp_stream(*address, local_address=f"127.0.0.{number}") for number in range(2, 12)]
        for stream in streams[:6]:  # those that were idle for the longest time
            assert await stream.receive_some(1) == b""
        assert await ask(address, "localhost") == 200
        assert errors.counts == {("tcp", "evicted"): 7}
        for stream in streams:
            await stream.aclose()
    nursery.cancel_scope.cancel()
