"""Reloads of programs: the signal, the program's answer, and a supervisor that is killed in between."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from tests.service.simulated import Client, make_site, serve, simulated, workload

RELOADS = workload("web", 'type = "notify-reload"', "timeout_start_sec = 2", program="ready=0.1 reload=0.5")
SIGNALLED = workload("web", 'reload_signal = "SIGUSR2"', program="deaf")


@simulated(RELOADS)
async def test_a_reload_is_done_when_the_program_says_so(service: Client) -> None:
    await service.until("web", "ready")
    began = trio.current_time()
    answers = await service.begin(service.command, "reload", "web")
    await service.until_true(lambda: service.status("web")["phase"] == "reloading")
    assert (service.status("web")["state"], service.status("web")["ready"]) == ("ready", True)
    second = await service.command("reload", "web")
    assert (second["ok"], second["message"]) == (False, "a reload is under way already; try again when it is over")
    await service.until_true(lambda: bool(answers))
    assert answers == [{"name": "web", "ok": True, "state": "ready", "message": "reloaded"}]
    assert 0.5 <= trio.current_time() - began < 1
    assert service.status("web")["phase"] == ""
    await service.until_true(lambda: bool(service.records("program reloaded")))
    assert service.records("program reloaded")[0]["took_sec"] >= 0.5
    (asked,) = (record for record in service.records("action") if record["action"] == "reload")
    assert asked["cause"]["by"] == "operator"
    assert service.course() == ["execed web#1"]


@simulated(workload("web", 'type = "notify-reload"', "timeout_start_sec = 2", program="ready=0.1 reload=9"))
async def test_a_reload_that_takes_too_long_fails_and_the_program_runs_on(service: Client) -> None:
    await service.until("web", "ready")
    answer = await service.command("reload", "web")
    assert (answer["ok"], answer["message"]) == (False, "not ready again (READY=1) within 2 s")
    assert answer["state"] == "ready"
    await service.until_true(lambda: bool(service.records("program reload failed")))
    assert service.course() == ["execed web#1"]


@simulated(RELOADS)
async def test_a_stop_during_a_reload_fails_the_reload(service: Client) -> None:
    await service.until("web", "ready")
    answers = await service.begin(service.command, "reload", "web")
    assert (await service.command("stop", "web"))["ok"]
    await service.until_true(lambda: bool(answers))
    assert (answers[0]["ok"], answers[0]["message"]) == (False, "stopped by operator")


@simulated(RELOADS)
async def test_a_program_that_ends_during_its_reload_has_not_reloaded(service: Client) -> None:
    await service.until("web", "ready")
    answers = await service.begin(service.command, "reload", "web")
    service.program("web").end(3 << 8)
    await service.until_true(lambda: bool(answers))
    assert not answers[0]["ok"]


@simulated(SIGNALLED)
async def test_a_program_that_does_not_report_it_gets_the_signal(service: Client) -> None:
    await service.until("web", "running")
    answer = await service.command("reload", "web")
    assert (answer["ok"], answer["message"]) == (True, "SIGUSR2 sent")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (workload("web"), "it has neither reload_signal nor exec_reload; set one"),
        (workload("web", 'type = "notify-reload"'), "its start is not complete; wait until it is up: "),
        (workload("web", 'reload_signal = "SIGHUP"', "autostart = false"), "it is stopped; only a program that runs"),
    ],
)
def test_what_cannot_be_reloaded_is_refused(text: str, message: str) -> None:
    site = make_site(text)

    async def client(service: Client) -> None:
        await service.until("web", "running", "stopped")
        answer = await service.command("reload", "web")
        assert not answer["ok"]
        assert answer["message"].startswith(message)

    assert serve(site, client) == 0


@simulated(workload("web", 'type = "notify"', 'restart = "no"', program="ready=0.1"))
async def test_an_error_that_the_program_reports_is_shown(service: Client) -> None:
    await service.until("web", "ready")
    (path,) = service.machine.sockets
    service.machine.send_datagram(path, b"ERRNO=28\nBUSERROR=org.example.Full", service.program("web").pid)
    shown = "28 (No space left on device), org.example.Full"
    await service.until_true(lambda: service.status("web")["error_text"] == shown)


@simulated(workload("web", 'type = "notify"', 'restart = "no"', program="ready=0.1 deaf"))
async def test_a_program_that_stops_by_itself_gets_no_signal(service: Client) -> None:
    await service.until("web", "ready")
    signals: list[int] = []
    service.machine.signal_listeners.append(lambda _, signum: signals.append(signum))
    (path,) = service.machine.sockets
    process = service.program("web")
    service.machine.send_datagram(path, b"STOPPING=1", process.pid)
    await service.until("web", "stopping")
    process.end(0)
    await service.until("web", "exited")
    assert signals == []


def test_a_supervisor_that_is_killed_during_a_reload_leaves_it_to_the_next_one() -> None:
    """At each of its calls of the system, from the command to the answer."""
    calls = 0
    for number in range(1, 400):
        site = make_site(RELOADS)
        reached: list[Any] = []

        async def ask(service: Client, reached: list[Any] = reached) -> None:
            await service.until("web", "ready")
            reached.append(service.service.life.calls)
            await service.command("reload", "web")
            reached.append(service.service.life.calls)

        if not calls:
            serve(site, ask, stop=False)
            calls, last = reached
            continue
        if calls + number > last + 1:
            break
        serve(site, ask, dies_at_call=calls + number - 1)

        async def check(service: Client) -> None:
            await service.until_true(lambda: service.status("web")["phase"] == "")
            assert service.status("web")["state"] == "ready"
            assert (await service.command("reload", "web"))["ok"]

        assert serve(site, check) == 0
        course = [line for line in site.machine.events if " execed " in line]
        assert len(course) == 1, "the program was restarted"
    assert number > 5
