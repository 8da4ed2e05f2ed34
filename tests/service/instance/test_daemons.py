"""Programs that become daemons (`type = "forking"`), and workloads that outlive their program (`exit_type`)."""

from types import SimpleNamespace

import pytest
import trio
import trio.testing

from nsupervisor.service.instance.daemon_search import DaemonSearch
from tests.service.simulated import Client, make_site, serve, simulated, workload

FORKING = ('type = "forking"', 'pid_file = "/run/web.pid"', 'restart = "always"', "restart_sec = 1")
DAEMON = workload("web", *FORKING, program="daemon=/run/web.pid@0.3")
NEEDS = workload("app", 'requires = ["web"]')


def daemon_pid(service: Client) -> int:
    """Return the pid of the daemon."""
    return service.machine.pid_files["/run/web.pid"]


async def until_known(service: Client) -> None:
    """Wait until the daemon is the program."""
    await service.until_true(lambda: service.status("web")["ready"])


@simulated(DAEMON + NEEDS)
async def test_a_daemon_runs_once_its_pid_file_names_it(service: Client) -> None:
    await service.until("web", "running")
    await trio.sleep(0.1)
    assert (service.status("web")["ready"], service.state("app")) == (False, "stopped")
    await until_known(service)
    assert service.status("web")["pid"] == daemon_pid(service)
    await service.until("app", "running")
    assert service.records("exited", "web") == [], "the end of its parent is not the end of the workload"


@simulated(DAEMON)
async def test_the_end_of_the_daemon_is_the_end_of_the_program(service: Client) -> None:
    await until_known(service)
    service.machine.processes[daemon_pid(service)].end(3 << 8)
    await service.until("web", "backoff")
    await until_known(service)
    assert service.status("web")["generation"] == 2


@simulated(DAEMON)
async def test_a_stop_signals_the_daemon(service: Client) -> None:
    await until_known(service)
    await service.command("stop", "web")
    assert (service.state("web"), service.status("web")["last_exit"]["signal"]) == ("stopped", "SIGTERM")
    assert service.machine.living() == []


@simulated(workload("web", *FORKING, "timeout_start_sec = 5", "start_limit_burst = 1", program="daemon=/run/other@0"))
async def test_a_daemon_without_its_pid_file_has_failed(service: Client) -> None:
    await service.until("web", "failed")
    assert "pid_file names none of its processes within 5 s" in service.status("web")["reason"]
    assert service.machine.living() == []


@simulated(workload("web", *FORKING, "timeout_start_sec = 5", "start_limit_burst = 1", program="daemon=/run/other@0"))
async def test_a_pid_file_that_names_a_foreign_process_is_reported_once(service: Client) -> None:
    service.machine.pid_files["/run/web.pid"] = 1
    await service.until("web", "failed")
    texts = [record["message"] for record in service.records("warning", "web") if "pid_file" in record["message"]]
    assert texts == ["pid_file: /run/web.pid names process 1, which is not part of this workload"]


@simulated(workload("web", *FORKING, "start_limit_burst = 1", program="exit=0@0.1"))
async def test_a_program_that_leaves_no_daemon_has_failed(service: Client) -> None:
    await service.until("web", "failed")
    assert "without leaving the daemon" in service.status("web")["reason"]


@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.2, 1.0])
@pytest.mark.parametrize("keeper_dies", [False, True])
def test_a_daemon_outlives_supervisor_and_keeper(seconds: float, keeper_dies: bool) -> None:
    """The supervisor dies before the parent has ended, before the pid file is there, or later."""
    site = make_site(DAEMON)

    async def starts(service: Client) -> None:
        await service.until("web", "running")
        await trio.sleep(seconds)
        if keeper_dies:
            service.site.keepers.start().die()

    async def goes_on(service: Client) -> None:
        await until_known(service)
        assert service.status("web")["pid"] == daemon_pid(service)
        assert service.status("web")["generation"] == 1
        await service.command("stop", "web")
        assert service.machine.living() == []

    assert serve(site, starts, stop=False) is None
    assert serve(site, goes_on) == 0


FAMILY = workload("web", 'exit_type = "cgroup"', 'restart = "no"', program="forks=2@0.1 exit=3@0.5")


@simulated(FAMILY)
async def test_a_workload_runs_until_its_last_process_has_ended(service: Client) -> None:
    await service.until("web", "running")
    await trio.sleep(2)
    assert service.state("web") == "running"
    assert service.status("web")["reason"] == "its program has ended (exit code 3); other processes run on (exit_type)"
    for process in service.machine.living():
        process.end(0)
    await service.until("web", "failed")
    assert service.status("web")["reason"] == "exit code 3", "the exit status of the program counts"


@simulated(FAMILY)
async def test_a_stop_ends_all_that_outlive_the_program(service: Client) -> None:
    await service.until("web", "running")
    await trio.sleep(2)
    await service.command("stop", "web")
    assert (service.state("web"), service.machine.living()) == ("stopped", [])


@pytest.mark.parametrize("keeper_dies", [False, True])
def test_processes_that_outlive_the_program_outlive_supervisor_and_keeper(keeper_dies: bool) -> None:
    site = make_site(FAMILY)

    async def starts(service: Client) -> None:
        await service.until("web", "running")
        await trio.sleep(2)
        if keeper_dies:
            service.site.keepers.start().die()

    async def goes_on(service: Client) -> None:
        await trio.sleep(1)
        assert service.state("web") == "running"
        for process in service.machine.living():
            process.end(0)
        await service.until("web", "failed")

    assert serve(site, starts, stop=False) is None
    assert serve(site, goes_on) == 0


async def test_a_search_that_takes_long_leaves_the_event_loop_to_others(autojump_clock: trio.testing.MockClock) -> None:
    """A search reads a file of each process of the workload, which may have thousands."""
    searches: list[float] = []

    def find() -> int:
        searches.append(trio.current_time())
        autojump_clock.jump(1.0)
        if len(searches) == 3:
            nursery.cancel_scope.cancel()
        raise FileNotFoundError

    async with trio.open_nursery() as nursery:
        search = DaemonSearch(SimpleNamespace(nursery=nursery), lambda generation, pid: None, lambda problem: None)
        search.update(1, find)
    first, second, third = searches
    assert (second - first, third - second) == pytest.approx((10, 10))
