"""Programs that go to the background by themselves, with real processes: their pid files, their ends, their stops."""

import os
import signal
from pathlib import Path

import pytest

from tests.needs import needs
from tests.system.service import Service, service

pytestmark = [pytest.mark.host_only, needs("root", "cgroup")]

INSIDE = pytest.mark.parametrize("pid_namespace", ["true", "false"])


def forking(directory: Path, script: str, pid_namespace: str = "true", *lines: str) -> str:
    """Return a workload whose shell starts a daemon and ends."""
    return "\n".join((
        "[workload.back]",
        f"command = ['sh', '-c', '''{script}''']",
        'type = "forking"',
        f'pid_file = "{directory}/back.pid"',
        "restart_sec = 0",
        f"namespaces = {{ pid = {pid_namespace} }}",
        *lines,
    ))  # fmt: skip


async def known(it: Service, generation: int = 1) -> int:
    """Wait until the daemon is known; return its pid on the host."""
    record = await it.record(event="main process", workload="back", generation=generation)
    return int(record["pid"])


@INSIDE
async def test_a_daemon_runs_and_its_exit_status_decides(tmp_path: Path, pid_namespace: str) -> None:
    os.mkfifo(tmp_path / "gate")
    script = f"(read x < {tmp_path}/gate; exit 3) & echo $! > {tmp_path}/back.pid"
    async with service(tmp_path, forking(tmp_path, script, pid_namespace)) as it:
        pid = await known(it)
        status = await it.status("back")
        assert (status["state"], status["ready"], status["pid"]) == ("running", True, pid)
        assert os.stat(f"/proc/{pid}").st_uid == 0
        with (tmp_path / "gate").open("w") as gate:
            gate.write("\n")
        record = await it.record(event="exited", workload="back", generation=1)
        assert (record["code"], record["pid"]) == (3, pid)
        assert await known(it, 2) != pid, "restart = on-failure, by default"
        assert (await it.cli("stop", "back")) == "back: stopped\n"
        assert (await it.record(event="exited", workload="back", generation=2))["signal"] == "SIGTERM"
        it.valid()


@INSIDE
async def test_a_daemon_outlives_the_supervisor(tmp_path: Path, pid_namespace: str) -> None:
    script = f"sleep 1000 & echo $! > {tmp_path}/back.pid"
    text = forking(tmp_path, script, pid_namespace)
    async with service(tmp_path, text, status=-signal.SIGKILL) as it:
        pid = await known(it)
        it.process.kill()
        await it.process.wait()
    async with service(tmp_path, text) as it:
        status = await it.status("back")
        assert (status["state"], status["pid"], status["generation"]) == ("running", pid, 1)
        os.kill(pid, signal.SIGKILL)
        assert (await it.record(event="exited", workload="back", generation=1))["signal"] == "SIGKILL"


@pytest.mark.parametrize(
    ("prepare", "problem"),
    [
        ("echo 1 > {file}", "names process 1, which is not part of this workload"),
        ("echo $! x > {file}", "does not have a pid, but "),
        ("echo $! > {file}; chown 4242 {file}", "belongs to uid 4242; it must belong to root or to the user"),
    ],
)
async def test_a_pid_file_that_cannot_be_believed(tmp_path: Path, prepare: str, problem: str) -> None:
    tmp_path.chmod(0o755)
    script = "sleep 1000 & " + prepare.format(file=f"{tmp_path}/back.pid")
    text = forking(tmp_path, script, "false", 'timeout_start_sec = "300ms"', 'restart = "no"')
    async with service(tmp_path, text) as it:
        await it.record(event="state", workload="back", to="failed")
        warnings = [r["message"] for r in it.records if r["event"] == "warning"]
        (warning,) = [message for message in warnings if message.startswith("pid_file: ")]
        assert problem in warning
        assert "pid_file names none of its processes within 0.3 s" in (await it.status("back"))["reason"]


async def test_a_workload_outlives_its_program(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    text = f"""
        [workload.back]
        command = ["sh", "-c", "(read x < {tmp_path}/gate; echo last) & exit 0"]
        exit_type = "cgroup"
    """
    async with service(tmp_path, text) as it:
        await it.record(event="exited", workload="back")
        status = await it.status("back")
        assert (status["state"], status["ready"]) == ("running", True)
        assert "other processes run on" in status["reason"]
        with (tmp_path / "gate").open("w") as gate:
            gate.write("\n")
        await it.record(event="state", workload="back", to="exited")
        assert [r["message"] for r in it.records if r["event"] == "output"] == ["last"]
