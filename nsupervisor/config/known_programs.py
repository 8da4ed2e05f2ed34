"""Programs that identify a running copy of themselves by what a namespace changes. Pure.

Their lock, or the file by which their own tools find them, has a process id or a key of shared memory in it. In a
namespace of its own such a program has numbers that mean another process outside, or none. Sources: the manual pages of
the programs.
"""

from __future__ import annotations

from typing import NamedTuple


class Lock(NamedTuple):
    """How a program identifies itself, the namespaces in which that is valid, and what goes wrong outside of them."""

    means: str
    namespaces: tuple[str, ...]
    harm: str


_POSTGRES = Lock(
    "a process id and shared memory", ("pid", "ipc"), "a second server on the same directory would start outside"
)
_SIGNALLED = Lock("a process id in a file", ("pid",), "its own commands (reload, stop) would signal a stranger outside")

LOCKS: dict[str, Lock] = {
    "postgres": _POSTGRES,
    "postmaster": _POSTGRES,
    "nginx": _SIGNALLED,
    "apache2": _SIGNALLED,
    "httpd": _SIGNALLED,
    "squid": _SIGNALLED,
    "pgbouncer": _SIGNALLED,
    "uwsgi": _SIGNALLED,
}
"""By the last part of the program's path."""


def find_lock(program: str) -> tuple[str, Lock] | None:
    """Return the name and the lock of a known program."""
    name = program.rpartition("/")[2]
    lock = LOCKS.get(name)
    return None if lock is None else (name, lock)
