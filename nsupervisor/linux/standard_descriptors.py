"""The descriptors 0, 1 and 2 of this process. Standard library only."""

from __future__ import annotations

import os


def fill_standard_descriptors() -> frozenset[int]:
    """Open /dev/null in place of the standard descriptors that are closed; return their numbers.

    A file that is opened later would get such a number otherwise, and everything that is written to standard output
    would go into that file.
    """
    closed = set()
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:  # EBADF
            closed.add(fd)
            null = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            if null != fd:
                os.dup2(null, fd)
                os.close(null)
            os.set_inheritable(fd, True)
    return frozenset(closed)
