"""Serve one connection: its requests one after the other, each within the limits, without raising an exception.

The code needs only a `trio.abc.Stream`, so a TLS stream works as well as a socket. It uses only the public interface of
h11: https://h11.readthedocs.io/en/latest/api.html.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import attrs
import h11
import trio

from nsupervisor.api.http import limits
from nsupervisor.api.http.errors import UNIX, ConnectionErrors, describe
from nsupervisor.api.http.hangup import HangupWatcher
from nsupervisor.api.http.hosts import AllowedHosts
from nsupervisor.api.http.messages import (
    Application,
    ChannelClosed,
    HTTPError,
    Request,
    Response,
    Stream,
    Switch,
    error_response,
    json_response,
    split_target,
)
from nsupervisor.linux.peers import Peer

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_PYTHON_VALUE = re.compile(r":? *(?:bytearray\()?\bb['\"]")
"""The beginning of a value in an error of h11, which shows the bytes as Python does."""
_CONNECTION_LOST = (trio.BrokenResourceError, trio.ClosedResourceError)


class _ConnectionEnded(Exception):  # noqa: N818 - not an error: how a conversation ends early
    """The connection ends now. `kind`: under which kind of error it is counted; "" if it is none."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text


class _RequestRefused(_ConnectionEnded):
    """The connection ends with an error response."""

    def __init__(self, kind: str, error: HTTPError) -> None:
        super().__init__(kind, error.message)
        self.error = error


@attrs.define(eq=False)
class BufferBudget:
    """The number of bytes of bodies and responses that all connections of a listener hold.

    An identity, which is a workload or a uid, may hold three quarters of it: others always have room for a command.
    """

    used_bytes: int = 0
    limit_bytes: int = limits.BUFFERED_LIMIT
    used_by: Counter[str] = attrs.field(factory=Counter)
    """The bytes that each identity holds."""

    def reserve(self, size: int, identity: str = "") -> bool:
        """Reserve `size` bytes; return False if there is no room.

        The first reservation always succeeds. identity: has a share; "" has none, only the limit of all counts.
        """
        if self.used_bytes and self.used_bytes + size > self.limit_bytes:
            return False
        used = self.used_by[identity] if identity else 0
        if used and used + size > self.limit_bytes * 3 // 4:
            return False
        self.used_bytes += size
        self.used_by[identity] += size
        return True

    def release(self, size: int, identity: str = "") -> None:
        """Release bytes that the identity has reserved."""
        self.used_bytes -= size
        self.used_by[identity] -= size
        if not self.used_by[identity]:
            del self.used_by[identity]


@attrs.frozen
class ListenerState:
    """The state that all connections of a listener share.

    `listener` is "unix" or "tcp". `hosts` decides which `Host` fields are answered; None: any.
    """

    application: Application
    listener: str
    errors: ConnectionErrors
    hangups: HangupWatcher
    hosts: AllowedHosts | None = None
    buffer_budget: BufferBudget = attrs.field(factory=BufferBudget)


class Connection:
    """Answers the requests on a stream. `run` closes the stream and does not raise an `Exception`.

    `identity` names the other end in records. `on_waiting` is called with True when the connection begins to wait for
    its client, which has to send a request or to take a complete response, and with False when a request is handled.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        listener_state: ListenerState,
        *,
        peer: Peer | None = None,
        identity: str = "",
        on_waiting: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self.stream = stream
        self.listener_state = listener_state
        self.peer = peer
        self.identity = identity
        self.scope = trio.CancelScope()
        """Cancelled to close the connection at once."""
        # On TCP all local users have the same address, so a share would let each of them shut out the others.
        self._buffer_identity = identity if listener_state.listener == UNIX else ""
        self._on_waiting = on_waiting
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.HEAD_LIMIT)
        self._reserved_bytes = 0
        self._is_head = False
        """The method of the latest request is HEAD, whose response has no body."""
        self._has_ended = False
        """The client has ended its sending side."""

    # ---- the life of the connection

    async def run(self) -> None:
        """Answer requests until either side ends the connection."""
        await self._run_isolated(self._serve_requests)

    async def refuse(self, kind: str, error: HTTPError) -> None:
        """Send an error response without reading a request, and close."""

        async def refuse() -> None:
            raise _RequestRefused(kind, error)

        await self._run_isolated(refuse)

    def refusal(self, kind: str, error: HTTPError) -> bytes:
        """Count a refusal, and return the bytes of the error response for a caller that can send them at once."""
        if kind:
            self._count(kind, error.message)
        response = error_response(error)
        fields = [("Content-Length", str(len(response.body))), *response.headers.items()]
        head = self._head(response.status, response.media_type, fields, close=True)
        return head + (self._http.send(h11.Data(data=response.body)) or b"")

    async def _run_isolated(self, conversation: Callable[[], Any]) -> None:
        try:
            with self.scope:
                try:
                    await self._run_conversation(conversation)
                finally:
                    await trio.aclose_forcefully(self.stream)
        except Exception as error:
            self._count("internal", describe(error))
        except BaseExceptionGroup as group:  # a cancellation together with another exception
            defects, rest = group.split(Exception)
            if defects is not None:
                self._count("internal", describe(defects))
            if rest is not None:
                raise rest from None
        finally:
            self._release()

    async def _run_conversation(self, conversation: Callable[[], Any]) -> None:
        try:
            await conversation()
        except _RequestRefused as refused:
            if refused.kind:
                self._count(refused.kind, refused.text)
            await self._respond_early(refused.error)
        except _ConnectionEnded as ended:
            if ended.kind:
                self._count(ended.kind, ended.text)
            return
        with trio.move_on_after(limits.LINGER_TIMEOUT_S):
            try:
                await self.stream.aclose()
            except _CONNECTION_LOST:
                pass

    async def _serve_requests(self) -> None:
        is_first = True
        while (head := await self._read_head(is_first)) is not None:
            is_first = False
            await self._answer(head)
            if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
                self._http.start_next_cycle()
                self._release()
                continue
            if self._http.trailing_data[0]:
                await self._linger()
            return

    def _count(self, kind: str, text: str) -> None:
        self.listener_state.errors.count(self.listener_state.listener, kind, text, peer=self.identity)

    def _reserve(self, size: int) -> None:
        if not self.listener_state.buffer_budget.reserve(size, self._buffer_identity):
            raise _RequestRefused(
                "limit", HTTPError(503, "too much is being received or sent at this moment; try again")
            )
        self._reserved_bytes += size

    def _release(self) -> None:
        self.listener_state.buffer_budget.release(self._reserved_bytes, self._buffer_identity)
        self._reserved_bytes = 0

    # ---- receiving

    async def _receive(self, size: int) -> bytes:
        try:
            data = bytes(await self.stream.receive_some(size))
        except _CONNECTION_LOST:
            raise _ConnectionEnded("disconnect", "the client reset the connection") from None
        self._has_ended = not data
        return data

    def _next_event(self) -> Any:
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError as error:
            if self._has_ended:  # perhaps only the client's sending side
                message = "the connection ended within the request; send all of it"
                raise _RequestRefused("disconnect", HTTPError(400, message)) from None
            status = error.error_status_hint
            if status == 431:
                message = f"the head is larger than {limits.HEAD_LIMIT >> 10} KiB; send fewer or shorter header fields"
            else:
                reason = _PYTHON_VALUE.split(str(error), maxsplit=1)[0]
                message = f"this is not a valid HTTP/1.1 request: {reason[:200]}"
            raise _RequestRefused("protocol", HTTPError(status, message)) from None

    async def _read_head(self, is_first: bool) -> h11.Request | None:
        """Read the head of the next request; return None if there is none."""
        timeout = limits.HEAD_TIMEOUT_S if is_first else limits.IDLE_TIMEOUT_S
        begun = bool(self._http.trailing_data[0])
        if begun:
            timeout = limits.HEAD_TIMEOUT_S
        self._on_waiting(True)
        event: Any = h11.NEED_DATA
        with trio.move_on_after(timeout) as scope:
            while (event := self._next_event()) is h11.NEED_DATA:
                # Receive no more than the limit: h11 checks it only while a head is incomplete.
                room = limits.HEAD_LIMIT + 1 - len(self._http.trailing_data[0])
                data = await self._receive(max(room, 1))
                if data and not begun:
                    begun = True
                    if not is_first:
                        scope.deadline = trio.current_time() + limits.HEAD_TIMEOUT_S
                self._http.receive_data(data)
        if scope.cancelled_caught:
            if not begun:
                if is_first:
                    self._count("timeout", "nothing was received within the time for a head")
                return None
            seconds = f"{limits.HEAD_TIMEOUT_S:.0f} s"
            raise _RequestRefused(
                "timeout", HTTPError(408, f"the head was not complete within {seconds}; send it at once")
            )
        return event if isinstance(event, h11.Request) else None  # or ConnectionClosed

    async def _read_body(self, limit: int, declared: int) -> bytes:
        """Read the complete body. `declared`: its Content-Length, or 0."""
        if declared > limit:
            raise self._too_large(limit)
        body = bytearray()
        pieces = small = 0
        with trio.move_on_after(limits.BODY_TIMEOUT_S) as scope:
            while True:
                event = self._next_event()
                if event is h11.NEED_DATA:
                    if self._http.they_are_waiting_for_100_continue:
                        await self._send(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
                    self._http.receive_data(await self._receive(limits.PIECE_SIZE))
                    continue
                if not isinstance(event, h11.Data):  # EndOfMessage
                    return bytes(body)
                size = len(event.data)
                small += size < limits.SMALL_CHUNK
                if len(body) + size > limit:
                    raise self._too_large(limit)
                if small > limits.SMALL_CHUNKS_LIMIT:
                    raise _RequestRefused(
                        "too_large", HTTPError(413, "the body consists of too many small chunks; send larger ones")
                    )
                self._reserve(size)
                body += event.data
                pieces += 1
                if pieces % limits.PARSED_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        seconds = f"{limits.BODY_TIMEOUT_S:.0f} s"
        raise _RequestRefused("timeout", HTTPError(408, f"the body was not complete within {seconds}; send it at once"))

    @staticmethod
    def _too_large(limit: int) -> _RequestRefused:
        message = f"the body is larger than {limit >> 20} MiB, which is the limit" if limit else "send no body here"
        return _RequestRefused("too_large", HTTPError(413, message))

    async def _read_request(self, head: h11.Request) -> Request:
        headers = _join_headers(head.headers)
        if head.http_version not in (b"1.1", b"1.0"):
            version = head.http_version.decode("ascii")
            raise _RequestRefused("protocol", HTTPError(505, f"HTTP/{version} is not served; use HTTP/1.1"))
        if "transfer-encoding" in headers and "content-length" in headers:  # RFC 9112 section 6.3: may be smuggling
            message = "there are both Transfer-Encoding and Content-Length; send one of them"
            raise _RequestRefused("protocol", HTTPError(400, message))
        try:
            path, query, authority = split_target(head.target)
        except HTTPError as error:
            raise _RequestRefused("protocol", error) from None
        self._check_host(authority if authority is not None else headers.get("host"))
        method = head.method.decode("ascii")
        self._is_head = method == "HEAD"
        declared = int(headers.get("content-length", "0"))
        body = b""
        if declared or "transfer-encoding" in headers:  # otherwise the application itself refuses, and the client stays
            try:
                limit = self.listener_state.application.body_limit(method, path, self.peer)
            except HTTPError as error:
                raise _RequestRefused("", error) from None
            body = await self._read_body(limit, declared)
        else:
            self._next_event()  # EndOfMessage
        return Request(method, path, query, headers, body, self.peer)

    def _check_host(self, host: str | None) -> None:
        """Refuse a request whose `Host` field names another host.

        h11 has checked that an HTTP/1.1 request has exactly one `Host`. An HTTP/1.0 request may have none, but no
        browser sends such a request.
        """
        if self.listener_state.hosts is None or host is None:
            return
        try:
            is_own = self.listener_state.hosts.allows(host)
        except ValueError as error:
            raise _RequestRefused("protocol", HTTPError(400, str(error))) from None
        if not is_own:
            message = f'"{host[:200]}" does not name this host; use its IP address, its host name, or "localhost"'
            raise _RequestRefused("host", HTTPError(421, message))

    # ---- answering

    async def _answer(self, event: h11.Request) -> None:
        request = await self._read_request(event)
        self._on_waiting(False)
        response: Response | Stream | Switch
        try:
            response = await self.listener_state.application(request)
        except HTTPError as error:
            response = error_response(error)
        except Exception as error:
            response = self._defect(request, error)
        except BaseExceptionGroup as group:  # the connection was cancelled, and the handler failed during that
            defects, rest = group.split(Exception)
            if defects is not None:
                self._defect(request, defects)
            if rest is not None:
                raise rest from None
            raise
        self._release()
        if isinstance(response, Response):
            self._on_waiting(True)
            await self._respond(response, is_head=request.method == "HEAD")
        elif isinstance(response, Switch):
            await self._switch(request, response)
        elif request.method == "HEAD":
            head_only = self._head(200, response.media_type, (), close=False)
            await self._send(head_only + (self._http.send(h11.EndOfMessage()) or b""))
        else:
            await self._stream(request, response)

    def _defect(self, request: Request, error: BaseException) -> Response:
        self._count("handler", f"{request.method} {request.path}: {describe(error)}")
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        cause = f"{type(error).__name__}: {error}"
        return json_response({"error": f"the supervisor failed over this request ({cause}); see its output"}, 500)

    async def _respond(self, response: Response, *, is_head: bool = False, close: bool = False) -> None:
        body = response.body
        if len(body) > limits.PIECE_SIZE and not is_head:
            self._reserve(len(body))
        fields = [("content-length", str(len(body)))]
        data = self._head(response.status, response.media_type, [*fields, *response.headers.items()], close)
        if not is_head and body:
            data += self._http.send(h11.Data(data=body[: limits.PIECE_SIZE])) or b""
            for start in range(limits.PIECE_SIZE, len(body), limits.PIECE_SIZE):
                await self._send(data)
                data = self._http.send(h11.Data(data=body[start : start + limits.PIECE_SIZE])) or b""
        data += self._http.send(h11.EndOfMessage()) or b""
        await self._send(data)

    async def _respond_early(self, error: HTTPError) -> None:
        """Send an error response to a request that is invalid, or that was not read to its end."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        try:
            await self._respond(error_response(error), is_head=self._is_head, close=True)
        except _ConnectionEnded as ended:
            if ended.kind != "disconnect":  # the error itself has been counted
                self._count(ended.kind, ended.text)
            return
        await self._linger()

    def _head(self, status: int, media_type: str, fields: Iterable[tuple[str, str]], close: bool) -> bytes:
        headers = [("content-type", media_type), ("date", _http_date(math.floor(time.time()))), *fields]
        if close:
            headers.append(("connection", "close"))
        reason = HTTPStatus(status).phrase
        return self._http.send(h11.Response(status_code=status, headers=headers, reason=reason)) or b""

    async def _stream(self, request: Request, response: Stream) -> None:
        """Send pieces as they come. If the client disconnects, close the source; this is not an error."""
        try:
            with response.source as pieces, self.listener_state.hangups.watch(self.stream) as scope:
                await self._send(self._head(200, response.media_type, (), close=False), limits.STREAM_WRITE_TIMEOUT_S)
                async for piece in pieces:
                    if len(piece) > limits.PIECE_SIZE:
                        self._reserve(len(piece))
                    for start in range(0, len(piece), limits.PIECE_SIZE):
                        part = h11.Data(data=piece[start : start + limits.PIECE_SIZE])
                        await self._send(self._http.send(part) or b"", limits.STREAM_WRITE_TIMEOUT_S)
                    self._release()
        except _ConnectionEnded as ended:
            raise _ConnectionEnded("" if ended.kind == "disconnect" else ended.kind, ended.text) from None
        except Exception as error:
            refused = self._defect(request, error)
            if self._http.our_state is h11.SEND_RESPONSE:
                await self._respond(refused)
                return
            # A response that has begun can only be cut off, so that the client does not take it for complete.
            raise _ConnectionEnded("", "") from None
        if scope.cancelled_caught:
            raise _ConnectionEnded("", "the client has disconnected")
        await self._send(self._http.send(h11.EndOfMessage()) or b"")

    async def _switch(self, request: Request, response: Switch) -> None:
        """Let another protocol use the connection, which ends with it."""
        fields = [("upgrade", response.protocol), ("connection", "upgrade")]
        with self.listener_state.hangups.watch(self.stream):
            await self._send(self._http.send(h11.InformationalResponse(status_code=101, headers=fields)))
            channel = _Channel(self, self._http.trailing_data[0])
            try:
                await response.converse(channel)
            except ChannelClosed:
                pass
            except Exception as error:
                self._defect(request, error)
            if channel.ended is not None and channel.ended.kind != "disconnect":
                raise channel.ended
        raise _ConnectionEnded("", "the conversation has ended")

    async def _send(self, data: bytes | None, limit_s: float = limits.WRITE_TIMEOUT_S) -> None:
        if not data:
            return
        with trio.move_on_after(limit_s) as scope:
            try:
                await self.stream.send_all(data)
            except _CONNECTION_LOST:
                raise _ConnectionEnded("disconnect", "the client was gone before the response was complete") from None
        if scope.cancelled_caught:
            raise _ConnectionEnded("timeout", f"the client did not read the response for {limit_s:.0f} s")

    async def _linger(self) -> None:
        """Read and discard what the client still sends, so that it gets the response and not a reset."""
        if not isinstance(self.stream, trio.abc.HalfCloseableStream):
            return
        self._on_waiting(True)
        with trio.move_on_after(limits.LINGER_TIMEOUT_S):
            try:
                await self.stream.send_eof()
                left = limits.LINGER_LIMIT
                while left > 0 and (data := await self.stream.receive_some(limits.PIECE_SIZE)):
                    left -= len(data)
            except _CONNECTION_LOST:
                pass


class _Channel:
    """The channel of `Switch.converse`. `first`: bytes that came with the request."""

    def __init__(self, connection: Connection, first: bytes) -> None:
        self.ended: _ConnectionEnded | None = None
        """Why it is closed."""
        self._connection = connection
        self._first = first

    async def receive(self) -> bytes:
        if first := self._first:
            self._first = b""
            return first
        try:
            return await self._connection._receive(limits.PIECE_SIZE)
        except _ConnectionEnded as ended:
            self.ended = ended
            raise ChannelClosed from None

    async def send(self, data: bytes) -> None:
        try:
            await self._connection._send(data, limits.STREAM_WRITE_TIMEOUT_S)
        except _ConnectionEnded as ended:
            self.ended = ended
            raise ChannelClosed from None


def _join_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


@lru_cache(maxsize=1)
def _http_date(now: int) -> str:
    """Format a time in seconds since 1970 as an HTTP date (RFC 9110 section 5.6.7), whatever the locale."""
    utc = time.gmtime(now)
    day, month = _DAYS[utc.tm_wday], _MONTHS[utc.tm_mon - 1]
    return f"{day}, {utc.tm_mday:02} {month} {utc.tm_year:04} {utc.tm_hour:02}:{utc.tm_min:02}:{utc.tm_sec:02} GMT"
