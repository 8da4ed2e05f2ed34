"""Chunks of output: cut, numbered, rendered, and taken from the pipe."""

import os

import pytest

from nsupervisor.logs import LineSequence, OutputRoute, Pipe
from nsupervisor.logs.chunks import JSON, MAX_KEPT_LINES, MAX_LINES, MAX_PARSED_LINES, ChunkReader
from nsupervisor.logs.offsets import OffsetFile
from tests.logs.records import LABELS, records


@pytest.fixture
def make(tmp_path):
    """A function that makes a reader of a pipe that contains some bytes."""
    opened = []

    def make(data=b"", pipe=None, **settings):
        if pipe is None:
            reading, writing = os.pipe()
            os.set_blocking(reading, False)
            os.write(writing, data)
            os.close(writing)
            pipe = Pipe(reading)
            opened.append(pipe)
        route, counts = OutputRoute(**settings), []
        offsets = OffsetFile(tmp_path / "offset", pipe.inode)
        reader = ChunkReader(
            pipe,
            LABELS,
            "stdout",
            offsets,
            LineSequence(),
            lambda size, lines: counts.append((size, lines)),
            lambda lines: counts.append(lines),
            route.make_framing(),
            route.parse_json,
        )
        return reader, counts

    yield make
    for pipe in opened:
        pipe.close()


def messages(rendered):
    return [(record["seq"], record["message"]) for record in records(rendered)]


def test_lines_are_numbered_across_chunks_and_taken_when_they_are_recorded(make):
    reader, counts = make(b"one\ntwo\nthr")
    chunk = reader.frame(reader.pipe.peek())
    assert messages(reader.render(JSON, chunk)) == [(0, "one"), (1, "two")]
    assert reader.pipe.available_bytes() == 11
    reader.consume_chunk(chunk)
    assert (reader.pipe.available_bytes(), counts) == (0, [(11, 2)])
    rest = reader.flush(partial=True)
    (record,) = records(reader.render(JSON, rest))
    assert (record["seq"], record["message"], record["partial"]) == (2, "thr", True)
    assert reader.frame(b"later\n").seq == 3


@pytest.mark.parametrize(("parse_json", "most"), [(False, MAX_LINES), (True, MAX_PARSED_LINES)])
def test_a_chunk_has_no_more_lines_than_may_be_recorded_at_once(make, parse_json, most):
    reader, _ = make(parse_json=parse_json)
    chunk = reader.frame(b"\n" * (most + 1))
    assert chunk.line_count == chunk.newlines == len(chunk.data) == most


def test_what_a_killed_supervisor_may_have_recorded_has_the_same_numbers_and_says_so(make):
    killed, _ = make(b"one\ntwo\n")
    killed.frame(killed.pipe.peek())
    reader, _ = make(pipe=killed.pipe)
    assert reader.restore_offset(reader.offset_file) == b""
    assert reader.redo_length == 8
    chunk = reader.frame(reader.pipe.peek(reader.redo_length))
    found = records(reader.render(JSON, chunk))
    assert [(record["seq"], record["duplicate"]) for record in found] == [(0, True), (1, True)]
    reader.consume_chunk(chunk)
    assert reader.redo_length == 0
    assert "duplicate" not in reader.frame(b"three\n").labels


def test_the_beginning_of_a_line_is_kept_when_the_route_changes(make):
    reader, _ = make(max_line=1000)
    reader.frame(b"beginning")
    assert reader.apply_route(OutputRoute(max_line=4, parse_json=True)) == b"beginning"
    assert (reader.framing.partial_line, reader.parse_json) == (b"", True)
    assert reader.frame(b"longer\n").lines == [(b"long", True), (b"er", False)]


def test_lines_that_cannot_be_rendered_are_counted_and_their_place_is_marked(make):
    class Broken(type(JSON)):
        def render_text(self, *_):
            raise ZeroDivisionError("a defect")

    reader, counts = make()
    (record,) = records(reader.render(Broken(), reader.frame(b"one\ntwo\n")))
    assert (record["event"], record["dropped"], record["reason"]) == ("dropped", 2, "a defect")
    assert counts == [2]
    assert isinstance(reader.defect, ZeroDivisionError)


@pytest.mark.parametrize("parse_json", [False, True])
def test_the_latest_lines_of_a_chunk_that_is_dropped(make, parse_json):
    reader, _ = make(parse_json=parse_json)
    dropped, *latest = records(reader.render_latest(reader.frame(b"".join(b"%d\n" % n for n in range(100)))))
    assert (dropped["event"], dropped["dropped"]) == ("dropped", 100 - MAX_KEPT_LINES)
    numbers = range(100 - MAX_KEPT_LINES, 100)
    assert [(record["seq"], record["message"]) for record in latest] == [(n, str(n)) for n in numbers]
