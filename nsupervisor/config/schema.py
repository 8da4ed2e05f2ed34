"""JSON Schema (2020-12) of the configuration, generated from the model's declarations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import NOTHING

from nsupervisor.config import model, probes
from nsupervisor.config.kinds import WORKLOAD_NAME, Choice, Kind, ListOf, MapOf, PrefixedKeys, Scalar, TableOf, TablesOf
from nsupervisor.config.landlock import LandlockConfig
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
    model.NetworkConfig: "WorkloadNetwork",
    model.DnsConfig: "Dns",
    model.NetworksConfig: "Network",
    model.IdMapping: "IdMapping",
    model.RootConfig: "Root",
    model.MountConfig: "Mount",
    model.SecurityConfig: "Security",
    LandlockConfig: "Landlock",
    model.Resources: "Resources",
    model.IoMax: "IoMax",
    model.IoLatency: "IoLatency",
    model.RdmaMax: "RdmaMax",
    model.Rule: "Rule",
    model.GroupRule: "GroupRule",
    model.LogConfig: "Log",
    model.RateLimitConfig: "RateLimit",
    probes.StartupConfig: "StartupProbe",
    probes.ReadinessConfig: "ReadinessProbe",
    probes.LivenessConfig: "LivenessProbe",
    probes.HttpGet: "HttpGet",
    probes.TcpSocket: "TcpSocket",
    model.TimerConfig: "Timer",
    model.SocketConfig: "Socket",
    model.PathConfig: "Path",
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
            "properties": {
                key: _property_schema(slot, definitions, cls not in _LITERAL and key not in _LITERAL_KEYS)
                for key, slot in slots.items()
            },
            "additionalProperties": False,
        }
        required = [key for key, slot in slots.items() if slot.is_required]
        if cls is model.WorkloadConfig:
            image = {"properties": {"root": {"required": ["image"]}}, "required": ["root"]}
            described["anyOf"] = [{"required": required}, image]
        elif required and cls is not model.TemplateConfig:
            described["required"] = required
        definitions[name] = described
    return {"$ref": f"#/$defs/{name}"}


_LITERAL = (
    model.Config,
    model.SupervisorConfig,
    model.DefaultsConfig,
    model.GroupConfig,
    model.GroupRule,
    model.HostConfig,
    model.NetworksConfig,
)
"""Tables whose values have no placeholders."""
_LITERAL_KEYS = ("extends", "override", "expand")
_PLACEHOLDER = {"type": "string", "pattern": r"\{"}
"""The schema of a text that has a placeholder, and becomes another value with `expand = true`."""


def _with_placeholder(described: Mapping[str, Any], is_expandable: bool) -> dict[str, Any]:
    if not is_expandable or described == {"type": "string"}:
        return dict(described)
    return {"anyOf": [dict(described), dict(_PLACEHOLDER)]}


def _property_schema(slot: Slot, definitions: dict[str, Any], is_expandable: bool) -> dict[str, Any]:
    described = {"description": slot.doc, **_kind_schema(slot.kind, definitions, is_expandable)}
    if isinstance(slot.kind, Scalar | Choice) and slot.default is not NOTHING and slot.default is not None:
        try:
            if slot.kind.load(slot.default) == slot.default:
                described["default"] = slot.default
        except ValueError:
            pass  # TOML has another form of this value: a umask is text there, and a number here
    return described


def _kind_schema(kind: Kind, definitions: dict[str, Any], is_expandable: bool) -> dict[str, Any]:
    match kind:
        case Scalar() | Choice():
            return _with_placeholder(kind.schema, is_expandable)
        case ListOf():
            minimum = {"minItems": kind.minimum} if kind.minimum else {}
            return {"type": "array", "items": _with_placeholder(kind.item.schema, is_expandable), **minimum}
        case MapOf():
            item = _with_placeholder(kind.item.schema, is_expandable)
            if kind.names:
                properties = {name: _with_placeholder(kind.kind_of(name).schema, is_expandable) for name in kind.names}
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
