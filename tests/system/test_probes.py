"""Probes of real programs: the program answers as a file says, so that the test decides when it is sick."""

import os
import signal
from pathlib import Path

import pytest

from tests.needs import needs
from tests.system.service import service

pytestmark = needs("root", "cgroup")

SERVER = """
import http.server, os, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if os.path.exists(sys.argv[2]) else 200)
        self.end_headers()

    def log_message(self, *arguments):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

SITE = """
[workload.web]
command = ["/usr/bin/python3", "{server}", "{port}", "{sick}"]
namespaces = {{ network = {network} }}
restart = "always"
restart_sec = 0
[workload.web.startup]  # the liveness probe must not end a program that starts slowly
tcp_socket = {{ port = {port} }}
period_sec = "100ms"
timeout_sec = "5s"
failure_threshold = 1000
[workload.web.readiness]
http_get = {{ port = {port} }}
period_sec = "100ms"
timeout_sec = "5s"
failure_threshold = 2
[workload.web.liveness]
http_get = {{ port = {port} }}
period_sec = "100ms"
timeout_sec = "5s"
failure_threshold = {liveness}
[workload.client]
command = ["sleep", "1000"]
requires = ["web"]
"""


def site(directory: Path, network: str, liveness: int) -> str:
    (directory / "server.py").write_text(SERVER)
    return SITE.format(
        server=directory / "server.py",
        sick=directory / "sick",
        port=18282 + os.getpid() % 1000,
        network=network,
        liveness=liveness,
    )


@pytest.mark.parametrize("network", ["false", "true"])
async def test_what_requires_a_program_starts_when_it_is_ready(tmp_path: Path, network: str) -> None:
    (tmp_path / "sick").touch()
    async with service(tmp_path, site(tmp_path, network, 1000)) as it:
        await it.record(event="waiting", workload="client", message="waits for web")
        (tmp_path / "sick").unlink()
        await it.record(event="state", workload="web", to="ready")
        await it.record(event="state", workload="client", to="running")
        (tmp_path / "sick").touch()
        record = await it.record(event="probe", workload="web", probe="readiness", passes=False)
        assert (record["message"], record["in_a_row"]) == ("HTTP 503", 2)
        await it.record(event="state", workload="web", from_="ready", to="running")
        text = await it.cli("status", "web")
        assert "\n  readiness   fails: HTTP 503 (" in text
        assert "\n  liveness    passes, but the latest failed: HTTP 503 (" in text
        it.valid()


async def test_a_program_that_is_not_alive_any_more_is_restarted_and_why_says_so(tmp_path: Path) -> None:
    async with service(tmp_path, site(tmp_path, "false", 3)) as it:
        await it.record(event="state", workload="web", to="ready")
        (tmp_path / "sick").touch()
        await it.record(event="started", workload="web", generation=2)
        (tmp_path / "sick").unlink()
        await it.record(event="state", workload="web", generation=2, to="ready")
        assert "liveness probe failed 3 times: HTTP 503" in await it.cli("why", "web")


COMMANDS = """
[workload.web]
command = ["sleep", "1000"]
environment = {{ PLACE = "{place}" }}
restart = "no"
[workload.web.readiness]
exec = ["sh", "-c", "test -e $PLACE && test $(hostname) = web || {{ echo not yet; exit 3; }}"]
period_sec = "200ms"
timeout_sec = "9s"
failure_threshold = 1
[workload.web.liveness]
exec = ["sh", "-c", "test ! -e $PLACE.slow || sleep 1000"]
period_sec = "200ms"
timeout_sec = "500ms"
failure_threshold = 1
"""


async def test_a_command_asks_as_the_program_itself(tmp_path: Path) -> None:
    """In its namespaces, with its environment; one that takes too long is killed."""
    place, slow = tmp_path / "place", tmp_path / "place.slow"
    async with service(tmp_path, COMMANDS.format(place=place)) as it:
        pid = await it.pid("web")
        place.touch()
        await it.record(event="state", workload="web", to="ready")
        place.unlink()
        record = await it.record(event="probe", workload="web", probe="readiness", passes=False)
        assert record["message"] == "exit code 3: not yet"
        slow.touch()
        record = await it.record(event="probe", workload="web", probe="liveness", passes=False)
        assert record["message"] == "no end within 0.5 s"
        await it.record(event="exited", workload="web", pid=pid)
        assert (await it.status("web"))["state"] == "failed"


async def test_a_command_that_does_not_exist_fails_and_says_so(tmp_path: Path) -> None:
    text = '[workload.web]\ncommand = ["sleep", "1000"]\nrestart = "no"\n'
    text += 'liveness = { exec = ["/no/such"], failure_threshold = 1 }\n'
    async with service(tmp_path, text) as it:
        record = await it.record(event="probe", workload="web", probe="liveness")
        assert record["message"].startswith("cannot execute /no/such: No such file or directory")
        await it.record(event="state", workload="web", to="failed")


REPORT = """
[workload.web]
command = ["sh", "-c", "until test -e {go}; do sleep 0.02; done; {report}; exec sleep 1000"]
namespaces = {{ pid = {pid} }}
restart = "no"
{log}
[workload.web.readiness]
{readiness}
"""
LINE = ("log = 'listening on [0-9]+$'", "echo listening on 80", "a line of its output: listening on 80")
NEWLINE = ("fd = 5", "echo >&5", "a newline on descriptor 5")


@pytest.mark.parametrize(
    ("way", "log", "pid"),
    [
        (NEWLINE, "", "true"),
        (NEWLINE, "", "false"),
        (LINE, "", "true"),
        (LINE, 'log = { stdout = "file", format = "raw" }', "false"),
    ],
)
@needs("module:re2")
async def test_what_a_program_reports_while_no_service_runs_is_not_lost(
    tmp_path: Path, way: tuple[str, str, str], log: str, pid: str
) -> None:
    readiness, report, message = way
    toml = REPORT.format(go=tmp_path / "go", report=report, pid=pid, log=log, readiness=readiness)
    async with service(tmp_path, toml, status=-signal.SIGKILL) as it:
        pid_ = await it.pid("web")
        assert not (await it.status("web"))["ready"]
        it.process.kill()
        await it.process.wait()
    (tmp_path / "go").touch()
    async with service(tmp_path, toml) as it:
        assert (await it.record(event="probe", workload="web", passes=True))["message"] == message
        await it.record(event="state", workload="web", to="ready")
        assert (await it.status("web"))["pid"] == pid_
