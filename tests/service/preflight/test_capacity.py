"""What does not fit into the limit on open files is said before anything starts."""

import resource
from types import SimpleNamespace

import pytest

from nsupervisor.cgroups import cgroup
from nsupervisor.config.load import parse
from nsupervisor.service.preflight import capacity

V2 = SimpleNamespace(locate=lambda file: SimpleNamespace(v1=None))
HYBRID = SimpleNamespace(locate=lambda file: SimpleNamespace(v1=object()))


def config(count: int, more: str = ""):
    return parse(f'[workload.web]\ncommand = ["true"]\ninstances = {count}\n{more}', "site.toml")


def at_most(monkeypatch: pytest.MonkeyPatch, files: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, files))


@pytest.mark.parametrize(
    ("more", "host", "supervisor", "keeper"),
    [
        ("", V2, 3, 3),
        ("init = false", V2, 3, 2),
        ('type = "notify"', V2, 4, 4),
        ('log = { stdout = "file" }', V2, 4, 3),
        ('[[workload.web.policy]]\nwhen = "memory.events oom_kill"\naction = "log"', V2, 3, 3),
        ('[[workload.web.policy]]\nwhen = "memory.events oom_kill"\naction = "log"', HYBRID, 4, 3),
        ('[[workload.web.policy]]\nwhen = "cpu.pressure some stall > 150ms/1s"\naction = "log"', V2, 5, 3),
    ],
)
def test_what_an_instance_needs(more: str, host, supervisor: int, keeper: int) -> None:
    few, many = (capacity.descriptors_needed(config(count, more), host) for count in (1, 101))
    assert (many.supervisor - few.supervisor, many.keeper - few.keeper) == (100 * supervisor, 100 * keeper)


def test_five_thousand_fit_into_twenty_thousand_files(monkeypatch: pytest.MonkeyPatch) -> None:
    at_most(monkeypatch, 20_000)
    assert capacity.descriptor_shortage(config(5000), HYBRID) == ""


def test_what_does_not_fit_is_said_with_who_needs_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    at_most(monkeypatch, 4096)
    said = capacity.descriptor_shortage(config(2000), V2)
    assert said.startswith("2,000 instances need 6,416 open files in the supervisor and 6,150 in the keeper")
    assert "4,096 here; raise the hard limit" in said


def test_files_of_cgroups_are_kept_open_only_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    at_most(monkeypatch, 20_000)
    monkeypatch.setattr(cgroup, "MAX_OPEN_FILES", 0)
    capacity.raise_descriptor_limit(config(10), V2)
    assert cgroup.MAX_OPEN_FILES == 6666
    capacity.raise_descriptor_limit(config(6000), V2)
    assert cgroup.MAX_OPEN_FILES == 20_000 - 18_000 - 160 - 1024
