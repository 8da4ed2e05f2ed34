import contextlib
import os
import sys
from functools import partial

import pytest
import trio

from nsupervisor.logs import Capture, OutputRoute, Pipe, Tails, open_journal
from nsupervisor.logs.chunks import MAX_LINES
from tests.logs.records import LABELS, capture, check_numbers, read_all, records
from tests.timing import deadline


@pytest.fixture
def pipe():
    """Read end non-blocking, as the keeper hands it out; write end blocking, as a workload has it."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    return reader, writer


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


async def test_lines_become_records_until_the_end_of_the_pipe(pipe, log):
    reader, writer = pipe
    async with open_journal(str(log)) as journal, trio.open_nursery() as nursery:
        nursery.start_soon(capture, reader, journal, LABELS, "stderr", 16)
        for piece in (b"hel", b"lo\r\nw", b"orld\n\n", b"a\0\xff", b"\n", b"x" * 20, b"\nlast"):
            os.write(writer, piece)
            await trio.testing.wait_all_tasks_blocked()
        os.close(writer)
    found = [(record["message"], record.get("partial", False)) for record in records(log.read_bytes())]
    assert found == [
        ("hello", False),
        ("world", False),
        ("", False),
        ("a\0\ufffd", False),
        ("x" * 16, True),
        ("xxxx", False),
        ("last", False),
    ]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reader)


async def test_a_cancelled_capture_hands_over_what_it_has_read(pipe, log):
    reader, writer = pipe
    async with open_journal(str(log)) as journal, trio.open_nursery() as nursery:
        nursery.start_soon(capture, reader, journal, LABELS, "stdout")
        os.write(writer, b"one\nbeginning of ")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    os.close(writer)
    found = [(record["message"], record.get("partial", False)) for record in records(log.read_bytes())]
    assert found == [("one", False), ("beginning of ", True)]


async def test_a_capture_cancelled_between_the_lines_of_one_chunk_loses_none(pipe, log):
    reader, writer = pipe
    os.write(writer, b"".join(b"%d\n" % number for number in range(3000)) + b"3000")
    async with open_journal(str(log)) as journal, trio.open_nursery() as nursery:
        nursery.start_soon(capture, reader, journal, LABELS, "stdout")
        nursery.cancel_scope.cancel()
    os.close(writer)
    assert check_numbers(records(log.read_bytes()), 3001) == 0


async def test_only_output_waits_for_a_tick_that_is_not_long(pipe, log, monkeypatch):
    """If thousands start or end at once, each tick is long, and a capture that finds nothing adds nothing to it."""
    reader, writer = pipe
    waits = []

    async def wait() -> None:
        waits.append(1)

    async with open_journal(str(log)) as journal, trio.open_nursery() as nursery:
        monkeypatch.setattr(journal.tick, "yield_if_long", wait)
        nursery.start_soon(capture, reader, journal, LABELS, "stdout")
        await trio.testing.wait_all_tasks_blocked()
        assert waits == []
        os.write(writer, b"one\n")
        await trio.testing.wait_all_tasks_blocked()
        assert waits == [1]
        os.close(writer)
    assert waits == [1]
    assert [record["message"] for record in records(log.read_bytes())] == ["one"]


async def test_without_a_journal_the_output_is_thrown_away_but_read(pipe):
    reader, writer = pipe
    async with trio.open_nursery() as nursery:
        nursery.start_soon(capture, reader, None, LABELS, "stdout")
        with trio.fail_after(deadline(5)):
            await trio.to_thread.run_sync(os.write, writer, b"x" * 1_000_000)
        os.close(writer)


async def test_a_workload_that_writes_without_a_pause_does_not_starve_the_others(pipe, log):
    reader, writer = pipe
    os.set_blocking(writer, False)
    quiet_reader, quiet_writer = os.pipe()
    os.set_blocking(quiet_reader, False)
    async with open_journal(str(log)) as journal, trio.open_nursery() as nursery:
        nursery.start_soon(capture, reader, journal, LABELS, "stdout")
        nursery.start_soon(capture, quiet_reader, journal, {**LABELS, "workload": "quiet"}, "stdout")
        for turn in range(50):
            try:  # keep the pipe full
                os.write(writer, b"noise\n" * 10_000)
            except BlockingIOError:
                pass
            if turn == 25:
                os.write(quiet_writer, b"hello\n")
            await trio.lowlevel.wait_writable(writer)
        os.close(writer)
        os.close(quiet_writer)
    found = records(log.read_bytes())
    (place,) = [place for place, record in enumerate(found) if record["workload"] == "quiet"]
    assert 0 < place < len(found) - 10_000


@pytest.mark.fault("D7")
async def test_a_stream_that_nothing_reads_blocks_a_workload_until_it_is_stopped(pipe, autojump_clock):
    reader, writer = pipe
    os.set_blocking(writer, False)
    unread, stream = os.pipe()
    dropped = []
    async with open_journal(stream, buffer_size=65536, flush_sec=0.1) as journal, trio.open_nursery() as nursery:
        one = Capture(Pipe(reader), OutputRoute(journal), LABELS, "stdout", on_dropped=dropped.append)
        nursery.start_soon(one.run)

        async def write_until_blocked() -> None:
            while True:
                await trio.testing.wait_all_tasks_blocked()
                try:
                    os.write(writer, b"a line\n" * 500)
                except BlockingIOError:
                    return

        await write_until_blocked()
        assert one.blockage is None  # not yet
        await trio.sleep(12)
        assert (one.blockage.seconds, one.blockage.reason) == (12, "nothing reads supervisor.log_output")
        released_at = trio.current_time()
        one.release()
        assert one.blockage is None
        while not dropped:  # noqa: ASYNC110 - a callback of another object
            await trio.sleep(0.1)
        assert trio.current_time() - released_at < 2
        before = trio.current_time()
        for _ in range(100):  # it is never blocked again
            os.write(writer, b"a line\n" * 500)
            await trio.testing.wait_all_tasks_blocked()
        assert trio.current_time() == before
        assert sum(dropped) > 49_000
        os.close(writer)
    os.close(unread)
    os.close(stream)


@pytest.mark.fault("D7")
async def test_a_workload_that_is_stopped_loses_nothing_to_a_slow_reader(pipe, autojump_clock):
    reader, writer = pipe
    os.set_blocking(writer, False)
    slow, stream = os.pipe()
    os.set_blocking(slow, False)
    found = bytearray()
    async with open_journal(stream, buffer_size=65536, flush_sec=5) as journal, trio.open_nursery() as nursery:
        one = Capture(Pipe(reader), OutputRoute(journal), LABELS, "stdout")
        one.release()

        async def read_slowly() -> None:
            while True:
                await trio.sleep(0.3)
                with contextlib.suppress(BlockingIOError):
                    found.extend(os.read(slow, 1 << 20))

        nursery.start_soon(one.run)
        nursery.start_soon(read_slowly)
        for number in range(0, 20_000, 1000):
            await trio.lowlevel.wait_writable(writer)
            view = memoryview(b"".join(b"%d\n" % line for line in range(number, number + 1000)))
            while view:
                try:
                    view = view[os.write(writer, view) :]
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(writer)
        os.close(writer)
        while found.count(b"\n") < 20_000:  # noqa: ASYNC110 - simulated time
            await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    assert check_numbers(records(bytes(found)), 20_000) == 0
    os.close(slow)
    os.close(stream)


async def test_a_reader_that_keeps_reading_misses_nothing_of_several_busy_workloads():
    # What they write in one turn of the loop is more than the pipe to the collector and the buffer hold.
    names = [f"busy{number}" for number in range(3)]
    total = 30_000
    program = f"for n in range({total}): print(n)"
    reader, writer = os.pipe()
    found = bytearray()

    async def collect():
        found.extend(await read_all(reader))

    with trio.fail_after(deadline(30)):
        async with trio.open_nursery() as collector:
            collector.start_soon(collect)
            async with open_journal(writer, buffer_size=1 << 20) as journal, trio.open_nursery() as nursery:
                for name in names:
                    out, into = os.pipe()
                    os.set_blocking(out, False)
                    await nursery.start(partial(trio.run_process, [sys.executable, "-c", program], stdout=into))
                    os.close(into)
                    nursery.start_soon(capture, out, journal, {**LABELS, "workload": name}, "stdout")
            os.close(writer)
    assert journal.dropped == 0
    every = records(bytes(found))
    for name in names:
        assert check_numbers([record for record in every if record["workload"] == name], total) == 0


async def test_a_reader_that_has_stopped_does_not_hold_up_a_workload_that_says_drop(pipe):
    out, into = pipe
    reader, writer = os.pipe()
    start = trio.current_time()
    async with open_journal(writer, buffer_size=1 << 20, flush_sec=0) as journal, trio.open_nursery() as nursery:
        nursery.start_soon(partial(capture, blocks=False), out, journal, LABELS, "stdout")
        for _ in range(100):
            await trio.to_thread.run_sync(os.write, into, b"hello\n" * 10_000)
        os.close(into)
    assert journal.dropped > 900_000
    # It waited at most once for each chunk that fits into half of the buffer.
    assert trio.current_time() - start < deadline(10)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("parse_json", [False, True])
async def test_of_lines_that_are_dropped_the_latest_are_kept(pipe, tmp_path, parse_json):
    out, into = pipe
    reader, writer = os.pipe()
    tails = Tails(tmp_path / "tails")
    async with open_journal(writer, buffer_size=1 << 16, flush_sec=0) as journal, trio.open_nursery() as nursery:
        route = OutputRoute(journal, blocks=False, parse_json=parse_json, tail=tails.get("web", 1 << 16))
        nursery.start_soon(Capture(Pipe(out), route, LABELS, "stdout").run)
        for first in range(0, 50_000, 1000):
            text = b"".join(b"%d\n" % number for number in range(first, first + 1000))
            await trio.to_thread.run_sync(os.write, into, text)
        os.close(into)
    assert journal.dropped > 10_000
    found = records(b"".join(tails.read("web")))
    lines = [int(record["message"]) for record in found if record["event"] == "output"]
    assert lines[-1] == 49_999
    assert lines == [record["seq"] for record in found if record["event"] == "output"]
    # Between the records, a gap is told.
    first = next(number for number, record in enumerate(found) if record["event"] == "output")
    expected = lines[0]
    for record in found[first:]:
        if record["event"] == "dropped":
            expected += record["dropped"]
        else:
            assert int(record["message"]) == expected
            expected += 1
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("data", [b"\n" * 60_000, b"\n" * 8_000 + b"x" * 50_000, b"\r\n" * 20_000, b"x" * 60_000])
async def test_the_event_loop_makes_a_bounded_number_of_records_in_a_turn(pipe, log, data):
    out, into = pipe
    os.write(into, data)
    os.close(into)
    turn, taken = 0, {}

    async def turns():
        nonlocal turn
        while True:
            turn += 1
            await trio.lowlevel.checkpoint()

    async with open_journal(str(log)) as journal, trio.open_nursery() as nursery:
        deliver = journal.deliver

        async def counted(records, count, **more):
            taken[turn] = taken.get(turn, 0) + count
            assert count <= MAX_LINES
            assert len(records) < 300 * count + len(data)
            await deliver(records, count, **more)

        journal.deliver = counted
        nursery.start_soon(turns)
        await capture(out, journal, LABELS, "stdout")
        nursery.cancel_scope.cancel()
    assert sum(taken.values()) == len(records(log.read_bytes())) >= 4
    # Of the tasks that can run in one turn none runs twice, but the order is random: two chunks may see one number.
    assert max(taken.values()) <= 2 * MAX_LINES
