"""Records as JSON: one object, one line, never an exception."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import orjson

Line = tuple[bytes, bool]
"""A line of a workload without its newline, and whether it was cut here (see Framing)."""


def now() -> str:
    """The time as records have it: RFC 3339, UTC, microseconds, `2026-01-31T12:00:00.000000Z`."""
    return datetime.now(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def text_of(line: bytes) -> str:
    """A line as text; what is not UTF-8 becomes U+FFFD."""
    return line.decode("utf-8", "replace")


class JsonFormat:
    """Makes JSON lines."""

    def record(self, timestamp: str, level: str, event: str, fields: Mapping[str, Any]) -> bytes:
        """One record of the service. `timestamp`, `level` and `event` come first and win over fields of these names."""
        head = {"timestamp": timestamp, "level": level, "event": event}
        record = {**head, **fields, **head}
        try:
            return orjson.dumps(record, default=_text, option=orjson.OPT_APPEND_NEWLINE)
        except TypeError:  # surrogates, integers of more than 64 bits, keys that are no strings, …
            return orjson.dumps(_clean(record), option=orjson.OPT_APPEND_NEWLINE)

    def output(
        self,
        timestamp: str,
        labels: Mapping[str, Any],
        stream: str,
        lines: Iterable[Line],
        seq: int | None = None,
        parse_json: bool = False,
    ) -> list[bytes]:
        """The records of lines that a workload wrote, numbered from `seq`. What they share is encoded once.

        With `parse_json`, a line that is a JSON object is kept as it is under `fields`, and its own text (`message` or
        `msg`), if it has one, is the record's message.
        """
        prefix = self._prefix(timestamp, labels, stream)
        dumps = orjson.dumps
        found = []
        for line, partial in lines:
            number = b"" if seq is None else b'"seq":%d,' % seq
            seq = None if seq is None else seq + 1
            fields = _object(line) if parse_json and not partial else None
            if fields is not None:
                text = next((fields[key] for key in ("message", "msg") if isinstance(fields.get(key), str)), "")
                end = b',"fields":' + line.strip(_JSON_SPACE) + b"}\n"
            else:
                text = line.decode("utf-8", "replace")
                end = b',"partial":true}\n' if partial else b"}\n"
            found.append(prefix + number + b'"message":' + dumps(text) + end)
        return found

    def whole(self, timestamp: str, labels: Mapping[str, Any], stream: str, text: bytes, seq: int, count: int) -> bytes:
        """The records of `count` complete lines with newlines between them; as `output` makes them, ten times as fast.

        All are escaped at once, as one string in which another character stands for the newlines, and then get what
        goes between two records in its place; the numbers are filled in last, of which most begin in the same way.
        """
        high, low = divmod(seq, _DIGITS)
        same = high and count > _FEW and low + count <= _DIGITS
        number = b'"seq":%d%%b,"message":' % high if same else b'"seq":%d,"message":'
        prefix = self._prefix(timestamp, labels, stream).replace(b"%", b"%%") + number
        if _STANDIN in text or _STANDIN in prefix:
            lines = [(line, False) for line in text.split(b"\n")]
            return b"".join(self.output(timestamp, labels, stream, lines, seq))
        body = orjson.dumps(text.replace(b"\n", _STANDIN).decode("utf-8", "replace"))
        # Put together while it is short: what the next two steps make is several times as long.
        form = b"".join((prefix, body.replace(b"%", b"%%"), b"}\n"))
        form = form.replace(_STANDIN, b'"}\n' + prefix + b'"')
        return form % (_digits()[low : low + count] if same else tuple(range(seq, seq + count)))

    def _prefix(self, timestamp: str, labels: Mapping[str, Any], stream: str) -> bytes:
        head = {"timestamp": timestamp, "level": "info", "event": "output", **labels, "stream": stream}
        return orjson.dumps(head, default=_text)[:-1] + b","


@functools.cache
def _digits() -> tuple[bytes, ...]:
    """The last four digits of every number: half a megabyte, and half of the time that making them anew takes."""
    return tuple(b"%04d" % number for number in range(_DIGITS))


_DIGITS, _FEW = 10_000, 100
_JSON_SPACE = b" \t\r"
_STANDIN = b"\x7f"  # DEL: rare in text, and one of the few control characters that JSON does not escape


def _object(line: bytes) -> dict[str, Any] | None:
    if not line.lstrip(_JSON_SPACE).startswith(b"{"):
        return None
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def _text(value: Any) -> Any:
    """Something JSON for what orjson does not know."""
    if isinstance(value, bytes):
        return text_of(value)
    if isinstance(value, (set, frozenset)):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"


def _clean(value: Any) -> Any:
    """A copy of `value` that surely encodes."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**64 else str(value)
    if isinstance(value, Mapping):
        return {_clean(_text(key)): _clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_clean(item) for item in value]
    return _clean(_text(value))


@functools.cache
def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) that every record satisfies; `record.schema.json` beside this file."""
    loaded: dict[str, Any] = json.loads(resources.files(__package__).joinpath("record.schema.json").read_bytes())
    return loaded
