"""Requests, responses, and the exception that becomes an error response."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

import attrs

from nsupervisor.json_codec import decode, encode_strict
from nsupervisor.linux.peers import Peer

JSON_TYPE = "application/json"
QUERY_FIELDS_LIMIT = 1000
"""Fields in a query."""


class HTTPError(Exception):
    """A request that cannot be served.

    `status` is the status of the response, 400 to 599. `message` is its text, which says what is wrong and what to do
    instead. `headers` are added to the response.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})


@attrs.frozen
class Request:
    """A complete request with its body."""

    method: str
    path: str
    """Percent-decoded, without the query."""
    query: Mapping[str, Sequence[str]] = attrs.field(factory=dict)
    """Percent-decoded values by name, in their order."""
    headers: Mapping[str, str] = attrs.field(factory=dict)
    """By lower-case name; several fields of one name are joined with ", "."""
    body: bytes = b""
    peer: Peer | None = None
    """The process at the other end; None on TCP, and if nothing identifies peers."""
    parameters: Mapping[str, str] = attrs.field(factory=dict)
    """The parts of the path that the route names."""

    def values(self, name: str) -> list[str]:
        """Return all values of a query field."""
        return list(self.query.get(name, ()))

    def value(self, name: str, default: str) -> str:
        """Return the last value of a query field, or `default`."""
        return self.query[name][-1] if name in self.query else default

    def json(self) -> Any:
        """Decode the body as JSON (RFC 8259): no NaN, no lone surrogates, at most 1,024 levels. Raises ValueError."""
        return decode(self.body)


@attrs.frozen
class Response:
    """A complete response with its body."""

    body: bytes
    status: int = 200
    media_type: str = JSON_TYPE
    headers: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class Stream:
    """A response that is sent in pieces as they come, with status 200.

    The context manager `source` is exited when its iterator ends, or when the client disconnects.
    """

    source: AbstractContextManager[AsyncIterator[bytes]]
    media_type: str


class ChannelClosed(Exception):  # noqa: N818 - how a conversation ends early
    """The client has closed the connection, or does not read from it."""


class Channel(Protocol):
    """A connection that has switched to another protocol. Both methods raise ChannelClosed."""

    async def receive(self) -> bytes:
        """Return the next bytes, at most `limits.PIECE_SIZE`; b"" at the end."""
        ...

    async def send(self, data: bytes) -> None:
        """Send bytes, and wait until the kernel has taken them."""
        ...


@attrs.frozen
class Switch:
    """A response with status 101: the connection speaks `protocol` from now on, until `converse` returns.

    `converse` is cancelled when the client disconnects.
    """

    protocol: str
    converse: Callable[[Channel], Awaitable[None]]


class Application(Protocol):
    """A callable that answers requests."""

    def body_limit(self, method: str, path: str, peer: Peer | None) -> int:
        """Return the maximum number of bytes in the body of such a request. Called before the body is read.

        Raises HTTPError if the request is refused whatever its body is.
        """
        ...

    def __call__(self, request: Request) -> Awaitable[Response | Stream | Switch]:
        """Answer a request. Raises HTTPError; any other exception is a defect and is answered with 500."""
        ...


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Build a response with a JSON body. Lone surrogates, as in file names that are not UTF-8, become escapes."""
    try:
        body = encode_strict(value)
    except TypeError:
        body = json.dumps(value, separators=(",", ":")).encode()
    return Response(body, status, headers=headers or {})


def error_response(error: HTTPError) -> Response:
    """Build the response for an error: the object `Error` of `nsupervisor schema api`."""
    return json_response({"error": error.message}, error.status, error.headers)


def split_target(target: bytes) -> tuple[str, dict[str, list[str]], str | None]:
    """Split a request target (RFC 9112 section 3.2) into path, query and authority; None in the origin form.

    Raises:
        HTTPError: 400; the form of the target is not served here, or it is not UTF-8.
    """
    authority = None
    text = target.decode("latin-1")
    if not text.startswith("/"):
        scheme, separator, rest = text.partition("://")
        if not separator or scheme.lower() not in ("http", "https"):
            raise HTTPError(400, 'the request target is not a path; it begins with "/"')
        authority, slash, rest = rest.partition("/")
        text = slash + rest or "/"
    path, _, query = text.partition("#")[0].partition("?")
    return _percent_decode(path, "path"), _parse_query(query), authority


def _parse_query(query: str) -> dict[str, list[str]]:
    # urllib.parse.parse_qs replaces bytes that are not UTF-8, so a different name would be looked up.
    if query.count("&") >= QUERY_FIELDS_LIMIT:
        raise HTTPError(400, f"the query has more than {QUERY_FIELDS_LIMIT} fields; use a pattern such as name=web*")
    fields: dict[str, list[str]] = {}
    for field in query.split("&"):
        name, _, value = field.replace("+", " ").partition("=")
        if field:
            fields.setdefault(_percent_decode(name, "query"), []).append(_percent_decode(value, "query"))
    return fields


def _percent_decode(text: str, part: str) -> str:
    try:
        return unquote_to_bytes(text.encode("latin-1")).decode()
    except UnicodeDecodeError as error:
        byte = f"%{error.object[error.start]:02X}"
        raise HTTPError(400, f"the {part} is not UTF-8 ({byte}); percent-encode UTF-8 text") from None
