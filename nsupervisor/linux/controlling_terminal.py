"""The controlling terminal of this process, and whether it is gone. Standard library only.

The kernel sends SIGHUP when a terminal is closed, but so does `kill -HUP`, and shells and sudo relay
that signal. The signal does not say which one it is; the terminal does: before the kernel sends it, all descriptors of
the terminal report a hang-up (`__tty_hangup` in drivers/tty/tty_io.c).
"""

from __future__ import annotations

import os
import select
import signal

IGNORES_HANGUP = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
"""Whether this process was started with SIGHUP ignored, as by nohup(1): it outlives the terminal."""


class ControllingTerminal:
    """A descriptor of the controlling terminal at the time when this is made; there may be none."""

    def __init__(self) -> None:
        self._fd = -1
        self.is_outlived = IGNORES_HANGUP
        try:
            self._fd = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            pass  # ENXIO: there is none, tty(4)

    def is_gone(self) -> bool:
        """Return whether there was a terminal that has been closed since."""
        if self._fd < 0:
            return False
        poll = select.poll()
        poll.register(self._fd, 0)  # POLLHUP and POLLERR are reported in any case, poll(2)
        return bool(poll.poll(0))

    def forget(self) -> None:
        """Close the descriptor; `is_gone` is False from now on."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
