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
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import attrs
import trio

from nsupervisor.core.descriptor_store import StoreRequest, parse_store_request
from nsupervisor.core.pauses import pause_after
from nsupervisor.keeper.setup.spec import host_id
from nsupervisor.linux import received_descriptors
from nsupervisor.notify_socket import (
    MAX_DATAGRAM_BYTES,
    Ancillary,
    Datagram,
    NotifySocket,
    ancillary_bytes,
    descriptors_in,
    sender_of,
)
from nsupervisor.service.instance.status_texts import StatusTexts

MAX_EXTENSION_S = 366 * 86400.0
"""The most seconds by which a program may extend its time at once."""
MAX_ERRNO = 4095
"""The largest number of an error, MAX_ERRNO in include/linux/err.h."""
MAX_PID_DIGITS = 7
"""The digits of PID_MAX_LIMIT, proc_sys_kernel(5)."""
REFUSALS_INTERVAL_S = 60.0
"""Seconds between two records about messages of others, and between two about the descriptor store."""
MAX_UNUSUAL_FDS = 8
"""How many descriptors that may block the process that closes them are received in one generation; then none at all."""
EXPENSIVE_S = 0.001
"""Seconds of work for a message from which a pause follows. MAINPID, for example, has all processes looked at."""
MAX_PAUSE_S = 0.25
"""The longest pause after such a message."""
MAX_WAITING = 1000
"""The most messages that are read at once; the kernel queues fewer, net.unix.max_dgram_qlen."""
MAX_WAITING_S = 1.0
"""Seconds after which no further message is read at once."""
Sender = Callable[[int], bool]
"""Whether a process, by its pid, may speak for the program; True if it has ended."""


def parse(data: bytes) -> dict[str, str]:
    """Return the assignments of a datagram: `{"READY": "1", "STATUS": "…"}`.

    Only a newline ends an assignment, sd_notify(3): a text that a program passes on may contain other separators.
    Lines of another form are ignored.
    """
    lines = data.decode(errors="replace").split("\n")
    return {key: value for key, equals, value in (line.partition("=") for line in lines) if equals}


async def receive(
    ours: NotifySocket,
    is_own: Sender,
    refuse: Callable[[int], None],
    max_fds: int = 1,
    discard: Callable[[Sequence[int]], object] = received_descriptors.discard,
) -> Datagram:
    """Return the next datagram that counts. `refuse` gets the pid of the sender of one that does not.

    `max_fds`: the most descriptors that a message may have, or one more; `discard` closes those of others.
    """
    while True:
        if ours.backlog:
            datagram = ours.backlog.popleft()
        else:
            room = ancillary_bytes(max_fds)
            data, ancillary, flags, _ = await ours.socket.recvmsg(MAX_DATAGRAM_BYTES, room, socket.MSG_CMSG_CLOEXEC)
            datagram = _datagram(data, ancillary, flags)
            if _is_refused(datagram, is_own, refuse, discard):
                continue
        return datagram


def _datagram(data: bytes, ancillary: Ancillary, flags: int) -> Datagram:
    return Datagram(data, descriptors_in(ancillary), sender_of(ancillary), bool(flags & socket.MSG_CTRUNC))


def _is_refused(
    datagram: Datagram, is_own: Sender, refuse: Callable[[int], None], discard: Callable[[Sequence[int]], object]
) -> bool:
    """Return whether a datagram does not count; its descriptors are closed then."""
    pid = datagram.pid
    if pid <= 0 or is_own(pid):  # 0: sent before SO_PASSCRED was set, or from a PID namespace that is not visible
        return False
    discard(datagram.fds)
    refuse(pid)
    return True


def _seconds(microseconds: str, maximum_s: float = MAX_EXTENSION_S) -> float | None:
    """Return a time of a message in seconds; None if it is none, or longer than `maximum_s`."""
    if not (microseconds.isascii() and microseconds.isdecimal() and len(microseconds) < 20):
        return None
    seconds = int(microseconds) / 1e6
    return seconds if seconds <= maximum_s else None


def _set_event() -> trio.Event:
    event = trio.Event()
    event.set()
    return event


@attrs.define(eq=False)
class NotificationReader:
    """Reads the messages of one generation.

    `on_notification` receives ("READY", ""), ("RELOADING", seconds or ""), ("STOPPING", ""), ("RESTART_RESET", ""),
    ("ERRNO", number), ("BUSERROR", text), ("EXTEND", seconds) and ("WATCHDOG", reason). The last one means that the
    program triggered the watchdog itself, or sent no keep-alive for `watchdog_sec` (0: none required) while
    `set_watchdog` requires them. At most once a minute it also receives ("REFUSED", text), for messages of other
    processes. `on_status` receives status texts as `StatusTexts` reports them.

    It also receives ("MAINPID", the pid that the program has sent and that of the sender, or "") and ("MAINPIDFD", a
    descriptor, which is closed afterwards).

    `on_barrier` gets the descriptor of BARRIER=1, and closes it when all notifications before it have been handled.

    `on_store` gets what a message asks the descriptor store for, and its descriptors, which belong to it; it returns
    what has been refused, in words, or "". At most once a minute `on_notification` receives ("STORE", text) about that.
    """

    socket: NotifySocket
    watchdog_sec: float
    on_notification: Callable[[str, str], None]
    on_status: Callable[[str, int], None]
    is_own: Sender = lambda pid: True
    on_barrier: Callable[[int], None] = os.close
    is_ready: bool = False
    """Whether the program has sent READY=1."""
    max_stored: int = 0
    """The most descriptors that the program may store; 0: none."""
    on_store: Callable[[StoreRequest, Sequence[int]], str] = lambda request, fds: ""
    discard: Callable[[Sequence[int]], int] = received_descriptors.discard
    """Closes descriptors; returns how many of them may block the caller, and were closed elsewhere."""
    may_notify: Sender = lambda pid: True
    """Whether a process may speak, for what arrived while no service ran: `is_own` may not know it any more."""
    may_read: trio.Event = attrs.field(factory=_set_event)
    """Set when it is known who may speak; the task reads nothing before."""
    _unusual: int = attrs.field(init=False, default=0)
    """How many descriptors of that kind have come."""
    _store_silent_until: float = attrs.field(init=False, default=-math.inf)
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
                    await self.may_read.wait()
                    while True:
                        with trio.move_on_at(self._watchdog_expires_at) as self._waiting:
                            await self._receive()
                        if trio.current_time() >= self._watchdog_expires_at:
                            self._restart_watchdog()
                            self.on_notification("WATCHDOG", f"no WATCHDOG=1 for {self.watchdog_sec:g} s")
                finally:
                    self._statuses.flush()  # a program often says at its end why it ends

    async def _receive(self) -> None:
        while self.socket.backlog:
            self._handle_earlier(self.socket.backlog.popleft())
            await trio.lowlevel.checkpoint()
        datagram = await receive(self.socket, self.is_own, self._refuse, self._max_fds, self._discard)
        began_at = trio.current_time()
        self._handle(datagram)
        took_s = trio.current_time() - began_at
        if took_s >= EXPENSIVE_S:
            await trio.sleep(min(pause_after(took_s), MAX_PAUSE_S))

    @property
    def _max_fds(self) -> int:
        """The most descriptors of a message: each one that comes has to be looked at and closed."""
        return max(self.max_stored, 1) if self._unusual < MAX_UNUSUAL_FDS else 0

    def _discard(self, fds: Sequence[int]) -> None:
        self._unusual += self.discard(fds)

    def hold(self) -> None:
        """Read nothing until `may_read` is set again."""
        self.may_read = trio.Event()

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

        Race: a program that sends READY=1 and exits may be reported as exited before the reading task runs. Processes
        that it leaves may send as fast as this reads, so it ends in any case.
        """
        until = trio.current_time() + MAX_WAITING_S
        while self.socket.backlog:
            self._handle_earlier(self.socket.backlog.popleft())
        with suppress(OSError):  # BlockingIOError: no message waits
            for _ in range(MAX_WAITING):
                if trio.current_time() >= until:
                    break
                room = ancillary_bytes(self._max_fds)
                data, ancillary, flags, _ = self.socket.receive_now(MAX_DATAGRAM_BYTES, room, socket.MSG_CMSG_CLOEXEC)
                datagram = _datagram(data, ancillary, flags)
                if not _is_refused(datagram, self.is_own, self._refuse, self._discard):
                    self._handle(datagram)

    def _handle_earlier(self, datagram: Datagram) -> None:
        """Handle a message that arrived while no service ran."""
        if not _is_refused(datagram, self.may_notify, self._refuse, self._discard):
            self._handle(datagram)

    def _handle(self, datagram: Datagram) -> None:
        assignments = parse(datagram.data)
        if assignments == {"BARRIER": "1"} and len(datagram.fds) == 1:  # alone, sd_notify(3)
            self.on_barrier(datagram.fds[0])
            return
        # MAINPID comes before READY=1 and STOPPING=1: they are about the process that it names.
        if len(datagram.fds) == 1 and assignments.get("MAINPIDFD") == "1":
            self.on_notification("MAINPIDFD", str(datagram.fds[0]))
        elif "MAINPID" in assignments:
            number = assignments["MAINPID"]
            is_pid = number.isascii() and number.isdecimal() and len(number) <= MAX_PID_DIGITS
            self.on_notification("MAINPID", f"{number} {datagram.pid}" if is_pid else "")
        self._handle_store(parse_store_request(assignments), datagram)
        self._handle_assignments(assignments)

    def _handle_store(self, request: StoreRequest | None, datagram: Datagram) -> None:
        fds = datagram.fds
        if request is None or request.removes or not self.max_stored:
            self._discard(fds)
            fds = ()
        if request is None:
            return
        if not self.max_stored:
            problem = "it may not store descriptors; set file_descriptor_store_max"
        elif datagram.pid > 0 and fds and not self.is_own(datagram.pid):  # it waited while no service ran
            self._discard(fds)
            problem = f"process {datagram.pid}, which is not part of this workload, has sent descriptors"
        else:
            refused = self.on_store(request, fds)
            lost = f"more than {self.max_stored} descriptors in one message" if datagram.was_cut else ""
            problem = "; ".join(filter(None, (request.problem, refused, lost)))
        if problem and trio.current_time() >= self._store_silent_until:
            self._store_silent_until = trio.current_time() + REFUSALS_INTERVAL_S
            self.on_notification("STORE", f"descriptor store: {problem}")

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
            self.on_notification(
                "REFUSED",
                f"ignored a message of process {pid}, which is not part of this workload, or not heard (notify_access)",
            )


def host_owner(spec: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the (uid, gid) on the host that the program will have; None if they are the supervisor's own."""
    owner = host_id(spec["uid"], spec["uid_mappings"]), host_id(spec["gid"], spec["gid_mappings"])
    return None if owner == (-1, -1) else owner
