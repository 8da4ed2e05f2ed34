"""Sockets: of the host, with privileges, and of rare protocols."""

import errno
import os
import socket
import struct

from harness import RefusedError, attempt, targets, variant


def make(family: int, kind: int, protocol: int) -> str:
    """Make a socket."""
    socket.socket(family, kind, protocol).close()
    return "made"


for _name, _title, *_arguments in (
    ("raw-socket", "make a raw socket", socket.AF_INET, socket.SOCK_RAW, 1),
    ("packet-socket", "make a packet socket, which sees the traffic of others", socket.AF_PACKET, socket.SOCK_RAW, 0),
    ("alg-socket", "make a socket of the kernel's cryptography (AF_ALG)", 38, socket.SOCK_SEQPACKET, 0),
    ("vsock-socket", "make a socket to the hypervisor (AF_VSOCK)", 40, socket.SOCK_STREAM, 0),
    ("xdp-socket", "make a socket that bypasses the network stack (AF_XDP)", 44, socket.SOCK_RAW, 0),
    ("key-socket", "make a socket of the IPsec administration (AF_KEY)", 15, socket.SOCK_RAW, 2),
    ("audit-socket", "make a socket of the audit system", socket.AF_NETLINK, socket.SOCK_RAW, 9),
    ("uevent-socket", "make a socket of the kernel's events of devices", socket.AF_NETLINK, socket.SOCK_RAW, 15),
    ("netfilter-socket", "make a socket of the firewall", socket.AF_NETLINK, socket.SOCK_RAW, 12),
):
    variant(make, _name, _title, *_arguments)


def netlink(protocol: int, kind: int, flags: int, body: bytes, but: tuple[int, ...]) -> str:
    """Send a netlink request; one of the errors `but` means that the privilege was there."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as sock:
        sock.bind((0, 0))
        sock.settimeout(2)
        sock.send(struct.pack("IHHII", 16 + len(body), kind, flags | 1 | 4, 1, 0) + body)
        answer = sock.recv(4096)
    _, answer_kind, _, _, _, code = struct.unpack("IHHIIi", answer[:20])
    if answer_kind == 2 and code and -code not in but:
        raise OSError(-code, os.strerror(-code))
    return f"allowed ({errno.errorcode.get(-code, 'done')})"


variant(
    netlink,
    "netlink-link",
    "Change a network device (one that does not exist)",
    0,
    19,
    0,
    struct.pack("BxHiII", 0, 0, 0x7FFFFFFF, 0, 0),
    (errno.ENODEV, errno.EINVAL),
)
variant(
    netlink,
    "netlink-route",
    "Remove a route (of a table that does not exist)",
    0,
    25,
    0,
    struct.pack("8BI", 2, 32, 0, 0, 251, 0, 0, 0, 0) + struct.pack("HH4B", 8, 1, 192, 0, 2, 1),
    (errno.ESRCH, errno.EINVAL),
)
variant(
    netlink,
    "netlink-firewall",
    "Change the firewall (a subsystem that does not exist)",
    12,
    0xFE00,
    0,
    struct.pack("BBH", 0, 0, 0),
    (errno.EINVAL, errno.EOPNOTSUPP),
)
variant(
    netlink,
    "netlink-uevent",
    "Send an event of a device to the host's udev (a malformed one)",
    15,
    16,
    0,
    b"x",
    (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTO),
)


@attempt()
def device_flags() -> str:
    """Set the flags of the loopback device (to what they are)."""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = fcntl.ioctl(sock, 0x8913, struct.pack("16sH22x", b"lo", 0))
        fcntl.ioctl(sock, 0x8914, request)
    return "set"


def option(level: int, name: int, value: bytes) -> str:
    """Set an option of a socket that needs a privilege."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(level, name, value)
    return "set"


variant(
    option, "socket-mark", "Mark packets, so that other routes and rules apply (SO_MARK)", 1, 36, struct.pack("i", 1)
)
variant(option, "socket-priority", "Give packets a high priority (SO_PRIORITY)", 1, 12, struct.pack("i", 7))
variant(option, "socket-buffer", "Have a larger buffer than allowed (SO_RCVBUFFORCE)", 1, 33, struct.pack("i", 1 << 20))
variant(option, "socket-transparent", "Use addresses of others (IP_TRANSPARENT)", 0, 19, struct.pack("i", 1))


@attempt()
def low_port() -> str:
    """Listen on a port below 1024."""
    for port in (1, 2, 3, 4):
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
        return f"bound {port}"
    raise RefusedError("all in use")


def connects(family: int, address: object) -> str:
    """Connect to a listener of the host."""
    with socket.socket(family) as sock:
        sock.settimeout(2)
        sock.connect(address)  # type: ignore[arg-type]
    return "connected"


@attempt("network")
def host_abstract_socket() -> str:
    """Connect to an abstract socket of the host."""
    return connects(socket.AF_UNIX, "\0" + str(targets["abstract"]))


@attempt("network")
def host_port() -> str:
    """Connect to a port of the host's loopback device."""
    return connects(socket.AF_INET, ("127.0.0.1", targets["port"]))


@attempt()
def host_port_by_gateway() -> str:
    """Connect to a port of the host's loopback device by the gateway of the own network."""
    if os.stat("/proc/self/ns/net").st_ino == targets["namespaces"]["net"]:  # type: ignore[index]
        raise RefusedError("the network is the host's")
    names = [name for _, name in socket.if_nameindex() if name != "lo"]
    if not names:
        raise RefusedError("there is no gateway")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, names[0].encode())
        sock.settimeout(2)
        sock.connect(("127.0.0.1", targets["port"]))
    return f"connected by {names[0]}"


@attempt("network")
def host_devices() -> str:
    """See the network devices of the host."""
    names = {name for _, name in socket.if_nameindex()}
    if not set(targets["devices"]) <= names:  # type: ignore[call-overload]
        raise RefusedError("others")
    return f"saw {len(names)}"


@attempt("root")
def host_unix_socket() -> str:
    """Connect to a socket of the host in a directory that all may use."""
    return connects(socket.AF_UNIX, targets["socket"])


@attempt()
def control_socket() -> str:
    """Get an answer from the supervisor's API."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(f"{targets['runtime']}/api.sock")
        sock.send(b"GET /v1/info HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = sock.recv(64).decode()
    if "200" not in answer.split("\r")[0]:
        raise RefusedError(answer.split("\r")[0] or "closed")
    return answer.split("\r")[0]


@attempt()
def keeper_socket() -> str:
    """Connect to the keeper's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(5)
        sock.connect(f"{targets['runtime']}/keeper.sock")
        if not sock.recv(64):
            raise RefusedError("closed")
    return "it answers"
