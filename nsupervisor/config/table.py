"""What all tables of the configuration have in common."""

from __future__ import annotations

from typing import Any

from attrs import fields


class Table:
    """The `repr` of the model's classes, written once. One that attrs makes for each is a fifth of what it takes to
    build the class, and each command that reads a file builds them all."""

    __slots__ = ()

    def __repr__(self) -> str:
        """`Mount(target='/tmp', …)`, as attrs has it."""
        cls: Any = type(self)
        values = ", ".join(f"{one.name}={getattr(self, one.name)!r}" for one in fields(cls))
        return f"{cls.__qualname__}({values})"
