"""One interface to cgroups, whichever hierarchies the host has, and a watcher of their files.

`Host` describes what the host offers, `Tree` is the supervisor's subtree, `Cgroup` is the cgroup of one workload, and
`open_watcher` reports changes. Names, keys and units are those of cgroup v2 everywhere.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nsupervisor.cgroups.cgroup import Cgroup
    from nsupervisor.cgroups.errors import CgroupError, CgroupGoneError, HostProblem
    from nsupervisor.cgroups.host import Controller, Host
    from nsupervisor.cgroups.pressure import Trigger
    from nsupervisor.cgroups.readings import Reading
    from nsupervisor.cgroups.tree import Tree
    from nsupervisor.cgroups.watcher import EVENT_FILES, Watcher, open_watcher

__all__ = [
    "EVENT_FILES",
    "Cgroup",
    "CgroupError",
    "CgroupGoneError",
    "Controller",
    "Host",
    "HostProblem",
    "Reading",
    "Tree",
    "Trigger",
    "Watcher",
    "open_watcher",
]

_MODULES = {
    "cgroup": ("Cgroup",),
    "errors": ("CgroupError", "CgroupGoneError", "HostProblem"),
    "host": ("Controller", "Host"),
    "pressure": ("Trigger",),
    "readings": ("Reading",),
    "tree": ("Tree",),
    "watcher": ("EVENT_FILES", "Watcher", "open_watcher"),
}


def __getattr__(name: str) -> Any:
    """Import the module of a public name when the name is first used.

    `check` and `doctor` need only the host. The watcher needs trio, whose import costs more than everything else that a
    command does.
    """
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
