"""The base class of all model classes."""

from __future__ import annotations

from typing import Any

from attrs import fields


class Table:
    """Base class with one `repr` for all model classes.

    An attrs-generated `repr` takes a fifth of the time to create a class, and each command that reads a file
    creates them all.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        """Format the object as attrs does: `Mount(target='/tmp', …)`."""
        cls: Any = type(self)
        values = ", ".join(f"{attribute.name}={getattr(self, attribute.name)!r}" for attribute in fields(cls))
        return f"{cls.__qualname__}({values})"
