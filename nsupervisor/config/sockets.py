"""[[workload.NAME.sockets]]: the sockets that the service listens on for a workload.

The words are systemd's, in snake_case: systemd.socket(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from attrs import field, frozen

from nsupervisor.config import kinds, units
from nsupervisor.config.kinds import Choice, Scalar, key, matching
from nsupervisor.config.quoting import alternatives, quoted
from nsupervisor.config.table import Table

SocketType = Literal["stream", "datagram", "sequential_packet"]
BindIpv6Only = Literal["default", "both", "ipv6-only"]

LISTEN_KEYS: dict[str, SocketType] = {
    "listen_stream": "stream",
    "listen_datagram": "datagram",
    "listen_sequential_packet": "sequential_packet",
}
MAX_SOCKETS = 64
"""The most sockets of one workload."""
MAX_ABSTRACT_NAME = kinds.MAX_SOCKET_PATH
_EXAMPLE = (
    'write an address such as "127.0.0.1:8000", a path such as "/run/web.sock", or "@NAME" for an abstract socket'
)


class SocketAddress(NamedTuple):
    """The address of a socket: an IP address and a port, the path of a Unix socket, or "@NAME" for an abstract one."""

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def is_unix(self) -> bool:
        """Whether it is that of a Unix socket."""
        return bool(self.path)

    @property
    def is_abstract(self) -> bool:
        """Whether it is that of a Unix socket without a file, unix(7)."""
        return self.path.startswith("@")

    @property
    def is_ipv6(self) -> bool:
        """Whether it is an IPv6 address."""
        return ":" in self.host

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for all addresses of the host."""
        return self.host == "0.0.0.0" or (self.is_ipv6 and not set(self.host) - set("0:"))  # noqa: S104


def parse_socket_address(text: str) -> SocketAddress:
    """Parse an address. Raises ValueError, whose message ends the sentence "THE VALUE …"."""
    if text[:1] in ("/", "@"):
        if len(text.encode()) > kinds.MAX_SOCKET_PATH:
            raise ValueError(f"is longer than {kinds.MAX_SOCKET_PATH} bytes, the most that a socket can have (unix(7))")
        if "\0" in text or "\n" in text or text in ("/", "@") or (text[0] == "/" and set(text.split("/")[1:]) & _DOTS):
            raise ValueError(f"is not the path of a socket; {_EXAMPLE}")
        return SocketAddress(path=text)
    if ":" not in text:
        raise ValueError(f"is not an address; {_EXAMPLE}")
    return SocketAddress(*units.parse_address(text))


_DOTS = {"", ".", ".."}


def _address(value: Any) -> str:
    if kinds.is_integer(value):
        value = f":{value}"
    if not isinstance(value, str):
        raise ValueError(f"is not an address; {_EXAMPLE}")
    parse_socket_address(value)
    return value


ADDRESS = Scalar(_address, {"type": "string", "pattern": kinds.whole_text_pattern(r"[/@].+|.+:[0-9]{1,5}")})
_FD_NAME = matching(
    r"[!-9;-~]{1,255}", "is not a name of at most 255 printable characters without blanks and colons; write another one"
)
_BURST = kinds.integer(1, 10000, 20)
_BACKLOG = kinds.integer(1, 65535, 4096)
_OWNER = matching(
    "[A-Za-z_][A-Za-z0-9_.-]{0,255}|[0-9]{1,10}", "is not a name or a number; write one that the host knows"
)


@frozen(kw_only=True, repr=False)
class SocketConfig(Table):
    """[[workload.NAME.sockets]]: a socket that stays open whatever becomes of the program, which gets it as
    descriptor 3 or above.
    """

    listen_stream: str | None = field(
        default=None, metadata=key(ADDRESS, 'a TCP or Unix stream socket: "127.0.0.1:80", "/run/web.sock", "@NAME"')
    )
    listen_datagram: str | None = field(
        default=None, metadata=key(ADDRESS, "a UDP or Unix datagram socket, by its address")
    )
    listen_sequential_packet: str | None = field(
        default=None, metadata=key(ADDRESS, "a Unix SOCK_SEQPACKET socket, by its path")
    )
    file_descriptor_name: str | None = field(
        default=None,
        metadata=key(_FD_NAME, "its name in LISTEN_FDNAMES; default: that of the workload"),
    )
    backlog: int = field(
        default=4096,
        metadata=key(_BACKLOG, "how many connections may wait; at most net.core.somaxconn", live=True),
    )
    socket_mode: int = field(
        default=0o666, metadata=key(kinds.OCTAL, "the mode of the file of a Unix socket", live=True)
    )
    socket_user: str | None = field(
        default=None, metadata=key(_OWNER, "the owner of the file of a Unix socket; default: that of the service")
    )
    socket_group: str | None = field(
        default=None, metadata=key(_OWNER, "the group of the file of a Unix socket; default: that of socket_user")
    )
    remove_on_stop: bool = field(
        default=False,
        metadata=key(kinds.BOOLEAN, "remove the file of a Unix socket when the service stops, or drops it", live=True),
    )
    bind_ipv6_only: BindIpv6Only = field(
        default="default",
        metadata=key(
            Choice.of(BindIpv6Only), 'whether "[::]:PORT" has IPv4, too: as net.ipv6.bindv6only says; yes; no'
        ),
    )
    reuse_port: bool = field(
        default=False, metadata=key(kinds.BOOLEAN, "other sockets may have the same address, socket(7) SO_REUSEPORT")
    )
    free_bind: bool = field(
        default=False, metadata=key(kinds.BOOLEAN, "the host need not have the IP address yet, ip(7) IP_FREEBIND")
    )
    trigger_limit_interval_sec: float = field(
        default=2.0,
        metadata=key(kinds.duration(), "the time in which trigger_limit_burst counts; 0: no limit", live=True),
    )
    trigger_limit_burst: int = field(
        default=20,
        metadata=key(_BURST, "after how many starts by its traffic in that time it starts nothing more", live=True),
    )

    @property
    def listen_key(self) -> str:
        """The key that has the address; "" if none has."""
        return next((name for name in LISTEN_KEYS if getattr(self, name) is not None), "")

    @property
    def type(self) -> SocketType:
        """The type of the socket."""
        return LISTEN_KEYS[self.listen_key]

    @property
    def text(self) -> str:
        """The address as it is written."""
        text: str = getattr(self, self.listen_key)
        return text

    @property
    def address(self) -> SocketAddress:
        """The address in its parts, without a name."""
        return parse_socket_address(self.text)


def socket_identity(socket: SocketConfig) -> str:
    """Return what a socket is made with: two with the same identity are the same socket."""
    options = [name for name in ("reuse_port", "free_bind") if getattr(socket, name)]
    if socket.bind_ipv6_only != "default":
        options.append(f"bind_ipv6_only={socket.bind_ipv6_only}")
    return " ".join((socket.type, socket.text, *options))


def socket_key(workload: str, socket: SocketConfig) -> str:
    """Return the key under which the keeper holds a socket; instances with the same address share one."""
    return f"{workload} {socket_identity(socket)}"


def passed_sockets(workload: str, sockets: Sequence[SocketConfig]) -> list[tuple[str, str]]:
    """Return the keys of the sockets that a program gets, in order, with their names in LISTEN_FDNAMES."""
    return [(socket_key(workload, socket), socket.file_descriptor_name or workload) for socket in sockets]


def find_socket_conflicts(
    sockets: Sequence[SocketConfig], runtime_directory: str
) -> Iterator[tuple[tuple[int | str, ...], str]]:
    """Yield the key and the message of everything in the sockets of one workload that does not fit together."""
    if len(sockets) > MAX_SOCKETS:
        yield (MAX_SOCKETS,), f"is one more than a workload can have; write at most {MAX_SOCKETS} sockets"
    for number, socket in enumerate(sockets):
        written = [name for name in LISTEN_KEYS if getattr(socket, name) is not None]
        if len(written) != 1:
            what = "has no address" if not written else f"has {len(written)} addresses"
            yield (number,), f"{what}; write exactly one of {alternatives(tuple(LISTEN_KEYS))}"
            continue
        listen_key, address = written[0], socket.address
        if socket.type == "sequential_packet" and not address.is_unix:
            yield (number, listen_key), "is not a Unix socket, and there is no other of this type; write a path"
        if address.path.startswith(f"{runtime_directory.rstrip('/')}/"):
            yield (number, listen_key), "is in the runtime directory of the service; write another path"
        for name in ("socket_user", "socket_group", "remove_on_stop"):
            if getattr(socket, name) and (not address.is_unix or address.is_abstract):
                yield (number, name), "is for a Unix socket with a path; remove it"
        if socket.bind_ipv6_only != "default" and not address.is_ipv6:
            yield (number, "bind_ipv6_only"), "is for an IPv6 address; remove it"
        for name in ("reuse_port", "free_bind"):
            if getattr(socket, name) and address.is_unix:
                yield (number, name), "is for an IP address; remove it"
        for other in sockets[:number]:
            if other.listen_key and overlap(socket, other):
                yield (number, listen_key), f"is the address of another socket of it, {quoted(other.text)}; remove one"
                break


def overlap(socket: SocketConfig, other: SocketConfig) -> bool:
    """Return whether the kernel refuses one of two sockets because of the other."""
    one, two = socket.address, other.address
    if one.is_unix or two.is_unix:
        return one == two
    if (socket.type == "datagram") != (other.type == "datagram") or one.port != two.port:
        return False
    if socket.reuse_port and other.reuse_port:
        return False
    if one.is_ipv6 != two.is_ipv6:
        six, four = (socket, two) if one.is_ipv6 else (other, one)
        is_dual = six.address.is_wildcard and six.bind_ipv6_only != "ipv6-only"
        return is_dual and (four.is_wildcard or bool(re.fullmatch(r"[0-9.]+", four.host)))
    return one.is_wildcard or two.is_wildcard or _bytes(one) == _bytes(two)


def _bytes(address: SocketAddress) -> bytes:
    import socket  # imported here because few files have a socket, and it slows down every start

    return socket.inet_pton(socket.AF_INET6 if address.is_ipv6 else socket.AF_INET, address.host)
