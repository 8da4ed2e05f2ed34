"""Captures that are killed: whatever the moment, no line is lost, and a second record of one can be told."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.logs import (
    Capture,
    Framing,
    LineSequence,
    LogFile,
    OffsetFile,
    OutputRoute,
    Pipe,
    Rotation,
    read_next_seq,
)
from nsupervisor.logs.offsets import Offset
from tests.logs.records import LABELS, records


class KilledError(BaseException):
    """As if the process had ended here."""


def test_notes_are_found_again(tmp_path):
    progress = OffsetFile(tmp_path / "web#1.stdout")
    assert progress.offset == Offset()
    progress.begin(b"one\ntwo\nthr", 2, b"thr")
    again = OffsetFile(tmp_path / "web#1.stdout").offset
    assert (again.seq, again.partial_line, again.pending_length, again.next_seq, again.next_partial_line) == (
        0,
        b"",
        11,
        2,
        b"thr",
    )
    assert read_next_seq(tmp_path / "web#1.stdout") == 2
    progress.commit()
    progress.begin(b"ee\nfo", 3, b"fo")
    again = OffsetFile(tmp_path / "web#1.stdout").offset
    assert (again.seq, again.partial_line, again.next_partial_line) == (2, b"thr", b"fo")
    progress.commit()
    progress.commit()  # nothing was begun
    assert OffsetFile(tmp_path / "web#1.stdout").offset == Offset(3, b"fo")
    progress.reset(7)
    assert OffsetFile(tmp_path / "web#1.stdout").offset == Offset(7)


def test_of_notes_about_another_pipe_only_the_number_counts(tmp_path):
    path = tmp_path / "web#1.stdout"
    progress = OffsetFile(path, 5)
    progress.begin(b"one\ntw", 1, b"tw")
    progress.commit()
    assert OffsetFile(path, 5).offset == Offset(1, b"tw")
    assert OffsetFile(path, 6).offset == Offset(1)
    progress.begin(b"o\n", 2, b"")
    assert OffsetFile(path, 6).offset == Offset(2)


def test_a_directory_that_cannot_be_written_any_more_stops_nothing(tmp_path):
    (tmp_path / "streams").mkdir()
    progress = OffsetFile(tmp_path / "streams" / "web#1.stdout")
    (tmp_path / "streams").rmdir()
    progress.begin(b"one\n", 1, b"")
    progress.commit()
    assert progress.offset == Offset(1)
    progress.close()


def test_a_stream_without_output_makes_no_file(tmp_path):
    """Two new files for each program took a tenth of the supervisor's time while a thousand started."""
    path = tmp_path / "web#1.stdout"
    progress = OffsetFile(path)
    progress.advance(0)
    progress.reset(0)
    progress.close()
    assert not path.exists()
    progress.advance(3)
    progress.close()
    assert OffsetFile(path).offset == Offset(3)


@pytest.mark.parametrize("content", [b"", b"torn", b"x" * 100])
def test_a_file_that_makes_no_sense_counts_as_empty(tmp_path, content):
    (tmp_path / "web#1.stdout").write_bytes(content)
    assert OffsetFile(tmp_path / "web#1.stdout").offset == Offset()


LINES = st.lists(st.sampled_from([b"hello\n", b"\n", b'say "hi"\n', b"long " * 30 + b"\n", b"\xff\n", b"no end"]))


@given(st.lists(LINES, min_size=1, max_size=8), st.integers(0, 60))
def test_whenever_it_is_killed_every_line_is_there_and_second_ones_are_marked(tmp_path_factory, chunks, fatal):
    directory = tmp_path_factory.mktemp("capture")
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    calls = 0

    def perhaps_killed(function):
        def call(*arguments):
            nonlocal calls
            calls += 1
            if calls == fatal:
                raise KilledError
            result = function(*arguments)
            calls += 1
            if calls == fatal:
                raise KilledError
            return result

        return call

    def start(killed):
        file = LogFile(directory / "web.log", Rotation())
        progress = OffsetFile(directory / "web#1.stdout")
        sequence = LineSequence(read_next_seq(progress.path))
        progress.advance(sequence.next_seq)
        route = OutputRoute(file=file, max_line=64)
        capture = Capture(Pipe(os.dup(reader)), route, LABELS, "stdout", offset_file=progress, sequence=sequence)
        if killed:
            file.append = perhaps_killed(file.append)
            capture.pipe.discard = perhaps_killed(capture.pipe.discard)
            progress.begin, progress.commit = perhaps_killed(progress.begin), perhaps_killed(progress.commit)
        return capture

    def pump(capture):
        try:
            capture._record_for_a_while()
        except KilledError:
            capture.route.file.close()  # the kernel closes the files of a killed process, and so unlocks them
            return start(False)
        return capture

    capture = start(True)
    written = b"".join(b"".join(chunk) for chunk in chunks)
    for chunk in chunks:
        os.write(writer, b"".join(chunk))
        capture = pump(capture)
    os.close(writer)
    assert pump(capture)._record_for_a_while() == "end"
    os.close(reader)
    log = directory / "web.log"
    found = records(log.read_bytes()) if log.exists() else []
    first = {record["seq"]: record for record in reversed(found)}
    second = [record for record in found if record.get("duplicate")]
    expected = [(line.decode("utf-8", "replace"), partial) for line, partial in Framing(64).feed(written)]
    kept = {seq: (record["message"], record.get("partial", False)) for seq, record in first.items()}
    assert kept == dict(enumerate(expected))
    # A number that comes twice comes marked, and with the same line.
    assert len(found) - len(first) <= len(second)
    for record in second:
        assert {**first[record["seq"]], "timestamp": 0, "duplicate": True} == {**record, "timestamp": 0}
