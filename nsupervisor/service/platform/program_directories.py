"""Make the directories of a program, and remove its runtime directories; by descriptors, linux/trusted_paths.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nsupervisor.linux.trusted_paths import TrustedDirectory
from nsupervisor.mount_data import VOLUME

_INSTEAD = "write another directory"
_PARENT_MODE = 0o755


def make_directories(directories: Sequence[Mapping[str, Any]], owner: tuple[int, int] | None) -> None:
    """Make directories, or give existing ones their mode and owner.

    `directories`: as `nsupervisor.service.instance.directories` has them. `owner`: (uid, gid) on the host; -1 or None:
    the service's own. A directory for configuration stays root's, and so do the contents of one that has another owner,
    but with `has_contents`; an existing volume is left as it is. Raises OSError, for instance for a symbolic link in
    the place of one.
    """
    for directory in directories:
        parent, _, name = f"{directory['base']}/{directory['name']}".rpartition("/")
        with TrustedDirectory(parent, _INSTEAD, mode=_PARENT_MODE) as trusted:
            is_new = trusted.make_directory(name, directory["mode"])
            if directory["kind"] == VOLUME and not is_new:
                continue
            uid, gid = (-1, -1) if owner is None or directory["kind"] == "configuration" else owner
            if directory.get("has_contents") and uid != -1:
                trusted.give_contents(name, uid, gid)
            trusted.set_directory(name, directory["mode"], uid, gid)


def remove_directories(directories: Sequence[Mapping[str, Any]]) -> None:
    """Remove runtime directories with all that is in them; what is missing, or a link, is left. Raises OSError."""
    for directory in directories:
        if directory["kind"] == "runtime":
            parent, _, name = f"{directory['base']}/{directory['name']}".rpartition("/")
            try:
                with TrustedDirectory(parent, _INSTEAD) as trusted:
                    trusted.remove_directory(name)
            except FileNotFoundError:
                pass
