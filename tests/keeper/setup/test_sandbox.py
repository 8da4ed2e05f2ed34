"""A program with a sandbox has devices of its own, and sees some paths read-only, empty or not at all."""

import os
import stat
from pathlib import Path

import pytest
import trio

from nsupervisor.keeper.setup import sandbox
from nsupervisor.keeper.setup.spec import Spec, SpecError
from tests.keeper.conftest import ISOLATED, Harness
from tests.needs import cgroup_directories, needs
from tests.roots import open_directories

SHIFTED = {"uid_mappings": [[0, 100_000, 1000]], "gid_mappings": [[0, 100_000, 1000]]}
WITHOUT_ROOT = {"uid_mappings": [[33, 100_033, 1]], "gid_mappings": [[33, 100_033, 1]], "uid": 33, "gid": 33}
PLAN = pytest.param({"namespaces": ISOLATED}, id="plan")
WAYS = pytest.mark.parametrize(
    "spec",
    [
        PLAN,
        pytest.param({"namespaces": ISOLATED, "init": False}, id="pid1"),
        pytest.param({"namespaces": ["mount"]}, id="only-mounts"),
        pytest.param({"namespaces": ISOLATED, "mounts": [{"type": "tmpfs", "destination": "/mnt"}]}, id="python"),
        pytest.param({"namespaces": [*ISOLATED, "user"], **SHIFTED}, id="shifted", marks=needs("userns")),
        pytest.param({"namespaces": [*ISOLATED, "user"], **WITHOUT_ROOT}, id="without-root", marks=needs("userns")),
    ],
)
TWICE = range(2)
"""The second time the standby has waited, so that its mounts were made in advance."""


def entries(action: str, *paths: object) -> dict:
    return {"paths": [[str(path), action] for path in paths]}


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory that every user can reach."""
    open_directories(tmp_path / "x")
    return tmp_path


# ---- the specification


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"other": 1},
        {"paths": [["relative", "masked"]]},
        {"paths": [["/a/../b", "masked"]]},
        {"paths": [["/a", "other"]]},
        {"proc": 1},
        {"devices": {"nodes": ["/etc/passwd"]}},
    ],
)
def test_what_is_no_sandbox_is_refused(value: object) -> None:
    base = {"id": "a", "argv": ["true"], "env": {}, "cwd": "/", "namespaces": ISOLATED}
    with pytest.raises(SpecError, match=r"^sandbox: "):
        Spec({**base, "sandbox": value})
    with pytest.raises(SpecError, match="sandbox needs a new mount namespace"):
        Spec({**base, "namespaces": [], "sandbox": {"devices": {}}})


def test_an_entry_for_a_path_in_a_directory_comes_after_that_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a-b").mkdir()
    given = entries("masked", tmp_path / "a-b", tmp_path / "a" / "b", tmp_path / "a", "/proc/sys", "-/none")
    _, _, paths = sandbox.resolve(sandbox.parse(given), frozenset({0, os.geteuid()}))
    assert [entry[0] for entry in paths] == [
        "/proc/sys",
        f"{tmp_path}/a",
        f"{tmp_path}/a/b",
        f"{tmp_path}/a-b",
    ]


def test_the_cgroups_are_made_read_only_after_those_of_version_1_are_joined() -> None:
    given = entries("read-only", "/proc/sys", "/sys", "/sys/fs/cgroup")
    resolved = sandbox.resolve(sandbox.parse(given), frozenset({0}))
    first, last = sandbox.split(resolved, joins_later=True)
    assert [entry[0] for entry in first[2]] == ["/proc/sys"]
    assert [entry[0] for entry in last[2]] == ["/sys", "/sys/fs/cgroup"]
    assert sandbox.split(resolved, joins_later=False) == (resolved, (None, "", ()))


def test_what_shows_the_own_cgroup_is_mounted_in_the_cgroup_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = None, "", (("/sys", "read-only", True, True, True), ("/sys/fs/cgroup", "own cgroup", True, True, True))
    hybrid = {"/sys/fs/cgroup/unified": "", "/sys/fs/cgroup/cpu": "cpu", "/sys/fs/cgroup/pids": "pids,xattr"}

    def shown(hierarchies: dict[str, str], cgroups: tuple[str, ...] | None) -> list[list[tuple[str, str]]]:
        monkeypatch.setattr(sandbox, "_hierarchies", lambda: hierarchies)
        sandbox._show_own_cgroup.cache_clear()
        found = None, "", sandbox._show_own_cgroup(resolved[2], cgroups)
        return [[entry[:2] for entry in part[2]] for part in sandbox.split(found, bool(cgroups))]

    sys = ("/sys", "read-only")
    assert shown({"/sys/fs/cgroup": ""}, ()) == [
        [sys, ("/sys/fs/cgroup", "masked")],
        [("/sys/fs/cgroup", "mount ")],
    ]
    assert shown(hybrid, ("/sys/fs/cgroup/pids/a/tasks",)) == [
        [("/sys/fs/cgroup/unified", "masked"), ("/sys/fs/cgroup/cpu", "masked")],
        [sys, ("/sys/fs/cgroup/pids", "mount pids,xattr"), ("/sys/fs/cgroup/unified", "mount ")],
    ]
    assert shown(hybrid, None) == [[sys], []], "without a cgroup, or a cgroup namespace"
    assert shown({}, ()) == [[sys], []]
    monkeypatch.undo()
    sandbox._show_own_cgroup.cache_clear()


@needs("root", "cgroup")
@pytest.mark.parametrize(
    "spec",
    [
        PLAN,
        pytest.param({"namespaces": ISOLATED, "init": False}, id="pid1"),
        pytest.param({"namespaces": [*ISOLATED, "user"], **SHIFTED}, id="shifted", marks=needs("userns")),
    ],
)
async def test_a_program_sees_its_own_cgroup_alone_where_runtimes_look_for_limits(harness: Harness, spec: dict) -> None:
    directories = cgroup_directories()
    joined = [path / f"own-{os.getpid()}" for name, path in directories.items() if name in ("memory", "pids")]
    core = directories[""] / f"own-{os.getpid()}"
    point = next(above for above in core.parents if not (above.parent / "cgroup.procs").exists())
    files = [
        point / "cgroup.max.descendants",
        *(Path(f"/sys/fs/cgroup/pids/{name}") for name in ("pids.max",) if joined),
    ]
    script = """
    cut -d: -f3 /proc/self/cgroup | sort -u
    find /sys/fs/cgroup -mindepth 2 -type d | grep -v /sys/fs/cgroup/unified
    cat "$@"
    mkdir $0/x 2>/dev/null || echo 5 2>/dev/null >"$1" || echo read-only
    """
    for directory in (core, *joined):
        directory.mkdir()
    try:
        (core / "cgroup.max.descendants").write_text("77")
        for directory in joined:
            if (directory / "pids.max").exists():
                (directory / "pids.max").write_text("77")
        for _ in TWICE:
            result = await harness.run(
                *("sh", "-c", script, str(point), *map(str, files)),
                cgroup=str(core),
                cgroup_procs=[f"{directory}/tasks" for directory in joined],
                sandbox=entries("own cgroup", "/sys/fs/cgroup"),
                **spec,
            )
            expected = ["/", *["77"] * len(files), "read-only"]
            assert (result.failure, result.stdout.split()) == (None, expected)
    finally:
        with trio.fail_after(20):
            for directory in (core, *joined):
                while (directory / "cgroup.procs").read_text():  # noqa: ASYNC110 - files of v1 send no notifications
                    await trio.sleep(0.005)
                directory.rmdir()


# ---- devices


DEVICES = {"devices": {"shm_size": 1 << 20}}


@needs("root")
@WAYS
async def test_a_program_has_devices_of_its_own(harness: Harness, spec: dict) -> None:
    script = """
    ls /dev | tr '\\n' ' '; echo
    stat -c '%F %a' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty | sort -u
    echo data >/dev/null && head -c 3 /dev/zero | wc -c && head -c 3 /dev/urandom | wc -c
    echo "to stdout" >/dev/stdout; echo "to stderr" >/dev/stderr
    ls /dev/pts; stat -c %a /dev/shm
    """
    for _ in TWICE:
        result = await harness.run("sh", "-c", script, sandbox=DEVICES, **spec)
        assert (result.failure, result.stderr) == (None, "to stderr\n")
        names, *rest = result.stdout.splitlines()
        assert set(names.split()) - {"log"} == {
            *("fd", "full", "mqueue", "null", "ptmx", "pts", "random"),
            *("shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"),
        }
        assert rest == ["character special file 666", "3", "3", "to stdout", "ptmx", "1777"]


@needs("root")
@WAYS
async def test_a_program_opens_a_terminal_of_its_own(harness: Harness, spec: dict) -> None:
    script = "import os; first, second = os.openpty(); print(os.ttyname(second), os.listdir('/dev/pts'))"
    result = await harness.run("/usr/bin/python3", "-c", script, sandbox=DEVICES, **spec)
    assert (result.failure, result.stderr) == (None, "")
    assert result.stdout.startswith("/dev/pts/0 ")


@needs("root")
async def test_without_the_key_the_devices_are_those_of_the_host(harness: Harness) -> None:
    result = await harness.run("ls", "/dev", namespaces=ISOLATED, sandbox={})
    assert set(result.stdout.split()) == set(os.listdir("/dev"))


@needs("root")
@WAYS
async def test_no_program_changes_its_dev(harness: Harness, spec: dict) -> None:
    """The tree may be shared with other programs."""
    for _ in TWICE:
        result = await harness.run("sh", "-c", "touch /dev/x; rm /dev/null; test -c /dev/null", sandbox=DEVICES, **spec)
        assert (result.failure, result.code) == (None, 0)
        assert result.stderr.count("Read-only file system") == 2, result.stderr


@needs("root")
async def test_without_a_shared_tree_each_program_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 6.15 a detached tree cannot be copied."""
    monkeypatch.setattr(sandbox.mounts, "open_tree", lambda *_, **__: (_ for _ in ()).throw(OSError(22, "no")))
    assert sandbox._make_tree(("", "")) == -1


@needs("root")
async def test_a_mount_of_the_program_may_be_in_dev(harness: Harness, shared: Path) -> None:
    (shared / "data").touch()
    bind = {"source": str(shared / "data"), "destination": "/dev/new/data"}
    result = await harness.run("ls", "/dev/new", namespaces=ISOLATED, sandbox=DEVICES, mounts=[bind])
    assert (result.failure, result.stderr, result.stdout) == (None, "", "data\n")


@needs("root")
async def test_the_shared_memory_has_a_limit(harness: Harness) -> None:
    script = "head -c 900K /dev/zero >/dev/shm/x && head -c 200K /dev/zero >/dev/shm/y"
    result = await harness.run("sh", "-c", script, namespaces=ISOLATED, sandbox=DEVICES)
    assert "No space left" in result.stderr


@needs("root")
async def test_the_hosts_shared_memory_is_there_without_an_ipc_namespace(harness: Harness) -> None:
    outside = Path(f"/dev/shm/nsupervisor-test-{os.getpid()}")
    outside.write_text("data")
    try:
        result = await harness.run("cat", str(outside), namespaces=["mount", "pid"], sandbox=DEVICES)
    finally:
        outside.unlink()
    assert (result.failure, result.stderr, result.stdout) == (None, "", "data")


@needs("root")
@WAYS
async def test_a_further_device_is_there_with_its_own_mode(harness: Harness, spec: dict) -> None:
    wanted = {"devices": {"nodes": ["/dev/kmsg", "-/dev/none"]}}
    result = await harness.run("stat", "-c", "%F %a", "/dev/kmsg", sandbox=wanted, **spec)
    mode = stat.S_IMODE(os.stat("/dev/kmsg").st_mode)
    assert (result.failure, result.stdout) == (None, f"character special file {mode:o}\n")


@needs("root")
async def test_a_missing_device_is_an_error(harness: Harness) -> None:
    result = await harness.run("true", namespaces=ISOLATED, sandbox={"devices": {"nodes": ["/dev/none"]}})
    assert result.failure is not None
    assert result.failure.step == "protect_paths"
    assert result.failure.message.startswith("cannot find /dev/none: No such file or directory")


# ---- paths


@needs("root")
@WAYS
async def test_a_read_only_path_is_read_only_with_what_is_mounted_in_it(
    harness: Harness, shared: Path, spec: dict
) -> None:
    (shared / "file").write_text("data\n")
    (shared / "file").chmod(0o666)
    (shared / "inside").mkdir()
    script = f"cat {shared}/file; echo x >{shared}/file; echo x >/proc/sys/kernel/domainname; touch /usr/x"
    given = entries("read-only", "/proc/sys", "/usr", shared)
    for _ in TWICE:
        result = await harness.run("sh", "-c", script, sandbox=given, **spec)
        assert (result.failure, result.stdout) == (None, "data\n")
        assert result.stderr.count("Read-only file system") + result.stderr.count("Permission denied") == 3
    assert (shared / "file").read_text() == "data\n"


@needs("root")
@WAYS
async def test_a_writable_path_stays_so_in_a_read_only_file_system(harness: Harness, shared: Path, spec: dict) -> None:
    for name in ("open", "closed"):
        (shared / name).mkdir()
        (shared / name).chmod(0o777)
    given = {"paths": [["/", "read-only"], [f"{shared}/open", "read-write"], [f"{shared}/open/no", "read-only"]]}
    (shared / "open" / "no").mkdir()
    (shared / "open" / "no").chmod(0o777)
    script = f"cd {shared}; touch open/x; touch closed/x; touch open/no/x; touch /proc/self/comm; : >/dev/null"
    for _ in TWICE:
        result = await harness.run("sh", "-c", script, sandbox=given, **spec)
        assert result.failure is None
        assert result.stderr.count("Read-only file system") == 2, result.stderr
        (shared / "open" / "x").unlink()
    assert not list((shared / "closed").iterdir())


@needs("root")
@WAYS
async def test_what_is_masked_is_empty(harness: Harness, shared: Path, spec: dict) -> None:
    (shared / "directory").mkdir()
    (shared / "directory" / "file").touch()
    (shared / "file").write_text("data")
    given = entries(
        "masked", "/proc/interrupts", "/proc/acpi", "/sys/firmware", "/proc/none", shared / "directory", shared / "file"
    )
    script = (
        f"wc -c </proc/interrupts; ls -A /proc/acpi /sys/firmware {shared}/directory | grep -v :; wc -c <{shared}/file"
    )
    for _ in TWICE:
        result = await harness.run("sh", "-c", script, sandbox=given, **spec)
        assert (result.failure, result.stderr) == (
            None,
            "ls: cannot access '/proc/acpi': No such file or directory\n" * (not os.path.exists("/proc/acpi")),
        )
        assert result.stdout.split() == ["0", "0"]


@needs("root")
async def test_only_root_opens_what_is_inaccessible(harness: Harness, shared: Path) -> None:
    (shared / "directory").mkdir()
    given = entries("inaccessible", shared / "directory", "/usr/lib/modules")
    result = await harness.run("ls", f"{shared}/directory", namespaces=ISOLATED, sandbox=given, uid=1234, gid=1234)
    assert (result.failure, "Permission denied" in result.stderr) == (None, True)


@needs("root")
@WAYS
async def test_a_temporary_directory_is_of_the_program_alone(harness: Harness, spec: dict) -> None:
    outside = Path(f"/tmp/nsupervisor-test-{os.getpid()}")
    outside.touch()
    try:
        script = "ls -A /tmp; stat -c %a /tmp; touch /tmp/inside && ls /tmp"
        result = await harness.run("sh", "-c", script, sandbox=entries("temporary", "/tmp"), **spec)
    finally:
        outside.unlink()
    assert (result.failure, result.stderr, result.stdout) == (None, "", "1777\ninside\n")


@needs("root")
async def test_a_mount_of_the_program_covers_what_is_protected(harness: Harness, shared: Path) -> None:
    (shared / "data").mkdir()
    bind = {"source": str(shared / "data"), "destination": "/home/data"}
    given = entries("temporary", "/home")
    script = "touch /home/data/x && touch /usr/share/x"
    over = {"type": "tmpfs", "destination": "/usr/share"}
    given["paths"].append(["/usr", "read-only"])
    result = await harness.run("sh", "-c", script, namespaces=ISOLATED, sandbox=given, mounts=[bind, over])
    assert (result.failure, result.stderr) == (None, "")
    assert (shared / "data" / "x").exists()


@needs("root")
@pytest.mark.parametrize("spaces", [ISOLATED, pytest.param([*ISOLATED, "user"], marks=needs("userns"))])
async def test_a_mount_shows_what_is_hidden(harness: Harness, shared: Path, spaces: list[str]) -> None:
    """A program has one directory of /home, and sees no other."""
    for name in ("hidden", "shown"):
        (shared / name).mkdir()
        (shared / name / name).touch()
    bind = {"source": f"{shared}/shown", "destination": f"{shared}/shown", "options": ["rbind"]}
    given = entries("temporary", shared)
    script = f"ls {shared} {shared}/shown"
    result = await harness.run("sh", "-c", script, namespaces=spaces, sandbox=given, mounts=[bind])
    assert (result.failure, result.stderr) == (None, "")
    assert result.stdout == f"{shared}:\nshown\n\n{shared}/shown:\nshown\n"


@needs("root")
async def test_a_path_that_is_missing_is_an_error_unless_it_may_be(harness: Harness, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    result = await harness.run("true", namespaces=ISOLATED, sandbox=entries("read-only", missing))
    assert result.failure is not None
    assert result.failure.message.startswith(f"cannot find {missing}: No such file or directory (write")
    result = await harness.run("true", namespaces=ISOLATED, sandbox=entries("read-only", f"-{missing}"))
    assert (result.failure, result.code) == (None, 0)


@needs("root")
async def test_a_path_through_a_link_of_another_user_is_refused(harness: Harness, shared: Path) -> None:
    (shared / "theirs").mkdir()
    os.chown(shared / "theirs", 1234, 1234)
    (shared / "theirs" / "link").symlink_to("/etc")
    result = await harness.run("true", namespaces=ISOLATED, sandbox=entries("read-write", shared / "theirs" / "link"))
    assert result.failure is not None
    assert "is a symbolic link to /etc, which is not followed" in result.failure.message


@needs("root")
async def test_the_other_processes_are_hidden_from_a_user(harness: Harness) -> None:
    for spec in ({"namespaces": ISOLATED}, {"namespaces": ["mount"]}):
        for _ in TWICE:
            given = {"proc": "hidepid=invisible"}
            result = await harness.run("ls", "-d", "/proc/1", sandbox=given, uid=1234, gid=1234, **spec)
            assert (result.failure, "No such file" in result.stderr) == (None, True)


@needs("root")
async def test_nothing_but_processes_is_in_proc(harness: Harness) -> None:
    given = {"proc": "subset=pid", **entries("masked", "/proc/acpi", "/sys/firmware"), **DEVICES}
    result = await harness.run(
        "ls", "-A", "/proc/self/comm", "/proc/sys", "/sys/firmware", namespaces=ISOLATED, sandbox=given
    )
    assert "'/proc/sys': No such file" in result.stderr
    assert result.stdout.split() == ["/proc/self/comm", "/sys/firmware:"]


@needs("root")
async def test_a_shown_directory_is_there_although_its_place_is_hidden(harness: Harness, shared: Path) -> None:
    """The runtime directory may be in /tmp, which the program has of its own."""
    directory = Path(f"/tmp/nsupervisor-test-{os.getpid()}")
    (directory / "notify").mkdir(parents=True)
    try:
        cover = {"directory": str(directory), "show": {"notify": "notify"}, "links": {}}
        given = entries("temporary", "/tmp")
        result = await harness.run("ls", "-A", str(directory), namespaces=ISOLATED, sandbox=given, cover=cover)
    finally:
        (directory / "notify").rmdir()
        directory.rmdir()
    assert (result.failure, result.stderr, result.stdout) == (None, "", "notify\n")


@needs("root")
async def test_more_paths_than_a_plan_has_results(harness: Harness, shared: Path) -> None:
    for number in range(130):
        (shared / str(number)).mkdir()
    given = entries("read-only", *(shared / str(number) for number in range(130)))
    script = f"cd {shared}; for number in 0 64 129; do touch $number/x; done"
    result = await harness.run("sh", "-c", script, namespaces=ISOLATED, sandbox=given)
    assert (result.failure, result.stderr.count("Read-only file system")) == (None, 3)
