"""A program sees some of the host's mounts, shared memory and devices; the host sees none of its mounts."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nsupervisor.linux.mounts import MNT_DETACH, MS_PRIVATE, mount, umount2
from tests.keeper.conftest import ISOLATED, Harness
from tests.needs import ROOT, needs
from tests.roots import open_directories

pytestmark = needs("root")

MS_SHARED = 1 << 20
SHIFTED = {"uid_mappings": [[0, 100_000, 1000]], "gid_mappings": [[0, 100_000, 1000]]}
WITHOUT_ROOT = {"uid_mappings": [[33, 100_033, 1]], "gid_mappings": [[33, 100_033, 1]], "uid": 33, "gid": 33}
ROOT_WAYS = [
    pytest.param({"namespaces": ISOLATED}, id="init"),
    pytest.param({"namespaces": ISOLATED, "init": False}, id="pid1"),
    pytest.param({"namespaces": ISOLATED, "uid": 1234, "gid": 1234}, id="other-user"),
    pytest.param({"namespaces": [*ISOLATED, "user"]}, id="user", marks=needs("userns")),
    pytest.param({"namespaces": [*ISOLATED, "user"], **SHIFTED}, id="shifted", marks=needs("userns")),
]
NO_ROOT = pytest.param({"namespaces": [*ISOLATED, "user"], **WITHOUT_ROOT}, id="without-root", marks=needs("userns"))
WAYS = pytest.mark.parametrize("spec", [*ROOT_WAYS, NO_ROOT])


@contextmanager
def tmpfs(directory: Path, propagation: int = MS_PRIVATE) -> Iterator[Path]:
    """Mount a tmpfs on a new directory."""
    directory.mkdir(exist_ok=True)
    mount("tmpfs", str(directory), "tmpfs", 0, "mode=755")
    mount(None, str(directory), None, propagation)
    try:
        yield directory
    finally:
        umount2(str(directory), MNT_DETACH)


def mount_points(pid: int) -> list[str]:
    """Return the mount points in the mount namespace of a process."""
    return [line.split()[4] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]


# ---- propagation


@pytest.mark.fault("C3")
@WAYS
async def test_a_disk_that_the_host_unmounted_stayed_busy_in_the_program(
    harness: Harness, tmp_path: Path, spec: dict
) -> None:
    with tmpfs(tmp_path / "shared", MS_SHARED) as shared:
        disk = shared / "disk"
        with tmpfs(disk):
            spawned = await harness.spawn("sleep", "1000", **spec)
            program = await harness.execed(spawned)
            assert str(disk) in mount_points(program.pid)
        assert str(disk) not in mount_points(program.pid)


@pytest.mark.fault("C3")
@pytest.mark.parametrize("options", [[], ["rslave"], ["rshared"]])
async def test_no_mount_of_the_program_is_seen_on_the_host(
    harness: Harness, tmp_path: Path, options: list[str]
) -> None:
    """Not even through a bind mount of shared directories that the program makes shared again."""
    with tmpfs(tmp_path / "shared", MS_SHARED) as shared:
        for name in ("source", "copy", "inside"):
            (shared / name).mkdir()
        before = Path("/proc/self/mountinfo").read_text()
        bind = {"source": str(shared / "source"), "destination": str(shared / "copy"), "options": options}
        inner = {"type": "tmpfs", "destination": str(shared / "inside")}
        script = f"mkdir {shared}/copy/new && mount -t tmpfs new {shared}/copy/new && echo up && exec sleep 1000"
        spawned, said = await harness.run_until_ready("sh", "-c", script, namespaces=ISOLATED, mounts=[bind, inner])
        assert said == b"up\n"
        after = Path("/proc/self/mountinfo").read_text()
        inside = mount_points(spawned.pid)
    assert {f"{shared}/inside", f"{shared}/copy/new"} <= set(inside)
    assert after == before


@pytest.mark.fault("C3")
@pytest.mark.parametrize(("options", "arrives"), [(["rbind", "ro"], False), (["rbind", "rslave"], True)])
async def test_a_later_mount_of_the_host_arrives_in_a_bind_mount_only_on_request(
    harness: Harness, tmp_path: Path, options: list[str], arrives: bool
) -> None:
    """In a read-only bind mount it would be writable."""
    with tmpfs(tmp_path / "shared", MS_SHARED) as shared:
        (tmp_path / "copy").mkdir()
        bind = {"source": str(shared), "destination": str(tmp_path / "copy"), "options": options}
        spawned = await harness.spawn("sleep", "1000", namespaces=ISOLATED, mounts=[bind])
        program = await harness.execed(spawned)
        with tmpfs(shared / "later"):
            inside = mount_points(program.pid)
    assert str(shared / "later") in inside
    assert (str(tmp_path / "copy" / "later") in inside) == arrives


# ---- shared memory and message queues


@pytest.mark.fault("C4")
@WAYS
async def test_shared_memory_of_a_killed_program_stayed_on_the_host(harness: Harness, spec: dict) -> None:
    name = f"nsupervisor-test-{os.getpid()}"
    outside = Path(f"/dev/shm/{name}-outside")
    outside.touch()
    try:
        script = f"ls -A /dev/shm; stat -c %a /dev/shm; echo data >/dev/shm/{name} && cat /dev/shm/{name}"
        result = await harness.run("sh", "-c", script, **spec)
    finally:
        outside.unlink()
    assert (result.failure, result.stderr, result.stdout) == (None, "", "1777\ndata\n")
    assert not Path(f"/dev/shm/{name}").exists()


@pytest.mark.fault("C4")
async def test_processes_of_one_ipc_namespace_share_their_memory(harness: Harness) -> None:
    """With `ipc = false` the program is a part of the host's IPC namespace, and has its shared memory."""
    outside = Path(f"/dev/shm/nsupervisor-test-{os.getpid()}")
    outside.write_text("data")
    try:
        result = await harness.run("cat", str(outside), namespaces=["mount", "pid"])
    finally:
        outside.unlink()
    assert (result.stderr, result.stdout) == ("", "data")


QUEUES = """
import os
import subprocess
import sys
from types import SimpleNamespace
from nsupervisor.keeper.setup import steps
from nsupervisor.linux.mounts import MS_PRIVATE, MS_REC, mount
from nsupervisor.linux.namespaces import clone_flags
from nsupervisor.linux.syscalls import unshare

spec = SimpleNamespace(namespaces=frozenset({"ipc", "mount"}), uid_mappings=[], gid_mappings=[], sandbox=None)
unshare(clone_flags(spec.namespaces))
mount(None, "/", None, MS_REC | MS_PRIVATE)
mount("tmpfs", "/dev", "tmpfs", 0)
steps.mount_ipc(spec)  # a host without these directories needs no file systems there
os.mkdir("/dev/mqueue")
mount("mqueue", "/dev/mqueue", "mqueue", 0)
open("/dev/mqueue/outside", "w").close()
unshare(clone_flags({"ipc"}))
steps.mount_ipc(spec)
print(os.listdir("/dev/mqueue"))
"""


@pytest.mark.fault("C4")
def test_the_message_queues_were_those_of_the_host() -> None:
    done = subprocess.run([sys.executable, "-c", QUEUES], cwd=ROOT, capture_output=True, text=True)
    assert (done.stderr, done.stdout) == ("", "[]\n")


# ---- devices


NETWORKS = pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"namespaces": [*ISOLATED, "network"]}, id="init"),
        pytest.param({"namespaces": ["network", "mount"]}, id="plain"),
        pytest.param({"namespaces": [*ISOLATED, "network", "user"], **SHIFTED}, id="shifted", marks=needs("userns")),
    ],
)


@pytest.mark.fault("C5")
@needs("netns")
@NETWORKS
async def test_a_network_namespace_showed_the_devices_of_the_host(harness: Harness, spec: dict) -> None:
    script = "ls /sys/class/net; grep ' /sys ' /proc/self/mountinfo | tail -n 1; ls /sys/fs/cgroup | wc -l"
    result = await harness.run("sh", "-c", script, **spec)
    assert (result.failure, result.stderr) == (None, "")
    *devices, mount_line, cgroup_files = result.stdout.splitlines()
    assert "lo" in devices
    assert set(devices) <= {"lo", *FALLBACK_TUNNELS}
    assert mount_line.split()[5].startswith("ro,nosuid,nodev,noexec")
    assert int(cgroup_files) == len(os.listdir("/sys/fs/cgroup")), "runtimes find their limits there"


FALLBACK_TUNNELS = {"tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"}
"""Devices of each network namespace if the host has their modules loaded (net.core.fb_tunnels_only_for_init_net)."""


@pytest.mark.fault("C5")
async def test_without_a_network_namespace_the_devices_are_the_hosts(harness: Harness) -> None:
    result = await harness.run("ls", "/sys/class/net", namespaces=ISOLATED)
    assert result.stdout.split() == sorted(os.listdir("/sys/class/net"))


# ---- modes


@pytest.mark.fault("C12")
@needs("program:setpriv")
@pytest.mark.parametrize("spec", ROOT_WAYS)  # without a root the set-up makes no files in a tmpfs
async def test_directories_for_mounts_depended_on_the_umask_of_the_caller(
    strict_umask: None, harness: Harness, tmp_path: Path, spec: dict
) -> None:
    open_directories(tmp_path / "x")
    (tmp_path / "file").write_text("data")
    (tmp_path / "file").chmod(0o644)
    mounts = [
        {"type": "tmpfs", "destination": "/mnt", "options": ["mode=755"]},
        {"source": str(tmp_path), "destination": "/mnt/a/b/data"},
        {"source": str(tmp_path / "file"), "destination": "/mnt/c/d/file"},
    ]
    script = "cat /mnt/a/b/data/file /mnt/c/d/file; stat -c %a /mnt/a /mnt/a/b /mnt/c /mnt/c/d"
    is_root_alone = "user" in spec["namespaces"] and "uid_mappings" not in spec  # so it has no user to change to
    drop = [] if "uid" in spec or is_root_alone else ["setpriv", "--reuid=65", "--regid=65", "--clear-groups"]
    result = await harness.run(*drop, "sh", "-c", script, mounts=mounts, **spec)
    assert (result.failure, result.stderr) == (None, "")
    assert result.stdout == "datadata755\n755\n755\n755\n"
