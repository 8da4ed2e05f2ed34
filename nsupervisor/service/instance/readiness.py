"""Readiness and status that a program reports with sd_notify(3), over a Unix datagram socket of its own.

Each generation has a new socket, so that no message of an earlier generation counts for a later one. The socket belongs
to the program's user, mode 0600, in a directory with a name that cannot be guessed. But several workloads may have one
user, and root may open any socket. So, while the sender of a message lives, its cgroup decides: the message counts only
if the sender is part of the workload.

The sender is often a short-lived helper (`systemd-notify`, a shell's `nc`) that has ended before the message is read.
Then the socket decides, as for what arrived while no service ran. Race: the pid of such a helper may name another
process by then. If that process is outside, a message of the helper is dropped.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import attrs
import trio

from nsupervisor.keeper.setup.spec import host_id
from nsupervisor.notify_socket import (
    ANCILLARY_BYTES,
    MAX_DATAGRAM_BYTES,
    Ancillary,
    Datagram,
    NotifySocket,
    descriptors_in,
    sender_of,
)
from nsupervisor.service.instance.status_texts import StatusTexts

MAX_EXTENSION_S = 366 * 86400.0
"""The most seconds by which a program may extend its time at once."""
MAX_ERRNO = 4095
"""The largest number of an error, MAX_ERRNO in include/linux/err.h."""
REFUSALS_INTERVAL_S = 60.0
"""Seconds between two records about messages of others."""
Sender = Callable[[int], bool]
"""Whether a process, by its pid, may speak for the program; True if it has ended."""


def parse(data: bytes) -> dict[str, str]:
    """Return the assignments of a datagram: `{"READY": "1", "STATUS": "…"}`.

    Only a newline ends an assignment, sd_notify(3): a text that a program passes on may contain other separators.
    Lines of another form are ignored.
    """
    lines = data.decode(errors="replace").split("\n")
    return {key: value for key, equals, value in (line.partition("=") for line in lines) if equals}


async def receive(ours: NotifySocket, is_own: Sender, refuse: Callable[[int], None]) -> Datagram:
    """Return the next datagram that counts. `refuse` gets the pid of the sender of one that does not."""
    while True:
        if ours.backlog:
            return ours.backlog.popleft()
        data, ancillary, _, _ = await ours.socket.recvmsg(MAX_DATAGRAM_BYTES, ANCILLARY_BYTES)
        if (datagram := _take(data, ancillary, is_own, refuse)) is not None:
            return datagram


def _take(data: bytes, ancillary: Ancillary, is_own: Sender, refuse: Callable[[int], None]) -> Datagram | None:
    """Return a datagram if it counts; otherwise close its descriptors."""
    pid, fds = sender_of(ancillary), descriptors_in(ancillary)
    if pid <= 0 or is_own(pid):  # 0: sent before SO_PASSCRED was set, or from a PID namespace that is not visible
        return Datagram(data, fds)
    _close(fds)
    refuse(pid)
    return None


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _seconds(microseconds: str, maximum_s: float = MAX_EXTENSION_S) -> float | None:
    """Return a time of a message in seconds; None if it is none, or longer than `maximum_s`."""
    if not (microseconds.isascii() and microseconds.isdecimal() and len(microseconds) < 20):
        return None
    seconds = int(microseconds) / 1e6
    return seconds if seconds <= maximum_s else None


@attrs.define(eq=False)
class NotificationReader:
    """Reads the messages of one generation.

    `on_notification` receives ("READY", ""), ("RELOADING", seconds or ""), ("STOPPING", ""), ("RESTART_RESET", ""),
    ("ERRNO", number), ("BUSERROR", text), ("EXTEND", seconds) and ("WATCHDOG", reason). The last one means that the
    program triggered the watchdog itself, or sent no keep-alive for `watchdog_sec` (0: none required) while
    `set_watchdog` requires them. At most once a minute it also receives ("REFUSED", text), for messages of other
    processes. `on_status` receives status texts as `StatusTexts` reports them.

    `on_barrier` gets the descriptor of BARRIER=1, and closes it when all notifications before it have been handled.
    """

    socket: NotifySocket
    watchdog_sec: float
    on_notification: Callable[[str, str], None]
    on_status: Callable[[str, int], None]
    is_own: Sender = lambda pid: True
    on_barrier: Callable[[int], None] = os.close
    is_ready: bool = False
    """Whether the program has sent READY=1."""
    _statuses: StatusTexts | None = attrs.field(init=False, default=None)
    _watchdog_expires_at: float = attrs.field(init=False, default=math.inf)
    _waiting: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)
    """The scope of the task while it waits for the next message."""
    _silent_until: float = attrs.field(init=False, default=-math.inf)

    async def run(self, scope: trio.CancelScope) -> None:
        """Read until `scope` is cancelled."""
        with scope:
            async with trio.open_nursery() as nursery:
                self._statuses = StatusTexts(nursery, self.on_status)
                try:
                    while True:
                        with trio.move_on_at(self._watchdog_expires_at) as self._waiting:
                            self._handle(await receive(self.socket, self.is_own, self._refuse))
                        if trio.current_time() >= self._watchdog_expires_at:
                            self._restart_watchdog()
                            self.on_notification("WATCHDOG", f"no WATCHDOG=1 for {self.watchdog_sec:g} s")
                finally:
                    self._statuses.flush()  # a program often says at its end why it ends

    def set_watchdog(self, is_active: bool) -> None:
        """Begin to require keep-alives, the first one within a full period, or stop requiring them."""
        if is_active == (self._watchdog_expires_at < math.inf):
            return
        if is_active:
            self._restart_watchdog()
        else:
            self._watchdog_expires_at = math.inf
        self._waiting.cancel()  # it waits until another time

    def _restart_watchdog(self) -> None:
        self._watchdog_expires_at = trio.current_time() + (self.watchdog_sec or math.inf)

    def read_waiting(self) -> None:
        """Handle the messages that have arrived, without waiting for more.

        Race: a program that sends READY=1 and exits may be reported as exited before the reading task runs.
        """
        while self.socket.backlog:
            self._handle(self.socket.backlog.popleft())
        with suppress(OSError):  # BlockingIOError: no message waits
            while True:
                data, ancillary, _, _ = self.socket.receive_now(MAX_DATAGRAM_BYTES, ANCILLARY_BYTES)
                if (datagram := _take(data, ancillary, self.is_own, self._refuse)) is not None:
                    self._handle(datagram)

    def _handle(self, datagram: Datagram) -> None:
        assignments = parse(datagram.data)
        if assignments == {"BARRIER": "1"} and len(datagram.fds) == 1:  # alone, sd_notify(3)
            self.on_barrier(datagram.fds[0])
            return
        _close(datagram.fds)
        self._handle_assignments(assignments)

    def _handle_assignments(self, assignments: Mapping[str, str]) -> None:
        # RELOADING=1 comes before READY=1: a message with both is about a reload that is done, as in systemd.
        if assignments.get("RELOADING") == "1":
            since = _seconds(assignments.get("MONOTONIC_USEC", ""), math.inf)
            self.on_notification("RELOADING", "" if since is None else repr(since))
        if assignments.get("READY") == "1":
            self.is_ready = True
            self.on_notification("READY", "")
        if "STATUS" in assignments and self._statuses is not None:
            self._statuses.offer(assignments["STATUS"])
        if (seconds := _seconds(assignments.get("EXTEND_TIMEOUT_USEC", ""))) is not None:
            self.on_notification("EXTEND", repr(seconds))
        if assignments.get("RESTART_RESET") == "1":
            self.on_notification("RESTART_RESET", "")
        if (number := assignments.get("ERRNO", "")).isascii() and number.isdecimal() and int(number) <= MAX_ERRNO:
            self.on_notification("ERRNO", number)
        if "BUSERROR" in assignments:
            self.on_notification("BUSERROR", assignments["BUSERROR"])
        if assignments.get("STOPPING") == "1":
            self.on_notification("STOPPING", "")
        if assignments.get("WATCHDOG") == "trigger":
            self.on_notification("WATCHDOG", "said WATCHDOG=trigger")
        elif assignments.get("WATCHDOG") == "1" and self._watchdog_expires_at < math.inf:
            self._restart_watchdog()

    def _refuse(self, pid: int) -> None:
        if trio.current_time() >= self._silent_until:
            self._silent_until = trio.current_time() + REFUSALS_INTERVAL_S
            self.on_notification("REFUSED", f"ignored a message of process {pid}, which is not part of this workload")


def host_owner(spec: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the (uid, gid) on the host that the program will have; None if they are the supervisor's own."""
    owner = host_id(spec["uid"], spec["uid_mappings"]), host_id(spec["gid"], spec["gid_mappings"])
    return None if owner == (-1, -1) else owner
