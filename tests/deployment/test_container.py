"""As the first process of a container: new PID, mount and cgroup namespaces."""

import os
import signal
from pathlib import Path

import pytest
import trio

from tests.deployment.running import Contained, children, documented, refusal, settings, started
from tests.needs import cgroup_directories, needs
from tests.timing import deadline

pytestmark = [
    pytest.mark.system,
    needs("root", "cgroup", "memory", "pids", "program:unshare", "program:nsenter"),
]

WORKLOADS = """
[workload.web]
command = ["sh", "-c", "sleep 1000 & sleep 1000 & echo up; wait"]
resources = { memory_max = "64M", pids_max = 10 }
[workload.plain]
command = ["sh", "-c", "(sleep 1000 &) ; echo up; exec sleep 1000"]
namespaces = { pid = false }
"""


@pytest.fixture
def box(cgroups, folder):
    """The page's commands; on a hybrid host an engine mounts the v1 hierarchies, too."""
    first, *others = cgroups
    script = documented("mkdir /sys/fs/cgroup/box").replace("mkdir /sys/fs/cgroup/box\n", "")
    join = f"echo 0 >{first}/cgroup.procs"
    script = script.replace("/sys/fs/cgroup/box", str(first))
    if others:
        mount = "mount -t cgroup2 cgroup2 /sys/fs/cgroup"
        lines = ["mount -t tmpfs none /sys/fs/cgroup", "cd /sys/fs/cgroup", "mkdir unified", f"{mount}/unified"]
        for name in cgroup_directories().keys() & {"memory", "pids"}:
            lines += [f"mkdir {name}", f"mount -t cgroup -o {name} none {name}"]
        script = script.replace(mount, "\n".join([*lines, f"cd {folder}"]))
        script = script.replace(join, "\n".join([join, *(f"echo 0 >{directory}/cgroup.procs" for directory in others)]))
    return script


def state(pid: int) -> str:
    """The letter that ps shows; "" when it has been reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # before it was opened, or after
        return ""


async def test_runs_reaps_strangers_and_stops(box, cgroups, folder, no_leaks):
    settings(folder, WORKLOADS)
    async with started(box, folder, Contained) as it:
        info = await it.record(event="supervisor started")
        assert info["pid"] == 1
        await it.record(event="output", workload="plain", message="up")
        assert (await it.record(event="started", workload="web"))["pid"] < 100
        leader = it.leader()
        (keeper,) = children(leader)
        assert (cgroups[0] / "site" / "web" / "cgroup.procs").read_text() != ""

        # Like `docker exec`: a process from outside, whose own child is left to the first process.
        join = ["nsenter", "--target", str(leader), "--pid", "--mount", "sh", "-c", "sleep 1000 >/dev/null & sleep 0"]
        strangers = []
        for _ in range(3):
            await trio.run_process(join)
            strangers = [pid for pid in children(leader) if pid != keeper]
        assert len(strangers) == 3
        for pid in strangers:
            os.kill(pid, signal.SIGKILL)
        with trio.fail_after(deadline(10)):
            while any(map(state, strangers)):  # noqa: ASYNC110 - a zombie can be seen, but not waited for
                await trio.sleep(0.01)
        assert children(leader) == [keeper]
        await it.cli("restart", "web")
        assert await it.pid("web", generation=2)
    for directory in cgroups:
        assert [path.name for path in directory.rglob("*") if path.is_dir()] == []
        assert (directory / "cgroup.procs").read_text() == ""


@pytest.mark.host_only  # the same everywhere
async def test_without_its_keeper_it_goes_on_with_a_new_one(box, cgroups, folder, no_leaks):
    settings(folder, WORKLOADS)
    async with started(box, folder, Contained) as it:
        await it.record(event="output", workload="plain", message="up")
        await it.record(event="output", workload="web", message="up")
        procs = cgroups[0] / "site" / "web" / "cgroup.procs"
        with trio.fail_after(deadline(10)):
            # sh and two sleep: what prepared the namespaces ends at any moment after the program's exec.
            while len((before := procs.read_text()).splitlines()) != 3:  # noqa: ASYNC110 - the kernel does not notify
                await trio.sleep(0.01)
        os.kill(children(it.leader())[0], signal.SIGKILL)
        await it.record(event="keeper lost")
        await it.record(event="keeper replaced")
        assert procs.read_text() == before
    assert "populated 0" in (cgroups[0] / "cgroup.events").read_text()


@pytest.mark.host_only  # the same everywhere
async def test_a_mistake_in_the_configuration_is_the_containers_exit_status(box, folder):
    settings(folder, "[workload.web]\ncomand = []\n")
    status, said = await refusal(box, folder)
    assert status == 2
    assert "comand" in said
