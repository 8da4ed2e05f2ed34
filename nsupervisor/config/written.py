"""How a file would have a value of the model: the loader's way back, for people who compare two files."""

from __future__ import annotations

from typing import Any

from nsupervisor.config.kinds import Kind, ListOf, MapOf, Scalar, TableOf, Tables
from nsupervisor.config.load import keys_of
from nsupervisor.config.shown import shown
from nsupervisor.config.units import Percent

NOT_SET = "not set"


def written(kind: Kind, value: Any) -> str:
    """A value of this kind as TOML on one line, long texts cut: "64M" in quotes, ["a", "b"]. None: "not set"."""
    if value is None:
        return NOT_SET
    if isinstance(value, Percent):
        return shown(str(value))
    match kind:
        case ListOf(item=item):
            return f"[{', '.join(written(item, one) for one in value)}]"
        case MapOf():
            return _table({name: written(kind.kind_of(name), one) for name, one in value.items()})
        case Tables(cls):
            return f"[{', '.join(written(TableOf(cls), one) for one in value)}]"
        case TableOf(cls):
            given = {name: slot for name, slot in keys_of(cls).items() if slot.get(value) not in (slot.default, {})}
            return _table({name: written(slot.kind, slot.get(value)) for name, slot in given.items()})
        case Scalar(text=text) if text is not None:
            return shown(text(value))
    if isinstance(value, dict):
        return _table({name: shown(one) for name, one in value.items()})
    if isinstance(value, tuple):
        return f"[{', '.join(map(shown, value))}]" if value else NOT_SET
    return shown(value)


def _table(pairs: dict[str, str]) -> str:
    return "{ " + ", ".join(f"{name} = {text}" for name, text in pairs.items()) + " }" if pairs else "{}"
