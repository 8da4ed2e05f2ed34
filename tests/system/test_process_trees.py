"""Workloads without cgroups and namespaces, `[supervisor] isolation = "none"`: the service as a user runs it."""

import json
import os
import signal
from pathlib import Path

import pytest
import trio

from nsupervisor.linux import processes
from tests.system.service import Service, service
from tests.timing import deadline

DAEMON = """
[workload.web]
command = ["sh", "-c", '''
(trap "" TERM; setsid sh -c "trap \\"\\" TERM; echo daemon \\$\\$; while :; do sleep 1; done" &)
exec sleep 1000
''']
timeout_stop_sec = 0.2
"""
"""A program that leaves a daemon in a session of its own, which ignores SIGTERM."""


async def daemon_pid(it: Service) -> int:
    def lines() -> list[str]:
        texts = [record["message"] for record in it.records if record["event"] == "output"]
        return [text for text in texts if text.startswith("daemon ")]

    assert await it.heard(lambda: bool(lines()))
    return int(lines()[-1].split()[1])


def is_gone(pid: int) -> bool:
    fields = processes.read_stat(pid)
    return fields is None or fields[0] in "ZX"


async def test_a_stop_ends_what_the_program_has_left(tmp_path: Path) -> None:
    async with service(tmp_path, DAEMON, isolation="none") as it:
        program, daemon = await it.pid("web"), await daemon_pid(it)
        assert processes.parent_pid(daemon) == processes.parent_pid(program)  # the init, a subreaper
        status = await it.status("web")
        assert (status["cgroup"], status["memory_current"], status["pids_current"]) == (None, None, None)
        await it.cli("stop", "web")
        assert is_gone(program)
        assert is_gone(daemon)
        await it.cli("start", "web")


async def test_a_restart_waits_until_the_tree_is_empty(tmp_path: Path) -> None:
    async with service(tmp_path, DAEMON, isolation="none") as it:
        daemon = await daemon_pid(it)
        os.kill(await it.pid("web"), signal.SIGKILL)
        await it.pid("web", generation=2)
        assert is_gone(daemon)


@pytest.mark.parametrize("with_keeper", [False, True])
async def test_nothing_is_lost_when_the_service_is_killed(tmp_path: Path, with_keeper: bool) -> None:
    toml = DAEMON + '[workload.other]\ncommand = ["sh", "-c", "echo up; exec sleep 1000"]\n'
    async with service(tmp_path, toml, isolation="none", status=-9) as it:
        programs = {name: await it.pid(name) for name in ("web", "other")}
        daemon = await daemon_pid(it)
        info = await it.record(event="supervisor started")
        if with_keeper:
            os.kill(info["keeper_pid"], signal.SIGKILL)
        it.process.kill()
        await it.process.wait()
    async with service(tmp_path, toml, isolation="none") as it:
        await it.record(event="taken over", workloads=2)
        for name, pid in programs.items():
            status = await it.status(name)
            assert (status["pid"], status["generation"], status["state"]) == (pid, 1, "running")
        os.kill(programs["other"], signal.SIGTERM)
        ended = await it.record(event="exited", workload="other", generation=1)
        assert ended["signal"] in ("SIGTERM", None) if with_keeper else ended["signal"] == "SIGTERM"
        await it.cli("stop", "web")
        assert is_gone(programs["web"])
        assert is_gone(daemon)


async def test_without_its_keeper_it_goes_on_with_a_new_one(tmp_path: Path) -> None:
    async with service(tmp_path, DAEMON, isolation="none") as it:
        program, daemon = await it.pid("web"), await daemon_pid(it)
        os.kill((await it.record(event="supervisor started"))["keeper_pid"], signal.SIGKILL)
        await it.record(event="keeper replaced")
        assert (await it.status("web"))["pid"] == program
        await it.cli("stop", "web")
        assert is_gone(program)
        assert is_gone(daemon)
        await it.cli("start", "web")
        assert await it.pid("web", generation=2)


async def test_a_workload_is_known_by_its_tree_and_may_not_use_the_api(tmp_path: Path) -> None:
    command = json.dumps(["sh", "-c", "echo ready; exec sleep 1000"])
    asks = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
    asks += "s.sendall(b'GET /v1/info HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n'); print(s.recv(9999))"
    ask = json.dumps(["/usr/bin/python3", "-c", asks, str(tmp_path / "run" / "api.sock")])
    toml = f'[workload.web]\ncommand = {command}\n[workload.ask]\ncommand = {ask}\nrestart = "no"\nautostart = false\n'
    async with service(tmp_path, toml, isolation="none") as it:
        await it.cli("start", "ask", status=0)
        refused = await it.record(event="connection error", level="warning")
        assert "is part of a workload (ask)" in json.dumps(refused)


async def test_the_status_and_the_info_say_what_is_missing(tmp_path: Path) -> None:
    async with service(tmp_path, '[workload.web]\ncommand = ["sleep", "1000"]\n', isolation="none") as it:
        assert "none: it is only a process tree, without limits" in await it.cli("status", "web")
        result = await it.cli_result("freeze", "web")
        assert result.returncode == 1
        assert b'isolation = "none"' in result.stdout + result.stderr
        with trio.fail_after(deadline(5)):
            assert await it.pid("web")
