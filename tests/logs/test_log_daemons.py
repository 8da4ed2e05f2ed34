"""The stream to journald and to syslog daemons, and to a collector that is our child."""

import os
import socket
import struct
import sys

import pytest
import trio

from nsupervisor.logs import open_journal
from nsupervisor.logs.log_daemons import Journald, journal_entry, syslog_message
from tests.logs.records import LABELS, capture, check_numbers, records
from tests.logs.test_collectors import lines_of, running
from tests.needs import needs
from tests.timing import deadline

TIME = "2026-01-31T12:00:00.000000Z"
OUTPUT = {"timestamp": TIME, "level": "info", "event": "output", **LABELS, "stream": "stdout", "message": "hello"}


def entry_of(data: bytes) -> dict[str, bytes]:
    """The fields of an entry, read as the protocol says."""
    fields = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", rest[:8])
            value, rest = rest[8 : 8 + length], rest[9 + length :]
        fields[name.decode()] = value
        data = rest
    return fields


def test_an_entry_of_journald_has_each_field():
    fields = entry_of(journal_entry({**OUTPUT, "message": "a=b", "exception": "two\nlines"}))
    assert fields["MESSAGE"] == b"a=b"
    assert fields["PRIORITY"] == b"6"
    assert fields["SYSLOG_IDENTIFIER"] == b"web"
    assert fields["NSUPERVISOR_PID"] == b"4711"
    assert fields["NSUPERVISOR_EXCEPTION"] == b"two\nlines"


def test_a_message_of_syslog():
    said = syslog_message({**OUTPUT, "seq": 7}, "host")
    data = b'[nsupervisor@32473 generation="1" stream="stdout" seq="7"]'
    assert said == b"<30>1 2026-01-31T12:00:00.000000Z host web 4711 output " + data + b" hello"
    state = {"timestamp": TIME, "level": "error", "event": "not started", "cause": {"by": 'x"]'}}
    text = b'{"event":"not started","cause":{"by":"x\\"]"}}'
    assert syslog_message(state, "h") == b"<27>1 2026-01-31T12:00:00.000000Z h nsupervisor - not_started - " + text


async def test_records_reach_journald_also_large_ones_and_after_it_was_gone(tmp_path, monkeypatch):
    path = str(tmp_path / "socket")
    monkeypatch.setattr(Journald.__init__, "__defaults__", (path,))

    def listening():
        return trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    async def receive(it):
        data, ancillary, _, _ = await it.recvmsg(300_000, 100)
        if ancillary:
            (fd,) = struct.unpack("i", ancillary[0][2])
            data = os.pread(fd, 10_000_000, 0)
            os.close(fd)
        return entry_of(data)["MESSAGE"]

    with trio.fail_after(deadline(20)):
        async with open_journal("journald") as journal:
            with listening() as first:
                await first.bind(path)
                journal.record_line(LABELS, "stdout", b"one")
                journal.record_line(LABELS, "stdout", b"x" * 1_000_000)
                assert await receive(first) == b"one"
                assert await receive(first) == b"x" * 1_000_000
            os.unlink(path)
            journal.record_line(LABELS, "stdout", b"two")
            while journal.error is None:  # noqa: ASYNC110
                await trio.sleep(0.01)
            with listening() as second:
                await second.bind(path)
                assert await receive(second) == b"two"


@needs("program:rsyslogd")
async def test_rsyslog_takes_the_messages_apart(tmp_path):
    config = tmp_path / "rsyslog.conf"
    config.write_text(f"""
    global(workDirectory="{tmp_path}" maxMessageSize="64k")
    module(load="imuxsock" SysSock.Use="off")
    input(type="imuxsock" Socket="{tmp_path}/log" useSpecialParser="off" parseHostname="on" ruleset="all")
    template(name="parts" type="string"
        string="%app-name%|%procid%|%msgid%|%syslogseverity-text%|%timereported:::date-rfc3339%|%structured-data%|%msg%\\n")
    ruleset(name="all" parser="rsyslog.rfc5424") {{
        action(type="omfile" file="{tmp_path}/out" template="parts")
    }}
    """)
    command = ["rsyslogd", "-n", "-f", str(config), "-i", str(tmp_path / "pid")]
    async with running(command):
        with trio.fail_after(deadline(20)):
            while not (tmp_path / "log").exists():  # noqa: ASYNC110
                await trio.sleep(0.02)
            async with open_journal(f"syslog:{tmp_path}/log") as journal:
                journal.record_line(LABELS, "stdout", 'größer ] "'.encode())
                journal.log.warning("action", workload="web", generation=1, action="stop", cause={"by": "operator"})
        one, two = await lines_of(tmp_path / "out", 2)
    app, pid, event, level, _, data, text = one.split("|")
    assert (app, pid, event, level, text) == ("web", "4711", "output", "info", 'größer ] "')
    assert data == '[nsupervisor@32473 generation="1" stream="stdout"]'
    assert two.split("|")[:4] == ["web", "-", "action", "warning"]


READS = """
import os, sys
limit = int(sys.argv[2])
with open(sys.argv[1], "ab", buffering=0) as out:
    while limit > 0 and (data := os.read(0, min(limit, 65536))):
        out.write(data)
        limit -= len(data)
sys.exit(3 if limit <= 0 else 0)
"""


async def test_a_collector_that_ends_again_and_again_gets_every_byte(tmp_path):
    out = tmp_path / "out"
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    text = b"".join(b"%d\n" % number for number in range(20_000))

    async def write():
        view = memoryview(text)
        while view:
            view = view[await trio.to_thread.run_sync(os.write, writer, view) :]
        os.close(writer)

    with trio.fail_after(deadline(60)):
        command = [sys.executable, "-c", READS, str(out), "1000000"]
        async with open_journal(command) as journal, trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await capture(reader, journal, LABELS, "stdout")
    found = records(out.read_bytes())
    assert check_numbers([record for record in found if record["event"] != "collector ended"], 20_000) == 0
    assert any("ended with exit status 3" in r["message"] for r in found if r["event"] == "collector ended")


async def test_a_collector_that_is_not_there_is_told_at_once():
    with pytest.raises(FileNotFoundError, match="no such program"):
        async with open_journal(["/nonexistent/vector"]):
            pass


async def test_a_daemon_that_is_not_there_is_told_on_standard_error(tmp_path, capsys):
    """Nothing was said anywhere: what says everything else is what it waits for."""
    path = tmp_path / "log"
    async with open_journal(f"syslog:{path}", flush_sec=0.01) as journal:
        journal.log.info("hello")
    assert f"supervisor.log_output: there is no {path} yet; records wait for it, up to 8 MiB" in capsys.readouterr().err
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(path))
        async with open_journal(f"syslog:{path}", flush_sec=0.01):
            pass
    assert capsys.readouterr().err == ""
