"""A reload that gives the output of a running program another route."""

import contextlib
import os

import pytest

from nsupervisor.logs import Capture, LogFiles, OffsetFile, OutputRoute, Pipe, Rotation, open_journal
from tests.logs.records import LABELS, records

ROUTES = {
    "journal": {"journal": True},
    "json": {"file": True},
    "both": {"journal": True, "file": True},
    "raw": {"file": True, "is_raw": True},
    "both raw": {"journal": True, "file": True, "is_raw": True},
}


def make_route(name, journal, files, path):
    settings = ROUTES[name]
    is_raw = settings.get("is_raw", False)
    file = files.get(path, Rotation(), records=not is_raw) if "file" in settings else None
    return OutputRoute(journal if "journal" in settings else None, file, is_raw)


async def record_all_there_is(capture):
    with contextlib.suppress(BlockingIOError):
        while True:
            await capture._record_next()


def messages(data):
    return [record["message"] for record in records(data)]


@pytest.mark.fault("H13")
@pytest.mark.parametrize("after", ROUTES)
@pytest.mark.parametrize("before", ROUTES)
async def test_a_line_whose_halves_have_different_routes_is_whole_in_the_second(tmp_path, before, after):
    files, path = LogFiles(), tmp_path / "web.log"
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    async with open_journal(str(tmp_path / "journal")) as journal:
        capture = Capture(Pipe(reader), make_route(before, journal, files, path), LABELS, "stdout")
        os.write(writer, b"first\nhalf ")
        await record_all_there_is(capture)
        capture.reroute(make_route(after, journal, files, path))
        os.write(writer, b"line\nlast\n")
        os.close(writer)
        await capture.run()
    text = path.read_bytes() if path.exists() else b""
    # A raw file of which the next destination is another one has the first half.
    expected = ["line" if before == "raw" else "half line", "last"]
    if "raw" in after:
        assert text.endswith(b"half line\nlast\n")
    elif after != "journal":
        assert messages(text.removeprefix(b"first\nhalf \n"))[-2:] == expected
    if "raw" in before:
        assert text.startswith(b"first\nhalf ")
    if after in ("journal", "both", "both raw"):
        assert messages((tmp_path / "journal").read_bytes())[-2:] == expected


@pytest.mark.fault("H13")
async def test_a_killed_supervisor_leaves_half_a_line_and_the_next_one_has_a_raw_file(tmp_path):
    files, path, offsets = LogFiles(), tmp_path / "web.log", tmp_path / "offsets"
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    async with open_journal(str(tmp_path / "journal")) as journal:
        for route in ("journal", "raw", "raw"):
            pipe = Pipe(os.dup(reader))
            settings = make_route(route, journal, files, path)
            capture = Capture(pipe, settings, LABELS, "stdout", offset_file=OffsetFile(offsets, pipe.inode))
            os.write(writer, b"half " if route == "journal" else b"line\n")
            await record_all_there_is(capture)  # and then the supervisor is killed
    assert path.read_bytes() == b"half line\nline\n"


@pytest.mark.fault("H13")
async def test_half_a_line_that_does_not_fit_on_the_disk_is_written_when_it_does(tmp_path):
    files, path = LogFiles(), tmp_path / "directory" / "web.log"
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    async with open_journal(str(tmp_path / "journal")) as journal:
        capture = Capture(Pipe(reader), make_route("journal", journal, files, path), LABELS, "stdout")
        os.write(writer, b"half ")
        await record_all_there_is(capture)
        path.parent.write_bytes(b"in the way")
        capture.reroute(make_route("raw", journal, files, path))
        os.write(writer, b"line\n")
        os.close(writer)
        assert not await capture._record_next()
        path.parent.unlink()
        await capture.run()
    assert path.read_bytes() == b"half line\n"
