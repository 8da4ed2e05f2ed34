"""The keys about the stop of a program, and about the start that counts, in the service."""

import signal

import trio

from tests.service.simulated import Client, make_site, serve, simulated, workload
from tests.simulation.machine import Process

ALL_AT_ONCE = workload("web", 'kill_mode = "all"', "send_sighup = true", program="term=0@1 forks=2@0.1")


def received(service: Client) -> list[tuple[bool, int]]:
    """Return a list of signals that are sent from now on: whether to the program itself, and which."""
    signals: list[tuple[bool, int]] = []

    def note(process: Process, signum: int) -> None:
        signals.append((process.is_leader, signum))

    service.machine.signal_listeners.append(note)
    return signals


@simulated(ALL_AT_ONCE)
async def test_a_stop_signals_all_processes_at_once(service: Client) -> None:
    await service.until("web", "running")
    await trio.sleep(0.5)
    signals = received(service)
    await service.command("stop", "web")
    assert [each for each in signals if each[1] == signal.SIGTERM] == [(True, 15), (False, 15), (False, 15)]
    assert (True, signal.SIGHUP) in signals, "the program itself, before it has ended"
    assert [signum for _, signum in signals].count(signal.SIGTERM) == 3, "no second one after its exit"


@simulated(workload("web", 'final_kill_signal = "SIGQUIT"', "timeout_stop_sec = 1", program="term=0@100"))
async def test_the_final_signal_ends_a_program_that_ignores_the_first(service: Client) -> None:
    await service.until("web", "running")
    signals = received(service)
    await service.command("stop", "web")
    assert service.status("web")["last_exit"]["signal"] == "SIGQUIT"
    assert [signum for _, signum in signals if signum != signal.SIGCONT] == [signal.SIGTERM, signal.SIGQUIT]


def test_a_supervisor_that_dies_in_a_stop_leaves_its_signals_to_the_next() -> None:
    """The next one sends the final signal again, and SIGKILL when both times have passed."""
    keys = ('final_kill_signal = "SIGUSR1"', "timeout_stop_sec = 2")
    site = make_site(workload("web", *keys, program="deaf"))

    async def stops(service: Client) -> None:
        await service.until("web", "running")
        await service.begin(service.command, "stop", "web")
        await trio.sleep(3)
        assert service.state("web") == "stopping"

    async def completes(service: Client) -> None:
        await service.until("web", "stopped")
        assert service.status("web")["last_exit"]["signal"] == "SIGKILL"

    assert serve(site, stops, stop=False) is None
    assert serve(site, completes) == 0


BRIEF = workload("web", "min_ready_sec = 2", "restart_sec = 1", "start_limit_burst = 2", program="exit=0@1")


@simulated(BRIEF)
async def test_a_program_that_ends_before_its_start_counts_has_failed(service: Client) -> None:
    await service.until("web", "failed")
    assert "exit code 0 before it had been up for 2 s (min_ready_sec)" in service.status("web")["reason"]


STEADY = workload("web", "min_ready_sec = 2", 'restart = "always"', "start_limit_burst = 2", program="exit=1@2.5")
NEEDS = workload("app", 'requires = ["web"]')


@simulated(STEADY + NEEDS)
async def test_what_requires_it_starts_when_its_start_counts_and_it_is_never_given_up(service: Client) -> None:
    await service.until("web", "running")
    status = service.status("web")
    assert not status["ready"]
    assert status["reason"].startswith("started by boot; its start is complete in ")
    await trio.sleep(1.5)
    assert service.state("app") == "stopped"
    await service.until("app", "running")
    assert service.status("web")["ready"]
    await trio.sleep(20)
    assert service.status("web")["restarts"] > 5, "each start counted, so that the limit was never reached"


def test_a_supervisor_that_dies_does_not_begin_the_time_of_a_start_again() -> None:
    site = make_site(workload("web", "min_ready_sec = 10"))

    async def begins(service: Client) -> None:
        await service.until("web", "running")
        await trio.sleep(6)

    async def completes(service: Client) -> None:
        begun = trio.current_time()
        assert not service.status("web")["ready"]
        await service.until_true(lambda: service.status("web")["ready"])
        assert trio.current_time() - begun < 5

    assert serve(site, begins, stop=False) is None
    assert serve(site, completes) == 0


@simulated(workload("web", 'restart_mode = "debug"', "restart_sec = 1", program="exit=1@1"))
async def test_a_restart_after_a_failure_has_debug_invocation_in_its_environment(service: Client) -> None:
    await service.until("web", "running")
    assert "DEBUG_INVOCATION" not in service.program("web").behaviour.environment
    await service.until("web", "backoff")
    await service.until("web", "running")
    assert service.program("web").behaviour.environment["DEBUG_INVOCATION"] == "1"


ALONE = workload("web", 'kill_mode = "process"', 'restart = "no"', program="forks=2@0.1")


def others(service: Client) -> list[Process]:
    return [process for process in service.machine.living() if not process.is_leader]


@simulated(ALONE)
async def test_what_a_program_leaves_runs_on_beside_its_next_start(service: Client) -> None:
    await service.until("web", "running")
    await service.until_true(lambda: len(others(service)) == 2)
    first = others(service)
    assert (await service.command("stop", "web"))["ok"]
    assert service.status("web")["reason"] == "stopped by operator; processes that it has left run on (kill_mode)"
    assert others(service) == first
    assert (await service.command("start", "web"))["ok"]
    await service.until_true(lambda: len(others(service)) == 4)
    assert service.status("web")["state"] == "running"
    assert ["run on" in one["message"] for one in service.records("warning", "web")] == [True, False]
    assert (await service.command("kill", "web"))["ok"]
    await service.until_true(lambda: not others(service))
    assert not service.status("web")["reason"].endswith("(kill_mode)")


def test_what_a_program_has_left_runs_on_after_a_kill_of_the_service() -> None:
    site = make_site(ALONE)

    async def stop(service: Client) -> None:
        await service.until("web", "running")
        await service.until_true(lambda: len(others(service)) == 2)
        assert (await service.command("stop", "web"))["ok"]

    serve(site, stop, stop=False)

    async def look(service: Client) -> None:
        assert len(others(service)) == 2
        assert service.status("web")["reason"].endswith("(kill_mode)")
        assert not service.records("orphans")
        await service.reload(workload("other"))
        await service.until_true(lambda: not others(service))

    assert serve(site, look) == 0


def test_the_next_supervisor_completes_a_stop_of_the_program_alone() -> None:
    site = make_site(workload("web", 'kill_mode = "process"', "timeout_stop_sec = 2", program="deaf forks=1@0.1"))

    async def begin(service: Client) -> None:
        await service.until("web", "running")
        await service.until_true(lambda: len(others(service)) == 1)
        await service.begin(service.command, "stop", "web")

    serve(site, begin, stop=False)

    async def look(service: Client) -> None:
        await service.until("web", "stopped")
        assert len(others(service)) == 1

    assert serve(site, look) == 0
