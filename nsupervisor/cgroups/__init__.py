"""Cgroups behind one interface, whichever hierarchies the host has; and the watcher of their files.

`Host` says what the host offers, `Tree` is the supervisor's subtree, `Cgroup` is one workload's, and `open_watcher`
tells what the kernel says about them. Names, keys and units are cgroup v2's everywhere.
"""

from typing import TYPE_CHECKING, Any

from nsupervisor.cgroups.cgroup import Cgroup
from nsupervisor.cgroups.errors import CgroupError, CgroupGoneError, Problem
from nsupervisor.cgroups.host import Controller, Host
from nsupervisor.cgroups.readings import Reading
from nsupervisor.cgroups.tree import Tree

if TYPE_CHECKING:
    from nsupervisor.cgroups.pressure import Trigger
    from nsupervisor.cgroups.watcher import EVENT_FILES, Watcher, open_watcher

__all__ = [
    "EVENT_FILES",
    "Cgroup",
    "CgroupError",
    "CgroupGoneError",
    "Controller",
    "Host",
    "Problem",
    "Reading",
    "Tree",
    "Trigger",
    "Watcher",
    "open_watcher",
]


def __getattr__(name: str) -> Any:
    """Load the watcher when it is asked for: it needs the event loop, whose import is most of what a command costs."""
    if name not in ("EVENT_FILES", "Trigger", "Watcher", "open_watcher"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nsupervisor.cgroups import pressure, watcher

    return getattr(pressure if name == "Trigger" else watcher, name)
