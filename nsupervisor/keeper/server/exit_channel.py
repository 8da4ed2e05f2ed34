"""The channel on which all inits report their programs' exit statuses: a single one, as there may be thousands.

The kernel adds to each message the sender's pid in the keeper's PID namespace (SCM_CREDENTIALS, unix(7)). A sender
cannot name a process outside its own PID namespace. An init is the keeper's child, so its pid is not reused before the
keeper has reaped it. Only inits have the other end: a standby closes it, and a program never has it. If a workload
obtains it all the same (by ptrace, with the rights of the host's root), its messages come from other pids than an
init's, and the keeper checks a report of the init itself against the program's pidfd.
"""

from __future__ import annotations

import os
import socket

from nsupervisor.keeper.native import STATUS
from nsupervisor.keeper.setup.descriptors import credentials_socket
from nsupervisor.keeper.setup.steps import CREDENTIALS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_MESSAGES = 1024
"""More than the socket can hold (some 300), so that one call of `read` returns each report that arrived before it, and
a flood of messages does not keep it busy."""
_ANCILLARY = socket.CMSG_SPACE(CREDENTIALS.size)  # no room for descriptors: the kernel closes any that are sent


class ExitChannel:
    """Both ends of the channel. The keeper's end does not block; each new zygote gets the inits' end."""

    def __init__(self, ends: tuple[int, int] | None = None) -> None:
        """Create the channel, or use the `ends` that `inherit` returned in the previous version of the keeper."""
        if ends is None:
            keeper_end, init_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ends = keeper_end.detach(), init_end.detach()
        self._keeper_end, self.init_end = credentials_socket(ends[0]), ends[1]
        self._keeper_end.setblocking(False)
        self.inherit(False)

    def fileno(self) -> int:
        """Return the keeper's end, to poll."""
        return self._keeper_end.fileno()

    def read(self) -> Iterator[tuple[int, int]]:
        """Yield each report that has arrived: an init's pid and its program's wait status. Never waits."""
        for _ in range(_MOST_MESSAGES):
            try:
                data, ancillary, flags, _ = self._keeper_end.recvmsg(STATUS.size, _ANCILLARY)
            except BlockingIOError:
                return
            if len(data) == STATUS.size and ancillary and not flags & socket.MSG_TRUNC:
                yield CREDENTIALS.unpack_from(ancillary[0][2])[0], STATUS.unpack(data)[0]

    def inherit(self, inheritable: bool) -> tuple[int, int]:
        """Set whether both ends survive an exec, and return their numbers (the keeper's end first)."""
        ends = self.fileno(), self.init_end
        for fd in ends:
            os.set_inheritable(fd, inheritable)
        return ends
