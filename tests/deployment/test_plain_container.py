"""In a plain container: PID 1, no capabilities, a filter of system calls, no cgroups, one writable directory."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.deployment.running import Contained, children, documented, refusal, settings, started
from tests.needs import ROOT, needs

# Without cgroups, no hierarchy decides anything.
pytestmark = [pytest.mark.host_only, needs("root", "program:unshare", "program:nsenter")]

USER = 64322
"""A uid without an entry in passwd."""
RESTRICTED = ROOT / "tests" / "deployment" / "restricted.py"

FIVE = """
[workload.web]
command = ["sh", "-c", "(setsid sleep 1000 &) ; echo web $(id -u) $HOME; exec sleep 1000"]
user = "64322:64322"
[workload.ready]
command = ["sh", "-c", "echo ready; exec sleep 1000"]
requires = ["web"]
[workload.crash]
command = ["sh", "-c", "echo crash >&2; exit 3"]
restart_sec = 0
start_limit_burst = 2
[workload.once]
command = ["true"]
type = "oneshot"
restart = "no"
[workload.rule]
command = ["sh", "-c", "exit 4"]
restart = "no"
restart_sec = 0
[[workload.rule.policy]]
when = "exit code == 4"
action = "restart"
at_most = 1
within = "1h"
then = ["stop"]
"""
LIMITED = """
[workload.limited]
command = ["sleep", "1000"]
resources = { memory_max = "64M" }
"""


@pytest.fixture
def box(folder, interpreter_for_all) -> str:
    """The page's commands: only /tmp is writable, and the service is restricted as an engine restricts it."""
    os.chown(folder, USER, USER)
    script = documented("mount --make-rprivate /")
    script = script.replace("exec nsupervisor", f"exec {folder}/bin/python {RESTRICTED} {USER} nsupervisor")
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {ROOT}/.venv/bin/python "$@"\n')
    python.chmod(0o755)
    quoted = f"{interpreter_for_all}\n{script}".replace("'", "'\\''")
    return f"exec unshare --mount --pid --fork --kill-child --mount-proc sh -euc '{quoted}'"


def write(folder: Path, isolation: str, workloads: str) -> None:
    file = settings(folder, workloads)
    text = file.read_text().replace("[supervisor]\n", f'[supervisor]\nisolation = "{isolation}"\n', 1)
    file.write_text(text.replace(f"{folder}/run", f"{folder}/state/run"))
    (folder / "state").mkdir(exist_ok=True)
    os.chown(folder / "state", USER, USER)
    (folder / "run").unlink(missing_ok=True)
    (folder / "run").symlink_to("state/run")  # where the tests' client looks


@pytest.mark.parametrize("isolation", ["auto", "none"])
async def test_five_programs_run_and_stop_and_all_is_logged(box: str, folder: Path, no_leaks, isolation: str) -> None:
    write(folder, isolation, FIVE)
    async with started(box, folder, Contained) as it:
        info = await it.record(event="supervisor started")
        assert (info["pid"], info["mode"]) == (1, "none")
        assert os.stat(f"/proc/{it.leader()}").st_uid == USER
        features = [record["feature"] for record in it.records if record["event"] == "feature unavailable"]
        assert features == (["cgroups", "namespaces", "user namespaces"] if isolation == "auto" else [])
        await it.record(event="output", workload="web", message=f"web {USER} /")
        await it.record(event="output", workload="ready", message="ready")
        await it.record(event="output", workload="crash", stream="stderr", message="crash")
        await it.record(event="state", workload="crash", to="failed")
        await it.record(event="state", workload="once", to="exited")
        assert await it.pid("rule", generation=2)
        await it.record(event="state", workload="rule", to="stopped")
        keeper = children(it.leader())[0]
        (tree,) = [pid for pid in children(keeper) if b"init" in title(pid) and title(pid).endswith(b"/web")]
        assert len(children(tree)) == 2  # the program, and what it has left
        await it.cli("stop", "web")
        assert [pid for pid in children(keeper) if title(pid).endswith(b"/web")] == []
        await it.cli("start", "web")


def title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return b""


async def test_a_killed_keeper_is_replaced_and_loses_nothing(box: str, folder: Path, no_leaks) -> None:
    write(folder, "auto", FIVE)
    async with started(box, folder, Contained) as it:
        await it.record(event="output", workload="web", message=f"web {USER} /")
        before = await it.status("web")
        os.kill(children(it.leader())[0], signal.SIGKILL)
        await it.record(event="keeper replaced")
        after = await it.status("web")
        assert (after["pid"], after["generation"]) == (before["pid"], 1)
        await it.cli("restart", "web")
        assert await it.pid("web", generation=2)


async def test_full_refuses_to_start_and_says_why(box: str, folder: Path) -> None:
    write(folder, "full", '[workload.web]\ncommand = ["sleep", "1000"]\n')
    status, said = await refusal(box, folder)
    assert status == 2
    assert "workload.web.namespaces: new namespaces (mount, pid, uts, ipc, cgroup) need CAP_SYS_ADMIN" in said


async def test_auto_reports_a_limit_once_and_none_refuses_it(box: str, folder: Path, no_leaks) -> None:
    write(folder, "none", LIMITED)
    status, said = await refusal(box, folder)
    assert status == 2
    assert 'workload.limited.resources.memory_max: [supervisor] isolation = "none" asks for none' in said
    write(folder, "auto", LIMITED)
    async with started(box, folder, Contained) as it:
        assert await it.pid("limited")
        about = [record for record in it.records if record.get("workload") == "limited" and "memory_max" in str(record)]
        assert [record["event"] for record in about] == ["feature unavailable"]


RAW = """
[workload.raw]
command = ["sh", "-c", "printf '{\\"a\\":1}\\n'; printf 'plain\\n' >&2; sleep 1000"]
log = { stdout = "inherit", stderr = "inherit" }
[workload.two-files]
command = ["sh", "-c", "echo out; echo err >&2; sleep 1000"]
[workload.two-files.log]
stdout = "file"
stderr = "file"
stdout_path = "STATE/two.out"
stderr_path = "STATE/two.err"
format = "raw"
"""


class RawOutput(Contained):
    """A service on whose standard output there are also lines of programs."""

    lines: list[bytes]

    async def read(self) -> None:
        assert self.process.stdout is not None
        self.lines, buffer = [], b""
        async for chunk in self.process.stdout:
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                if line.startswith(b'{"timestamp":'):
                    self.records.append(json.loads(line))
                else:
                    self.lines.append(line)
            self._news.notify()
        self._ended = True
        self._news.notify()


@pytest.mark.fault("D2")
@pytest.mark.parametrize("isolation", ["auto", "none"])
async def test_bytes_go_to_the_containers_own_streams_and_to_two_files(
    box: str, folder: Path, no_leaks, isolation: str
) -> None:
    write(folder, isolation, RAW.replace("STATE", f"{folder}/state"))
    errors, state = folder / "errors", folder / "state"
    async with started(f"{box} 2>{errors}", folder, RawOutput) as it:
        assert isinstance(it, RawOutput)
        assert await it.pid("raw")
        assert await it.heard(lambda: it.lines == [b'{"a":1}'])
        await it.until(lambda: errors.read_bytes() == b"plain\n")
        for name, text in (("two.out", b"out\n"), ("two.err", b"err\n")):
            file = state / name  # it exists from the first line on
            await it.until(lambda file=file, text=text: file.exists() and file.read_bytes() == text)
        shown = await it.cli("logs", "raw")
        assert sorted(line.split("  ")[-1] for line in shown.splitlines()) == ["plain", '{"a":1}']
        assert sorted((await it.cli("logs", "two-files")).splitlines()) == ["err", "out"]
    assert [record for record in it.records if record["event"] == "output"] == []
