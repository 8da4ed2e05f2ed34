"""What a program finds when it starts, and how its end is told. Real processes, real namespaces."""

# ruff: noqa: ASYNC110  (what /proc says can only be polled, and is there at once)

import errno
import os
import signal
import sys
from pathlib import Path

import pytest
import trio

from nsupervisor.keeper.messages import SpawnError
from nsupervisor.linux.namespaces import NAMESPACES
from tests.descriptors import open_descriptors
from tests.keeper.conftest import ISOLATED, PATH, Harness
from tests.needs import cgroup_directories, needs
from tests.timing import deadline

pytestmark = needs("root")

MOUNTS = [{"type": "tmpfs", "destination": "/mnt"}]
"""With mounts the set-up runs in Python, without them as a plan."""
KINDS = pytest.mark.parametrize(
    "spec",
    [
        pytest.param({}, id="plain"),
        pytest.param({"namespaces": ISOLATED}, id="init"),
        pytest.param({"namespaces": ISOLATED, "mounts": MOUNTS}, id="init-mounts"),
        pytest.param({"namespaces": ISOLATED, "init": False}, id="pid1"),
        pytest.param({"namespaces": ISOLATED, "uid": 1234, "gid": 1234, "groups": []}, id="init-user"),
    ],
)


@KINDS
@pytest.mark.parametrize("code", [0, 1, 127, 255])
async def test_exit_codes_are_exact(harness: Harness, spec: dict, code: int) -> None:
    result = await harness.run("sh", "-c", f"echo out; echo err >&2; exit {code}", **spec)
    assert (result.status, result.failure) == (code << 8, None)
    assert (result.stdout, result.stderr) == ("out\n", "err\n")


@KINDS
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGRTMIN])
async def test_ends_by_a_signal_are_exact(harness: Harness, spec: dict, signum: int) -> None:
    spawned = await harness.spawn("sleep", "1000", **spec)
    program = await harness.execed(spawned)
    if spec.get("init") is False and signum != signal.SIGKILL:
        # PID 1 ignores what it has no handler for, even from outside: what the init is for.
        os.kill(program.pid, signal.SIGTERM)
        signum = signal.SIGKILL
    os.kill(program.pid, signum)
    end = await harness.ended(spawned)
    assert (os.WTERMSIG(end.status), end.failure) == (signum, None)


@needs("netns", "time_namespace")
@pytest.mark.parametrize("init", [True, False])
@pytest.mark.parametrize("name", NAMESPACES)
async def test_each_namespace_is_new_and_only_it(harness: Harness, name: str, init: bool) -> None:
    names = [name, "mount"] if name == "pid" else [name]
    spawned = await harness.spawn("sleep", "1000", namespaces=names, init=init)
    program = await harness.execed(spawned)
    new = {
        namespace.name
        for namespace in NAMESPACES.values()
        if os.readlink(f"/proc/{program.pid}/ns/{namespace.file}") != os.readlink(f"/proc/self/ns/{namespace.file}")
    }
    assert new == set(names)
    assert (program.pid != spawned.pid) == (name == "pid" and init)


@needs("netns", "time_namespace")
async def test_all_namespaces_together(harness: Harness) -> None:
    script = """
        readlink /proc/self/ns/user >/dev/null && cat /proc/self/uid_map && hostname && id -u && ps -e -o pid=,comm=
        cat /proc/self/cgroup && cat /proc/self/timens_offsets && ip -br addr show lo | grep -o 127.0.0.1
    """
    result = await harness.run(
        "sh",
        "-c",
        script,
        namespaces=list(NAMESPACES),
        hostname="inside",
        time_offsets={"monotonic": 864000, "boottime": -0.25},
    )
    assert result.failure is None
    lines = result.stdout.split("\n")
    assert lines[0].split() == ["0", "0", "1"]
    assert lines[1:3] == ["inside", "0"]
    assert lines[3].split() == ["1", "nsupervisor-ini"]
    assert all(line.endswith(":/") for line in lines if line[:1].isdigit() and line.count(":") == 2)
    assert ["monotonic", "864000", "0"] in [line.split() for line in lines]
    assert ["boottime", "-1", "750000000"] in [line.split() for line in lines]
    assert "127.0.0.1" in lines


async def test_environment_is_exactly_the_given_one(harness: Harness) -> None:
    odd = {"A": "1", "LONG": "x" * 100_000, "NOT_UTF8": os.fsdecode(b"\xff\xfe"), "EMPTY": "", "PATH": PATH}
    result = await harness.run(
        sys.executable, "-I", "-S", "-c", "import os, sys; sys.stdout.write(ascii(dict(os.environb)))", env=odd
    )
    # LC_CTYPE is what Python itself adds on its way up when there is no locale.
    found = eval(result.stdout)
    found.pop(b"LC_CTYPE", None)
    assert found == {os.fsencode(key): os.fsencode(value) for key, value in odd.items()}


async def test_a_large_spec_travels_in_a_memfd(harness: Harness) -> None:
    result = await harness.run("sh", "-c", 'echo "$#"', "sh", *(["x" * 100] * 10_000), namespaces=ISOLATED)
    assert result.stdout == "10000\n"


@KINDS
async def test_no_descriptor_leaks_into_the_program(harness: Harness, spec: dict) -> None:
    result = await harness.run("ls", "-l", "/proc/self/fd", **spec)
    fds = {line.split()[8]: line.split()[10] for line in result.stdout.splitlines()[1:]}
    listing = fds.pop("3")  # the directory that ls reads
    assert "/fd" in listing
    assert sorted(fds) == ["0", "1", "2"]
    assert fds["0"] == "/dev/null"
    assert fds["1"].startswith("pipe:")
    assert fds["2"].startswith("pipe:")


@KINDS
async def test_init_holds_nothing_but_its_status_channel(harness: Harness, spec: dict) -> None:
    spawned = await harness.spawn("sleep", "1000", **spec)
    program = await harness.execed(spawned)
    if program.pid == spawned.pid:
        return
    with trio.fail_after(20):
        while os.listdir(f"/proc/{spawned.pid}/fd") != ["3"]:  # it closes the pipe with its order when it has read it
            await trio.sleep(0.001)
    assert os.readlink(f"/proc/{spawned.pid}/fd/3").startswith("socket:")


@KINDS
async def test_signals_and_session_are_as_a_login_would_give(harness: Harness, spec: dict) -> None:
    result = await harness.run("sh", "-c", "cat /proc/self/status; cat /proc/$$/stat", **spec)
    fields = dict(line.split(":\t", 1) for line in result.stdout.splitlines() if ":\t" in line)
    assert int(fields["SigBlk"], 16) == 0
    libc_internal = 1 << 31 | 1 << 32  # signals 32 and 33, which glibc's posix_spawn itself sets to be ignored
    assert int(fields["SigIgn"], 16) & ~libc_internal == 0, "SIGPIPE and others are at their defaults"
    pid, _, _, _, group, session, *_ = result.stdout.splitlines()[-1].split()
    assert pid == group == session


@KINDS
async def test_umask_nice_directory_and_no_new_privileges(harness: Harness, spec: dict, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    result = await harness.run(
        "sh",
        "-c",
        "umask; nice; pwd; grep NoNewPrivs /proc/self/status; ulimit -Sn; ulimit -Hn; ulimit -c",
        umask=0o027,
        nice=3,
        cwd="/usr/lib",
        no_new_privileges=True,
        rlimits={"nofile": [100, 200], "core": [0, 0]},
        **spec,
    )
    assert result.stdout.split() == ["0027", "3", "/usr/lib", "NoNewPrivs:", "1", "100", "200", "0"]


@KINDS
async def test_the_limit_on_open_files_is_the_supervisors(harness: Harness, spec: dict) -> None:
    result = await harness.run("sh", "-c", "ulimit -Sn; ulimit -Hn", **spec)
    import resource

    own = ["unlimited" if limit < 0 else str(limit) for limit in resource.getrlimit(resource.RLIMIT_NOFILE)]
    assert result.stdout.split() == own


@pytest.mark.parametrize("namespaces", [[], ISOLATED, [*ISOLATED, "user"]])
async def test_credentials(harness: Harness, namespaces: list[str]) -> None:
    maps = {"uid_mappings": [[0, 0, 5000]], "gid_mappings": [[0, 0, 5000]]} if "user" in namespaces else {}
    result = await harness.run(
        "grep",
        "-E",
        "^(Uid|Gid|Groups|Cap...)",
        "/proc/self/status",
        namespaces=namespaces,
        uid=1001,
        gid=1002,
        groups=[5, 6],
        **maps,
    )
    fields = dict(line.split(":", 1) for line in result.stdout.splitlines())
    assert fields["Uid"].split() == ["1001"] * 4
    assert fields["Gid"].split() == ["1002"] * 4
    assert fields["Groups"].split() == ["5", "6"]
    for kind in ("CapPrm", "CapEff", "CapInh", "CapAmb"):
        assert int(fields[kind], 16) == 0, kind


async def test_another_user_has_none_of_the_keepers_groups(harness: Harness) -> None:
    result = await harness.run("id", "-G", uid=1001, gid=1002)
    assert result.stdout.split() == ["1002"]


async def test_mapped_identities(harness: Harness) -> None:
    spawned = await harness.spawn(
        "sleep",
        "1000",
        namespaces=[*ISOLATED, "user"],
        uid_mappings=[[0, 100_000, 1000]],
        gid_mappings=[[0, 200_000, 1000]],
        uid=33,
        gid=44,
        groups=[44],
    )
    program = await harness.execed(spawned)
    status = Path(f"/proc/{program.pid}/status").read_text()
    assert f"Uid:{chr(9) + '100033'}" in status
    assert f"Gid:{chr(9) + '200044'}" in status
    with trio.fail_after(deadline(5)):  # the init becomes the namespace's root beside the program, not before it
        while "Uid:\t100000" not in Path(f"/proc/{spawned.pid}/status").read_text():
            await trio.sleep(0.01)


async def test_a_namespace_without_a_root(harness: Harness) -> None:
    result = await harness.run(
        "id",
        "-u",
        namespaces=[*ISOLATED, "user"],
        uid_mappings=[[33, 100_033, 1]],
        gid_mappings=[[33, 100_033, 1]],
        uid=33,
        gid=33,
    )
    assert (result.stdout, result.failure) == ("33\n", None)


# ---- mounts


async def test_mounts_are_made_and_seen_by_nobody_else(harness: Harness, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("hello")
    before = Path("/proc/self/mountinfo").read_text()
    result = await harness.run(
        "sh",
        "-c",
        "cat /mnt/a/b/data/file /mnt/one; touch /mnt/a/b/data/new; echo $?; touch /mnt/new; df -k /mnt; ls /mnt",
        namespaces=ISOLATED,
        mounts=[
            {"type": "tmpfs", "source": None, "destination": "/mnt", "options": ["size=64k", "nosuid", "mode=755"]},
            {"type": "bind", "source": str(tmp_path / "data"), "destination": "/mnt/a/b/data", "options": ["ro"]},
            {"source": str(tmp_path / "data/file"), "destination": "/mnt/one"},
        ],
    )
    assert result.failure is None
    assert result.stdout.startswith("hellohello1\n")
    assert "Read-only file system" in result.stderr
    assert result.stdout.split()[-3:] == ["a", "new", "one"]
    assert " 64 " in result.stdout
    assert Path("/proc/self/mountinfo").read_text() == before


async def test_read_only_holds_for_what_is_mounted_below(harness: Harness) -> None:
    """Remounting only the top would leave the submounts writable behind the operator's back."""
    mounts = [
        {"type": "tmpfs", "destination": "/mnt", "options": []},
        {"type": "tmpfs", "destination": "/mnt/source/deep", "options": []},
        {"source": "/mnt/source", "destination": "/mnt/view", "options": ["rbind", "ro"]},
    ]
    result = await harness.run("touch", "/mnt/view/deep/x", namespaces=ISOLATED, mounts=mounts)
    assert "Read-only file system" in result.stderr


async def test_a_bind_mount_keeps_what_its_source_forbids(harness: Harness) -> None:
    mounts = [
        {"type": "tmpfs", "destination": "/mnt", "options": ["noexec", "nodev"]},
        {"source": "/mnt", "destination": "/media", "options": ["nosuid", "noatime"]},
    ]
    script = "grep ' /media ' /proc/self/mountinfo"
    for extra in ([], ["user"]):
        result = await harness.run("sh", "-c", script, namespaces=[*ISOLATED, *extra], mounts=mounts)
        assert result.failure is None
        options = set(result.stdout.split()[5].split(","))
        assert options >= {"noexec", "nodev", "nosuid", "noatime"}, extra


async def test_proc_shows_the_new_pid_namespace_only(harness: Harness) -> None:
    result = await harness.run(
        "sh", "-c", "ls -d /proc/[0-9]*; grep ' /proc ' /proc/self/mountinfo", namespaces=ISOLATED
    )
    assert "/proc/1\n" in result.stdout
    assert len([line for line in result.stdout.splitlines() if line.startswith("/proc/")]) <= 3
    assert "nosuid,nodev,noexec" in result.stdout.splitlines()[-1]


# ---- cgroups


@needs("cgroup")
async def test_born_in_its_cgroups(harness: Harness) -> None:
    directories = cgroup_directories()
    v1 = {name: path for name, path in directories.items() if name in ("memory", "pids")}
    made = [path / f"keeper-{os.getpid()}" for path in (directories[""], *v1.values())]
    for directory in made:
        directory.mkdir()
    try:
        result = await harness.run(
            "sh",
            "-c",
            "cat /proc/self/cgroup",
            namespaces=ISOLATED,
            cgroup=str(made[0]),
            cgroup_procs=[f"{directory}/cgroup.procs" for directory in made[1:]],
        )
        inside = dict(line.split(":")[1:] for line in result.stdout.splitlines())
        assert inside[""] == "/"
        assert all(inside[name] == "/" for name in v1), "the namespace was made after joining"
        spawned = await harness.spawn("sleep", "1000", cgroup=str(made[0]))
        assert (made[0] / "cgroup.procs").read_text().split() == [str(spawned.pid)]
        await harness.keeper.signal(spawned.id, signal.SIGKILL)
        await harness.ended(spawned)
    finally:
        with trio.fail_after(20):
            for directory in made:
                while (directory / "cgroup.procs").read_text():
                    await trio.sleep(0.005)
                directory.rmdir()


# ---- what can go wrong


@KINDS
@pytest.mark.parametrize(
    ("change", "step", "message"),
    [
        (
            {"argv": ["gunicorn"]},
            "execute",
            f"cannot execute gunicorn: No such file or directory (searched PATH={PATH})",
        ),
        ({"argv": ["/no/such"]}, "execute", "cannot execute /no/such: No such file or directory"),
        ({"argv": ["/etc/passwd"]}, "execute", "cannot execute /etc/passwd: Permission denied"),
        ({"cwd": "/srv/site"}, "enter_directory", "cannot enter /srv/site: No such file or directory"),
        ({"cwd": "/etc/passwd"}, "enter_directory", "cannot enter /etc/passwd: Not a directory"),
        (
            {"cgroup_procs": ["/sys/fs/cgroup/none/cgroup.procs"]},
            "join_cgroups",
            "cannot join the cgroup /sys/fs/cgroup/none: No such file or directory",
        ),
    ],
)
async def test_a_failing_step_says_what_and_where(
    harness: Harness, spec: dict, change: dict, step: str, message: str
) -> None:
    result = await harness.run("true", **{**spec, **change})
    assert result.failure is not None
    assert (result.failure.step, result.failure.message) == (step, message)
    assert result.failure.errno in (errno.ENOENT, errno.EACCES, errno.ENOTDIR)
    expected = {"execute": 127 if result.failure.errno == errno.ENOENT else 126}.get(step, 125)
    assert result.code == expected
    assert result.stdout == result.stderr == ""


@pytest.mark.parametrize(
    ("mount", "message"),
    [
        (
            {"source": "/srv/uploads", "destination": "/mnt"},
            "cannot mount /srv/uploads on /mnt: /srv/uploads: No such file or directory",
        ),
        (
            {"source": "/usr", "destination": "/uploads"},
            "cannot mount /usr on /uploads: /uploads: No such file or directory "
            "(make it, or mount a tmpfs over a directory above it)",
        ),
        ({"type": "nofs", "destination": "/mnt"}, "cannot mount nofs on /mnt: No such device"),
        (
            {"type": "tmpfs", "destination": "/mnt", "options": ["size=x"]},
            "cannot mount tmpfs on /mnt: Invalid argument",
        ),
        (
            {"type": "overlay", "destination": "/mnt", "options": ["lowerdir=/usr:/srv/no-such"]},
            "cannot mount overlay on /mnt: /srv/no-such: No such file or directory",
        ),
    ],
)
async def test_a_failing_mount_says_what_and_where(harness: Harness, mount: dict, message: str) -> None:
    result = await harness.run("true", namespaces=ISOLATED, mounts=[mount])
    assert result.failure is not None
    assert (result.failure.step, result.failure.message) == ("mount_all", message)
    assert not Path("/uploads").exists()


async def test_a_directory_that_the_user_may_not_enter(harness: Harness, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    result = await harness.run("true", cwd=str(tmp_path), uid=1001, gid=1001)
    assert result.failure is not None
    assert result.failure.message == f"cannot enter {tmp_path}: Permission denied"


async def test_a_script_without_an_interpreter(harness: Harness, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("echo hello\n")
    script.chmod(0o755)
    result = await harness.run(str(script))
    assert result.failure is not None
    assert "a script needs a first line like #!/bin/sh" in result.failure.message
    script.write_text("#!/no/such/shell\n")
    result = await harness.run(str(script), namespaces=ISOLATED)
    assert result.failure is not None
    assert "the interpreter that it names is not" in result.failure.message


async def test_identity_maps_that_the_kernel_refuses(harness: Harness) -> None:
    result = await harness.run("true", namespaces=["user"], uid_mappings=[[0, 0, 10], [5, 100, 10]])
    assert result.failure is not None
    assert result.failure.message == "cannot write the uid_map of the user namespace: Invalid argument"
    assert os.WTERMSIG(result.status) == signal.SIGKILL


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"cgroup": "/sys/fs/cgroup/nowhere"},
            "cannot open the cgroup /sys/fs/cgroup/nowhere: No such file or directory",
        ),
        ({"argv": []}, "argv: a program is wanted"),
        ({"hostname": "x"}, "hostname needs a new uts namespace"),
        ({"colour": "red"}, "unknown keys: colour"),
        ({"env": {"A=B": "c"}}, "env: b'A=B' cannot be a variable's name"),
    ],
)
async def test_what_makes_no_process_is_told_by_spawn(harness: Harness, spec: dict, message: str) -> None:
    with pytest.raises(SpawnError) as caught:
        await harness.spawn("true", **spec)
    assert caught.value.message == message
    assert (await harness.run("echo", "fine")).stdout == "fine\n"


@pytest.mark.system
@needs(
    "root", "pids", "cgroup_v2"
)  # on version 1 the init is in no cgroup, so the program is always the first in its own
async def test_too_many_processes(harness: Harness) -> None:
    cgroup = cgroup_directories()[""] / f"keeper-pids-{os.getpid()}"
    cgroup.mkdir()
    try:
        (cgroup / "pids.max").write_text("0")
        result = await harness.run("true", namespaces=ISOLATED, cgroup=str(cgroup))
        assert result.failure is not None
        assert "cannot start the program's process: Resource temporarily unavailable" in result.failure.message
        assert "limit on processes" in result.failure.message
    finally:
        with trio.fail_after(20):
            while (cgroup / "cgroup.procs").read_text():
                await trio.sleep(0.005)
        cgroup.rmdir()


async def test_an_id_is_free_again_after_the_acknowledgement(harness: Harness) -> None:
    spawned = await harness.spawn("true", id="web#1")
    await harness.ended(spawned)
    with pytest.raises(SpawnError, match="web#1 is in use"):
        await harness.spawn("true", id="web#1")
    await harness.finish(spawned)
    harness.ends.clear()
    assert (await harness.run("true", id="web#1")).status == 0


async def test_two_hundred_spawns_leave_nothing(harness: Harness) -> None:
    async def count() -> tuple[int, int]:
        pid = harness.keeper.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return len(os.listdir(f"/proc/{pid}/fd")), len(children)

    for _ in range(2):  # with the first init comes the zygote, and after each one the next, which waits
        await harness.run("true", namespaces=ISOLATED)
        await harness.run("true")
    own = len(open_descriptors())
    before = await count()
    for _ in range(20):
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(lambda n=number: harness.run("true", namespaces=ISOLATED if n % 2 else []))
    with trio.fail_after(20):
        while await count() != before:  # the log pipes may end a moment before their process
            await trio.sleep(0.005)
            # Whoever mounts something on this host meanwhile has the init thrown away that waits for the next start.
            await harness.run("true", namespaces=ISOLATED)
    assert len(open_descriptors()) == own
