"""Wire names: what files and messages call the attributes of the code.

A class that is stored or sent gives each attribute its wire name: `metadata=wire("memory")`. A key of the configuration
(`metadata=key(...)`) has one already, the TOML key, unless it is given another. `nsupervisor.core.serialize` writes and
reads by these names alone, so that renaming an attribute leaves every file and message as it is.

A wire name never changes: running systems, and files of any earlier version, have it. docs/decisions.md says which
formats this is about.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from attrs import Attribute, fields


def wire(name: str | None) -> dict[str, str | None]:
    """Return the metadata of an attrs field with the wire name `name`; None: the field is not stored."""
    return {"wire": name}


@cache
def wire_names(cls: Any) -> dict[str, Attribute[Any]]:
    """Return the stored fields of a class by their wire names, in the order in which they are written.

    Raises TypeError where a field has no wire name, or two have the same.
    """
    found: dict[str, Attribute[Any]] = {}
    for attribute in fields(cls):
        name = _wire_name(cls, attribute)
        if name in found:
            raise TypeError(f"{cls.__name__} has the wire name {name} twice")
        if name is not None:
            found[name] = attribute
    return found


def by_wire_name(value: Any) -> dict[str, Any]:
    """Return the values of an object's stored fields by their wire names; the values as they are."""
    cls: Any = type(value)
    return {name: getattr(value, attribute.name) for name, attribute in wire_names(cls).items()}


def _wire_name(cls: Any, attribute: Attribute[Any]) -> str | None:
    if "wire" in attribute.metadata:
        name: str | None = attribute.metadata["wire"]
        return name
    key = attribute.metadata.get("key")
    if key is None:
        raise TypeError(f"{cls.__name__}.{attribute.name} has no wire name; give it metadata=wire(...)")
    return key.toml or attribute.name
