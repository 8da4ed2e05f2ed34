"""Directory trees as data, to compare what was unpacked with what was meant."""

import os
import stat
from pathlib import Path

Node = tuple[object, ...]


def read_tree(root: Path) -> dict[str, Node]:
    """Return what is at each path below a directory: a kind, and what else counts."""
    found: dict[str, Node] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        mode, name = stat.S_IMODE(status.st_mode), str(path.relative_to(root))
        if stat.S_ISLNK(status.st_mode):
            found[name] = "symlink", os.readlink(path)
        elif stat.S_ISDIR(status.st_mode):
            found[name] = "directory", mode
        elif stat.S_ISREG(status.st_mode):
            found[name] = "file", mode, path.read_bytes()
        else:
            found[name] = "other", stat.S_IFMT(status.st_mode)
    return found
