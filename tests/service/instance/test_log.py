"""The records of one instance."""

import json

import pytest

from nsupervisor.logs import open_journal
from nsupervisor.service.instance.log import InstanceLog
from tests.logs.records import records


@pytest.mark.fault("G10")
@pytest.mark.parametrize(("name", "instance"), [("web", None), ("web@2", 2)])
async def test_a_record_names_its_instance_and_is_returned_as_it_is_written(tmp_path, name, instance):
    """Programs and web servers that a rule notifies had other times than the log, and no level."""
    async with open_journal(str(tmp_path / "log")) as journal:
        log = InstanceLog(name, instance, journal)
        returned = log.write(3, "action", "warning", action="stop", cause={"by": "operator"})
    (written,) = records((tmp_path / "log").read_bytes())
    assert written == returned
    assert (written["workload"], written.get("instance"), written["level"]) == (name, instance, "warning")
    assert log.last_event == {key: written[key] for key in ("timestamp", "event", "action", "cause")}


async def test_held_records_are_written_in_order_when_they_are_released(tmp_path):
    async with open_journal(str(tmp_path / "log")) as journal:
        log = InstanceLog("web", None, journal)
        log.hold()
        log.write(1, "started", pid=7)
        journal.log.info("other")
        log.write(1, "ready", pid=7)
        log.release()
        log.write(1, "exited", pid=7)
    found = [json.loads(line) for line in (tmp_path / "log").read_bytes().splitlines()]
    assert [record["event"] for record in found] == ["other", "started", "ready", "exited"]
    assert [record["timestamp"] for record in found] == sorted(record["timestamp"] for record in found)


async def test_the_listener_gets_the_line_that_is_written_once(tmp_path):
    heard = []
    async with open_journal(str(tmp_path / "log"), level="warning") as journal:
        journal.listener = lambda *record: heard.append(record)
        log = InstanceLog("web", None, journal)
        log.write(1, "status", message="fine")
        log.write(1, "exited", "warning", code=3)
        journal.log.warning("other", number=1)
    written = (tmp_path / "log").read_bytes().splitlines(keepends=True)
    assert written == [line for *_, line in heard[1:]]
    assert [(level, event) for _, level, event, *_ in heard] == [
        ("info", "status"),
        ("warning", "exited"),
        ("warning", "other"),
    ]
    assert json.loads(heard[0][4])["message"] == "fine"


async def test_the_listener_gets_json_beside_text_for_people(tmp_path):
    heard = []
    async with open_journal(str(tmp_path / "log"), format="console") as journal:
        journal.listener = lambda *record: heard.append(record)
        InstanceLog("web", None, journal).write(1, "exited", code=3)
    assert json.loads(heard[0][4])["code"] == 3
    assert not (tmp_path / "log").read_bytes().startswith(b"{")


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), ValueError("no number")])
async def test_errors_of_a_workload_are_contained_and_defects_are_not(tmp_path, error):
    async with open_journal(str(tmp_path / "log")) as journal:
        log = InstanceLog("web", None, journal)
        with log.contain_errors(2, "cannot do it"):
            raise error
        with pytest.raises(KeyError), log.contain_errors(2, "cannot do it"):
            raise KeyError
    (written,) = records((tmp_path / "log").read_bytes())
    assert (written["event"], written["level"], written["message"]) == ("warning", "error", f"cannot do it: {error}")
