"""Files of root file systems of workloads: what is in a root, and the upper layers that are kept."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from nsupervisor.linux.trusted_paths import TrustedDirectory, locate, open_in_root, trusted_users

LAYERS = ("upper", "work")
"""The directories of an upper layer, as an overlay needs them."""
_INSTEAD = "set supervisor.state_directory to another place"


def find_in_root(path: str, file: str) -> os.stat_result:
    """Return the status of a file in the root at `path`. Raises OSError."""
    directory, _ = locate(path, trusted_users())
    try:
        fd = open_in_root(directory, file)
    finally:
        os.close(directory)
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def make_overlay_directory(spec: Mapping[str, Any]) -> None:
    """Make the directory of the upper layer of a specification's root, if it is missing. Raises OSError."""
    path = spec["root"]["overlay"]
    with TrustedDirectory(path, _INSTEAD, mode=0o711) as directory:
        for name in LAYERS:
            if directory.make_directory(name, 0o755):
                owners = [_first_host_id(spec[key]) for key in ("uid_mappings", "gid_mappings")]
                directory.give(name, *owners)


def _first_host_id(mappings: Sequence[Sequence[int]]) -> int:
    """Return the id outside of the root of a user namespace; -1, "unchanged" to chown(2), without one."""
    return next((outside for inside, outside, _ in mappings if inside == 0), -1)
