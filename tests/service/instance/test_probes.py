"""Probes of an instance: when they run, what they report, and what follows."""

import pytest
import trio

from tests.needs import needs
from tests.service.simulated import Client, make_site, serve, simulated, workload

READY = "readiness = { tcp_socket = { port = 80 }, period_sec = 1, failure_threshold = 2 }"
LIVE = "liveness = { tcp_socket = { port = 80 }, period_sec = 1, failure_threshold = 2, initial_delay_sec = 1 }"
START = "startup = { tcp_socket = { port = 80 }, period_sec = 1, failure_threshold = 4 }"
RESTARTS = ('restart = "always"', "restart_sec = 0")


def verdicts(service: Client, name: str = "web") -> list[tuple[str, bool]]:
    """Return the verdicts that have been recorded."""
    return [(record["probe"], record["passes"]) for record in service.records("probe", name)]


@simulated(workload("web", READY, program="port=80@2.2") + workload("client", 'requires = ["web"]'))
async def test_what_requires_it_waits_until_its_readiness_probe_succeeds(service: Client) -> None:
    await service.until("web", "ready")
    await service.until("client", "running")
    assert service.course() == ["execed web#1", "execed client#1"]
    assert verdicts(service) == [("readiness", True)]
    assert service.status("web")["ready"]


@simulated(workload("web", READY, "timeout_start_sec = 3", 'restart = "no"'))
async def test_a_program_that_is_never_ready_fails_after_its_time(service: Client) -> None:
    await service.until("web", "failed")
    assert service.status("web")["reason"] == "not ready within 3 s"


@simulated(workload("web", READY, program="port=80@0 sick=3@4"))
async def test_a_program_that_fails_its_readiness_probe_runs_on_and_is_ready_again(service: Client) -> None:
    await service.until("web", "ready")
    await service.until("web", "running")
    assert not service.status("web")["ready"]
    assert service.status("web")["reason"] == "readiness probe failed 2 times: HTTP 503"
    assert service.status("web")["probes"]["readiness"]["passes"] is False
    await service.until("web", "ready")
    assert verdicts(service) == [("readiness", True), ("readiness", False), ("readiness", True)]
    assert service.course() == ["execed web#1"]


@simulated(workload("web", LIVE, *RESTARTS, program="port=80@0 sick=3@100"))
async def test_a_program_that_fails_its_liveness_probe_is_restarted(service: Client) -> None:
    await service.until_true(lambda: "execed web#2" in service.course())
    (record,) = (record for record in service.records("action", "web") if record["action"] == "restart")
    assert record["cause"]["reason"] == "restarted: liveness probe failed 2 times: HTTP 503"
    assert verdicts(service)[0] == ("liveness", False)


@simulated(workload("web", START, READY, LIVE, *RESTARTS, program="port=80@2.6"))
async def test_other_probes_begin_when_the_startup_probe_has_succeeded(service: Client) -> None:
    """The liveness probe would have failed at 2 s otherwise."""
    await service.until("web", "ready")
    assert verdicts(service) == [("startup", True), ("readiness", True)]
    assert service.course() == ["execed web#1"]


@simulated(workload("web", START, 'restart = "no"'))
async def test_a_startup_probe_that_fails_ends_the_program(service: Client) -> None:
    await service.until("web", "failed")
    assert service.status("web")["reason"] == "startup probe failed 4 times: Connection refused"


@simulated(workload("web", START, program="port=80@0"))
async def test_a_startup_probe_alone_makes_it_ready(service: Client) -> None:
    await service.until("web", "ready")


@simulated(workload("web", LIVE, *RESTARTS, program="port=80@0"))
async def test_a_frozen_program_is_not_probed(service: Client) -> None:
    await service.until("web", "running")
    assert (await service.command("freeze", "web"))["ok"]
    await trio.sleep(60)
    assert (await service.command("thaw", "web"))["ok"]
    await trio.sleep(60)
    assert service.course() == ["execed web#1"]


@simulated(workload("web", program="port=80@0"))
async def test_a_reload_begins_changes_and_ends_probes_of_a_program_that_runs(service: Client) -> None:
    await service.until("web", "running")
    await service.reload(workload("web", READY, program="port=80@0"))
    await service.until("web", "ready")
    await service.reload(workload("web", READY.replace("80", "81"), program="port=80@0"))
    await service.until("web", "running")
    await service.reload(workload("web", program="port=80@0"))
    await trio.sleep(10)
    assert service.status("web")["probes"] == {}
    assert service.status("web")["ready"], "it was started without a probe"
    assert service.course() == ["execed web#1"]


@simulated(workload("web", READY, program="port=81@0"))
async def test_a_program_whose_probe_a_reload_removes_is_ready(service: Client) -> None:
    await service.until("web", "running")
    await service.reload(workload("web", program="port=81@0"))
    await service.until("web", "ready")


@pytest.mark.parametrize("probes", [(READY,), (START, READY), (START,)])
def test_the_next_supervisor_goes_on_with_the_probes(probes: tuple[str, ...]) -> None:
    site = make_site(workload("web", *probes, LIVE, *RESTARTS, program="port=80@0 sick=20@100"))

    async def until_ready(service: Client) -> None:
        await service.until("web", "ready")

    async def until_restarted(service: Client) -> None:
        assert service.state("web") == "ready"
        await service.until_true(lambda: "execed web#2" in service.course())
        await service.until("web", "ready")

    serve(site, until_ready, stop=False)
    serve(site, until_restarted)


@simulated("".join(workload(f"w{number}", READY, program="port=81@0") for number in range(100)))
async def test_at_most_a_limited_number_of_probes_is_on_its_way(service: Client) -> None:
    slots = service.supervisor.context.probe_slots
    most = 0
    for _ in range(300):
        most = max(most, slots.borrowed_tokens)
        await trio.sleep(0.01)
    assert 0 < most <= slots.total_tokens == 64


LINE = "readiness = { log = '^listening_on_[0-9]+$' }"


@needs("module:re2")
@simulated(workload("web", LINE, program="prints=listening_on_80@2") + workload("client", 'requires = ["web"]'))
async def test_a_line_of_its_output_makes_a_program_ready(service: Client) -> None:
    await service.until("web", "ready")
    await service.until("client", "running")
    assert service.course() == ["execed web#1", "execed client#1"]
    (record,) = service.records("probe", "web")
    assert record["message"] == "a line of its output: listening_on_80"
    assert service.status("web")["probes"]["readiness"]["passes"] is True


@needs("module:re2")
@simulated(workload("web", LINE, "timeout_start_sec = 3", 'restart = "no"', program="prints=not_listening_on_80@2"))
async def test_a_program_that_does_not_write_the_line_fails_after_its_time(service: Client) -> None:
    await service.until("web", "failed")
    assert service.status("web")["reason"] == "not ready within 3 s"


@needs("module:re2")
@simulated(workload("web", LINE, 'restart = "always"', "restart_sec = 0", program="prints=listening_on_80@1"))
async def test_each_generation_writes_the_line_again(service: Client) -> None:
    await service.until("web", "ready")
    assert (await service.command("restart", "web"))["ok"]
    await service.until_true(lambda: "execed web#2" in service.course())
    await service.until("web", "ready")
    assert verdicts(service) == [("readiness", True), ("readiness", True)]


@needs("module:re2")
@simulated(workload("web", program="port=80@0 prints=listening_on_80@1"))
async def test_a_line_from_before_a_reload_is_not_waited_for(service: Client) -> None:
    await service.until("web", "running")
    await service.reload(workload("web", LINE, program="port=80@0 prints=listening_on_80@1"))
    await trio.sleep(10)
    assert service.status("web")["ready"], "it was started without a readiness"
    await service.reload(workload("web", READY, program="port=80@0 prints=listening_on_80@1"))
    await service.until("web", "ready")


@needs("module:re2")
def test_the_next_supervisor_waits_for_the_line_and_does_not_wait_again() -> None:
    site = make_site(workload("web", LINE, program="prints=listening_on_80@2"))

    async def until_running(service: Client) -> None:
        await service.until("web", "running")

    async def until_ready(service: Client) -> None:
        await service.until("web", "ready")

    async def is_ready(service: Client) -> None:
        await trio.sleep(100)
        assert service.state("web") == "ready"
        assert service.course() == ["execed web#1"]

    serve(site, until_running, stop=False)
    serve(site, until_ready, stop=False)
    serve(site, is_ready)


def rule(when: str, *more: str) -> str:
    keys = ", ".join((f"when = '{when}'", "action = 'log'", *more))
    return f"policy = [{{ {keys} }}]"


def firings(service: Client) -> list[dict]:
    return [record for record in service.records("action", "web") if record["cause"].get("rule") == "policy[0]"]


@simulated(workload("web", READY, rule("probe readiness == fail", "for = 3"), program="port=80@0 sick=5@20"))
async def test_a_rule_reads_the_verdict_of_a_probe(service: Client) -> None:
    await service.until("web", "ready")
    await trio.sleep(4)
    assert firings(service) == []
    await service.until("web", "running")
    await trio.sleep(2)
    assert firings(service) == []
    await trio.sleep(2)
    (firing,) = firings(service)
    assert firing["cause"]["when"] == "probe readiness == fail"
    assert (firing["cause"]["before"], firing["cause"]["after"], firing["cause"]["threshold"]) == (0, 0, 1)
    assert firing["cause"]["held"] == pytest.approx(3, abs=0.1)


@simulated(workload("web", LIVE, rule("probe liveness == fail"), *RESTARTS, program="port=80@0 sick=3@100"))
async def test_a_failure_of_one_generation_is_none_of_the_next(service: Client) -> None:
    await service.until_true(lambda: "execed web#2" in service.course())
    await trio.sleep(10)
    assert [firing["generation"] for firing in firings(service)] == [1], firings(service)


@simulated(workload("web", LIVE, rule("probe liveness took avg > 1h"), program="port=80@0"))
async def test_the_average_time_of_a_probe_is_known_to_rules(service: Client) -> None:
    await trio.sleep(10)
    values = service.supervisor.actors["web"].observer.read("probe")
    assert values["liveness"] == 1
    assert 0 <= values["liveness took avg"] < 1
    assert firings(service) == []
