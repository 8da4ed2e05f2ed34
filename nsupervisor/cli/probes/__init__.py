"""What `nsupervisor doctor` finds out, and how: by trying, in children that end at once.

Each module has functions that give findings. What needs a child, or takes the kernel its time, is begun when they are
called, and told when its turn comes: so all of it goes on side by side.
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
    """One thing that was looked at. state: OK, LIMITED or MISSING. text: what that means, a sentence. instead: what to
    do about it, "" where there is nothing to do. essential: workloads cannot be run at all where it is missing."""

    name: str
    state: str
    text: str
    instead: str = ""
    essential: bool = False


def sections() -> Iterator[tuple[str, Iterator[Finding]]]:
    """Each section's title and its findings, in the order in which people read them."""
    begun = {title: getattr(import_module(f"{__name__}.{module}"), name)() for title, module, name in BEGUN}
    yield from ((title, begun[title]) for title in SECTIONS)


SECTIONS = ("kernel", "privileges", "namespaces", "cgroups", "rootless", "network")
BEGUN = (
    ("kernel", "kernel", "findings"),
    ("namespaces", "namespaces", "findings"),
    ("privileges", "privileges", "findings"),
    ("rootless", "privileges", "rootless"),
    ("network", "network", "findings"),
    ("cgroups", "cgroups", "findings"),
)
"""Titles, modules, functions: what the kernel takes longest for comes first, what takes us longest to load last."""


class Attempt:
    """`work`, done by a forked child from now on. Nothing of it remains once `error` has been called."""

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
        """Wait for its end; None when it went well, else the OSError that was raised. To be called once."""
        with os.fdopen(self.readable) as file:
            said = file.read()
        _, status = os.waitpid(self.pid, 0)
        if status == 0:
            return None
        number, _, what = said.partition(" ")
        if not number:  # it died: a seccomp filter that kills, for instance
            return OSError(errno.EPERM, f"the attempt was ended with wait status {status}", "")
        return OSError(int(number), os.strerror(int(number)), what)


def in_child(work: Callable[[], None]) -> OSError | None:
    """Run `work` in a forked child; None when it went well, else the OSError that it raised. Nothing of it remains."""
    return Attempt(work).error()


def fork_and_wait(work: Callable[[], None]) -> None:
    """Within `in_child`: have a child of one's own, as the first process of a new pid or time namespace. OSError."""
    if (error := in_child(work)) is not None:
        raise error


def read(path: str) -> str:
    """The stripped content of a small file; "" where it is not there or not readable."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
