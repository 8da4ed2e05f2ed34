"""Frozen classes as plain JSON values, and back: for what has to outlive the process, or to leave it.

Numbers stay exact: a float is written with all its digits, and infinity, which JSON does not have, as "max".
"""

import enum
import math
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

import attrs

T = TypeVar("T")


def plain(value: Any, *, without: object = attrs.NOTHING) -> Any:
    """`value` of dicts, lists, strings, numbers, true, false and null. Attributes that equal ``without`` are left out;
    `restored` then needs defaults for them."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, float) and math.isinf(value):
        return "max" if value > 0 else "-max"
    if attrs.has(type(value)):
        pairs = ((a.name, getattr(value, a.name)) for a in attrs.fields(type(value)))
        return {name: plain(one, without=without) for name, one in pairs if one is not without}
    if isinstance(value, Mapping):
        return {key: plain(one, without=without) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [plain(one, without=without) for one in value]
    return value


def restored(kind: type[T], data: Any) -> T:
    """What `plain` made of a ``kind``. ValueError where it is something else."""
    try:
        made: T = _restored(kind, data)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"is no {kind.__name__}: {error}") from None
    return made


def _restored(kind: Any, data: Any) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in inner:
            return None
        (kind,) = [one for one in inner if one is not type(None)]
        return _restored(kind, data)
    if origin is tuple:
        if not isinstance(data, list):
            raise ValueError(f"has {data!r} in place of a list")
        if inner[-1] is Ellipsis:
            return tuple(_restored(inner[0], one) for one in data)
        return tuple(_restored(one, part) for one, part in zip(inner, data, strict=True))
    if attrs.has(kind):
        hints = _hints(kind)
        return kind(**{name: _restored(hints[name], one) for name, one in data.items()})
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(data)
    if kind is float:
        if data in ("max", "-max"):
            return math.inf if data == "max" else -math.inf
        kind = float | int
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise ValueError(f"has {data!r} in place of {getattr(kind, '__name__', 'a number')}")
    return data


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    return typing.get_type_hints(kind)
