"""Lines for a reader that may be slow: bounded, in order, and every loss is counted."""

import json
from collections import Counter

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nsupervisor.line_stream import LineStream


def texts(piece):
    """The lines of a piece; a number for a record about that many dropped lines."""
    return [json.loads(line).get("dropped") if line.startswith("{") else line for line in piece.decode().splitlines()]


async def rest(stream):
    stream.close()
    return texts(b"".join([piece async for piece in stream]))


async def test_the_reader_gets_the_backlog_and_then_what_is_added():
    stream = LineStream(backlog=[(b"old\n", None)])
    stream.add(b"new\n")
    assert await rest(stream) == ["old", "new"]


async def test_the_reader_waits_for_a_line(autojump_clock):
    stream, pieces = LineStream(), []

    async def read():
        pieces.append(await anext(stream))

    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            stream.add(b"one\n")
    assert pieces == [b"one\n"]


@pytest.mark.parametrize("bounds", [{"max_lines": 2}, {"max_bytes": 5}])
async def test_what_has_no_room_is_counted_where_it_is_missing(bounds):
    stream = LineStream(backlog=[(b"backlog\n", None)], max_piece_bytes=8, **bounds)
    assert [stream.add(line) for line in (b"1\n", b"2\n", b"3\n", b"4\n")] == [True, True, False, False]
    assert texts(await anext(stream)) == ["backlog"]
    assert not stream.add(b"5\n"), "there is room, but it comes after the gap"
    assert texts(await anext(stream)) == ["1", "2", 3]
    assert stream.add(b"6\n")
    assert await rest(stream) == ["6"]


async def test_a_writer_for_which_a_gap_is_useless_ends_the_stream():
    stream = LineStream(max_bytes=4)
    stream.add(b"1\n")
    assert not stream.has_room(3)
    stream.end(b"the reader is too slow\n")
    stream.end(b"again\n")
    assert stream.is_complete
    assert not stream.add(b"2\n")
    assert await rest(stream) == ["1", "the reader is too slow"]


async def test_lines_added_on_the_way_out_are_read():
    stream = LineStream()
    stream.close()
    stream.add(b"late\n")
    assert await rest(stream) == ["late"]


async def test_an_aborted_stream_says_how_much_was_lost_and_why():
    stream = LineStream(backlog=[(b"1\n", None)])
    stream.add(b"2\n")
    stream.abort("all are too slow")
    (record,) = [json.loads(piece) async for piece in stream]
    assert (record["event"], record["dropped"], record["reason"]) == ("dropped", 2, "all are too slow")


async def test_each_entry_leaves_once():
    left = Counter()
    with LineStream(backlog=[(b"1\n", "1")], max_piece_bytes=1, on_leave=lambda entry: left.update([entry])) as stream:
        stream.add(b"2\n", "2")
        stream.add(b"3\n", "3")
        assert stream.held_bytes == 6
        await anext(stream)
        await anext(stream)
        assert left == {"1": 1, "2": 1}
    assert left == {"1": 1, "2": 1, "3": 1}
    assert stream.held_bytes == 0
    assert not stream.add(b"4\n")
