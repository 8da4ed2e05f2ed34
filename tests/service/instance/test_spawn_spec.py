"""The specification of a start, made from the configuration."""

import pytest

from nsupervisor.config.model import WorkloadConfig
from nsupervisor.service.instance.spawn_spec import environment, host_name, passed_variables
from nsupervisor.service.instance.users import resolve_user


@pytest.mark.fault("B10")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("web", "web"),
        ("web@2", "web-2"),
        ("a" * 64, "a" * 64),
        ("a" * 65, "a" * 64),
        ("a" * 128 + "@10000", "a" * 58 + "-10000"),
        ("a" * 60 + "----bbbb", "a" * 60),
    ],
)
def test_a_long_name_made_a_host_name_that_the_kernel_refuses(name: str, expected: str) -> None:
    assert host_name(name) == expected
    assert len(host_name(name)) <= 64


OUTER = {
    "LANG": "C.UTF-8",
    "APP_A": "1",
    "APP_B": "2",
    "PATH": "/outer",
    "NOTIFY_SOCKET": "/run/x",
    "NSUPERVISOR_SOCKET": "/run/y",
    "LATIN": "\udce4",
}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), {}),
        (("LANG", "NONE"), {"LANG": "C.UTF-8"}),
        (("APP_*",), {"APP_A": "1", "APP_B": "2"}),
        (("*_B",), {"APP_B": "2"}),
        (("*",), {"LANG": "C.UTF-8", "APP_A": "1", "APP_B": "2"}),
        (("PATH", "*_A"), {"PATH": "/outer", "APP_A": "1"}),
        (("NOTIFY_SOCKET", "LATIN"), {}),
    ],
)
def test_variables_of_the_service_are_passed_by_their_names(names: tuple[str, ...], expected: dict[str, str]) -> None:
    workload = WorkloadConfig("web", ("true",), pass_environment=names)
    assert passed_variables(workload, OUTER, ("PATH", "HOME")) == expected


def test_a_variable_of_the_file_wins_over_a_passed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_A", "outer")
    monkeypatch.setenv("APP_B", "outer")
    workload = WorkloadConfig("web", ("true",), pass_environment=("APP_*",), environment={"APP_A": "own"})
    identity = resolve_user(None, (), keeps_own_groups=True)
    found = environment(workload, identity, "web", None, {"APP_B": "file"})
    assert (found["APP_A"], found["APP_B"]) == ("own", "file")
