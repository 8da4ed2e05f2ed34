"""The leak check reports what descends from its run, and ignores everything else that happens on the host.

Each test starts a run of its own in a program. For that run this one is the rest of the host.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import isolation
from tests.needs import ROOT, cgroup_directories, needs
from tests.timing import deadline

RUN = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from tests import isolation, leaks
from tests.needs import cgroup_directories
run = isolation.enter()
os.environ[leaks.MARK] = "inner"
before = leaks.snapshot(run)
for line in sys.stdin:
    what, code = json.loads(line)
    if what == "do":
        exec(code)
        print(json.dumps(True), flush=True)
    else:
        print(json.dumps(leaks.left_over(run, before, 0.0)), flush=True)
print(json.dumps(isolation.leave(run)))
"""

# A child forks the program and ends: the program is an orphan. It has no environment and a session of its own.
ORPHAN = """
import subprocess
script = 'setsid env -i sleep 1000 </dev/null >/dev/null 2>&1 & echo $!'
ORPHAN = int(subprocess.run(['sh', '-c', script], stdout=subprocess.PIPE, check=True).stdout)
while open(f'/proc/{ORPHAN}/comm').read() != 'sleep\\n': pass
"""

pytestmark = [pytest.mark.host_only, needs("root", "cgroup")]


class Run:
    """A run with a leak check, in a program."""

    def __init__(self) -> None:
        """Start it; it has taken its first snapshot when `do` or `left_over` returns."""
        command = [sys.executable, "-c", RUN, str(ROOT)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _ask(self, what: str, code: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([what, code]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def do(self, code: str) -> None:
        """Execute Python code in the program."""
        assert self._ask("do", code) is True

    def left_over(self) -> list[str]:
        """Return what the leak check reports."""
        found: list[str] = self._ask("look", "")
        return found

    def end(self) -> list[str]:
        """End the run in order; return what it could not remove."""
        output, _ = self.process.communicate(timeout=deadline(30))
        assert self.process.returncode == 0
        problems: list[str] = json.loads(output)
        return problems


@pytest.fixture
def run(no_leaks: None) -> Iterator[Run]:
    run = Run()
    run.do("")
    yield run
    if run.process.poll() is None:
        run.end()


def test_a_run_that_leaves_nothing_reports_nothing(run: Run) -> None:
    assert run.left_over() == []
    assert run.end() == []


def test_a_process_of_the_run_is_reported_without_mark_parent_and_session(run: Run) -> None:
    run.do(ORPHAN)
    (found,) = run.left_over()
    assert found.startswith("process ")
    assert found.endswith(": sleep 1000")
    assert run.end() == []  # it is killed: `no_leaks` of this test finds nothing


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))", "RLIMIT_NOFILE (64, 64)"),
        ("os.nice(1)", f"niceness {os.getpriority(os.PRIO_PROCESS, 0) + 1}"),
        ("os.chdir('/usr')", "directory /usr"),
        ("os.umask(0o077)", "Umask 0077"),
        ("import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)", "SigIgn 00000"),
    ],
)
def test_a_changed_attribute_of_the_process_is_reported(run: Run, change: str, name: str) -> None:
    run.do(change)
    (found,) = run.left_over()
    assert found.startswith(f"this process has {name}")


def test_a_process_that_is_not_of_the_run_is_ignored(run: Run) -> None:
    with subprocess.Popen(["sleep", "1000"]) as other:
        try:
            assert run.left_over() == []
        finally:
            other.kill()


def test_a_child_of_a_process_that_was_there_before_is_ignored(run: Run) -> None:
    """With --leaks-each-test: the service of a fixture that outlives the test may fork. Its orphans are reported."""
    run.do("import subprocess; service = subprocess.Popen(['sh'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)")
    run.do("before = leaks.snapshot(run)")
    run.do("service.stdin.write(b'sleep 1000 >/dev/null & echo\\n'); service.stdin.flush(); service.stdout.readline()")
    assert run.left_over() == []
    run.do("service.kill(); service.communicate()")
    (found,) = run.left_over()
    assert found.startswith("process ")


@pytest.mark.fault("E1")
@pytest.mark.parametrize("hierarchy", sorted(cgroup_directories()))
def test_a_cgroup_that_is_not_of_the_run_is_ignored(run: Run, hierarchy: str) -> None:
    directory = cgroup_directories()[hierarchy] / f"leaks-{os.getpid()}"
    with ExitStack() as stack:
        directory.mkdir()
        stack.callback(directory.rmdir)
        assert run.left_over() == []


@pytest.mark.parametrize("controller", ["", "memory", "pids", "cpu", "cpuset", "blkio"])
def test_a_cgroup_of_the_run_is_reported_by_its_top(run: Run, controller: str) -> None:
    if controller not in cgroup_directories():
        pytest.skip(f"needs hybrid: no version 1 hierarchy {controller}")
    run.do(f"own = cgroup_directories()[{controller!r}] / 'left'; own.mkdir(); (own / 'below').mkdir()")
    (found,) = run.left_over()
    assert found.startswith(f"cgroup {cgroup_directories()[controller]}/nsupervisor-tests-")
    assert found.endswith("/left")
    assert run.end() == []


def test_a_mount_of_the_run_is_reported(run: Run, tmp_path: Path) -> None:
    run.do(f"import subprocess; subprocess.run(['mount', '-t', 'tmpfs', 'left', {str(tmp_path)!r}], check=True)")
    assert run.left_over() == [f"mount {tmp_path} (tmpfs left rw)"]


def test_a_shared_mount_that_is_not_of_the_run_is_ignored(tmp_path: Path) -> None:
    """Without private propagation it would appear in the run's mount namespace, too."""
    (tmp_path / "below").mkdir()
    with ExitStack() as stack:
        for command in (
            ["mount", "--bind", str(tmp_path), str(tmp_path)],
            ["mount", "--make-shared", str(tmp_path)],
        ):
            subprocess.run(command, check=True)
            if "--bind" in command:
                stack.callback(subprocess.run, ["umount", str(tmp_path)], check=True)
        run = Run()
        stack.callback(run.end)
        run.do("")
        subprocess.run(["mount", "-t", "tmpfs", "other", str(tmp_path / "below")], check=True)
        stack.callback(subprocess.run, ["umount", str(tmp_path / "below")], check=True)
        assert run.left_over() == []


@pytest.mark.fault("E1")
def test_another_run_at_the_same_time_is_ignored(run: Run) -> None:
    other = Run()
    other.do(ORPHAN + "(cgroup_directories()[''] / 'left').mkdir()")
    try:
        assert len(other.left_over()) == 2
        assert run.left_over() == []
    finally:
        assert other.end() == []


def test_the_cgroups_of_a_killed_run_are_removed_by_the_next(no_leaks: None) -> None:
    killed = Run()
    killed.do("(cgroup_directories()[''] / 'left').mkdir()")
    (stale,) = cgroup_directories()[""].glob("nsupervisor-tests-*")
    killed.process.kill()
    killed.process.communicate()
    assert (stale / "left").exists()
    following = Run()
    following.do("")
    assert not stale.exists()
    assert following.end() == []


def test_the_run_of_this_test_has_cgroups_of_its_own(run_isolation: isolation.Isolation) -> None:
    assert os.getpid() in isolation.processes(run_isolation)
    assert os.getppid() not in isolation.processes(run_isolation)
    assert set(run_isolation.cgroups) <= set(cgroup_directories().values())


def test_a_run_without_privileges_has_nothing_of_its_own() -> None:
    """It can make neither cgroups nor mounts, so it compares none; its children and its mark remain."""
    # The modules are loaded first: another user may have no access to this interpreter's files.
    code = """import os
from tests import isolation
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
run = isolation.enter()
print(run.cgroups, run.has_own_mounts)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "() False\n"
