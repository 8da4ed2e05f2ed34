"""Workloads' own log files, with the real service."""

import errno
import fcntl
import json
import os
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.logs.records import records
from tests.metrics.scraping import scrape
from tests.needs import needs
from tests.system.service import NSUPERVISOR, PATIENCE, Service, service
from tests.timing import deadline

pytestmark = [needs("root", "cgroup")]

# It opens the FIFO once for both lines. Were it opened for each, the second time could come before the writer of the
# first line has closed its end, and would only find the end of a file.
PRINTER = """
[workload.web]
command = ["sh", "-c", '''
exec 3<> {fifo}
read start <&3
i=0
while [ $i -lt 500 ]; do echo "line $i of a line that is a little longer"; i=$((i+1)); done
echo oops >&2
read stop <&3
''']
restart = "no"
[workload.web.log]
"""


@pytest.fixture
def fifo(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


async def push(fifo):
    """Say to the program that it may go on; fails where none comes that would hear it."""
    with trio.move_on_after(deadline(PATIENCE)):
        while True:
            try:
                fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                await trio.sleep(0.01)
                continue
            os.write(fd, b"go\n")
            os.close(fd)
            return
    raise AssertionError(f"nobody reads {fifo}: the program has not begun, or has ended")


def count_lines(logs: Path) -> int:
    """Count the lines of the files; 0 if one is renamed, by a rotation, after it was listed."""
    try:
        return sum(name.read_bytes().count(b"\n") for name in logs.glob("web.log*"))
    except FileNotFoundError:
        return 0


async def test_files_rotate_and_a_signal_makes_them_anew(tmp_path, fifo):
    toml = PRINTER.format(fifo=fifo) + 'stdout = "file"\nstderr = "both"\nmax_size = "8K"\nmax_files = 100\n'
    logs = tmp_path / "logs"
    async with service(tmp_path, toml, log_directory=str(logs)) as it:
        await push(fifo)
        await it.record(event="output", stream="stderr", message="oops")
        await it.until(lambda: count_lines(logs) == 501)
        found = [record for name in logs.iterdir() for record in records(name.read_bytes())]
        assert sorted(record["seq"] for record in found if record["stream"] == "stdout") == list(range(500))
        assert [record["message"] for record in found if record["stream"] == "stderr"] == ["oops"]
        assert not [record for record in it.records if record.get("stream") == "stdout"]
        assert max(name.stat().st_size for name in logs.iterdir()) <= 8192
        assert (
            (await it.cli("logs", "-n", "2", "web"))
            .splitlines()[-1]
            .endswith(("oops", "line 499 of a line that is a little longer"))
        )
        assert len((await it.cli("logs", "-n", "1000", "--grep", "line", "web")).splitlines()) == 500
        (logs / "web.log").rename(logs / "renamed")
        it.process.send_signal(signal.SIGUSR1)
        await it.record(event="logs reopened")
        assert (logs / "web.log").read_bytes() == b""
        await push(fifo)
        await it.record(event="exited", workload="web")
    assert not (tmp_path / "run" / "streams").exists()


@pytest.mark.fault("A15")
async def test_the_stream_as_a_file_rotates_like_the_files_of_workloads(tmp_path, fifo):
    stream, config = tmp_path / "stream", tmp_path / "nsupervisor.toml"
    name = f"test-{os.getpid()}-{tmp_path.name[-24:]}"
    rotation = 'log_max_size = "8K"\nlog_max_files = 100\n'
    head = f'[supervisor]\nname = "{name}"\nruntime_directory = "{tmp_path}/run"\nlog_output = "{stream}"\n'
    config.write_text(f'{head}state_directory = "{tmp_path}/state"\n{rotation}{PRINTER.format(fifo=fifo)}')
    it = Service(
        await trio.lowlevel.open_process([*NSUPERVISOR, "run", str(config)], stdin=subprocess.DEVNULL), tmp_path
    )
    try:
        await push(fifo)
        with trio.fail_after(deadline(30)):
            while len((await it.cli("logs", "-n", "1000", "web")).splitlines()) < 501:  # noqa: ASYNC110
                await trio.sleep(0.05)
        files = list(tmp_path.glob("stream*"))
        assert len(files) > 5
        assert max(file.stat().st_size for file in files) <= 8192
        lines = [record for file in files for record in records(file.read_bytes()) if record["event"] == "output"]
        assert sorted(line["seq"] for line in lines if line["stream"] == "stdout") == list(range(500))
        config.write_text(config.read_text().replace('"8K"', '"64K"'))
        assert "supervisor.log_max_size" in await it.cli("plan", str(config))
        await it.cli("reload")
        assert not [line for line in (await it.cli("events")).splitlines() if "next time" in line]
    finally:
        assert await it.stop() == 0


@pytest.mark.fault("D7")
async def test_blocked_output_is_shown_and_does_not_delay_a_stop(tmp_path):
    """Another program has locked the log file; `tests/logs/test_files.py` does the same to a capture by a full disk."""
    log = tmp_path / "logs" / "web.log"
    log.parent.mkdir(mode=0o755)
    toml = f"""
[workload.web]
command = ["sh", "-c", "trap 'echo stopping; exit 7' TERM; while :; do echo a line; done"]
timeout_stop_sec = "1h"
log = {{ stdout = "file", stderr = "file", path = "{log}" }}
namespaces = {{ pid = false }}
"""
    with log.open("wb") as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)
        async with service(tmp_path, toml) as it:
            failed = await it.record(event="log file", workload="web")
            reason = f"cannot write {log}: another workload, supervisor.log_output or another service writes to it"
            assert failed["message"] == f"{reason}; the workload waits once its pipe is full"
            shown = await it.status("web")
            assert (shown["output_blocked_by"], shown["output_blocked_sec"] >= 0) == (reason, True)
            assert "output blocked for " in await it.cli("status")
            assert f"s: {reason}" in await it.cli("status", "web")
            socket = tmp_path / "run" / "api.sock"
            assert (await scrape(socket)).value("workload_output_blocked_seconds", stream="stdout") > 0
            await it.cli("stop", "web")
            exited = await it.record(event="exited", workload="web")
            assert (exited["code"], exited["signal"]) == (7, None)
            lost = await it.record(event="log file", workload="web", level="warning", stream="stdout")
            assert lost["lines"] > 0
            dropped = (await scrape(socket)).value("workload_output_dropped_lines_total", stream="stdout")
            assert dropped == lost["lines"]


async def test_where_nothing_is_kept_the_command_says_what_to_do(tmp_path, fifo):
    toml = PRINTER.format(fifo=fifo) + 'stdout = "none"\nstderr = "none"\n'
    async with service(tmp_path, toml) as it:
        refused = await it.cli_result("logs", "web")
        assert (refused.returncode, b"nothing is kept of what web writes" in refused.stderr) == (1, True)
        assert b'log = { stdout = "file", stderr = "file" } under [workload.web]' in refused.stderr


@pytest.mark.fault("D6")
async def test_the_latest_output_is_shown_without_any_file_and_survives_the_service(tmp_path, fifo):
    toml = PRINTER.format(fifo=fifo)
    async with service(tmp_path, toml, status=-signal.SIGKILL) as it:
        await push(fifo)
        await it.record(event="output", message="oops")
        await it.record(event="output", stream="stdout", seq=499)
        shown = (await it.cli("logs", "-n", "1000", "web")).splitlines()
        lines = [line.split("  ", 1)[1] for line in shown if not line.endswith("oops")]
        assert 100 < len(lines) <= 500
        assert lines == [f"line {number} of a line that is a little longer" for number in range(500 - len(lines), 500)]
        assert (await it.cli("status", "web")).splitlines()[-1] == shown[-1]
        it.process.kill()
    async with service(tmp_path, toml) as it:
        assert (await it.cli("logs", "-n", "1000", "web")).splitlines() == shown
        await push(fifo)
        await it.record(event="exited", workload="web")
    assert not (tmp_path / "run" / "tails").exists()


async def test_new_output_without_a_file_is_followed_until_the_service_ends(tmp_path, fifo):
    async with service(tmp_path, PRINTER.format(fifo=fifo) + 'tail = "1M"\n') as it:
        async with trio.open_nursery() as nursery:
            command = [*it.client(), "logs", "-f", "-n", "1000", "--json"]
            command += ["--socket", str(tmp_path / "run" / "api.sock"), "web"]
            process = await nursery.start(partial(trio.run_process, command, stdout=subprocess.PIPE, check=False))
            await push(fifo)
            found = b""
            while b"oops" not in found or b"line 499 " not in found:
                found += await process.stdout.receive_some()
            await push(fifo)
            await it.record(event="exited", workload="web")
            assert await it.stop() == 0
            with trio.fail_after(deadline(PATIENCE)):
                assert await process.wait() == 0
        assert sorted(json.loads(line)["seq"] for line in found.splitlines() if b"oops" not in line) == [*range(500)]


async def test_output_in_a_file_is_not_kept_twice(tmp_path, fifo):
    toml = PRINTER.format(fifo=fifo) + 'stdout = "file"\n'
    async with service(tmp_path, toml, log_directory=str(tmp_path / "logs")) as it:
        await push(fifo)
        await it.record(event="output", message="oops")
        await it.until(lambda: sum(path.read_bytes().count(b"\n") for path in (tmp_path / "logs").glob("*")) == 500)
        assert len((await it.cli("logs", "-n", "1000", "web")).splitlines()) == 501
        assert (tmp_path / "run" / "tails" / "web").read_bytes().count(b"\n") == 1
        await push(fifo)
        await it.record(event="exited", workload="web")


async def test_a_raw_file_has_what_the_program_wrote(tmp_path, fifo):
    toml = PRINTER.format(fifo=fifo) + f'stdout = "file"\nformat = "raw"\npath = "{tmp_path}/web.txt"\n'
    async with service(tmp_path, toml) as it:
        await push(fifo)
        await it.record(event="output", message="oops")
        await push(fifo)
        await it.record(event="exited", workload="web")
    lines = (tmp_path / "web.txt").read_text().splitlines()
    assert lines == [f"line {number} of a line that is a little longer" for number in range(500)]
