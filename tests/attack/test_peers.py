"""Workloads against the service that runs them: its sockets, its keeper's, and those of other workloads.

Each attacker is a real workload that runs `ATTACK` and reports what it could do. None may get an answer that it could
use: a connection that is refused, a path that is not there, and a 403 are all fine, and which one is said.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.needs import needs
from tests.system.service import PATIENCE, service

pytestmark = needs("root", "cgroup")

ATTACK = r"""
import json, os, socket, sys

OUTSIDE, RUN = int(sys.argv[1]), sys.argv[2]


def attempt(name, path):
    '''The first bytes of an answer; why there is none.'''
    kind = socket.SOCK_SEQPACKET if name == "keeper" else socket.SOCK_STREAM
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.settimeout(20)
    try:
        sock.connect(path)
        if name == "api":
            sock.send(b"GET /v1/info HTTP/1.1\r\nHost: x\r\n\r\n")
        return sock.recv(12).decode() or "closed"
    except OSError as error:
        return error.strerror or type(error).__name__
    finally:
        sock.close()


found = {}
roots = {"own": "", "outside": f"/proc/{OUTSIDE}/root"}
roots |= {f"fd{fd}": f"/proc/self/fd/{fd}" for fd in map(int, sys.argv[3:])}
for where, root in roots.items():
    run = root if where.startswith("fd") else root + RUN
    for name in ("api", "keeper"):
        found[f"{where} {name}"] = attempt(name, f"{run}/{name}.sock")
    try:
        found[f"{where} names"] = sorted(os.listdir(run))
    except OSError as error:
        found[f"{where} names"] = error.strerror
print(json.dumps(found), flush=True)
"""
USELESS = {
    "HTTP/1.1 403",
    "closed",
    "No such file or directory",
    "Permission denied",
    "Connection reset by peer",
    "Broken pipe",
    "Not a directory",
}

PYTHON = "/usr/bin/python3"
WAYS = {
    "root": "",
    "nobody": 'user = "nobody"',
    "user-namespace": "namespaces = { user = true }",
    "without-pid-namespace": "namespaces = { pid = false }",
    "without-mount-namespace": "namespaces = { mount = false }",
    "without-init": "init = false",
    "without-namespaces": "namespaces = { mount = false, pid = false, ipc = false, uts = false, cgroup = false }",
}
VICTIM = """
[workload.victim]
command = ["sleep", "1000"]
type = "notify"
timeout_start_sec = "infinity"
"""


def attacker(name: str, way: str, directory: Path, script: str = ATTACK, **more: str) -> str:
    path = directory / f"{name}.py"
    path.write_text(script)
    path.chmod(0o644)
    command = json.dumps([PYTHON, str(path), str(os.getpid()), str(directory / "run")])
    keys = "".join(f"{key} = {value}\n" for key, value in more.items())
    return f'[workload.{name}]\ncommand = {command}\nrestart = "no"\n{way}\n{keys}'


@pytest.fixture
def place(tmp_path):
    """A directory that every user may enter."""
    directory = Path(tempfile.mkdtemp(prefix="attack-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


async def said(it, name: str) -> dict:
    """What an attacker has reported."""

    def lines() -> list[str]:
        return [r["message"] for r in it.records if r.get("workload") == name and r.get("stream") == "stdout"]

    await it.heard(lambda: bool(lines()), PATIENCE * 3)
    assert lines(), [r for r in it.records if r.get("workload") == name]
    return json.loads(lines()[0])


@pytest.mark.parametrize("way", WAYS)
async def test_a_workload_reaches_no_socket_of_the_service(place, way):
    async with service(place, attacker("evil", WAYS[way], place) + VICTIM) as it:
        pid = await it.pid("victim")
        found = await said(it, "evil")
        for what, answer in found.items():
            if not what.endswith("names"):
                assert answer in USELESS, (what, answer)
        if "mount = false" not in WAYS[way]:
            assert found["own names"] == []
        os.kill(pid, 0)
        assert (await it.status("victim"))["state"] == "running", "the service goes on"
