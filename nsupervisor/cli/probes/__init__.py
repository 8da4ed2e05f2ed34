"""The probes of `nsupervisor doctor`: each one uses a feature, in children that end at once.

Each module has functions that return findings. A probe that needs a child, or keeps the kernel busy, starts when its
function is called, and its result is read when it is shown: so all probes run concurrently.
"""

from __future__ import annotations

import errno
import os
from importlib import import_module
from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OK, LIMITED, MISSING = "ok", "limited", "missing"


class Finding(NamedTuple):
    """The result of one probe.

    state: OK, LIMITED or MISSING. text: what that means, a sentence. instead: what to do about it, "" if there is
    nothing to do. essential: no workload can be run if it is missing.
    """

    name: str
    state: str
    text: str
    remedy: str = ""
    essential: bool = False


def sections() -> Iterator[tuple[str, Iterator[Finding]]]:
    """Yield each section's title and its findings, in the order for people."""
    begun = {title: getattr(import_module(f"{__name__}.{module}"), name)() for title, module, name in PROBES}
    yield from ((title, begun[title]) for title in SECTIONS)


SECTIONS = ("kernel", "privileges", "namespaces", "cgroups", "rootless", "network")
PROBES = (
    ("kernel", "kernel", "findings"),
    ("namespaces", "namespaces", "findings"),
    ("privileges", "privileges", "findings"),
    ("rootless", "privileges", "rootless"),
    ("network", "network", "findings"),
    ("cgroups", "cgroups", "findings"),
)
"""Titles, modules, functions: the slowest for the kernel first, the slowest to import last."""


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


def read_file(path: str) -> str:
    """Return the stripped content of a small file; "" if it does not exist or is not readable."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
