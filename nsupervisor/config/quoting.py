"""Parts of messages: values and key paths in TOML's spelling, short and on one line, and near misses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

MAX_LENGTH = 60
_BARE = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


def quoted(value: Any, is_cut: bool = True) -> str:
    """Quote a TOML value for a message: "64 bananas" in quotes, true, 12.

    Long values are cut if `is_cut`; tables and arrays are only named.
    """
    if isinstance(value, str):
        is_long = is_cut and len(value) > MAX_LENGTH
        return '"' + "".join(map(_escape, value[:MAX_LENGTH] if is_long else value)) + ("…" if is_long else "") + '"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, int) and value.bit_length() > 200:
        # str() of a very long integer is slow, and the interpreter refuses it.
        return "a huge number"
    return str(value)


def _escape(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    # Control characters are always escaped: messages are single lines, and terminals obey some of these
    # characters.
    number = ord(character)
    return {10: "\\n", 9: "\\t"}.get(number) or (f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}")


def format_path(path: Iterable[str | int]) -> str:
    """Format a key path: ("workload", "web", "policy", 0, "when") → 'workload.web.policy[0].when'.

    Unusual keys are quoted.
    """
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (
                part if len(part) <= MAX_LENGTH and _BARE.fullmatch(part) else quoted(part)
            )
    return text


def alternatives(words: Iterable[str]) -> str:
    """Join words as alternatives: ("a", "b", "c") → '"a", "b" or "c"'."""
    quoted = [f'"{word}"' for word in words]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def did_you_mean(word: Any, known: Iterable[str]) -> str:
    """Suggest the nearest known word: ', did you mean "memory_max"?', or "" without one.

    The suggestion ends with "?", so the caller continues with ";" or ends there.
    """
    if not isinstance(word, str) or len(word) > 100:
        return ""
    import difflib  # imported here because only an error needs it, and it slows down every start

    nearest = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f', did you mean "{nearest[0]}"?' if nearest else ""
