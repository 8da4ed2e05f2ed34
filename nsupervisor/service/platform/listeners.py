"""Make the sockets that the service listens on for its workloads, and find those that running programs have.

The service follows no name that another user controls: the directory of a Unix socket has to be one of which no other
user can change any part. A file that is there is replaced only if it is a socket on which no process listens.
"""

import errno
import fcntl
import grp
import os
import pwd
import socket
import stat
from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol

import trio

from nsupervisor.config.sockets import SocketConfig
from nsupervisor.linux import syscalls
from nsupervisor.linux.trusted_paths import TrustedDirectory
from nsupervisor.notify_socket import SIOCUNIXFILE

_TYPES = {
    "stream": socket.SOCK_STREAM,
    "datagram": socket.SOCK_DGRAM,
    "sequential_packet": socket.SOCK_SEQPACKET,
}
_IP_FREEBIND = 15  # linux/in.h; for IPv6 sockets, too: ip(7)
_SO_NETNS_COOKIE = 71  # Linux 5.14
_INSTEAD = "listen below a directory that only root may write to, such as /run"
_HINTS = {
    errno.EADDRINUSE: "another program listens there: ss -lntuxp shows which one",
    errno.EACCES: "ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE",
    errno.EADDRNOTAVAIL: "no interface has this address; free_bind = true does not need one",
    errno.EAFNOSUPPORT: "the kernel has no such addresses",
}


class ListenError(OSError):
    """A socket cannot be made; the text says which one, why, and what to do."""

    def __init__(self, config: SocketConfig, reason: str, number: int = 0) -> None:
        super().__init__(number, f"cannot listen on {config.text}: {reason}")

    def __str__(self) -> str:
        return str(self.strerror)


class Listeners(Protocol):
    """The seam between the sockets of workloads and the operating system."""

    def listen(self, config: SocketConfig) -> int:
        """Make a socket; return its descriptor. Raises ListenError."""

    def configure(self, fd: int, config: SocketConfig) -> None:
        """Apply the keys that can change while a socket is open. Raises ListenError."""

    def is_intact(self, fd: int, config: SocketConfig) -> bool:
        """Return whether clients still reach a socket: its file was not removed."""

    def find(self, config: SocketConfig, pids: Iterable[int]) -> int:
        """Return a duplicate of the socket that one of these processes has, or -1."""

    def remove(self, config: SocketConfig) -> None:
        """Remove the file of a Unix socket that is not used any more. Raises ListenError."""

    def duplicate(self, fd: int) -> int: ...
    def close(self, fd: int) -> None: ...

    async def wait_readable(self, fd: int) -> None:
        """Wait until there is a connection to accept, or a datagram to read."""


class LinuxListeners:
    """The sockets of this host, in the network namespace of the service."""

    def listen(self, config: SocketConfig) -> int:
        """Make a socket, as `Listeners` says."""
        address = config.address
        family = socket.AF_UNIX if address.is_unix else socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
        try:
            with socket.socket(family, _TYPES[config.type]) as made:
                if address.is_unix:
                    self._bind_unix(made, config)
                else:
                    _bind_ip(made, config)
                if config.type != "datagram":
                    made.listen(config.backlog)
                return made.detach()
        except ListenError:
            raise
        except OSError as error:
            number = error.errno or 0
            hint = "" if address.is_unix and number == errno.EACCES else _HINTS.get(number, "")
            place = f" ({error.filename})" if error.filename is not None else ""
            reason = f"{error.strerror or error}{place}{f'; {hint}' if hint else ''}"
            raise ListenError(config, reason, number) from None

    def _bind_unix(self, made: socket.socket, config: SocketConfig) -> None:
        path = config.address.path
        if config.address.is_abstract:
            made.bind(f"\0{path[1:]}")
            return
        folder, name = os.path.split(path)
        with TrustedDirectory(folder, _INSTEAD, 0o755, by_name=True) as directory:
            with suppress(FileNotFoundError):
                if not stat.S_ISSOCK(directory.status(name).st_mode):
                    raise ListenError(config, "there is something else than a socket; remove it", errno.EEXIST)
                if _is_listened_on(path, config):
                    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
                directory.unlink(name)
            # bind(2) creates the file with the socket's own mode, so no client can connect before it has its owner.
            os.fchmod(made.fileno(), 0)
            made.bind(path)
            self._set_file(directory, name, config)

    def _set_file(self, directory: TrustedDirectory, name: str, config: SocketConfig) -> None:
        uid, gid = _owner(config)
        if (uid, gid) != (-1, -1):
            directory.give(name, uid, gid)
        directory.set_mode(name, config.socket_mode)

    def configure(self, fd: int, config: SocketConfig) -> None:
        """Apply keys to an open socket, as `Listeners` says."""
        path = config.address.path
        try:
            if config.type != "datagram":
                with socket.socket(fileno=os.dup(fd)) as open_socket:
                    open_socket.listen(config.backlog)
            if path.startswith("/"):
                folder, name = os.path.split(path)
                with TrustedDirectory(folder, _INSTEAD, by_name=True) as directory:
                    if stat.S_ISSOCK(directory.status(name).st_mode):
                        self._set_file(directory, name, config)
        except ListenError:
            raise
        except OSError as error:
            raise ListenError(config, error.strerror or str(error), error.errno or 0) from None

    def is_intact(self, fd: int, config: SocketConfig) -> bool:
        """Check the file of a socket, as `Listeners` says."""
        path = config.address.path
        if not path.startswith("/"):
            return True
        with socket.socket(fileno=os.dup(fd)) as open_socket:
            try:
                file_fd = fcntl.ioctl(open_socket, SIOCUNIXFILE)
            except OSError:  # without CAP_NET_ADMIN
                return os.path.lexists(path)
        try:
            return os.fstat(file_fd).st_nlink > 0
        finally:
            os.close(file_fd)

    def find(self, config: SocketConfig, pids: Iterable[int]) -> int:
        """Look for a socket in processes, as `Listeners` says."""
        for pid in pids:
            try:
                numbers = [int(name) for name in os.listdir(f"/proc/{pid}/fd")]
                pidfd = os.pidfd_open(pid)
            except OSError:
                continue
            try:
                for number in numbers:
                    with suppress(OSError):
                        if not os.readlink(f"/proc/{pid}/fd/{number}").startswith("socket:"):
                            continue
                        fd, is_found = syscalls.pidfd_getfd(pidfd, number), False
                        try:
                            is_found = _is_socket_of(fd, config)
                        finally:
                            if not is_found:
                                os.close(fd)
                        if is_found:
                            return fd
            finally:
                os.close(pidfd)
        return -1

    def remove(self, config: SocketConfig) -> None:
        """Remove the file of a socket, as `Listeners` says."""
        path = config.address.path
        if not path.startswith("/"):
            return
        folder, name = os.path.split(path)
        try:
            with TrustedDirectory(folder, _INSTEAD, by_name=True) as directory:
                if stat.S_ISSOCK(directory.status(name).st_mode):
                    directory.unlink(name)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise ListenError(config, error.strerror or str(error), error.errno or 0) from None

    def duplicate(self, fd: int) -> int:
        """Return a duplicate that the caller closes."""
        return os.dup(fd)

    def close(self, fd: int) -> None:
        """Close a descriptor of the service itself."""
        os.close(fd)

    async def wait_readable(self, fd: int) -> None:
        """Wait for a client, as `Listeners` says."""
        await trio.lowlevel.wait_readable(fd)


def _bind_ip(made: socket.socket, config: SocketConfig) -> None:
    address = config.address
    if config.type == "stream":
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # old connections may linger, tcp(7) TIME_WAIT
    if config.reuse_port:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if config.free_bind:
        made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    if config.bind_ipv6_only != "default":
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, config.bind_ipv6_only == "ipv6-only")
    made.bind((address.host, address.port))


def _is_listened_on(path: str, config: SocketConfig) -> bool:
    """Return whether a process has the socket of a file open, unix(7): ECONNREFUSED if not."""
    with socket.socket(socket.AF_UNIX, _TYPES[config.type]) as client:
        client.setblocking(False)
        try:
            client.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError:  # its queue is full, or it is of another type
            return True
    return True


def _owner(config: SocketConfig) -> tuple[int, int]:
    """Return the uid and gid of the file of a Unix socket; -1: unchanged. Raises ListenError."""
    uid = gid = -1
    user, group = config.socket_user, config.socket_group
    try:
        if user is not None:
            if user.isdecimal():
                uid = int(user)
            else:
                uid, gid = pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid
    except KeyError:
        text = f'no user "{user}" on this host; add one with useradd, or give a number in socket_user'
        raise ListenError(config, text) from None
    try:
        if group is not None:
            gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        text = f'no group "{group}" on this host; add one with groupadd, or give a number in socket_group'
        raise ListenError(config, text) from None
    return uid, gid


def _is_socket_of(fd: int, config: SocketConfig) -> bool:
    """Return whether a socket of any kind is the one of a configuration, and reached from this service's namespaces.

    A program may have made it: in its own network namespace an abstract name or a port is another one, and so is a path
    below its own root. Raises OSError.
    """
    address, type_ = config.address, _TYPES[config.type]
    family = socket.AF_UNIX if address.is_unix else socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    # With family and type given, Python asks for neither: that fails for sockets that have no address.
    with socket.socket(family, type_, 0, os.dup(fd)) as found, socket.socket(family, type_) as own:
        options = (socket.SO_DOMAIN, socket.SO_TYPE, socket.SO_ACCEPTCONN)
        kind = [found.getsockopt(socket.SOL_SOCKET, option) for option in options]
        if kind != [family, type_, config.type != "datagram"]:
            return False
        name = found.getsockname()
        if address.is_unix and not address.is_abstract:
            return bool(name == address.path) and _has_file(found, address.path)
        if address.is_unix:
            is_same = name == f"\0{address.path[1:]}".encode()
        else:
            packed = [socket.inet_pton(family, host.partition("%")[0]) for host in (name[0], address.host)]
            is_same = name[1] == address.port and packed[0] == packed[1]
        cookies = [one.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8) for one in (found, own)]
        return bool(is_same) and cookies[0] == cookies[1]


def _has_file(bound: socket.socket, path: str) -> bool:
    """Return whether the file of a Unix socket is at a path as this process sees it. Raises OSError if none is."""
    there = os.lstat(path)
    try:
        file_fd = fcntl.ioctl(bound, SIOCUNIXFILE)
    except PermissionError:  # without CAP_NET_ADMIN, all workloads have the user of the service
        return True
    try:
        return os.path.samestat(os.fstat(file_fd), there)
    finally:
        os.close(file_fd)
