"""Starts that are skipped because a condition is not met."""

import os
from pathlib import Path

import pytest
import trio

from nsupervisor.core.start_conditions import StartCondition
from nsupervisor.service.instance import actor as actors
from nsupervisor.service.platform.start_conditions import find_unmet_condition
from tests.service.simulated import Client, simulated, workload

NOT_AT_BOOT = "autostart = false"
SKIPPED = 'condition_path_exists = ["/missing"]'
MET = 'condition_path_exists = ["!/missing", "/"]'
REASON = 'skipped: condition_path_exists = "/missing" is not met'


@simulated(
    workload("job", NOT_AT_BOOT, SKIPPED, 'type = "oneshot"', 'on_success = ["other"]', 'on_failure = ["other"]')
    + workload("needs", NOT_AT_BOOT, 'requires = ["job"]')
    + workload("wants", NOT_AT_BOOT, 'wants = ["job"]')
    + workload("other", NOT_AT_BOOT)
)
async def test_a_skipped_start_is_no_failure_and_releases_nothing_that_requires_it(service: Client) -> None:
    answer = await service.command("start", "job")
    assert (answer["ok"], answer["state"], answer["message"]) == (True, "exited", REASON)
    assert not service.status("job")["ready"]
    answer = await service.command("start", "needs")
    assert (answer["ok"], service.state("needs")) == (False, "stopped")
    assert answer["message"] == f"requires job, which is exited: {REASON}; it starts as soon as job is up"
    assert (await service.command("start", "wants"))["ok"]
    assert service.state("other") == "stopped"
    assert service.course() == ["execed wants#1"]
    records = service.records("not started", "job")
    assert {record["level"] for record in records} == {"info"}


@simulated(workload("web", SKIPPED, 'restart = "always"', "restart_sec = 0"))
async def test_a_skipped_start_is_not_tried_again(service: Client) -> None:
    await service.until("web", "exited")
    await trio.sleep(10)
    assert (service.state("web"), service.status("web")["generation"]) == ("exited", 1)
    await service.reload(workload("web", MET, 'restart = "always"', "restart_sec = 0"))
    assert (await service.command("start", "web"))["ok"]
    assert service.state("web") == "running"


async def never(*_: object, **_options: object) -> None:
    """Call a function in a thread, which a file system keeps waiting."""
    await trio.sleep_forever()


@simulated(workload("web", NOT_AT_BOOT, SKIPPED))
async def test_conditions_that_cannot_be_checked_fail_the_start(service: Client) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(actors, "call_in_thread", never)
        answer = await service.command("start", "web")
    assert not answer["ok"]
    assert "no answer within 5 s" in answer["message"]


def test_the_host_is_asked(tmp_path: Path) -> None:
    file, empty = tmp_path / "file", tmp_path / "empty"
    file.write_text("a")
    empty.touch()

    def is_met(key: str, value: object) -> bool:
        return find_unmet_condition((StartCondition(f"condition_{key}", str(value), False),)) is None

    assert [is_met("path_exists", path) for path in (file, tmp_path, tmp_path / "no")] == [True, True, False]
    assert [is_met("file_not_empty", path) for path in (file, empty, tmp_path, "/no")] == [True, False, False, False]
    assert is_met("host", os.uname().nodename)
    assert is_met("environment", f"PATH={os.environ['PATH']}")
