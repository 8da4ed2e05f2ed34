"""JSON Schema (2020-12) of the configuration, generated from the model's declarations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import NOTHING

from nsupervisor.config import model
from nsupervisor.config.kinds import WORKLOAD_NAME, Choice, Kind, ListOf, MapOf, PrefixedKeys, Scalar, TableOf, TablesOf
from nsupervisor.config.load import Slot, key_slots


def schema() -> dict[str, Any]:
    """Build the schema of a configuration file.

    It knows every key and type; the loader checks the conditions that span several keys.
    """
    definitions: dict[str, Any] = {}
    _definition(model.Config, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "nsupervisor configuration",
        **definitions.pop("Config"),
        "$defs": definitions,
    }


_NAMES: Mapping[type, str] = {
    model.Config: "Config",
    model.SupervisorConfig: "Supervisor",
    model.WorkloadConfig: "Workload",
    model.TemplateConfig: "Template",
    model.DefaultsConfig: "Defaults",
    model.GroupConfig: "Group",
    model.HostConfig: "Host",
    model.NamespacesConfig: "Namespaces",
    model.UserNamespaceConfig: "UserNamespace",
    model.IdMapping: "IdMapping",
    model.RootConfig: "Root",
    model.MountConfig: "Mount",
    model.SecurityConfig: "Security",
    model.Resources: "Resources",
    model.IoMax: "IoMax",
    model.IoLatency: "IoLatency",
    model.RdmaMax: "RdmaMax",
    model.Rule: "Rule",
    model.GroupRule: "GroupRule",
    model.LogConfig: "Log",
    model.RateLimitConfig: "RateLimit",
}
"""The names of the tables in the schema, which do not follow those of the classes."""


def _definition(cls: type, definitions: dict[str, Any]) -> dict[str, str]:
    """Return a reference to the schema of a model class, and add the schema to the definitions if it is new."""
    name = _NAMES[cls]
    if name not in definitions:
        definitions[name] = {}
        slots = key_slots(cls)
        described: dict[str, Any] = {
            "type": "object",
            "properties": {key: _property_schema(slot, definitions) for key, slot in slots.items()},
            "additionalProperties": False,
        }
        required = [key for key, slot in slots.items() if slot.is_required]
        if required and cls is not model.TemplateConfig:
            described["required"] = required
        definitions[name] = described
    return {"$ref": f"#/$defs/{name}"}


def _property_schema(slot: Slot, definitions: dict[str, Any]) -> dict[str, Any]:
    described = {"description": slot.doc, **_kind_schema(slot.kind, definitions)}
    if isinstance(slot.kind, Scalar | Choice) and slot.default is not NOTHING and slot.default is not None:
        try:
            if slot.kind.load(slot.default) == slot.default:
                described["default"] = slot.default
        except ValueError:
            pass  # TOML has another form of this value: a umask is text there, and a number here
    return described


def _kind_schema(kind: Kind, definitions: dict[str, Any]) -> dict[str, Any]:
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
            reference = _definition(cls, definitions)
            if not named:
                return dict(reference)
            return {"type": "object", "propertyNames": dict(WORKLOAD_NAME.schema), "additionalProperties": reference}
        case TablesOf(cls):
            return {"type": "array", "items": _definition(cls, definitions)}
        case PrefixedKeys():  # key_slots expands these keys
            raise AssertionError(kind)
