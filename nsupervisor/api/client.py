"""The client of a supervisor's API on a Unix socket. Standard library only, and as little of it as possible.

It does not use `http.client`, which imports the email package and ssl: that takes longer (28 ms) than Python itself
(20 ms) and would be the largest part of `nsupervisor status`. HTTP/1.0 with a JSON body takes a page of code.
"""

from __future__ import annotations

import json
import os

TYPE_CHECKING = False  # importing typing for its constant takes time
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Iterator
    from typing import Any

DEFAULT_SOCKET = "/run/nsupervisor/api.sock"
TIMEOUT_S = 10.0
"""Seconds to wait for a response that a supervisor gives at once. Commands to workloads have no time limit."""


class ClientError(Exception):
    """There was no response, or the supervisor refused the request. `exit_status`: that of the command line."""

    exit_status = 1


class WrongRequestError(ClientError):
    """The supervisor does not know the name, or the request is not valid (HTTP 4xx)."""

    exit_status = 2


class WrongFileError(WrongRequestError):
    """The configuration file has problems; `answer` is the object `Problems` of `nsupervisor schema api`."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(answer["error"])
        self.answer = answer


class NoSupervisorError(ClientError):
    """No supervisor answers on the socket."""

    exit_status = 3


class NotPermittedError(ClientError):
    """The socket may not be opened, or the supervisor refuses this to this user."""

    exit_status = 4


class Client:
    """The client of the supervisor on a socket. Each call opens one connection. All methods raise ClientError."""

    def __init__(self, socket_path: str = DEFAULT_SOCKET) -> None:
        self.socket_path = socket_path

    def info(self) -> dict[str, Any]:
        """Return facts about the supervisor: the object `Info` of `nsupervisor schema api`."""
        info: dict[str, Any] = self._call("GET", "/v1/info")
        return info

    def status(self, names: Iterable[str] = ()) -> list[dict[str, Any]]:
        """Return all instances, or those that names and globs match: objects `Status` of `nsupervisor schema api`."""
        instances: list[dict[str, Any]] = self._call("GET", _target("/v1/status", name=names))
        return instances

    def groups(self, names: Iterable[str] = ()) -> list[dict[str, Any]]:
        """Return all groups, or those that names ("group/batch") and globs match: objects `Group` of the schema."""
        groups: list[dict[str, Any]] = self._call("GET", _target("/v1/groups", name=names))
        return groups

    def timers(self, names: Iterable[str] = ()) -> list[dict[str, Any]]:
        """Return all timers, or those of workloads that names and globs match: objects `Timer` of the schema."""
        timers: list[dict[str, Any]] = self._call("GET", _target("/v1/timers", name=names))
        return timers

    def stats(self, names: Iterable[str] = ()) -> list[dict[str, Any]]:
        """Return what instances have used so far: objects `Stats` of `nsupervisor schema api`."""
        stats: list[dict[str, Any]] = self._call("GET", _target("/v1/stats", name=names))
        return stats

    def history(self, name: str) -> list[dict[str, Any]]:
        """Return the instances that a name or glob matches, with the records about them: objects `History`."""
        histories: list[dict[str, Any]] = self._call("GET", f"/v1/history/{_quote(name)}")
        return histories

    def events(
        self, names: Iterable[str] = (), events: Iterable[str] = (), follow: bool = False, mark: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Yield the stored records about instances; with `follow` also each new record, until the service ends.

        mark: the object {"event": "new"} comes after the stored records.
        """
        flags = {key: "1" for key, is_set in (("follow", follow), ("mark", mark)) if is_set}
        target = _target("/v1/events", name=names, event=events, **flags)
        return self._objects(_request("GET", target), None if follow else TIMEOUT_S)

    def logs(self, names: Iterable[str] = (), lines: int | None = None, follow: bool = False) -> Iterator[bytes]:
        """Yield the latest output of instances without a log file: records as JSON lines, without their newlines.

        lines: at most this number of each instance; None: all that are kept. With `follow` comes then the line
        {"event":"new"}, and new output as it is written, until the service ends.
        """
        shown = () if lines is None else (str(lines),)
        target = _target("/v1/logs", name=names, lines=shown, follow="1" if follow else ())
        return self._lines(_request("GET", target), None if follow else TIMEOUT_S)

    def trace(
        self,
        names: Iterable[str] = (),
        interval: float = 0.25,
        seconds: float | None = None,
        max_bytes: int | None = None,
    ) -> Iterator[bytes]:
        """Yield the lines of a trace as they come, without their newlines; see `nsupervisor schema api`."""
        bounds = {
            "seconds": () if seconds is None else (str(seconds),),
            "bytes": () if max_bytes is None else (str(max_bytes),),
        }
        target = _target("/v1/trace", name=names, interval=(str(interval),), **bounds)
        return self._lines(_request("GET", target), None)

    def plan(self, source: dict[str, Any]) -> dict[str, Any]:
        """Return what a reload of a file would do: the object `Plan`. `source`: an object `Source` of the schema."""
        plan: dict[str, Any] = self._call("POST", "/v1/plan", source)
        return plan

    def reload(self, source: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Reload the configuration from a file, and yield each step as it is done.

        The reload continues if the iterator is not read to its end.
        """
        return self._objects(_request("POST", "/v1/reload", source), None)

    def scale(self, counts: dict[str, int]) -> Iterator[dict[str, Any]]:
        """Run other numbers of instances, by workload, and yield each step as `reload` does."""
        return self._objects(_request("POST", "/v1/scale", {"instances": counts}), None)

    def _objects(self, request: bytes, timeout: float | None) -> Iterator[dict[str, Any]]:
        """Yield the objects of a response with one per line, as they come."""
        for line in self._lines(request, timeout):
            try:
                value: dict[str, Any] = json.loads(line)
            except ValueError:
                raise self._not_supervisor() from None
            yield value

    def _lines(self, request: bytes, timeout: float | None) -> Iterator[bytes]:
        """Yield the lines of a response, as they come."""
        pieces = self._exchange(request, timeout)
        head = b""
        for piece in pieces:
            head += piece
            if b"\r\n\r\n" in head:
                break
        if not head.startswith(b"HTTP/1.1 200 "):
            self._interpret(head + b"".join(pieces))  # raises the error
            raise self._not_supervisor()
        rest = head.partition(b"\r\n\r\n")[2]
        while True:
            *lines, rest = rest.split(b"\n")
            yield from lines
            piece = next(pieces, b"")
            if not piece:
                break
            rest += piece
        if rest:
            raise self._truncated()

    def command(self, verb: str, names: Iterable[str], **parameters: Any) -> list[dict[str, Any]]:
        """Do something to the instances and wait until it is done: objects `Result` of `nsupervisor schema api`."""
        body = {"names": list(names), **parameters}
        results: list[dict[str, Any]] = self._call("POST", f"/v1/workloads/{_quote(verb)}", body)
        return results

    def upgrade(self, python: str, package: str, timeout: float) -> dict[str, Any]:
        """Upgrade the supervisor to the version in the folder `package`: the object `Upgraded` of the schema.

        `python` is the interpreter that runs it, `timeout` the seconds it may take to start.
        """
        answer: dict[str, Any] = self._call(
            "POST", "/v1/upgrade", {"python": python, "package": package, "timeout": timeout}
        )
        return answer

    def exec(self, name: str, command: dict[str, Any]) -> tuple[socket.socket, bytes]:
        """Execute a command in an instance: an object `Exec` of `nsupervisor schema api`.

        Returns the connection, which carries frames (`nsupervisor.api.exec_frames`), and the bytes of it that came with
        the response. It has no timeout. Raises ClientError.
        """
        from nsupervisor.api.exec_frames import PROTOCOL

        content = json.dumps(command).encode()
        fields = f"Connection: upgrade\r\nUpgrade: {PROTOCOL}\r\nContent-Length: {len(content)}\r\n"
        head = f"POST /v1/exec/{_quote(name)} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n"
        connection = self._connect()
        try:
            connection.settimeout(TIMEOUT_S)
            try:
                connection.sendall(head.encode() + content)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it has responded without reading everything
            response = b""
            while b"\r\n\r\n" not in response and (piece := connection.recv(65536)):
                response += piece
            if response.startswith(b"HTTP/1.1 101 "):
                connection.settimeout(None)
                return connection, response.partition(b"\r\n\r\n")[2]
            connection.shutdown(1)  # SHUT_WR: the service closes when it has answered
            while piece := connection.recv(65536):
                response += piece
        except TimeoutError:
            connection.close()
            raise self._timed_out() from None
        except ConnectionResetError:
            connection.close()
            raise self._truncated() from None
        except BaseException:
            connection.close()
            raise
        connection.close()
        self._interpret(response)  # raises the error
        raise self._not_supervisor()

    def _call(self, method: str, target: str, body: Any = None) -> Any:
        pieces = self._exchange(_request(method, target, body), TIMEOUT_S if body is None else None)
        return self._interpret(b"".join(pieces))

    def _interpret(self, response: bytes) -> Any:
        status, answer = self._parse(response)
        if status == 200:
            return answer
        message = answer.get("error") if isinstance(answer, dict) else None
        if isinstance(answer, dict) and "problems" in answer:
            raise WrongFileError(answer)
        text = message or f"the supervisor on {self.socket_path} answers with HTTP status {status}"
        is_wrong = 400 <= status < 500 and status != 409
        kind = NotPermittedError if status == 403 else WrongRequestError if is_wrong else ClientError
        raise kind(text)

    def _connect(self) -> socket.socket:
        import socket  # here, because commands that do not connect import this module for its errors
        from struct import pack

        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # A full queue of connections makes a non-blocking connect fail at once (EAGAIN, connect(2)), and Python's
        # own timeout makes the socket non-blocking. With the kernel's timeout, connect waits for room in the queue.
        seconds = int(TIMEOUT_S)
        timeout = pack("ll", seconds, int((TIMEOUT_S - seconds) * 1e6))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        try:
            connection.connect(self.socket_path)
        except BaseException as error:
            connection.close()
            if isinstance(error, BlockingIOError):
                raise self._timed_out() from None
            if isinstance(error, OSError):
                raise self._unreachable(error) from None
            raise
        return connection

    def _exchange(self, request: bytes, timeout: float | None) -> Iterator[bytes]:
        """Send the request and yield the pieces of the response. timeout: seconds for each piece; None: no limit."""
        with self._connect() as connection:
            connection.settimeout(TIMEOUT_S)
            is_sent = True
            try:
                try:
                    connection.sendall(request)
                except (BrokenPipeError, ConnectionResetError):
                    is_sent = False  # it has responded without reading everything, or has ended: the response shows it
                connection.settimeout(timeout)
                while chunk := connection.recv(65536):
                    yield chunk
            except TimeoutError:
                raise self._timed_out() from None
            except ConnectionResetError:
                if is_sent:  # otherwise the unread request caused the reset, and the response is complete
                    raise self._truncated() from None

    def _parse(self, response: bytes) -> tuple[int, Any]:
        """Parse an HTTP response (RFC 9112) into its status and the value of its JSON body; None if it is not JSON."""
        head, complete, body = response.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        if not status_line.startswith("HTTP/1."[: len(status_line)]):
            raise self._not_supervisor()
        if not complete:
            raise self._truncated()
        if not status_line[9:12].isdigit():
            raise self._not_supervisor()
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.get("content-length", str(len(body))) != str(len(body)):
            raise self._truncated()
        status = int(status_line[9:12])
        try:
            return status, json.loads(body)
        except ValueError:
            if status == 200:
                raise self._not_supervisor() from None
            return status, None

    def _unreachable(self, error: OSError) -> ClientError:
        if isinstance(error, PermissionError):
            return NotPermittedError(
                f"user {os.geteuid()} may not use {self.socket_path}; "
                "run as the supervisor's user, for instance with sudo"
            )
        workload = os.environ.get("NSUPERVISOR_WORKLOAD")
        if workload and "NSUPERVISOR_SOCKET" not in os.environ and isinstance(error, FileNotFoundError):
            return NoSupervisorError(
                f"this is workload {workload}, which may not use the supervisor ({self.socket_path} is not here); "
                "name what it may control in its `may_control`, and restart it"
            )
        if isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
            return NoSupervisorError(
                f"no supervisor answers on {self.socket_path}; start one with: nsupervisor run CONFIG, "
                "or say which with --socket PATH"
            )
        return NoSupervisorError(
            f"cannot connect to {self.socket_path}: {error.strerror or error}; say where with --socket PATH"
        )

    def _not_supervisor(self) -> ClientError:
        return NoSupervisorError(
            f"what answers on {self.socket_path} is not a supervisor; say which is with --socket PATH"
        )

    def _timed_out(self) -> ClientError:
        return NoSupervisorError(
            f"the supervisor on {self.socket_path} has not answered for {TIMEOUT_S:.0f} s; "
            "see whether it is stopped (ps -o stat) or overloaded"
        )

    def _truncated(self) -> ClientError:
        return NoSupervisorError(f"the supervisor on {self.socket_path} ended before it had answered; see its output")


def _request(method: str, target: str, body: Any = None) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {target} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def _target(path: str, **query: Iterable[str]) -> str:
    """Build a path with a query; each value of a key becomes a field of its own."""
    pairs = "&".join(f"{key}={_quote(value)}" for key, values in query.items() for value in values)
    return f"{path}?{pairs}" if pairs else path


def _quote(text: str) -> str:
    """Percent-encode all but letters, digits and "-._~", RFC 3986. Importing urllib.parse would take time."""
    return "".join(
        chr(byte) if byte < 128 and (chr(byte).isalnum() or byte in b"-._~") else f"%{byte:02X}"
        for byte in text.encode("utf-8", "surrogateescape")
    )
