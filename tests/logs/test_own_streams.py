"""Output that goes unchanged to the service's own standard output and standard error."""

import json
import os
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import trio

from nsupervisor.config.model import LogConfig
from nsupervisor.logs import OwnStreams, Tails, open_journal, open_own_streams
from nsupervisor.metrics.counters import Counters
from nsupervisor.service.instance.output import Output
from tests.logs.records import read_some
from tests.service.instance.output_context import output_context
from tests.timing import deadline

pytestmark = pytest.mark.fault("D2")
INHERIT = LogConfig(stdout="inherit", stderr="inherit")


@pytest.fixture
def own(monkeypatch):
    """Two pipes in place of the service's standard output and standard error: their numbers, and their readers."""
    readers, writers = zip(*(os.pipe() for _ in range(2)), strict=True)
    monkeypatch.setattr("nsupervisor.logs.own_streams._FDS", dict(zip(("stdout", "stderr"), writers, strict=True)))
    yield SimpleNamespace(stdout=writers[0], stderr=writers[1], readers=readers, writers=writers)
    for fd in writers:
        os.close(fd)


def pipes():
    """The pipes of a program: reading ends as the keeper hands them out, and writing ends."""
    readers, writers = zip(*(os.pipe() for _ in range(2)), strict=True)
    for fd in readers:
        os.set_blocking(fd, False)
    return readers, writers


@asynccontextmanager
async def service(tmp_path, settings=INHERIT, log_output=None, closed=(), name="web"):
    """An Output with its captures, on a journal and on the own streams, and the program's ends of its pipes."""
    (tmp_path / "tails").mkdir(exist_ok=True)
    with trio.fail_after(deadline(30)):
        async with (
            open_journal(log_output or str(tmp_path / "journal"), format="json") as journal,
            open_own_streams(journal, closed, buffer_size=1 << 17) as streams,
            trio.open_nursery() as nursery,
        ):
            tails = Tails(tmp_path / "tails")
            context = output_context(
                tmp_path, journal, nursery, tails=tails, has_records_file=True, own_streams=streams
            )
            output = Output(name, None, settings, Counters(), context)
            readers, writers = pipes()
            output.capture(1, 4711, *readers)
            yield SimpleNamespace(output=output, writers=writers, journal=journal, nursery=nursery, context=context)


def end(program):
    for fd in program.writers:
        os.close(fd)


async def read_exactly(fd: int, text: bytes) -> None:
    found = b""
    while len(found) < len(text):
        found += await read_some(fd)
    assert found == text


async def test_the_bytes_arrive_as_they_are(own, tmp_path):
    text = b'{"a":1}\r\n\0\xff\tx\r\n\n' + b"long" * 10_000 + b"\n" + b"".join(b"%d\n" % n for n in range(9000))
    async with service(tmp_path) as program:
        program.nursery.start_soon(read_exactly, own.readers[0], text)
        program.nursery.start_soon(read_exactly, own.readers[1], b"error\n")
        await trio.to_thread.run_sync(os.write, program.writers[1], b"error\n")
        await trio.to_thread.run_sync(os.write, program.writers[0], text)
        end(program)
    assert b'"output"' not in (tmp_path / "journal").read_bytes()
    assert program.output.counters.output["stdout"].bytes == len(text)


async def test_the_latest_lines_are_kept_for_the_command_logs(own, tmp_path):
    async with service(tmp_path) as program:
        os.write(program.writers[0], b"one\r\ntwo")
        end(program)
        await program.output.wait_drained()
        kept = [json.loads(line) for line in program.context.tails.read("web")]
    assert [(line["stream"], line["message"].rstrip("\r"), line["seq"]) for line in kept] == [
        ("stdout", "one", 0),
        ("stdout", "two", 1),
    ]
    assert os.read(own.readers[0], 99) == b"one\r\ntwo\n"


async def test_records_and_raw_lines_share_standard_output_without_tearing_each_other(own, tmp_path):
    os.set_blocking(own.readers[0], False)
    found = bytearray()

    async def read(number: int) -> None:
        while found.count(b"\n") < number:
            await trio.lowlevel.wait_readable(own.readers[0])
            found.extend(os.read(own.readers[0], 1000))  # less than one write, so that the pipe is full all the time

    async with service(tmp_path, log_output=own.stdout) as program:
        program.nursery.start_soon(read, 4000)
        for number in range(2000):
            program.journal.log.info("filler", number=number, text="x" * 200)
            await trio.to_thread.run_sync(os.write, program.writers[0], b"raw %d\n" % number)
        end(program)
    lines = bytes(found).splitlines()
    assert [int(line[4:]) for line in lines if line.startswith(b"raw ")] == [*range(2000)]
    assert [json.loads(line)["number"] for line in lines if not line.startswith(b"raw ")] == [*range(2000)]


async def test_both_streams_in_one_pipe_are_one_stream(own, tmp_path, monkeypatch):
    monkeypatch.setattr("nsupervisor.logs.own_streams._FDS", {"stdout": own.stdout, "stderr": own.stdout})
    async with service(tmp_path) as program:
        streams: OwnStreams = program.context.own_streams
        assert [*streams.sinks] == ["stdout"]
        end(program)


@pytest.mark.parametrize("on_full", ["block", "drop"])
async def test_a_full_standard_output_holds_up_only_programs_that_wait(own, tmp_path, on_full):
    """The service goes on, a program that waits is shown as blocked, and a stop drops what it waits for."""
    count = 12_000
    async with service(tmp_path, LogConfig(stdout="inherit", on_full=on_full)) as program:
        volume = program.output.counters.output["stdout"]
        program.nursery.start_soon(trio.to_thread.run_sync, write_all, program.writers[0], (b"x" * 99 + b"\n") * count)
        if on_full == "block":
            await until(lambda: "stdout" in program.output.blockages())
            assert program.output.blockages()["stdout"].reason == "nothing reads the standard output of the service"
            program.output.set_stopping(True)
        await until(lambda: volume.lines == count)
        assert volume.dropped_lines > 0
        end(program)
        await program.output.wait_drained()
        os.close(own.readers[0])  # so that the end does not wait for a reader


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


async def until(reached) -> None:
    while not reached():  # noqa: ASYNC110
        await trio.sleep(0.005)


async def test_a_standard_output_without_a_reader_is_reported_and_stops_no_program(own, tmp_path):
    os.close(own.readers[0])
    async with service(tmp_path) as program:
        await trio.to_thread.run_sync(write_all, program.writers[0], b"line\n" * 100_000)
        end(program)
        await program.output.wait_drained()
    journal = [json.loads(line) for line in (tmp_path / "journal").read_bytes().splitlines()]
    messages = [record["message"] for record in journal if record["event"] == "log file"]
    assert messages[0] == "cannot write the standard output of the service: Broken pipe"
    assert messages[-1].endswith("lines were lost on the standard output of the service: Broken pipe")


async def test_a_standard_output_that_was_closed_is_reported(own, tmp_path):
    async with service(tmp_path, closed={own.stdout}) as program:
        end(program)
    (record,) = [json.loads(line) for line in (tmp_path / "journal").read_bytes().splitlines()]
    assert record["message"] == "the standard output of the service is closed; what workloads write to it is lost"


async def test_a_program_that_ends_between_two_supervisors_loses_nothing(own, tmp_path):
    """The first supervisor is killed in the middle of a line; the second one writes the rest."""
    readers, writers = pipes()
    copies = [os.dup(fd) for fd in readers]
    async with service(tmp_path) as program:
        program.output.capture(2, 4712, *readers)
        os.write(writers[0], b"first\nsec")
        await until(lambda: program.output.counters.output["stdout"].bytes == 9)
        end(program)
        program.nursery.cancel_scope.cancel()
    os.write(writers[0], b"ond\n")
    for fd in writers:
        os.close(fd)
    async with service(tmp_path) as program:
        program.output.capture(2, 4712, *copies)
        end(program)
        await program.output.wait_drained()
    assert os.read(own.readers[0], 99) == b"first\nsecond\n"
