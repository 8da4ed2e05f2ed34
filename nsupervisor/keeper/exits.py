"""The channel by which all inits tell how their programs have ended: one for all of them, as there may be thousands.

The kernel adds to each message which process has sent it, in the keeper's numbers (SCM_CREDENTIALS, unix(7)), and lets
nobody name a process outside of the sender's own PID namespace. An init is the keeper's child, so while the keeper has
not reaped it, its pid is nobody else's. Only inits have the other end: a forerunner closes it, a program never has it.
"""

from __future__ import annotations

import os
import socket

from nsupervisor.keeper.child import CREDENTIALS
from nsupervisor.keeper.descriptors import channel
from nsupervisor.keeper.init import STATUS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_ANCILLARY = socket.CMSG_SPACE(CREDENTIALS.size)  # nothing else: descriptors that came along would be closed


class Exits:
    """Both ends: ours does not block; theirs is for the zygote, and is there for each zygote to come."""

    def __init__(self, ends: tuple[int, int] | None = None) -> None:
        """With `ends`, those that `inherit` has told of in the version before this one."""
        if ends is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ends = ours.detach(), theirs.detach()
        self._ours, self.theirs = channel(ends[0]), ends[1]
        self._ours.setblocking(False)
        self.inherit(False)

    def fileno(self) -> int:
        """Ours, to wait for."""
        return self._ours.fileno()

    def read(self) -> Iterator[tuple[int, int]]:
        """What has been told: an init's pid, and its program's wait status. Never waits."""
        while True:
            try:
                data, ancillary, flags, _ = self._ours.recvmsg(STATUS.size, _ANCILLARY)
            except BlockingIOError:
                return
            if len(data) == STATUS.size and ancillary and not flags & socket.MSG_TRUNC:
                yield CREDENTIALS.unpack_from(ancillary[0][2])[0], STATUS.unpack(data)[0]

    def inherit(self, inheritable: bool) -> tuple[int, int]:
        """Whether both survive an exec; their numbers."""
        ends = self.fileno(), self.theirs
        for fd in ends:
            os.set_inheritable(fd, inheritable)
        return ends
