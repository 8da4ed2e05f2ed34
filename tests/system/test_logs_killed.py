"""A supervisor that is killed again and again while its workloads write: not a line is missing, none is told twice
without being marked."""

import json
import os
import random
from collections import Counter
from pathlib import Path

import pytest
import trio

from tests.logs.records import records
from tests.needs import needs
from tests.system.service import NSUPERVISOR
from tests.timing import deadline

pytestmark = [needs("root", "cgroup"), pytest.mark.slow]

KILLS = int(os.environ.get("NSUPERVISOR_TEST_KILLS", "4"))
WRITER = r"""
import os, sys
number = 0
while True:
    text = b"".join(b"%010d %s\n" % (n, b"x" * (n % 60)) for n in range(number, number + 40))
    number += 40
    while text:
        text = text[os.write(1, text):]
    if os.path.exists(sys.argv[1]):
        os.write(2, b"%d" % number)
        break
"""


def configuration(directory: Path, stop: Path) -> str:
    lines = [
        f'[supervisor]\nname = "test-{os.getpid()}-killed"\nruntime_directory = "{directory}/run"',
        f'log_directory = "{directory}/logs"\nlog_output = "{directory}/stream"\n',
        'log_max_size = "1T"\n',  # by default 64 MiB: a quick host writes more
    ]
    for name, settings in (
        ("raw", 'stdout = "file", format = "raw"'),
        ("json", 'stdout = "file"'),
        ("stream", 'stdout = "journal"'),
        ("both", 'stdout = "both"'),
    ):
        command = json.dumps(["python3", "-c", WRITER, str(stop)])
        log = f'{settings}, max_size = "2M", max_files = 10000, max_line = "32"'
        lines.append(f'[workload.{name}]\ncommand = {command}\nrestart = "no"\nlog = {{ {log} }}\n')
    return "\n".join(lines)


def kept(directory: Path, name: str) -> bytes:
    names = sorted(directory.glob(f"{name}.log.*"), key=lambda file: -int(file.suffix[1:]))
    return b"".join(file.read_bytes() for file in [*names, directory / f"{name}.log"])


def check_records(found: list[dict], total: int) -> None:
    """All numbers from 0 to `total`, each line whole; what is there twice is marked, and the same."""
    first: dict[int, dict] = {}
    marked: Counter[int] = Counter()
    for record in found:
        if record.get("duplicate"):
            marked[record["seq"]] += 1
        before = first.setdefault(record["seq"], record)
        assert before["message"] == record["message"]
    again = Counter(record["seq"] for record in found)
    assert all(count - 1 <= marked[seq] for seq, count in again.items()), "told twice, and not marked"
    assert sorted(first) == list(range(len(first))), "a number is missing"
    text = "".join(first[seq]["message"] + "\n" * (not first[seq].get("partial")) for seq in range(len(first)))
    lines = text.split("\n")[:-1]
    assert lines == [f"{number:010d} {'x' * (number % 60)}" for number in range(total)]


async def test_no_line_is_missing_however_often_the_supervisor_is_killed(tmp_path):
    (tmp_path / "run").mkdir()
    stop = tmp_path / "stop"
    config = tmp_path / "site.toml"
    config.write_text(configuration(tmp_path, stop))
    chance = random.Random(os.environ.get("NSUPERVISOR_TEST_SEED"))
    stream = tmp_path / "stream"
    stream.touch()

    async def until(text: bytes, count: int) -> None:
        with trio.fail_after(deadline(60)):
            while stream.read_bytes().count(text) < count:  # noqa: ASYNC110
                await trio.sleep(0.05)

    process = None
    try:
        for number in range(KILLS + 1):
            process = await trio.lowlevel.open_process([*NSUPERVISOR, "run", str(config)])
            await until(b'"event":"supervisor started"', number + 1)
            if number < KILLS:
                await trio.sleep(chance.uniform(0.05, 0.5))
                process.kill()
                await process.wait()
        stop.touch()
        await until(b'"event":"exited"', 4)
    finally:
        stop.touch()
        assert process is not None
        process.terminate()
        with trio.fail_after(deadline(60)):
            assert await process.wait() == 0
    found = records((tmp_path / "stream").read_bytes())
    totals = {r["workload"]: int(r["message"]) for r in found if r["event"] == "output" and r["stream"] == "stderr"}
    out = [record for record in found if record["event"] == "output" and record["stream"] == "stdout"]
    raw = kept(tmp_path / "logs", "raw").decode().splitlines()
    assert raw == [f"{number:010d} {'x' * (number % 60)}" for number in range(totals["raw"])]
    check_records(records(kept(tmp_path / "logs", "json")), totals["json"])
    check_records([record for record in out if record["workload"] == "stream"], totals["stream"])
    check_records([record for record in out if record["workload"] == "both"], totals["both"])
    check_records(records(kept(tmp_path / "logs", "both")), totals["both"])
    print({name: f"{total} lines" for name, total in totals.items()}, sum("duplicate" in r for r in found), "marked")
