"""Faults that histories have found, each as the shrunk history, with the crash at every place."""

import pytest

from tests.simulation.configs import COMMON, KINDS, OVERLAPPING_KINDS, Kind
from tests.simulation.history import History, Step
from tests.simulation.machine import Machine, Process

GROUP = next(kind for kind in KINDS if kind.name == "group")
NOTIFY = next(kind for kind in KINDS if kind.name == "notify")
ORDER = next(kind for kind in KINDS if kind.name == "order")
RESTARTS = next(kind for kind in KINDS if kind.name == "restarts")
RULES = next(kind for kind in KINDS if kind.name == "rules")
CHAIN = next(kind for kind in (*KINDS, *OVERLAPPING_KINDS) if kind.name == "chain")
BURSTS = next(kind for kind in OVERLAPPING_KINDS if kind.name == "bursts")
LIMITS = next(kind for kind in OVERLAPPING_KINDS if kind.name == "limits")
CATCHING = Kind(
    "catching",
    lambda _choices: f'[workload.web]\ncommand = ["program", "term=0"]\n{COMMON}',
    {},
    ("web",),
    ("web",),
)
"""A program that catches SIGTERM: the kernel does not let the signal end it while it is frozen."""


@pytest.mark.parametrize("call", range(1, 25))
def test_a_frozen_program_whose_stop_a_crash_interrupts_is_thawed_to_obey_it(call: int) -> None:
    steps = (
        Step(1.0, "command", "web", "freeze"),
        Step(1.5, "crash by call", value=str(call)),
        Step(1.5, "command", "web", "stop"),
    )
    history = History(1, CATCHING, steps)
    ended: list[Process] = []
    history.machine.ended_listeners.append(ended.append)
    history.run()
    assert history.watch.problems == []
    (first,) = [process for process in ended if process.id == "web#1"]
    assert first.status == 0, "it caught SIGTERM; SIGKILL would have ended it while it was frozen"


def test_no_descriptor_is_left_when_the_keeper_dies_before_a_program_is_executed() -> None:
    history = History(1341, RULES, (Step(0.395, "keeper dies", value="now"),))
    history.run()
    assert history.watch.problems == []
    assert "keeper dies" in "".join(history.machine.events)


@pytest.mark.parametrize("call", range(1, 40))
def test_levels_of_a_generation_do_not_count_in_the_next_that_a_crash_kept_out_of_the_checkpoint(call: int) -> None:
    history = History(118, RULES, (Step(0.6, "crash by call", value=str(call)),))
    history.run()
    assert history.watch.problems == []


def test_a_limit_of_a_group_that_a_reload_has_changed_is_not_taken_for_an_operators_after_a_crash() -> None:
    steps = (
        Step(1.0, "reload", "memory", "48M"),
        Step(2.0, "edit", "memory", "64M"),
        Step(2.0, "crash by time", value="0.01"),
    )
    history = History(513, LIMITS, steps)
    history.run()
    assert history.watch.problems == []


@pytest.mark.parametrize("call", range(1, 40))
def test_a_cgroup_that_was_killed_while_the_disk_was_full_starts_programs_after_a_crash(call: int) -> None:
    steps = (
        Step(1.1, "disk full", value="0.5"),
        Step(1.1, "command", "deaf", "kill"),
        Step(1.1, "crash by call", value=str(call)),
    )
    history = History(1714, RESTARTS, steps)
    history.run()
    assert history.watch.problems == []


@pytest.mark.parametrize("call", range(1, 60))
def test_a_program_is_heard_after_both_processes_died_although_the_disk_was_full_at_first(call: int) -> None:
    steps = (
        Step(0.013, "disk full", value="0.05"),
        Step(0.028, "edit", "watchdog", '"1s"'),
        Step(3.609, "reload", "type", "simple"),
        Step(5.541, "reload", "type", "simple"),
        Step(5.541, "crash by call", value=str(call)),
        Step(5.602, "keeper dies", value="now"),
    )
    history = History(301222, NOTIFY, steps)
    history.run()
    assert history.watch.problems == []


@pytest.mark.parametrize("call", range(1, 60))
def test_a_start_that_failed_before_a_crash_is_not_repeated_with_its_number(call: int) -> None:
    steps = (
        Step(0.6, "spawn fails"),
        Step(0.7, "command", "leans", "restart"),
        Step(0.7, "crash by call", value=str(call)),
    )
    history = History(120, NOTIFY, steps)
    history.run()
    assert history.watch.problems == []


@pytest.mark.parametrize("seed", range(10))
def test_a_restart_that_is_under_way_when_the_service_stops_starts_nothing(seed: int) -> None:
    steps = Step(1.0, "command", "db", "restart"), Step(1.002, "SIGTERM")
    history = History(seed, ORDER, steps)
    history.run()
    assert history.watch.problems == []


@pytest.mark.parametrize("after_ms", range(0, 20, 2))
def test_a_restart_of_which_the_exit_is_still_to_come_starts_nothing_once_the_service_stops(after_ms: int) -> None:
    steps = (
        Step(3.121, "hit", "deaf", "SIGKILL"),
        Step(3.122, "command", "deaf", "restart"),
        Step(3.122 + after_ms / 1000, "SIGTERM"),
    )
    history = History(1437, RESTARTS, steps)
    history.run()
    assert history.watch.problems == []


def test_what_an_operator_kills_while_the_service_stops_is_started_by_the_next_one() -> None:
    steps = (
        Step(4.622, "SIGTERM"),
        Step(4.682, "command", "web", "kill"),
        Step(5.626, "crash by time", value="0.001"),
    )
    history = History(103222, CHAIN, steps)
    history.run()
    assert history.watch.problems == []


@pytest.mark.parametrize("call", range(1, 30))
def test_an_action_of_a_group_outlives_a_crash_after_a_reload(call: int) -> None:
    steps = (
        Step(0.711, "busy", value="0.1"),
        Step(0.721, "forks", "first", "8"),
        Step(0.733, "reload", "level", "60"),
        Step(0.733, "crash by call", value=str(call)),
        Step(4.516, "busy", value="0.1"),
    )
    history = History(100993, BURSTS, steps)
    history.run()
    assert history.watch.problems == []


@pytest.mark.parametrize("command", ["stop", "restart", "kill"])
@pytest.mark.parametrize("after_us", range(5000, 14000, 500))
def test_a_command_about_a_start_that_the_keeper_did_not_survive_has_an_end(command: str, after_us: int) -> None:
    """The start had to be repeated, but the command came first: the stop of the instance never ended."""
    lost = 1 + after_us / 1e6
    steps = (
        Step(1.0, "command", "db", "kill"),
        Step(lost, "keeper dies", value="now"),
        Step(lost + 0.0005, "command", "db", command),
    )
    history = History(1, ORDER, steps)
    history.run()
    assert history.watch.problems == []


@pytest.mark.parametrize(("kind", "name"), [(GROUP, "second"), (ORDER, "db")], ids=["alone", "after web"])
@pytest.mark.parametrize("after_ms", [0, 1, 60])
def test_a_stop_counts_although_a_restart_before_it_is_still_looking_for_obstacles(
    monkeypatch: pytest.MonkeyPatch, kind: Kind, name: str, after_ms: int
) -> None:
    """The restart found none, and started the instance again, also after the stop had ended."""
    monkeypatch.setattr(Machine, "delay", lambda _machine: 0.1)  # of each call in a thread, among others
    steps = (Step(1.5, "command", name, "restart"), Step(1.5 + after_ms / 1000, "command", name, "stop"))
    history = History(1, kind, steps)
    history.run()
    assert history.watch.problems == []
    assert f"spawned {name}#2" not in "".join(history.machine.events)
