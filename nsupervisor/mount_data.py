"""The paths in the options of a file system, for the checks of the configuration and for those at a start. Pure."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

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
