"""The sockets that the service listens on for its workloads, whatever becomes of their programs.

`Sockets` owns a descriptor of each socket, and the keeper has a duplicate: so a socket outlives either of the two. What
both lose, a running program may still have, and it is taken from there. A socket is made before the first program
starts, or at a reload; if that fails, the failure is logged, and each start of the workload tries it again.

The order of the keeper's requests is that of the changes: one lock is held for each series of them. After a loss of the
keeper, `hand_over` gives the next one all sockets, and does not need the lock: its holder waits for that.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs
import trio

from nsupervisor.config.model import Config, WorkloadConfig
from nsupervisor.config.sockets import SocketConfig, socket_identity, socket_key
from nsupervisor.keeper.connection import KeeperConnection
from nsupervisor.keeper.messages import KeeperLost
from nsupervisor.keeper.reconnecting import ReconnectingKeeper
from nsupervisor.logs import Journal
from nsupervisor.service.platform.kernel import Kernel
from nsupervisor.service.platform.listeners import ListenError


@attrs.frozen
class Wanted:
    """A socket that the configuration in force has."""

    workload: str
    config: SocketConfig


@attrs.define(eq=False)
class Sockets:
    """The sockets of all workloads of a configuration."""

    keeper: ReconnectingKeeper
    journal: Journal
    kernel: Kernel
    nursery: trio.Nursery
    """For requests to the keeper without a caller that waits."""
    _wanted: dict[str, Wanted] = attrs.field(init=False, factory=dict)
    """By key (`nsupervisor.config.sockets.socket_key`)."""
    _open: dict[str, int] = attrs.field(init=False, factory=dict)
    """The descriptors, by key; those of a configuration that is about to be in force, too."""
    _problems: dict[str, str] = attrs.field(init=False, factory=dict)
    """Why sockets are not open, by key."""
    _watched: set[str] = attrs.field(init=False, factory=set)
    """The keys of those whose traffic starts a workload."""
    _limits: dict[str, str] = attrs.field(init=False, factory=dict)
    """Why the traffic of sockets starts nothing any more, by key."""
    _lock: trio.Lock = attrs.field(init=False, factory=trio.Lock)

    # ---- queries

    def status(self, workload: WorkloadConfig) -> list[dict[str, Any]]:
        """Return one object for each socket of an instance: `Socket` of `nsupervisor schema api`."""
        keys = [(socket_key(workload.name, config), config) for config in workload.sockets]
        return [
            {
                "type": config.type,
                "address": config.text,
                "is_open": key in self._open,
                "is_watched": key in self._watched,
                "problem": self._problems.get(key) or self._limits.get(key, ""),
            }
            for key, config in keys
        ]

    def awaited_traffic(self, workload: WorkloadConfig) -> str:
        """Return what starts an instance, in words: "a connection" or "a datagram"; "": no traffic does."""
        watched = [config for config in workload.sockets if socket_key(workload.name, config) in self._watched]
        if not watched:
            return ""
        return "a datagram" if all(config.type == "datagram" for config in watched) else "a connection"

    def duplicate(self, key: str) -> int:
        """Return a duplicate of a socket, which the caller closes; -1 if it is not open."""
        return self.kernel.listeners.duplicate(self._open[key]) if key in self._open else -1

    # ---- changes

    def set_watched(self, key: str, is_watched: bool, limit: str = "") -> None:
        """Note whether traffic on a socket starts its workload (`nsupervisor.service.activation`).

        `limit`: why it does not any more until a request starts the workload.
        """
        if limit:
            self._limits[key] = limit
        else:
            self._limits.pop(key, None)
        if is_watched:
            self._watched.add(key)
        else:
            self._watched.discard(key)

    async def begin(self, config: Config, held: dict[str, int], find_pids: Callable[[str], Iterable[int]]) -> None:
        """Open all sockets: those that the keeper holds, those that programs have, and new ones for all others.

        Only before anything starts. `held` is what the keeper holds (`read_held`), which is taken over. `find_pids`
        returns the processes of a workload, which may be those of an earlier supervisor. If the keeper is lost
        meanwhile, the next one gets them by `hand_over`.
        """
        self._wanted, keeper = _find_wanted(config), self.keeper.direct
        for key, wanted in self._wanted.items():
            if (fd := held.pop(key, -1)) >= 0 and not self.kernel.listeners.is_intact(fd, wanted.config):
                self.kernel.listeners.close(fd)
                fd = -1
            is_held = fd >= 0
            if not is_held:
                fd = self.kernel.listeners.find(wanted.config, find_pids(wanted.workload))
            if fd >= 0:
                self._open[key] = fd
                self._configure(key, wanted)
            elif not self._make(key, wanted):
                continue
            if not is_held:
                try:
                    await keeper.hold(key, self._open[key])
                except KeeperLost:
                    pass
        for fd in held.values():
            self.kernel.listeners.close(fd)
        if held:
            try:
                await keeper.release(tuple(held))
            except KeeperLost:
                pass

    async def ensure(self, workload: WorkloadConfig) -> None:
        """Open those sockets of a workload that are not open, before it starts. Raises ListenError."""
        keys = {socket_key(workload.name, config): Wanted(workload.name, config) for config in workload.sockets}
        if all(key in self._open for key in keys):
            return
        async with self._lock:
            for key, wanted in keys.items():
                if key not in self._open:
                    await self._hold_new(key, self._listen(key, wanted))

    async def prepare(self, config: Config) -> None:
        """Open the sockets that another configuration adds, before it is in force; failures are logged.

        A failure does not refuse the configuration: the program that has the address may be the one that is to get the
        socket, and is about to be stopped.
        """
        async with self._lock:
            for key, wanted in _find_wanted(config).items():
                if key not in self._open and self._make(key, wanted):
                    await self._hold_new(key, self._open[key])

    def configure(self, config: Config) -> None:
        """Take the sockets of a configuration that is in force now; close those that it lacks."""
        before, self._wanted = self._wanted, _find_wanted(config)
        for key, wanted in self._wanted.items():
            if key in self._open and key in before and before[key] != wanted:
                self._configure(key, wanted)
        removed = [key for key in self._open if key not in self._wanted]
        shared = {fd_key.partition(" ")[2] for fd_key in self._wanted}
        for key in removed:
            self.kernel.listeners.close(self._open.pop(key))
            self.set_watched(key, False)
            if key in before and before[key].config.remove_on_stop and key.partition(" ")[2] not in shared:
                self._remove(before[key])
        for key in self._problems.keys() - self._wanted.keys():
            del self._problems[key]
        if removed:
            self.nursery.start_soon(self._release, removed)

    async def discard_unwanted(self) -> None:
        """Close what `prepare` has opened for a configuration that did not come into force."""
        async with self._lock:
            unwanted = [key for key in self._open if key not in self._wanted]
            for key in unwanted:
                self.kernel.listeners.close(self._open.pop(key))
            if unwanted:
                await self.keeper.release(unwanted)

    async def hand_over(self, keeper: KeeperConnection, held: Sequence[str]) -> None:
        """Give a keeper that replaces another one the sockets that it lacks. Raises KeeperLost.

        `held`: the keys of the sockets that it holds already.
        """
        for key, fd in list(self._open.items()):
            if key not in held:
                await keeper.hold(key, fd)
        if stale := [key for key in held if key not in self._open]:
            await keeper.release(stale)

    def close(self, is_final: bool) -> None:
        """Close everything; at the end of the service (`is_final`) remove the files that `remove_on_stop` says."""
        for fd in self._open.values():
            self.kernel.listeners.close(fd)
        if is_final:
            for key, wanted in self._wanted.items():
                if key in self._open and wanted.config.remove_on_stop:
                    self._remove(wanted)
        self._open.clear()

    # ---- helpers

    def _listen(self, key: str, wanted: Wanted) -> int:
        """Return a new socket, or a duplicate of one that another workload has had. Raises ListenError."""
        identity = socket_identity(wanted.config)
        moved = next((fd for other, fd in self._open.items() if other.partition(" ")[2] == identity), None)
        try:
            if moved is not None:
                fd = self.kernel.listeners.duplicate(moved)
            else:
                fd = self.kernel.listeners.listen(wanted.config)
        except ListenError as error:
            self._problems[key] = str(error)
            raise
        self._open[key] = fd
        self._problems.pop(key, None)
        if moved is not None:
            self._configure(key, wanted)
        return fd

    def _make(self, key: str, wanted: Wanted) -> bool:
        """Open a socket; log a failure, and return whether it is open."""
        try:
            self._listen(key, wanted)
        except ListenError as error:
            self._warn(wanted, f"{error}; the start of {wanted.workload} tries it again")
            return False
        return True

    async def _hold_new(self, key: str, fd: int) -> None:
        await self.keeper.hold(key, fd)

    async def _release(self, keys: Sequence[str]) -> None:
        async with self._lock:  # a later reload may have opened some of them again
            await self.keeper.release([key for key in keys if key not in self._open])

    def _configure(self, key: str, wanted: Wanted) -> None:
        try:
            self.kernel.listeners.configure(self._open[key], wanted.config)
        except ListenError as error:
            self._warn(wanted, str(error))

    def _remove(self, wanted: Wanted) -> None:
        try:
            self.kernel.listeners.remove(wanted.config)
        except ListenError as error:
            self._warn(wanted, str(error))

    def _warn(self, wanted: Wanted, message: str) -> None:
        self.journal.log.warning("warning", workload=wanted.workload, message=message)


def _find_wanted(config: Config) -> dict[str, Wanted]:
    """Return the sockets of a configuration by their keys; instances with the same address share one."""
    found: dict[str, Wanted] = {}
    for _, workload in config.each_variant():
        for socket in workload.sockets:
            found.setdefault(socket_key(workload.name, socket), Wanted(workload.name, socket))
    return found
