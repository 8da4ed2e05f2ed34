"""A program with Landlock rules uses only the files and TCP ports that they name, and so does a command in it."""

import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from nsupervisor.config.landlock import LandlockConfig
from nsupervisor.core.landlock import ruleset
from nsupervisor.keeper.setup import landlock
from nsupervisor.keeper.setup.errors import StepError
from nsupervisor.keeper.setup.spec import Spec, SpecError
from nsupervisor.linux import syscalls
from tests.keeper.conftest import ISOLATED, Harness, Result
from tests.keeper.test_enter import enter, running
from tests.needs import needs
from tests.roots import make_root, open_directories

SHIFTED = {"uid_mappings": [[0, 100_000, 1000]], "gid_mappings": [[0, 100_000, 1000]]}
WAYS = pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"namespaces": ISOLATED}, id="plan"),
        pytest.param({"namespaces": ISOLATED, "uid": 1234, "gid": 1234, "groups": []}, id="user"),
        pytest.param({"namespaces": []}, id="plain"),
        pytest.param({"namespaces": ISOLATED, "mounts": [{"type": "tmpfs", "destination": "/mnt"}]}, id="python"),
        pytest.param({"namespaces": [*ISOLATED, "user"], **SHIFTED}, id="shifted", marks=needs("userns")),
    ],
)
EXECUTABLE = (
    "/usr",
    *(path for path in ("/bin", "/lib", "/lib64") if os.path.isdir(path) and not os.path.islink(path)),
)


def rules(**keys: Any) -> dict[str, Any]:
    return {"landlock": ruleset(LandlockConfig(**keys)), "no_new_privileges": True}


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory in which each user may do everything."""
    open_directories(tmp_path / "x")
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for name in ("in", "out"):
        (tmp_path / name).chmod(0o777)
        (tmp_path / name / "file").write_text("text\n")
        (tmp_path / name / "file").chmod(0o666)
    return tmp_path


# ---- the specification


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"handled": [1, 0, 0]},
        {"handled": [1, 0], "paths": [], "ports": []},
        {"handled": [-1, 0, 0], "paths": [], "ports": []},
        {"handled": [1, 0, 0], "paths": [["relative", 1]], "ports": []},
        {"handled": [1, 0, 0], "paths": [["/a\0b", 1]], "ports": []},
        {"handled": [1, 0, 0], "paths": [], "ports": [["http", 1]]},
    ],
)
def test_what_is_no_ruleset_is_refused(value: object) -> None:
    with pytest.raises(SpecError, match=r"^landlock: "):
        Spec({"id": "a", "argv": ["true"], "env": {}, "cwd": "/", "landlock": value})


class FakeKernel:
    """Records the calls of a ruleset. `failures`: the errno of a call by its name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **failures: int) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.failures = failures
        monkeypatch.setattr(syscalls, "landlock_create_ruleset", lambda data: self._call("create", data))
        monkeypatch.setattr(syscalls, "landlock_add_rule", lambda _, kind, data: self._call("add", kind, data))
        monkeypatch.setattr(syscalls, "landlock_restrict_self", lambda _: self._call("restrict"))

    def _call(self, name: str, *arguments: object) -> int:
        self.calls.append((name, *arguments))
        if name in self.failures:
            raise OSError(self.failures[name], os.strerror(self.failures[name]))
        return os.open("/dev/null", os.O_RDONLY) if name == "create" else 0


def test_the_sequence_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a kernel without Landlock."""
    kernel = FakeKernel(monkeypatch)
    landlock.perform(landlock.parse({"handled": [4, 2, 1], "paths": [["/", 4], ["-/none", 4]], "ports": [[443, 2]]}))
    assert [call[:2] for call in kernel.calls] == [
        ("create", b"".join(number.to_bytes(8, "little") for number in (4, 2, 1))),
        ("add", syscalls.LANDLOCK_RULE_PATH_BENEATH),
        ("add", syscalls.LANDLOCK_RULE_NET_PORT),
        ("restrict",),
    ]
    assert len(kernel.calls[1][2]) == 12, "landlock_path_beneath_attr is packed"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("failures", "text"),
    [
        ({"create": errno.ENOSYS}, "cannot make a Landlock ruleset: Function not implemented (this kernel has no"),
        ({"create": errno.EOPNOTSUPP}, "Landlock is not active"),
        ({"create": errno.EINVAL}, "this kernel's Landlock lacks what is wanted"),
        ({"restrict": errno.EPERM}, "cannot restrict the program by Landlock"),
    ],
)
def test_a_kernel_that_refuses_is_reported(
    monkeypatch: pytest.MonkeyPatch, failures: dict[str, int], text: str
) -> None:
    FakeKernel(monkeypatch, **failures)
    with pytest.raises(StepError) as raised:
        landlock.perform(landlock.parse({"handled": [4, 0, 0], "paths": [], "ports": []}))
    assert text in str(raised.value)


# ---- the effect


async def try_files(harness: Harness, shared: Path, spec: dict, **keys: Any) -> set[str]:
    """Return what a program may do with the two directories."""
    script = """
        t() { name=$1; shift; if "$@" >/dev/null 2>&1; then echo $name; fi; }
        for d in in out; do
            t $d-read cat $d/file; t $d-list ls $d; t $d-write sh -c "echo new >>$d/file"
            t $d-truncate truncate -s 0 $d/file; t $d-make mkdir $d/made; t $d-remove rmdir $d/made
            t $d-execute $d/run
        done
    """
    for name in ("in", "out"):
        (shared / name / "run").write_bytes(Path("/usr/bin/true").read_bytes())
        (shared / name / "run").chmod(0o755)
    result = await harness.run("sh", "-c", script, **spec, cwd=str(shared), **rules(**keys))
    assert (result.failure, result.code) == (None, 0), result
    return set(result.stdout.split())


def both(*actions: str) -> set[str]:
    return {f"{where}-{action}" for where in ("in", "out") for action in actions}


ALL = ("read", "list", "write", "truncate", "make", "remove", "execute")


@needs("root", "landlock:3")
@WAYS
async def test_the_rights_of_files(harness: Harness, shared: Path, spec: dict) -> None:
    inside = f"{shared}/in"
    assert await try_files(harness, shared, spec) == both(*ALL), "without rules everything is allowed"
    found = await try_files(harness, shared, spec, read=(*EXECUTABLE, "/etc", "/dev", inside))
    assert found == both(*ALL) - {"out-read", "out-list", "out-execute"}
    found = await try_files(harness, shared, spec, write=("/dev/null", inside))
    assert found == both(*ALL) - {"out-write", "out-truncate", "out-make", "out-remove"}
    found = await try_files(harness, shared, spec, execute=(*EXECUTABLE, inside))
    assert found == both(*ALL) - {"out-execute"}


@needs("root", "landlock:4")
@WAYS
async def test_the_tcp_ports(harness: Harness, spec: dict) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    script = f"""
import socket
def attempt(name, call, *arguments):
    try: call(*arguments)
    except OSError as error: print(name, error.errno)
    else: print(name)
attempt("connect", socket.socket().connect, ("127.0.0.1", {port}))
attempt("connect-other", socket.socket().connect, ("127.0.0.1", 1))
attempt("bind", socket.socket().bind, ("127.0.0.1", 0))
attempt("bind-other", socket.socket().bind, ("127.0.0.1", {port}))
attempt("udp", socket.socket(type=socket.SOCK_DGRAM).bind, ("127.0.0.1", 0))
"""
    with listener:
        keys = {"connect_tcp": (port,), "bind_tcp": (0,)}
        result = await harness.run("/usr/bin/python3", "-c", script, **spec, **rules(**keys))
        assert result.stdout.splitlines() == ["connect", "connect-other 13", "bind", "bind-other 13", "udp"]
        result = await harness.run("/usr/bin/python3", "-c", script, **spec)
    assert result.stdout.splitlines() == [
        "connect", f"connect-other {errno.ECONNREFUSED}", "bind", f"bind-other {errno.EADDRINUSE}", "udp"
    ]  # fmt: skip


@needs("root", "landlock:2")
@WAYS
async def test_a_file_may_be_moved_if_writing_is_not_restricted(harness: Harness, shared: Path, spec: dict) -> None:
    keys = {"read": (*EXECUTABLE, "/etc", str(shared / "in"))}
    moved = await harness.run("mv", "in/file", "out/moved", **spec, cwd=str(shared), **rules(execute=EXECUTABLE))
    assert (moved.code, moved.stderr) == (0, "")
    # It may not get at a file by moving it to where it may read.
    script = "ln out/moved in/linked; cat in/linked"
    linked = await harness.run("sh", "-c", script, **spec, cwd=str(shared), **rules(**keys))
    assert (linked.code, linked.stdout) == (1, "")


@needs("root", "landlock:6")
async def test_signals_reach_its_own_processes_only(harness: Harness) -> None:
    """Without a PID namespace it finds others."""
    async with running(harness, {}) as other:
        script = f"sleep 1000 & kill $! && echo own; kill -0 {other.pid} && echo other"
        keys = rules(scope=("signal",))
        assert (await harness.run("sh", "-c", script, **keys)).stdout == "own\n"
        assert (await harness.run("sh", "-c", script)).stdout == "own\nother\n"


@needs("root", "landlock:3")
@WAYS
async def test_a_command_in_the_program_has_the_same_rules(harness: Harness, shared: Path, spec: dict) -> None:
    spec = {**spec, **rules(write=("/dev/null", f"{shared}/in", "-/none"))}
    async with running(harness, spec) as spawned:
        script = f"echo x >{shared}/in/entered && echo in; echo x >{shared}/out/entered || echo refused"
        result = await enter(harness, spawned, spec, "sh", "-c", script)
    assert (result.failure, "in\n" in result.text, "refused" in result.text) == (None, True, True)


# ---- what fails


async def failure_of(harness: Harness, spec: dict, **keys: Any) -> tuple[str, str]:
    result: Result = await harness.run("true", **spec, **rules(**keys))
    assert result.failure is not None
    return result.failure.step, result.failure.message


@needs("root", "landlock:2")
@WAYS
async def test_a_path_that_is_missing_or_a_link_is_refused(harness: Harness, shared: Path, spec: dict) -> None:
    (shared / "link").symlink_to("out")
    step, message = await failure_of(harness, spec, read=("/none",))
    assert step == "restrict_by_landlock"
    assert message == (
        'cannot find /none for Landlock: No such file or directory (write "-" before a path that may be missing)'
    )
    step, message = await failure_of(harness, spec, read=(f"{shared}/link/file",))
    assert step == "restrict_by_landlock"
    assert "a part of it is a symbolic link; write the path that it leads to" in message


@needs("root", "landlock:2")
@WAYS
async def test_a_program_that_may_not_be_executed_is_reported(harness: Harness, spec: dict) -> None:
    step, message = await failure_of(harness, spec, execute=("/etc",))
    assert (step, "security.landlock may refuse" in message) == ("execute", True)


@needs("root", "landlock:2")
async def test_paths_are_those_of_its_own_root(harness: Harness, shared: Path) -> None:
    root = make_root(shared / "root")
    open_directories(root)
    (root / "in").symlink_to("/etc")  # a rule about it would be about /etc
    spec = {"namespaces": ISOLATED, "root": {"path": str(root)}, "sandbox": {"devices": {"shm_size": 1 << 20}}}
    libraries = tuple(f"/{path.name}" for path in root.iterdir() if path.name.startswith(("lib", "usr", "bin")))
    keys = rules(read=(*libraries, "/etc/of-the-root"), execute=libraries)
    result = await harness.run("sh", "-c", "cat /etc/of-the-root; cat /etc/passwd", **spec, **keys)
    assert (result.failure, result.stdout, "Permission denied" in result.stderr) == (None, "of the root\n", True)
    result = await harness.run("true", **spec, **rules(read=("/in",)))
    assert result.failure is not None
    assert "a part of it is a symbolic link" in result.failure.message
