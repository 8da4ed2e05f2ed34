"""Line numbers of the keys of a TOML file, which tomllib does not report.

This scanner expects valid TOML: tomllib has accepted the text before. It tokenizes with one regular expression and
keeps its own stack, so deep nesting cannot exhaust Python's. When it is unsure it records nothing, and `Positions.line`
falls back to the nearest enclosing table.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import NamedTuple

from nsupervisor.config.problems import Problem
from nsupervisor.config.quoting import format_path

KeyPath = tuple[str | int, ...]

MAX_DEPTH = 10
"""Deepest recorded path. No key of the model lies deeper, and the bound keeps very long dotted keys cheap."""

# The closing delimiter of a multi-line string may follow up to two quotes of the string itself. In text that is not
# TOML a string may have no end: searching for the end again from each later quote would take quadratic time.
_TOKEN = re.compile(
    r'''
      (?P<string> """ (?: [^"\\] | \\[\s\S] | "{1,2}(?!") )*+ (?: "{3,5} | \\?\Z )
                | \'\'\' (?: [^'] | '{1,2}(?!') )*+ (?: '{3,5} | \Z )
                | " (?: [^"\\\n] | \\. )*+ "?
                | ' [^'\n]*+ '? )
    | (?P<comment> \#[^\n]* )
    | (?P<newline> \n )
    | (?P<blank> [ \t\r]+ )
    | (?P<mark> [\[\]{}=,.] )
    | (?P<bare> [^\s\[\]{}=,.\#"']+ )
    | (?P<other> [\s\S] )
    ''',
    re.VERBOSE,
)


class Location(NamedTuple):
    """The place where a key is written. `key` differs from the requested path if the value was inherited."""

    path: str
    line: int
    key: KeyPath


class Positions:
    """Lines, from 1, by key path: ("workload", "web", "policy", 0, "when"). Array elements have their own paths."""

    def __init__(self, lines: dict[KeyPath, int], path: str = "") -> None:
        self._lines = lines
        self.path = path
        """The file, for locations and problems."""

    def locate(self, path: KeyPath) -> Location:
        """Return where the key, or the nearest table around it, is written."""
        return Location(self.path, self.line(path), path)

    def problem(self, path: KeyPath, message: str) -> Problem:
        """Return a problem at a key."""
        location = self.locate(path)
        return Problem(location.path, location.line, format_path(location.key), message)

    def line(self, path: KeyPath) -> int:
        """Return the line of the key, or of the nearest table around it; 1 if nothing is known."""
        for length in range(len(path), 0, -1):
            if (line := self._lines.get(path[:length])) is not None:
                return line
        return 1

    def __contains__(self, path: KeyPath) -> bool:
        return path in self._lines

    def __iter__(self) -> Iterator[KeyPath]:
        return iter(self._lines)


class Origin(NamedTuple):
    """The source of a table or value: a file's positions, and its key path in that file."""

    positions: Positions
    key: KeyPath


Origins = dict[KeyPath, Origin]
"""The origin of each key path that has another one than the table around it; () is that of the whole."""


def find_origin(origins: Origins, path: KeyPath) -> Origin:
    """Return the origin of a key path, by the nearest table around it that has one."""
    for length in range(len(path), -1, -1):
        if (origin := origins.get(path[:length])) is not None:
            return Origin(origin.positions, (*origin.key, *path[length:]))
    raise KeyError(path)


class ComposedPositions(Positions):
    """Positions of a configuration that is composed of several files or tables."""

    def __init__(self, origins: Origins) -> None:
        super().__init__({}, origins[()].positions.path)
        self._origins = origins

    def line(self, path: KeyPath) -> int:
        """Return the line of the key in its own file."""
        return self.locate(path).line

    def locate(self, path: KeyPath) -> Location:
        """Return where the key, or the nearest table around it, is written."""
        positions, key = find_origin(self._origins, path)
        return positions.locate(key)

    def __contains__(self, path: KeyPath) -> bool:
        positions, key = find_origin(self._origins, path)
        return key in positions

    def __iter__(self) -> Iterator[KeyPath]:
        return iter(self._origins)


def scan_positions(text: str, path: str = "") -> Positions:
    """Scan the positions of the keys of `text`, which must be valid TOML. `path` is that of its file.

    For invalid text it returns some positions, and raises no exception.
    """
    return Positions(_Scanner().scan(text), path)


class _Scanner:
    def __init__(self) -> None:
        self.lines: dict[KeyPath, int] = {}
        self.implicit: set[KeyPath] = set()  # tables named only by a longer key or header so far
        self.tables: dict[KeyPath, int] = {}  # number of elements so far of each array of tables
        self.base: KeyPath = ()  # table of the last header
        self.stack: list[tuple[KeyPath, int | None]] = []  # open arrays (with the element's index) and inline tables
        self.keys: list[str] = []  # parts of the current key
        self.header = 0  # brackets of the current header: 0, 1 or 2
        self.bracket_end = -1  # end of the header's first bracket
        self.path: KeyPath = ()  # path of the current value
        self.state = self.key

    def scan(self, text: str) -> dict[KeyPath, int]:
        line = 1
        for match in _TOKEN.finditer(text):
            group, piece = match.lastgroup, match[0]
            if group == "newline":
                self.newline()
            elif group not in ("blank", "comment"):
                self.state(group or "", piece, match.start(), line)
            line += piece.count("\n")
        return self.lines

    def newline(self) -> None:
        """End a statement, unless an array or an inline table is open: then a newline is only a blank."""
        if not self.stack:
            self.keys, self.header, self.state = [], 0, self.key

    def key(self, group: str, piece: str, start: int, line: int) -> None:
        """Handle a token in a key, in a header, or before either."""
        if group in ("bare", "string"):
            self.keys.append(_unquoted(piece) if group == "string" else piece)
        elif piece == "=":
            path = self.stack[-1][0] if self.stack else self.base
            for part in self.keys[:-1]:
                path = _child_path(path, part)
                self.record(path, line, explicit=False)
            path = _child_path(path, self.keys[-1]) if self.keys else path
            self.record(path, line)
            self.keys = []
            self.path = path
            self.state = self.value
        elif piece == "[" and not self.stack:
            self.header = 2 if self.header == 1 and start == self.bracket_end else 1
            self.bracket_end = start + 1
        elif piece == "]" and self.header:
            self.open_table(line)
            self.state = self.after_value
        elif piece == "}" and self.stack:
            self.stack.pop()
            self.state = self.after_value

    def open_table(self, line: int) -> None:
        """Open the table of a complete header; its path passes through the last element of each array of tables."""
        path: KeyPath = ()
        for number, part in enumerate(self.keys, 1):
            path = _child_path(path, part)
            last = number == len(self.keys)
            self.record(path, line, explicit=last)
            if last and self.header == 2:
                self.tables[path] = self.tables.get(path, 0) + 1
            if path in self.tables:
                path = _child_path(path, self.tables[path] - 1)
                self.record(path, line, explicit=last)
        self.base = path
        self.keys = []

    def value(self, group: str, piece: str, start: int, line: int) -> None:
        """Handle the first token of a value."""
        if piece == "[":
            self.stack.append((self.path, 0))
            self.state = self.element
        elif piece == "{":
            self.stack.append((self.path, None))
            self.state = self.key
        else:
            self.state = self.after_value

    def element(self, group: str, piece: str, start: int, line: int) -> None:
        """Handle the first token of an array's element, or the array's end."""
        path, index = self.stack[-1]
        if piece == "]":
            self.stack.pop()
            self.state = self.after_value
        else:
            self.path = _child_path(path, index or 0)
            self.record(self.path, line)
            self.value(group, piece, start, line)

    def after_value(self, group: str, piece: str, start: int, line: int) -> None:
        """Handle tokens after the first one of a value, up to the end of the value."""
        if not self.stack:
            return
        path, index = self.stack[-1]
        if piece == "," and group == "mark":
            if index is None:
                self.keys, self.state = [], self.key
            else:
                self.stack[-1] = (path, index + 1)
                self.state = self.element
        elif piece in ("]", "}") and group == "mark":
            self.stack.pop()

    def record(self, path: KeyPath, line: int, *, explicit: bool = True) -> None:
        """Record the line of a path; the line of a table's own header replaces that of a table below it."""
        if len(path) > MAX_DEPTH:
            return
        if path not in self.lines:
            self.lines[path] = line
            if not explicit:
                self.implicit.add(path)
        elif explicit and path in self.implicit:
            self.lines[path] = line
            self.implicit.discard(path)


def _child_path(path: KeyPath, part: str | int) -> KeyPath:
    """Extend a path by one level; too deep paths stay as they are, as none of them is recorded."""
    return (*path, part) if len(path) <= MAX_DEPTH else path


def _unquoted(piece: str) -> str:
    """Return the text of a quoted key."""
    if piece[0] == '"' and "\\" in piece:
        try:
            return str(tomllib.loads(f"key = {piece}")["key"])
        except ValueError:
            return piece
    return piece[1:-1]
