"""Programs that report their readiness with sd_notify(3), in many orders of the tasks of the service."""

import signal
from collections.abc import Callable, Iterator, Mapping
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


@pytest.mark.fault("B7")
def test_a_stopped_program_handles_the_signal_of_the_watchdog() -> None:
    """It was killed only after `timeout_stop_sec`."""
    site = Site(0, HUNG.format(ready=0, type="notify") + COMMON)

    def on_start(service: Service) -> None:
        async def command() -> None:
            await trio.sleep(1.0)
            await service.supervisor.command("signal", "hung", signal=signal.SIGSTOP)
            await trio.sleep(9.0)
            service.signals.send(signal.SIGTERM)

        service.start_soon(command)

    site.run(on_start=on_start)
    (exited,) = [record for record in site.records() if record["event"] == "exited"]
    assert exited["signal"] == "SIGABRT"


HUNG = """
[workload.hung]
command = ["program", "ready={ready}"]
type = "{type}"
watchdog_sec = "2s"
timeout_start_sec = "30s"
restart = "no"
"""
NO_KEEP_ALIVE = "no WATCHDOG=1 for 2 s"


@pytest.mark.fault("B8", "F1")
def test_the_watchdog_begins_when_the_program_is_ready() -> None:
    """A program that needed longer than `watchdog_sec` to become ready got SIGABRT."""
    text = HUNG.format(ready=5, type="notify") + COMMON
    expected = ["starting", "running", "ready", "stopping", "failed"]
    assert [state for state, _ in states(serve(0, text, 20.0))] == expected


@pytest.mark.fault("B8", "F1")
def test_the_watchdog_of_a_program_that_reports_nothing_begins_when_it_runs() -> None:
    text = HUNG.format(ready=50, type="simple") + COMMON
    assert [state for state, _ in states(serve(0, text, 20.0))] == ["starting", "running", "stopping", "failed"]


@pytest.mark.fault("F1")
def test_the_start_time_limit_ends_a_program_that_never_is_ready() -> None:
    text = HUNG.format(ready=50, type="notify").replace("30s", "7s") + COMMON
    assert ("stopping", "not ready within 7 s") in states(serve(0, text, 20.0))


@pytest.mark.fault("F2")
@pytest.mark.parametrize("crash_at", [0.0, 3.0])
def test_a_thawed_program_has_a_full_watchdog_period(crash_at: float) -> None:
    """The period went on while the program was frozen."""
    times: dict[str, float] = {}
    site = Site(0, HUNG.format(ready=0, type="notify") + COMMON)
    site.machine.speed = 0.0

    def on_record(event: str, fields: Mapping[str, Any]) -> None:
        if event == "state":
            times[f"{fields['from']}-{fields['to']}"] = site.machine.now

    def run(commands: list[tuple[float, str]], then: Callable[[Service], None], seconds: float = 10.0) -> None:
        def on_start(service: Service) -> None:
            async def command() -> None:
                for pause, verb in commands:
                    await trio.sleep(pause)
                    await service.supervisor.command(verb, "hung")
                await trio.sleep(seconds)
                then(service)

            service.start_soon(command)

        site.run(on_start=on_start)

    site.on_record = on_record
    if crash_at:  # the freeze lasts longer than the supervisor that began it
        run([(1.5, "freeze")], lambda service: service.life.die(), crash_at)
        run([(3.5, "thaw")], lambda service: service.signals.send(signal.SIGTERM))
    else:
        run([(1.5, "freeze"), (3.5, "thaw")], lambda service: service.signals.send(signal.SIGTERM))
    assert times["ready-stopping"] - times["frozen-ready"] == pytest.approx(2.0)
