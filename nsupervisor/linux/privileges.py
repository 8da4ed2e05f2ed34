"""The privileges of this process, as far as the start of other programs depends on them."""

import os
import resource
from collections.abc import Iterator, Mapping
from typing import NamedTuple

SETGID, SETUID, SETPCAP, SYS_ADMIN, SYS_NICE, SYS_RESOURCE = 6, 7, 8, 21, 23, 24
"""Numbers of capabilities: capabilities(7), linux/capability.h."""

IdMap = tuple[tuple[int, int], ...]
"""The first id inside and the number of ids of each line, user_namespaces(7)."""


class Privileges(NamedTuple):
    """The facts about a process that decide what it may do."""

    uid: int
    gid: int
    capabilities: int
    """The effective capabilities as a bit mask, proc_pid_status(5)."""
    uid_map: IdMap
    gid_map: IdMap
    hard_limits: Mapping[str, int]
    """The hard limits by their names in getrlimit(2): "nofile"; `resource.RLIM_INFINITY` is none."""
    niceness: int

    def has(self, capability: int) -> bool:
        """Return whether a capability, given by its number, is effective."""
        return bool(self.capabilities >> capability & 1)

    @property
    def lowest_niceness(self) -> int:
        """The lowest niceness that it may set without CAP_SYS_NICE, setpriority(2)."""
        limit = self.hard_limits["nice"]  # 20 - niceness, getrlimit(2)
        return min(self.niceness, 20 - limit if limit != resource.RLIM_INFINITY else -20)


def own_privileges() -> Privileges:
    """Return the privileges of this process."""
    with open("/proc/self/status") as lines:
        capabilities = int(next(line.split()[1] for line in lines if line.startswith("CapEff:")), 16)
    limits = (name for name in dir(resource) if name.startswith("RLIMIT_"))
    return Privileges(
        uid=os.geteuid(),
        gid=os.getegid(),
        capabilities=capabilities,
        uid_map=tuple(_read_id_map("uid_map")),
        gid_map=tuple(_read_id_map("gid_map")),
        hard_limits={name[7:].lower(): resource.getrlimit(getattr(resource, name))[1] for name in limits},
        niceness=os.getpriority(os.PRIO_PROCESS, 0),
    )


def _read_id_map(file: str) -> Iterator[tuple[int, int]]:
    with open(f"/proc/self/{file}") as lines:
        for line in lines:
            inside, _, count = line.split()
            yield int(inside), int(count)
