"""Calls in a forked child, of which nothing remains: to try what the kernel allows."""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class ForkedCall:
    """A call of `work` in a forked child. Nothing of it remains after `error` has been called."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.readable, writable = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.close(self.readable)
                try:
                    work()
                    status = 0
                except OSError as error:
                    os.write(writable, f"{error.errno or 0} {error.filename or ''}".encode())
            finally:
                os._exit(status)
        os.close(writable)

    def error(self) -> OSError | None:
        """Wait for its end; return None if it succeeded, else the OSError that it raised. To be called once."""
        with os.fdopen(self.readable) as file:
            message = file.read()
        _, status = os.waitpid(self.pid, 0)
        if status == 0:
            return None
        number, _, operation = message.partition(" ")
        if not number:  # it was killed, for instance by a seccomp filter
            return OSError(errno.EPERM, f"the attempt was ended with wait status {status}", "")
        return OSError(int(number), os.strerror(int(number)), operation)


def in_child(work: Callable[[], None]) -> OSError | None:
    """Run `work` in a forked child; return None if it succeeded, else the OSError. Nothing of it remains."""
    return ForkedCall(work).error()


def fork_and_wait(work: Callable[[], None]) -> None:
    """Within `in_child`: fork a further child, as the first process of a new pid or time namespace. Raises OSError."""
    if (error := in_child(work)) is not None:
        raise error
