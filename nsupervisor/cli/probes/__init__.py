"""The probes of `nsupervisor doctor`: each one uses a feature, in children that end at once.

Each module has functions that return findings. A probe that needs a child, or keeps the kernel busy, starts when its
function is called, and its result is read when it is shown: so all probes run concurrently.
"""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple

from nsupervisor.linux.forked_calls import ForkedCall as ForkedCall
from nsupervisor.linux.forked_calls import fork_and_wait as fork_and_wait
from nsupervisor.linux.forked_calls import in_child as in_child

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

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


def read_file(path: str) -> str:
    """Return the stripped content of a small file; "" if it does not exist or is not readable."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
