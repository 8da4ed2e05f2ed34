"""Format values of the model as TOML, for people who compare two files."""

from __future__ import annotations

from typing import Any

from nsupervisor.config.kinds import Kind, ListOf, MapOf, Scalar, TableOf, Tables
from nsupervisor.config.load import keys_of
from nsupervisor.config.shown import shown
from nsupervisor.config.units import Percent

NOT_SET = "not set"


def written(kind: Kind, value: Any) -> str:
    """Format a value as TOML on one line: "64M" in quotes, ["a", "b"]; None becomes "not set".

    Long texts are cut.
    """
    if value is None:
        return NOT_SET
    if isinstance(value, Percent):
        return shown(str(value))
    match kind:
        case ListOf(item=item):
            return f"[{', '.join(written(item, element) for element in value)}]"
        case MapOf():
            return _inline_table({name: written(kind.kind_of(name), element) for name, element in value.items()})
        case Tables(cls):
            return f"[{', '.join(written(TableOf(cls), element) for element in value)}]"
        case TableOf(cls):
            given = {name: slot for name, slot in keys_of(cls).items() if slot.get(value) not in (slot.default, {})}
            return _inline_table({name: written(slot.kind, slot.get(value)) for name, slot in given.items()})
        case Scalar(text=text) if text is not None:
            return shown(text(value))
    if isinstance(value, dict):
        return _inline_table({name: shown(element) for name, element in value.items()})
    if isinstance(value, tuple):
        return f"[{', '.join(map(shown, value))}]" if value else NOT_SET
    return shown(value)


def _inline_table(pairs: dict[str, str]) -> str:
    return "{ " + ", ".join(f"{name} = {text}" for name, text in pairs.items()) + " }" if pairs else "{}"
