"""A disk that cannot be written to for a while, under load:
`python -m tests.logs.full_disk DIRECTORY block|drop|stop json|raw SECONDS full|read-only`.

DIRECTORY is a file system of 64 MB; `test_files.py` mounts one that only this process sees. Prints what came of it.
`stop`: as `block`, but the capture is released, as for a program that is stopped, and the disk stays as it is.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import trio

from nsupervisor.logs import Capture, LogFile, OutputRoute, Pipe, Rotation
from tests.logs.lag import Lag
from tests.logs.records import LABELS

LINES = 100_000


def break_disk(directory: Path, how: str) -> None:
    if how == "full":
        (directory / "filler").write_bytes(b"x" * (58 << 20))
    else:
        subprocess.run(["mount", "-o", "remount,ro", directory], check=True)


def mend_disk(directory: Path, how: str) -> None:
    if how == "full":
        (directory / "filler").unlink()
    else:
        subprocess.run(["mount", "-o", "remount,rw", directory], check=True)


async def main(directory: Path, mode: str, form: str, seconds: float, how: str) -> None:
    break_disk(directory, how)
    log = LogFile(directory / "web.log", Rotation(), records=form == "json")
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    said: list[tuple[str, dict]] = []
    route = OutputRoute(file=log, is_raw=form == "raw", blocks=mode != "drop")
    capture = Capture(
        Pipe(reader), route, LABELS, "stdout", report=lambda level, event, **more: said.append((level, more))
    )
    lag, number = Lag(), 0
    blockage = None

    async def write(count: int) -> None:
        nonlocal number
        width = 600 if form == "raw" else 10
        for first in range(number, number + count, 1000):
            numbers = range(first, min(first + 1000, number + count))
            view = memoryview(b"".join(b"%010d %s\n" % (n, b"x" * width) for n in numbers))
            while view:
                view = view[await trio.to_thread.run_sync(os.write, writer, view) :]
        number += count

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lag.run)
        async with trio.open_nursery() as load:
            load.start_soon(capture.run)
            async with trio.open_nursery() as writing:
                writing.start_soon(write, LINES)
                while log.error is None:  # noqa: ASYNC110
                    await trio.sleep(0.01)
                end = trio.current_time() + seconds
                if mode == "block":
                    await trio.sleep_until(end)
                    await trio.to_thread.run_sync(mend_disk, directory, how)
                if mode == "stop":
                    while (blockage := capture.blockage) is None or not said:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                    capture.release()
            end = trio.current_time() + seconds  # the load may have taken longer than that
            while mode == "drop" and trio.current_time() < end:
                await write(1000)
                await trio.sleep(0.01)
            if mode == "drop":
                await trio.to_thread.run_sync(mend_disk, directory, how)
            if mode == "drop" and form == "json":
                while capture._failures.gap_lines:  # noqa: ASYNC110 - it finds out by itself
                    await trio.sleep(0.01)
            if mode != "stop":
                await trio.sleep(2.5)  # the longest pause between two attempts
                await write(100)
            os.close(writer)
        nursery.cancel_scope.cancel()
    if mode == "stop" and form == "json":  # the end of a record of which the disk took a part
        mend_disk(directory, how)
        log.append(b"")
    kept, dropped = [], 0
    for line in (directory / "web.log").read_bytes().splitlines():
        if form == "json":
            record = json.loads(line)
            dropped += record.get("dropped", 0)
            if record["event"] == "output":
                assert record["seq"] == int(record["message"][:10]) == len(kept) + dropped
                kept.append(record["seq"])
        elif len(line) == 611:
            kept.append(int(line[:10]))
    if form == "raw" or mode == "stop":  # then no record of the gap is in the file: nothing can be written
        assert mode != "stop" or not dropped
        dropped = capture.dropped
        assert kept == sorted(set(kept))
    assert mode == "stop" or kept[-100:] == list(range(number - 100, number)), "it has not recovered"
    most, _high, own, _worked = lag.row()
    counts = {"written": number, "kept": len(kept), "dropped": dropped}
    reason = None if blockage is None else blockage.reason
    print(json.dumps({**counts, "lag_ms": most, "own_lag_ms": own, "said": said, "reason": reason}))


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4]), sys.argv[5])
