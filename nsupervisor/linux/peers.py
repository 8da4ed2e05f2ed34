"""Peers of Unix sockets: which process connected, where it runs, and whether it may command the service.

A uid does not tell a workload from its operator: by default both are root. So two facts decide that a workload has no
influence on without leaving its own boundaries: the cgroups of the process, and its user namespace.

**Race: pids are reused.** SO_PEERCRED gives the pid of the process that called connect(2). That process may have ended,
and its pid may name another process by the time /proc/PID is read. SO_PEERPIDFD (Linux 6.5) gives a pidfd of the
connecting process: if that process still lives after /proc/PID was read, the pid was its own the whole time. Without it
the start time is compared before and after; a pid that was reused before the first look is not noticed then.

**Limit.** The facts are those of the moment of the check. A connection that an outside process opened and passed on
counts as that outside process. A root process that moves itself out of its workload's cgroup counts as an outsider.

Standard library only. The decisions are pure; `read_peer` gathers the facts.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from nsupervisor.linux import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SO_PEERPIDFD = 77  # asm-generic/socket.h, Linux 6.5
_UCRED = struct.Struct("iII")  # struct ucred, unix(7): pid, uid, gid
_DELETED = " (deleted)"  # cgroups(7): appended to the path when the cgroup has been removed

WORKLOAD = "workload"
"""A kind of refusal: the process is part of a workload."""
USER_NAMESPACE = "user namespace"
"""A kind of refusal: the process is in another user namespace."""
USER = "user"
"""A kind of refusal: the process belongs to another user."""
UNIDENTIFIED = "unidentified"
"""A kind of refusal: the process has ended, or this process may not look at it."""


class Peer:
    """The process at the other end of a connection.

    `cgroups` has one text per hierarchy, "CONTROLLERS:PATH" as in /proc/PID/cgroup without the number: ":/a/web" for
    version 2, "memory:/a/web" for version 1. `user_namespace` is (st_dev, st_ino) of its file in /proc, or None if this
    process may not read it. `workload` is the instance that the process is part of, "" for an outside process: see
    `set_workload`.
    """

    __slots__ = ("cgroups", "gid", "pid", "uid", "user_namespace", "workload")

    def __init__(
        self,
        pid: int,
        uid: int,
        gid: int,
        cgroups: Sequence[str] = (),
        user_namespace: tuple[int, int] | None = None,
        workload: str = "",
    ) -> None:
        self.pid = pid
        self.uid = uid
        self.gid = gid
        self.cgroups = tuple(cgroups)
        self.user_namespace = user_namespace
        self.workload = workload

    def set_workload(self, name: str) -> None:
        """Note the instance that the process is part of."""
        self.workload = name

    @property
    def cgroup(self) -> str:
        """The path of its version 2 cgroup; "" if it is not known."""
        return next((text[1:] for text in self.cgroups if text.startswith(":")), "")

    def __repr__(self) -> str:
        return f"Peer(pid={self.pid}, uid={self.uid}, gid={self.gid}, workload={self.workload!r})"


class PeerRefused(Exception):  # noqa: N818 - a decision, not an error of this process
    """The connection is refused. The text says which process, why, and what to do instead; `kind` is one of the kinds
    above."""

    def __init__(self, kind: str, peer: Peer, why: str, instead: str) -> None:
        super().__init__(f"process {peer.pid} (uid {peer.uid}) {why}; {instead}")
        self.kind = kind
        self.peer = peer


# ---- decisions


def below(cgroups: Iterable[str], prefixes: Iterable[str]) -> str:
    """The first of `cgroups` that lies at or below one of `prefixes`; "" if none does.

    Both are texts "CONTROLLERS:PATH", see `Peer`.
    """
    protected = tuple(prefixes)
    for cgroup in cgroups:
        controllers, _, path = cgroup.partition(":")
        for prefix in protected:
            names, _, top = prefix.partition(":")
            if names == controllers and (path.removesuffix(_DELETED) == top or path.startswith(f"{top.rstrip('/')}/")):
                return cgroup
    return ""


def refusal(
    peer: Peer, own_namespace: tuple[int, int], prefixes: Iterable[str], own_uid: int, only_own_uid: bool = False
) -> PeerRefused | None:
    """Decide whether `peer` may connect; the reason against it, or None.

    `own_namespace`: the service's user namespace. `prefixes`: the cgroups of the service's tree, one per hierarchy.
    `own_uid`: the service's effective uid. `only_own_uid`: refuse other uids, root's too.
    """
    if cgroup := below(peer.cgroups, prefixes):
        return workload_refusal(peer, f"cgroup {cgroup.partition(':')[2]}")
    if peer.user_namespace is None:
        # Root may read and change every process of an unprivileged service, but not the other way round.
        if peer.uid != 0 or own_uid == 0:
            return PeerRefused(
                UNIDENTIFIED,
                peer,
                "may not be inspected (/proc/PID/ns/user), so its user namespace is unknown",
                "connect as the service's user, without more capabilities than the service has",
            )
    elif peer.user_namespace != own_namespace:
        return PeerRefused(
            USER_NAMESPACE,
            peer,
            "is in another user namespace than the supervisor",
            "connect from the supervisor's own user namespace",
        )
    if only_own_uid and peer.uid != own_uid:
        return PeerRefused(USER, peer, f"is not of the service's user {own_uid}", "connect as that user")
    return None


def workload_refusal(peer: Peer, place: str) -> PeerRefused:
    """Refuse a process of a workload. `place`: what it is part of."""
    return PeerRefused(
        WORKLOAD,
        peer,
        f"is part of a workload ({place}), and a workload may not control its supervisor",
        "connect from outside, or name in its `may_control` what it may control",
    )


# ---- facts


def namespace_of(pid: int | str) -> tuple[int, int]:
    """The user namespace of a process, a pid or "self": (st_dev, st_ino), namespaces(7).

    Raises OSError: FileNotFoundError or ProcessLookupError for no such process, PermissionError for one that this
    process may not trace, ptrace(2).
    """
    found = os.stat(f"/proc/{pid}/ns/user")
    return found.st_dev, found.st_ino


def cgroups_of(pid: int | str) -> list[str]:
    """The cgroups of a process, a pid or "self", as `Peer.cgroups` has them. Raises OSError as `namespace_of`."""
    with open(f"/proc/{pid}/cgroup", "rb", buffering=0) as file:
        data = b""
        while chunk := file.read(1 << 16):
            data += chunk
    return [line.partition(":")[2] for line in os.fsdecode(data).split("\n") if line]


def credentials(sock: socket.socket) -> tuple[int, int, int]:
    """pid, uid and gid of the process that connected, as they were then. The pid is 0 if it is in a PID namespace that
    this process does not see."""
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid, gid


def peer_pidfd(sock: socket.socket) -> int:
    """A pidfd of the process that connected, which the caller closes; -1 if the kernel has none to give, or no
    descriptor is left. Raises ProcessLookupError if the process has been reaped."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError as error:
        if error.errno in (errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            return -1
        raise ProcessLookupError(error.errno, "the peer has ended") from None


def read_peer(sock: socket.socket) -> Peer:
    """The peer of a connected Unix socket, with its cgroups and user namespace.

    Needs one free descriptor.

    Raises:
        PeerRefused: the process has ended, cannot be seen from here, or its cgroups cannot be read.
    """
    pid, uid, gid = credentials(sock)
    peer = Peer(pid, uid, gid)
    if pid <= 0:
        raise PeerRefused(
            UNIDENTIFIED, peer, "is not visible in the supervisor's PID namespace", "connect from that namespace"
        )
    gone = PeerRefused(UNIDENTIFIED, peer, "has ended, so it cannot be identified", "keep it running until the answer")
    try:
        started = processes.start_time(pid)
        peer.cgroups = tuple(cgroups_of(pid))
        try:
            peer.user_namespace = namespace_of(pid)
        except PermissionError:
            peer.user_namespace = None
        # Only now, so that one free descriptor is enough: if the process lives now, the pid was its own before, too.
        pidfd = peer_pidfd(sock)
        if pidfd < 0:
            is_gone = started is None or processes.start_time(pid) != started
        else:
            is_gone = processes.has_ended(pidfd)
            os.close(pidfd)
        if is_gone:
            raise gone
    except (FileNotFoundError, ProcessLookupError):
        raise gone from None
    except OSError as error:
        instead = "see the supervisor's limits and its /proc"
        raise PeerRefused(UNIDENTIFIED, peer, f"cannot be identified ({error.strerror})", instead) from None
    return peer


class Policy:
    """The peers that may connect to a socket of the service; `check` judges each connection before its first byte.

    `prefixes` are the cgroups of the service's tree, see `below`. `only_own_uid`: refuse other uids, root's too.
    """

    def __init__(self, prefixes: Iterable[str] = (), only_own_uid: bool = False) -> None:
        self.prefixes = tuple(prefixes)
        self.only_own_uid = only_own_uid
        self._namespace = namespace_of("self")

    def check(self, sock: socket.socket) -> Peer:
        """The peer, if it may connect. Raises PeerRefused."""
        peer = read_peer(sock)
        if refused := self.refusal(peer):
            raise refused
        return peer

    def refusal(self, peer: Peer) -> PeerRefused | None:
        """`refusal` for this policy."""
        return refusal(peer, self._namespace, self.prefixes, os.geteuid(), self.only_own_uid)
