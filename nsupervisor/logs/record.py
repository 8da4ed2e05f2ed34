"""Render records as JSON: one object, one line, never an exception."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

from nsupervisor.json_codec import decode, decode_object, encode, encode_line, encode_strict

Line = tuple[bytes, bool]
"""A line of a workload without its newline, and whether it was cut here (see `Framing`)."""


def timestamp_now() -> str:
    """Return the time as records have it: RFC 3339, UTC, microseconds, `2026-01-31T12:00:00.000000Z`."""
    seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
    return f"{_format_second(seconds)}.{microseconds:06d}Z"


@functools.lru_cache(maxsize=1)
def _format_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def decode_line(line: bytes) -> str:
    """Decode a line; bytes that are not UTF-8 become U+FFFD."""
    return line.decode("utf-8", "replace")


class JsonFormat:
    """Renders records as lines of JSON."""

    def render_record(self, timestamp: str, level: str, event: str, fields: Mapping[str, Any]) -> bytes:
        """Render one record of the service.

        `timestamp`, `level` and `event` come first and win over fields of these names.
        """
        head = {"timestamp": timestamp, "level": level, "event": event}
        record = {**head, **fields, **head}
        return encode_line(record)

    def render_lines(
        self,
        timestamp: str,
        labels: Mapping[str, Any],
        stream: str,
        lines: Iterable[Line],
        seq: int | None = None,
        parse_json: bool = False,
    ) -> list[bytes]:
        """Render the records of lines that a workload wrote, numbered from `seq`. Their common part is encoded once.

        With `parse_json`, a line that is a JSON object is kept unchanged under `fields`, and its own text (`message` or
        `msg`), if it has one, is the record's message. An object of more levels than `json_codec.MAX_NESTING` is text.
        """
        prefix = self._prefix(timestamp, labels, stream)
        records = []
        for line, partial in lines:
            number = b"" if seq is None else b'"seq":%d,' % seq
            seq = None if seq is None else seq + 1
            fields = decode_object(line) if parse_json and not partial else None
            if fields is not None:
                text = next((fields[key] for key in ("message", "msg") if isinstance(fields.get(key), str)), "")
                end = b',"fields":' + line.strip(_JSON_SPACE) + b"}\n"
            else:
                text = line.decode("utf-8", "replace")
                end = b',"partial":true}\n' if partial else b"}\n"
            records.append(prefix + number + b'"message":' + encode_strict(text) + end)
        return records

    def render_text(
        self, timestamp: str, labels: Mapping[str, Any], stream: str, text: bytes, seq: int, count: int
    ) -> bytes:
        """Render the records of `count` complete lines with newlines between them, ten times as fast as `render_lines`.

        All lines are escaped at once, as one string in which another character replaces the newlines. Then that
        character is replaced by the text between two records. The numbers are filled in last; most of them begin with
        the same digits.
        """
        high, low = divmod(seq, _DIGIT_RANGE)
        is_same_prefix = high and count > _MIN_COUNT and low + count <= _DIGIT_RANGE
        number = b'"seq":%d%%b,"message":' % high if is_same_prefix else b'"seq":%d,"message":'
        prefix = self._prefix(timestamp, labels, stream).replace(b"%", b"%%") + number
        if _STAND_IN in text or _STAND_IN in prefix:
            lines = [(line, False) for line in text.split(b"\n")]
            return b"".join(self.render_lines(timestamp, labels, stream, lines, seq))
        body = encode_strict(text.replace(b"\n", _STAND_IN).decode("utf-8", "replace"))
        # Join while the text is short: the next two steps make it several times as long.
        template = b"".join((prefix, body.replace(b"%", b"%%"), b"}\n"))
        template = template.replace(_STAND_IN, b'"}\n' + prefix + b'"')
        return template % (_low_digits()[low : low + count] if is_same_prefix else tuple(range(seq, seq + count)))

    def _prefix(self, timestamp: str, labels: Mapping[str, Any], stream: str) -> bytes:
        head = {"timestamp": timestamp, "level": "info", "event": "output", **labels, "stream": stream}
        return encode(head)[:-1] + b","


@functools.cache
def _low_digits() -> tuple[bytes, ...]:
    """Return the last four digits of every number: half a megabyte, which saves half of the time for the numbers."""
    return tuple(b"%04d" % number for number in range(_DIGIT_RANGE))


_DIGIT_RANGE, _MIN_COUNT = 10_000, 100
_JSON_SPACE = b" \t\r"
_STAND_IN = b"\x7f"  # DEL is rare in text, and one of the few control characters that JSON does not escape


@functools.cache
def schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) that every record satisfies: `record.schema.json` in this directory."""
    loaded: dict[str, Any] = decode(resources.files(__package__).joinpath("record.schema.json").read_bytes())
    return loaded
