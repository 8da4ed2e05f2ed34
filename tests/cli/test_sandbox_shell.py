"""`nsupervisor shell` with options of a sandbox: the program is confined as a workload with these keys is."""

import errno
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from nsupervisor.cli.sandbox_shell import Options, workload_table
from tests.cli.command import nsupervisor
from tests.cli.test_namespace_shell import ROOT, others_may_use, python_for_others
from tests.needs import NOBODY, cgroup_directories, needs
from tests.roots import make_root, open_directories
from tests.timing import deadline


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_root(tmp_path_factory.mktemp("roots") / "root")
    open_directories(root)
    return root


def cgroups() -> list[Path]:
    return [place for own in cgroup_directories().values() for place in own.glob("nsupervisor-shell*")]


# ---- the keys


def test_the_options_are_keys_of_a_workload(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TERM", "vt100")
    monkeypatch.chdir(tmp_path)
    options = Options(
        root="r",
        is_read_only=True,
        is_overlay=True,
        profile="strict",
        volumes=("/srv:/data:ro", "data:/var/lib", "./x:/x"),
        run_user="33",
        directory="/tmp",
        variables=("A=b=c",),
        memory_max="64M",
        pids_max="20",
        cpu_max="150%",
    )
    table = workload_table(options, ["network"], ["sh"], "box")
    assert table == {
        "command": ["sh"],
        "namespaces": {"network": True, "hostname": "box"},
        "security": {"profile": "strict"},
        "resources": {"memory_max": "64M", "pids_max": 20, "cpu_max": "150%"},
        "mounts": [
            {"type": "bind", "source": "/srv", "destination": "/data", "options": ["rbind", "ro"]},
            {"type": "volume", "source": "data", "destination": "/var/lib", "options": []},
            {"type": "bind", "source": f"{tmp_path}/x", "destination": "/x", "options": ["rbind"]},
        ],
        "root": {"path": f"{tmp_path}/r", "readonly": True, "overlay": True},
        "user": "33",
        "working_directory": "/tmp",
        "environment": {"TERM": "vt100", "A": "b=c"},
    }


@needs("root", "cgroup")
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("-v", "/srv"), '--volume: "/srv" is not SRC:DST or SRC:DST:ro'),
        (("-v", "/srv:data"), "with an absolute path DST"),
        (("-v", "/srv:/data:no"), '"/srv:/data:no" is not SRC:DST'),
        (("-e", "A"), '--env: "A" is not NAME=VALUE'),
        (("--memory-max", "64X"), '--memory-max: "64X" is not a size'),
        (("--pids-max", "0"), "--pids-max: 0 is out of range"),
        (("--profile", "other"), '--profile: "other" is not one of the choices'),
        (("--uid", "nobody-at-all"), 'no user "nobody-at-all"'),
        (("--overlay", "--root", "/none"), "cannot find the root /none"),
        (("-w", "relative"), '--workdir: "relative" is not an absolute path'),
        (("-v", 'a"b\x7fü:/data'), "is not"),
    ],
)
def test_what_is_wrong_is_reported_by_the_name_of_the_option(options: tuple[str, ...], text: str) -> None:
    done = nsupervisor("shell", *options, "--", "true")
    assert text in done.stderr
    assert done.returncode in (1, 2)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert cgroups() == []


# ---- the sandbox


@needs("root", "cgroup", "seccomp", "memory", "pids")
def test_a_program_in_a_root_with_volumes_and_limits(root: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "shared").write_text("shared\n")
    script = """
        id -u; cat /etc/of-the-root /data/shared; echo $A; echo $TERM; env | grep -c SECRET
        echo x >/data/new || echo read-only; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max 2>/dev/null ||
        cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max"""
    options = ["--root", str(root), "-v", f"{tmp_path}:/data:ro", "-u", "site", "-e", "A=b"]
    limits = ["--memory-max", "64M", "--pids-max", "20"]
    done = nsupervisor("shell", *options, *limits, "--", "sh", "-c", script, TERM="vt100", SECRET="x")
    assert done.stdout.splitlines() == [
        "1234", "of the root", "shared", "b", "vt100", "0", "read-only", str(64 << 20), "20"
    ]  # fmt: skip
    assert done.returncode == 0
    assert cgroups() == []


@needs("root", "cgroup", "seccomp", "pids")
def test_a_limit_is_enforced_and_nothing_is_left(root: Path) -> None:
    script = "sleep 1000 & sleep 1000 & sleep 1000 & sleep 1000 & sleep 1000 & sleep 1000 & exit 3"
    done = nsupervisor("shell", "--root", str(root), "--pids-max", "5", "--", "sh", "-c", script)
    assert "annot fork" in done.stderr
    assert done.returncode == 2, "of the shell inside"
    done = nsupervisor("shell", "--root", str(root), "--pids-max", "50", "--", "sh", "-c", script)
    assert (done.returncode, done.stderr) == (3, "")
    assert cgroups() == []


@needs("root", "cgroup", "seccomp")
@pytest.mark.parametrize("profile", ["default", "strict"])
def test_the_profile_decides_what_it_may_do(profile: str) -> None:
    done = nsupervisor(
        "shell", "--profile", profile, "--", "grep", "-E", "^(CapBnd|Seccomp|NoNew)", "/proc/self/status"
    )
    facts = dict(line.split(":\t") for line in done.stdout.splitlines())
    assert facts["Seccomp"] == "2"
    assert facts["NoNewPrivs"] == "1"
    assert (int(facts["CapBnd"], 16) == 0) == (profile == "strict")


@needs("root", "cgroup", "seccomp")
def test_it_cannot_type_into_the_terminal_of_its_caller() -> None:
    """A shell outside would execute what it types, as it reads the same terminal."""
    script = (
        "import termios\n"
        "import ctypes\n"
        "ioctl = ctypes.CDLL(None, use_errno=True).ioctl\n"
        "for request in (termios.TIOCSTI, 0x541C, termios.TIOCSTI | 1 << 32):  # the kernel ignores the upper half\n"
        "    print('typed' if ioctl(0, ctypes.c_ulong(request), b'x') == 0 else ctypes.get_errno())\n"
        "print(open('/dev/tty').isatty())"
    )
    options = ["--profile", "default", "--", "/usr/bin/python3", "-c", script]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "nsupervisor", "shell", *options])
    text = b""
    try:
        while True:
            text += os.read(terminal, 4096)
    except OSError as error:
        if error.errno != errno.EIO:  # the end of a terminal
            raise
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)
    assert text.split() == [b"1", b"1", b"1", b"True"]


@needs("unprivileged_userns", "seccomp")
@pytest.mark.skipif(not (others_may_use(ROOT) and python_for_others()), reason="another user cannot read this checkout")
def test_another_user_is_root_of_a_user_namespace(root: Path) -> None:
    script = (
        f"import sys; sys.path[1:1] = [{ROOT!r}, *{[path for path in sys.path if 'site-packages' in path]!r}]; "
        "from nsupervisor.cli.sandbox_shell import *; "
        f"sys.exit(run_in_sandbox(Options(root={str(root)!r}), [], ['sh', '-c', 'id -u; cat /etc/of-the-root']))"
    )
    done = subprocess.run(
        [python_for_others(), "-c", f"import sys; {script}"],
        capture_output=True,
        text=True,
        user=NOBODY,
        cwd="/",
        timeout=deadline(30),
        check=False,
    )
    assert (done.stdout, done.returncode) == ("0\nof the root\n", 0), done.stderr
