"""Starts of workloads by the first connection to one of their sockets.

`Activation` owns a task for each socket that is watched: it waits until there is something to accept or to read, and
then starts the instances that have the socket. `nsupervisor.core.activation` decides when a socket is watched. A task
waits on a duplicate of the socket, so that a reload may close the socket meanwhile.
"""

from collections.abc import Iterable

import attrs
import trio

from nsupervisor.config.model import Config, WorkloadConfig
from nsupervisor.config.sockets import SocketConfig, socket_key
from nsupervisor.core import events
from nsupervisor.core.activation import ActivationState, on_traffic
from nsupervisor.core.decider import Transition, WorkloadInput, WorkloadState
from nsupervisor.core.initiators import Initiator
from nsupervisor.core.lifecycle import Instant
from nsupervisor.service.context import ServiceContext
from nsupervisor.service.instance.actor import Actor
from nsupervisor.service.jobs.jobs import Jobs


@attrs.define(eq=False)
class _Watched:
    """A socket of a workload, and what is known of its traffic."""

    workload: str
    config: SocketConfig
    state: ActivationState = attrs.field(factory=ActivationState)
    scope: trio.CancelScope | None = None
    """The task that waits for traffic; None: there is none."""

    def configure(self, config: SocketConfig) -> None:
        """Take other keys of the same socket."""
        self.config = config

    def set_state(self, state: ActivationState) -> None:
        """Note the starts."""
        self.state = state

    def set_scope(self, scope: trio.CancelScope | None) -> None:
        """Note the task."""
        self.scope = scope

    def stop(self) -> None:
        """End the task, if there is one."""
        if self.scope is not None:
            self.scope.cancel()
            self.scope = None


@attrs.define(eq=False)
class Activation:
    """The sockets of all workloads that traffic may start."""

    jobs: Jobs
    context: ServiceContext
    nursery: trio.Nursery
    _sockets: dict[str, _Watched] = attrs.field(init=False, factory=dict)
    """By key (`nsupervisor.config.sockets.socket_key`)."""
    _keys: dict[str, list[str]] = attrs.field(init=False, factory=dict)
    """The keys of each workload."""
    _blocked: set[str] = attrs.field(init=False, factory=set)
    """Keys of sockets whose traffic waits for a workload that a request has stopped."""
    _dirty: dict[str, None] = attrs.field(init=False, factory=dict)
    """Keys that have to be looked at again."""
    _wake: trio.Event = attrs.field(init=False, factory=trio.Event)
    _has_task: bool = attrs.field(init=False, default=False)

    def begin(self, config: Config) -> None:
        """Watch the sockets of a configuration; at the start only, after the first jobs have begun."""
        self.context.listeners.add(self._on_transition)
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Watch the sockets of another configuration; what stays keeps its state."""
        before, self._sockets, self._keys = self._sockets, {}, {}
        for _, workload in config.each_variant():
            for socket in workload.sockets:
                key = socket_key(workload.name, socket)
                if key in self._sockets:
                    continue
                known = before.pop(key, None)
                if known is None:
                    known = _Watched(workload.name, socket)
                else:
                    known.configure(socket)
                self._sockets[key] = known
                self._keys.setdefault(workload.name, []).append(key)
        for removed in before.values():
            removed.stop()
        self._blocked &= self._sockets.keys()
        if self._sockets and not self._has_task:
            self._has_task = True
            self.nursery.start_soon(self._run)
        self._look_at(self._sockets)

    def _on_transition(
        self,
        name: str,
        workload: WorkloadConfig,
        before: WorkloadState,
        input_: WorkloadInput,
        _instant: Instant,
        transition: Transition,
    ) -> None:
        """Take a transition of an instance: it may be down now, or be started by a request."""
        if not self._sockets:
            return
        keys = self._keys.get(workload.name, ())
        command = transition.lifecycle_input
        if isinstance(command, events.Start | events.Restart) and command.requested_by.is_request:
            for key in keys:
                self._sockets[key].set_state(ActivationState())
        self._look_at(keys)
        self._look_at(self._blocked)

    def _look_at(self, keys: Iterable[str]) -> None:
        self._dirty.update(dict.fromkeys(keys))
        if self._dirty:
            self._wake.set()

    async def _run(self) -> None:
        """Begin and end the tasks of sockets, once what has changed them is complete; until cancelled."""
        while True:
            await self._wake.wait()
            await trio.lowlevel.checkpoint()  # a transition is reported before its actions, and jobs follow
            self._wake, dirty, self._dirty = trio.Event(), self._dirty, {}
            for key in dirty:
                if (socket := self._sockets.get(key)) is not None:
                    self._update(key, socket)

    def _update(self, key: str, socket: _Watched) -> None:
        is_startable = bool(self._startable(key, socket)) and not socket.state.is_limited
        is_watched = is_startable and self.jobs.start_obstacle(socket.workload) is None
        if is_startable and not is_watched:
            self._blocked.add(key)
        else:
            self._blocked.discard(key)
        if is_watched and socket.scope is None:
            fd = self.context.sockets.duplicate(key)
            if fd < 0:
                return
            scope = trio.CancelScope()
            socket.set_scope(scope)
            self.nursery.start_soon(self._wait, key, socket, fd, scope)
        elif not is_watched:
            socket.stop()
        limit = _limit_text(socket) if socket.state.is_limited else ""
        self.context.sockets.set_watched(key, is_watched, limit)

    def _startable(self, key: str, socket: _Watched) -> list[Actor]:
        """Return the instances that traffic on a socket starts."""
        if self.jobs.is_stopping:
            return []
        return [
            actor
            for actor in self.jobs.startable(socket.workload)
            if any(socket_key(socket.workload, config) == key for config in actor.workload.sockets)
        ]

    async def _wait(self, key: str, socket: _Watched, fd: int, scope: trio.CancelScope) -> None:
        listeners = self.context.kernel.listeners
        try:
            with scope:
                await listeners.wait_readable(fd)
        finally:
            listeners.close(fd)
        if scope.cancelled_caught or scope.cancel_called or self._sockets.get(key) is not socket:
            return
        socket.set_scope(None)
        self.context.sockets.set_watched(key, False)
        actors = self._startable(key, socket)
        if not actors or self.jobs.start_obstacle(socket.workload) is not None:
            self._look_at((key,))
            return
        socket.set_state(on_traffic(socket.state, trio.current_time(), socket.config))
        if socket.state.is_limited:
            text = _limit_text(socket)
            self.context.sockets.set_watched(key, False, text)
            self.context.journal.log.error("warning", workload=socket.workload, message=text)
            return
        self.jobs.start(extra=actors, by=Initiator("socket", socket.config.text))


def _limit_text(socket: _Watched) -> str:
    limit, seconds = socket.config.trigger_limit_burst, socket.config.trigger_limit_interval_sec
    return (
        f"traffic on {socket.config.text} has started it {limit} times within {seconds:g} s and is still not taken; "
        f"it starts nothing until: nsupervisor start {socket.workload}"
    )
