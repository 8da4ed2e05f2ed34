"""Starts, restarts and reloads because of files, on the simulated machine."""

from typing import Any

import pytest
import trio

from nsupervisor.config.paths import PathConfig
from nsupervisor.service.activation import paths as path_triggers
from tests.service.simulated import Client, make_site, serve, simulated, workload

FILE = "/etc/web.toml"
CHANGED = f'paths = [{{ path_changed = "{FILE}" }}]'
JOB = workload("job", CHANGED, 'type = "oneshot"', program="exit=0@1")
SPOOL = workload("job", 'paths = [{ directory_not_empty = "/spool" }]', 'type = "oneshot"', program="exit=0@1")
RESTARTED = workload("web", f'paths = [{{ path_changed = "{FILE}", action = "restart" }}]')
RELOADED = workload("web", f'paths = [{{ path_changed = "{FILE}", action = "reload" }}]', 'reload_signal = "HUP"')


def starts(service: Client, name: str = "job") -> int:
    return int(service.status(name)["generation"])


def trigger(service: Client, name: str = "job") -> dict[str, object]:
    (found,) = service.supervisor.history(name)["paths"]
    return dict(found)


async def watched(service: Client, name: str = "job") -> None:
    await service.until_true(lambda: bool(trigger(service, name)["is_watched"]))


@simulated(JOB)
async def test_a_change_starts_a_job_once(service: Client) -> None:
    await watched(service)
    assert service.state("job") == "stopped"  # it does not start with the service
    for _ in range(5):
        service.site.file_tree.write(FILE)
        await trio.sleep(0.1)
    await trio.sleep(20)
    assert service.course() == ["execed job#1", "ends job#1"]
    assert [one["cause"] for one in service.records("action", "job")][:1] == [{"by": f"path {FILE}", "kind": "path"}]


@simulated(JOB)
async def test_a_change_while_the_job_runs_starts_it_once_more(service: Client) -> None:
    await watched(service)
    service.site.file_tree.write(FILE)
    await service.until("job", "running")
    service.site.file_tree.write(FILE)
    await trio.sleep(20)
    assert starts(service) == 2


@simulated(JOB)
async def test_changes_without_end_are_acted_on_all_the_same(service: Client) -> None:
    await watched(service)
    began = trio.current_time()
    while not starts(service):
        service.site.file_tree.write(FILE)
        await trio.sleep(0.1)
    assert trio.current_time() - began < 3.5  # ten times debounce_sec


@simulated(SPOOL)
async def test_a_job_runs_until_its_directory_is_empty(service: Client) -> None:
    for name in "abc":
        service.site.file_tree.write(f"/spool/{name}")
    for number, name in enumerate("abc", 1):
        await service.until_true(lambda number=number: starts(service) == number)  # type: ignore[misc]
        service.site.file_tree.remove(f"/spool/{name}")
    await trio.sleep(20)
    assert starts(service) == 3


@simulated(SPOOL)
async def test_a_job_that_takes_nothing_is_suspended_until_a_start(service: Client) -> None:
    service.site.file_tree.write("/spool/a")
    await service.until_true(lambda: bool(trigger(service)["is_suspended"]))
    assert starts(service) == 20
    await trio.sleep(60)
    assert starts(service) == 20
    (record,) = service.records("warning", "job")
    assert "nsupervisor start job" in record["message"]
    assert trigger(service)["problem"] == record["message"]
    assert (await service.command("start", "job"))["ok"]
    await service.until_true(lambda: starts(service) > 25)


@simulated(JOB)
async def test_a_stop_is_final_until_a_start(service: Client) -> None:
    await watched(service)
    assert (await service.command("stop", "job"))["ok"]
    service.site.file_tree.write(FILE)
    await trio.sleep(20)
    assert starts(service) == 0
    assert (await service.command("start", "job"))["ok"]
    await trio.sleep(20)
    assert starts(service) == 1  # the program that was started has found the change
    service.site.file_tree.write(FILE)
    await service.until_true(lambda: starts(service) == 2)


@simulated(RESTARTED)
async def test_a_change_restarts_a_program(service: Client) -> None:
    await watched(service, "web")
    await service.until("web", "running")
    service.site.file_tree.write(FILE)
    await service.until_true(lambda: "execed web#2" in service.course())
    assert service.records("action", "web")[-1]["cause"] == {"by": f"path {FILE}", "kind": "path"}
    assert (await service.command("stop", "web"))["ok"]
    service.site.file_tree.write(FILE)
    await trio.sleep(20)
    assert service.state("web") == "stopped"


@simulated(RELOADED)
async def test_a_change_has_a_program_reload(service: Client) -> None:
    await watched(service, "web")
    await service.until("web", "running")
    service.site.file_tree.write(FILE)
    cause = {"by": f"path {FILE}", "kind": "path"}
    await service.until_true(lambda: cause in [one.get("cause") for one in service.site.records()])
    assert starts(service, "web") == 1


@simulated(JOB)
async def test_a_lost_event_is_found_by_the_next_look(service: Client) -> None:
    await watched(service)
    service.site.file_tree.loses_events = True
    service.site.file_tree.write(FILE)
    await service.until_true(lambda: starts(service) == 1)


@simulated(JOB)
async def test_a_flood_of_events_costs_one_start_and_few_looks(service: Client) -> None:
    await watched(service)
    calls = service.service.life.calls
    for number in range(5000):
        service.site.file_tree.write(f"/etc/other{number}")
        service.site.file_tree.write(FILE)
    await trio.sleep(20)
    assert starts(service) == 1
    assert service.service.life.calls - calls < 200


@simulated(JOB)
async def test_a_reload_of_the_file_adds_and_removes_paths(service: Client) -> None:
    await watched(service)
    await service.reload(workload("job", 'type = "oneshot"', "autostart = false", program="exit=0@1"))
    service.site.file_tree.write(FILE)
    await trio.sleep(10)
    assert starts(service) == 0
    assert not service.supervisor.history("job")["paths"]
    await service.reload(JOB)
    await watched(service)
    service.site.file_tree.write(FILE)
    await service.until_true(lambda: starts(service) == 1)


NEEDY = JOB.replace('type = "oneshot"', 'type = "oneshot"\nrequires = ["db"]') + workload("db")


@simulated(NEEDY)
async def test_what_a_request_has_stopped_is_not_started_along(service: Client) -> None:
    await watched(service)
    assert (await service.command("stop", "db"))["ok"]
    service.site.file_tree.write(FILE)
    await trio.sleep(20)
    assert (starts(service), trigger(service)["is_pending"]) == (0, True)
    assert (await service.command("start", "db"))["ok"]
    await service.until_true(lambda: starts(service) == 1)


@pytest.mark.parametrize("dies_at_call", range(1, 160, 5))
def test_a_change_starts_the_job_whenever_the_supervisor_has_died(dies_at_call: int) -> None:
    site = make_site(JOB)

    async def change(service: Client) -> None:
        await watched(service)
        site.file_tree.write(FILE)
        await service.until_true(lambda: starts(service) == 1)

    serve(site, change, stop=False, dies_at_call=dies_at_call)
    had_changed = FILE in site.file_tree.files

    async def look(service: Client) -> None:
        if not had_changed:
            await watched(service)
            site.file_tree.write(FILE)
        await service.until_true(lambda: starts(service) >= 1)
        await trio.sleep(20)
        assert 1 <= starts(service) <= 2  # at least once

    assert serve(site, look) == 0


def test_a_change_while_no_supervisor_runs_is_found() -> None:
    site = make_site(JOB)
    serve(site, watched, stop=False)
    site.file_tree.write(FILE)

    async def look(service: Client) -> None:
        await service.until_true(lambda: starts(service) == 1)
        await trio.sleep(20)
        assert starts(service) == 1

    assert serve(site, look) == 0


def test_a_suspended_path_stays_suspended_after_a_kill() -> None:
    site = make_site(SPOOL)
    site.file_tree.write("/spool/a")

    async def loop(service: Client) -> None:
        await service.until_true(lambda: bool(trigger(service)["is_suspended"]))

    serve(site, loop, stop=False)

    async def look(service: Client) -> None:
        await trio.sleep(60)
        assert starts(service) == 20
        assert trigger(service)["is_suspended"]

    assert serve(site, look) == 0


def test_looks_of_all_paths_together_leave_nine_tenths_of_a_processor_to_others() -> None:
    site = make_site("".join(on_change(f"job{number}") for number in range(20)))
    site.file_tree.look_cost_s = 0.02

    async def look(service: Client) -> None:
        await trio.sleep(20)
        before, began = site.file_tree.looks, trio.current_time()
        while trio.current_time() < began + 60:
            site.file_tree.loses_events = True
            site.file_tree.write(FILE)  # each path is looked at again
            await trio.sleep(0.5)
        looks = site.file_tree.looks - before
        assert looks > 150  # without a pause for all there would be 20 paths * 60 s / 0.5 s
        assert looks * 0.02 < 0.12 * 60

    assert serve(site, look) == 0


def on_change(name: str) -> str:
    """Return a job that /NAME/file starts."""
    return workload(name, f'paths = [{{ path_changed = "/{name}/file" }}]', 'type = "oneshot"', program="exit=0@1")


def test_there_are_never_more_watches_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    # each file needs two: of its directory and, as the simulated file does not exist, of a directory of its name
    monkeypatch.setattr(path_triggers, "MAX_WATCHES", 4)

    async def look(service: Client) -> None:
        await trio.sleep(5)
        watcher = service.site.file_tree.watchers[0]
        assert len(watcher.watched) == 4
        (unwatched,) = (name for name in "abc" if not trigger(service, name)["is_watched"])
        (record,) = service.records("warning", unwatched)
        assert "the service has 4 watches, the most that it makes" in record["message"]
        assert trigger(service, unwatched)["problem"] == record["message"]
        service.site.file_tree.write(f"/{unwatched}/file")
        await service.until_true(lambda: starts(service, unwatched) == 1)  # it looks all the same, from time to time
        assert len(watcher.watched) <= 4
        await service.reload(on_change(unwatched))
        await watched(service, unwatched)  # there is room now
        await service.reload(workload("other", "autostart = false"))
        await trio.sleep(5)
        assert watcher.watched == {}

    assert serve(make_site("".join(map(on_change, "abc"))), look) == 0


def test_file_systems_that_do_not_answer_are_a_problem_of_their_paths_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path_triggers, "MAX_LOOKS", 1)
    threads: list[str] = []

    async def call(run: Any, config: PathConfig, own_logs: Any, *, limiter: trio.CapacityLimiter, **_: Any) -> Any:
        await limiter.acquire_on_behalf_of(object())
        if config.path == "/stuck/file":
            threads.append(config.path)
            getattr(run, "__self__").is_running = True  # noqa: B009
            await trio.sleep_forever()
        limiter.release_on_behalf_of(next(iter(limiter.statistics().borrowers)))
        return run(config, own_logs)

    monkeypatch.setattr(path_triggers, "call_in_thread", call)

    async def look(service: Client) -> None:
        await trio.sleep(200)
        assert "does not answer" in str(trigger(service, "stuck")["problem"])
        assert threads == ["/stuck/file"]  # no further thread for each try
        service.site.file_tree.write(FILE)
        await service.until_true(lambda: starts(service) == 1)

    assert serve(make_site(JOB + on_change("stuck")), look) == 0
