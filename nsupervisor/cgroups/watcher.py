"""The watcher: reports changes of cgroups by callbacks, without polling files that can notify.

How each file notifies (none of them by POLLIN: they are always readable):

* event files (`cgroup.events`, `memory.events`, `pids.events`, and their `.local`) change with IN_MODIFY; one inotify
  instance watches all of them. On v1, `pids.events` counts but does not notify (seen on Linux 6.18; older kernels do),
  so it is read four times a second (less often with many workloads, see _SILENT_RATE_HZ); out of memory comes by an
  eventfd (cgroup-v1/memory.rst, section 10), and all eventfds are in one epoll, whose own descriptor becomes readable.
  Other changes of memory.events (v1: failcnt) are found by the backstop.
* pressure triggers come as POLLPRI (accounting/psi.rst).
* levels (`pids.current`, `memory.current`, …) never notify. They are sampled, and only if a caller asked for them: all
  levels of a cgroup together, at the interval that the caller's callback returns.

Event files are also read every few seconds, as a backstop, and when the inotify queue has overflowed.
"""

from __future__ import annotations

import math
import os
import select
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial

import attrs
import trio

from nsupervisor.cgroups import directories
from nsupervisor.cgroups.cgroup import Cgroup
from nsupervisor.cgroups.errors import CgroupError, CgroupGoneError, HostProblem
from nsupervisor.cgroups.notifications import KernelNotifications, Notifications
from nsupervisor.cgroups.pressure import StallPoller, Trigger
from nsupervisor.cgroups.readings import Reading
from nsupervisor.cgroups.sampler import SampleJob, Sampler
from nsupervisor.linux.inotify import IN_IGNORED, IN_MODIFY, IN_Q_OVERFLOW

EVENT_FILES = ("cgroup.events", "memory.events", "pids.events")
"""The event files that `Watcher.add` watches by default."""

_BACKSTOP_INTERVAL_S = 5.0
_SILENT_INTERVAL_S = 0.25
"""Seconds between two readings of an event file that may not notify."""
_FAR_INTERVAL_S, _VERY_FAR_INTERVAL_S = 1.0, 2.0
"""Sampling intervals, in seconds, from which a cgroup counts as far, and as very far, from every threshold."""
_VERY_FAR_MIN_INTERVAL_S, _VERY_FAR_RATE_HZ = 0.25, 100
"""Few cgroups that are very far are read more often than requested, since a value may also jump.

The interval is the first in seconds, or longer, so that all of them together have the second in readings a second.
"""
_SILENT_RATE_HZ, _FAR_RATE_HZ, _BACKSTOP_RATE_HZ = 400, 200, 200
"""Readings a second, of all cgroups together: of silent event files, of levels far away, of files for the backstop.

With more workloads each file is read less often, so that a thousand idle workloads cost one per cent of a processor and
not ten.
"""
_BACKSTOP_BATCH = 50
"""The number of files that the backstop reads at once, some 0.3 ms: no other task waits longer for it."""
_OOM_DELAYS_S = (0.0, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.5)

OnReading = Callable[[Reading], None]
OnSample = Callable[[Mapping[str, Mapping[str, float]]], float]
"""Receives all levels of a cgroup, read at one moment; returns the seconds until the next sample.

Infinity: no sample before `Watcher.sample_now`.
"""


@attrs.define(eq=False)
class _Watch:
    """One watched cgroup.

    last_events: the last reading of each event file. silent_files: the event files that may not notify.
    """

    cgroup: Cgroup
    on_reading: OnReading
    on_sample: OnSample | None
    interval: float
    level_files: tuple[str, ...]
    last_events: dict[str, dict[str, float]] = attrs.field(factory=dict)
    silent_files: list[str] = attrs.field(factory=list)
    wds: list[int] = attrs.field(factory=list)
    eventfd: int | None = None
    oom_notified: bool = False  # the eventfd has notified, and the kill has not been looked for yet
    is_awaiting_oom_kill: bool = False
    triggers: list[Trigger] = attrs.field(factory=list)
    jobs: list[SampleJob] = attrs.field(factory=list)  # the sampling of the levels comes first
    is_active: bool = True


class Watcher:
    """Watches cgroups. Obtained from `open_watcher`.

    All methods are quick, for the trio thread only, and may be called from callbacks. Callbacks run in the watcher's
    tasks: an exception from one ends the watcher and is raised by `open_watcher`.
    """

    def __init__(self, nursery: trio.Nursery, backstop: float, inotify: Notifications) -> None:
        self._nursery = nursery
        self._backstop = backstop
        self._watches: dict[str, _Watch] = {}  # by the cgroup's path, which identifies it for inotify, too
        self._by_wd: dict[int, tuple[_Watch, str]] = {}
        self._by_eventfd: dict[int, _Watch] = {}
        self._sampler = Sampler()
        self._backstop_job = SampleJob(self._run_backstop)
        self._backstop_queue: deque[tuple[_Watch, str]] = deque()
        """The files that the backstop has yet to read in this round."""
        self._round_ends_at = 0.0
        self._silent_count = 0  # number of files that are read because they may not notify
        self._level_count = 0  # number of cgroups with levels
        self._inotify = inotify
        self._epoll = select.epoll()

    # what to watch ---------------------------------------------------------------------------------------------------

    def add(
        self,
        cgroup: Cgroup,
        on_reading: OnReading,
        events: Iterable[str] | None = None,
        levels: Iterable[str] = (),
        interval: float = 0.25,
        on_sample: OnSample | None = None,
    ) -> Mapping[str, Mapping[str, float]]:
        """Watch a cgroup. Calls on_reading for an event file when it changed.

        Levels go to on_sample, which sets its own interval and may also be given without levels; it is first called
        after `sample_now`. Without on_sample, levels go to on_reading, one by one, every `interval` seconds.

        events: v2 names of event files; None: those of EVENT_FILES that the cgroup has. Returns the present readings of
        the event files: every later difference from them is reported.

        Raises CgroupError if this host lacks a file; OSError if inotify watches or descriptors are used up; ValueError
        if the cgroup is watched already, or the interval is not positive.
        """
        if cgroup.path in self._watches:
            raise ValueError(f"{cgroup.path} is already watched")
        if interval <= 0:
            raise ValueError(f"not an interval to sample at: {interval}")
        watch = self._watches[cgroup.path] = _Watch(cgroup, on_reading, on_sample, interval, tuple(levels))
        try:
            for file in filter(cgroup.supports, EVENT_FILES) if events is None else events:
                # First the notification, then the reading: a change between the two is reported twice, not never.
                self._watch_event_file(watch, file)
                watch.last_events[file] = cgroup.read_cached(file)
            for file in watch.level_files:
                cgroup.read_cached(file)
        except BaseException:
            self.remove(cgroup)
            raise
        watch.jobs.append(SampleJob(partial(self._sample, watch)))
        if watch.level_files and on_sample is None:
            self._sampler.schedule(watch.jobs[0], interval)
        self._silent_count += len(watch.silent_files)
        self._level_count += bool(watch.level_files)
        if watch.silent_files:
            watch.jobs.append(SampleJob(partial(self._poll_silent_files, watch)))
            self._sampler.schedule(watch.jobs[-1], _SILENT_INTERVAL_S)
        if self._backstop_job.due_at == math.inf:
            self._sampler.schedule(self._backstop_job, self._backstop)
        return dict(watch.last_events)

    def sample_now(self, cgroup: Cgroup) -> None:
        """Read the levels of a cgroup now, and continue as on_sample returns. An unknown cgroup is no error."""
        watch = self._watches.get(cgroup.path)
        if watch is not None:
            self._sampler.schedule(watch.jobs[0], 0.0)

    def remove(self, cgroup: Cgroup) -> None:
        """Stop watching a cgroup, including its pressure triggers. No callback comes after this.

        An unknown cgroup is no error.
        """
        watch = self._watches.pop(cgroup.path, None)
        if watch is None:
            return
        watch.is_active = False
        if watch.jobs:  # else `add` failed before
            self._silent_count -= len(watch.silent_files)
            self._level_count -= bool(watch.level_files)
        for wd in watch.wds:
            if self._by_wd.pop(wd, None) is not None:
                self._inotify.remove(wd)
        if watch.eventfd is not None:
            del self._by_eventfd[watch.eventfd]
            self._epoll.unregister(watch.eventfd)
            os.close(watch.eventfd)
        for trigger in watch.triggers:
            trigger.close()
        for job in watch.jobs:
            self._sampler.cancel(job)

    def read_baseline(self, cgroup: Cgroup, file: str) -> Mapping[str, float]:
        """Return the present reading of an event file; every later difference from it is reported.

        The kernel notifies at most once in 10 ms (CGROUP_FILE_NOTIFY_MIN_INTV in kernel/cgroup/cgroup.c). A cgroup that
        was populated and emptied within that time looks the same as before, and nothing is reported. So a caller that
        waits for the end of a populated cgroup must have seen it populated through this method.

        Raises CgroupError like `Cgroup.read_cached`.
        """
        values = cgroup.read_cached(file)
        watch = self._watches.get(cgroup.path)
        if watch is not None and file in watch.last_events:
            watch.last_events[file] = values
        return values

    def add_pressure(
        self,
        cgroup: Cgroup,
        file: str,
        kind: str,
        stall_us: int,
        window_us: int,
        on_trigger: OnReading,
    ) -> Trigger:
        """Call on_trigger with a reading of the pressure file when the cgroup's tasks were stalled too long.

        stall_us, window_us: how long a stall, within which window, in microseconds; on_trigger is called at most once a
        window. file: "memory.pressure", "cpu.pressure" or "io.pressure"; kind: "some" or "full". The window is 500 ms
        to 10 s; without CAP_SYS_RESOURCE the kernel accepts multiples of 2 s only, so the window is rounded up and the
        stall grows with it. The returned Trigger has the values in force, and can be closed. The cgroup must have been
        `add`ed before, and `remove` ends this, too. Raises CgroupError if the kernel refuses.
        """
        watch = self._watches[cgroup.path]
        trigger = Trigger.open(cgroup, file, kind, stall_us, window_us)
        watch.triggers = [*(trigger for trigger in watch.triggers if not trigger.is_closed), trigger]
        self._nursery.start_soon(trigger.run, on_trigger)
        return trigger

    def add_stall(
        self, cgroup: Cgroup, file: str, kind: str, stall_us: int, window_us: int, on_stall: OnReading
    ) -> str:
        """Watch for stalls like `add_pressure`; if the kernel refuses, read the file's total once a window and compare.

        The comparison finds the same stalls, up to a window later. Returns a description of a deviation from the
        request, or "" if there is none.
        """
        request = f"{file}: a stall of {stall_us} us in {window_us} us"
        try:
            trigger = self.add_pressure(cgroup, file, kind, stall_us, window_us, on_stall)
        except CgroupError as error:
            watch = self._watches[cgroup.path]
            watch.jobs.append(SampleJob(StallPoller(cgroup, file, kind, stall_us, window_us / 1e6, on_stall)))
            self._sampler.schedule(watch.jobs[-1], 0.0)
            return f"{request} is measured by reading the file once a window, because the kernel refused: {error}"
        if trigger.window_us == window_us:
            return ""
        in_force = f"{trigger.stall_us} us in {trigger.window_us} us"
        return (
            f"{request} is watched for as {in_force}: without CAP_SYS_RESOURCE the kernel takes windows of 2, 4 … 10 s"
        )

    # notifications ---------------------------------------------------------------------------------------------------

    def _watch_event_file(self, watch: _Watch, file: str) -> None:
        cgroup = watch.cgroup
        if not file.removesuffix(".local").endswith(".events"):
            raise ValueError(f"{file} does not notify; sample it as a level")
        directory = cgroup.directory(file)
        place = cgroup.host.locate(file)
        assert not isinstance(place, HostProblem)
        if place.v1 is None or file in place.v1.files:
            wd = self._inotify.add(f"{directory}/{file}", IN_MODIFY)
            watch.wds.append(wd)
            self._by_wd[wd] = (watch, file)
            if place.v1 is not None:
                watch.silent_files.append(file)
        else:
            self._watch_oom(watch, directory)

    def _watch_oom(self, watch: _Watch, directory: str) -> None:
        eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        watch.eventfd = eventfd
        self._by_eventfd[eventfd] = watch
        self._epoll.register(eventfd, select.EPOLLIN)
        try:
            control = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            try:
                directories.write_file(f"{directory}/cgroup.event_control", f"{eventfd} {control}")
            finally:
                os.close(control)
        except OSError as error:
            raise CgroupError(
                f"cannot watch memory.events of {watch.cgroup.name}: {error.strerror} "
                f"(when writing {directory}/cgroup.event_control)"
            ) from error

    async def _run_inotify(self) -> None:
        while True:
            await self._inotify.wait()
            changed: dict[tuple[_Watch, str], None] = {}  # several changes of one file need one reading
            for wd, mask, _ in self._inotify.read():
                if mask & IN_Q_OVERFLOW:
                    changed.update(dict.fromkeys(self._watched_files()))
                elif mask & IN_IGNORED:
                    self._by_wd.pop(wd, None)
                elif wd in self._by_wd:
                    changed[self._by_wd[wd]] = None
            for watch, file in changed:
                self._check_event_file(watch, file)

    async def _run_eventfds(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for fd, _ in self._epoll.poll(0):
                watch = self._by_eventfd[fd]
                os.eventfd_read(fd)
                watch.oom_notified = True
                if not watch.is_awaiting_oom_kill:
                    watch.is_awaiting_oom_kill = True
                    self._nursery.start_soon(self._await_oom_kill, watch)

    async def _await_oom_kill(self, watch: _Watch) -> None:
        # v1 notifies just before it kills, so the counter is behind: read it again soon, for about a second. If the
        # kill takes longer (or there is none, since the victim ended by itself) the backstop finds the change.
        while watch.oom_notified:
            watch.oom_notified = False
            before = watch.last_events["memory.events"].get("oom_kill")
            for delay in _OOM_DELAYS_S:
                await trio.sleep(delay)
                if not self._check_event_file(watch, "memory.events"):
                    return
                if watch.last_events["memory.events"].get("oom_kill") != before:
                    break
        watch.is_awaiting_oom_kill = False

    def _watched_files(self) -> list[tuple[_Watch, str]]:
        return [(watch, file) for watch in self._watches.values() for file in watch.last_events]

    def _check_event_file(self, watch: _Watch, file: str) -> bool:
        """Read an event file and report it if it changed. False if the watch or the cgroup has been removed."""
        if not watch.is_active:
            return False
        try:
            values = watch.cgroup.read_cached(file)
        except CgroupGoneError:
            return False  # removed already; the remover will call `remove`
        before = watch.last_events[file]
        if values is not before and values != before:
            watch.last_events[file] = values
            watch.on_reading(Reading(file, values))
        return True

    # samples ---------------------------------------------------------------------------------------------------------

    def _sample(self, watch: _Watch) -> float:
        try:
            values = {file: watch.cgroup.read_cached(file) for file in watch.level_files}
        except CgroupGoneError:
            return math.inf  # removed already; the remover will call `remove`
        if watch.on_sample is not None:
            delay = watch.on_sample(values)
            if delay < _FAR_INTERVAL_S or delay == math.inf:
                return delay
            if delay >= _VERY_FAR_INTERVAL_S and watch.level_files:
                delay = min(delay, max(_VERY_FAR_MIN_INTERVAL_S, self._level_count / _VERY_FAR_RATE_HZ))
            return max(delay, self._level_count / _FAR_RATE_HZ)
        for file, level_values in values.items():
            if watch.is_active:  # the callback for the previous level may have removed it
                watch.on_reading(Reading(file, level_values))
        return watch.interval

    def _poll_silent_files(self, watch: _Watch) -> float:
        for file in watch.silent_files:
            self._check_event_file(watch, file)
        return max(_SILENT_INTERVAL_S, self._silent_count / _SILENT_RATE_HZ) if watch.is_active else math.inf

    def _run_backstop(self) -> float:
        """Run one portion of the backstop, so that a round through thousands of files delays no other task."""
        if not self._watches:
            self._backstop_queue.clear()
            return math.inf
        now = trio.current_time()
        if not self._backstop_queue:
            # Silent files are read anyway.
            self._backstop_queue.extend(
                entry for entry in self._watched_files() if entry[1] not in entry[0].silent_files
            )
            self._round_ends_at = now + self._backstop
        for _ in range(min(_BACKSTOP_BATCH, len(self._backstop_queue))):
            self._check_event_file(*self._backstop_queue.popleft())
        delay = 0.0 if self._backstop_queue else self._round_ends_at - now
        return max(delay, _BACKSTOP_BATCH / _BACKSTOP_RATE_HZ)

    # lifecycle -------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        for task in (self._run_inotify, self._run_eventfds, self._sampler.run):
            self._nursery.start_soon(task)

    def _close(self) -> None:
        for watch in list(self._watches.values()):
            self.remove(watch.cgroup)
        self._epoll.close()
        self._inotify.close()


@asynccontextmanager
async def open_watcher(
    backstop: float = _BACKSTOP_INTERVAL_S, open_notifications: Callable[[], Notifications] = KernelNotifications
) -> AsyncIterator[Watcher]:
    """Run a Watcher; at the end of the block it stops, and all its descriptors are closed.

    backstop: seconds between two readings of event files without a notification. open_notifications: opens the
    notifications of files. Exceptions of the block and of callbacks are raised in an exception group, as by any
    nursery.
    """
    watcher: Watcher | None = None
    try:
        async with trio.open_nursery() as nursery:
            watcher = Watcher(nursery, backstop, open_notifications())
            watcher._start()
            yield watcher
            nursery.cancel_scope.cancel()
    finally:
        if watcher is not None:
            watcher._close()
