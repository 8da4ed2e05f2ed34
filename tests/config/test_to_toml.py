"""Values as TOML: the text is read back as the same value."""

import tomllib
from pathlib import Path

import pytest

from nsupervisor.config.kinds import ListOf, Scalar, TableOf, TablesOf
from nsupervisor.config.load import key_slots, load
from nsupervisor.config.model import WorkloadConfig
from nsupervisor.config.to_toml import to_toml

REFERENCE = Path(__file__).parents[2] / "configs" / "reference.toml"


def scalars(cls, owner, path=()):
    """Yield every value of one kind in an object, with its path."""
    for name, slot in key_slots(cls).items():
        value = slot.value_in(owner)
        match slot.kind:
            case TableOf(below) if value is not None:
                yield from scalars(below, value, (*path, name))
            case TablesOf(below):
                for number, element in enumerate(value):
                    yield from scalars(below, element, (*path, name, number))
            case ListOf(item=item):
                yield from (((*path, name, number), item, element) for number, element in enumerate(value or ()))
            case Scalar(is_secret=False) as kind if value not in (None, ()) and not isinstance(value, dict):
                yield (*path, name), kind, value


VALUES = [
    ((workload.name, *path), kind, value)
    for workload in load(REFERENCE).workloads.values()
    for path, kind, value in scalars(WorkloadConfig, workload)
]


@pytest.mark.parametrize(("path", "kind", "value"), VALUES, ids=[str(path) for path, _, _ in VALUES])
def test_what_is_written_is_read_back(path, kind, value):
    text = to_toml(kind, value)
    assert kind.load(tomllib.loads(f"x = {text}")["x"]) == value


def test_tables_have_only_what_is_no_default():
    config = load(REFERENCE)
    (kind,) = [slot.kind for name, slot in key_slots(WorkloadConfig).items() if name == "policy"]
    rules = [rule for workload in config.workloads.values() for rule in workload.policy]
    assert to_toml(kind, tuple(rules[:1])).startswith("[{ when = ")
    assert "false" not in to_toml(kind, tuple(rules[:1]))
    assert to_toml(kind, ()) == "[]"
    assert to_toml(kind, None) == "not set"
