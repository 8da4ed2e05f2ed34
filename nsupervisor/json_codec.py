"""JSON as the running service reads and writes it, with orjson. No value of a workload makes these functions fail.

This is the only module that imports orjson. docs/decisions.md says when to use the standard library's `json` instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

MAX_NESTING = 100
"""Levels of arrays and objects in the JSON of a workload that becomes part of a record.

With the levels of the record around it, it stays below what readers of the stream accept: serde_json (Vector) 128,
orjson 254 when it writes, jq 256, Python's json about 1,000.
"""

_MAX_INTEGER_BITS = 10_000  # Python refuses to write integers of more than 4,300 digits (sys.get_int_max_str_digits)


encode_strict = orjson.dumps
"""Encode a value. Raises TypeError for everything that `encode` would change."""


def decode(data: bytes | str) -> Any:
    """Decode JSON (RFC 8259): no NaN, no lone surrogates, at most 1,024 levels. Raises ValueError."""
    return orjson.loads(data)


def decode_object(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object that `line` contains, or None: also if it has more than `MAX_NESTING` levels."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(value, dict):
        return None
    may_be_deep = line.count(b"{") + line.count(b"[") > MAX_NESTING
    return None if may_be_deep and exceeds_nesting(value, MAX_NESTING) else value


def exceeds_nesting(value: Any, levels: int) -> bool:
    """Return whether `value`, decoded JSON, has more than this number of levels of arrays and objects."""
    containers = [value] if isinstance(value, (dict, list)) else []
    for _ in range(levels):
        items = (item for c in containers for item in (c.values() if isinstance(c, dict) else c))
        containers = [item for item in items if isinstance(item, (dict, list))]
        if not containers:
            return False
    return True


def encode(value: Any) -> bytes:
    """Encode `value` without a newline. Never raises.

    What JSON does not have becomes text: bytes, sets, other objects, integers of more than 64 bits, and whatever is
    nested deeper than `MAX_NESTING`. Lone surrogates become escapes such as `\\\\udc80`.
    """
    try:
        return orjson.dumps(value, default=_to_jsonable)
    except TypeError:  # surrogates, large integers, keys other than strings, too many levels, …
        return orjson.dumps(_to_encodable(value, 0))


def encode_line(value: Any) -> bytes:
    """Encode `value` as a line with its newline. Never raises."""
    try:
        return orjson.dumps(value, default=_to_jsonable, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        return encode(value) + b"\n"


def _to_jsonable(value: Any) -> Any:
    """Convert a value that orjson does not support to one that it does."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (set, frozenset)):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"


def _to_encodable(value: Any, level: int) -> Any:
    """Return a copy of `value`, which is inside this number of arrays and objects, that is certain to encode."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int):
        if -(2**63) <= value < 2**64:
            return int(value)
        return str(value) if value.bit_length() < _MAX_INTEGER_BITS else f"<integer of {value.bit_length()} bits>"
    is_container = isinstance(value, (Mapping, list, tuple, set, frozenset))
    if is_container and level > MAX_NESTING:
        return f"<{type(value).__name__}>"  # without str(value), which may be nested too deeply for that, too
    if isinstance(value, Mapping):
        return {_to_encodable(_to_jsonable(key), level): _to_encodable(item, level + 1) for key, item in value.items()}
    if is_container:
        return [_to_encodable(item, level + 1) for item in value]
    return _to_encodable(_to_jsonable(value), level)
