"""The users of programs with `dynamic_user`: numbers that no user of the host, no other instance and no process has.

They are those of systemd's DynamicUser= (its doc/UIDS-GIDS.md), by a hash of the name, so that a name usually gets the
same number on each host. The choice is remembered in the state directory, so that a program keeps its number over
restarts of it and of the service; all services with the same directory share the list. If a user of the host has got a
number since, the instance gets another one when the service starts the next time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection
from functools import partial

import attrs

from nsupervisor.service.state.assigned_ids import AssignedIds
from nsupervisor.service.state.uid_ranges import is_known_id

DYNAMIC_USERS = range(61_184, 65_520)
"""The ids of dynamic users, for users and groups: those of systemd."""
_INSTEAD = "set supervisor.state_directory to another place, or write a user"


class DynamicUserError(Exception):
    """No number can be assigned or remembered; the message says why, and what to do."""


def pick_number(name: str, is_free: Callable[[int], bool]) -> int:
    """Return the number for `name`: the first free one from a place on that depends on the name alone.

    Raises DynamicUserError if none is free.
    """
    count = len(DYNAMIC_USERS)
    start = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") % count
    for offset in range(count):
        number = DYNAMIC_USERS[(start + offset) % count]
        if is_free(number):
            return number
    raise DynamicUserError(
        f"no id from {DYNAMIC_USERS[0]} to {DYNAMIC_USERS[-1]} is free; remove those of former workloads "
        f"from dynamic-users.json in the state directory, or write a user"
    )


@attrs.define(eq=False)
class DynamicUsers:
    """The numbers of the instances of one service. Nothing is read before the first one is needed."""

    directory: str
    """The state directory. It is made when it is needed."""
    service: str
    """The name of the service, as several may share the directory."""
    _numbers: dict[str, int] = attrs.field(init=False, factory=dict)

    def number(self, instance: str) -> int:
        """Return the number of an instance's user and group, and remember it. Raises DynamicUserError."""
        name = f"{self.service}/{instance}"
        if name not in self._numbers:
            ids = AssignedIds(
                self.directory, "dynamic-users", "users", "dynamic users", _INSTEAD, DynamicUserError, _is_dynamic
            )
            # Its own processes may run with a number that it has, but a user of the host may have got it since.
            self._numbers[name] = ids.assign(name, lambda number: not is_known_id(number), partial(_pick_unused, name))
        return self._numbers[name]


def _is_dynamic(value: object) -> bool:
    return type(value) is int and value in DYNAMIC_USERS


def _pick_unused(name: str, others: Collection[int]) -> int:
    used = {*others, *ids_of_processes()}
    return pick_number(name, lambda number: number not in used and not is_known_id(number))


def ids_of_processes() -> frozenset[int]:
    """Return the user and group ids of all processes of this host that this process sees, proc_pid_status(5)."""
    found: set[int] = set()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/status", "rb") as file:
                    for line in file:
                        if line.startswith((b"Uid:", b"Gid:", b"Groups:")):
                            found.update(map(int, line.split()[1:]))
            except OSError:  # it has ended
                continue
    return frozenset(found)
