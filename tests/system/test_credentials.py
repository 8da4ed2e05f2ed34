"""Credentials: files that only the program sees."""

import json
import os
import shutil
from pathlib import Path

import pytest

from nsupervisor.keeper.setup import credentials
from nsupervisor.keeper.setup.errors import StepError
from tests.needs import needs
from tests.roots import make_root, open_directories
from tests.system.service import service

pytestmark = needs("root", "cgroup")

SECRET = "correct-horse-battery-staple"
SCRIPT = """
cd $CREDENTIALS_DIRECTORY || exit 1
stat -c '%n %a %u' . token
ls
grep -q correct-horse token && echo read
(echo x >token) 2>/dev/null || echo refused
"""


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "secrets/token"
    path.parent.mkdir(mode=0o700)
    path.write_text(SECRET)
    path.chmod(0o600)
    (tmp_path / "run").mkdir(mode=0o755)
    open_directories(tmp_path / "run")
    return path


@pytest.mark.parametrize(
    ("keys", "uid"),
    [
        ('user = "nobody"', 65534),
        ("", 0),
        ("namespaces = { user = true }", 0),
        ('user = "7"\nnamespaces = { user = true }', 7),
        ('user = "nobody"\nsecurity = { profile = "strict" }', 65534),
        ('user = "site"\nroot = { path = "ROOT", readonly = true, overlay = true }', 1234),
        ('user = "nobody"\nmounts = [{ type = "tmpfs", destination = "/mnt" }]', 65534),
    ],
)
async def test_a_program_alone_sees_its_credentials(tmp_path: Path, token: Path, keys: str, uid: int) -> None:
    if "ROOT" in keys:
        keys = keys.replace("ROOT", str(make_root(tmp_path / "root")))
    toml = f"""
        [workload.w]
        command = {json.dumps(["sh", "-c", SCRIPT + "exec sleep 1000"])}
        credentials = {{ token = "{token}" }}
        {keys}
        [workload.other]
        command = ["sh", "-c", "ls {tmp_path}/run; exec sleep 1000"]
        """
    async with service(tmp_path, toml) as it:
        await it.record(event="output", workload="w", message="refused")
        found = [r["message"] for r in it.records if r["event"] == "output" and r["workload"] == "w"]
        assert found == [f". 500 {uid}", f"token 400 {uid}", "token", "read", "refused"]
        shown = json.dumps(await it.status("w")) + await it.cli("status", "w") + await it.cli("why", "w")
        assert not any(r["event"] == "output" and r["workload"] == "other" for r in it.records)
        written = "".join(path.read_text(errors="replace") for path in (tmp_path / "run").rglob("*") if path.is_file())
        assert not (tmp_path / "run/credentials").exists()
        records = json.dumps(it.records)
    assert SECRET not in shown + written + records


async def test_a_missing_file_is_named(tmp_path: Path, token: Path) -> None:
    toml = f"""
        [workload.w]
        command = ["true"]
        credentials = {{ token = "{token}-missing" }}
        """
    async with service(tmp_path, toml) as it:
        record = await it.record(event="not started", workload="w")
    assert f"read the credential token from {token}-missing: No such file or directory" in record["message"]


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(StepError, match=r"regular file|directory"):
            credentials.read({"token": str(path)})


def test_all_together_have_a_limit(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(credentials.MAX_BYTES - 3))
    (tmp_path / "small").write_bytes(bytes(4))
    large, small = str(tmp_path / "large"), str(tmp_path / "small")
    assert len(credentials.read({"large": large})["large"]) == credentials.MAX_BYTES - 3
    with pytest.raises(StepError, match="more than 1,048,576 bytes"):
        credentials.read({"large": large, "small": small})


def test_a_link_of_another_user_to_a_file_of_root_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "home"
    place.mkdir()
    os.chown(place, 65534, 65534)
    (place / "token").symlink_to("/etc/shadow")
    os.chown(place / "token", 65534, 65534, follow_symlinks=False)
    with pytest.raises(StepError, match="by a link that another user may control"):
        credentials.read({"token": str(place / "token")})


@pytest.mark.parametrize("root", ["", 'root = { path = "ROOT", overlay = true }'])
async def test_a_removed_runtime_directory(tmp_path: Path, token: Path, root: str) -> None:
    if root:
        root = root.replace("ROOT", str(make_root(tmp_path / "root")))
    toml = f"""
        [workload.w]
        command = ["sh", "-c", "echo up; exec sleep 1000"]
        credentials = {{ token = "{token}" }}
        watchdog_sec = 1000
        {root}
        """
    async with service(tmp_path, toml) as it:
        await it.record(event="output", workload="w")
        pid = await it.pid("w")
        inside = Path(f"/proc/{pid}/root{tmp_path}/run")
        assert (inside / "credentials/token").read_text() == SECRET
        shutil.rmtree(tmp_path / "run")
        await it.record(event="runtime directory")
        assert [path.name for path in inside.glob("notify/*/*")] == ["socket"]
        if root:
            assert (inside / "credentials/token").read_text() == SECRET
            assert sorted(os.listdir(inside)) == ["credentials", "notify"]
        else:
            lost = f"its credentials were lost when {tmp_path}/run was removed; restart it"
            await it.record(event="warning", workload="w", message=lost)
