"""The search for the line that says that a program is ready, through real pipes and in each destination of output."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.config.line_patterns import compile_pattern
from nsupervisor.logs import Capture, LineWatch, LogFile, OutputRoute, Pipe, RateLimiter, Rotation, open_journal
from nsupervisor.logs.line_watch import MAX_LINE_BYTES, LineSearch
from tests.logs.records import LABELS
from tests.needs import needs

pytestmark = needs("module:re2")

BEFORE = b"starting\n\xff\xfe not UTF-8\n"
LINE = b"listening on port 80\n"
AFTER = b"more\n" * 1000

ROUTES: dict[str, Callable[[Any, Any], OutputRoute]] = {
    "none": lambda journal, file: OutputRoute(None),
    "journal": lambda journal, file: OutputRoute(journal),
    "file": lambda journal, file: OutputRoute(None, file),
    "raw file": lambda journal, file: OutputRoute(None, file, is_raw=True),
    "limited raw file": lambda journal, file: OutputRoute(None, file, is_raw=True, limiter=RateLimiter(1, None)),
    "limited file": lambda journal, file: OutputRoute(None, file, limiter=RateLimiter(1, None)),
    "both": lambda journal, file: OutputRoute(journal, file),
    "both, raw": lambda journal, file: OutputRoute(journal, file, is_raw=True),
    "dropped": lambda journal, file: OutputRoute(journal, limiter=RateLimiter(1, None)),
}


@pytest.mark.parametrize("mode", ROUTES)
async def test_the_line_is_found_in_each_mode_and_stays_in_the_pipe_until_that_is_saved(
    mode: str, tmp_path: Path
) -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    watch = make_watch("listening on port [0-9]+$")
    consumed: list[int] = []
    async with open_journal(str(tmp_path / "log")) as journal, trio.open_nursery() as nursery:
        file = LogFile(tmp_path / "web.log", Rotation(), records="raw" not in mode)
        capture = Capture(
            Pipe(reader),
            ROUTES[mode](journal, file),
            LABELS,
            "stdout",
            lambda size, lines: consumed.append(size),
            watch=watch,
        )
        nursery.start_soon(capture.run)
        os.write(writer, BEFORE)
        while sum(consumed) < len(BEFORE):  # noqa: ASYNC110 - a thread takes it
            await trio.sleep(0.001)
        os.write(writer, LINE[:9])
        os.write(writer, LINE[9:])
        assert await watch.wait_found() == LINE.decode().rstrip()
        await trio.testing.wait_all_tasks_blocked()
        assert sum(consumed) <= len(BEFORE) + 9, "the line is still there for the next supervisor"
        watch.end()
        os.write(writer, AFTER)
        os.close(writer)
    assert sum(consumed) == len(BEFORE + LINE + AFTER)
    if mode in ("raw file", "both, raw"):
        assert (tmp_path / "web.log").read_bytes() == BEFORE + LINE + AFTER


async def test_a_capture_that_is_waited_for_ends_when_the_watch_does() -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    watch = make_watch("never")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Capture(Pipe(reader), OutputRoute(None), LABELS, "stdout", watch=watch).run)
        os.write(writer, LINE)
        os.close(writer)
    assert watch.line is None


def make_watch(pattern: str) -> LineWatch:
    return LineWatch(1, pattern, compile_pattern(pattern))


async def found(pattern: str, *pieces: bytes) -> str | None:
    watch = make_watch(pattern)
    search = LineSearch(watch)
    for piece in pieces:
        await search.feed(piece)
    return watch.line


@pytest.mark.parametrize(
    ("pattern", "data", "line"),
    [
        ("ready", b"not yet\nall ready now\nready", "all ready now"),
        ("^ready$", b"all ready\nready\r\n", "ready"),
        ("^ready$", b"ready", None),
        ("a.b", b"a\nb\n", None),
        ("a[^x]b", b"a\nb\n", None),
        (
            "gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n",
            "gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n\n".encode(),
            "gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n",
        ),
        ("r.ady", b"r\xffady\nready\xff\n", "ready\N{REPLACEMENT CHARACTER}"),
        ("y$", b"x" * 100_000 + b"y\n", "x" * 256),
        ("needle", b"x" * 100 + b"needle", None),
        ("needle", b"x" * 100 + b"needle" + b"x" * 3 * MAX_LINE_BYTES, "x" * 100 + "needle" + "x" * 150),
    ],
)
async def test_what_matches(pattern: str, data: bytes, line: str | None) -> None:
    assert await found(pattern, data) == line


async def test_a_line_without_an_end_takes_little_memory() -> None:
    search = LineSearch(make_watch("y"))
    for _ in range(100):
        await search.feed(b"x" * 65536)
        assert len(search._rest) <= 2 * MAX_LINE_BYTES


@given(st.integers(), st.lists(st.sampled_from([b"a\n", b"ready\n", b"\n", b"xready\n", b"\r\n", b"\xc3"]), max_size=8))
def test_pieces_make_no_difference(seed: int, lines: list[bytes]) -> None:
    data, rnd = b"".join(lines), random.Random(seed)
    cuts = sorted(rnd.randrange(len(data) + 1) for _ in range(3)) if data else []
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    async def compare() -> None:
        assert await found("^ready$", *pieces) == await found("^ready$", data)
        assert (await found("^ready$", data) is not None) == (
            b"ready" in [line.removesuffix(b"\r") for line in data.split(b"\n")[:-1]]
        )

    trio.run(compare)


def test_a_pattern_that_takes_exponential_time_elsewhere_takes_linear_time_here() -> None:
    """With `re` this would not end within the life of the universe."""
    assert not make_watch("^(a+)+$").search(b"a" * 10_000 + b"b")
