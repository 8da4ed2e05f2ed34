"""What messages are made of: values and key paths in TOML's own spelling, on one line and short; near misses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

LONGEST = 60
_BARE = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


def shown(value: Any) -> str:
    """A TOML value: "64 bananas" in quotes, true, 12; long ones are cut, tables and arrays only named."""
    if isinstance(value, str):
        return '"' + "".join(map(_shown_character, value[:LONGEST])) + ("…" if len(value) > LONGEST else "") + '"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, int) and value.bit_length() > 200:
        # str() of a very long integer is slow, and refused by the interpreter.
        return "a huge number"
    return str(value)


def _shown_character(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    # Never a control character: messages are single lines, and terminals obey some of them.
    number = ord(character)
    return {10: "\\n", 9: "\\t"}.get(number) or (f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}")


def shown_path(path: Iterable[str | int]) -> str:
    """("workload", "web", "policy", 0, "when") → 'workload.web.policy[0].when'; odd keys in quotes."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if len(part) <= LONGEST and _BARE.fullmatch(part) else shown(part))
    return text


def either(words: Iterable[str]) -> str:
    """("a", "b", "c") → '"a", "b" or "c"'."""
    quoted = [f'"{word}"' for word in words]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def did_you_mean(word: Any, known: Iterable[str]) -> str:
    """', did you mean "memory_max"?' or nothing. Ends in "?" so the caller goes on with ";" or an end."""
    if not isinstance(word, str) or len(word) > 100:
        return ""
    import difflib  # here, because only an error needs it, and it makes every start slower

    nearest = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f', did you mean "{nearest[0]}"?' if nearest else ""
