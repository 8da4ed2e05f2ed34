"""A collector as the service's child, that sleeps, dies and comes back, and a secret that nobody may see."""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

import trio

from tests.needs import needs
from tests.system.service import NSUPERVISOR, service
from tests.timing import deadline

pytestmark = [needs("root", "cgroup")]

SIZE = int(os.environ.get("NSUPERVISOR_TEST_BYTES", 10_000_000))
"""What the workload writes; the real thing is 1_000_000_000."""
COLLECTOR = """
import os, sys, time
out = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
share = int(sys.argv[2])
while share > 0:
    data = os.read(0, 1 << 20)
    if not data:
        sys.exit(0)
    share -= len(data)
    while data:
        data = data[os.write(out, data):]
    if share < int(sys.argv[2]) / 2:
        time.sleep(0.3)
        share -= int(sys.argv[2]) // 4
os.kill(os.getpid(), 9)
"""
WRITER = """
import hashlib, os, sys
size, number, sum_ = int(sys.argv[1]), 0, hashlib.sha256()
while size > 0:
    text = b"".join(b"%012d %s\\n" % (n, b"abcdefghij" * (n % 200)) for n in range(number, number + 500))
    number += 500
    size -= len(text)
    sum_.update(text)
    while text:
        text = text[os.write(1, text):]
os.write(2, sum_.hexdigest().encode())
"""


def _tail(path: Path) -> bytes:
    """The end of a file: as much as can follow the record of an exit, a busy program's pipe of 1 MiB as records."""
    with path.open("rb") as stream:
        stream.seek(max(stream.seek(0, os.SEEK_END) - 5_000_000, 0))
        return stream.read()


async def test_every_byte_reaches_a_collector_that_sleeps_dies_and_comes_back(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", COLLECTOR, str(out), str(SIZE // 4)]
    writer = json.dumps(["python3", "-c", WRITER, str(SIZE)])
    (tmp_path / "run").mkdir()
    config = tmp_path / "site.toml"
    config.write_text(f"""
    [supervisor]
    name = "test-{os.getpid()}-collector"
    runtime_directory = "{tmp_path}/run"
    log_output = {{ command = {json.dumps(command)} }}
    [workload.web]
    command = {writer}
    restart = "no"
    log = {{ on_full = "block" }}
    """)
    began = time.monotonic()
    process = await trio.lowlevel.open_process([*NSUPERVISOR, "run", str(config)])
    try:
        with trio.fail_after(deadline(60) + SIZE / 1_000_000):
            while not (out.exists() and b'"event":"exited"' in _tail(out)):  # noqa: ASYNC110
                await trio.sleep(0.1)
    finally:
        process.terminate()
        with trio.fail_after(deadline(30)):
            assert await process.wait() == 0
    spent = time.monotonic() - began
    sum_, size, told, deaths = hashlib.sha256(), 0, "", 0
    with out.open("rb") as stream:
        for line in stream:
            record = json.loads(line)
            if record["event"] == "collector ended":
                deaths += 1
            elif record["event"] == "output" and record["stream"] == "stderr":
                told = record["message"]
            elif record["event"] == "output":
                text = record["message"].encode() + (b"" if record.get("partial") else b"\n")
                size += len(text)
                sum_.update(text)
    print(f"{size} bytes, the same at the end; the collector died {deaths} times; {spent:.1f} s")
    assert size >= SIZE
    assert deaths >= 2
    assert sum_.hexdigest() == told


async def test_secrets_of_the_environment_are_in_no_record_and_no_answer(tmp_path):
    secret = "s3cr3t-" + "x" * 20
    (tmp_path / "env").write_text(f"TOKEN={secret}-file\n")
    toml = f"""
    [workload.web]
    command = ["sleep", "1000"]
    environment = {{ PASSWORD = "{secret}" }}
    environment_file = ["{tmp_path}/env"]
    [workload.broken]
    command = ["/nonexistent"]
    restart = "no"
    environment = {{ PASSWORD = "{secret}" }}
    """
    async with service(tmp_path, toml, log_level="debug") as it:
        await it.record(event="started", workload="web")
        await it.record(event="not started", workload="broken")
        await it.cli("restart", "web")
        said = [
            await it.cli(*words) for words in (["status", "--json"], ["why", "web"], ["events", "--json"], ["stats"])
        ]
        config = tmp_path / "nsupervisor.toml"
        said.append((await it.cli_result("check", str(config))).stdout.decode())
    everything = json.dumps(it.records) + "".join(said)
    everything += "".join(f.read_bytes().decode(errors="replace") for f in (tmp_path / "run").rglob("*") if f.is_file())
    assert secret not in everything
