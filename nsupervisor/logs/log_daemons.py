"""Send the stream to the host's log daemon: as journald entries, or as syslog messages (RFC 5424).

Both accept datagrams on a Unix socket. One record is one datagram, or a message on a stream socket. A daemon that is
gone is reconnected, and a slow one is waited for, as with any other output.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Mapping
from typing import Any

from nsupervisor.json_codec import decode, encode
from nsupervisor.logs.record import timestamp_now

JOURNALD_SOCKET = "/run/systemd/journal/socket"
PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""The severities of syslog (RFC 5424, table 2)."""
_DAEMON_FACILITY = 3 << 3  # syslog's facility for system daemons
_MAX_RECORDS = 50
"""The number of records sent before other tasks run: some milliseconds."""
_MAX_MESSAGE = 8192
"""The size in bytes to which a message is cut that is too large: any daemon accepts it (rsyslog's default limit)."""


class DaemonSocket:
    """An output for a Sink, like `Target`. Accepts one record a write."""

    is_blocking = False
    is_terminal = False
    yields_after_write = True

    def __init__(self, path: str) -> None:
        self.path = path
        self._socket: socket.socket | None = None

    @property
    def fd(self) -> int:
        """The descriptor of the socket; -1 while it is not connected."""
        return -1 if self._socket is None else self._socket.fileno()

    def write(self, data: bytes | memoryview) -> int:
        """Send some of the records in `data`; return how many bytes they are. Raises like `Target.write`."""
        taken = self._write_one(data)
        try:
            for _ in range(_MAX_RECORDS):
                if taken == len(data):
                    break
                taken += self._write_one(data[taken:])
        except OSError:
            pass  # the next call meets the error again, before it sends anything
        return taken

    def _write_one(self, data: bytes | memoryview) -> int:
        head = bytes(data[:_MAX_MESSAGE])
        end = head.find(b"\n") + 1
        line = head[: end - 1] if end else bytes(data).partition(b"\n")[0]
        if self._socket is None:
            self._socket = self._connect()
        try:
            self._send(self._socket, self._message(line))
        except BlockingIOError:
            raise
        except OSError:
            self.close()
            raise
        return end or len(line) + 1

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self) -> socket.socket:
        for socket_type in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            candidate = socket.socket(socket.AF_UNIX, socket_type | socket.SOCK_NONBLOCK)
            try:
                candidate.connect(self.path)
                return candidate
            except OSError as error:
                candidate.close()
                if error.errno != errno.EPROTOTYPE:
                    raise
        raise OSError(errno.EPROTOTYPE, "is neither a datagram nor a stream socket", self.path)

    def _message(self, line: bytes) -> bytes:
        """Convert a line of the stream; one that cannot be converted becomes a message with the line as its text.

        All workloads share this output, so nothing that one of them writes may raise here.
        """
        try:
            return self._convert(decode(line))
        except Exception:
            text = line.decode("utf-8", "replace")
            fields = {"timestamp": timestamp_now(), "level": "error", "event": "record", "message": text}
            return self._convert(fields)

    def _convert(self, record: Mapping[str, Any]) -> bytes:
        """Convert a record to the daemon's protocol."""
        raise NotImplementedError

    def _send(self, connection: socket.socket, message: bytes) -> None:
        raise NotImplementedError


class Journald(DaemonSocket):
    """systemd-journald, by its native protocol (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/).

    An entry has MESSAGE, PRIORITY, SYSLOG_IDENTIFIER (the workload) and each field of the record as NSUPERVISOR_FIELD;
    values other than text are JSON.
    """

    def __init__(self, path: str = JOURNALD_SOCKET) -> None:
        super().__init__(path)

    def _convert(self, record: Mapping[str, Any]) -> bytes:
        return journal_entry(record)

    def _send(self, connection: socket.socket, entry: bytes) -> None:
        try:
            connection.send(entry)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            fd = os.memfd_create("record", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.write(fd, entry)
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0xF)  # makes it immutable: all four of F_SEAL_*
                connection.sendmsg([b""], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
            finally:
                os.close(fd)


def journal_entry(record: Mapping[str, Any]) -> bytes:
    """Convert a record to an entry of journald's protocol."""
    text = _message_text(record)
    parts = [
        _field(b"MESSAGE", text.encode()),
        _field(b"PRIORITY", b"%d" % PRIORITIES[record["level"]]),
        _field(b"SYSLOG_IDENTIFIER", str(record.get("workload", "nsupervisor")).encode()),
    ]
    for key, value in record.items():
        if key in ("message", "level"):
            continue
        name = b"NSUPERVISOR_" + "".join(c if c.isascii() and c.isalnum() else "_" for c in key.upper()).encode()
        parts.append(_field(name[:64], value.encode() if isinstance(value, str) else encode(value)))
    return b"".join(parts)


def _field(name: bytes, value: bytes) -> bytes:
    if b"\n" in value:
        return name + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
    return name + b"=" + value + b"\n"


class Syslog(DaemonSocket):
    """A syslog daemon, by RFC 5424; on a stream socket with octet counting (RFC 6587)."""

    def _convert(self, record: Mapping[str, Any]) -> bytes:
        return syslog_message(record, _HOSTNAME)

    def _send(self, connection: socket.socket, message: bytes) -> None:
        if connection.type == socket.SOCK_STREAM:
            message = b"%d %s" % (len(message), message)
            sent = connection.send(message)
            if sent < len(message):  # send the rest now: an incomplete message would break all that follow
                connection.setblocking(True)
                connection.settimeout(1)
                try:
                    connection.sendall(message[sent:])
                finally:
                    connection.setblocking(False)
            return
        try:
            connection.send(message)
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            connection.send(message[:_MAX_MESSAGE])


_HOSTNAME = socket.gethostname()


def syslog_message(record: Mapping[str, Any], host: str) -> bytes:
    """Convert a record to a syslog message.

    The workload becomes the APP-NAME, the event the MSGID, simple fields the STRUCTURED-DATA, and the text, or else the
    record itself, the MSG.
    """
    app = str(record.get("workload", "nsupervisor"))[:48]
    event = "".join(c if 33 <= ord(c) < 127 else "_" for c in str(record["event"]))[:32] or "-"
    data = "".join(
        f' {key}="{_escape(str(record[key]))}"'
        for key in ("generation", "instance", "stream", "seq", "partial", "duplicate")
        if key in record
    )
    # 32473 is the enterprise number for examples and for software without a number of its own (RFC 5612).
    structured = f"[nsupervisor@32473{data}]" if data else "-"
    head = f"<{_DAEMON_FACILITY | PRIORITIES[record['level']]}>1 {record['timestamp']} {host} {app}"
    return f"{head} {record.get('pid') or '-'} {event} {structured} ".encode() + _message_text(record).encode()


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("]", "\\]")


def _message_text(record: Mapping[str, Any]) -> str:
    """Return the text for people; for a record without one, the whole record as JSON."""
    if record["event"] == "output" and "fields" in record:
        return encode(record["fields"]).decode()
    if "message" in record:
        return str(record["message"])
    remaining = {key: value for key, value in record.items() if key not in ("timestamp", "level")}
    return encode(remaining).decode()
