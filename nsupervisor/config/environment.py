"""Environment files: NAME=VALUE lines, in the format of EnvironmentFile= in systemd.exec(5).

Values are literal: "%" and "$" have no meaning. Empty lines and lines that begin with "#" or ";" are skipped. In an
unquoted value, blanks at both ends are removed, and a backslash makes the next character literal (before a newline: the
value continues). A value that begins with a quote ends at the closing one: 'single' quotes keep everything literal,
newlines included; in "double" quotes a backslash escapes another backslash, a double quote, "$", "`" and a newline, and
otherwise stays. Of two equal names the last counts. Unlike systemd, which drops lines that it cannot parse, this parser
reports them as errors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from nsupervisor.config.files import read_text
from nsupervisor.config.problems import ConfigError, Problem

_BLANK = re.compile(r"(?:[ \t\r\n]+|[#;][^\n]*)*")
_NAME = re.compile(r"([^=\n]*)(=?)[ \t]*")
_QUOTED = re.compile(r"""'([^']*)'|"((?:[^"\\]|\\[\s\S])*)\"""")
_BARE = re.compile(r"(?:[^\\ \t\r\n]|\\[\s\S]|[ \t\r]+(?=[^ \t\r\n]))*")
_LINE_END = re.compile(r"[ \t\r]*(?=\n|\Z)")
_DOUBLE_ESCAPE = re.compile(r'\\([\\"`$\n])')
_BARE_ESCAPE = re.compile(r"\\([\s\S])")


def load_environment(path: str, opener: Callable[[str, int], int] | None = None) -> dict[str, str]:
    """Load the variables of a file; ConfigError lists each bad line.

    With a leading "-", a missing file has no variables. `opener`: as for `open`.
    """
    name = path.removeprefix("-")
    try:
        text = read_text(name, opener)
    except ConfigError:
        if path.startswith("-") and not os.path.lexists(name):
            return {}
        raise
    return parse_environment(text, name)


def parse_environment(text: str, path: str) -> dict[str, str]:
    """Parse the variables of a file, in its order; ConfigError lists each bad line, and `path` as its file."""
    variables: dict[str, str] = {}
    problems: list[Problem] = []
    position, line = 0, 1
    while True:
        start = _match_end(_BLANK, text, position)
        line += text.count("\n", position, start)
        if start == len(text):
            break
        match = _NAME.match(text, start)
        assert match is not None  # the pattern matches every text
        name, equals = match[1].strip(), match[2]
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        if not equals:
            problems.append(Problem(path, line, "", 'has no "="; write NAME=VALUE, or "#" before a comment'))
        elif problem := _name_problem(name):
            problems.append(Problem(path, line, "", problem))
        else:
            try:
                variables[name], end = _parse_value(text, match.end())
            except ValueError as error:
                problems.append(Problem(path, line, name, str(error)))
        line += text.count("\n", start, end)
        position = end
    if problems:
        raise ConfigError(problems)
    return variables


def _name_problem(name: str) -> str | None:
    if name.startswith("export "):
        return 'begins with "export", which a shell would read; write NAME=VALUE alone'
    if not name or re.search(r"[\s'\"\0]", name):
        return 'has no name for a variable before its "="; write NAME=VALUE, the name without blanks and quotes'
    return None


def _parse_value(text: str, start: int) -> tuple[str, int]:
    """Parse the value at `start`; return it and the end of its line. ValueError says what is wrong."""
    if text[start : start + 1] in ("'", '"'):
        match = _QUOTED.match(text, start)
        if match is None:
            raise ValueError(f"has an opening {text[start]} and no closing one; close it, or put \\ before it")
        ending = _LINE_END.match(text, match.end())
        if ending is None:
            raise ValueError(
                "has text behind the closing quote; quote all of it, and put comments on lines of their own"
            )
        value, end = match[1], ending.end()
        if value is None:
            value = _DOUBLE_ESCAPE.sub(lambda escape: escape[1].strip("\n"), match[2])
    else:
        bare_end = _match_end(_BARE, text, start)
        ending = _LINE_END.match(text, bare_end)
        if ending is None:
            raise ValueError("ends with a lone backslash; write two for the character")
        value, end = _BARE_ESCAPE.sub(lambda escape: escape[1].strip("\n"), text[start:bare_end]), ending.end()
    if "\0" in value:
        raise ValueError("has a NUL byte in it, which the kernel takes for its end; leave it out")
    return value, end


def _match_end(pattern: re.Pattern[str], text: str, start: int) -> int:
    """Return the end of a match of a pattern that can be empty."""
    match = pattern.match(text, start)
    assert match is not None
    return match.end()
