"""The JSON Schema, compared with the reference file and with the loader."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.config.kinds import ListOf, MapOf, TableOf, TablesOf
from nsupervisor.config.load import key_slots, load, parse
from nsupervisor.config.model import PLANNED_KEYS, Config
from nsupervisor.config.problems import ConfigError
from nsupervisor.config.schema import schema

REFERENCE = Path(__file__).parents[2] / "configs" / "reference.toml"
SCHEMA = schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def model_keys(cls: type = Config, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Return every key of the model; "*" stands for names that the user chooses and for elements of arrays."""
    for name, slot in key_slots(cls).items():
        if any(name in key_slots(base) for base in cls.__mro__[1:] if attrs.has(base)):
            continue  # of a group's table and rules, only the keys that workloads' lack
        place = (*path, name)
        yield place
        match slot.kind:
            case TableOf(below, named):
                yield from model_keys(below, (*place, "*") if named else place)
            case TablesOf(below):
                yield from model_keys(below, (*place, "*"))
            case MapOf(names=names) if not slot.kind.items:  # the others are keys that are shown elsewhere
                yield from ((*place, member) for member in names)


def file_keys(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict):
        for name, item in value.items():
            place = (*path, "*") if path in (("workload",), ("group",)) else (*path, name)
            yield place
            yield from file_keys(item, place)
    elif isinstance(value, list):
        for item in value:
            yield from file_keys(item, (*path, "*"))


def accepted(data: dict[str, Any]) -> bool:
    return not list(VALIDATOR.iter_errors(data))


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_the_reference_file_is_accepted_by_the_schema_and_the_loader() -> None:
    VALIDATOR.validate(tomllib.loads(REFERENCE.read_text()))
    assert load(REFERENCE).workloads["web"].instances == 2


def test_the_reference_file_shows_every_key() -> None:
    shown = set(file_keys(tomllib.loads(REFERENCE.read_text())))
    assert [key for key in model_keys() if key not in shown] == []


def test_every_key_says_what_it_is_for() -> None:
    definitions = {"Config": SCHEMA, **SCHEMA["$defs"]}
    for definition in definitions.values():
        assert definition["additionalProperties"] is False
        assert all(described["description"] for described in definition["properties"].values())


def test_planned_keys_are_not_there_yet() -> None:
    for cls, names in PLANNED_KEYS.items():
        assert not set(names) & key_slots(cls).keys()


TABLES: dict[tuple[str, ...], str] = {
    (): "",
    ("supervisor",): "[supervisor]\n",
    ("workload", "*"): '[workload.a]\ncommand = ["a"]\n',
    ("workload", "*", "namespaces"): '[workload.a]\ncommand = ["a"]\n[workload.a.namespaces]\n',
    ("workload", "*", "namespaces", "time_offsets"): '[workload.a]\ncommand = ["a"]\nnamespaces.time = true\n'
    "[workload.a.namespaces.time_offsets]\n",
    ("workload", "*", "security"): '[workload.a]\ncommand = ["a"]\n[workload.a.security]\n',
    ("workload", "*", "resources"): '[workload.a]\ncommand = ["a"]\n[workload.a.resources]\n',
    ("workload", "*", "log"): '[workload.a]\ncommand = ["a"]\n[workload.a.log]\n',
    ("workload", "*", "user_namespace"): '[workload.a]\ncommand = ["a"]\n[workload.a.user_namespace]\n',
    ("workload", "*", "mounts", "*"): '[workload.a]\ncommand = ["a"]\n[[workload.a.mounts]]\n'
    'source = "/a"\ndestination = "/a"\n',
    ("workload", "*", "policy", "*"): '[workload.a]\ncommand = ["a"]\n[[workload.a.policy]]\n'
    'when = "memory.events oom"\naction = "log"\n',
    ("group", "*"): "[group.a]\n",
    ("group", "*", "policy", "*"): '[[group.a.policy]]\nwhen = "memory.events oom"\naction = "log"\n',
    ("host",): "[host]\n",
    ("host", "policy", "*"): '[[host.policy]]\nwhen = "memory.events oom"\naction = "log"\n',
}  # fmt: skip
every_name = sorted({key[-1] for key in model_keys()} | {name for names in PLANNED_KEYS.values() for name in names})
names = st.sampled_from(every_name) | st.from_regex("[a-z_-]{1,12}", fullmatch=True)


@given(st.sampled_from(sorted(TABLES)), names)
def test_the_schema_and_the_loader_know_the_same_keys(table: tuple[str, ...], name: str) -> None:
    text = TABLES[table] + f"\n{name} = 1979-05-27\n"  # no key takes a date, so only the name matters
    if tomllib.loads(TABLES[table]) and f"\n{name} = " in "\n" + TABLES[table].rpartition("\n[")[2]:
        return  # there already
    with pytest.raises(ConfigError) as caught:
        parse(text, "f.toml")
    messages = [problem.message for problem in caught.value.problems]
    unknown = any("is not a key " in m or m.startswith("is not available yet") for m in messages)
    errors = list(VALIDATOR.iter_errors(tomllib.loads(text)))
    assert unknown == any(error.validator == "additionalProperties" for error in errors)


@given(
    st.text(max_size=10)
    | st.from_regex(r"[A-Za-z0-9_-]{1,130}", fullmatch=True)
    | st.sampled_from(["tasks", "a\n", "a@1"])
)
def test_the_schema_and_the_loader_take_the_same_names_of_workloads(name: str) -> None:
    quoted = '"' + "".join(f"\\U{ord(c):08x}" for c in name) + '"'
    try:
        parse(f'[workload.{quoted}]\ncommand = ["a"]\n', "f.toml")
        loads = True
    except ConfigError:
        loads = False
    assert accepted({"workload": {name: {"command": ["a"]}}}) == loads


def test_every_array_has_items() -> None:
    kinds = [slot.kind for cls in PLANNED_KEYS for slot in key_slots(cls).values()]
    assert any(isinstance(kind, ListOf) for kind in kinds)
    for definition in SCHEMA["$defs"].values():
        for described in definition["properties"].values():
            assert ("items" in described) == (described.get("type") == "array")


def test_the_schema_takes_placeholders_where_the_loader_does() -> None:
    def table(**keys: Any) -> dict[str, Any]:
        return {"workload": {"a": {"command": ["a"], "expand": True, **keys}}}

    assert accepted(table(instances="{env.COUNT}", autostart="{env.START}", working_directory="{var.x}/y"))
    assert accepted(table(resources={"memory_max": "{var.x}M"}, success_exit_status=["{var.x}"]))
    assert not accepted(table(nice="1"))
    assert not accepted(table(extends="{var.x}"))
    assert not accepted({"supervisor": {"log_max_files": "{var.x}"}})
