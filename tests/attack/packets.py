"""Hostile byte sequences for an HTTP/1.1 server: what a peer may send, and how it may end the connection.

Pure and seeded: the same seed yields the same packets in the same order, on every machine. `catalogue` has each kind
once; `packets` repeats the catalogue, requests that end after each byte, and random mutations of valid requests.
"""

import itertools
import random
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

HEAD_SIZE = 200_000
"""Bytes of a head that is far too large."""
LARGE_BODY = 400_000_000
"""Bytes that a request announces, and of which it sends `SENT_BODY`."""
SENT_BODY = 1 << 20


class Ending(Enum):
    """What the peer does once it has sent the last byte."""

    CLOSE = "close"  # close(2) without reading: data that has arrived unread resets the connection
    RESET = "reset"  # close with SO_LINGER 0: RST on TCP
    HALF_CLOSE = "half-close"  # shutdown(SHUT_WR), then read until the server closes
    HOLD = "hold"  # keep it open, and send nothing more


class Packet(NamedTuple):
    """What one connection sends. name: its kind. chunks: one send(2) each."""

    name: str
    chunks: tuple[bytes, ...]
    ending: Ending


def request(
    target: bytes = b"/v1/status",
    *headers: bytes,
    method: bytes = b"GET",
    body: bytes = b"",
    host: bytes = b"localhost",
) -> bytes:
    """A request with a Host and these header lines, without a Content-Length of its own."""
    lines = [b"%s %s HTTP/1.1" % (method, target), b"Host: " + host, *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def valid(host: bytes = b"localhost") -> tuple[bytes, ...]:
    """Requests that both listeners can parse; none changes the service."""
    plan = b'{"path": "/nonexistent"}'
    unknown = b'{"names": ["nonexistent"]}'
    json = b"Content-Type: application/json"
    return (
        request(b"/metrics", host=host),
        request(b"/v1/status", host=host),
        request(b"/v1/info", b"Connection: close", host=host),
        request(b"/v1/events?name=a%2A", b"Accept: */*", host=host),
        request(b"/v1/plan", json, b"Content-Length: %d" % len(plan), method=b"POST", body=plan, host=host),
        request(b"/v1/plan", b"Transfer-Encoding: chunked", method=b"POST", body=chunked(plan), host=host),
        request(
            b"/v1/workloads/thaw", json, b"Content-Length: %d" % len(unknown), method=b"POST", body=unknown, host=host
        ),
    )


def chunked(body: bytes) -> bytes:
    """A body in one chunk and the last one, RFC 9112 section 7.1."""
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


def _upgrades() -> dict[str, bytes]:
    h2c = request(b"/metrics", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: A")
    post = h2c.replace(b"GET", b"POST").replace(b"Host:", b"Content-Length: 3\r\nHost:")
    websocket = request(
        b"/v1/status",
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    # Record, handshake of 508 bytes, ClientHello; RFC 8446 section 4.1.2.
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(32)) + b"\x20" + bytes(473)
    return {
        "h2c upgrade, settings that are not base64": h2c,
        "h2c upgrade, valid settings": h2c.replace(b": A", b": AAMAAABkAAQAoAAAAAIAAAAA"),
        "h2c upgrade with a body": post + b"abc",
        "WebSocket upgrade": websocket,
        "WebSocket upgrade with a frame": websocket + b"\x81\x85\x01\x02\x03\x04\x69\x67\x6f\x68\x6e",
        "WebSocket upgrade with a frame that is not masked": websocket + b"\x81\x05hello",
        "WebSocket upgrade with a line": websocket + b"x\r\n",
        "WebSocket upgrade without a key": websocket.replace(b"Sec-WebSocket-Key", b"X-Key"),
        "HTTP/2 preface": preface,
        "HTTP/2 preface with SETTINGS": preface + b"\0\0\0\x04\0\0\0\0\0",
        "HTTP/2 preface behind a request": request() + preface,
        "TLS ClientHello": hello,
        "TLS ClientHello behind a request": request() + hello,
        "upgrade to an unknown protocol": request(b"/v1/status", b"Connection: Upgrade", b"Upgrade: TLS/1.0"),
        "CONNECT": b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n",
        "SSH banner": b"SSH-2.0-OpenSSH_9.2\r\n",
        "PROXY protocol": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + request(),
    }


def _chunks() -> dict[str, bytes]:
    def post(body: bytes) -> bytes:
        return request(b"/v1/plan", b"Transfer-Encoding: chunked", method=b"POST", body=body)

    return {
        "chunk size that is not hexadecimal": post(b"xyz\r\nabc\r\n0\r\n\r\n"),
        "chunk size that is negative": post(b"-1\r\na\r\n0\r\n\r\n"),
        "chunk size with 0x": post(b"0x3\r\nabc\r\n0\r\n\r\n"),
        "chunk size with a sign": post(b"+3\r\nabc\r\n0\r\n\r\n"),
        "chunk size with underscores": post(b"1_0\r\nabc\r\n0\r\n\r\n"),
        "chunk size with spaces": post(b" 3 \r\nabc\r\n0\r\n\r\n"),
        "chunk size of 16 digits": post(b"ffffffffffffffff\r\nabc"),
        "chunk size of 20 digits": post(b"f" * 20 + b"\r\nabc"),
        "chunk size of 100,000 digits": post(b"0" * 100_000 + b"3\r\nabc\r\n0\r\n\r\n"),
        "chunk size that is empty": post(b"\r\nabc\r\n0\r\n\r\n"),
        "chunk shorter than its size": post(b"5\r\nabc\r\n0\r\n\r\n"),
        "chunk longer than its size": post(b"2\r\nabc\r\n0\r\n\r\n"),
        "chunk without its final CRLF": post(b"3\r\nabc0\r\n\r\n"),
        "chunk lines that end with LF": post(b"3\nabc\n0\n\n"),
        "chunk extension": post(b'3;a=b;c="d"\r\nabc\r\n0\r\n\r\n'),
        "chunk extension with CR": post(b"3;a\rb\r\nabc\r\n0\r\n\r\n"),
        "chunk extension of 100 KB": post(b"3;" + b"x" * 100_000 + b"\r\nabc\r\n0\r\n\r\n"),
        "chunks of one byte each": post(b"1\r\n{\r\n" * 5000 + b"0\r\n\r\n"),
        "trailer": post(b"3\r\nabc\r\n0\r\nX: y\r\n\r\n"),
        "trailer that is no header": post(b"3\r\nabc\r\n0\r\nno colon\r\n\r\n"),
        "trailer with Content-Length": post(b"3\r\nabc\r\n0\r\nContent-Length: 50\r\n\r\n"),
        "trailers of 200 KB": post(b"0\r\n" + b"X: y\r\n" * (HEAD_SIZE // 6) + b"\r\n"),
        "last chunk missing": post(b"3\r\nabc\r\n"),
    }


def _heads() -> dict[str, bytes]:
    many = tuple(b"X-%d: y" % number for number in range(HEAD_SIZE // 12))
    return {
        "head of 200 KB in the target": request(b"/v1/status?name=" + b"a" * HEAD_SIZE),
        "head of 200 KB in one header": request(b"/v1/status", b"X: " + b"a" * HEAD_SIZE),
        "head of 200 KB in many headers": request(b"/v1/status", *many),
        "head of 200 KB in one line without an end": b"G" * HEAD_SIZE,
        "head of 200 KB of CRLF": b"\r\n" * (HEAD_SIZE // 2),
        "10,000 query parameters": request(b"/v1/status?" + b"name=a&" * 2_000),
        "NUL in the method": b"G\0T /v1/status HTTP/1.1\r\nHost: x\r\n\r\n",
        "NUL in the target": request(b"/v1/\0status"),
        "NUL in a header name": request(b"/v1/status", b"X\0Y: z"),
        "NUL in a header value": request(b"/v1/status", b"X: y\0z"),
        "NULs only": bytes(1000),
        "bytes of all values": bytes(range(256)) * 8,
        "bare LF": b"GET /v1/status HTTP/1.1\nHost: localhost\n\n",
        "CR only": b"GET /v1/status HTTP/1.1\rHost: localhost\r\r",
        "CR in a header value": request(b"/v1/status", b"X: a\rEvil: b"),
        "LF in a header value": request(b"/v1/status", b"X: a\nEvil: b"),
        "obs-fold": request(b"/v1/status", b"X: a", b"\tb", b" c"),
        "obs-fold in the first header": b"GET /v1/status HTTP/1.1\r\n Host: localhost\r\n\r\n",
        "space before the colon": request(b"/v1/status", b"Content-Length : 3") + b"abc",
        "header without a name": request(b"/v1/status", b": y"),
        "header without a colon": request(b"/v1/status", b"no colon"),
        "header name that is not ASCII": request(b"/v1/status", b"\xff\xfe: y"),
        "header value that is not UTF-8": request(b"/metrics", b"Accept: \xff\xfe\x80"),
        "no Host": b"GET /v1/status HTTP/1.1\r\n\r\n",
        "two Hosts": request(b"/v1/status", b"Host: example.org"),
        "a Host of another": request(host=b"example.org"),
        "a Host with user and junk": request(host=b"user@[::1\xff]:999999"),
        "an empty Host": request(host=b""),
        "HTTP/0.9": b"GET /v1/status\r\n",
        "HTTP/1.0 without headers": b"GET /v1/status HTTP/1.0\r\n\r\n",
        "HTTP/1.0 with chunks": b"POST /v1/plan HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"{}"),
        "HTTP/1.9": request().replace(b"HTTP/1.1", b"HTTP/1.9"),
        "HTTP/9.9": request().replace(b"HTTP/1.1", b"HTTP/9.9"),
        "HTTP/1.1 with a long version": request().replace(b"HTTP/1.1", b"HTTP/1." + b"1" * 50),
        "lower-case http": request().replace(b"HTTP/1.1", b"http/1.1"),
        "Expect: 100-continue": request(b"/v1/plan", b"Expect: 100-continue", b"Content-Length: 2", method=b"POST"),
        "Expect of something else": request(b"/v1/status", b"Expect: the-unexpected"),
        "OPTIONS *": b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "absolute target": request(b"http://localhost/v1/status"),
        "absolute target of another": request(b"http://example.org/v1/status"),
        "target without a slash": request(b"v1/status"),
        "HEAD": request(method=b"HEAD"),
        "HEAD of a stream": request(b"/v1/events", method=b"HEAD"),
        "TRACE": request(method=b"TRACE"),
        "method of 30 KB": request(method=b"A" * 30_000),
        "Connection names itself": request(b"/v1/status", b"Connection: Connection, Host, Content-Length"),
    }


def _bodies() -> dict[str, bytes]:
    def post(*headers: bytes, body: bytes = b"{}") -> bytes:
        return request(b"/v1/plan", *headers, method=b"POST", body=body)

    deep = b"[" * 100_000
    return {
        "Content-Length 100 and one byte": post(b"Content-Length: 100", body=b"{"),
        "Content-Length of a body far too large": post(b"Content-Length: %d" % LARGE_BODY, body=b" " * SENT_BODY),
        "chunks of a body far too large": post(
            b"Transfer-Encoding: chunked", body=b"%x\r\n" % LARGE_BODY + b" " * SENT_BODY
        ),
        "Content-Length negative": post(b"Content-Length: -1"),
        "Content-Length with a sign": post(b"Content-Length: +2"),
        "Content-Length of 4,000 digits": post(b"Content-Length: " + b"9" * 4_000),
        "Content-Length of 5,000 digits": post(b"Content-Length: " + b"9" * 5_000),
        "Content-Length of 20 digits": post(b"Content-Length: " + b"9" * 20),
        "Content-Length hexadecimal": post(b"Content-Length: 0x2"),
        "Content-Length with Unicode digits": post("Content-Length: ²".encode()),
        "Content-Length empty": post(b"Content-Length: "),
        "Content-Length twice, equal": post(b"Content-Length: 2", b"Content-Length: 2"),
        "Content-Length twice, different": post(b"Content-Length: 2", b"Content-Length: 30"),
        "Content-Length list": post(b"Content-Length: 2, 30"),
        "Content-Length with Transfer-Encoding": post(
            b"Content-Length: 4", b"Transfer-Encoding: chunked", body=chunked(b"{}") + request(b"/v1/info")
        ),
        "Transfer-Encoding gzip": post(b"Transfer-Encoding: gzip"),
        "Transfer-Encoding gzip, chunked": post(b"Transfer-Encoding: gzip, chunked", body=chunked(b"{}")),
        "Transfer-Encoding twice": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"),
        "Transfer-Encoding with a tab": post(b"Transfer-Encoding:\tchunked\x0b", body=chunked(b"{}")),
        "GET with a body": request(b"/v1/status", b"Content-Length: 5", body=b"hello"),
        "lone surrogate in a name": _json(b"/v1/workloads/thaw", b'{"names": ["\\ud800"]}'),
        "lone surrogate in a path": _json(b"/v1/plan", b'{"path": "\\ud800", "text": "\\udfff"}'),
        "NUL in a path": _json(b"/v1/plan", b'{"path": "/a\\u0000b"}'),
        "path of 1 MB": _json(b"/v1/plan", b'{"path": "/' + b"a" * 1_000_000 + b'"}'),
        "JSON that is too deep": _json(b"/v1/plan", deep),
        "JSON that is not UTF-8": _json(b"/v1/plan", b'{"path": "\xff"}'),
        "JSON in UTF-16": _json(b"/v1/plan", '{"path": "/"}'.encode("utf-16")),
        "JSON number of 10,000 digits": _json(
            b"/v1/workloads/signal", b'{"names": ["x"], "signal": %s}' % (b"9" * 10_000)
        ),
        "JSON NaN": _json(b"/v1/workloads/set", b'{"names": ["x"], "resources": {"memory_max": NaN}}'),
        "JSON null": _json(b"/v1/plan", b"null"),
        "TOML that is too deep": _json(b"/v1/plan", b'{"path": "/x", "text": "%s=1"}' % (b"a." * 20_000 + b"a")),
        "TOML of open brackets": _json(b"/v1/plan", b'{"path": "/x", "text": "a=%s"}' % (b"[" * 50_000)),
        "a glob of asterisks": _json(b"/v1/workloads/thaw", b'{"names": ["%s"]}' % (b"*a" * 5_000)),
        "10,000 names": _json(b"/v1/workloads/thaw", b'{"names": [%s"x"]}' % (b'"nonexistent",' * 10_000)),
    }


def _json(target: bytes, body: bytes) -> bytes:
    length = b"Content-Length: %d" % len(body)
    return request(target, b"Content-Type: application/json", length, method=b"POST", body=body)


def _targets() -> dict[str, bytes]:
    junk = {
        "a lone surrogate": b"/v1/history/%ED%A0%80",
        "bytes that are not UTF-8": b"/v1/history/%FF%FE",
        "raw bytes that are not ASCII": b"/v1/history/\xff\xfe",
        "an encoded NUL": b"/v1/history/%00",
        "an incomplete escape": b"/v1/history/%",
        "an escape that is not hexadecimal": b"/v1/history/%zz",
        "dots": b"/v1/../../../../etc/passwd",
        "encoded dots": b"/v1/%2e%2e/%2e%2e/etc/passwd",
        "slashes": b"/" * 10_000,
        "a fragment": b"/v1/status#fragment",
        "a query of junk": b"/v1/status?&&==%&name=%ED%A0%80&name=%00",
        "interval=inf": b"/v1/trace?interval=inf&seconds=0",
        "interval=nan": b"/v1/trace?interval=nan&seconds=0",
        "interval=1e308": b"/v1/trace?interval=1e308&seconds=0",
        "seconds=1e308": b"/v1/trace?interval=0&seconds=1e308",
        "bytes=nan": b"/v1/trace?bytes=nan&seconds=0",
        "a follower": b"/v1/events?follow=1",
        "an unknown verb": b"/v1/workloads/%73top%00",
    }
    return {f"target with {name}": request(target) for name, target in junk.items()}


def _pipelines() -> dict[str, bytes]:
    return {
        "100 requests in one packet": request() * 100,
        "100 HEAD requests in one packet": request(method=b"HEAD") * 100,
        "requests behind Connection: close": request(b"/v1/status", b"Connection: close") + request() * 10,
        "a request behind a bad one": b"BAD\r\n\r\n" + request(),
        "a request behind a stream": request(b"/v1/events?follow=1") + request() * 3,
        "a request behind a request with a body": valid()[4] + valid()[5] + request(),
        "CRLFs between requests": (b"\r\n" * 5 + request()) * 5,
        "10,000 bytes behind a request": request() + b"x" * 10_000,
    }


def catalogue(host: bytes = b"localhost") -> dict[str, bytes]:
    """Each kind of hostile bytes, by name, with `host` where the request names our own."""
    kinds = {**_upgrades(), **_chunks(), **_heads(), **_bodies(), **_targets(), **_pipelines()}
    return {name: data.replace(b"Host: localhost\r\n", b"Host: %s\r\n" % host) for name, data in kinds.items()}


ENDLESS = frozenset({"a request behind a stream", "target with a follower"})
"""Kinds whose answer ends with the service: a client that has half-closed its connection still reads it."""


def packets(seed: int, host: bytes = b"localhost") -> Iterator[Packet]:
    """Packets without end: the catalogue with each ending, valid requests cut at each byte, and then random ones."""
    kinds = catalogue(host)
    for ending, (name, data) in itertools.product(Ending, kinds.items()):
        yield Packet(name, (data,), _possible(name, ending))
    yield from cuts(host)
    draw = random.Random(seed)
    while True:
        yield _drawn(draw, kinds, host)


def cuts(host: bytes = b"localhost") -> Iterator[Packet]:
    """A GET and a POST in chunks that end after each of their bytes; the endings take turns."""
    endings = itertools.cycle((Ending.CLOSE, Ending.HALF_CLOSE, Ending.RESET))
    for data in (valid(host)[0], valid(host)[5]):
        for length in range(1, len(data)):
            yield Packet(f"request cut after {length} bytes", (data[:length],), next(endings))


def _drawn(draw: random.Random, kinds: dict[str, bytes], host: bytes) -> Packet:
    ending = draw.choice(tuple(Ending))
    choice = draw.randrange(10)
    if choice < 4:
        name = draw.choice(tuple(kinds))
        data = kinds[name]
    else:
        name, data = "mutation", mutated(draw, draw.choice(valid(host)))
    ending = _possible(name, ending)
    if choice == 9 and len(data) < 1000:
        return Packet(f"{name}, byte by byte", tuple(bytes((byte,)) for byte in data), ending)
    if choice % 3 == 0 and len(data) > 1:
        middle = draw.randrange(1, len(data))
        return Packet(f"{name}, in two sends", (data[:middle], data[middle:]), ending)
    return Packet(name, (data,), ending)


def _possible(name: str, ending: Ending) -> Ending:
    return Ending.CLOSE if ending is Ending.HALF_CLOSE and name in ENDLESS else ending


SEPARATORS = (b"\0", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b":", b" ", b"\t", b"\xff", b"%", b";")
PARTS = (b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"-1", b"HTTP/1.1")


def mutated(draw: random.Random, data: bytes) -> bytes:
    """Change `data` one to eight times: a byte, a deletion, a repetition, an insertion of separators or headers."""
    found = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        at = draw.randrange(len(found) + 1)
        match draw.randrange(5):
            case 0:
                found[at : at + 1] = bytes((draw.randrange(256),))
            case 1:
                del found[at : at + draw.randint(1, 10)]
            case 2:
                found[at:at] = found[at : at + draw.randint(1, 100)] * draw.randint(1, 3)
            case 3:
                found[at:at] = draw.choice(SEPARATORS)
            case _:
                found[at:at] = draw.choice(PARTS)
    return bytes(found)
