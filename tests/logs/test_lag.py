"""Whatever the outputs do, the event loop goes on; shown by who does what, not by the time that it takes."""

import contextlib
import os
import threading
from types import SimpleNamespace

import pytest
import trio

from nsupervisor.logs import Capture, LogFile, OutputRoute, Pipe, Rotation, open_journal
from nsupervisor.logs import collector as collector_module
from nsupervisor.logs.fairness import LONG_TICK_S
from nsupervisor.logs.record import JsonFormat
from tests.logs.records import LABELS
from tests.timing import deadline


class Watched:
    """A module of which functions are called, and by which threads."""

    def __init__(self, module, before=lambda _name: None):
        self._module, self._before, self.calls = module, before, set()

    def __getattr__(self, name):
        found = getattr(self._module, name)
        if not callable(found) or isinstance(found, type):
            return found

        def call(*arguments, **more):
            self.calls.add((name, threading.get_ident()))
            self._before(name)
            return found(*arguments, **more)

        return call


def a_pipe():
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    return Pipe(reader), writer


@pytest.mark.parametrize("form", ["raw", "json"])
async def test_no_file_of_a_workload_is_touched_by_the_event_loop(tmp_path, monkeypatch, form):
    watched = Watched(os)
    monkeypatch.setattr("nsupervisor.logs.log_file.os", watched)
    monkeypatch.setattr("nsupervisor.linux.trusted_paths.os", watched)
    log = LogFile(tmp_path / "web.log", Rotation(max_size=10_000, max_files=2), records=form == "json")
    pipe, writer = a_pipe()
    os.write(writer, b"some line\n" * 3000 + b"the last one")
    os.close(writer)
    await Capture(pipe, OutputRoute(file=log, is_raw=form == "raw"), LABELS, "stdout").run()
    names = {name for name, _ in watched.calls}
    assert {"open", "rename", "unlink", "close"} < names
    assert not {name for name, thread in watched.calls if thread == threading.get_ident()}
    log.close()


@pytest.mark.parametrize("which", ["workload", "stream"])
async def test_the_loop_goes_on_while_a_disk_holds_up_a_write(tmp_path, monkeypatch, which):
    held, go = threading.Event(), threading.Event()

    def hold(name):
        if name == "write":
            held.set()
            assert go.wait(deadline(10)), "the event loop was held up"

    monkeypatch.setattr("nsupervisor.logs.log_file.os", Watched(os, hold))
    pipe, writer = a_pipe()
    os.write(writer, b"a line\n")
    async with open_journal(str(tmp_path / "stream")) as journal:
        route = (
            OutputRoute(journal) if which == "stream" else OutputRoute(file=LogFile(tmp_path / "web.log", Rotation()))
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Capture(pipe, route, LABELS, "stdout").run)
            with trio.fail_after(deadline(10)):
                while not held.is_set():  # noqa: ASYNC110 - it is set by a thread
                    await trio.sleep(0.001)
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            go.set()
            os.close(writer)
    assert b'"a line"' in (tmp_path / ("stream" if which == "stream" else "web.log")).read_bytes()


async def test_a_stream_is_made_anew_by_a_thread(tmp_path, monkeypatch):
    async with open_journal(str(tmp_path / "stream")) as journal:
        watched = Watched(os)
        monkeypatch.setattr("nsupervisor.logs.log_file.os", watched)
        (tmp_path / "stream").rename(tmp_path / "old")
        await journal.reopen()
        journal.log.info("new")
    opened = {thread for name, thread in watched.calls if name in ("open", "fstat")}
    assert opened
    assert threading.get_ident() not in opened
    assert b'"new"' in (tmp_path / "stream").read_bytes()


async def test_records_that_are_dropped_are_not_made(monkeypatch):
    """With nobody to read the stream, busy workloads had the loop make records all the time, to count them."""
    made = 0
    whole = JsonFormat.render_text

    def counted(*arguments):
        nonlocal made
        made += 1
        return whole(*arguments)

    monkeypatch.setattr(JsonFormat, "render_text", counted)
    reader, target = os.pipe()
    pipe, writer = a_pipe()

    async def write_until_dropped(count):
        while journal.dropped < count:
            with contextlib.suppress(BlockingIOError):
                os.write(writer, b"x\n" * 100)
            await trio.sleep(0.001)

    async with open_journal(target, buffer_size=100_000, flush_sec=0.01) as journal, trio.open_nursery() as nursery:
        nursery.start_soon(Capture(pipe, OutputRoute(journal, blocks=False), LABELS, "stdout").run)
        with trio.fail_after(deadline(30)):
            await write_until_dropped(1)
            made = 0
            await write_until_dropped(3000)
        assert made == 0
        nursery.cancel_scope.cancel()
    for fd in (reader, target, writer):
        os.close(fd)


class Steps(trio.abc.Instrument):
    """Turns of the loop."""

    turn = 0

    def after_io_wait(self, timeout: float) -> None:
        self.turn += 1


async def test_busy_workloads_share_turns_of_the_loop(monkeypatch):
    """Each had its chunk in each turn: fifty of them held up everything else for as long as all of that took."""
    clock, steps = 0.0, Steps()
    trio.lowlevel.add_instrument(steps)
    by_turn = {}
    whole = JsonFormat.render_text

    def slow(*arguments):
        nonlocal clock
        clock += 0.8 * LONG_TICK_S
        by_turn[steps.turn] = by_turn.get(steps.turn, 0) + 1
        return whole(*arguments)

    monkeypatch.setattr(JsonFormat, "render_text", slow)
    monkeypatch.setattr("nsupervisor.logs.fairness.time", SimpleNamespace(monotonic=lambda: clock))
    null = os.open(os.devnull, os.O_WRONLY)
    async with open_journal(null) as journal, trio.open_nursery() as nursery:
        for _ in range(20):
            pipe, writer = a_pipe()
            os.write(writer, b"a line\n")
            os.close(writer)
            nursery.start_soon(Capture(pipe, OutputRoute(journal), LABELS, "stdout").run)
    os.close(null)
    assert sum(by_turn.values()) == 20
    assert max(by_turn.values()) == 2


async def test_a_collector_that_reads_nothing_does_not_break_the_end(monkeypatch):
    """Its pipe was closed while it was waited for; whoever got the descriptor's number next ended the service."""
    monkeypatch.setattr(collector_module, "DRAIN_TIMEOUT_S", 0.5)
    with trio.fail_after(deadline(20)):
        async with open_journal(["true"], flush_sec=0.01) as journal:
            for _ in range(20):
                journal.log.info("much", text="x" * 100_000)
            await trio.sleep(0.1)


async def test_a_collector_that_was_stopped_is_ended_at_the_end(monkeypatch, tmp_path):
    monkeypatch.setattr(collector_module, "DRAIN_TIMEOUT_S", 0.1)
    monkeypatch.setattr(collector_module, "KILL_DELAY_S", deadline(60))  # so it is not SIGKILL that ends it
    with trio.fail_after(deadline(20)):
        async with open_journal(["sh", "-c", 'kill -STOP $$; exec cat >"$0"', str(tmp_path / "out")]) as journal:
            journal.log.info("a record")
            await trio.sleep(0.1)
