"""Accept connections on a listening socket, no more than the limits allow, and serve each in a task of its own."""

from __future__ import annotations

import socket
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator

import trio

from nsupervisor.api.http import limits
from nsupervisor.api.http.connection import Connection, ListenerState
from nsupervisor.api.http.errors import UNIX, ConnectionErrors, describe
from nsupervisor.api.http.hangup import HangupWatcher
from nsupervisor.api.http.hosts import AllowedHosts
from nsupervisor.api.http.messages import Application, HTTPError
from nsupervisor.linux.peers import Peer, PeerRefused, credentials

Admit = Callable[[socket.socket], Peer | None]
"""Identifies the peer of an accepted socket before its first byte is read. Raises PeerRefused."""


async def serve_connections(
    application: Application,
    listener: trio.abc.Listener[trio.SocketStream],
    *,
    name: str,
    connections: int,
    identity_connections: int | None = None,
    errors: ConnectionErrors,
    admit: Admit | None = None,
    hosts: AllowedHosts | None = None,
) -> None:
    """Serve an application on a listening socket until cancelled, which closes all connections at once.

    name: "unix" or "tcp". connections: how many there may be at a time; if there are more, the one that has waited for
    its client for the longest time is closed, and if none waits, the new one is refused. Of the identities whose
    connections wait, the one with the most connections loses one.

    identity_connections: the share of each identity, which is a workload, a uid or an address. On a Unix socket, more
    connections of the identity are refused. On TCP one of the identity's own that waits is closed first, because all
    local users have the same address: otherwise any of them could lock out the others.

    No exception of a connection leaves this function.
    """
    hangups = HangupWatcher()
    site = ListenerState(application, name, errors, hangups, hosts)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hangups.run)
        if identity_connections is None:
            identity_connections = limits.IDENTITY_CONNECTIONS if name == UNIX else max(1, connections // 2)
        acceptor = _Acceptor(site, nursery, connections, identity_connections, admit)
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:  # EMFILE, ENFILE, ENOBUFS, ENOMEM: accept(2)
                errors.count(name, "accept", f"cannot accept a connection: {error.strerror}")
                acceptor.evict()
                await trio.sleep(limits.ACCEPT_PAUSE_S)
            else:
                for accepted in (stream, *_accept_waiting(listener, limits.ACCEPTED_AT_ONCE - 1)):
                    try:
                        acceptor.handle(accepted)
                    except Exception as error:
                        errors.count(name, "internal", describe(error))
                        accepted.socket.close()


def _accept_waiting(listener: trio.abc.Listener[trio.SocketStream], count: int) -> Iterator[trio.SocketStream]:
    """Accept up to `count` connections that wait already. An error ends this; the next `accept` will report it."""
    if not isinstance(listener, trio.SocketListener):
        return
    listening = listener.socket
    plain = socket.socket(listening.family, listening.type, listening.proto, listening.fileno())
    try:
        for _ in range(count):
            connection, _address = plain.accept()  # the descriptor is non-blocking
            yield trio.SocketStream(trio.socket.from_stdlib_socket(connection))
    except OSError:
        pass
    finally:
        plain.detach()


class _Acceptor:
    """Decides for each accepted connection whether to serve it, and counts those that are served."""

    def __init__(
        self,
        site: ListenerState,
        nursery: trio.Nursery,
        connections: int,
        identity_connections: int,
        admit: Admit | None,
    ) -> None:
        self._listener_state = site
        self._nursery = nursery
        self._max_connections = connections
        self._max_identity_connections = identity_connections
        self._admit = admit
        self._open_count = 0
        self._refusal_count = 0
        self._identities: Counter[str] = Counter()
        self._waiting: OrderedDict[Connection, None] = OrderedDict()
        """Connections that wait for their clients; the one that has waited for the longest time comes first."""

    def handle(self, stream: trio.SocketStream) -> None:
        """Serve a connection in a task of its own, or refuse it."""
        identity = ""
        try:
            peer, identity = self._identify(stream)
        except PeerRefused as refused:
            self._refuse(stream, _describe_refused(refused.peer), "refused", HTTPError(403, str(refused)))
        except OSError as error:  # it has been reset before it was accepted
            self._refuse(stream, identity, "disconnect", HTTPError(403, f"the peer is unknown: {error.strerror}"))
        except Exception as error:
            self._listener_state.errors.count(self._listener_state.listener, "internal", describe(error))
            self._refuse(stream, identity, "", HTTPError(500, "the supervisor failed to identify the peer"))
        else:
            count = self._max_identity_connections
            has_full_share = self._identities[identity] >= count
            if has_full_share and (self._listener_state.listener == UNIX or not self.evict(identity)):
                message = f"{identity} has {count} connections here already, which is the limit; close some of them"
                self._refuse(stream, identity, "limit", HTTPError(503, message))
            elif self._open_count >= self._max_connections and not self.evict():
                message = f"all {self._max_connections} connections are in use; try again later, or close some of them"
                self._refuse(stream, identity, "limit", HTTPError(503, message))
            else:
                self._serve(stream, peer, identity)

    def evict(self, identity: str | None = None) -> bool:
        """Close a connection that waits for its client; return False if none waits.

        It is one of the identity with the most connections, or of `identity`: of those the one that has waited for the
        longest time.
        """
        candidates = [c for c in self._waiting if identity is None or c.identity == identity]
        if not candidates:
            return False
        connection = max(candidates, key=lambda candidate: self._identities[candidate.identity])  # the first of equals
        del self._waiting[connection]
        self._listener_state.errors.count(
            self._listener_state.listener, "evicted", "too many connections", peer=connection.identity
        )
        connection.scope.cancel()
        return True

    def _identify(self, stream: trio.SocketStream) -> tuple[Peer | None, str]:
        accepted = stream.socket
        if accepted.family != socket.AF_UNIX:
            return None, str(accepted.getpeername()[0])
        # A plain socket object for the same descriptor saves the system call that would duplicate it.
        plain = socket.socket(accepted.family, accepted.type, accepted.proto, accepted.fileno())
        try:
            if self._admit is None:
                return None, f"uid {credentials(plain)[1]}"
            peer = self._admit(plain)
            return peer, "" if peer is None else peer.workload or f"uid {peer.uid}"
        finally:
            plain.detach()

    def _serve(self, stream: trio.SocketStream, peer: Peer | None, identity: str) -> None:
        connection = Connection(
            stream,
            self._listener_state,
            peer=peer,
            identity=identity,
            on_waiting=lambda is_waiting: self._set_waiting(connection, is_waiting),
        )
        self._open_count += 1
        self._identities[identity] += 1
        self._waiting[connection] = None
        self._nursery.start_soon(self._run, connection)

    async def _run(self, connection: Connection) -> None:
        try:
            await connection.run()
        finally:
            self._waiting.pop(connection, None)
            self._open_count -= 1
            self._identities[connection.identity] -= 1
            if not self._identities[connection.identity]:
                del self._identities[connection.identity]

    def _set_waiting(self, connection: Connection, is_waiting: bool) -> None:
        if not is_waiting:
            self._waiting.pop(connection, None)
        elif not connection.scope.cancel_called:
            self._waiting.setdefault(connection)  # one that waits already has waited since then

    def _refuse(self, stream: trio.SocketStream, identity: str, kind: str, error: HTTPError) -> None:
        connection = Connection(stream, self._listener_state, identity=identity)
        if self._refusal_count >= limits.REFUSALS_AT_ONCE:  # refused connections hold descriptors, too
            self._refuse_at_once(stream.socket, connection.refusal(kind, error))
        else:
            self._refusal_count += 1
            self._nursery.start_soon(self._run_refusal, connection, kind, error)

    @staticmethod
    def _refuse_at_once(accepted: trio.socket.SocketType, response: bytes) -> None:
        """Send what fits into the socket's buffer, and close. On TCP, a peer that still sends may get a reset."""
        plain = socket.socket(accepted.family, accepted.type, accepted.proto, accepted.fileno())
        try:
            plain.send(response, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            plain.recv(limits.PIECE_SIZE, socket.MSG_DONTWAIT)  # unread input would reset the connection
        except OSError:
            pass  # the peer has closed, or there is no input
        finally:
            plain.detach()
            accepted.close()

    async def _run_refusal(self, connection: Connection, kind: str, error: HTTPError) -> None:
        try:
            await connection.refuse(kind, error)
        finally:
            self._refusal_count -= 1


def _describe_refused(peer: Peer) -> str:
    """Describe a refused peer for the record: two workloads of one uid must be distinguishable."""
    workload = f"workload {peer.workload}, " if peer.workload else ""
    return f"{workload}pid {peer.pid}, uid {peer.uid}"
