"""Output that no code expects costs at most its own records, never the service or the records of other workloads."""

import json
import os
import socket

import pytest
import trio

from nsupervisor.condition_variable import ConditionVariable
from nsupervisor.json_codec import MAX_NESTING
from nsupervisor.logs import Capture, OutputRoute, Pipe, open_journal, record
from nsupervisor.logs.chunks import ChunkReader
from nsupervisor.logs.log_daemons import Journald, Syslog
from tests.logs.records import LABELS, capture, records
from tests.logs.test_log_daemons import entry_of
from tests.timing import deadline

DAEMONS = {"syslog": Syslog, "journald": Journald}


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    """The receiving socket of a log daemon."""
    path = str(tmp_path / "socket")
    monkeypatch.setattr(Journald.__init__, "__defaults__", (path,))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(path)
        listening.settimeout(deadline(10))
        yield listening


def message_of(kind, data):
    return entry_of(data)["MESSAGE"] if kind == "journald" else data.partition(b"] ")[2]


def output_of(kind, daemon):
    return "journald" if kind == "journald" else f"syslog:{daemon.getsockname()}"


def reporter(reports):
    return lambda level, event, **fields: reports.append((level, event, fields))


def full_pipe(data):
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.write(writer, data)
    os.close(writer)
    return reader


@pytest.mark.fault("H1")
@pytest.mark.parametrize("kind", DAEMONS)
@pytest.mark.parametrize("levels", [MAX_NESTING, MAX_NESTING + 1, 253, 254, 256, 1024, 5000])
async def test_json_of_any_nesting_reaches_a_log_daemon(daemon, kind, levels):
    nested = b'{"a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"
    with trio.fail_after(deadline(10)):
        async with open_journal(output_of(kind, daemon)) as journal:
            await capture(full_pipe(nested + b"\nafter\n"), journal, LABELS, "stdout", parse_json=True)
            first, second = daemon.recv(100_000), daemon.recv(100_000)
    assert message_of(kind, first) == nested
    assert message_of(kind, second) == b"after"


@pytest.mark.fault("H1")
@pytest.mark.parametrize(("levels", "is_object"), [(MAX_NESTING, True), (MAX_NESTING + 1, False)])
async def test_records_are_nested_no_deeper_than_readers_accept(tmp_path, levels, is_object):
    nested = b'{"a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"
    async with open_journal(str(tmp_path / "log")) as journal:
        await capture(full_pipe(nested + b"\n"), journal, LABELS, "stdout", parse_json=True)
    (found,) = records((tmp_path / "log").read_bytes())
    assert found.get("fields") == (json.loads(nested) if is_object else None)
    assert found["message"] == ("" if is_object else nested.decode())


@pytest.mark.fault("H1")
@pytest.mark.parametrize("kind", DAEMONS)
@pytest.mark.parametrize("line", [b"no JSON", b"[1]", b'{"level": "info"}', b'{"event":1,"level":[]}'])
def test_a_record_that_cannot_be_converted_is_sent_as_its_text(daemon, kind, line):
    target = DAEMONS[kind](daemon.getsockname())
    try:
        assert target.write(line + b"\n") == len(line) + 1
    finally:
        target.close()
    data = daemon.recv(1000)
    assert (entry_of(data)["MESSAGE"] if kind == "journald" else data.rpartition(b" - ")[2]) == line


@pytest.mark.fault("H1")
@pytest.mark.parametrize("error", [RecursionError("too deep"), TypeError("a defect"), MemoryError()], ids=repr)
async def test_lines_that_a_format_fails_at_cost_only_their_own_records(tmp_path, monkeypatch, error):
    def fail_at_bad(line):
        if line == b"bad":
            raise error

    monkeypatch.setattr(record, "decode_object", fail_at_bad)
    reports, taken, consumed = [], [], ConditionVariable()

    def count(size, _lines):
        taken.append(size)
        consumed.notify()

    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with trio.fail_after(deadline(10)):
        async with open_journal(str(tmp_path / "log")) as journal, trio.open_nursery() as nursery:
            route = OutputRoute(journal, parse_json=True)
            failing = Capture(Pipe(reader), route, LABELS, "stdout", count, report=reporter(reports))
            nursery.start_soon(failing.run)
            for number, chunk in enumerate((b"before\n", b"bad\n", b"after\n"), 1):
                os.write(writer, chunk)
                await consumed.wait_for(lambda number=number: len(taken) == number)
            os.close(writer)
    found = [r.get("message", r.get("dropped")) for r in records((tmp_path / "log").read_bytes())]
    assert found == ["before", 1, "after"]
    assert failing.dropped == 1
    ((level, event, fields),) = reports
    assert (level, event) == ("error", "output not recorded")
    assert "latest lines are missing" in fields["message"]
    assert type(error).__name__ in fields["exception"]


@pytest.mark.fault("H1")
async def test_a_capture_that_fails_reads_on_so_that_its_program_is_not_blocked(tmp_path, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(ChunkReader, "frame", fail)
    reports = []
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with trio.fail_after(deadline(10)):
        async with open_journal(str(tmp_path / "log")) as journal, trio.open_nursery() as nursery:
            nursery.start_soon(
                Capture(Pipe(reader), OutputRoute(journal), LABELS, "stdout", report=reporter(reports)).run
            )
            await trio.to_thread.run_sync(os.write, writer, b"x" * 1_000_000)
            os.close(writer)
    ((level, event, fields),) = reports
    assert (level, event) == ("error", "output not recorded")
    assert (
        fields["message"] == "cannot record stdout: ZeroDivisionError: a defect; the rest of this output is discarded"
    )
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reader)
