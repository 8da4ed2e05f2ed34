"""Real collectors read the stream, configured as docs/logs.md says; private paths, nothing of the system's."""

import json
import os
import re
import shutil
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from nsupervisor.logs import open_journal
from tests.logs.records import LABELS, capture, records
from tests.needs import PROGRAM_PATH, ROOT, needs
from tests.timing import deadline

WEB = {**LABELS, "workload": "web@2", "instance": 2}
LINES = [b"hello", 'quotes " and \\ and ä€🙂'.encode(), b"\xff\tcontrol \x1b[1m", b"x" * 40_000]


def configuration(language: str, **paths: Path) -> str:
    """The configuration in docs/logs.md, with each of its paths replaced."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "docs" / "logs.md").read_text(), re.M | re.S)
    places = {
        "directory": "/var/log/nsupervisor/",
        "pipe": "/run/nsupervisor.stream",
        "file": "/var/log/nsupervisor.json",
    }
    for name, path in paths.items():
        assert places[name] in text
        text = text.replace(places[name], f"{path}/" if name == "directory" else str(path))
    assert "/var/" not in text
    assert "/run/" not in text
    return text


@asynccontextmanager
async def running(command: list[str], **options):
    """A collector in the foreground for the time of the block; its complaints are shown when the block fails."""
    command[0] = shutil.which(command[0], path=PROGRAM_PATH) or command[0]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(partial(trio.run_process, command, check=False, **options))
        yield process
        process.terminate()


async def lines_of(path: Path, number: int) -> list[str]:
    """The lines of a file once there are that many."""
    text = ""
    with trio.fail_after(deadline(20)):
        while text.count("\n") < number:
            await trio.sleep(0.02)
            text = path.read_text() if os.path.exists(path) else ""
    return text.splitlines()


async def write_records(journal) -> None:
    """Three kinds of records: captured from a pipe, a rule's action, and a state."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.write(writer, b"\n".join(LINES))
    os.close(writer)
    await capture(reader, journal, WEB, "stderr", max_line=16384)
    cause = {"rule": "policy[0]", "line": 14, "when": "pids.events max", "file": "pids.events", "key": "max"}
    journal.log.warning("action", workload="web", generation=1, action="stop", cause={**cause, "before": 0, "after": 1})


def expected_messages() -> list[str]:
    return [line.decode(errors="replace") for line in LINES[:3]] + ["x" * 16384, "x" * 16384, "x" * 7232]


@needs("program:syslog-ng")
@pytest.mark.parametrize("source", ["named pipe", "standard input"])
async def test_syslog_ng_reads_the_stream_from_a_pipe(tmp_path, source):
    pipe = tmp_path / "stream"
    os.mkfifo(pipe)
    text = configuration("syslog-ng", pipe=pipe, directory=tmp_path / "out")
    if source == "standard input":
        text = re.sub(r"pipe\(.*?(flags\(.*?\))\)", r"stdin(\1)", text)
        assert "stdin(flags(no-parse))" in text
        reader, output = os.pipe()
    else:
        reader, output = os.open(os.devnull, os.O_RDONLY), str(pipe)
    config = tmp_path / "syslog-ng.conf"
    config.write_text(text)
    command = ["syslog-ng", "--foreground", "--no-caps", "--cfgfile", str(config), "--stderr"]
    command += [f"--{kind}={tmp_path / kind}" for kind in ("persist-file", "control", "pidfile")]
    async with running(command, stdin=reader), open_journal(output) as journal:
        os.close(reader)
        await write_records(journal)
        everything = await lines_of(tmp_path / "out" / "all.json", 7)
        web = await lines_of(tmp_path / "out" / "web@2.log", 6)
    if isinstance(output, int):
        os.close(output)

    found = records("".join(line + "\n" for line in everything).encode())
    assert [record["message"] for record in found[:6]] == expected_messages()
    assert [record.get("partial") for record in found[:6]] == [None, None, None, True, True, None]
    assert all(record.items() >= {**WEB, "stream": "stderr"}.items() for record in found[:6])
    assert (found[6]["event"], found[6]["cause"]["rule"]) == ("action", "policy[0]")
    # The parsed fields, the time stamp included, are the record's.
    for line, record in zip(web, found, strict=False):
        stamp, generation, stream, message = line.split(" ", 3)
        assert (generation, stream, message) == ("1", "stderr", record["message"])
        assert stamp == record["timestamp"].replace("Z", "+00:00")


@needs("program:rsyslogd")
async def test_rsyslog_reads_the_stream_from_a_file(tmp_path):
    stream = tmp_path / "stream.json"
    stream.touch()
    config = tmp_path / "rsyslog.conf"
    text = configuration("rsyslog", directory=tmp_path, file=stream)
    config.write_text(f'global(workDirectory="{tmp_path}")\n{text}')
    command = ["rsyslogd", "-n", "-f", str(config), "-i", str(tmp_path / "pid")]
    async with running(command), open_journal(str(stream)) as journal:
        await write_records(journal)
        output = await lines_of(tmp_path / "output.json", 6)
        service = await lines_of(tmp_path / "service.json", 1)
    assert [json.loads(line) for line in output + service] == records(stream.read_bytes())
    assert [json.loads(line)["message"] for line in output] == expected_messages()
