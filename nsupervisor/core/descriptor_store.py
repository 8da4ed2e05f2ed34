"""The descriptor store of an instance: what a message asks for, its keys, and when it is released. Pure.

The words are those of sd_notify(3) and systemd.service(5), FileDescriptorStoreMax=.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import attrs

from nsupervisor.config.model import StorePreserve
from nsupervisor.core.lifecycle import Lifecycle
from nsupervisor.core.states import DOWN_STATES, State

DEFAULT_NAME = "stored"
"""FDNAME of a descriptor that comes without one."""
MAX_NAME = 255
"""The most characters of a name."""
_PREFIX = ":store"
"""Begins the keys under which the keeper holds stored descriptors; no name of a workload begins so."""
_POLLED, _NOT_POLLED = "poll", "keep"


@attrs.frozen
class StoreRequest:
    """FDSTORE=1 or FDSTOREREMOVE=1 in a message.

    `removes`: the descriptors with this name are removed, otherwise those of the message are added under it.
    `is_polled`: they are removed when the other end is closed. `problem`: what is wrong with the name, or "".
    """

    name: str = DEFAULT_NAME
    removes: bool = False
    is_polled: bool = True
    problem: str = ""


class StoredKey(NamedTuple):
    """The parts of a key of the keeper: "web@2", the place in the order of the store, FDPOLL, and FDNAME."""

    instance: str
    number: int
    is_polled: bool
    name: str

    def __str__(self) -> str:
        return " ".join((_PREFIX, self.instance, str(self.number), (_NOT_POLLED, _POLLED)[self.is_polled], self.name))


def is_valid_name(name: str) -> bool:
    """Check a name as systemd does: printable ASCII characters without a colon, which separates names."""
    return 0 < len(name) <= MAX_NAME and all(" " <= character <= "~" and character != ":" for character in name)


def _describe(name: str) -> str:
    shown = repr(name[:32]) + "…" * (len(name) > 32)
    return f"{shown} is not a name of at most {MAX_NAME} printable ASCII characters without a colon (FDNAME)"


def parse_store_request(assignments: Mapping[str, str]) -> StoreRequest | None:
    """Return what a message asks the store for; None: nothing. A removal wins, and needs a name."""
    name = assignments.get("FDNAME")
    wrong = "" if name is None or is_valid_name(name) else _describe(name)
    if assignments.get("FDSTOREREMOVE") == "1":
        problem = wrong or ("FDSTOREREMOVE=1 came without FDNAME" if name is None else "")
        return StoreRequest(name or "", removes=True, problem=problem)
    if assignments.get("FDSTORE") == "1":
        return StoreRequest(
            DEFAULT_NAME if wrong or name is None else name,
            is_polled=assignments.get("FDPOLL") != "0",
            problem=f"{wrong}; it is stored as {DEFAULT_NAME!r}" if wrong else "",
        )
    return None


def is_store_key(key: str) -> bool:
    """Return whether a key of the keeper is one of a stored descriptor."""
    return key.startswith(f"{_PREFIX} ")


def parse_store_key(key: str) -> StoredKey | None:
    """Return the parts of a key; None if a version wrote it whose keys this one does not know."""
    parts = key.split(" ", 4)
    if len(parts) != 5 or not parts[2].isdecimal() or parts[3] not in (_POLLED, _NOT_POLLED):
        return None
    return StoredKey(parts[1], int(parts[2]), parts[3] == _POLLED, parts[4])


def keeps_store(preserve: StorePreserve, before: Lifecycle, after: Lifecycle, is_start_pending: bool) -> bool:
    """Return whether a change of an instance leaves its stored descriptors where they are.

    "yes": always. "no": until its program has ended. "restart": while it runs, or is started again by its policy or by
    a start that waits (`is_start_pending`). As FileDescriptorStorePreserve= of systemd.service(5).
    """
    match preserve:
        case "yes":
            return True
        case "restart":
            return after.state not in DOWN_STATES or is_start_pending
    return after.generation == before.generation and after.state not in (*DOWN_STATES, State.BACKOFF)
