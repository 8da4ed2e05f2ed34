"""configs/reference.toml marks the default of each key: `[default]`, or `[default VALUE]` if it shows another value."""

import re
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from attrs import NOTHING

from nsupervisor.config import model
from nsupervisor.config.kinds import Kind, ListOf, MapOf, Scalar, TableOf, TablesOf
from nsupervisor.config.load import Slot, key_slots
from nsupervisor.config.to_toml import to_toml
from nsupervisor.service.instance.spawn_spec import environment
from nsupervisor.service.instance.users import resolve_user

REFERENCE = Path(__file__).parents[2] / "configs" / "reference.toml"


class Line(NamedTuple):
    """A line of the reference that gives a key a value."""

    number: int
    slot: tuple[str, str]
    """The class that declares the key, and the key: a group's rules have those of a workload's, too."""
    value: str
    mark: str | None
    """What the comment has in its brackets: "default", "default 5", "required"; None without brackets."""
    declared: Slot


def table_class(path: list[str]) -> type | None:
    """Return the class of a table of the file; None for a table whose keys the user chooses."""
    cls: type = model.Config
    while path:
        slot = key_slots(cls)[path.pop(0)]
        match slot.kind:
            case TableOf(below, is_named):
                cls = below
                if is_named:
                    path.pop(0)
            case TablesOf(below):
                cls = below
            case _:
                return None
    return cls


def reference_lines() -> list[Line]:
    found = []
    cls: type | None = None
    for number, text in enumerate(REFERENCE.read_text().splitlines(), 1):
        if header := re.match(r"\[+([\w.]+)\]+", text):
            cls = table_class(header[1].split("."))
        elif cls is not None and (entry := re.match(r"(\w+) = (.*)$", text)):
            value, comment = split_comment(entry[2])
            marked = re.match(r"\[(default.*?|required)\](?= |$)", comment)
            owner = next(base for base in reversed(cls.__mro__) if entry[1] in slots_of(base))
            slot = key_slots(cls)[entry[1]]
            if owner is not cls and key_slots(owner)[entry[1]].default != slot.default:
                owner = cls
            found.append(Line(number, (owner.__name__, entry[1]), value, marked and marked[1], slot))
    return found


def slots_of(cls: type) -> dict[str, Slot]:
    return (
        key_slots(cls) if cls.__module__.startswith("nsupervisor.config.") and hasattr(cls, "__attrs_attrs__") else {}
    )


def split_comment(text: str) -> tuple[str, str]:
    """Split what follows "=" into the value and the comment: the shortest part before a "#" that is TOML."""
    for position in [match.start() for match in re.finditer("#", text)] + [len(text)]:
        try:
            tomllib.loads(f"x = {text[:position]}")
        except tomllib.TOMLDecodeError:
            continue
        return text[:position].strip(), text[position + 1 :].strip()
    raise AssertionError(f"not a value: {text}")


def loaded(kind: Kind, text: str) -> Any:
    """Return the value of TOML text as the model has it."""
    raw = tomllib.loads(f"x = {text}")["x"]
    match kind:
        case ListOf(item):
            return tuple(item.load(one) for one in raw)
        case MapOf():
            return raw
        case TableOf() | TablesOf():
            return raw
        case Scalar(load=load):
            return load(raw)
        case _:
            return kind.load(raw)


def expected_mark(line: Line) -> str | None:
    """Return what the brackets have to say; None for a key that is not set by default."""
    default = line.declared.default
    if line.declared.is_required:
        return "required"
    if default is NOTHING or hasattr(default, "factory") or default in (None, (), ""):
        return None
    text = to_toml(line.declared.kind, default)
    return "default" if loaded(line.declared.kind, line.value) == default else f"default {text}"


@pytest.mark.fault("G13")
def test_each_default_is_marked() -> None:
    lines: dict[tuple[str, str], list[Line]] = {}
    for line in reference_lines():
        lines.setdefault(line.slot, []).append(line)
    assert len(lines) > 100
    unmarked = {
        key: expected_mark(found[0])
        for key, found in lines.items()
        if expected_mark(found[0]) and not any(line.mark for line in found)
    }
    assert unmarked == {}


@pytest.mark.fault("G13")
def test_no_mark_is_wrong() -> None:
    assert [line for line in reference_lines() if line.mark is not None and line.mark != expected_mark(line)] == []


@pytest.mark.fault("D23")
@pytest.mark.fault("G1")
def test_the_variables_of_a_program_are_listed() -> None:
    text = REFERENCE.read_text()
    part = text[text.index("# A program gets these variables") : text.index("\nenvironment = ")]
    listed = set(re.findall(r"\b[A-Z][A-Z_]{3,}\b", part)) - {"LANG"}
    workload = model.WorkloadConfig(
        "web", ("true",), user="root", may_control=("web",), namespaces=model.NamespacesConfig(user=False)
    )
    given = environment(workload, resolve_user("root", (), keeps_own_groups=True), "web@1", 1, {}, Path("/run/x"))
    assert listed == {*given, "NOTIFY_SOCKET", "WATCHDOG_USEC", "DEBUG_INVOCATION"}
    assert f"PATH={given['PATH']}\n" in part
