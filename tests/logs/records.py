"""What the tests of the stream share: reading it back, and holding every record against the schema."""

import json
import os
from typing import Any

import jsonschema
import trio

from nsupervisor.logs import Capture, OutputRoute, Pipe, schema

LABELS = {"workload": "web", "generation": 1, "pid": 4711}
_VALIDATOR = jsonschema.Draft202012Validator(schema())


def records(stream: bytes) -> list[dict[str, Any]]:
    """The records of a stream; fails when a line is torn or does not satisfy the schema."""
    assert stream == b"" or stream.endswith(b"\n"), stream[-200:]
    found = [json.loads(line) for line in stream.split(b"\n")[:-1]]
    # Thousands of lines that differ in their text only need one validation.
    alike = {
        repr({**record, "timestamp": "", "seq": "seq" in record, "message": type(record.get("message"))}): record
        for record in found
    }
    for record in alike.values():
        _VALIDATOR.validate(record)
    return found


def check_numbers(found: list[dict[str, Any]], total: int) -> int:
    """Check that messages "0" … "total-1" are there in order but for the gaps that are told; return how many lack."""
    expected = lost = 0
    for record in found:
        if record["event"] == "dropped":
            lost += record["dropped"]
            expected += record["dropped"]
        else:
            assert int(record["message"]) == expected
            expected += 1
    assert expected == total
    return lost


async def read_all(fd: int) -> bytes:
    """Everything from a pipe or socket until its end; closes it."""
    found = bytearray()
    try:
        while data := await read_some(fd):
            found += data
    finally:
        os.close(fd)
    return bytes(found)


async def read_some(fd: int, size: int = 65536) -> bytes:
    os.set_blocking(fd, False)
    while True:
        try:
            return os.read(fd, size)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(fd)


async def capture(fd, journal, labels, stream, max_line=16384, count=None, **route):
    """Capture what comes out of a pipe until its end."""
    more = {} if count is None else {"count": count}
    await Capture(Pipe(fd), OutputRoute(journal, max_line=max_line, **route), labels, stream, **more).run()
