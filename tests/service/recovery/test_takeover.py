"""A supervisor takes over what the one before it left, from the keeper's table, the state file and the cgroups."""

import signal
from collections.abc import Callable

import pytest

from nsupervisor.cgroups import CgroupError
from tests.service.simulated import Client, course, make_site, serve, workload
from tests.simulation.machine import Behaviour
from tests.simulation.service import Site

WEB = workload("web", 'restart = "always"', "restart_sec = 1")


async def until_web_runs(service: Client) -> None:
    await service.until("web", "running")


async def nothing(service: Client) -> None:
    """End at once."""


def killed_supervisor(text: str, client: Callable = until_web_runs) -> Site:
    """Return the site that a killed supervisor leaves."""
    site = make_site(text)
    assert serve(site, client, stop=False) is None
    return site


def messages(site: Site, event: str) -> list[str]:
    return [record.get("message", "") for record in site.records() if record["event"] == event]


def test_a_program_runs_on_when_its_supervisor_is_killed() -> None:
    site = killed_supervisor(WEB)

    async def client(service: Client) -> None:
        assert (service.state("web"), service.status("web")["generation"]) == ("running", 1)
        service.program("web").receive(signal.SIGKILL)
        await service.until("web", "backoff")
        await service.until("web", "running")

    assert serve(site, client) == 0
    assert course(site) == ["execed web#1", "ends web#1", "execed web#2", "ends web#2"]
    assert messages(site, "taken over") == ["1 workload of the supervisor before this one"]


def test_an_exit_without_a_supervisor_is_reported_by_the_next() -> None:
    site = killed_supervisor(WEB)
    next(process for process in site.machine.living() if process.is_leader).end(7 << 8)
    site.machine.advance(1)
    assert serve(site, until_web_runs) == 0
    assert next(record["code"] for record in site.records() if record["event"] == "exited") == 7


@pytest.mark.parametrize("knows_statuses", [True, False])
def test_a_program_runs_on_without_its_keeper_too(knows_statuses: bool) -> None:
    site = killed_supervisor(WEB)
    site.machine.statuses_of_others = knows_statuses
    assert site.keepers.current is not None
    site.keepers.current.die()
    site.machine.advance(1)

    async def client(service: Client) -> None:
        assert (service.state("web"), service.status("web")["generation"]) == ("running", 1)
        service.program("web").receive(signal.SIGKILL)
        await service.until("web", "backoff")

    assert serve(site, client) == 0
    (first, *_) = [record for record in site.records() if record["event"] == "exited"]
    assert first.get("signal") == ("SIGKILL" if knows_statuses else None)


def test_a_keeper_that_dies_is_replaced_and_the_programs_run_on() -> None:
    site = make_site(WEB + workload("db"))

    async def client(service: Client) -> None:
        await service.until("web", "running")
        await service.until("db", "running")
        assert site.keepers.current is not None
        site.keepers.current.die()
        await service.until_true(lambda: bool(service.records("keeper replaced")))
        service.program("web").receive(signal.SIGTERM)
        await service.until("web", "backoff")

    assert serve(site, client) == 0
    assert messages(site, "keeper lost") == ["the programs run on; a new keeper takes them over"]
    assert messages(site, "keeper replaced") == ["it is the parent of 2 programs"]


def test_what_the_configuration_no_longer_has_is_stopped() -> None:
    site = killed_supervisor(WEB + workload("db", 'requires = ["web"]', program="term=0@1"))
    site.text = workload("other")

    async def client(service: Client) -> None:
        assert service.names() == ["other"]
        await service.until_true(lambda: [process.id for process in service.machine.living()] == ["other#1"])

    assert serve(site, client) == 0
    assert "no longer in the configuration: stopped" in messages(site, "warning")


def test_a_program_that_was_started_with_another_file_is_reported() -> None:
    site = killed_supervisor(WEB)
    site.text = workload("web", 'restart = "always"', "restart_sec = 1", program="v=2")
    assert serve(site, nothing) == 0
    assert messages(site, "warning") == [
        "its configuration has changed since it was started; restart it to apply the change"
    ]


def orphan(site: Site) -> None:
    """Leave a process in web's cgroup of which no state file knows."""
    del site.machine.files[next(path for path in site.machine.files if path.name == "state.json")]
    assert site.keepers.current is not None
    site.keepers.current.die()
    for process in site.machine.living():
        process.parent = 1
    site.machine.advance(1)


@pytest.mark.parametrize(
    ("policy", "words", "state", "is_alive"),
    [
        ("kill", "killed", "running", False),
        ("leave", 'left alone, as orphans = "leave" says, so it cannot start', "failed", True),
        ("adopt", 'adopted, as orphans = "adopt" says', "running", True),
    ],
)
def test_orphans_are_treated_as_configured(policy: str, words: str, state: str, is_alive: bool) -> None:
    site = killed_supervisor(workload("web", 'restart = "no"'))
    orphan(site)
    site.text = f'orphans = "{policy}"\n' + site.text
    (process,) = site.machine.living()

    async def client(service: Client) -> None:
        await service.until("web", state)
        assert (process.status is None) == is_alive

    assert serve(site, client) == 0
    assert words in messages(site, "orphans")[0]
    assert site.machine.living() == []


def test_a_stop_that_was_interrupted_is_completed() -> None:
    async def client(service: Client) -> None:
        await until_web_runs(service)
        await service.begin(service.command, "stop", "web")
        await service.until("web", "stopping")

    site = killed_supervisor(workload("web", program="term=0@2"), client)

    async def next_client(service: Client) -> None:
        await service.until("web", "stopped")

    assert serve(site, next_client) == 0
    assert course(site) == ["execed web#1", "ends web#1"]


def test_a_reload_that_was_interrupted_is_completed_in_its_order() -> None:
    async def client(service: Client) -> None:
        await until_web_runs(service)
        await service.begin_reload(
            workload("db", program="term=0@1 v=2") + workload("web", 'requires = ["db"]', program="term=0@1 v=2")
        )
        await service.until("web", "stopping")

    site = killed_supervisor(
        workload("db", program="term=0@1") + workload("web", 'requires = ["db"]', program="term=0@1"), client
    )

    async def next_client(service: Client) -> None:
        await service.until_true(lambda: service.state("web") == service.state("db") == "running")

    assert serve(site, next_client) == 0
    assert course(site)[2:6] == ["ends web#1", "ends db#1", "execed db#2", "execed web#2"]


def test_a_start_that_waited_goes_on() -> None:
    async def client(service: Client) -> None:
        await service.until("db", "running")
        await service.begin(service.command, "start", "web")

    text = workload("db", 'type = "notify"', program="ready=2") + workload("web", "autostart = false", 'wants = ["db"]')
    site = killed_supervisor(text, client)
    assert serve(site, until_web_runs) == 0


def test_what_a_group_was_set_to_outlives_its_supervisor() -> None:
    text = workload("web", 'group = "batch"') + "[group.batch]\npids_max = 10\n"

    async def client(service: Client) -> None:
        await until_web_runs(service)
        await service.supervisor.set_group("group/batch", {"pids_max": 7})

    site = killed_supervisor(text, client)

    async def next_client(service: Client) -> None:
        assert service.supervisor.group_status()[0]["pids_max"] == 7

    assert serve(site, next_client) == 0


def test_an_instance_that_has_moved_while_no_supervisor_ran_moves_with_its_next_process() -> None:
    site = killed_supervisor(WEB + "[group.batch]\n")
    site.text = workload("web", 'group = "batch"', 'restart = "always"', "restart_sec = 1") + "[group.batch]\n"

    async def client(service: Client) -> None:
        assert service.status("web")["cgroup"] == "/sim/sim/web"
        await service.command("restart", "web")
        assert service.status("web")["cgroup"] == "/sim/sim/group.batch/web"

    assert serve(site, client) == 0


def test_an_instance_that_does_not_run_moves_at_once() -> None:
    async def client(service: Client) -> None:
        await until_web_runs(service)
        await service.command("stop", "web")

    site = killed_supervisor(WEB + "[group.batch]\n", client)
    site.text = workload("web", 'group = "batch"') + "[group.batch]\n"

    async def next_client(service: Client) -> None:
        assert service.status("web")["cgroup"] == "/sim/sim/group.batch/web"

    assert serve(site, next_client) == 0


def test_a_damaged_state_file_is_set_aside() -> None:
    site = killed_supervisor(WEB)
    (path,) = (path for path in site.machine.files if path.name == "state.json")
    site.machine.files[path][:20] = b"x" * 20
    assert serve(site, until_web_runs) == 0
    assert "it is kept as state.json.bad-1" in messages(site, "state file set aside")[0]


def refusal(site: Site) -> str:
    """Return why the service does not start."""
    with pytest.raises(ExceptionGroup) as caught:
        serve(site, nothing)
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, CgroupError)
    return str(error)


def test_a_supervisor_in_another_place_does_not_begin_while_workloads_run() -> None:
    site = killed_supervisor(WEB)
    site.text = "\n".join(("[supervisor]", 'runtime_directory = "/sim/run"', 'name = "other"', WEB))
    site.header = ""
    message = refusal(site)
    assert "has left workloads running in /sim/sim, and this one would have /sim/other" in message
    assert "start it where that one was started, or end them" in message


def test_a_tree_of_another_supervisor_is_not_touched() -> None:
    site = make_site(WEB)
    tree = site.machine.make_cgroup("/sim/sim")
    site.machine.start_process(site.machine.make_cgroup("/sim/sim/web"), "x#1", Behaviour(), 1)
    site.machine.locks.add(tree)
    assert "the cgroup /sim/sim is in use by another supervisor (processes 1001); stop that one" in refusal(site)
    assert len(site.machine.living()) == 1
