"""Environment files: NAME=VALUE lines, as systemd.exec(5) reads those of EnvironmentFile=.

Values are literal: no "%" and no "$" means anything. Empty lines and lines that begin with "#" or ";" are skipped. In a
bare value, blanks at both ends go, and a backslash takes the next character as it is (before a newline: the value goes
on). A value that begins with a quote ends at the closing one: 'single' quotes keep all as it is, newlines too; in
"double" quotes a backslash takes away the meaning of another backslash, a double quote, "$", "`" and a newline, and
else stays. Of two equal names the last counts. Stricter than systemd, which drops what it does not understand: that is
an error here.
"""

from __future__ import annotations

import os
import re

from nsupervisor.config.files import read_text
from nsupervisor.config.problems import ConfigError, Problem

_SKIP = re.compile(r"(?:[ \t\r\n]+|[#;][^\n]*)*")
_NAME = re.compile(r"([^=\n]*)(=?)[ \t]*")
_QUOTED = re.compile(r"""'([^']*)'|"((?:[^"\\]|\\[\s\S])*)\"""")
_BARE = re.compile(r"(?:[^\\ \t\r\n]|\\[\s\S]|[ \t\r]+(?=[^ \t\r\n]))*")
_LINE_END = re.compile(r"[ \t\r]*(?=\n|\Z)")
_DOUBLE_ESCAPE = re.compile(r'\\([\\"`$\n])')
_BARE_ESCAPE = re.compile(r"\\([\s\S])")


def load_environment(path: str) -> dict[str, str]:
    """The variables of a file; ConfigError with each bad line. With a leading "-", a missing file has no variables."""
    name = path.removeprefix("-")
    try:
        text = read_text(name)
    except ConfigError:
        if path.startswith("-") and not os.path.lexists(name):
            return {}
        raise
    return parse_environment(text, name)


def parse_environment(text: str, path: str) -> dict[str, str]:
    """The variables of a file's text, in its order; ConfigError with each bad line. `path` is for the messages."""
    variables: dict[str, str] = {}
    problems: list[Problem] = []
    position, line = 0, 1
    while True:
        start = _after(_SKIP, text, position)
        line += text.count("\n", position, start)
        if start == len(text):
            break
        match = _NAME.match(text, start)
        assert match is not None  # it matches anything
        name, equals = match[1].strip(), match[2]
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        if not equals:
            problems.append(Problem(path, line, "", 'has no "="; write NAME=VALUE, or "#" before a comment'))
        elif problem := _bad_name(name):
            problems.append(Problem(path, line, "", problem))
        else:
            try:
                variables[name], end = _value(text, match.end())
            except ValueError as error:
                problems.append(Problem(path, line, name, str(error)))
        line += text.count("\n", start, end)
        position = end
    if problems:
        raise ConfigError(problems)
    return variables


def _bad_name(name: str) -> str | None:
    if name.startswith("export "):
        return 'begins with "export", which a shell would read; write NAME=VALUE alone'
    if not name or re.search(r"[\s'\"\0]", name):
        return 'has no name for a variable before its "="; write NAME=VALUE, the name without blanks and quotes'
    return None


def _value(text: str, start: int) -> tuple[str, int]:
    """The value that starts at `start`, and where its line ends; ValueError with what is wrong with it."""
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
        bare_end = _after(_BARE, text, start)
        ending = _LINE_END.match(text, bare_end)
        if ending is None:
            raise ValueError("ends with a lone backslash; write two for the character")
        value, end = _BARE_ESCAPE.sub(lambda escape: escape[1].strip("\n"), text[start:bare_end]), ending.end()
    if "\0" in value:
        raise ValueError("has a NUL byte in it, which the kernel takes for its end; leave it out")
    return value, end


def _after(pattern: re.Pattern[str], text: str, start: int) -> int:
    """Where a pattern that can be empty stops matching."""
    match = pattern.match(text, start)
    assert match is not None
    return match.end()
