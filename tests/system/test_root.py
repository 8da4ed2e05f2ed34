"""Workloads with a root file system of their own."""

import json
from pathlib import Path

import pytest

from tests.needs import needs
from tests.roots import make_root, open_directories
from tests.system.service import output_to_end, service

pytestmark = needs("root", "cgroup")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = make_root(tmp_path / "root")
    open_directories(root)
    return root


def workload(root: Path, script: str, keys: str = "", root_keys: str = "") -> str:
    return f"""
        [workload.w]
        command = ["sh", "-c", {json.dumps(script)}]
        restart = "no"
        {keys}
        [workload.w.root]
        path = "{root}"
        {root_keys}
        """


@pytest.mark.system
async def test_a_workload_runs_in_its_root(tmp_path: Path, root: Path) -> None:
    text = await output_to_end(tmp_path, workload(root, "cat /etc/of-the-root; ls -d /usr /proc/1; id; echo x >/file"))
    assert "of the root\n" in text
    assert "/proc/1" in text
    assert "uid=0(root) gid=0(root) groups=0(root)" in text
    assert (root / "file").read_text() == "x\n"


async def test_users_and_groups_are_those_of_the_root(tmp_path: Path, root: Path) -> None:
    keys = 'user = "site"\nworking_directory = "/home/site"'
    text = await output_to_end(tmp_path, workload(root, "id; echo $HOME $USER; ls -d .", keys))
    assert "uid=1234(site) gid=1235(site) groups=1235(site),1236(extra)" in text
    assert "/home/site site" in text


async def test_an_upper_layer_with_a_name_is_kept(tmp_path: Path, root: Path) -> None:
    first = workload(root, "echo kept >/kept; echo site:x:77:77::/: >/etc/passwd", root_keys='overlay = "data"')
    await output_to_end(tmp_path, first)
    assert not (root / "kept").exists()
    second = workload(root, "cat /kept; id -u", 'user = "site"', 'overlay = "data"')
    assert await output_to_end(tmp_path, second) == "kept\n77"


async def test_a_notify_socket_in_a_root(tmp_path: Path, root: Path) -> None:
    program = """
import os, socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect(os.environ["NOTIFY_SOCKET"])
s.send(b"READY=1")
import time; time.sleep(1000)
"""
    mounts = "".join(
        f'[[workload.w.mounts]]\nsource = "{place}"\ndestination = "{place}"\noptions = ["rbind", "ro"]\n'
        for place in ("/usr", "/lib", "/lib64")
    )
    toml = f"""
        [workload.w]
        command = ["/usr/bin/env", "python3", "-c", {json.dumps(program)}]
        type = "notify"
        root = {{ path = "{root}", overlay = true }}
        {mounts}
        """
    async with service(tmp_path, toml) as it:
        await it.record(event="state", workload="w", to="ready")
        status = await it.status("w")
        assert status["root"] == str(root)


async def test_the_strict_profile_in_a_root(tmp_path: Path, root: Path) -> None:
    for name in ("dev", "proc", "sys"):
        (root / name).mkdir()
    script = "id -u; touch /file /tmp/file; ls /tmp"
    text = await output_to_end(tmp_path, workload(root, script, 'security = { profile = "strict" }'))
    assert "0\n" in text
    assert "/file': Read-only file system" in text


async def test_a_program_that_is_missing_in_the_root_is_named(tmp_path: Path, root: Path) -> None:
    async with service(tmp_path, workload(root, "").replace('"sh"', '"no-such-program"')) as it:
        record = await it.record(event="not started", workload="w")
        assert f"in the root {root}" in json.dumps(record)


async def test_a_root_that_has_lost_its_users_does_not_keep_others_from_starting(tmp_path: Path, root: Path) -> None:
    """A program emptied /etc/passwd in its root, and the service refused to start from then on."""
    toml = workload(root, ": >/etc/passwd", 'user = "root"') + '[workload.other]\ncommand = ["sleep", "1000"]\n'
    async with service(tmp_path, toml) as it:
        await it.record(event="state", workload="w", to="exited")
    assert (root / "etc/passwd").read_text() == ""
    async with service(tmp_path, toml) as it:
        assert 'no user \\"root\\" in the root' in json.dumps(await it.record(event="not started", workload="w"))
        await it.pid("other")
