"""Data about mounts that the service and the keeper share: the paths in the options of a file system, which are checked
with the configuration and at a start, and the words for a path of a sandbox. Pure."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ_ONLY, READ_WRITE, MASKED, INACCESSIBLE, TEMPORARY, OWN_CGROUP = (
    "read-only",
    "read-write",
    "masked",
    "inaccessible",
    "temporary",
    "own cgroup",
)
ACTIONS = frozenset({READ_ONLY, READ_WRITE, MASKED, INACCESSIBLE, TEMPORARY, OWN_CGROUP})
"""The actions for a path of a sandbox. "masked" shows an empty file or directory; "inaccessible" one that only root may
open; "temporary" an empty directory in memory; "own cgroup" is for /sys/fs/cgroup, and shows only that of the program,
read-only."""

VOLUME = "volume"
"""The type of a mount of a named volume."""

_LAYER_KEYS = ("lowerdir", "lowerdir+", "datadir+", "upperdir", "workdir")


def value_paths(data: str) -> list[str]:
    """Return the parts of all values in `data`, the options of a file system, as absolute paths.

    "lowerdir=/a:b,ro" gives ["/a", "/b"]. A backslash escapes the separators "," and ":", as for an overlay
    (Documentation/filesystems/overlayfs.rst).
    """
    paths = []
    for option in _split_unescaped(data, ","):
        _, _, value = option.partition("=")
        paths += [os.path.join("/", _unescape(path)) for path in _split_unescaped(value, ":") if path]
    return paths


def replace_layers(data: str, replace: Callable[[str], str]) -> str:
    """Return the options of an overlay with each layer's path replaced by what `replace` returns, without escapes."""
    options = []
    for option in _split_unescaped(data, ","):
        key, equals, value = option.partition("=")
        if key in _LAYER_KEYS:
            paths = _split_unescaped(value, ":") if key == "lowerdir" else [value]
            value = ":".join(replace(os.path.join("/", _unescape(path))) if path else "" for path in paths)
        options.append(f"{key}{equals}{value}")
    return ",".join(options)


def _split_unescaped(text: str, separator: str) -> list[str]:
    """Split at each separator that no backslash escapes; a backslash may itself be escaped. The parts keep theirs."""
    parts, is_escaped = [""], False
    for character in text:
        if character == separator and not is_escaped:
            parts.append("")
        else:
            parts[-1] += character
        is_escaped = character == "\\" and not is_escaped
    return parts


def _unescape(path: str) -> str:
    """Replace each backslash and the character behind it by that character."""
    return "\\".join(part.replace("\\", "") for part in path.split("\\\\"))
