"""The end of the service with a collector that fails: it is started at once, and a loss is reported."""

import sys
from contextlib import asynccontextmanager

import pytest
import trio

from nsupervisor.logs import collector as module
from nsupervisor.logs import open_journal
from tests.logs.records import LABELS, check_numbers, records
from tests.timing import deadline

# A collector that fails without reading until the file argv[1] exists.
COLLECTOR = """
import os, sys
if not os.path.exists(sys.argv[1]):
    sys.exit(3)
with open(sys.argv[2], "ab", buffering=0) as out:
    while data := os.read(0, 65536):
        out.write(data)
"""


@asynccontextmanager
async def write_while_the_collector_fails(command, number):
    """Write records, and enter the block when the collector has failed for the first time."""
    failed = trio.Event()
    async with open_journal(command, flush_sec=0.1) as journal:
        journal.listener = lambda _time, _level, event, _fields, _line: (
            failed.set() if event == "collector ended" else None
        )
        for value in range(number):
            journal.record_line(LABELS, "stdout", b"%d" % value)
        await failed.wait()
        yield


@pytest.mark.fault("H9")
async def test_a_stop_ends_the_restart_delay_and_the_collector_gets_everything(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "RESTART_DELAY_MIN_S", 3600.0)
    ready, out = tmp_path / "ready", tmp_path / "out"
    with trio.fail_after(deadline(20)):
        async with write_while_the_collector_fails([sys.executable, "-c", COLLECTOR, str(ready), str(out)], 100):
            ready.touch()
    found = [record for record in records(out.read_bytes()) if record["event"] == "output"]
    assert check_numbers(found, 100) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.fault("H9")
async def test_what_no_collector_has_read_at_the_end_is_reported_as_lost(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "RESTART_DELAY_MIN_S", 3600.0)
    monkeypatch.setattr(module, "DRAIN_TIMEOUT_S", 0.2)
    with trio.fail_after(deadline(20)):
        async with write_while_the_collector_fails([sys.executable, "-c", COLLECTOR, str(tmp_path / "no"), ""], 100):
            pass
    # With the record that the collector has ended.
    assert "supervisor.log_output: 101 records were lost" in capsys.readouterr().err
