"""`nsupervisor exec --debug`: a command in the sandbox of a workload that does not run, against a real service."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import trio

from tests.needs import needs
from tests.roots import make_root, open_directories
from tests.system.service import Service, service
from tests.system.test_exec import FACTS, begin, ended, run
from tests.system.test_program_directories import name

__all__ = ["name"]
pytestmark = needs("root", "cgroup")
FAILS = '[workload.web]\ncommand = ["sh", "-c", "exit 3"]\nrestart = "no"\n'


async def failed(it: Service) -> None:
    await it.record(event="state", workload="web", to="failed")


def pids_in(it_cgroup: str) -> list[str]:
    return Path(it_cgroup, "cgroup.procs").read_text().split()


@pytest.mark.parametrize(
    "keys",
    [
        [],
        ['user = "nobody"', "nice = 4", "oom_score_adjust = 77", 'umask = "027"'],
        ['security = { profile = "strict" }', 'working_directory = "/tmp"'],
        ["namespaces = { user = true, network = true }"],
        ['security = { profile = "none", limit_nofile = "100:200" }', 'environment = { A = "b c" }'],
    ],
)
async def test_a_command_is_what_the_program_was(tmp_path: Path, keys: list[str]) -> None:
    script = f"{FACTS}; cut -d' ' -f 5- /proc/self/mountinfo | sed 's/ - .*//' | sort; echo end; exit 3"
    toml = "\n".join(["[workload.web]", f"command = {json.dumps(['sh', '-c', script])}", 'restart = "no"', *keys])
    open_directories(tmp_path / "run")  # what a program cannot reach is covered only when the service looks at it again
    async with service(tmp_path, toml) as it:
        await failed(it)
        await it.record(event="output", message="end")  # output may come after the state
        result = await run(it, "--debug", "web", "--", "sh", "-c", script)
        program = [record["message"] for record in it.records if record["event"] == "output"]

    def comparable(lines: list[str]) -> list[str]:
        return [line for line in lines if ":[" not in line]  # other namespaces of the same kinds

    assert result.returncode == 3, result.stderr
    assert comparable(result.stdout.decode().splitlines()) == comparable(program)
    own = {os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "pid", "uts", "ipc")}
    assert not own & set(result.stdout.decode().splitlines())


async def test_it_has_the_root_directories_and_volumes(tmp_path: Path, name: str) -> None:
    root = make_root(tmp_path / "root")
    open_directories(root)
    toml = f"""
        [workload.web]
        command = ["no-such-program"]
        restart = "no"
        user = "site"
        root = {{ path = "{root}", overlay = true }}
        volumes = {{ data = "/data" }}
        runtime_directory = ["{name}"]
        """
    async with service(tmp_path, toml) as it:
        await failed(it)
        script = "cat /etc/of-the-root; id -un; echo x >/data/file; echo x >$RUNTIME_DIRECTORY/file && echo written"
        result = await run(it, "--debug", "web", "--", "sh", "-c", script)
        assert (result.stdout, result.stderr) == (b"of the root\nsite\nwritten\n", b"")
        await it.until(lambda: not Path(f"/run/{name}").exists())
    assert (tmp_path / "state/volumes/data/file").read_text() == "x\n"


async def test_a_shell_is_the_default_and_what_it_leaves_ends_with_it(tmp_path: Path) -> None:
    async with service(tmp_path, FAILS) as it:
        await failed(it)
        result = await run(it, "--debug", "web", data=b"sleep 1000 & echo $$; sleep 1000 & exit 5\n")
        assert (result.returncode, result.stdout) == (5, b"1\n")
        status = await it.status("web")
        await it.until(lambda: pids_in(status["cgroup"]) == [])
        assert (status["state"], status["generation"]) == ("failed", 1), "it is no generation"
        started = await it.record(event="exec", workload="web")
        assert (started["debug"], started["command"]) == (True, "/bin/sh")
        assert (await it.record(event="exec ended", workload="web"))["code"] == 5


async def waiting(it: Service) -> trio.Process:
    """Begin a command that waits, and return when it runs."""
    process = await begin(
        it, "--debug", "web", "--", "sh", "-c", "echo begun; sleep 1000 & exec sleep 1000", stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with trio.fail_after(20):
        assert await process.stdout.receive_some() == b"begun\n"
    return process


async def test_it_is_in_the_cgroup_and_ends_with_its_client(tmp_path: Path) -> None:
    async with service(tmp_path, FAILS) as it:
        await failed(it)
        process = await waiting(it)
        cgroup = (await it.status("web"))["cgroup"]
        assert len(pids_in(cgroup)) == 2
        second = await run(it, "--debug", "web", "--", "true")
        assert (second.returncode, b"has a command of exec --debug already" in second.stderr) == (1, True)
        process.send_signal(signal.SIGKILL)
        await ended(process)
        await it.until(lambda: pids_in(cgroup) == [])
        again = await run(it, "--debug", "web", "--", "true")
        assert again.returncode == 0, again.stderr


async def test_a_start_ends_it(tmp_path: Path) -> None:
    (tmp_path / "fifo").write_text("")
    toml = (
        f'[workload.web]\ncommand = ["sh", "-c", "[ -s {tmp_path}/fifo ] && exec sleep 1000; exit 3"]\nrestart = "no"\n'
    )
    async with service(tmp_path, toml) as it:
        await failed(it)
        process = await waiting(it)
        (tmp_path / "fifo").write_text("x")
        await it.cli("start", "web")
        assert await ended(process) == 128 + signal.SIGKILL
        await it.record(event="state", workload="web", to="running", nth=2)
        assert len(pids_in((await it.status("web"))["cgroup"])) == 1
        refused = await run(it, "--debug", "web", "--", "true")
        assert (refused.returncode, refused.stderr) == (
            1,
            b"web is running; use exec without --debug, which enters it\n",
        )


async def test_it_ends_with_the_service(tmp_path: Path) -> None:
    async with service(tmp_path, FAILS) as it:
        await failed(it)
        process = await waiting(it)
        pids = pids_in((await it.status("web"))["cgroup"])
    assert await ended(process) == 3
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


async def test_a_failure_of_the_set_up_is_reported(tmp_path: Path) -> None:
    async with service(tmp_path, FAILS) as it:
        await failed(it)
        missing = await run(it, "--debug", "web", "--", "no-such-program")
        nowhere = await run(it, "--debug", "-w", "/no/such", "web")
        assert (missing.returncode, nowhere.returncode) == (127, 1)
        assert b"cannot enter /no/such: No such file or directory" in nowhere.stderr


async def test_it_is_refused_without_a_pid_namespace(tmp_path: Path) -> None:
    async with service(tmp_path, FAILS + "namespaces = { pid = false }\n") as it:
        await failed(it)
        refused = await run(it, "--debug", "web", "--", "true")
        assert (refused.returncode, b"without a PID namespace" in refused.stderr) == (1, True)
