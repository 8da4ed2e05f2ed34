"""What the journal's logger loads, which the first answer after a take-over waits for."""

import json
import subprocess
import sys

from nsupervisor.logs import open_journal


def test_the_service_loads_nothing_for_terminals_and_leaves_it_to_others_to_do_so():
    code = "import nsupervisor.service.run, sys; assert 'rich' not in sys.modules; import rich.table"
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_a_bound_logger_adds_its_fields_to_each_record(tmp_path):
    async with open_journal(str(tmp_path / "log")) as journal:
        heard = []
        journal.listener = lambda timestamp, level, event, fields, _line: heard.append(
            (timestamp, level, event, fields["pid"])
        )
        log = journal.log.bind(workload="web", instance=2)
        log.info("started", generation=1, pid=7)
        log.debug("hidden", generation=1, pid=8)
        journal.log.info("other", pid=9)
    first, second = [json.loads(line) for line in (tmp_path / "log").read_bytes().splitlines()]
    assert list(first)[:3] == ["timestamp", "level", "event"]
    assert (first["workload"], first["instance"], first["pid"]) == ("web", 2, 7)
    assert "workload" not in second
    assert [entry[1:] for entry in heard] == [("info", "started", 7), ("debug", "hidden", 8), ("info", "other", 9)]
    assert heard[0][0] == first["timestamp"]


async def test_the_console_shows_the_head_of_a_record_once(tmp_path):
    async with open_journal(str(tmp_path / "log"), format="console") as journal:
        journal.log.info("started", workload="web", pid=7)
    line = (tmp_path / "log").read_text()
    assert line.split()[1:] == ["web", "started", "pid", "7"]
