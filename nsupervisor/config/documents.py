"""Parse the TOML of one file, with messages that say what to do instead."""

from __future__ import annotations

import re
import tomllib
from typing import Any, NamedTuple

from nsupervisor.config.bounds import TOO_DEEP, check_bounds
from nsupervisor.config.positions import Positions, scan_positions
from nsupervisor.config.problems import ConfigError, Problem
from nsupervisor.config.quoting import format_path

_SYNTAX_HINTS = {
    "Invalid value": 'put text in "quotes", and write true, false and numbers without',
    "Cannot overwrite a value": "the same key is there twice; keep one of the two",
    "Cannot declare": "put its keys together",
    "Cannot mutate immutable namespace": "write the keys of one table in one place",
    "Unclosed array": 'close it with "]"',
    "Unclosed inline table": 'close it with "}" on the same line',
    "Expected ']": "write a table as [NAME], on a line of its own",
    "Expected newline": "put text in quotes, and each KEY = VALUE on a line of its own",
    "Found invalid character": "leave control characters out",
    "Illegal character": "end the text with a quote on the same line, or use three quotes for several lines",
    "Unescaped": "write two backslashes for one, or put the text in 'single quotes'",
    "Expected '='": "write KEY = VALUE, or [TABLE] on a line of its own",
    "Invalid statement": "write KEY = VALUE, or [TABLE] on a line of its own",
}


class Document(NamedTuple):
    """One file: its top-level table, and the positions of its keys."""

    path: str
    table: dict[str, Any]
    positions: Positions


def parse_document(text: str, path: str, positions: Positions | None = None) -> Document:
    """Parse the TOML of a file; ConfigError if it is none, or too large. `positions`: of `text`, if known already."""
    check_bounds(text, path)
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise ConfigError([Problem(path, 1, "", TOO_DEEP)]) from None
    except ValueError as error:
        # Mostly TOMLDecodeError; an integer of thousands of digits raises a plain ValueError.
        raise ConfigError([_syntax_problem(text, path, str(error))]) from None
    return Document(path, table, scan_positions(text, path) if positions is None else positions)


def _syntax_problem(text: str, path: str, error: str) -> Problem:
    """Convert tomllib's message, which ends with "(at line 3, column 5)" or "(at end of document)"."""
    message, _, location = error.partition(" (at ")
    match = re.match(r"line (\d+), column (\d+)", location)
    line = int(match[1]) if match else max(text.rstrip("\n").count("\n"), 0) + 1 if location else 1
    column = f" at column {match[2]}" if match else " at the end of the file" if location else ""
    hint = next((hint for start, hint in _SYNTAX_HINTS.items() if message.startswith(start)), "correct it")
    if redeclared := re.fullmatch(r"Cannot declare \((.*)\) twice", message):
        names = re.findall("'([^']*)'", redeclared[1])
        message = f"the table [{format_path(names)}] is declared twice"
    reason = f"{message[:1].lower()}{message[1:]}"
    return Problem(path, line, "", f"this is not TOML{column}: {reason}; {hint}")
