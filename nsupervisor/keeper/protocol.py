"""The protocol of keeper and client: JSON objects as datagrams of a SOCK_SEQPACKET socket, with descriptors.

Every message has "v": 1. A body of more than 64 KiB is sent in a memfd, and the datagram is {"v": 1, "memfd": true}.

    client → keeper   {"request": N, "do": "spawn" | "enter" | "adopt" | "signal" | "acknowledge" | "list" | "execute" |
                      "main" | "hold" | "release" | "held" | "kept" | "protect" | "listen" | "filter" | "shutdown", …}
                      {"do": "batch", "requests": [{"request": N, …}, …]} several requests "signal", "acknowledge" and
                                                                          "spawn", without descriptors
    keeper → client   {"event": "hello", "pid", "features", "held", "kept"}  first, on every connection
                      {"event": "held", "reply": N, "key"} and it         for each one, before the reply to "held"
                      {"event": "kept", "reply": N, "id", …}              for each one, before the reply to "kept"
                      {"event": "execed", "id", "pid"}
                      {"event": "ended", "id", "status", "failure"}       on each connection until acknowledged
                      {"event": "entered", "id", "pid"}
                      {"event": "left", "id", "status", "failure"}        once, to the client that sent "enter"
                      {"event": "child", "reply": N, …} and descriptors   for each child, before the reply to "list";
                                                                          "ids": only these, "bare": no descriptors
                      {"reply": N, …}                                     to "spawn" with descriptors
                      {"reply": N, "error": {"step", "message", "errno"}}
                      {"replies": [{"reply": N, …, "fds"}, …]}            to "batch", with the descriptors of all in
                                                                          order; "fds" says how many each has
                      {"reply": null, "error": …}                         to an unreadable message

The descriptors of a child are the read ends of stdout and stderr, and its notify socket if it has one. The notify
socket is sent with "spawn", so that notifications sent while no supervisor runs wait for the next one. "adopt" is sent
with the program's pidfd, followed by the same descriptors. "protect" names the "cgroups" (strings "CONTROLLERS:PATH",
see linux/peers.py) whose processes may not connect. "listen" is sent with a listening socket and, if it was removed as
well, a locked lock file: the keeper uses them in place of its own. Both sides use this module; standard library only.

The two sides may have different versions, as each is upgraded separately. All keys and values are wire names, which
never change. Both sides ignore unknown keys, and the client ignores unknown events. A "spec" is the exception: the
keeper refuses an unknown key, as a program must not start with less isolation than requested. So "features" lists what
version 0.1.0, which sends no such list, does not have: the requests "protect" and "listen"; the keys
"cover" and "process_tree" (the feature "process-tree") of a "spec"; and, with the feature "batch", that request, and
the key "signums" of "signal", a list in place of "signum". With the feature "security": the request "filter", which
sends a seccomp filter (the key "program", base64) under a "name" for later specifications of the same connection; and
in a "spec" the keys "filters" (names), "capability_bounding_set", "ambient_capabilities", "secure_bits" (bit masks),
"oom_score_adjust", "io_priority" (as ioprio_set(2) takes it), "cpu_scheduling" (policy, priority), "timer_slack", and
"sandbox" (setup/sandbox.py). With the feature "enter": that request, which starts the "spec" in the namespaces of the
child "into". (With the feature "join": in a "spec" the key "joins", by kind the namespaces to join. Their descriptors
are sent with "spawn", before the notify socket.) "enter" is sent with its standard streams, which are a new terminal if
"terminal" is true. "signal" takes its id, too. With the feature "main": that request, which makes another process,
"pid" with the start time "started", the program of a child. It is sent with a pidfd of that process. With the feature
"hold": the number "held" in "hello"; the requests "hold" (a descriptor under a "key"), "release" ("keys") and "held";
and in a "spec" the key "descriptors", pairs of such a key and a name: the program gets these from descriptor 3 on, with
LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES as in sd_listen_fds(3). With the feature "batch-spawn": up to eight requests
"spawn" in a "batch", and the key "fds" of its replies. With the feature "readiness-fd": in a "spec" the key
"readiness_fd", the number of a descriptor to which the program writes a newline when it is ready. The keeper makes that
pipe. Its read end is the last descriptor of the reply to "spawn", with the key "readiness" also of "adopt", and of
"child" if "list" has it.
With the feature "keep": the number "kept" in "hello"; in "enter" the key "keep", with two more descriptors, the ends to
read of its output: the process outlives its client, and its end has to be acknowledged; and the request "kept".
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

START_CODE = (
    "import sys; sys.path.insert(0, sys.argv[1]); from nsupervisor.keeper.server import main; main(*sys.argv[2:])"
)
"""The Python code that runs a keeper. An old version executes it to become the new one, so every version must have
`nsupervisor.keeper.server.main`, and it must accept these arguments.

The arguments: the folder that contains the package; the socket's path; the limit on open files for programs,
"soft:hard"; the descriptor of the table for a keeper that has executed another version, otherwise ""; and the cgroups
of "protect" as JSON. The last two are optional."""

PYTHON_OPTIONS = ("-I", "-S", "-X", "utf8", "-c")

MAX_DATAGRAM = 64 * 1024
MAX_MESSAGE = 16 * 1024 * 1024
MAX_FDS = 16
_F_GET_SEALS = 1034
_FD_SIZE = array.array("i").itemsize
_ANCILLARY_SIZE = socket.CMSG_SPACE(MAX_FDS * _FD_SIZE)

_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().decode


class ProtocolError(Exception):
    """The other side sent something that is not a message; the text says what is wrong."""


def encode(message: dict[str, Any]) -> bytes:
    """Encode one message. Text that is not UTF-8 (surrogates, as from `os.fsdecode`) is preserved."""
    return _encode({"v": VERSION, **message}).encode()


def decode(body: bytes) -> dict[str, Any]:
    """Decode one message. Raises ProtocolError if the body is not a message."""
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
    """Send the result of `encode`. Raises OSError as sendmsg(2) does (BlockingIOError: the socket is full)."""
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


def receive(sock: socket.socket, allow_missing_fds: bool = False) -> tuple[dict[str, Any], list[int]] | None:
    """Receive the next message and its descriptors, or None if the other side has closed.

    The descriptors are close-on-exec and belong to the caller. `allow_missing_fds`: accept a message even if some of
    its descriptors did not arrive, because this process has too many open (unix(7)).

    Raises:
        ProtocolError: it was not a message; its descriptors are closed.
        OSError: as recvmsg(2) does (BlockingIOError: there is no message).
    """
    body, ancillary, flags, _ = sock.recvmsg(MAX_DATAGRAM, _ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC)
    fds = received_fds(ancillary)
    try:
        if flags & socket.MSG_TRUNC:
            raise ProtocolError("more than fits into one message")
        if flags & socket.MSG_CTRUNC and not allow_missing_fds:
            raise ProtocolError(f"cannot take the descriptors that came with it: {os.strerror(errno.EMFILE)}")
        if not body and not fds:
            return None  # an empty datagram looks the same as the end, and is never a message
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
    """Return the descriptors in the ancillary data of recvmsg(2)."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _FD_SIZE])
    return list(fds)


def close_all(fds: Sequence[int]) -> None:
    """Close all given descriptors."""
    for fd in fds:
        os.close(fd)


def _send_datagram(sock: socket.socket, body: bytes, fds: Sequence[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([body], rights)


def _read_memfd(fd: int) -> bytes:
    try:
        fcntl.fcntl(
            fd, _F_GET_SEALS
        )  # fails if it is not a memfd: reading a pipe or a FUSE file could block without limit
    except OSError:
        raise ProtocolError("a message in something that is not a memfd") from None
    size = os.fstat(fd).st_size
    if size > MAX_MESSAGE:
        raise ProtocolError(f"a message of {size} bytes; at most {MAX_MESSAGE} are allowed")
    return os.pread(fd, size, 0)
