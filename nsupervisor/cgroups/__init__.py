"""Cgroups behind one interface, whichever hierarchies the host has; and the watcher of their files.

`Host` says what the host offers, `Tree` is the supervisor's subtree, `Cgroup` is one workload's, and `open_watcher`
tells what the kernel says about them. Names, keys and units are cgroup v2's everywhere.
"""

from nsupervisor.cgroups.cgroup import Cgroup
from nsupervisor.cgroups.errors import CgroupError, CgroupGoneError, Problem
from nsupervisor.cgroups.host import Controller, Host
from nsupervisor.cgroups.pressure import Trigger
from nsupervisor.cgroups.readings import Reading
from nsupervisor.cgroups.tree import Tree
from nsupervisor.cgroups.watcher import Watcher, open_watcher

__all__ = [
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
