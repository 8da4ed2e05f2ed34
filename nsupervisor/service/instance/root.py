"""A root file system of a workload's own: the key of its specification, and the users that it has.

Everything in it may belong to others. Its files are found as from inside, openat2(2) with RESOLVE_IN_ROOT.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nsupervisor.config.expansion import Instance
from nsupervisor.config.model import RootConfig, WorkloadConfig
from nsupervisor.linux.trusted_paths import locate, read_in_root, trusted_users
from nsupervisor.service.instance.users import IdentityError, UserIdentity, resolve_user

MAX_DATABASE_BYTES = 4 << 20
"""The most bytes of /etc/passwd and /etc/group in a root."""


def root_key(root: RootConfig, instance: Instance | None, state_directory: str) -> dict[str, Any]:
    """Return the key `root` of a specification. Each instance has an upper layer of its own."""
    overlay = None
    if root.overlay is True:
        overlay = ""
    elif root.overlay:
        name = root.overlay if instance is None else f"{root.overlay}@{instance}"
        overlay = f"{state_directory}/overlays/{name}"
    return {"path": root.path, "readonly": root.readonly, "overlay": overlay}


# ---- users


def resolve_identity(workload: WorkloadConfig) -> UserIdentity:
    """Return the user of a workload, looked up on this host or in its root. Raises IdentityError."""
    if workload.root.path is None:
        return resolve_user(workload.user, workload.supplementary_groups)
    root = {"path": workload.root.path, "overlay": None}
    return resolve_in_root(root, workload.user, workload.supplementary_groups)


def resolve_in_root(root: Mapping[str, Any], user: str | None, supplementary_groups: Sequence[str]) -> UserIdentity:
    """Look up users and groups in /etc/passwd and /etc/group of a root, as `users.resolve_user` does on the host.

    `root`: the key of a specification. A file of the upper layer is read in place of that of the root. A user
    that controls the root controls which numbers its names have. Raises IdentityError.
    """
    place = str(root["path"])
    layers = [f"{root['overlay']}/upper"] * bool(root["overlay"]) + [place]
    users, groups = list(_entries(layers, "/etc/passwd", 7)), list(_entries(layers, "/etc/group", 4))

    def find_gid(name: str) -> int:
        number = next((entry[2] for entry in groups if entry[0] == name), name)
        if not _is_id(number):
            raise IdentityError(f'no group "{name}" in the root {place}; add one there, or give a number')
        return int(number)

    extra = tuple(map(find_gid, supplementary_groups))
    given, _, group = (user or str(os.geteuid())).partition(":")
    entry = next((entry for entry in users if entry[0] == given), None)
    if entry is None and _is_id(given):
        entry = next((entry for entry in users if entry[2] == given), ["", "", given, given, "", "/", ""])
    if entry is None:
        raise IdentityError(f'no user "{given}" in the root {place}; add one there, or give a number')
    name, _, uid, primary, _, home, shell = entry
    if user is None:
        own = tuple(os.getgroups()) if extra else ()
        return UserIdentity(None, None, (*own, *extra) if extra else None, name, home, shell)
    gid = find_gid(group) if group else int(primary)
    listed = [int(entry[2]) for entry in groups if name and name in entry[3].split(",")]
    return UserIdentity(int(uid), gid, tuple(dict.fromkeys((gid, *listed, *extra))), name, home, shell)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) < 2**32 - 1


def _entries(layers: Sequence[str], path: str, count: int) -> Iterator[list[str]]:
    """Yield the entries of a user database that have `count` fields and a valid number, passwd(5), group(5)."""
    for layer in layers:
        try:
            directory, _ = locate(layer, trusted_users())
            try:
                content = read_in_root(directory, path, MAX_DATABASE_BYTES)
            finally:
                os.close(directory)
        except OSError:
            continue
        for line in content.decode(errors="replace").splitlines():
            fields = line.split(":")
            if len(fields) == count and _is_id(fields[2]) and (count == 4 or _is_id(fields[3])):
                yield fields
        return
