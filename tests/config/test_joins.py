"""Namespaces that are joined: the values, and what does not fit together."""

import pytest

from nsupervisor.config.load import parse
from nsupervisor.core import dependencies
from tests.config.test_load import problems

WEB = '[workload.web]\ncommand = ["a"]\nnamespaces = { network = true }\n'
SIDE = '[workload.side]\ncommand = ["a"]\nnamespaces = { network = "workload:web" }\n'


def test_a_joined_namespace_is_a_relation() -> None:
    side = parse(WEB + SIDE, "f.toml").workloads["side"]
    assert side.namespaces.joined == {"network": "workload:web"}
    assert dependencies.waits(side) == (dependencies.Wait("web", "started", True),)
    assert dependencies.started_along(side) == ("web",)
    assert dependencies.restarted_with(side) == dependencies.stopped_with(side) == {"web": "binds_to"}
    assert dependencies.related(side) == [{"key": "binds_to", "name": "web", "condition": "started"}]


def test_an_edge_of_its_own_decides_what_the_start_waits_for() -> None:
    side = parse(f'{WEB}{SIDE}requires = ["web"]\n', "f.toml").workloads["side"]
    assert dependencies.waits(side) == (dependencies.Wait("web", "ready", True),)


@pytest.mark.parametrize("value", ['"path:/run/netns/x"', "true", "false"])
def test_other_values_are_no_relation(value: str) -> None:
    side = parse(SIDE.replace('"workload:web"', value), "f.toml").workloads["side"]
    assert dependencies.start_dependencies(side) == ()


@pytest.mark.parametrize(
    ("toml", "text"),
    [
        (SIDE, '3: workload.side.namespaces.network: there is no workload "web"; write the name of one'),
        (
            WEB.replace("true", "false") + SIDE,
            "6: workload.side.namespaces.network: web uses the network namespace of the supervisor; write network = "
            "true under its namespaces, or network = false here",
        ),
        (
            f"{WEB}instances = 2\n{SIDE}",
            "7: workload.side.namespaces.network: web has instances, each with a namespace of its own; join that of a "
            "workload without instances",
        ),
        (
            f'{WEB}type = "oneshot"\n{SIDE}',
            "7: workload.side.namespaces.network: web is a oneshot, whose namespace ends with its program; join that "
            "of a workload that keeps running",
        ),
        (
            WEB + SIDE.replace("{ network", "{ user = true, network"),
            "6: workload.side.namespaces.network: cannot be entered by a program in a user namespace of its own, "
            "which has no privilege over it; write user = false under namespaces, or a namespace of its own (true)",
        ),
        (
            WEB + SIDE.replace("network", "uts").replace("}", ', hostname = "x" }'),
            "6: workload.side.namespaces.hostname: needs a uts namespace of its own; write uts = true under "
            "namespaces, or remove it",
        ),
    ],
)
def test_what_cannot_be_joined_is_refused(toml: str, text: str) -> None:
    assert problems(toml) == [text]


def test_a_cycle_is_reported_at_the_keys() -> None:
    both = SIDE + SIDE.replace("side", "web").replace('workload:web"', 'workload:side"')
    (problem,) = problems(both)
    assert "workload.web.namespaces.network: closes a cycle" in problem
    assert "side → web → side" in problem
    assert (
        "itself" in problems(SIDE.replace(":web", ":side"))[0]
        or "side → side" in problems(SIDE.replace(":web", ":side"))[0]
    )


@pytest.mark.parametrize("kind", ["mount", "pid", "cgroup", "user", "time"])
def test_other_kinds_are_refused_with_the_reason(kind: str) -> None:
    (problem,) = problems(WEB + SIDE.replace("network", kind))
    assert f"workload.side.namespaces.{kind}: " in problem
    assert "cannot be joined: " in problem
    assert "network, ipc and uts can be joined" in problem


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("workload:", 'does not name a namespace to join; write for example "workload:web"'),
        ("workload:a/b", 'does not name a namespace to join; write for example "workload:web"'),
        ("path:run/netns/x", 'does not name a namespace to join; write for example "path:/run/netns/blue"'),
        ("pasta", "is not available yet in this version; write true (loopback only), a namespace to join"),
        ("host", "is not a namespace; write true (a new one), false (the supervisor's)"),
    ],
)
def test_a_wrong_value_is_refused(value: str, text: str) -> None:
    (problem,) = problems(SIDE.replace("workload:web", value))
    assert text in problem
