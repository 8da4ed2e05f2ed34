"""Frozen classes as plain JSON values, and back: for what has to outlive the process, or to leave it.

An attribute is written under its wire name (`nsupervisor.wire`), never under its name in the code.

Numbers stay exact: a float is written with all its digits, and infinity, which JSON does not have, as "max".
"""

import enum
import math
import operator
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import cache, partial
from typing import Any, TypeVar

import attrs

from nsupervisor.wire import wire_names

T = TypeVar("T")
_LEAVES = frozenset((type(None), bool, int, str))
_IN_WORDS = {bool: "true or false", int: "a whole number", str: "a text", Decimal: "a number in a text"}


def plain(value: Any, *, without: object = attrs.NOTHING) -> Any:
    """`value` of dicts, lists, strings, numbers, true, false and null. Attributes that are ``without`` are left out;
    `restored` then needs defaults for them."""
    if type(value) is float:  # first what there is most of
        return value if math.isfinite(value) else "max" if value > 0 else "-max"
    if value is None or type(value) in (int, str, bool):
        return value
    if isinstance(value, enum.Enum):
        return value.value
    if attrs.has(type(value)):
        kind: Any = type(value)
        names, _, values = _layout(kind)
        pairs = zip(names, values(value), strict=True)
        return {name: plain(one, without=without) for name, one in pairs if one is not without}
    if isinstance(value, Mapping):
        return {key: plain(one, without=without) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [plain(one, without=without) for one in value]
    return value


def sparse(value: Any) -> Any:
    """As `plain`, without the attributes that have their default: short, and five times as fast, for what is written
    often."""
    kind = type(value)
    if kind in _LEAVES:
        return value
    if kind is tuple or kind is list:
        return [sparse(item) for item in value]
    if kind is not float and attrs.has(kind):
        names, defaults, values = _layout(kind)
        return {
            name: item if type(item) in _LEAVES else sparse(item)
            for name, default, item in zip(names, defaults, values(value), strict=True)
            if item is not default and item != default
        }
    if isinstance(value, Mapping):
        return {key: sparse(item) for key, item in value.items()}
    if isinstance(value, Decimal):
        return str(value)
    return plain(value)


def restored(kind: type[T], data: Any, *, newer: bool = False) -> T:
    """What `plain` made of a ``kind``. ValueError where it is something else. ``newer``: a later version may have
    written it, so keys that are not known here are left out."""
    try:
        made: T = _restored(kind, data, newer)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"has something else in its place: {error}") from None
    return made


def _restored(kind: Any, data: Any, newer: bool) -> Any:
    return _reader(kind, newer)(data)


@cache
def _reader(kind: Any, newer: bool) -> Callable[[Any], Any]:
    """What makes a ``kind`` of plain values: put together once, as thousands of records are read at a take-over."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _one_of([_reader(one, newer) for one in inner if one is not type(None)], type(None) in inner)
    if origin is typing.Literal:
        return partial(_literal, inner)
    if origin in (dict, Mapping):
        return partial(_mapping, *(_reader(one, newer) for one in inner))
    if origin is tuple:
        if inner[-1] is Ellipsis:
            return partial(_items, _reader(inner[0], newer))
        return partial(_parts, [_reader(one, newer) for one in inner])
    if attrs.has(kind):
        return partial(_object, kind, newer)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return partial(_member, {one.value: one for one in kind})
    if kind is Decimal:
        return lambda data: Decimal(data) if isinstance(data, str) else _checked(Decimal, data)
    if kind is Any:
        return lambda data: data
    if kind is float:
        return _number
    return partial(_checked, kind)


def _object(kind: Any, newer: bool, data: Any) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"has {data!r} in place of an object")
    readers = _readers(kind, newer)
    given = {}
    for name, one in data.items():
        if (reader := readers.get(name)) is not None:
            given[reader[0]] = reader[1](one)
        elif not newer:
            raise ValueError(f"has the key {name!r}, which is not known here")
    try:
        return kind(**given)
    except TypeError:  # only where one without a default is missing, as all are checked by their readers
        missing = [name for name, (argument, _, needed) in readers.items() if needed and argument not in given]
        raise ValueError(f"lacks {', '.join(missing)}") from None


def _mapping(of_key: Callable[[Any], Any], of_value: Callable[[Any], Any], data: Any) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"has {data!r} in place of an object")
    return {of_key(key): of_value(one) for key, one in data.items()}


def _items(read: Callable[[Any], Any], data: Any) -> Any:
    if not isinstance(data, list):
        raise ValueError(f"has {data!r} in place of a list")
    return tuple(read(one) for one in data)


def _parts(readers: Sequence[Callable[[Any], Any]], data: Any) -> Any:
    if not isinstance(data, list):
        raise ValueError(f"has {data!r} in place of a list")
    return tuple(read(one) for read, one in zip(readers, data, strict=True))


def _literal(values: Sequence[Any], data: Any) -> Any:
    if data not in values:
        raise ValueError(f"has {data!r} in place of one of {values!r}")
    return data


def _member(members: Mapping[Any, Any], data: Any) -> Any:
    if data not in members:
        raise ValueError(f"has {data!r} in place of one of {', '.join(map(repr, members))}")
    return members[data]


def _number(data: Any) -> Any:
    if data in ("max", "-max"):
        return math.inf if data == "max" else -math.inf
    return _checked(float | int, data)


def _checked(kind: Any, data: Any) -> Any:
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise ValueError(f"has {data!r} in place of {_IN_WORDS.get(kind, 'a number')}")
    return data


def _one_of(readers: Sequence[Callable[[Any], Any]], optional: bool) -> Callable[[Any], Any]:
    def read(data: Any) -> Any:
        if data is None and optional:
            return None
        problems = []
        for one in readers:
            try:
                return one(data)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                problems.append(str(error))
        raise ValueError("; ".join(problems))

    return read


@cache
def _layout(cls: type) -> tuple[tuple[str, ...], tuple[Any, ...], Any]:
    """The wire names of a class' attributes, their defaults (something that equals nothing else for one without), and
    how to get all their values."""
    stored = wire_names(cls)
    names = [attribute.name for attribute in stored.values()]
    defaults: list[Any] = []
    for attribute in stored.values():
        default: Any = attribute.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            default = default.factory() if not default.takes_self else object()
        defaults.append(object() if default is attrs.NOTHING else default)
    if len(names) < 2:  # for which attrgetter gives no tuple
        return tuple(stored), tuple(defaults), lambda value: tuple(getattr(value, name) for name in names)
    return tuple(stored), tuple(defaults), operator.attrgetter(*names)


@cache
def _readers(kind: type, newer: bool) -> Mapping[str, tuple[str, Callable[[Any], Any], bool]]:
    """By wire name: the argument of the class, what reads its value, and whether it has no default. Not made before the
    first object is read, as a class may have itself inside."""
    hints = typing.get_type_hints(kind)
    found = {}
    for name, attribute in wire_names(kind).items():
        read, needed = _reader(hints[attribute.name], newer), attribute.default is attrs.NOTHING
        found[name] = (attribute.alias or attribute.name, read, needed)
    return found
