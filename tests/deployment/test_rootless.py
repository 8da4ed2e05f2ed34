"""A user other than root, with a cgroup that root has handed to them."""

import os
from pathlib import Path

import pytest

from nsupervisor.cgroups.host import DELEGATE_REMEDY
from tests.deployment.running import documented, refusal, settings, started
from tests.needs import needs

pytestmark = [
    pytest.mark.system,
    needs("root", "cgroup", "memory", "pids", "userns", "program:setpriv", "program:unshare"),
]

USER = 64321  # nobody's on purpose: no name, no home

WORKLOADS = """
[workload.web]
command = ["sh", "-c", "id -u; echo max >%s || echo kept; exec sleep 1000"]
namespaces = { user = true, network = true, hostname = "inside" }
resources = { memory_max = "64M" }
[workload.leak]
command = ["python3", "-S", "-c", '''
leaked = []
while True:
    leaked.append(bytearray(1 << 20))
''']
namespaces = { user = true }
restart = "no"
restart_sec = 0
start_limit_burst = 2
resources = { memory_max = "24M" }
[[workload.leak.policy]]
when = "memory.events oom_kill"
action = "restart"
[workload.bomb]
command = ["python3", "-S", "-c", '''
import os, time
while True:
    try:
        os.fork()
    except BlockingIOError:
        time.sleep(0.05)
''']
namespaces = { user = true }
restart = "no"
resources = { pids_max = 12 }
[[workload.bomb.policy]]
when = "pids.current >= 90%%"
for = "200ms"
action = "kill"
"""

PLAIN = '[workload.web]\ncommand = ["sleep", "1000"]\n'
INSIDE = f"{PLAIN}namespaces = {{ user = true }}\n"


@pytest.fixture
def enter(cgroups, folder, interpreter_for_all):
    """Shell commands to run something as the user, in the delegated cgroups; and what comes last, the service."""
    first, *others = cgroups
    script = documented("mkdir /sys/fs/cgroup/deploy").replace("mkdir /sys/fs/cgroup/deploy\n", "")
    script = script.replace("/sys/fs/cgroup/deploy", str(first)).replace("1000", str(USER))
    if others:
        hybrid = documented("for controller in memory pids").replace(
            "    mkdir /sys/fs/cgroup/$controller/deploy\n", ""
        )
        hybrid = hybrid.replace("memory pids", " ".join(map(str, others))).replace("1000", str(USER))
        script += hybrid.replace("/sys/fs/cgroup/$controller/deploy", "$controller")
    last = documented("echo $$ >/sys/fs/cgroup/deploy").replace("/sys/fs/cgroup/deploy", str(first))
    last = last.replace("1000", str(USER))
    os.chown(folder, USER, USER)
    body = f"{interpreter_for_all}\n{script}\ncd {folder}\n{last}"
    quoted = body.replace("'", "'\\''")
    return f"exec unshare --mount sh -euc '{quoted}'"


async def test_limits_and_rules_hold_without_root(enter, cgroups, folder, no_leaks):
    pure = len(cgroups) == 1
    limit = cgroups[0] / "site" / "web" / "memory.max" if pure else "/dev/full"
    settings(folder, WORKLOADS % limit)
    async with started(enter, folder) as it:
        assert os.stat(f"/proc/{it.leader()}").st_uid == USER
        await it.record(event="output", workload="web", message="0")
        if pure:  # the kernel keeps those inside a cgroup namespace from their own limits (nsdelegate)
            await it.record(event="output", workload="web", message="kept")
            assert limit.read_text() == f"{64 << 20}\n"
        assert (await it.record(event="exited", workload="leak", patience=20))["oom_killed"] is True
        assert await it.pid("leak", generation=2)
        await it.record(event="state", workload="leak", to="failed", patience=20)
        killed = await it.record(event="action", workload="bomb", action="kill", patience=20)
        assert killed["cause"]["after"] <= 12
        await it.record(event="state", workload="bomb", to="failed")
        web = await it.status("web")
        assert (web["state"], web["restarts"]) == ("running", 0)
        assert os.stat(f"/proc/{web['pid']}").st_uid == USER
        assert os.stat(it.directory / "run" / "api.sock").st_uid == USER
    for directory in cgroups:
        assert [path.name for path in directory.iterdir() if path.is_dir()] == []
        assert (directory / "cgroup.procs").read_text() == ""


@pytest.mark.host_only  # the same everywhere
async def test_without_a_user_namespace_the_message_says_to_ask_for_one(enter, folder):
    settings(folder, PLAIN)
    assert await refusal(enter, folder) == (
        2,
        f"{folder}/site.toml:4: workload.web.namespaces: new namespaces (mount, pid, uts, ipc, cgroup) need "
        "CAP_SYS_ADMIN, which "
        f"user {USER} does not have here; set namespaces.user = true, or each of these to false, or run as root with "
        "that capability\n",
    )


@pytest.mark.host_only  # the same everywhere
async def test_another_user_needs_root(enter, folder):
    mappings = "user_namespace = { uid_mappings = [{ container_id = 0, host_id = 100000, size = 10 }] }"
    settings(folder, f'{INSIDE}user = "nobody"\n{mappings}\n')
    lack = f"needs CAP_SETUID and CAP_SETGID, which user {USER} does not have here; leave it out, or run as root"
    status, said = await refusal(enter, folder)
    assert status == 2
    assert f"site.toml:7: workload.web.user: to become another user or group {lack}" in said
    assert (
        f"site.toml:8: workload.web.user_namespace: uid_mappings to others than one's own id {USER} alone {lack}"
        in said
    )


@pytest.mark.host_only  # the same everywhere
async def test_without_any_namespace_nothing_is_needed(enter, folder):
    settings(
        folder, f"{PLAIN}namespaces = {{ mount = false, pid = false, uts = false, ipc = false, cgroup = false }}\n"
    )
    async with started(enter, folder) as it:
        assert await it.pid("web")


@pytest.mark.host_only  # the same everywhere
async def test_a_runtime_directory_of_roots_is_told_with_a_better_place(enter, folder):
    file = settings(folder, INSIDE)
    file.write_text(file.read_text().replace(f"{folder}/run", "/run/not-ours/nsupervisor"))
    status, said = await refusal(f"export XDG_RUNTIME_DIR=/run/user/{USER}; {enter}", folder)
    assert status == 4
    assert said == (
        "/run/not-ours: Permission denied; run as root, or set supervisor.runtime_directory to a place of yours, such "
        f'as "/run/user/{USER}/nsupervisor"\n'
    )


@pytest.mark.host_only  # the same everywhere
async def test_without_a_cgroup_the_message_says_how_to_get_one(enter, cgroups, folder):
    settings(folder, INSIDE)
    not_entered = "\n".join(line for line in enter.splitlines() if "cgroup.procs" not in line)
    status, said = await refusal(not_entered, folder)
    assert status == 1
    assert f"is not writable for user {USER}" in said
    assert DELEGATE_REMEDY in said


@pytest.mark.host_only  # the same everywhere
async def test_root_without_the_right_to_make_namespaces(cgroups, folder):
    """In many containers root is not almighty."""
    enter = "".join(f"echo $$ >{path}/cgroup.procs\n" for path in cgroups)
    weak = f"{enter}exec setpriv --bounding-set -sys_admin --inh-caps -sys_admin nsupervisor run site.toml"
    settings(folder, PLAIN)
    status, said = await refusal(weak, folder)
    assert status == 2
    assert said.startswith(
        f"{folder}/site.toml:4: workload.web.namespaces: new namespaces (mount, pid, uts, ipc, cgroup) need "
    )
    assert "CAP_SYS_ADMIN, which root does not have here; set namespaces.user = true" in said
    settings(folder, INSIDE)
    async with started(weak, folder) as it:
        assert Path(f"/proc/{await it.pid('web')}").exists()
