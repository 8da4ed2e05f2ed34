"""A client of a supervisor's control API that uses only the standard library, no code of the measured product."""

import http.client
import json
import socket
import time
from typing import Any

from benchmarks.peers.nsupervisor import Nsupervisor
from benchmarks.session import RunError, Session


class UnixConnection(http.client.HTTPConnection):
    """A keep-alive connection to a Unix socket."""

    def __init__(self, path: str, timeout: float = 30.0) -> None:
        """`path`: the socket. `timeout`: seconds for each operation on it."""
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the Unix socket. Raises OSError."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def get(connection: http.client.HTTPConnection, target: str) -> bytes:
    """Return the body of the answer to one GET. Raises RunError unless it is 200, OSError, HTTPException."""
    connection.request("GET", target)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise RunError(f"GET {target} was answered with {answer.status}: {body[:200]!r}")
    return body


def status(path: str) -> list[dict[str, Any]]:
    """Return one object per instance, over a new connection. Raises as `get`."""
    connection = UnixConnection(path)
    try:
        found: list[dict[str, Any]] = json.loads(get(connection, "/v1/status"))
        return found
    finally:
        connection.close()


def wait_answer(session: Session) -> None:
    """Wait until the supervisor answers, if none of its services would report a start. Raises RunError."""
    assert isinstance(session.peer, Nsupervisor)
    for _ in range(600):
        try:
            status(session.peer.socket)
            return
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
    raise RunError(f"no answer within 30 s{session.said()}")


def command(path: str, verb: str, name: str) -> None:
    """Do `verb` ("start", "stop") to one instance, and wait until it is done. Raises RunError, OSError and
    http.client.HTTPException."""
    connection = UnixConnection(path)
    try:
        connection.request(
            "POST", f"/v1/workloads/{verb}", json.dumps({"names": [name]}), {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status != 200 or not json.loads(body)[0]["ok"]:
        raise RunError(f"{verb} {name} was answered with {answer.status}: {body[:200]!r}")
