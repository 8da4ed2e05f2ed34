"""Ranges of user and group ids for user namespaces without mappings of their own.

Each workload instance gets 65,536 ids that no user, no other instance and no entry of /etc/subuid has, as containers of
systemd-nspawn do: from the same part of the ids, by a hash of the name, so that a name usually gets the same range on
each host. The choice is remembered in the state directory, so that files keep their owner. All services with the same
state directory share the list.
"""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
from collections.abc import Callable, Iterable, Iterator

import attrs

from nsupervisor.service.state.assigned_ids import AssignedIds

UID_RANGES = range(524_288, 1_879_048_192)
"""The ids for user namespaces without mappings: those of systemd-nspawn --private-users=pick (its doc/UIDS-GIDS.md)."""
SIZE = 65_536
"""Ids of a range. Each range begins at a multiple of it."""
FIRST, LAST = UID_RANGES[0], UID_RANGES[-1]
STATE_DIRECTORY = "/var/lib/nsupervisor"
"""The default of `supervisor.state_directory` for root."""
_ATTEMPTS = 10_000
_INSTEAD = "set supervisor.state_directory to another place, or write user_namespace.uid_mappings and gid_mappings"


class UidRangeError(Exception):
    """No range can be assigned or remembered; the message says why, and what to do."""


def default_state_directory() -> str:
    """Return the directory for what outlives a stop of the service, if the configuration names none."""
    if os.geteuid() == 0:
        return STATE_DIRECTORY
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return f"{home}/nsupervisor"


def pick_range(name: str, is_free: Callable[[int], bool]) -> int:
    """Return the first id of a range for `name`: the first free one of a sequence that depends on the name alone.

    Raises UidRangeError if no range is free.
    """
    count = (LAST + 1 - FIRST) // SIZE
    for attempt in range(_ATTEMPTS):
        digest = hashlib.blake2b(f"{name}\0{attempt}".encode(), digest_size=8).digest()
        first = FIRST + int.from_bytes(digest, "big") % count * SIZE
        if is_free(first):
            return first
    raise UidRangeError("there is no free range of user ids on this host; write user_namespace.uid_mappings")


@attrs.define(eq=False)
class UidRanges:
    """The ranges of the instances of one service. Nothing is read before the first range is needed."""

    directory: str
    """The state directory. It is made when it is needed."""
    service: str
    """The name of the service, as several may share the directory."""
    _ranges: dict[str, int] = attrs.field(init=False, factory=dict)

    def mapping(self, instance: str) -> list[list[int]]:
        """Return the mapping of an instance, the same for users and groups, and remember it. Raises UidRangeError."""
        name = f"{self.service}/{instance}"
        if name not in self._ranges:
            ids = AssignedIds(
                self.directory, "uid-ranges", "ranges", "the range of user ids", _INSTEAD, UidRangeError, _is_first_id
            )
            self._ranges[name] = ids.assign(
                name, lambda first: True, lambda others: pick_range(name, _free_range_check(others))
            )
        return [[0, self._ranges[name], SIZE]]


def _is_first_id(value: object) -> bool:
    return type(value) is int and FIRST <= value <= LAST and value % SIZE == 0


def _free_range_check(others: Iterable[int]) -> Callable[[int], bool]:
    """Return a predicate of the first id of a range: the range has no id of a user, a group, subuid(5) or `others`."""
    used = [(first, SIZE) for first in others]
    used += [(entry.pw_uid, 1) for entry in pwd.getpwall()]
    used += [(entry.gr_gid, 1) for entry in grp.getgrall()]
    for path in ("/etc/subuid", "/etc/subgid"):
        used += _read_subordinate_ids(path)

    def is_free(first: int) -> bool:
        return not any(start < first + SIZE and first < start + count for start, count in used) and not is_known_id(
            first
        )

    return is_free


def is_known_id(number: int) -> bool:
    """Return whether a user or group has this id. Some databases answer this, but do not list their entries."""
    for look_up in (pwd.getpwuid, grp.getgrgid):
        try:
            look_up(number)
        except KeyError:
            continue
        return True
    return False


def _read_subordinate_ids(path: str) -> Iterator[tuple[int, int]]:
    """Yield the first id and the number of ids of each entry, subuid(5)."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                fields = line.strip().split(":")
                if len(fields) == 3 and fields[1].isdecimal() and fields[2].isdecimal():
                    yield int(fields[1]), int(fields[2])
    except OSError:  # a host without such ids
        return
