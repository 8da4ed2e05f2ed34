"""Output that goes to a workload's own file, through a real pipe."""

import contextlib
import itertools
import json
import os
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import trio

from nsupervisor.logs import Capture, LineSequence, LogFile, OutputRoute, Pipe, Rotation, open_journal
from nsupervisor.logs.capture import COALESCE_DELAY_S
from tests.logs.records import LABELS, records
from tests.needs import ROOT, needs
from tests.timing import deadline


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    return reader, writer


def file(tmp_path, **rotation):
    return LogFile(tmp_path / "web.log", Rotation(**rotation))


async def write_all(fd, data):
    """As a workload does, which waits."""
    view = memoryview(data)
    while view:
        view = view[await trio.to_thread.run_sync(os.write, fd, view) :]


async def through(data, route, pieces=65536, **more):
    """Send data through a capture, and wait for its end."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    capture = Capture(Pipe(reader), route, LABELS, "stdout", **more)
    with trio.fail_after(deadline(60)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(capture.run)
            for at in range(0, len(data), pieces):
                await write_all(writer, data[at : at + pieces])
            os.close(writer)
    return capture


HARD = [
    b"plain\n" * 10_000,
    b"",
    b"\n" * 3000,
    b"no end",
    b"nul\0nul\n\xff\xfe\xc3(\n",
    b'percent %d %s\nquote " back \\ slash \\n\ntab\t\x7fdel\n',
    "größer 日本 🙂\n".encode() * 500,
    b"dos\r\nline\r\n\rmac\r\r\n",
    b"x" * 3_000_000 + b"\nafter\n",
]


@pytest.mark.parametrize("data", HARD, ids=range(len(HARD)))
@pytest.mark.parametrize("where", ["file", "both", "raw", "both raw", "journal"])
async def test_what_a_program_writes_is_there_byte_for_byte(tmp_path, data, where):
    log = file(tmp_path)
    async with open_journal(str(tmp_path / "journal")) as journal:
        route = OutputRoute(
            journal if where in ("both", "both raw", "journal") else None,
            log if where != "journal" else None,
            is_raw="raw" in where,
        )
        await through(data, route)
    text = data.decode("utf-8", "replace").replace("\r\n", "\n")
    kept = []
    if where == "raw" and data:
        assert (tmp_path / "web.log").read_bytes() == data
    if where in ("file", "both") and data:
        kept.append((tmp_path / "web.log").read_bytes())
    if where in ("both", "both raw", "journal"):
        kept.append((tmp_path / "journal").read_bytes())
    for stream in kept:
        found = records(stream)
        assert [record["seq"] for record in found] == list(range(len(found)))
        said = "".join(record["message"] + ("" if record.get("partial") else "\n") for record in found)
        assert said in (text, text + "\n")
    assert len(set(kept)) <= 1 or where == "both raw"


async def test_one_byte_a_write_and_ten_thousand_lines_in_one(tmp_path):
    log = file(tmp_path)
    text = b"".join(b"line %d\n" % number for number in range(300))
    await through(text, OutputRoute(file=log), pieces=1)
    many = b"".join(b"line %d\n" % number for number in range(300, 10_300))
    await through(many, OutputRoute(file=log), pieces=len(many))
    found = records((tmp_path / "web.log").read_bytes())
    assert [record["message"] for record in found] == [f"line {number}" for number in range(10_300)]


async def test_both_streams_and_two_generations_share_the_file_and_number_for_themselves(tmp_path):
    log, sequence = file(tmp_path, max_size=1 << 30), LineSequence()
    program = [sys.executable, "-c", "for n in range(20000): print(n)"]
    with trio.fail_after(deadline(60)):
        async with trio.open_nursery() as nursery:
            for stream, numbers in (("stdout", sequence), ("stderr", LineSequence()), ("stdout", sequence)):
                reader, writer = os.pipe()
                os.set_blocking(reader, False)
                capture = Capture(Pipe(reader), OutputRoute(file=log), LABELS, stream, sequence=numbers)
                nursery.start_soon(capture.run)
                await nursery.start(partial(trio.run_process, program, stdout=writer))
                os.close(writer)
    found = records((tmp_path / "web.log").read_bytes())
    for stream, count in (("stdout", 40_000), ("stderr", 20_000)):
        assert [record["seq"] for record in found if record["stream"] == stream] == list(range(count))


async def test_lines_that_are_json_objects_keep_their_fields(tmp_path):
    lines = [
        b'{"msg":"hi","n":12345678901234567890123,"nested":{"a":[1.50]}}',
        b'  {"message":"own words","level":"warn"} ',
        b'{"message":5}',
        b'{"broken":',
        b"[1,2]",
        b'{"bad":"\xff"}',
        b"text",
    ]
    await through(b"\n".join(lines) + b"\n", OutputRoute(file=file(tmp_path), parse_json=True))
    stream = (tmp_path / "web.log").read_bytes()
    assert b'"fields":{"msg":"hi","n":12345678901234567890123,"nested":{"a":[1.50]}}}' in stream  # as it was written
    found = records(stream)
    assert [record["message"] for record in found[:3]] == ["hi", "own words", ""]
    assert found[1]["fields"] == {"message": "own words", "level": "warn"}
    assert [record["message"] for record in found[3:]] == [line.decode("utf-8", "replace") for line in lines[3:]]
    assert not any("fields" in record for record in found[3:])


@needs("root", "program:unshare")
@pytest.mark.parametrize("form", ["json", "raw"])
@pytest.mark.parametrize("mode", ["block", "drop"])
@pytest.mark.parametrize("disk", ["full", "read-only"])
async def test_a_full_disk_is_survived_and_what_is_lost_is_counted_exactly(tmp_path, mode, form, disk):
    """A minute of it: NSUPERVISOR_TEST_FULL_DISK=60."""
    seconds = os.environ.get("NSUPERVISOR_TEST_FULL_DISK", "0.3")
    script = 'mount -t tmpfs -o size=64m,mode=755 none "$1" && exec "$0" -m tests.logs.full_disk "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, sys.executable, str(tmp_path), mode, form, seconds, disk]
    with trio.fail_after(deadline(40) + 2 * float(seconds)):
        done = await trio.run_process(command, capture_stdout=True, cwd=ROOT)
    found = json.loads(done.stdout)
    print(found)
    assert found["kept"] + found["dropped"] == found["written"]
    assert (found["dropped"] == 0) == (mode == "block")
    (failed, first), (works, last) = found["said"]
    assert (failed, works) == ("error", "warning")
    assert {"full": "No space left on device", "read-only": "Read-only file system"}[disk] in first["message"]
    assert last["lines"] == found["dropped"]
    if mode == "drop":  # a workload was held up for two seconds whenever its pipe was empty while there was a gap
        assert found["written"] >= 100_100 + 1000 * float(seconds)


@pytest.mark.fault("D7")
@needs("root", "program:unshare")
@pytest.mark.parametrize("form", ["json", "raw"])
async def test_a_workload_that_is_stopped_does_not_wait_for_a_full_disk(tmp_path, form):
    script = 'mount -t tmpfs -o size=64m,mode=755 none "$1" && exec "$0" -m tests.logs.full_disk "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, sys.executable, str(tmp_path), "stop", form, "0", "full"]
    with trio.fail_after(deadline(40)):
        done = await trio.run_process(command, capture_stdout=True, cwd=ROOT)
    found = json.loads(done.stdout)
    assert found["kept"] + found["dropped"] == found["written"]
    assert found["dropped"] > 0
    assert found["reason"] == f"no space on {tmp_path}/web.log"
    (failed, first), (ended, last) = found["said"]
    assert (failed, first["message"]) == (
        "error",
        f"cannot write {tmp_path}/web.log: No space left on device; the workload waits once its pipe is full",
    )
    assert (ended, last["lines"]) == ("warning", found["dropped"])
    assert (
        last["message"]
        == f"{last['lines']} lines were dropped: cannot write {tmp_path}/web.log: No space left on device"
    )


def test_output_is_let_gather_but_not_until_a_fast_writer_waits(tmp_path, pipe, monkeypatch):
    reader, writer = pipe
    os.set_blocking(writer, False)
    capture = Capture(Pipe(reader), OutputRoute(file=file(tmp_path), is_raw=True), LABELS, "stdout")
    naps = []

    def gather(seconds):
        naps.append(seconds)
        if len(naps) == 8:
            return
        line = b"x" * 99 + b"\n"
        with contextlib.suppress(BlockingIOError):
            while len(naps) <= 6 or capture.pipe.available_bytes() < 100_000:  # first as much as there is room for
                os.write(writer, line)

    monkeypatch.setattr("nsupervisor.logs.capture.time", SimpleNamespace(monotonic=lambda: 0.0, sleep=gather))
    os.write(writer, b"x" * 60_000)
    assert capture._record_for_a_while() == "empty"
    os.close(writer)
    capture.pipe.close()
    shorter = [COALESCE_DELAY_S / 2**number for number in range(5)]
    assert naps == [*shorter, COALESCE_DELAY_S / 16, COALESCE_DELAY_S / 16, COALESCE_DELAY_S / 8]


@pytest.mark.parametrize("form", ["raw", "json"])
def test_a_workload_that_always_has_one_more_line_is_not_followed_line_by_line(tmp_path, pipe, monkeypatch, form):
    """Each was taken as soon as it was there: ten times the processor time, and the workload waited for the pipe."""
    reader, writer = pipe
    capture = Capture(Pipe(reader), OutputRoute(file=file(tmp_path), is_raw=form == "raw"), LABELS, "stdout")
    steps, naps = 0, []
    step = getattr(capture, "_record_raw_step" if form == "raw" else "_record_step")

    def one_more():
        nonlocal steps
        steps += 1
        moved = step()
        os.write(writer, b"x" * 99 + b"\n")
        return moved

    def gather(_seconds):
        naps.append(steps)
        os.write(writer, (b"x" * 99 + b"\n") * 2000)
        capture._is_stopping = len(naps) == 5

    monkeypatch.setattr(Capture, "_record_raw_step" if form == "raw" else "_record_step", lambda _self: one_more())
    monkeypatch.setattr("nsupervisor.logs.capture.time", SimpleNamespace(monotonic=lambda: 0.0, sleep=gather))
    os.write(writer, b"\n")
    assert capture._record_for_a_while() == "more"
    os.close(writer)
    capture.pipe.close()
    assert naps[0] < 60
    assert all(later - earlier <= 5 for earlier, later in itertools.pairwise(naps))


async def test_the_pipe_of_a_busy_workload_does_not_wake_the_loop_with_each_line(tmp_path, pipe, monkeypatch):
    """epoll(7) is told of each write to a pipe that it watches, even when nobody waits for it."""
    reader, writer = pipe
    os.set_blocking(writer, False)
    closing = []
    monkeypatch.setattr(trio.lowlevel, "notify_closing", closing.append)
    monkeypatch.setattr("nsupervisor.logs.capture.MAX_THREAD_TIME_S", 0.01)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Capture(Pipe(reader), OutputRoute(file=file(tmp_path), is_raw=True), LABELS, "stdout").run)
        with trio.fail_after(deadline(5)):
            while not closing:
                with contextlib.suppress(BlockingIOError):
                    os.write(writer, b"x" * 8000)
                await trio.sleep(0.0005)
        os.close(writer)
    assert closing[0] == reader
