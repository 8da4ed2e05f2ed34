"""Programs that report their readiness with sd_notify(3), in many orders of the tasks of the service."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from tests.simulation.configs import COMMON
from tests.simulation.service import Service, Site

SEEDS = range(20)
QUICK = """
[workload.quick]
command = ["program", "status=9", "ready=0", "exit=0@0"]
type = "notify"
restart = "no"
"""


def serve(seed: int, text: str, seconds: float) -> list[dict[str, Any]]:
    """Run a service for a time; return its records."""
    site = Site(seed, text)
    site.machine.speed = 0.0  # what happens at one instant is reported at once

    def on_start(service: Service) -> None:
        async def stop() -> None:
            await trio.sleep(seconds)
            service.signals.send(signal.SIGTERM)

        service.start_soon(stop)

    assert site.run(on_start=on_start) == 0
    return site.records()


def states(records: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield each new state with its reason, until the end of the service."""
    for record in records:
        if record["event"] == "supervisor stopping":
            return
        if record["event"] == "state":
            yield record["to"], record["reason"]


@pytest.mark.fault("B6")
def test_a_program_that_is_ready_and_ends_at_once_has_been_ready() -> None:
    """Its exit may be reported before its message has been read."""
    text = QUICK + COMMON
    for seed in SEEDS:  # in some of them the exit is reported first
        assert [state for state, _ in states(serve(seed, text, 3.0))][-1] == "exited", seed


@pytest.mark.fault("B6")
def test_a_program_that_ends_before_it_is_ready_is_failed() -> None:
    text = f'[workload.mute]\ncommand = ["program", "exit=0@0"]\ntype = "notify"\nrestart = "no"\n{COMMON}'
    state, reason = list(states(serve(0, text, 3.0)))[-1]
    assert (state, reason.partition(":")[0]) == ("failed", "exit code 0 before it was ready")
