"""Placeholders in the texts of a workload with `expand = true`: `{instance}`, `{instance-1:02}`, `{var.x}`, `{env.X}`.

A placeholder is replaced once: what it stands for is text, in which braces have no meaning. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from nsupervisor.config.positions import KeyPath
from nsupervisor.config.quoting import did_you_mean, quoted
from nsupervisor.config.relations import RELATION_KEYS

Instance = int | str
"""The part of an instance's name behind the "@"."""

MAX_TEXT = 128 * 1024
"""Longest text after expansion, in characters; the kernel takes no longer argument, MAX_ARG_STRLEN in execve(2)."""
SHARED_KEYS = frozenset(("instances", "group", "may_control", *RELATION_KEYS))
"""Keys of a workload that are the same for all its instances."""
EXAMPLES = '"{instance}", "{instance-1:02}", "{name}", "{var.NAME}" or "{env.NAME}"'

_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_PLACEHOLDER = re.compile(
    r"(?:(?P<before>[0-9]{1,9})\+)?(?P<name>instance|name|var\.[A-Za-z0-9_]+|env\.[A-Za-z_][A-Za-z0-9_]*)"
    r"(?:(?P<sign>[+-])(?P<after>[0-9]{1,9}))?(?::0(?P<width>[1-9][0-9]?))?"
)
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,18})")
_FLOAT = re.compile(r"-?[0-9]{1,15}\.[0-9]{1,15}")
Report = Callable[[KeyPath, str], None]


class Expanded(str):
    """A text that had a placeholder. It may also stand for a number, true or false where a key needs one."""

    __slots__ = ()

    @property
    def literal(self) -> int | float | bool | None:
        """The number, true or false that the text is; None if it is none."""
        if self in ("true", "false"):
            return self == "true"
        if _INTEGER.fullmatch(self):
            return int(self)
        return float(self) if _FLOAT.fullmatch(self) else None


class Scope(NamedTuple):
    """The values of the placeholders of one workload."""

    name: str
    variables: Mapping[str, str]
    environment: Mapping[str, str]


class _NoValueError(Exception):
    """A placeholder has no value; the text ends the sentence "THE TEXT …"."""


class Expander:
    """Expands the tables of one workload."""

    def __init__(self, scope: Scope, report: Report) -> None:
        self.scope = scope
        self.report = report
        self.has_instance = False
        """Whether any text that was expanded depends on the instance."""
        self._instance: Instance | None = None

    def expand(self, table: Mapping[str, Any], instance: Instance) -> dict[str, Any]:
        """Return the table of one instance. What is wrong is reported by key, and left as it is."""
        result = {}
        for key, value in table.items():
            self._instance = None if key in SHARED_KEYS else instance
            result[key] = self._value(value, (key,))
        return result

    def expand_shared(self, key: str, value: Any) -> Any:
        """Return the value of a key that is the same for all instances, without a report."""
        report, self.report, self._instance = self.report, lambda _path, _message: None, None
        try:
            return self._value(value, (key,))
        finally:
            self.report = report

    def _value(self, value: Any, path: KeyPath) -> Any:
        if isinstance(value, str):
            return self._text(value, path)
        if isinstance(value, dict):
            return {key: self._value(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self._value(item, (*path, number)) for number, item in enumerate(value)]
        return value

    def _text(self, text: str, path: KeyPath) -> str:
        if "{" not in text and "}" not in text:
            return text
        parts, position, has_placeholder, length = [], 0, False, 0
        try:
            for match in _BRACES.finditer(text):
                parts.append(text[position : match.start()])
                position = match.end()
                if match[0] in ("{{", "}}"):
                    parts.append(match[0][0])
                elif match[1] is None:
                    raise _NoValueError(f'has a lone "{match[0]}"; write "{match[0] * 2}" for a brace')
                else:
                    parts.append(self._placeholder(match[1]))
                    has_placeholder = True
                length += len(parts[-1]) + len(parts[-2])
                if length > MAX_TEXT:
                    raise _NoValueError(f"is longer than {MAX_TEXT} characters; write shorter values")
        except _NoValueError as problem:
            self.report(path, f"{quoted(text)} {problem}")
            return text
        parts.append(text[position:])
        return Expanded("".join(parts)) if has_placeholder else "".join(parts)

    def _placeholder(self, content: str) -> str:
        match = _PLACEHOLDER.fullmatch(content)
        if match is None:
            shown = quoted("{" + content + "}")
            raise _NoValueError(f'has {shown}, which is no placeholder; write {EXAMPLES}, or "{{{{" for a brace')
        value = self._named(match["name"])
        if match["before"] is None and match["sign"] is None and match["width"] is None:
            return str(value)
        try:
            number = value if isinstance(value, int) else int(value if _INTEGER.fullmatch(value) else "text")
        except ValueError:
            name = quoted("{" + content + "}")
            raise _NoValueError(f"calculates with {name}, whose value is no number; write it without + and :") from None
        number += int(match["before"] or 0)
        if match["sign"] is not None:
            number += int(match["after"]) if match["sign"] == "+" else -int(match["after"])
        return f"{number:0{match['width'] or 0}d}" if match["width"] else str(number)

    def _named(self, name: str) -> str | int:
        if name == "name":
            return self.scope.name
        if name == "instance":
            if self._instance is None:
                raise _NoValueError("is the same for all instances; leave {instance} out")
            self.has_instance = True
            return self._instance
        kind, _, key = name.partition(".")
        if kind == "var":
            if key not in self.scope.variables:
                nearest = did_you_mean(key, self.scope.variables).removeprefix(", ")
                raise _NoValueError(f"has no value for {{{name}}}; {nearest or f'add it to [var]: {key} = …'}")
            return self.scope.variables[key]
        if key not in self.scope.environment:
            raise _NoValueError(f"has no value for {{{name}}}: the variable is not set; start nsupervisor with {key}=…")
        text = self.scope.environment[key]
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise _NoValueError(
                    f"has no value for {{{name}}}: the variable is not UTF-8; set another one"
                ) from None
        return text
