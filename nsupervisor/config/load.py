"""Load TOML text into the model, and report every problem of a file at once, each with its line.

The loader walks the model's declarations (`key_slots`) and the file's tables side by side. It reports a wrong value and
goes on with its default; if anything was reported, it returns no Config.
"""

from __future__ import annotations

import os
import re
import tomllib
from functools import cache
from typing import Any, NamedTuple

from attrs import NOTHING, Attribute, fields

from nsupervisor.config import model
from nsupervisor.config.bounds import TOO_DEEP, check_bounds
from nsupervisor.config.checks import conflicts
from nsupervisor.config.files import read_text
from nsupervisor.config.kinds import (
    WORKLOAD_NAME,
    Choice,
    Key,
    Kind,
    ListOf,
    MapOf,
    Prefixed,
    Scalar,
    TableOf,
    Tables,
)
from nsupervisor.config.positions import Path, Positions, scan
from nsupervisor.config.problems import ConfigError, Problem
from nsupervisor.config.shown import did_you_mean, shown, shown_path

__all__ = ["ConfigError", "Problem", "Slot", "keys_of", "load", "parse"]

_FAILED = object()
PROBLEMS_LIMIT = 1000
"""Problems that are reported of one file; finding a similar key for each takes time."""

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


def load(path: str | os.PathLike[str]) -> model.Config:
    """Load the configuration of a file; ConfigError lists every problem."""
    return parse(read_text(path), os.fspath(path))


def parse(text: str, path: str, positions: Positions | None = None) -> model.Config:
    """Parse a configuration; ConfigError lists every problem.

    path: the file name for messages and `Config.path`. positions: the key positions of `text`, if known already.
    """
    check_bounds(text, path)
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise ConfigError([Problem(path, 1, "", TOO_DEEP)]) from None
    except ValueError as error:
        # Mostly TOMLDecodeError; an integer of thousands of digits raises a plain ValueError.
        raise ConfigError([_syntax_problem(text, path, str(error))]) from None
    loader = _Loader(path, scan(text) if positions is None else positions)
    config = loader.object(model.Config, table, (), path=path)
    loader.check(config)
    if loader.problems:
        raise ConfigError(loader.problems)
    assert isinstance(config, model.Config)
    return config


def read_table(cls: type, table: dict[str, Any]) -> Any:
    """Load an object of a model class from a table without a file; ConfigError lists every problem by key."""
    loader = _Loader("", scan(""))
    result = loader.object(cls, table, ())
    if loader.problems:
        raise ConfigError(problem._replace(line=0) for problem in loader.problems)
    return result


def _syntax_problem(text: str, path: str, error: str) -> Problem:
    """Convert tomllib's message, which ends with "(at line 3, column 5)" or "(at end of document)"."""
    message, _, location = error.partition(" (at ")
    match = re.match(r"line (\d+), column (\d+)", location)
    line = int(match[1]) if match else max(text.rstrip("\n").count("\n"), 0) + 1 if location else 1
    column = f" at column {match[2]}" if match else " at the end of the file" if location else ""
    hint = next((hint for start, hint in _SYNTAX_HINTS.items() if message.startswith(start)), "correct it")
    if redeclared := re.fullmatch(r"Cannot declare \((.*)\) twice", message):
        names = re.findall("'([^']*)'", redeclared[1])
        message = f"the table [{shown_path(names)}] is declared twice"
    reason = f"{message[:1].lower()}{message[1:]}"
    return Problem(path, line, "", f"this is not TOML{column}: {reason}; {hint}")


class Slot(NamedTuple):
    """The destination of a TOML key's value: an attribute, or a member of an attribute's dict."""

    attribute: str
    kind: Kind
    doc: str
    member: str | None
    required: bool
    default: Any
    live: bool = False
    secret: bool = False

    def get(self, owner: Any) -> Any:
        """Return the value from an object of the class; None for a member that is missing."""
        value = getattr(owner, self.attribute)
        return value if self.member is None else value.get(self.member)


@cache
def keys_of(cls: type) -> dict[str, Slot]:
    """Return the TOML keys of a model class, with their slots."""
    slots: dict[str, Slot] = {}
    attribute: Attribute[Any]
    for attribute in fields(cls):
        declared: Key | None = attribute.metadata.get("key")
        if declared is None:
            continue
        default = attribute.default
        if isinstance(declared.kind, Prefixed):
            for member, kind in declared.kind.items.items():
                name = declared.kind.prefix + member
                slots[name] = Slot(
                    attribute.name, kind, declared.doc, member, False, NOTHING, declared.live, declared.secret
                )
            continue
        name = declared.toml or attribute.name.rstrip("_")
        required = default is NOTHING
        slots[name] = Slot(
            attribute.name, declared.kind, declared.doc, None, required, default, declared.live, declared.secret
        )
    return slots


class _Loader:
    def __init__(self, path: str, positions: Positions) -> None:
        self.path = path
        self.positions = positions
        self.problems: list[Problem] = []
        self.failed: set[Path] = set()

    def problem(self, path: Path, message: str) -> Any:
        """Report a problem; returns the marker of a missing value."""
        self.failed.add(path)
        self.problems.append(Problem(self.path, self.positions.line(path), shown_path(path), message))
        if len(self.problems) >= PROBLEMS_LIMIT:
            last = max(problem.line for problem in self.problems)
            self.problems.append(Problem(self.path, last, "", "there may be more problems; correct these first"))
            raise ConfigError(self.problems)
        return _FAILED

    def check(self, config: Any) -> None:
        """Report all conflicts, except those that involve a value already reported."""
        for conflict in conflicts(config):
            if not any(self.touched(path) for path in (conflict.path, *conflict.involves)):
                self.problem(conflict.path, conflict.message)

    def touched(self, path: Path) -> bool:
        """Check whether the value at `path`, one around it, or one in it was reported."""
        return any(path[: len(failed)] == failed or failed[: len(path)] == path for failed in self.failed)

    def object(self, cls: type, table: dict[str, Any], path: Path, /, **filled: Any) -> Any:
        """Load an instance of a model class; a required key that is missing or wrong becomes None."""
        slots = keys_of(cls)
        values = dict(filled)
        for name, value in table.items():
            slot = slots.get(name)
            if slot is None:
                self.unknown(cls, name, path)
                continue
            result = self.value(slot.kind, value, (*path, name))
            if result is _FAILED:
                continue
            if slot.member is None:
                values[slot.attribute] = result
            else:
                values.setdefault(slot.attribute, {})[slot.member] = result
        for name, slot in slots.items():
            if slot.required and slot.attribute not in values:
                if name not in table:
                    self.problem((*path, name), f"is missing; write {name} = … ({slot.doc})")
                values[slot.attribute] = None
        return cls(**values)

    def unknown(self, cls: type, name: str, path: Path) -> None:
        """Report a key that the model does not have, with the most likely reason."""
        slots = keys_of(cls)
        table = f"[{shown_path(path)}]" if path else "the file"
        if any(name in model.PLANNED.get(base, ()) for base in cls.__mro__):
            message = "is not available yet in this version; remove it"
        elif nearest := did_you_mean(name, slots):
            message = f"is not a key of {table}{nearest}".replace(", did", "; did")
        elif owner := _owner(slots, name):
            message = f"is not a key of {table}; move it into [{shown_path((*path, *owner))}]"
        else:
            message = f"is not a key of {table}; remove it, or write one of {', '.join(slots)}"
        self.problem((*path, name), message)

    def value(self, kind: Kind, value: Any, path: Path) -> Any:
        """Load a value of any kind; return _FAILED if it was reported."""
        match kind:
            case Scalar() | Choice():
                try:
                    return kind.load(value)
                except ValueError as error:
                    return self.problem(path, f"{shown(value)} {error}")
            case ListOf():
                return self.list_of(kind, value, path)
            case MapOf():
                return self.map_of(kind, value, path)
            case TableOf(cls, named):
                if not isinstance(value, dict):
                    instead = f"[{shown_path(path)}{'.NAME' if named else ''}]"
                    return self.problem(path, f"{shown(value)} is not a table; write {instead} and its keys below it")
                return self.named(cls, value, path) if named else self.object(cls, value, path)
            case Tables():
                return self.tables(kind, value, path)
            case Prefixed():  # key_slots expands these keys
                raise AssertionError(path)

    def list_of(self, kind: ListOf, value: Any, path: Path) -> Any:
        if not isinstance(value, list):
            instead = "write it in brackets"
            if isinstance(value, str):
                instead = f"write {kind.as_text(value) if kind.as_text else f'[{shown(value)}]'}"
            return self.problem(path, f"{shown(value)} is not a list; {instead}")
        if len(value) < kind.minimum:
            return self.problem(path, f"the list is empty; {kind.empty}")
        items = [self.value(kind.item, item, (*path, number)) for number, item in enumerate(value)]
        return _FAILED if any(item is _FAILED for item in items) else tuple(items)

    def map_of(self, kind: MapOf, value: Any, path: Path) -> Any:
        if not isinstance(value, dict):
            return self.problem(path, f"{shown(value)} is not a table; write {{ NAME = VALUE, … }}")
        result: dict[str, Any] = {}
        for name, item in value.items():
            if kind.names and name not in kind.names:
                nearest = did_you_mean(name, kind.names)
                self.problem((*path, name), f"is not a key here{nearest}; write one of {', '.join(kind.names)}")
            elif kind.key is None or self.value(kind.key, name, (*path, name)) is not _FAILED:
                result[name] = self.value(kind.kind_of(name), item, (*path, name))
        return result

    def tables(self, kind: Tables, value: Any, path: Path) -> Any:
        if isinstance(value, dict):
            return self.problem(path, f"is a single table; write [[{shown_path(path)}]], with two brackets")
        if not isinstance(value, list):
            return self.problem(path, f"{shown(value)} is not a list of tables; write [[{shown_path(path)}]]")
        items = []
        for number, item in enumerate(value):
            item_path = (*path, number)
            if not isinstance(item, dict):
                self.problem(item_path, f"{shown(item)} is not a table; write {{ KEY = VALUE, … }}")
                continue
            filled = {}
            if issubclass(kind.cls, model.Rule):
                is_workload_rule = kind.cls is model.Rule
                filled = {
                    "name": shown_path(item_path[-2:] if is_workload_rule else item_path),
                    "line": self.positions.line(item_path),
                }
            items.append(self.object(kind.cls, item, item_path, **filled))
        return tuple(items)

    def named(self, cls: type, value: dict[str, Any], path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, table in value.items():
            table_path = (*path, name)
            if self.value(WORKLOAD_NAME, name, table_path) is _FAILED:
                continue
            if not isinstance(table, dict):
                self.problem(
                    table_path, f"{shown(table)} is not a table; write [{shown_path(table_path)}] and its keys below it"
                )
                continue
            result[name] = self.object(cls, table, table_path, name=name)
        return result


def _owner(slots: dict[str, Slot], name: str) -> tuple[str, ...]:
    """Find the sub-table that has such a key."""
    for key, slot in slots.items():
        if isinstance(slot.kind, TableOf) and name in keys_of(slot.kind.cls):
            return (key, "NAME") if slot.kind.named else (key,)
    return ()
