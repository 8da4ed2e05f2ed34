"""Things that the program has from its first moment: descriptors, keyrings, the terminal, the environment."""

import ctypes
import os
import socket

from harness import RefusedError, attempt, libc, targets

FIRST = {}
for _name in os.listdir("/proc/self/fd"):
    if int(_name) > 2:
        try:
            FIRST[int(_name)] = os.readlink(f"/proc/self/fd/{_name}")
        except FileNotFoundError:  # the descriptor of the list itself
            pass
FIRST = {fd: path for fd, path in FIRST.items() if "/attempts" not in path}
PASSED = range(3, 3 + int(os.environ.get("LISTEN_FDS", "0")))
"""Descriptors of sockets that the program is meant to have, sd_listen_fds(3)."""


@attempt()
def descriptor_of_host() -> str:
    """Have a descriptor of a directory of the host from the process that started the sandbox."""
    for fd in FIRST:
        try:
            if "escape-leaked" in os.listdir(fd):
                return f"descriptor {fd}"
        except OSError:
            continue
    raise RefusedError("none")


@attempt()
def descriptors() -> str:
    """Have other descriptors than 0, 1 and 2, and sockets that were to be passed."""
    others = {fd: path for fd, path in FIRST.items() if fd not in PASSED or not path.startswith("socket:")}
    if not others:
        raise RefusedError("none")
    return ", ".join(f"{fd}: {path}" for fd, path in others.items())


def passed_socket() -> socket.socket:
    """Return a copy of a socket that was passed; RefusedError without one."""
    if not PASSED:
        raise RefusedError("no socket was passed")
    return socket.socket(fileno=os.dup(PASSED[0]))


@attempt()
def passed_socket_namespace() -> str:
    """Open the network namespace of a socket of the host that was passed."""
    import fcntl

    siocgskns = 0x894C
    with passed_socket() as sock:
        os.close(fcntl.ioctl(sock, siocgskns))
    return "opened"


@attempt(exclusive=True)
def passed_socket_connect() -> str:
    """Connect to a port of the host's loopback device by a listening socket of the host that was passed."""
    with passed_socket() as sock:
        nowhere = bytes(16)  # AF_UNSPEC, which makes it a new socket, connect(2)
        if libc.connect(sock.fileno(), nowhere, len(nowhere)):
            raise OSError(ctypes.get_errno(), "connect")
        sock.settimeout(2)
        sock.connect(("127.0.0.1", targets["port"]))
    return "connected"


@attempt()
def descriptor_parent() -> str:
    """Find directories above by a descriptor of a directory."""
    for fd in FIRST:
        try:
            os.close(os.open("../..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd))
        except OSError:
            continue
        return f"by descriptor {fd}"
    raise RefusedError("none")


@attempt()
def environment_secret() -> str:
    """Find a variable from the environment of the process that started the sandbox."""
    if str(targets["environment"]) not in os.environ:
        raise RefusedError("none")
    return "found"
