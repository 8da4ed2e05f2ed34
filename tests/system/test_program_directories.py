"""Directories that are made for programs, and named volumes."""

import json
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsupervisor.linux.trusted_paths import UntrustedPathError
from nsupervisor.service.instance import directories
from nsupervisor.service.platform.program_directories import make_directories, remove_directories
from tests.needs import needs
from tests.roots import make_root, open_directories
from tests.system.service import Service, service

pytestmark = needs("root", "cgroup")
KINDS = ("runtime", "state", "cache", "logs", "configuration")


@pytest.fixture
def name() -> Iterator[str]:
    """A name below /run, /var/lib and so on that nothing else has; it is removed."""
    name = f"nsupervisor-test-{os.getpid()}"
    yield name
    for base in directories.SYSTEM_BASES.values():
        for place in Path(base).glob(f"{name}*"):
            for path, names, files in os.walk(place, topdown=False):
                for file in files:
                    os.unlink(f"{path}/{file}")
                for below in names:
                    (os.unlink if os.path.islink(f"{path}/{below}") else os.rmdir)(f"{path}/{below}")
            place.rmdir()


async def output(it: Service, workload: str = "w") -> str:
    await it.record(event="exited", workload=workload)
    return "\n".join(record["message"] for record in it.records if record["event"] == "output")


def keys(name: str) -> str:
    return "".join(f'{kind}_directory = ["{name}"]\n' for kind in KINDS)


SCRIPT = """
for place in "$RUNTIME_DIRECTORY" "$STATE_DIRECTORY" "$CACHE_DIRECTORY" "$LOGS_DIRECTORY" "$CONFIGURATION_DIRECTORY"; do
    (echo x >$place/file) 2>/dev/null && echo $(stat -c '%n %a %u' $place)
done
true
"""


@pytest.mark.parametrize(
    ("more", "uid"),
    [
        ("user = 'nobody'", 65534),
        ("user = 'nobody'\nsecurity = { profile = 'strict' }\nnamespaces = { user = false }", 65534),
        ("namespaces = { user = true }", None),
    ],
)
async def test_the_user_has_directories_of_its_own(tmp_path: Path, name: str, more: str, uid: int | None) -> None:
    toml = f"[workload.w]\ncommand = {json.dumps(['sh', '-c', SCRIPT])}\nrestart = 'no'\n{keys(name)}{more}\n"
    async with service(tmp_path, toml + "state_directory_mode = '0700'\n") as it:
        text = await output(it)
        await it.record(event="state", workload="w", to="exited")
        inside = 0 if uid is None else uid
        shown = [f"/run/{name} 755 {inside}", f"/var/lib/{name} 700 {inside}", f"/var/cache/{name} 755 {inside}"]
        assert text.splitlines() == [*shown, f"/var/log/{name} 755 {inside}"]
        await it.until(lambda: not Path(f"/run/{name}").exists())
    owner = os.stat(f"/var/lib/{name}").st_uid
    assert owner == uid if uid is not None else owner >= 524288
    assert os.stat(f"/etc/{name}").st_uid == 0


async def test_directories_in_a_root_are_those_of_the_host(tmp_path: Path, name: str) -> None:
    root = make_root(tmp_path / "root")
    open_directories(root)
    script = "echo kept >$STATE_DIRECTORY/file; echo v >/data/file; ls -d $RUNTIME_DIRECTORY"
    toml = f"""
        [workload.w]
        command = {json.dumps(["sh", "-c", script])}
        restart = "no"
        user = "site"
        root = {{ path = "{root}", readonly = true, overlay = true }}
        volumes = {{ data = "/data" }}
        {keys(name)}
        """
    async with service(tmp_path, toml) as it:
        assert await output(it) == f"/run/{name}"
    assert Path(f"/var/lib/{name}/file").read_text() == "kept\n"
    assert (tmp_path / "state/volumes/data/file").read_text() == "v\n"
    assert (tmp_path / "state/volumes/data").stat().st_uid == 1234


async def test_a_volume_is_shared_by_workloads_and_kept(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    toml = f"""
        [workload.w]
        command = ["sh", "-c", "echo kept >{tmp_path}/place/file"]
        type = "oneshot"
        restart = "no"
        volumes = {{ data = "{tmp_path}/place" }}
        [workload.reader]
        command = ["sh", "-c", "cat {tmp_path}/place/file; echo x >{tmp_path}/place/file"]
        requires = ["w"]
        restart = "no"
        mounts = [{{ type = "volume", source = "data", destination = "{tmp_path}/place", options = ["ro"] }}]
        """
    async with service(tmp_path, toml) as it:
        text = await output(it, "reader")
    assert "kept" in text
    assert "Read-only file system" in text
    assert not (tmp_path / "place/file").exists()


async def test_a_supervisor_that_takes_over_removes_the_runtime_directory(tmp_path: Path, name: str) -> None:
    toml = f"""
        [workload.w]
        command = ["sh", "-c", "echo up; exec sleep 1000"]
        runtime_directory = ["{name}"]
        """
    async with service(tmp_path, toml, status=-signal.SIGKILL) as it:
        await it.record(event="output", workload="w")
        it.process.kill()
    assert Path(f"/run/{name}").exists()
    async with service(tmp_path, toml) as it:
        await it.record(event="taken over")
        await it.cli("stop", "w")
        assert not Path(f"/run/{name}").exists()
        await it.cli("start", "w")
        assert Path(f"/run/{name}").exists()


# ---- places of others


def directory(base: Path, name: str, kind: str = "state") -> dict[str, object]:
    return {"kind": kind, "base": str(base), "name": name, "mode": 0o750}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    open_directories(tmp_path / "base")
    (tmp_path / "base").mkdir(mode=0o755)
    return tmp_path / "base"


def test_a_link_in_place_of_a_directory_is_not_followed(tmp_path: Path, base: Path) -> None:
    (tmp_path / "target").mkdir(mode=0o700)
    (base / "site").symlink_to(tmp_path / "target")
    with pytest.raises(NotADirectoryError):
        make_directories([directory(base, "site")], (65534, 65534))
    assert (tmp_path / "target").stat().st_uid == 0


def test_a_directory_below_one_of_another_user_is_refused(base: Path) -> None:
    make_directories([directory(base, "site")], (65534, 65534))
    with pytest.raises(UntrustedPathError, match="belongs to user 65534"):
        make_directories([directory(base, "site/data")], (65534, 65534))


def test_directories_above_are_of_root(base: Path) -> None:
    make_directories([directory(base, "site/data")], (65534, 65534))
    assert (base / "site").stat().st_uid == 0
    assert (base / "site/data").stat().st_uid == 65534
    assert stat.S_IMODE((base / "site/data").stat().st_mode) == 0o750


def test_a_removed_directory_takes_nothing_along(tmp_path: Path, base: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target/file").touch()
    make_directories([directory(base, "site", "runtime"), directory(base, "kept")], None)
    (base / "site/link").symlink_to(tmp_path / "target")
    remove_directories([directory(base, "site", "runtime"), directory(base, "kept"), directory(base, "no", "runtime")])
    assert os.listdir(base) == ["kept"]
    assert (tmp_path / "target/file").exists()


def test_the_places_of_another_user_than_root() -> None:
    found = directories.bases(1000, {"HOME": "/home/site", "XDG_CACHE_HOME": "/cache"})
    assert found == {
        "runtime": "/run/user/1000",
        "state": "/home/site/.local/state",
        "cache": "/cache",
        "logs": "/home/site/.local/state/log",
        "configuration": "/home/site/.config",
    }
