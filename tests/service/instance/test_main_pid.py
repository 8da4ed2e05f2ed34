"""MAINPID=, sd_notify(3): a program that hands over to another process of the workload, as for an upgrade of itself."""

from typing import Any

import pytest
import trio

from tests.service.simulated import Client, make_site, serve, simulated, workload
from tests.simulation.machine import Process

KEYS = ('type = "notify"', 'restart = "always"', "restart_sec = 1")
WEB = workload("web", *KEYS, program="main=0@0.5")
SIMPLE = workload("web", "watchdog_sec = 3600", *KEYS[1:], program="main=0@0.5")
AT_ONCE = workload("web", *KEYS, program="main=0@0")


def successor(service: Client, name: str = "web") -> Process:
    """Return the only process of an instance, which it has handed over to."""
    (found,) = (process for process in service.machine.living() if process.id.startswith(f"{name}#"))
    return found


def send(service: Client, text: str, name: str = "web") -> None:
    """Send a message as the program of an instance."""
    program = service.program(name)
    path = program.behaviour.environment["NOTIFY_SOCKET"]  # type: ignore[attr-defined]
    service.machine.send_datagram(path, text.encode(), program.pid)


@pytest.mark.parametrize("text", [WEB, AT_ONCE], ids=["later", "at once"])
@pytest.mark.parametrize("seed", range(5))
def test_a_program_that_hands_over_may_end(text: str, seed: int) -> None:
    """Its end may be reported before its message is read."""

    @simulated(text, seed=seed)
    async def run(service: Client) -> None:
        await service.until("web", "ready")
        await trio.sleep(2)
        assert service.state("web") == "ready"
        assert service.status("web")["pid"] == successor(service).pid
        assert (service.status("web")["generation"], service.records("exited")) == (1, [])
        (record,) = service.records("main process", "web")
        assert record["pid"] == successor(service).pid

    run()


@simulated(WEB)
async def test_the_end_of_the_new_main_process_is_the_end_of_the_program(service: Client) -> None:
    await service.until("web", "ready")
    await trio.sleep(2)
    successor(service).end(3 << 8)
    await service.until_true(lambda: service.status("web")["generation"] == 2)
    await service.until("web", "ready")


@simulated(WEB)
async def test_a_stop_signals_the_new_main_process(service: Client) -> None:
    await service.until("web", "ready")
    await trio.sleep(2)
    await service.command("stop", "web")
    assert service.status("web")["last_exit"]["signal"] == "SIGTERM"
    assert service.machine.living() == []


@pytest.mark.parametrize("value", ["1", "0", "-3", "x", "9" * 40, "٣"])
def test_a_process_of_others_is_a_warning_once_a_generation(value: str) -> None:
    @simulated(workload("web", *KEYS, program="ready=0") + workload("other"))
    async def run(service: Client) -> None:
        await service.until("web", "ready")
        await service.until("other", "running")
        pid = service.status("web")["pid"]
        for number in (value, value, str(service.program("other").pid)):
            send(service, f"MAINPID={number}")
        await trio.sleep(1)
        assert service.status("web")["pid"] == pid
        texts = [record["message"] for record in service.records("warning", "web")]
        assert [text for text in texts if "MAINPID names" in text and "not part of this workload" in text] == texts
        assert len(texts) == 1

    run()


@simulated(workload("web", *KEYS, program="ready=0"))
async def test_a_program_may_name_itself(service: Client) -> None:
    await service.until("web", "ready")
    send(service, f"MAINPID={service.program('web').pid}")
    await trio.sleep(1)
    assert (service.records("warning", "web"), service.records("main process", "web")) == ([], [])


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("keeper_dies", [False, True])
def test_the_new_main_process_outlives_supervisor_and_keeper(seconds: float, keeper_dies: bool) -> None:
    """The supervisor dies before the message, before the old process has ended, or later."""
    site = make_site(SIMPLE)

    async def starts(service: Client) -> None:
        await service.until("web", "running", "ready")
        await trio.sleep(seconds)
        if keeper_dies and seconds >= 0.3:
            service.site.keepers.start().die()

    async def goes_on(service: Client) -> None:
        await service.until("web", "running", "ready")
        await trio.sleep(2)
        assert service.status("web")["generation"] == 1
        assert service.status("web")["pid"] == successor(service).pid
        await service.command("stop", "web")
        assert service.machine.living() == []

    assert serve(site, starts, stop=False) is None
    assert serve(site, goes_on) == 0


# ---- notify_access


@pytest.mark.parametrize(("access", "counts"), [("main", False), ("all", True)])
def test_notify_access_says_whether_helpers_are_heard(access: str, counts: bool) -> None:
    text = workload("web", *KEYS, f'notify_access = "{access}"', program="forks=1@0.1 ready=0.5")

    @simulated(text)
    async def run(service: Client) -> None:
        await service.until("web", "running")
        await trio.sleep(0.2)
        program = service.program("web")
        (helper,) = (one for one in service.machine.living() if one is not program)
        path = program.behaviour.environment["NOTIFY_SOCKET"]  # type: ignore[attr-defined]
        service.machine.send_datagram(path, b"READY=1", helper.pid)
        await trio.sleep(0.1)
        assert (service.state("web") == "ready") is counts
        assert bool(service.records("notify refused", "web")) is not counts
        await service.until("web", "ready")

    run()


def test_a_helper_is_not_heard_because_no_service_ran_when_it_spoke() -> None:
    site = make_site(workload("web", *KEYS, 'notify_access = "main"', program="forks=1@0.1"))

    async def starts(service: Client) -> None:
        await service.until("web", "running")
        await trio.sleep(0.2)
        spoke.append(service.program("web"))

    spoke: list[Any] = []
    serve(site, starts, stop=False)
    (helper,) = (one for one in site.machine.living() if one is not spoke[0])
    site.machine.send_datagram(spoke[0].behaviour.environment["NOTIFY_SOCKET"], b"READY=1", helper.pid)

    async def goes_on(service: Client) -> None:
        await trio.sleep(1)
        assert service.state("web") == "running"
        assert service.records("notify refused", "web")

    assert serve(site, goes_on) == 0


@simulated(workload("web", *KEYS, 'notify_access = "main"', program="main=0@0.5"))
async def test_the_program_alone_is_the_one_that_mainpid_has_named(service: Client) -> None:
    await service.until("web", "ready")
    await trio.sleep(1)
    new = successor(service)
    path = new.behaviour.environment["NOTIFY_SOCKET"]  # type: ignore[attr-defined]
    service.machine.send_datagram(path, b"STATUS=new", new.pid)
    await service.until_true(lambda: service.status("web")["status_text"] == "new")
    assert service.records("notify refused", "web") == []
