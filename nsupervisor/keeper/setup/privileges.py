"""The capabilities of a program: which calls give it exactly those of its specification. Pure.

The program gets its capabilities from execve(2), which computes them (capabilities(7)): root has those of the bounding
set, another user the ambient ones. So the set-up drops the others from the bounding set while it has CAP_SETPCAP, and
prepares the sets of the process before the exec:

1. `bounding_drops`: the bounding set. `before_user`: PR_SET_KEEPCAPS if a later step needs a capability.
2. setgroups, setresgid, setresuid.
3. `after_user`: the effective, permitted and inheritable set, the ambient set, and the secure bits.

Without no_new_privs, a seccomp filter needs CAP_SYS_ADMIN (seccomp(2)). Then the process keeps that one until its exec,
which takes it away: it is in none of the sets that the new ones are computed from.
"""

from __future__ import annotations

import os

from nsupervisor.capability_names import ALL, NAMES
from nsupervisor.linux.syscalls import (
    CAPABILITY_HEADER,
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_RAISE,
    PR_CAPBSET_DROP,
    PR_SET_KEEPCAPS,
    PR_SET_SECUREBITS,
    pack_capabilities,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from nsupervisor.keeper.setup.spec import Spec

SETPCAP, SYS_ADMIN = 1 << 8, 1 << 21
"""Bits of capabilities, linux/capability.h."""

Call = tuple[str, str, tuple[int | bytes, ...]]
"""The operation for a message, "prctl" or "capset", and the arguments: numbers, or data for a pointer."""


def highest_capability() -> int:
    """Return the number of the last capability that the kernel has, capabilities(7)."""
    try:
        with open("/proc/sys/kernel/cap_last_cap") as file:
            return int(file.read())
    except OSError:
        return len(NAMES) - 1


def permitted_after(spec: Spec, own: int) -> int:
    """Return the permitted capabilities of a process with `own` after it has become the user of the program."""
    return 0 if spec.uid not in (None, 0) and not _keeps_capabilities(spec) else own


def is_changed(spec: Spec) -> bool:
    """Return whether a program has other capabilities than its user would have."""
    return spec.capability_bounding_set is not None or bool(spec.ambient_capabilities) or bool(_needed(spec))


def bounding_drops(bounding: int | None, no_new_privileges: bool, highest: int, permitted: int) -> Iterator[Call]:
    """Yield the calls that limit the bounding set; at any time before the change of the user.

    `highest`: of `highest_capability`. `permitted`: the permitted capabilities of the process. Without any, it cannot
    drop one from the bounding set, and with no_new_privs its programs never have one.
    """
    if bounding is not None and (permitted or not no_new_privileges):
        for number in range(highest + 1):
            if not bounding >> number & 1:
                yield "drop capabilities from the bounding set", "prctl", (PR_CAPBSET_DROP, number, 0, 0, 0)


def before_user(spec: Spec) -> Iterator[Call]:
    """Yield the other calls before the change of the user."""
    if _keeps_capabilities(spec):
        yield "keep capabilities", "prctl", (PR_SET_KEEPCAPS, 1, 0, 0, 0)


def after_user(spec: Spec, permitted: int) -> Iterator[Call]:
    """Yield the calls after the change of the user. `permitted`: the permitted capabilities of the process then."""
    if not is_changed(spec):
        return
    bounding = ALL if spec.capability_bounding_set is None else spec.capability_bounding_set
    needed, ambient = _needed(spec), spec.ambient_capabilities
    is_root = spec.uid == 0 or (spec.uid is None and os.geteuid() == 0)
    own = bounding if is_root else 0
    permitted &= own | needed | ambient
    effective = permitted & (own | needed)
    yield "set the capabilities", "capset", (CAPABILITY_HEADER, pack_capabilities(effective, permitted, ambient))
    for number, name in enumerate(NAMES):
        if ambient >> number & 1:
            yield f"raise CAP_{name} as ambient", "prctl", (PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0)
    if spec.secure_bits:
        yield "set the secure bits", "prctl", (PR_SET_SECUREBITS, spec.secure_bits, 0, 0, 0)


def _needed(spec: Spec) -> int:
    """Return the capabilities that later steps need."""
    return SETPCAP * bool(spec.secure_bits) | SYS_ADMIN * (bool(spec.filters) and not spec.no_new_privileges)


def _keeps_capabilities(spec: Spec) -> bool:
    return spec.uid not in (None, 0) and bool(spec.ambient_capabilities or _needed(spec))
