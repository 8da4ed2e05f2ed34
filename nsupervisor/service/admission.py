"""Admission to the API's socket: processes outside of all workloads, and workloads with `may_control`."""

import socket
from collections.abc import Mapping

from nsupervisor.cgroups.membership import instance_of
from nsupervisor.linux.peers import WORKLOAD, Peer, Policy, read_peer
from nsupervisor.service.actor import Actor


class Admission:
    """Identifies the peer of each new connection. `cgroups` are the tree's, see `nsupervisor.cgroups.membership`."""

    def __init__(self, cgroups: tuple[str, ...], actors: Mapping[str, Actor]) -> None:
        self._policy = Policy(cgroups)
        self._tree = next((text[1:] for text in cgroups if text.startswith(":")), "")
        self._actors = actors

    def admit(self, sock: socket.socket) -> Peer:
        """Return the peer; its `workload` is set if it belongs to one. Raises PeerRefused."""
        peer = read_peer(sock)
        refused = self._policy.refusal(peer)
        if refused is None:
            return peer
        if refused.kind == WORKLOAD and self._tree:
            # The cgroup decides, not the user namespace: the configuration says what the workload may do.
            name = instance_of(peer.cgroup, self._tree)
            actor = self._actors.get(name)
            if actor is not None and actor.configured.may_control:
                peer.workload = name
                return peer
        raise refused
