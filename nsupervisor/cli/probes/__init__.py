"""What `nsupervisor doctor` finds out, and how: by trying, in children that end at once.

Each module has functions that yield findings; `SECTIONS` has them in the order in which people read them.
"""

from __future__ import annotations

import errno
import os
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
    """Each section's title and its findings, which are made while they are read."""
    from nsupervisor.cli.probes import cgroups, kernel, namespaces, network, privileges

    yield "kernel", kernel.findings()
    yield "privileges", privileges.findings()
    yield "namespaces", namespaces.findings()
    yield "cgroups", cgroups.findings()
    yield "rootless", privileges.rootless()
    yield "network", network.findings()


def in_child(work: Callable[[], None]) -> OSError | None:
    """Run `work` in a forked child; None when it went well, else the OSError that it raised. Nothing of it remains."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(readable)
            try:
                work()
                status = 0
            except OSError as error:
                os.write(writable, f"{error.errno or 0} {error.filename or ''}".encode())
        finally:
            os._exit(status)
    os.close(writable)
    with os.fdopen(readable) as file:
        said = file.read()
    _, status = os.waitpid(pid, 0)
    if status == 0:
        return None
    number, _, what = said.partition(" ")
    if not number:  # it died: a seccomp filter that kills, for instance
        return OSError(errno.EPERM, f"the attempt was ended with wait status {status}", "")
    return OSError(int(number), os.strerror(int(number)), what)


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
