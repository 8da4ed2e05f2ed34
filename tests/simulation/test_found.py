"""Faults that histories have found, each as the shrunk history, with the crash at every place."""

import signal

import pytest

from tests.simulation.configs import KINDS
from tests.simulation.history import History, Step
from tests.simulation.machine import Process

ORDER = next(kind for kind in KINDS if kind.name == "order")
RULES = next(kind for kind in KINDS if kind.name == "rules")


@pytest.mark.parametrize("call", range(1, 25))
def test_a_frozen_program_whose_stop_a_crash_interrupts_is_thawed_to_obey_it(call: int) -> None:
    steps = (
        Step(1.0, "command", "pool@1", "freeze"),
        Step(1.5, "crash by call", value=str(call)),
        Step(1.5, "command", "pool@1", "stop"),
    )
    history = History(1, ORDER, steps)
    ended: list[Process] = []
    history.machine.ended_listeners.append(ended.append)
    history.run()
    assert history.watch.problems == []
    (first,) = [process for process in ended if process.id == "pool@1#1"]
    assert first.status == signal.SIGTERM


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
