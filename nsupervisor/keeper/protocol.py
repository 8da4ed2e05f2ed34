"""What keeper and client say to each other: JSON objects as datagrams of a SOCK_SEQPACKET socket, descriptors beside.

Every message has "v": 1. A body of more than 64 KiB travels in a memfd, and the datagram says {"v": 1, "memfd": true}.

    client → keeper   {"request": N, "do": "spawn" | "adopt" | "signal" | "acknowledge" | "list" | "execute" |
                      "protect" | "shutdown", …}
    keeper → client   {"event": "hello", "pid", "features": […]}          first, on every connection
                      {"event": "execed", "id", "pid"}
                      {"event": "ended", "id", "status", "failure"}       on each connection until acknowledged
                      {"event": "child", "reply": N, …} and descriptors   for each child, before the reply to "list";
                                                                          of some "ids" only, "bare": no descriptors
                      {"reply": N, …}                                     to "spawn" with descriptors
                      {"reply": N, "error": {"step", "message", "errno"}}
                      {"reply": null, "error": …}                     to what could not be read

Descriptors of a child are the read ends of stdout and stderr, and its notify socket where it has one: that comes with
"spawn", so that what a program says while no supervisor is there waits for the next. With "adopt" comes the program's
pidfd, then the same. "protect" names the "cgroups" (texts "CONTROLLERS:PATH", see linux/peers.py) whose processes may
not connect. Used by both sides; standard library only.

The two sides may be of different versions, as each is upgraded by itself. All keys and values are wire names, which
never change. Either side ignores keys that it does not know, and the client ignores such events. A "spec" is the
exception: an unknown key is refused, as a program must not start with less isolation than was asked for. So "features"
names what version 0.1.0 does not know, which sends no such list: the request "protect", the key "cover" of a "spec".
"""

from __future__ import annotations

import array
import errno
import fcntl
import json
import os
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

VERSION = 1
SOCKET_NAME = "keeper.sock"
LOCK_NAME = "keeper.lock"

START = "import sys; sys.path.insert(0, sys.argv[1]); from nsupervisor.keeper.server import main; main(*sys.argv[2:])"
"""What Python is to run as a keeper. The old version runs it to become the new one, so `nsupervisor.keeper.server.main`
has to be there, and to take these arguments, in every version.

The arguments: the folder that the package is in; the socket's path; the limit on open files for programs, "soft:hard";
for a keeper that goes on in place, the descriptor of its table, otherwise ""; and the cgroups of "protect" as JSON. The
last two may be left out."""

OPTIONS = ("-I", "-S", "-X", "utf8", "-c")

MAX_DATAGRAM = 64 * 1024
MAX_MESSAGE = 16 * 1024 * 1024
MAX_FDS = 16
_F_GET_SEALS = 1034
_FD_SIZE = array.array("i").itemsize
_ANCILLARY_SIZE = socket.CMSG_SPACE(MAX_FDS * _FD_SIZE)

_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().decode


class ProtocolError(Exception):
    """The other side sent something that is not a message; the text says what is wrong with it."""


def encode(message: dict[str, Any]) -> bytes:
    """The bytes of one message. Text that is not UTF-8 (surrogates, as `os.fsdecode` gives) survives the way."""
    return _encode({"v": VERSION, **message}).encode()


def decode(body: bytes) -> dict[str, Any]:
    """Read one message; raises ProtocolError for whatever isn't one."""
    try:
        message = _decode(body.decode())
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {error}") from None
    if not isinstance(message, dict):
        raise ProtocolError(f"not a JSON object but a {type(message).__name__}")
    if message.get("v") != VERSION:
        raise ProtocolError(f"version {message.get('v')!r} is not spoken here, only {VERSION}")
    return message


def send(sock: socket.socket, body: bytes, fds: Sequence[int] = ()) -> None:
    """Send what `encode` gave; raises OSError as sendmsg(2) does (BlockingIOError: later)."""
    if len(body) <= MAX_DATAGRAM:
        _send_datagram(sock, body, fds)
        return
    memfd = os.memfd_create("nsupervisor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(body)
        while view:
            view = view[os.write(memfd, view) :]
        _send_datagram(sock, encode({"memfd": True}), [memfd, *fds])
    finally:
        os.close(memfd)


def receive(sock: socket.socket, some_fds: bool = False) -> tuple[dict[str, Any], list[int]] | None:
    """The next message and its descriptors (close-on-exec; the caller's from now on), or None when the other side left.

    `some_fds`: take a message also when not all of its descriptors have arrived, because this process may not have so
    many open (unix(7)).

    Raises:
        ProtocolError: it was not a message; its descriptors are closed.
        OSError: as recvmsg(2) does (BlockingIOError: nothing there).
    """
    body, ancillary, flags, _ = sock.recvmsg(MAX_DATAGRAM, _ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC)
    fds = received_fds(ancillary)
    try:
        if flags & socket.MSG_TRUNC:
            raise ProtocolError("more than fits into one message")
        if flags & socket.MSG_CTRUNC and not some_fds:
            raise ProtocolError(f"cannot take the descriptors that came with it: {os.strerror(errno.EMFILE)}")
        if not body and not fds:
            return None  # an empty datagram looks like the end, and nobody who speaks this protocol sends one
        message = decode(body)
        if "memfd" in message:
            if not fds:
                raise ProtocolError("a message in a memfd, but no memfd")
            memfd = fds.pop(0)
            try:
                message = decode(_read_memfd(memfd))
            finally:
                os.close(memfd)
    except BaseException:
        close_all(fds)
        raise
    return message, fds


def received_fds(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors among what recvmsg(2) brought beside the data."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _FD_SIZE])
    return list(fds)


def close_all(fds: Sequence[int]) -> None:
    """Close them."""
    for fd in fds:
        os.close(fd)


def _send_datagram(sock: socket.socket, body: bytes, fds: Sequence[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([body], rights)


def _read_memfd(fd: int) -> bytes:
    try:
        fcntl.fcntl(fd, _F_GET_SEALS)  # which only a memfd answers; reading a pipe or a FUSE file could block for ever
    except OSError:
        raise ProtocolError("a message in something that is not a memfd") from None
    size = os.fstat(fd).st_size
    if size > MAX_MESSAGE:
        raise ProtocolError(f"a message of {size} bytes; {MAX_MESSAGE} are the most")
    return os.pread(fd, size, 0)
