"""The journal on real outputs: pipes, terminals, sockets, files, with readers that stop, die and come back."""

import fcntl
import itertools
import os
import socket
import stat
import sys
import textwrap
import threading

import attrs
import pytest
import trio

from nsupervisor.logs import LogFile, Rotation, open_journal
from tests.logs.records import LABELS, check_numbers, read_all, read_some, records
from tests.needs import needs
from tests.timing import deadline

SMALL = 64 * 1024


def number(journal, first, last):
    for value in range(first, last):
        journal.record_line(LABELS, "stdout", b"%d" % value)


@pytest.fixture
def pipe():
    """A blocking pipe, as a shell makes one; a test may close what it likes."""
    ends = os.pipe()
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError:
            pass


# ---- what is written


async def test_service_events_and_output_share_the_stream(pipe):
    reader, writer = pipe
    async with open_journal(writer, level="info") as journal:
        journal.log.info("started", **LABELS)
        journal.log.debug("not shown")
        journal.record_line(LABELS, "stdout", b"hello")
        journal.record_line({**LABELS, "instance": 2}, "stderr", b"\xff", partial=True)
        journal.log.bind(workload="web").warning("warning", message="hot")
    os.close(writer)
    found = records(await read_all(reader))
    assert [record["event"] for record in found] == ["started", "output", "output", "warning"]
    assert list(found[0]) == ["timestamp", "level", "event", "workload", "generation", "pid"]
    assert found[2].items() >= {"instance": 2, "stream": "stderr", "message": "\ufffd", "partial": True}.items()
    assert found[3].items() >= {"level": "warning", "workload": "web", "message": "hot"}.items()


async def test_exceptions_are_recorded_as_text(pipe):
    reader, writer = pipe
    async with open_journal(writer) as journal:
        try:
            raise ExceptionGroup("two", [ValueError("one"), KeyError("other")])
        except ExceptionGroup:
            journal.log.exception("failed", workload="web")
    os.close(writer)
    (record,) = records(await read_all(reader))
    assert (record["level"], record["event"]) == ("error", "failed")
    assert "ValueError: one" in record["exception"]
    assert "KeyError: 'other'" in record["exception"]
    assert "exc_info" not in record


async def test_the_level_is_for_the_service_not_for_workloads(pipe):
    reader, writer = pipe
    async with open_journal(writer, level="error") as journal:
        journal.log.warning("not shown")
        journal.record_line(LABELS, "stdout", b"shown")
    os.close(writer)
    assert [record["event"] for record in records(await read_all(reader))] == ["output"]


async def test_two_journals_do_not_know_each_other(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    async with open_journal(str(one), level="debug") as first, open_journal(str(two), level="error") as second:
        first.log.debug("to one")
        second.log.debug("to none")
        second.log.error("to two")
    for path, event in ((one, "to one"), (two, "to two")):
        assert [record["event"] for record in records(path.read_bytes())] == [event]


@pytest.mark.parametrize(("keyword", "value"), [("format", "xml"), ("level", "loud")])
async def test_unknown_settings_are_refused(keyword, value):
    with pytest.raises(ValueError, match=value):
        async with open_journal("stdout", **{keyword: value}):
            pass


async def test_an_exception_of_the_block_passes_as_it_is_and_after_the_last_record(pipe):
    reader, writer = pipe

    async def fail():
        async with open_journal(writer) as journal:
            journal.log.error("last words")
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    os.close(writer)
    assert [record["event"] for record in records(await read_all(reader))] == ["last words"]


async def test_a_cancelled_block_still_gets_its_last_records_out(pipe):
    reader, writer = pipe
    with trio.CancelScope() as scope:
        async with open_journal(writer) as journal:
            scope.cancel()
            journal.log.info("last words")
            await trio.sleep_forever()
    assert scope.cancelled_caught
    os.close(writer)
    assert [record["event"] for record in records(await read_all(reader))] == ["last words"]


# ---- where it is written


@pytest.mark.parametrize("kind", ["pipe", "terminal", "socket"])
async def test_somebody_elses_output_stays_blocking(kind):
    # A shell and its other children share it: O_NONBLOCK would make them fail.
    ends = [end.detach() for end in socket.socketpair()] if kind == "socket" else None
    reader, writer = ends or (os.pipe() if kind == "pipe" else os.openpty())
    try:
        async with open_journal(writer) as journal:
            number(journal, 0, 3)
            found = b""
            with trio.fail_after(deadline(5)):
                while found.count(b"\n") < 3:
                    found += await read_some(reader)
            assert not fcntl.fcntl(writer, fcntl.F_GETFL) & os.O_NONBLOCK
        assert check_numbers(records(found.replace(b"\r\n", b"\n")), 3) == 0
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("kind", ["terminal", "socket"])
async def test_a_slow_terminal_or_socket_gets_whole_records_in_order(kind):
    reader, writer = os.openpty() if kind == "terminal" else [end.detach() for end in socket.socketpair()]
    found = b""
    try:
        async with open_journal(writer, buffer_size=10 * SMALL) as journal:
            number(journal, 0, 4000)
            while not found.endswith(b'"3999"}\n'):
                with trio.fail_after(deadline(5)):
                    found += (await read_some(reader, 4096)).replace(b"\r\n", b"\n")
            assert journal.dropped == 0
        assert check_numbers(records(found), 4000) == 0
    finally:
        os.close(reader)
        os.close(writer)


async def test_a_datagram_socket_is_refused():
    one, two = socket.socketpair(type=socket.SOCK_DGRAM)
    with one, two, pytest.raises(OSError, match="without a byte stream"):
        async with open_journal(one.fileno()):
            pass


async def test_a_file_is_appended_to_and_not_for_everybody_to_read(tmp_path):
    path = tmp_path / "log"
    for event in ("first", "second"):
        async with open_journal(str(path)) as journal:
            journal.log.info(event)
    assert [record["event"] for record in records(path.read_bytes())] == ["first", "second"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o027 == 0


async def test_standard_output_and_error_in_one_file_do_not_overwrite_each_other(tmp_path):
    # `>file 2>&1` gives both the same offset, which a second opening of the file would not share.
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    async with open_journal(fd) as journal:
        journal.log.info("first")
    os.write(fd, b"words on standard error\n")
    async with open_journal(fd) as journal:
        journal.log.info("second")
    os.close(fd)
    first, words, second = (tmp_path / "log").read_bytes().splitlines()
    assert (b"first" in first, words, b"second" in second) == (True, b"words on standard error", True)


async def test_a_path_that_cannot_be_opened_is_told_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing/log"):
        async with open_journal(str(tmp_path / "missing" / "log")):
            pass


async def test_console_on_a_terminal_is_coloured(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    master, slave = os.openpty()
    try:
        async with open_journal(slave, format="console") as journal:
            journal.log.error("failed", **LABELS)
            with trio.fail_after(deadline(5)):
                found = await read_some(master)
        assert b"\x1b[31mfailed" in found
        assert found.endswith(b"  pid 4711\r\n")
    finally:
        os.close(master)
        os.close(slave)


# ---- slow readers


async def test_a_reader_that_stops_and_resumes_finds_whole_records_and_the_exact_count(pipe):
    reader, writer = pipe
    total = 0
    found = bytearray()
    async with open_journal(writer, buffer_size=SMALL) as journal:
        while journal.dropped < 1000:  # the pipe is full, and so is the buffer
            number(journal, total, total + 100)
            total += 100
            await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(deadline(10)):
            while len(found) < 10 * SMALL or b'"dropped"' not in found:
                found += await read_some(reader, 1000)  # tears every record
            number(journal, total, total + 10)
            while not found.endswith(b'"%d"}\n' % (total + 9)):
                found += await read_some(reader)
    seen = records(bytes(found))
    assert check_numbers(seen, total + 10) == journal.dropped
    assert [record["reason"] for record in seen if record["event"] == "dropped"] == ["the reader is too slow"]


async def test_a_gap_at_the_end_is_told_without_a_further_record(pipe):
    reader, writer = pipe
    found = bytearray()
    async with open_journal(writer, buffer_size=SMALL) as journal:
        number(journal, 0, 20_000)
        with trio.fail_after(deadline(5)):
            while b'"dropped"' not in found:
                found += await read_some(reader)
    assert check_numbers(records(bytes(found)), 20_000) == journal.dropped > 0


async def test_many_gaps_add_up(pipe):
    reader, writer = pipe
    found = bytearray()
    async with open_journal(writer, buffer_size=4096) as journal:
        for start in range(0, 60_000, 600):
            number(journal, start, start + 600)
            await trio.testing.wait_all_tasks_blocked()
            os.set_blocking(reader, False)
            found += os.read(reader, 30_000)
        with trio.fail_after(deadline(5)):
            while journal._sink._pending_bytes:
                found += await read_some(reader)
    os.close(writer)
    found += await read_all(reader)
    seen = records(bytes(found))
    assert check_numbers(seen, 60_000) == journal.dropped > 0
    assert sum(record["event"] == "dropped" for record in seen) > 10


async def test_a_record_larger_than_the_buffer_is_dropped_alone(pipe):
    reader, writer = pipe
    async with open_journal(writer, buffer_size=4096) as journal:
        journal.log.info("before")
        journal.log.info("large", text="x" * 5000)
        journal.log.info("after")
    os.close(writer)
    found = records(await read_all(reader))
    assert [record["event"] for record in found] == ["before", "dropped", "after"]
    assert found[1]["dropped"] == 1


async def test_leaving_gives_up_on_a_reader_that_does_not_read(pipe, autojump_clock):
    _, writer = pipe
    start = trio.current_time()
    async with open_journal(writer, buffer_size=1 << 22, flush_sec=3) as journal:
        number(journal, 0, 30_000)
    assert trio.current_time() - start == pytest.approx(6)  # in the first three seconds the pipe was filled


async def test_leaving_waits_for_a_reader_that_is_slow_but_reads(pipe, autojump_clock):
    """On a busy machine the last records were lost: all of them had to be read within two seconds."""
    reader, writer = pipe
    seen = bytearray()

    async def read_slowly():
        while True:
            await trio.sleep(1)
            seen.extend(os.read(reader, 200_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_slowly)
        start = trio.current_time()
        async with open_journal(writer, buffer_size=1 << 22, flush_sec=2) as journal:
            number(journal, 0, 20_000)
        assert trio.current_time() - start > 4
        nursery.cancel_scope.cancel()
    os.close(writer)
    assert check_numbers(records(bytes(seen) + await read_all(reader)), 20_000) == 0


async def test_an_idle_journal_does_not_wake(pipe, autojump_clock):
    class Count(trio.abc.Instrument):
        steps = 0

        def before_task_step(self, task):
            self.steps += "Sink.run" in task.name

    async with open_journal(pipe[1]) as journal:
        journal.log.info("hello")
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(count := Count())
        await trio.sleep(3600)
        assert count.steps == 0
        journal.log.info("hello again")
        await trio.testing.wait_all_tasks_blocked()
        assert count.steps == 1
        trio.lowlevel.remove_instrument(count)


# ---- dead readers, full disks


async def test_a_dead_reader_stops_nothing_and_the_next_one_gets_the_rest(pipe):
    reader, writer = pipe
    os.close(reader)
    async with open_journal(writer, buffer_size=SMALL, flush_sec=deadline(10)) as journal:
        number(journal, 0, 100)
        await trio.testing.wait_all_tasks_blocked()
        assert journal.error == "Broken pipe"
        number(journal, 100, 2000)
        dropped = journal.dropped
        assert dropped > 0
        reader = os.open(f"/proc/self/fd/{writer}", os.O_RDONLY)
    os.close(writer)
    seen = records(await read_all(reader))
    assert journal.error is None
    assert check_numbers(seen, 2000) == dropped
    assert [record["reason"] for record in seen if record["event"] == "dropped"] == ["Broken pipe"]


async def test_a_reader_that_dies_in_the_middle_of_a_record_leaves_no_torn_line(pipe):
    reader, writer = pipe
    async with open_journal(writer, flush_sec=deadline(10)) as journal:
        number(journal, 0, 20_000)
        await trio.testing.wait_all_tasks_blocked()  # the pipe is full
        first = os.read(reader, 100_001)
        os.close(reader)
        await trio.testing.wait_all_tasks_blocked()
        reader = os.open(f"/proc/self/fd/{writer}", os.O_RDONLY)
        async with trio.open_nursery() as nursery:
            rest = bytearray()

            async def read():
                while not rest.endswith(b'"19999"}\n'):
                    rest.extend(await read_some(reader))

            nursery.start_soon(read)
    os.close(reader)
    assert check_numbers(records(first + bytes(rest)), 20_000) == 0


async def test_a_broken_output_is_tried_again_ever_more_rarely(autojump_clock):
    full = os.open("/dev/full", os.O_WRONLY)
    attempts = []
    async with open_journal(full, flush_sec=0) as journal:
        target = journal._sink._target

        def write(data):
            attempts.append(trio.current_time())
            return target.write(data)

        journal._sink._target = attrs.evolve(target, write=write)
        journal.log.info("hello")
        await trio.sleep(100)
        assert journal.error == "No space left on device"
    os.close(full)
    pauses = [after - before for before, after in itertools.pairwise(attempts)]
    assert pauses[0] == pytest.approx(0.05)
    assert max(pauses) == pytest.approx(5)
    assert len(attempts) < 35


@needs("root", "program:unshare")
async def test_a_full_disk_that_empties(tmp_path):
    # A small file system that only the child sees.
    program = textwrap.dedent("""
        import os, sys, trio
        from nsupervisor.logs import open_journal
        from tests.logs.records import LABELS

        async def main(directory):
            with open(directory + "/filler", "wb") as filler:
                filler.write(b"x" * 900_000)
            async with open_journal(directory + "/log", buffer_size=65536, flush_sec=20) as journal:
                for number in range(5000):
                    journal.record_line(LABELS, "stdout", b"%d" % number)
                    while journal.error is None and journal._sink.pending_bytes > 30_000:
                        await trio.sleep(0.001)
                while journal.error is None:
                    await trio.sleep(0.01)
                assert journal.error == "No space left on device", journal.error
                for number in range(5000, 6000):
                    journal.record_line(LABELS, "stdout", b"%d" % number)
                os.unlink(directory + "/filler")
            with open(directory + "/log", "rb") as log:
                sys.stdout.buffer.write(log.read())

        trio.run(main, sys.argv[1])
    """)
    mount = 'mount -t tmpfs -o size=1m,mode=755 none "$1" && exec "$0" -c "$2" "$1"'
    command = ["unshare", "--mount", "sh", "-c", mount, sys.executable, str(tmp_path), program]
    with trio.fail_after(deadline(40)):
        done = await trio.run_process(command, capture_stdout=True)
    seen = records(done.stdout)
    assert check_numbers(seen, 6000) > 0
    assert {record["reason"] for record in seen if record["event"] == "dropped"} == {"No space left on device"}


async def test_a_file_whose_disk_keeps_its_writer_waiting_does_not_hold_up_the_event_loop(tmp_path):
    turns = 0
    async with open_journal(str(tmp_path / "log")) as journal:
        write, go = journal._sink._target.write, threading.Event()

        def slow(data):
            assert go.wait(deadline(20))
            return write(data)

        journal._sink._target = attrs.evolve(journal._sink._target, write=slow)
        for number in range(1000):
            journal.record_line(LABELS, "stdout", b"%d" % number)
        while turns < 100:
            turns += 1
            await trio.sleep(0.001)
        assert journal._sink.pending_bytes > 0
        go.set()
    assert check_numbers(records((tmp_path / "log").read_bytes()), 1000) == 0


# ---- named pipes


async def test_a_named_pipe_keeps_records_until_a_collector_comes(tmp_path):
    path = str(tmp_path / "stream")
    os.mkfifo(path)
    async with open_journal(path) as journal:
        journal.log.info("before anybody reads")
        await trio.testing.wait_all_tasks_blocked()
        assert journal.error is None
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        (record,) = records(await read_some(reader))
        assert record["event"] == "before anybody reads"
        os.close(reader)  # the collector restarts
        journal.log.info("meanwhile")
        await trio.testing.wait_all_tasks_blocked()
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        (record,) = records(await read_some(reader))
        assert record["event"] == "meanwhile"
    os.close(reader)


async def test_an_output_that_cannot_be_opened_again_is_written_by_a_thread(tmp_path):
    # A named pipe as standard output whose reader is gone (ENXIO); the pipe of another user (EACCES) is the same case.
    path = str(tmp_path / "stream")
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY)
    os.close(reader)
    async with open_journal(writer, flush_sec=0.1) as journal:
        assert journal._sink._target.is_blocking
        number(journal, 0, 3000)
        with trio.fail_after(deadline(5)):
            while journal.error is None:
                await trio.testing.wait_all_tasks_blocked()
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        found = b""
        with trio.fail_after(deadline(10)):
            while not found.endswith(b'"2999"}\n'):
                found += await read_some(reader)
        assert check_numbers(records(found), 3000) == 0
        number(journal, 0, 3000)  # more than the pipe takes: the thread waits, the service does not
    os.close(reader)  # frees the thread
    os.close(writer)


@pytest.mark.fault("D5")
async def test_a_removed_output_file_is_created_again_with_the_next_record(tmp_path):
    path = tmp_path / "log"
    async with open_journal(str(path)) as journal:
        journal.log.info("one")
        await journal.flush()
        path.unlink()
        journal.log.info("two")
        await journal.flush()
        path.unlink()
        journal.log.info("three")
    assert [record["event"] for record in records(path.read_bytes())] == ["three"]


@pytest.mark.fault("D5")
async def test_an_output_file_whose_directory_is_gone_is_written_when_it_is_back(tmp_path):
    path = tmp_path / "directory" / "log"
    path.parent.mkdir()
    async with open_journal(str(path)) as journal:
        journal.log.info("one")
        await journal.flush()
        path.unlink()
        path.parent.rmdir()
        journal.log.info("two")
        with trio.fail_after(deadline(10)):
            while journal.error is None:  # noqa: ASYNC110
                await trio.sleep(0.001)
        assert journal.error == "No such file or directory"
        path.parent.mkdir()
    assert [record["event"] for record in records(path.read_bytes())] == ["two"]


@pytest.mark.fault("D1")
async def test_the_log_file_of_a_workload_and_the_stream_cannot_be_one_file(tmp_path):
    async with open_journal(str(tmp_path / "log")) as journal:
        file = LogFile(tmp_path / "log", Rotation())
        with pytest.raises(OSError, match="another workload"):
            file.append(b"line\n")
        journal.log.info("one")
        await journal.reopen()
        journal.log.info("two")
    assert [record["event"] for record in records((tmp_path / "log").read_bytes())] == ["one", "two"]
    file.append(b"line\n")
    with pytest.raises(OSError, match="is the log file of a workload"):
        async with open_journal(str(tmp_path / "log")):
            pass


# ---- rotation


def stream_files(path):
    """The file and the rotated ones, oldest first."""
    return [*sorted(path.parent.glob("log.[0-9]*"), key=lambda file: -int(file.suffixes[-1][1:])), path]


@pytest.mark.fault("A15")
async def test_a_file_is_rotated_between_two_records(tmp_path):
    path = tmp_path / "log"
    async with open_journal(str(path), rotation=Rotation(max_size=10_000, max_files=1000)) as journal:
        number(journal, 0, 2000)
        await journal.flush()
        journal.set_rotation(Rotation(max_size=20_000, max_files=1000))
        number(journal, 2000, 4000)
    files = stream_files(path)
    sizes = [file.stat().st_size for file in files]
    assert len(files) > 20
    assert max(sizes) <= 20_000
    assert max(sizes) > 10_000
    assert check_numbers([record for file in files for record in records(file.read_bytes())], 4000) == 0
    assert {stat.S_IMODE(file.stat().st_mode) & 0o027 for file in files} == {0}


@pytest.mark.fault("A15")
async def test_no_more_files_than_allowed_are_kept_of_the_stream(tmp_path):
    path = tmp_path / "log"
    async with open_journal(str(path), rotation=Rotation(max_size=10_000, max_files=3)) as journal:
        number(journal, 0, 2000)
    files = stream_files(path)
    kept = [record for file in files for record in records(file.read_bytes())]
    assert [file.name for file in files] == ["log.2", "log.1", "log"]
    assert [int(record["message"]) for record in kept] == list(range(2000 - len(kept), 2000))


@pytest.mark.fault("A15")
async def test_a_record_of_which_the_disk_takes_a_part_is_completed_in_the_same_file(tmp_path, monkeypatch):
    path = tmp_path / "log"
    write, writes = os.write, []

    def write_a_part(fd, data):
        writes.append(len(data))
        return write(fd, memoryview(data)[: 70 if len(writes) < 300 else None])

    async with open_journal(str(path), rotation=Rotation(max_size=4096, max_files=1000)) as journal:
        monkeypatch.setattr("nsupervisor.logs.log_file.os.write", write_a_part)
        number(journal, 0, 1000)
        await journal.reopen()
    monkeypatch.undo()
    found = [record for file in stream_files(path) for record in records(file.read_bytes())]
    assert check_numbers(found, 1000) == 0


@pytest.mark.fault("A15")
async def test_files_of_logrotate_and_lines_of_other_programs_stay(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"words without an end")
    for old in range(1, 15):
        (tmp_path / f"log.{old}").write_bytes(b"old\n")
    async with open_journal(str(path), rotation=Rotation(max_files=5)) as journal:
        journal.log.info("one")
        await journal.flush()
        with path.open("ab") as other:
            other.write(b"words\n")
        journal.log.info("two")
    assert len(list(tmp_path.iterdir())) == 15
    first, words, two = path.read_bytes().splitlines()
    assert (first.startswith(b"words without an end{"), words, b'"two"' in two) == (True, b"words", True)
