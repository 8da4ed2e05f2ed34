"""Files of the simulated machine that path triggers look at, and events about them."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import trio

from nsupervisor.config.paths import PathConfig
from nsupervisor.core.path_triggers import PathLook, counts
from nsupervisor.linux.inotify import IN_CLOSE_WRITE, IN_CREATE, IN_DELETE, IN_Q_OVERFLOW, InotifyEvent
from nsupervisor.service.platform.path_watcher import MISSING, Watch, WatchedLook
from tests.simulation.seam import Life


@attrs.define(eq=False)
class FileTree:
    """Files by path, each with a number that changes at each write. It outlives supervisors."""

    files: dict[str, int] = attrs.field(factory=dict)
    watchers: list[SimulatedPathWatcher] = attrs.field(factory=list)
    loses_events: bool = False
    """Whether the queues of events are full."""
    look_cost_s: float = 0.0
    """Seconds of a processor that a look takes."""
    looks: int = 0
    _writes: int = 0

    def write(self, path: str) -> None:
        """Write and close a file."""
        is_new = path not in self.files
        self._writes += 1
        self.files[path] = self._writes
        self._report(path, IN_CREATE if is_new else IN_CLOSE_WRITE)

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        if self.files.pop(path, None) is not None:
            self._report(path, IN_DELETE)

    def count_look(self) -> None:
        """Count a look."""
        self.looks += 1

    def below(self, directory: str) -> dict[str, int]:
        """Return the files in a directory, by their names."""
        return {
            path.rpartition("/")[2]: version
            for path, version in self.files.items()
            if path.rpartition("/")[0] == directory
        }

    def _report(self, path: str, mask: int) -> None:
        directory, _, name = path.rpartition("/")
        self.watchers = [watcher for watcher in self.watchers if not watcher.life.is_dead]
        for watcher in self.watchers:
            watcher.add(directory, InotifyEvent(-1, IN_Q_OVERFLOW if self.loses_events else mask, name))


@attrs.define(eq=False)
class SimulatedPathWatcher:
    """Implements `nsupervisor.service.platform.path_watcher.PathWatcher`."""

    tree: FileTree
    life: Life
    events: list[InotifyEvent] = attrs.field(factory=list)
    watched: dict[str, int] = attrs.field(factory=dict)
    changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    _last_wd: int = 0

    def __attrs_post_init__(self) -> None:
        self.life.call("open path watcher")
        self.tree.watchers.append(self)

    def add(self, directory: str, event: InotifyEvent) -> None:
        """Report an event of a directory, if it is watched."""
        if event.mask & IN_Q_OVERFLOW:
            self.events.append(InotifyEvent(-1, IN_Q_OVERFLOW))
        elif directory in self.watched:
            self.events.append(InotifyEvent(self.watched[directory], event.mask, event.name))
        self.changed.unpark_all()

    async def wait(self) -> None:
        while not self.events:
            await self.changed.park()

    def read(self) -> list[InotifyEvent]:
        self.life.call("read path events")
        read, self.events = self.events, []
        return read

    def look(self, path: PathConfig, own_logs: Sequence[str]) -> WatchedLook:
        self.life.call("look at a path")
        self.tree.count_look()
        return self._look(path, own_logs)._replace(cost_s=self.tree.look_cost_s)

    def _look(self, path: PathConfig, own_logs: Sequence[str]) -> WatchedLook:
        target = path.watched_path
        directory, _, name = target.rpartition("/")
        watches = [Watch(self._watch(directory), name, True)]
        if path.condition == "path_exists" or target in self.tree.files:
            version = self.tree.files.get(target)
            if version is None:
                return WatchedLook(PathLook(False, MISSING), tuple(watches))
            return WatchedLook(PathLook(path.condition == "path_exists", str(version)), tuple(watches))
        watches.append(Watch(self._watch(target), None, True))
        found = {name: version for name, version in self.tree.below(target).items() if counts(path, name, own_logs)}
        return WatchedLook(PathLook(bool(found), str(sorted(found.items())) if found else MISSING), tuple(watches))

    def _watch(self, directory: str) -> int:
        if directory not in self.watched:
            self._last_wd += 1
            self.watched[directory] = self._last_wd
        return self.watched[directory]

    def remove(self, wd: int) -> None:
        self.life.call("remove watch")
        self.watched = {directory: known for directory, known in self.watched.items() if known != wd}

    def close(self) -> None:
        if self in self.tree.watchers:
            self.tree.watchers.remove(self)
