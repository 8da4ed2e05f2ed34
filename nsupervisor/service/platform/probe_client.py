"""Send one probe: a TCP connection or an HTTP request, also in the network namespace of the program.

The program is not trusted. Its answer is limited in time and size, and nothing of it is used but the status and the
target of a redirection. As with the kubelet, redirections are followed on the same host only, at most ten; one to
another host is a success. The certificate of an HTTPS server is not checked.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import socket as stdlib_socket
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import trio

from nsupervisor.config.probes import HttpGet, ProbeConfig, TcpSocket
from nsupervisor.core.probes import ProbeResult
from nsupervisor.linux import syscalls
from nsupervisor.linux.namespaces import NAMESPACES

if TYPE_CHECKING:
    import ssl

MAX_REDIRECTIONS = 10
MAX_ANSWER_BYTES = 64 << 10
"""The most bytes of one answer that are read."""
MAX_BODY_BYTES = 10 << 10
"""The most bytes of a body that are read, as with the kubelet."""
_READ_BYTES = 16 << 10
_PORTS = {"http": 80, "https": 443}


class _ProbeError(Exception):
    """The probe has failed; the message says why."""


async def probe(config: ProbeConfig, pidfd: int = -1) -> ProbeResult:
    """Send a probe, and wait for the result for at most `timeout_sec`.

    `pidfd`: a process in whose network namespace the probe is sent; -1: in that of the service. Raises nothing of its
    own: each error is a failure of the probe.
    """
    try:
        with trio.fail_after(config.timeout_sec):
            if config.http_get is not None:
                return ProbeResult(True, await _request(config.http_get, pidfd))
            assert config.tcp_socket is not None
            stream = await _connect(config.tcp_socket, pidfd)
            await trio.aclose_forcefully(stream)
            return ProbeResult(True, "connected")
    except trio.TooSlowError:
        return ProbeResult(False, f"no answer within {config.timeout_sec:g} s")
    except _ProbeError as error:
        return ProbeResult(False, str(error))
    except OSError as error:  # among them those of TLS and of unknown host names
        return ProbeResult(False, error.strerror or str(error))
    except trio.BrokenResourceError as error:
        return ProbeResult(False, str(error.__cause__ or error) or "the connection broke")


async def _connect(target: HttpGet | TcpSocket, pidfd: int) -> trio.SocketStream:
    reason = f"the host name {target.host} has no address"
    for family, address in await _addresses(target.host, target.port):
        socket = await _open_socket(family, pidfd)
        try:
            await socket.connect(address)
        except OSError as error:
            socket.close()
            reason = os.strerror(error.errno or 0)
        except trio.Cancelled:
            socket.close()
            raise
        else:
            return trio.SocketStream(socket)
    raise _ProbeError(reason)


async def _addresses(host: str, port: int) -> list[tuple[int, Any]]:
    try:
        address = ipaddress.ip_address(host)  # most probes: it needs no thread
    except ValueError:
        try:
            found = await trio.socket.getaddrinfo(host, port, type=stdlib_socket.SOCK_STREAM)
        except UnicodeError:  # an empty part, for example
            raise _ProbeError(f"{host} is not a host name") from None
        return [(family, address) for family, _, _, _, address in found]
    return [(stdlib_socket.AF_INET if address.version == 4 else stdlib_socket.AF_INET6, (host, port))]


async def _open_socket(family: int, pidfd: int) -> trio.socket.SocketType:
    if pidfd < 0:
        return trio.socket.socket(family, stdlib_socket.SOCK_STREAM)
    process = os.dup(pidfd)  # the program may end, and its pidfd be closed, while the thread runs
    try:
        return trio.socket.from_stdlib_socket(await trio.to_thread.run_sync(_open_socket_in, family, process))
    finally:
        os.close(process)


def _open_socket_in(family: int, process: int) -> stdlib_socket.socket:
    """Open a socket in the network namespace of a process, a pidfd. Raises _ProbeError.

    A thread of its own enters the namespace, and ends: no other work may ever run in it there.
    """
    results: list[stdlib_socket.socket | OSError] = []

    def enter_and_open() -> None:
        try:
            syscalls.setns(process, NAMESPACES["network"].flag)
            socket = stdlib_socket.socket(family, stdlib_socket.SOCK_STREAM)
            socket.setblocking(False)
            results.append(socket)
        except OSError as error:
            results.append(error)

    thread = threading.Thread(target=enter_and_open, name="probe", daemon=True)
    thread.start()
    thread.join()
    if isinstance(results[0], OSError):
        raise _ProbeError(f"cannot enter its network namespace: {results[0].strerror}")
    return results[0]


async def _request(target: HttpGet, pidfd: int) -> str:
    """Send requests until one is not redirected on the same host; return what was found. Raises _ProbeError."""
    url = f"{target.scheme}://{_authority(target.host, target.port)}{target.path}"
    for _ in range(MAX_REDIRECTIONS + 1):
        parts = urlsplit(url)
        port = parts.port or _PORTS[parts.scheme]
        connection = TcpSocket(host=target.host, port=port)
        status, location = await _get(connection, parts.scheme, parts, target.http_headers, pidfd)
        if status in (301, 302, 303, 307, 308) and location:
            url = _redirected(url, location)
            if urlsplit(url).hostname == parts.hostname:
                continue
            return f"HTTP {status} to another host, which was not asked"
        if 200 <= status < 400:
            return f"HTTP {status}"
        raise _ProbeError(f"HTTP {status}")
    raise _ProbeError(f"more than {MAX_REDIRECTIONS} redirections")


def _redirected(url: str, location: str) -> str:
    """Return the target of a redirection, which the program has chosen. Raises _ProbeError if it cannot be asked."""
    with contextlib.suppress(ValueError):
        target = urljoin(url, location)
        parts = urlsplit(target)
        is_text = target.isascii() and target.isprintable() and " " not in target
        if is_text and parts.scheme in _PORTS and parts.port != 0:
            return target
    raise _ProbeError("redirected to what is no URL of HTTP")


async def _get(connection: TcpSocket, scheme: str, parts: Any, headers: dict[str, str], pidfd: int) -> tuple[int, str]:
    """Return the status of an answer, and the value of its header Location."""
    import h11  # imported late: most services have no probes

    stream: trio.abc.Stream = await _connect(connection, pidfd)
    try:
        if scheme == "https":
            stream = trio.SSLStream(stream, _tls(), server_hostname=parts.hostname, https_compatible=True)
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_ANSWER_BYTES)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        authority = _authority(parts.hostname, connection.port)
        request = h11.Request(method="GET", target=target, headers=list(_headers(headers, authority)))
        await stream.send_all((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
        return await _read_answer(stream, http)
    except h11.ProtocolError as error:
        raise _ProbeError(f"its answer is not HTTP: {error}") from None
    finally:
        await trio.aclose_forcefully(stream)


async def _read_answer(stream: trio.abc.Stream, http: Any) -> tuple[int, str]:
    import h11

    status, location, total, body = 0, "", 0, 0
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            data = await stream.receive_some(_READ_BYTES)
            total += len(data)
            http.receive_data(data)
        elif isinstance(event, h11.Response):
            status = event.status_code
            location = next((value.decode("latin-1") for name, value in event.headers if name == b"location"), "")
        elif isinstance(event, h11.Data):
            body += len(event.data)
        elif not isinstance(event, h11.InformationalResponse):  # EndOfMessage
            return status, location
        if status and body >= MAX_BODY_BYTES:
            return status, location
        if total > MAX_ANSWER_BYTES:
            raise _ProbeError(f"its answer is longer than {MAX_ANSWER_BYTES >> 10} KiB")


def _headers(given: dict[str, str], authority: str) -> Iterable[tuple[str, str]]:
    names = {name.lower() for name in given}
    for name, value in (("Host", authority), ("User-Agent", "nsupervisor"), ("Accept", "*/*")):
        if name.lower() not in names:
            yield name, value
    yield from given.items()
    yield "Connection", "close"


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@functools.cache
def _tls() -> ssl.SSLContext:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
