"""Format values of the model as TOML, for people who compare two files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nsupervisor.config.kinds import Kind, ListOf, MapOf, Scalar, TableOf, TablesOf
from nsupervisor.config.load import key_slots
from nsupervisor.config.quoting import format_path, quoted
from nsupervisor.config.units import Percent

NOT_SET = "not set"
HIDDEN = "…"
"""In the place of what is never shown."""


def to_toml(kind: Kind, value: Any) -> str:
    """Format a value as TOML on one line: "64M" in quotes, ["a", "b"]; None becomes "not set"."""
    if value is None:
        return NOT_SET
    if isinstance(value, Percent):
        return _quoted(str(value))
    match kind:
        case ListOf(item=item):
            return f"[{', '.join(to_toml(item, element) for element in value)}]"
        case MapOf():
            return _inline_table({name: to_toml(kind.kind_of(name), element) for name, element in value.items()})
        case TablesOf(cls):
            return f"[{', '.join(to_toml(TableOf(cls), element) for element in value)}]"
        case TableOf(cls):
            given = {
                name: slot for name, slot in key_slots(cls).items() if slot.value_in(value) not in (slot.default, {})
            }
            return _inline_table(
                {
                    name: HIDDEN if slot.is_secret else to_toml(slot.kind, slot.value_in(value))
                    for name, slot in given.items()
                }
            )
        case Scalar(to_text=text) if text is not None:
            written = text(value)
            if isinstance(written, dict):
                return _inline_table({name: _quoted(element) for name, element in written.items()})
            return _quoted(written)
    if isinstance(value, dict):
        return _inline_table({name: _quoted(element) for name, element in value.items()})
    if isinstance(value, tuple):
        return f"[{', '.join(map(_listed, value))}]" if value else NOT_SET
    return _quoted(value)


def _listed(value: Any) -> str:
    return f"[{', '.join(map(_quoted, value))}]" if isinstance(value, tuple) else _quoted(value)


def _quoted(value: Any) -> str:
    return quoted(value, is_cut=False)


def _inline_table(pairs: dict[str, str]) -> str:
    return "{ " + ", ".join(f"{name} = {text}" for name, text in pairs.items()) + " }" if pairs else "{}"


def format_file(table: dict[str, Any]) -> str:
    """Format the top-level table of a configuration as a file."""
    return "\n".join(_table_lines(table, ())).lstrip("\n") + "\n"


def _table_lines(table: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Yield the lines of a table: first its values, then the tables in it, each with a header."""
    tables = {key: value for key, value in table.items() if isinstance(value, dict)}
    values = {key: value for key, value in table.items() if key not in tables}
    if path and (values or not tables):
        yield ""
        yield f"[{format_path(path)}]"
    for key, value in values.items():
        yield f"{format_path([key])} = {_value_text(value)}"
    for key, value in tables.items():
        yield from _table_lines(value, (*path, key))


def _value_text(value: Any) -> str:
    if isinstance(value, dict):
        return _inline_table({format_path([key]): _value_text(element) for key, element in value.items()})
    if isinstance(value, list):
        return f"[{', '.join(map(_value_text, value))}]"
    return _quoted(value) if isinstance(value, str | bool) else str(value)
