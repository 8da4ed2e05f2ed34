"""The configuration's JSON Schema (2020-12), made from the model's declarations."""

from __future__ import annotations

from typing import Any

from attrs import NOTHING

from nsupervisor.config import model
from nsupervisor.config.kinds import WORKLOAD_NAME, Choice, Kind, ListOf, MapOf, Prefixed, Scalar, TableOf, Tables
from nsupervisor.config.load import Slot, keys_of


def schema() -> dict[str, Any]:
    """The schema of a configuration file's tables. It knows every key and type; what spans several keys, the loader."""
    definitions: dict[str, Any] = {}
    _define(model.Config, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "nsupervisor configuration",
        **definitions.pop("Config"),
        "$defs": definitions,
    }


def _define(cls: type, definitions: dict[str, Any]) -> dict[str, str]:
    """A reference to the schema of a model class, which is added to the definitions when it is new."""
    if cls.__name__ not in definitions:
        definitions[cls.__name__] = {}
        slots = keys_of(cls)
        described: dict[str, Any] = {
            "type": "object",
            "properties": {name: _property(slot, definitions) for name, slot in slots.items()},
            "additionalProperties": False,
        }
        if required := [name for name, slot in slots.items() if slot.required]:
            described["required"] = required
        definitions[cls.__name__] = described
    return {"$ref": f"#/$defs/{cls.__name__}"}


def _property(slot: Slot, definitions: dict[str, Any]) -> dict[str, Any]:
    described = {"description": slot.doc, **_kind(slot.kind, definitions)}
    if isinstance(slot.kind, Scalar | Choice) and slot.default is not NOTHING and slot.default is not None:
        try:
            if slot.kind.load(slot.default) == slot.default:
                described["default"] = slot.default
        except ValueError:
            pass  # the Python form is not how TOML writes it: a umask is text there, a number here
    return described


def _kind(kind: Kind, definitions: dict[str, Any]) -> dict[str, Any]:
    match kind:
        case Scalar() | Choice():
            return dict(kind.schema)
        case ListOf():
            minimum = {"minItems": kind.minimum} if kind.minimum else {}
            return {"type": "array", "items": dict(kind.item.schema), **minimum}
        case MapOf():
            item = dict(kind.item.schema)
            if kind.names:
                properties = {name: dict(kind.kind_of(name).schema) for name in kind.names}
                return {"type": "object", "properties": properties, "additionalProperties": False}
            names = {"propertyNames": dict(kind.key.schema)} if kind.key else {}
            return {"type": "object", **names, "additionalProperties": item}
        case TableOf(cls, named):
            reference = _define(cls, definitions)
            if not named:
                return dict(reference)
            return {"type": "object", "propertyNames": dict(WORKLOAD_NAME.schema), "additionalProperties": reference}
        case Tables(cls):
            return {"type": "array", "items": _define(cls, definitions)}
        case Prefixed():  # keys_of has taken it apart
            raise AssertionError(kind)
