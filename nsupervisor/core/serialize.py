"""Convert frozen classes to JSON values and back, for data that outlives or leaves the process.

An attribute is written under its wire name (`nsupervisor.wire_names`), never under its name in the code.

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

from nsupervisor.core.initiators import Initiator
from nsupervisor.wire_names import wire_names

T = TypeVar("T")
_LEAVES = frozenset((type(None), bool, int, str))
_DESCRIPTIONS = {bool: "true or false", int: "a whole number", str: "a text", Decimal: "a number in a text"}


def to_json(value: Any, *, omit: object = attrs.NOTHING) -> Any:
    """Convert a value to dicts, lists, strings, numbers, true, false and null.

    Attributes whose value is `omit` are left out; `from_json` then needs defaults for them.
    """
    if type(value) is float:  # the most frequent case first
        return value if math.isfinite(value) else "max" if value > 0 else "-max"
    if value is None or type(value) in (int, str, bool):
        return value
    if isinstance(value, enum.Enum):
        return value.value
    if attrs.has(type(value)):
        cls: Any = type(value)
        names, _, values = _field_layout(cls)
        pairs = zip(names, values(value), strict=True)
        return {name: to_json(item, omit=omit) for name, item in pairs if item is not omit}
    if isinstance(value, Mapping):
        return {key: to_json(item, omit=omit) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item, omit=omit) for item in value]
    return value


def to_json_sparse(value: Any) -> Any:
    """Convert as `to_json`, without attributes that have their default.

    The result is short, and the conversion many times as fast, for data that is written often.
    """
    kind: Any = type(value)
    return value if kind in _LEAVES else _sparse_writer(kind)(value)


@cache
def _sparse_writer(kind: type) -> Callable[[Any], Any]:
    """Return what converts values of a type, chosen once per type: a state file has some 20 values in each line."""
    if kind is tuple or kind is list:
        return _write_items
    if attrs.has(kind):
        return partial(_write_object, *_field_layout(kind))
    if issubclass(kind, Mapping):
        return _write_mapping
    if issubclass(kind, enum.Enum):
        return operator.attrgetter("value")
    return str if issubclass(kind, Decimal) else to_json


def _write_items(values: Sequence[Any]) -> list[Any]:
    return [item if type(item) in _LEAVES else to_json_sparse(item) for item in values]


def _write_mapping(values: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: to_json_sparse(item) for key, item in values.items()}


def _write_object(names: Sequence[str], defaults: Sequence[Any], values_of: Callable[[Any], Any], value: Any) -> Any:
    return {
        name: item if type(item) in _LEAVES else to_json_sparse(item)
        for name, default, item in zip(names, defaults, values_of(value), strict=True)
        if item is not default and (default is None or item != default)  # a value of None would be the default itself
    }


def from_json(cls: type[T], data: Any, *, ignore_unknown: bool = False) -> T:
    """Convert the output of `to_json` back to an instance of `cls`.

    Raises ValueError for other data. ignore_unknown: leave out unknown keys, which a later version may have
    written.
    """
    try:
        value: T = _convert(cls, data, ignore_unknown)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"has something else in its place: {error}") from None
    return value


def _convert(cls: Any, data: Any, ignore_unknown: bool) -> Any:
    return _reader(cls, ignore_unknown)(data)


@cache
def _reader(cls: Any, ignore_unknown: bool) -> Callable[[Any], Any]:
    """Build the reader of a type once per type, as a takeover reads thousands of records."""
    origin, arguments = typing.get_origin(cls), typing.get_args(cls)
    if origin in (typing.Union, types.UnionType):
        return _read_union(
            [_reader(argument, ignore_unknown) for argument in arguments if argument is not type(None)],
            type(None) in arguments,
        )
    if origin is typing.Literal:
        return partial(_read_literal, arguments)
    if origin in (dict, Mapping):
        return partial(_read_mapping, *(_reader(argument, ignore_unknown) for argument in arguments))
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return partial(_read_items, _reader(arguments[0], ignore_unknown))
        return partial(_read_parts, [_reader(argument, ignore_unknown) for argument in arguments])
    if attrs.has(cls):
        return partial(_read_object, cls, ignore_unknown)
    if isinstance(cls, type) and issubclass(cls, enum.Enum):
        return partial(_read_member, {member.value: member for member in cls})
    if cls is Decimal:
        return lambda data: Decimal(data) if isinstance(data, str) else _check_type(Decimal, data)
    if cls is Any:
        return lambda data: data
    if cls is Initiator:
        return lambda data: Initiator.from_text(_check_type(str, data))
    if cls is float:
        return _read_number
    return partial(_check_type, cls)


def _read_object(cls: Any, ignore_unknown: bool, data: Any) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"has {data!r} in place of an object")
    readers = _field_readers(cls, ignore_unknown)
    values = {}
    for name, item in data.items():
        if (reader := readers.get(name)) is not None:
            values[reader[0]] = reader[1](item)
        elif not ignore_unknown:
            raise ValueError(f"has the key {name!r}, which is not known here")
    try:
        return cls(**values)
    except TypeError:  # only an attribute without a default can be missing, as the readers check the others
        missing = [name for name, (argument, _, needed) in readers.items() if needed and argument not in values]
        raise ValueError(f"lacks {', '.join(missing)}") from None


def _read_mapping(read_key: Callable[[Any], Any], read_value: Callable[[Any], Any], data: Any) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"has {data!r} in place of an object")
    return {read_key(key): read_value(item) for key, item in data.items()}


def _read_items(read: Callable[[Any], Any], data: Any) -> Any:
    if not isinstance(data, list):
        raise ValueError(f"has {data!r} in place of a list")
    return tuple(read(item) for item in data)


def _read_parts(readers: Sequence[Callable[[Any], Any]], data: Any) -> Any:
    if not isinstance(data, list):
        raise ValueError(f"has {data!r} in place of a list")
    return tuple(read(item) for read, item in zip(readers, data, strict=True))


def _read_literal(values: Sequence[Any], data: Any) -> Any:
    if data not in values:
        raise ValueError(f"has {data!r} in place of one of {values!r}")
    return data


def _read_member(members: Mapping[Any, Any], data: Any) -> Any:
    if data not in members:
        raise ValueError(f"has {data!r} in place of one of {', '.join(map(repr, members))}")
    return members[data]


def _read_number(data: Any) -> Any:
    if data in ("max", "-max"):
        return math.inf if data == "max" else -math.inf
    return _check_type(float | int, data)


def _check_type(cls: Any, data: Any) -> Any:
    if not isinstance(data, cls) or (isinstance(data, bool) and cls is not bool):
        raise ValueError(f"has {data!r} in place of {_DESCRIPTIONS.get(cls, 'a number')}")
    return data


def _read_union(readers: Sequence[Callable[[Any], Any]], optional: bool) -> Callable[[Any], Any]:
    def read(data: Any) -> Any:
        if data is None and optional:
            return None
        problems = []
        for reader in readers:
            try:
                return reader(data)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                problems.append(str(error))
        raise ValueError("; ".join(problems))

    return read


@cache
def _field_layout(cls: type) -> tuple[tuple[str, ...], tuple[Any, ...], Any]:
    """Return the wire names of a class' attributes, their defaults, and a getter for all values.

    An attribute without a default has a placeholder that equals nothing else.
    """
    fields = wire_names(cls)
    names = [attribute.name for attribute in fields.values()]
    defaults: list[Any] = []
    for attribute in fields.values():
        default: Any = attribute.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            default = default.factory() if not default.takes_self else object()
        defaults.append(object() if default is attrs.NOTHING else default)
    if len(names) < 2:  # attrgetter of one name returns no tuple
        return tuple(fields), tuple(defaults), lambda value: tuple(getattr(value, name) for name in names)
    return tuple(fields), tuple(defaults), operator.attrgetter(*names)


@cache
def _field_readers(cls: type, ignore_unknown: bool) -> Mapping[str, tuple[str, Callable[[Any], Any], bool]]:
    """Map wire names to the class' argument, the reader of its value, and whether it is required.

    The readers are built when the first object is read, as a class may contain itself.
    """
    hints = typing.get_type_hints(cls)
    readers = {}
    for name, attribute in wire_names(cls).items():
        read, is_required = _reader(hints[attribute.name], ignore_unknown), attribute.default is attrs.NOTHING
        readers[name] = (attribute.alias or attribute.name, read, is_required)
    return readers
