"""Admission to the API's sockets: processes outside of all workloads, and workloads with `may_control`.

There are two sockets. `api.sock` has mode 0600. Workloads may have another user, and a user namespace in which the
service's ids have no meaning, so theirs (`spec.WORKLOADS_API`) is open to everyone who gets to see it: its directory is
closed, and bound into the mount namespaces of such workloads only. A directory, as the socket in it is made again by
the next supervisor.
"""

import os
import socket
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import trio

from nsupervisor.api.http.errors import ConnectionErrors
from nsupervisor.api.http.messages import Application
from nsupervisor.api.server import MAX_PATH_BYTES, serve
from nsupervisor.cgroups.membership import instance_of
from nsupervisor.linux.peers import USER, WORKLOAD, Peer, PeerRefused, Policy, read_peer, workload_refusal
from nsupervisor.service.instance.actor import Actor
from nsupervisor.service.instance.spawn_spec import WORKLOADS_API

WORKLOADS_CONNECTIONS = 64
"""Connections of all workloads together."""
WORKLOAD_CONNECTIONS = 8
"""Connections of one workload instance."""


class Admission:
    """Identifies the peer of each new connection. `cgroups` are the tree's, see `nsupervisor.cgroups.membership`.

    `identify` returns the instance that a process is part of, if that is not in the cgroups.
    """

    def __init__(
        self, cgroups: tuple[str, ...], actors: Mapping[str, Actor], identify: Callable[[int], str] | None = None
    ) -> None:
        self._policy = Policy(cgroups)
        self._tree = next((text[1:] for text in cgroups if text.startswith(":")), "")
        self._actors = actors
        self._identify = identify

    def admit(self, sock: socket.socket) -> Peer:
        """Return the peer; its `workload` is set if it belongs to one. Raises PeerRefused."""
        peer = read_peer(sock)
        refused = self._policy.refusal(peer)
        name = ""
        if self._identify is not None and (name := self._identify(peer.pid)):
            refused = workload_refusal(peer, name)
        if refused is None:
            return peer
        if refused.kind == WORKLOAD and (self._tree or name):
            # The cgroup decides, not the user namespace: the configuration says what the workload may do.
            name = name or instance_of(peer.cgroup, self._tree)
            actor = self._actors.get(name)
            peer.set_workload(name)
            if actor is not None and actor.configured.may_control:
                return peer
        raise refused

    def admit_workload(self, sock: socket.socket) -> Peer:
        """The same, on the socket for workloads, whose mode keeps no other user away. Raises PeerRefused."""
        peer = self.admit(sock)
        if not peer.workload and peer.uid not in (0, os.geteuid()):
            raise PeerRefused(USER, peer, "is not of the service's user", "connect as that user")
        return peer


async def serve_workloads(
    application: Application, directory: Path, admission: Admission, errors: ConnectionErrors, nursery: trio.Nursery
) -> None:
    """Serve the API for workloads below the runtime directory. Returns when connections are accepted. Raises OSError.

    Where the path is too long for a socket, there is none; `check` then refuses `may_control`.
    """
    path = directory / WORKLOADS_API / "api.sock"
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        return
    path.parent.parent.parent.mkdir(mode=0o711, exist_ok=True)
    path.parent.parent.mkdir(mode=0o700, exist_ok=True)
    path.parent.mkdir(mode=0o711, exist_ok=True)
    admit = admission.admit_workload
    serve_workloads = partial(
        serve, connections=WORKLOADS_CONNECTIONS, identity_connections=WORKLOAD_CONNECTIONS, admit=admit, errors=errors
    )
    await nursery.start(serve_workloads, application, path)
    path.chmod(0o666)
