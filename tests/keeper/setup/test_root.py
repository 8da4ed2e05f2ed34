"""Programs with a root file system of their own."""

import os
import shutil
from pathlib import Path

import pytest

from tests.keeper.conftest import ISOLATED, Harness, Result
from tests.needs import needs
from tests.roots import make_root, open_directories

pytestmark = needs("root")

SANDBOX = {
    "devices": {"nodes": [], "shm_size": 1 << 20},
    "paths": [["/proc/sys", "read-only"], ["/proc/interrupts", "masked"], ["/sys", "read-only"]],
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("roots") / "template")


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    root = tmp_path / "root"
    shutil.copytree(template, root, symlinks=True)
    open_directories(root)
    return root


async def run(harness: Harness, root: Path, /, *argv: str, **spec: object) -> Result:
    given = {"path": str(root), **spec.pop("root", {})}  # type: ignore[dict-item]
    return await harness.run(*argv, **{"namespaces": ISOLATED, "root": given, "sandbox": SANDBOX, **spec})


async def output(harness: Harness, root: Path, script: str, /, **spec: object) -> str:
    result = await run(harness, root, "sh", "-c", script, **spec)
    assert result.failure is None, result.failure
    assert result.code == 0, result
    return result.stdout


async def test_a_program_sees_its_root_alone(harness: Harness, root: Path) -> None:
    assert await output(harness, root, "cat /etc/of-the-root; ls /") == "of the root\n" + "\n".join(
        [*sorted({*os.listdir(root), "dev", "proc", "sys"}), ""]
    )


async def test_no_mount_of_the_host_is_left(harness: Harness, root: Path) -> None:
    places = {line.split()[4] for line in (await output(harness, root, "cat /proc/self/mountinfo")).splitlines()}
    assert {"/", "/proc", "/dev", "/sys"} <= places
    assert {place.split("/")[1] for place in places} == {"", "proc", "dev", "sys"}


async def test_dev_proc_and_sys_are_those_of_the_sandbox(harness: Harness, root: Path) -> None:
    script = "echo x > /dev/null; cat /proc/1/comm; ls /proc/interrupts /dev; echo 1 > /proc/sys/vm/overcommit_memory"
    result = await run(harness, root, "sh", "-c", script)
    assert "urandom" in result.stdout
    assert "Read-only file system" in result.stderr
    assert (await output(harness, root, "cat /proc/interrupts")) == ""


async def test_the_program_and_its_path_are_inside(harness: Harness, root: Path) -> None:
    (root / "opt").mkdir()
    (root / "opt" / "own").write_text("#!/bin/sh\necho own\n")
    (root / "opt" / "own").chmod(0o755)
    result = await run(harness, root, "own", env={"PATH": "/opt:/bin"})
    assert result.stdout == "own\n", result


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ("missing", "searched PATH=/bin in the root {}"),
        ("/bin/missing", "searched in the root {}"),
        ("/bin/script", "the file is there, so the interpreter that it names is not in the root {}"),
    ],
)
async def test_a_missing_program_names_the_root(harness: Harness, root: Path, argv: str, reason: str) -> None:
    (root / "bin/script").write_text("#!/usr/bin/python3\n")
    (root / "bin/script").chmod(0o755)
    result = await run(harness, root, argv, env={"PATH": "/bin"})
    assert result.failure is not None
    assert result.failure.step == "execute"
    assert result.failure.message == f"cannot execute {argv}: No such file or directory ({reason.format(root)})"


async def test_a_missing_working_directory_is_reported(harness: Harness, root: Path) -> None:
    result = await run(harness, root, "ls", cwd="/usr/share")
    assert result.failure is not None
    assert result.failure.message == "cannot enter /usr/share: No such file or directory"


async def test_a_read_only_root(harness: Harness, root: Path) -> None:
    result = await run(harness, root, "touch", "/tmp/file", root={"readonly": True})
    assert "Read-only file system" in result.stderr
    script = "touch /dev/shm/file /run/file && cat /run/file"
    mounts = [{"type": "tmpfs", "destination": "/run"}]
    assert await output(harness, root, script, root={"readonly": True}, mounts=mounts) == ""


async def test_a_temporary_upper_layer(harness: Harness, root: Path) -> None:
    before = sorted(os.listdir(root))
    given = {"overlay": ""}
    mounts = [{"type": "tmpfs", "destination": "/new/place"}]
    assert await output(harness, root, "echo x > /file; cat /file", root=given, mounts=mounts) == "x\n"
    assert sorted(os.listdir(root)) == before
    result = await run(harness, root, "cat", "/file", root=given)
    assert "No such file" in result.stderr


async def test_a_named_upper_layer_stays(harness: Harness, root: Path, tmp_path: Path) -> None:
    for name in ("upper", "work"):
        (tmp_path / "layers" / name).mkdir(parents=True)
    given = {"overlay": str(tmp_path / "layers")}
    await output(harness, root, "echo x > /file", root=given)
    assert await output(harness, root, "cat /file", root=given) == "x\n"
    assert not (root / "file").exists()


async def test_a_bind_mount_shows_a_directory_of_the_host(harness: Harness, root: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("of the host\n")
    mounts = [
        {"source": str(tmp_path / "data"), "destination": "/srv/data", "options": ["ro"]},
        {"source": str(tmp_path / "data/file"), "destination": "/etc/file"},
    ]
    assert await output(harness, root, "cat /srv/data/file /etc/file", mounts=mounts) == "of the host\n" * 2
    result = await run(harness, root, "touch", "/srv/data/new", mounts=mounts)
    assert "Read-only" in result.stderr


async def test_file_systems_are_mounted_in_the_given_order(harness: Harness, root: Path, tmp_path: Path) -> None:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower/file").write_text("of a layer\n")
    layers = [f"{key}={tmp_path / name}" for key, name in (("lowerdir", "lower"), ("upperdir", "upper"))]
    mounts = [
        {"type": "tmpfs", "destination": "/a", "options": ["size=1m", "noexec"]},
        {"type": "overlay", "destination": "/a/b", "options": [*layers, f"workdir={tmp_path / 'work'}"]},
        {"type": "proc", "destination": "/a/proc"},
        {"type": "sysfs", "destination": "/a/sys", "options": ["ro"]},
        {"type": "mqueue", "destination": "/a/mqueue"},
    ]
    script = "cat /a/b/file /a/proc/1/comm; ls /a /a/sys; grep ' /a' /proc/self/mountinfo"
    text = await output(harness, root, script, mounts=mounts, namespaces=[*ISOLATED, "network"])
    assert text.startswith("of a layer\n")
    assert "noexec" in text
    assert "mqueue\nproc\nsys\n" in text


# ---- roots of others


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
@pytest.mark.parametrize("target", ["etc", "/etc", "../../../../../../proc"])
async def test_a_link_in_place_of_a_directory_of_the_kernel_is_refused(
    harness: Harness, root: Path, name: str, target: str
) -> None:
    (root / name).symlink_to(target)
    result = await run(harness, root, "ls")
    assert result.failure is not None
    assert result.failure.step == "enter_root"
    assert name in result.failure.message
    assert sorted(os.listdir(root / "etc")) == ["group", "of-the-root", "passwd"]


@pytest.mark.parametrize("target", ["/proc", "/proc/sys", "../../../../proc/1", "/dev"])
async def test_no_mount_is_attached_in_the_kernel_s_directories_by_a_link(
    harness: Harness, root: Path, target: str
) -> None:
    (root / "data").symlink_to(target)
    result = await run(harness, root, "ls", mounts=[{"type": "tmpfs", "destination": "/data"}])
    assert result.failure is not None
    assert "by a symbolic link in the root" in result.failure.message


@pytest.mark.parametrize("target", ["/etc", "../../../../../../../../etc", "/proc/self/root/etc"])
async def test_a_link_as_destination_stays_inside(harness: Harness, root: Path, target: str) -> None:
    (root / "link").symlink_to(target)
    result = await run(harness, root, "ls", "/etc", mounts=[{"type": "tmpfs", "destination": "/link"}])
    if "self" in target:
        assert result.failure is not None
    else:
        assert (result.stdout, result.failure) == ("", None)
    assert os.path.exists("/etc/passwd")


async def test_a_link_in_place_of_a_protected_directory_is_not_followed(harness: Harness, root: Path) -> None:
    (root / "home/site").rmdir()
    (root / "home").rmdir()
    (root / "home").symlink_to("/proc")
    paths = [*SANDBOX["paths"], ["/home", "inaccessible"]]
    assert await output(harness, root, "cat /proc/1/comm", sandbox={**SANDBOX, "paths": paths})
    paths = [*SANDBOX["paths"], ["/home/sys", "read-write"]]
    result = await run(harness, root, "ls", sandbox={**SANDBOX, "paths": paths})
    assert result.failure is not None
    assert "a part of it is a symbolic link in the root" in result.failure.message


@pytest.mark.parametrize("target", ["usr/lib", "/usr/lib", "/opt"])
async def test_paths_below_lib_are_protected_where_it_is_a_link_to_usr_lib(
    harness: Harness, root: Path, target: str
) -> None:
    """The profile "strict" hides /lib/modules, and refused each root whose /lib is a link, as that of Debian."""
    (root / "usr").mkdir(exist_ok=True)
    if (root / "lib").exists():
        (root / "lib").rename(root / "usr/lib")
    (root / "usr/lib/modules").mkdir(parents=True)
    (root / "usr/lib/modules/file").touch()
    (root / "lib").symlink_to(target)
    sandbox = {**SANDBOX, "paths": [["-/lib/modules", "inaccessible"]]}
    result = await run(harness, root, "ls", "/usr/lib/modules", sandbox=sandbox)
    if target == "/opt":
        assert result.failure is not None
        assert "a part of it is a symbolic link in the root" in result.failure.message
    else:
        assert (result.stdout, result.failure) == ("", None)


@pytest.mark.parametrize("target", ["/", "../../../../../../.."])
async def test_a_working_directory_that_is_a_link_stays_inside(harness: Harness, root: Path, target: str) -> None:
    (root / "work").symlink_to(target)
    result = await run(harness, root, "ls", "etc", cwd="/work")
    assert "of-the-root" in result.stdout


async def test_the_host_is_out_of_reach(harness: Harness, root: Path) -> None:
    for place in ("/../../../..", "/proc/1/root", "/proc/self/cwd/../../.."):
        assert "of-the-root" in await output(harness, root, f"ls {place}/etc")


async def test_devices_in_the_root_cannot_be_opened(harness: Harness, root: Path) -> None:
    os.mknod(root / "zero", 0o20666, os.makedev(1, 5))
    result = await run(harness, root, "cat", "/zero")
    assert "Permission denied" in result.stderr


async def test_paths_of_the_sandbox_are_those_of_the_root(harness: Harness, root: Path) -> None:
    for name in ("usr", "closed", "open", "open/in"):
        (root / name).mkdir()
    (root / "closed/file").write_text("")
    paths = [
        *SANDBOX["paths"],
        *(["/", "read-only"], ["/open", "read-write"], ["/closed", "inaccessible"], ["/tmp", "temporary"]),
        *(["/etc/of-the-root", "inaccessible"], ["-/missing", "read-only"], ["/boot", "read-only"]),
    ]
    sandbox = {**SANDBOX, "paths": paths}
    script = "touch /open/in/file /tmp/file && ls /closed && cat /etc/of-the-root"
    assert await output(harness, root, script, sandbox=sandbox) == ""
    result = await run(harness, root, "touch", "/usr/file", sandbox=sandbox)
    assert "Read-only" in result.stderr


async def test_a_user_namespace(harness: Harness, root: Path) -> None:
    mapping = [[0, 100000, 65536]]
    spec = {"namespaces": [*ISOLATED, "user"], "uid_mappings": mapping, "gid_mappings": mapping}
    for name in ("dev", "proc", "sys"):
        (root / name).mkdir()
    assert await output(harness, root, "id -u; cat /etc/of-the-root", **spec) == "0\nof the root\n"
    result = await run(harness, root, "sh", "-c", "echo x > /file", root={"overlay": ""}, **spec)
    assert result.failure is None, result.failure


@pytest.mark.parametrize("namespaces", [["mount"], ["mount", "pid"], [*ISOLATED, "network", "time"]])
@pytest.mark.parametrize("spec", [{"sandbox": None}, {"init": False}, {}])
async def test_each_way_to_start(harness: Harness, root: Path, namespaces: list[str], spec: dict[str, object]) -> None:
    given = {key: value for key, value in spec.items() if value is not None}
    if "sandbox" not in spec:
        given["sandbox"] = SANDBOX
    argv = ["sh", "-c", "cat /etc/of-the-root; test -d /proc/self && test -e /dev/null && test -d /sys/kernel"]
    result = await harness.run(*argv, namespaces=namespaces, root={"path": str(root)}, **given)
    assert (result.failure, result.code, result.stdout) == (None, 0, "of the root\n"), result


# ---- the runtime directory


async def test_the_notify_socket_is_shown_in_the_root(harness: Harness, root: Path, tmp_path: Path) -> None:
    runtime = tmp_path / "runtime"
    (runtime / "notify/one").mkdir(parents=True)
    (runtime / "notify/one/socket").write_text("")
    (runtime / "key").write_text("")
    cover = {"directory": str(runtime), "show": {"notify/one": "notify/one"}, "links": {}}
    text = await output(harness, root, f"ls {runtime} {runtime}/notify/one", cover=cover)
    assert text == f"{runtime}:\nnotify\n\n{runtime}/notify/one:\nsocket\n"


async def test_a_mount_that_shows_the_runtime_directory_is_covered(
    harness: Harness, root: Path, tmp_path: Path
) -> None:
    runtime = tmp_path / "shown/runtime"
    (runtime / "notify/one").mkdir(parents=True)
    (runtime / "key").write_text("")
    cover = {"directory": str(runtime), "show": {}, "links": {}}
    mounts = [{"source": str(tmp_path / "shown"), "destination": "/shown"}]
    assert await output(harness, root, "ls /shown /shown/runtime", cover=cover, mounts=mounts) == (
        "/shown:\nruntime\n\n/shown/runtime:\n"
    )


async def test_the_runtime_directory_cannot_be_the_root(harness: Harness, root: Path) -> None:
    cover = {"directory": str(root), "show": {}, "links": {}}
    result = await run(harness, root / "etc", "ls", cover=cover)
    assert result.failure is not None
    assert "runtime directory, which programs may not see" in result.failure.message
