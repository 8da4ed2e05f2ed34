"""Sidecars: workloads that join namespaces of others, with real programs."""

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.needs import needs
from tests.system.service import service

pytestmark = needs("root", "cgroup", "netns")

TOML = """
[workload.web]
command = ["sleep", "1000"]
restart = "always"
restart_sec = 0
namespaces = { network = true }

[workload.side]
command = ["sleep", "1000"]
namespaces = { network = "workload:web", uts = "workload:web", ipc = "workload:web" }
security = { profile = "default" }
"""


def network(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


async def test_a_sidecar_follows_the_program_whose_network_it_joins(tmp_path):
    async with service(tmp_path, TOML) as it:
        await it.record(event="state", workload="side", to="running")
        first = network(await it.pid("web"))
        assert network(await it.pid("side")) == first != network(os.getpid())
        assert (await it.cli("exec", "side", "--", "uname", "-n")).strip() == "web"
        assert (await it.cli("exec", "side", "--", "readlink", "/proc/self/ns/net")).strip() == first
        assert int(await it.cli("exec", "side", "--", "stat", "-c", "%d", "/dev/shm")) != os.stat("/dev/shm").st_dev
        os.kill(await it.pid("web"), signal.SIGKILL)
        await it.record(event="started", workload="web", generation=2)
        await it.record(event="started", workload="side", generation=2)
        second = network(await it.pid("web", 2))
        assert network(await it.pid("side", 2)) == second != first
        await it.cli("stop", "web")
        assert (await it.status("side"))["state"] == "stopped"
        await it.cli("start", "side")
        await it.record(event="started", workload="side", generation=3)
        assert network(await it.pid("side", 3)) == network(await it.pid("web", 3))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/run/netns/missing", "No such file or directory"),
        ("/proc/self/ns/net", "it is the supervisor's own network namespace; write network = false for that"),
        ("/dev/null", "it is not a namespace"),
    ],
)
async def test_a_start_names_what_cannot_be_joined(tmp_path, path, text):
    toml = f'[workload.web]\ncommand = ["sleep", "9"]\nrestart = "no"\nnamespaces = {{ network = "path:{path}" }}\n'
    async with service(tmp_path, toml) as it:
        await it.record(event="state", workload="web", to="failed")
        expected = f"cannot join the network namespace of path:{path}: {text}"
        assert expected in await it.cli("why", "web")


@pytest.fixture
def other_network() -> Iterator[str]:
    """The file of a network namespace that a process of the test has."""
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; read line"], stdin=-1, stdout=-1) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"\n"
        yield f"/proc/{holder.pid}/ns/net"
        holder.kill()


async def test_a_network_behind_a_file_is_joined(tmp_path, other_network):
    toml = f'[workload.web]\ncommand = ["sleep", "9"]\nnamespaces = {{ network = "path:{other_network}" }}'
    async with service(tmp_path, toml) as it:
        await it.record(event="started", workload="web")
        assert network(await it.pid("web")) == os.readlink(other_network) != network(os.getpid())
