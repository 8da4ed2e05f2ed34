"""A timer on the wall clock that also expires when the clock is set: timerfd_create(2). Standard library only."""

from __future__ import annotations

import ctypes
import errno
import os

from nsupervisor.linux.syscalls import libc

_CLOCK_REALTIME = 0
_TFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_TFD_TIMER_ABSTIME, _TFD_TIMER_CANCEL_ON_SET = 1, 2
_NEVER_S = 7_258_118_400
"""The year 2200: an absolute time, as only a timer that is armed notices that the clock is set."""


class _Time(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("interval", _Time), ("value", _Time))


class WallTimer:
    """A timer. Its descriptor is readable when the time has come, or when the clock was set. Raises OSError."""

    def __init__(self) -> None:
        self.fd = libc.timerfd_create(_CLOCK_REALTIME, _TFD_FLAGS)
        if self.fd < 0:
            raise _error("timerfd_create")

    def set(self, wall: float | None) -> bool:
        """Set the time to expire at, in seconds since 1970; None: never.

        Returns whether the clock was set since the last call.
        """
        seconds = min(max(wall if wall is not None else _NEVER_S, 1e-9), _NEVER_S)
        value = _Time(int(seconds), max(int(seconds % 1 * 1e9), 0 if seconds >= 1 else 1))
        flags = _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET
        if libc.timerfd_settime(self.fd, flags, ctypes.byref(_Setting(_Time(0, 0), value)), None) == 0:
            return False
        if ctypes.get_errno() == errno.ECANCELED:  # it is armed all the same
            return True
        raise _error("timerfd_settime")

    def read(self) -> bool:
        """Read that it has expired; return whether the reason is that the clock was set."""
        try:
            os.read(self.fd, 8)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.ECANCELED:
                return True
            raise
        return False

    def close(self) -> None:
        """Close the descriptor of the timer."""
        os.close(self.fd)


def _error(operation: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), operation)
