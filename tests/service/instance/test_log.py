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
