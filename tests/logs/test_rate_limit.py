"""How much output is recorded in a second, by a clock of the test."""

import os

import pytest
import trio

from nsupervisor.logs import Capture, LogFile, OutputRoute, Pipe, RateLimiter, Rotation, Tails, open_journal
from tests.logs.records import LABELS, check_numbers, records
from tests.timing import deadline

pytestmark = pytest.mark.fault("A15")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def take(limiter: RateLimiter, data: bytes) -> bytes:
    """Let a limiter decide on data, and count what it allows; return that."""
    taken = data[: limiter.allowed_length(data)]
    limiter.charge(len(taken), taken.count(b"\n"))
    return taken


def test_lines_above_the_limit_wait_for_the_next_second() -> None:
    clock = Clock()
    limiter = RateLimiter(None, 3, clock)
    assert take(limiter, b"1\n2\n") == b"1\n2\n"
    assert take(limiter, b"3\n4\n5\n") == b"3\n"
    assert take(limiter, b"4\n5\n") == b""
    clock.now += 0.75
    assert take(limiter, b"6\n") == b""
    assert limiter.remaining_sec == 0.25
    clock.now += 0.25
    assert take(limiter, b"7\n") == b"7\n"
    limiter.configure(None, 1)
    assert take(limiter, b"8\n") == b""


def test_bytes_are_limited_at_the_ends_of_lines() -> None:
    clock = Clock()
    limiter = RateLimiter(10, None, clock)
    assert take(limiter, b"1234\n123\n5678\n") == b"1234\n123\n"
    assert take(limiter, b"5678\n") == b""
    clock.now += 1
    assert take(limiter, b"longer than the limit\nnext\n") == b"longer than the limit\n"
    assert take(limiter, b"next\n") == b""
    clock.now += 1
    assert take(limiter, b"\0" * 100) == b"\0" * 100  # a line without an end
    assert take(limiter, b"\0") == b""


def test_both_limits_count() -> None:
    limiter = RateLimiter(6, 2, Clock())
    assert take(limiter, b"12\n34\n56\n") == b"12\n34\n"
    assert take(limiter, b"x") == b""


class Flood:
    """A capture of a program that writes numbered lines."""

    def __init__(self, route: OutputRoute) -> None:
        reader, self.writer = os.pipe()
        os.set_blocking(reader, False)
        self.pipe = Pipe(reader)
        self.dropped: list[int] = []
        self.limited: list[int] = []
        self.reports: list[dict] = []
        self.capture = Capture(
            self.pipe,
            route,
            LABELS,
            "stdout",
            report=lambda level, event, **fields: self.reports.append({"level": level, "event": event, **fields}),
            on_dropped=self.dropped.append,
            on_limited=self.limited.append,
        )

    async def write(self, numbers: range) -> None:
        """Write lines, and wait until the capture has taken them."""
        data = b"".join(b"%d\n" % number for number in numbers)
        await trio.to_thread.run_sync(os.write, self.writer, data)
        while self.pipe.available_bytes():  # noqa: ASYNC110 - the capture may be a thread
            await trio.sleep(0.001)


@pytest.mark.parametrize("where", ["journal", "file", "both", "raw", "both raw"])
async def test_lines_above_the_limit_are_dropped_and_counted_at_their_place(tmp_path, where):
    clock, path, tails = Clock(), tmp_path / "web.log", Tails(tmp_path / "tails")
    file = LogFile(path, Rotation(), records="raw" not in where) if where != "journal" else None
    with trio.fail_after(deadline(20)):
        async with open_journal(str(tmp_path / "stream")) as journal:
            route = OutputRoute(
                journal if where in ("journal", "both", "both raw") else None,
                file,
                is_raw="raw" in where,
                tail=tails.get("web", 1 << 20) if where == "journal" else None,
                limiter=RateLimiter(None, 1000, clock),
            )
            flood = Flood(route)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood.capture.run)
                await flood.write(range(5000))
                assert sum(flood.dropped) == 4000
                clock.now += 1
                await flood.write(range(5000, 7000))
                os.close(flood.writer)
    lost = sum(flood.dropped)
    assert lost == 5000
    assert sum(flood.limited) == len("".join(f"{n}\n" for n in [*range(1000, 5000), *range(6000, 7000)]))
    assert {report["event"] for report in flood.reports} == {"rate limit"}
    assert sum(report["lines"] for report in flood.reports) == lost
    assert sum(report["bytes"] for report in flood.reports) == sum(flood.limited)
    kept = [*range(1000), *range(5000, 6000)]
    streams = [path.read_bytes()] if where in ("file", "both") else []
    if where in ("journal", "both", "both raw"):
        streams.append((tmp_path / "stream").read_bytes())
    if where == "journal":
        streams.append(b"".join(tails.read("web")))
    for stream in streams:
        found = records(stream)
        assert check_numbers(found, 7000) == lost
        gaps = [record for record in found if record["event"] == "dropped"]
        assert [gap["dropped"] for gap in gaps] == [4000, 1000]
        assert {gap["reason"] for gap in gaps} == {"the rate limit"}
        assert [record["seq"] for record in found if record["event"] == "output"] == kept
    if "raw" in where:
        assert path.read_bytes() == b"".join(b"%d\n" % number for number in kept)


@pytest.mark.parametrize("where", ["journal", "file"])
async def test_what_was_dropped_is_recorded_without_further_output(tmp_path, where):
    clock, path = Clock(), tmp_path / where
    with trio.fail_after(deadline(20)):
        async with open_journal(str(tmp_path / "journal")) as journal, trio.open_nursery() as nursery:
            limiter = RateLimiter(None, 10, clock)
            route = OutputRoute(journal, limiter=limiter) if where == "journal" else None
            flood = Flood(route or OutputRoute(file=LogFile(path, Rotation()), limiter=limiter))
            nursery.start_soon(flood.capture.run)
            await flood.write(range(100))
            clock.now += 1
            while not path.exists() or b'"dropped"' not in path.read_bytes():  # noqa: ASYNC110 - another task or thread
                await trio.sleep(0.01)
            os.close(flood.writer)
    (gap,) = [record for record in records(path.read_bytes()) if record["event"] == "dropped"]
    assert (gap["dropped"], gap["stream"]) == (90, "stdout")


async def test_people_get_one_report_a_minute(autojump_clock):
    clock = Clock()
    # A device, which no thread writes: simulated time does not wait for threads.
    async with open_journal("/dev/null") as journal, trio.open_nursery() as nursery:
        flood = Flood(OutputRoute(journal, limiter=RateLimiter(None, 10, clock)))
        nursery.start_soon(flood.capture.run)
        for second in range(120):
            os.write(flood.writer, b"line\n" * 20)
            await trio.sleep(1)
            clock.now += 1
            assert len(flood.reports) == 1 + second // 60
        os.close(flood.writer)
    assert [report["lines"] for report in flood.reports] == [10, 590, 600]


async def test_without_a_limit_nothing_is_dropped(tmp_path):
    with trio.fail_after(deadline(20)):
        async with open_journal(str(tmp_path / "stream")) as journal, trio.open_nursery() as nursery:
            flood = Flood(OutputRoute(journal))
            nursery.start_soon(flood.capture.run)
            await flood.write(range(5000))
            os.close(flood.writer)
    assert check_numbers(records((tmp_path / "stream").read_bytes()), 5000) == 0
    assert not flood.dropped
