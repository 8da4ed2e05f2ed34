"""`nsupervisor upgrade` into a copy of the package: one that works, and such as are broken on purpose."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nsupervisor.api.client import Client, ClientError
from nsupervisor.service.recovery.upgrade import ENTRY_POINT
from tests.chaos import observe
from tests.chaos.service import Run, Site, over, running, site, until
from tests.chaos.test_recovery import TOML, lives
from tests.needs import ROOT, needs
from tests.timing import deadline

pytestmark = [pytest.mark.slow, needs("root", "cgroup")]


def version(where: Path, change: str = "", in_file: str = "", before: str = "") -> Path:
    """A copy of the package, version 99, with a line added to one of its files."""
    shutil.copytree(ROOT / "nsupervisor", where / "nsupervisor", ignore=shutil.ignore_patterns("__pycache__"))
    init = where / "nsupervisor" / "__init__.py"
    init.write_text(init.read_text() + '\n__version__ = "99"\n')
    if change:
        path = where / "nsupervisor" / in_file
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, change + before, 1) if before else text + change)
    return where


def upgrade(run: Run, package: Path, patience: float = 20) -> subprocess.CompletedProcess[str]:
    script = f"import sys; sys.path.insert(0, {str(package)!r}); from nsupervisor.cli.main import main; main()"
    socket = str(run.site.runtime / "api.sock")
    return subprocess.run(
        [sys.executable, "-P", "-c", script, "upgrade", "--socket", socket, "--timeout", str(deadline(patience))],
        capture_output=True,
        text=True,
        timeout=deadline(90),
    )


def test_both_become_the_other_version_in_place(tmp_path):
    with site(TOML) as where, running(where) as run:
        before, info = lives(run), run.client.info()
        done = upgrade(run, version(tmp_path))
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"version {info['version']} → 99, process {run.pid}\n"
        after = run.client.info()
        assert (after["pid"], after["keeper_pid"], after["version"]) == (info["pid"], info["keeper_pid"], "99")
        assert lives(run) == before
        assert run.record(event="keeper upgraded")["pid"] == info["keeper_pid"]
        run.record(event="supervisor upgraded")
        assert run.one("web")["generation"] == 1
        run.tell("restart", "web")
        until("web runs", lambda: run.one("web")["state"] == "running")
        run.stop()
        over(run)


IDLE = """
[workload.web]
command = ["sleep", "1000"]
autostart = false
"""


def test_an_upgrade_while_nothing_runs(tmp_path):
    """The other version's keeper had neither a client nor a child, so it left, and no upgrade could be had."""
    with site(IDLE) as where, running(where) as run:
        info = run.client.info()
        done = upgrade(run, version(tmp_path))
        assert (done.returncode, done.stdout) == (0, f"version {info['version']} → 99, process {run.pid}\n"), (
            done.stderr
        )
        assert run.record(event="keeper upgraded")["pid"] == info["keeper_pid"]
        run.tell("start", "web")
        until("web runs", lambda: run.one("web")["state"] == "running")
        run.stop()
        over(run)


@pytest.mark.fault("D24")
def test_an_upgrade_without_any_workload(tmp_path):
    """`upgrade` took the keeper and the journal from the first workload, and failed with StopIteration without one."""
    with site("") as where, running(where) as run:
        info = run.client.info()
        assert run.client.status() == []
        done = upgrade(run, version(tmp_path))
        assert (done.returncode, done.stdout) == (0, f"version {info['version']} → 99, process {run.pid}\n"), (
            done.stderr
        )
        assert run.record(event="keeper upgraded")["pid"] == info["keeper_pid"]
        run.record(event="supervisor upgraded")
        run.stop()
        over(run)


def test_a_refused_upgrade_without_any_workload_says_why(tmp_path):
    """The refusal was recorded in the journal of the first workload as well."""
    with site("") as where, running(where) as run:
        run.may_complain = True
        done = upgrade(run, version(tmp_path, "raise RuntimeError('broken')\n", "service/run.py"), 5)
        assert (done.returncode, "broken" in done.stderr) == (1, True), done.stderr
        assert run.record(event="not upgraded", level="error")
        run.stop()
        over(run)


@pytest.mark.parametrize(
    ("change", "in_file", "patience", "why"),
    [
        ("raise RuntimeError('broken on purpose')\n", "service/run.py", 5, "broken on purpose"),
        ("import time; time.sleep(1000)\n", "core/__init__.py", 1, "not up within"),
        ("raise RuntimeError('broken')\n", "keeper/server/loop.py", 5, "the keeper of version 99 did not come up"),
    ],
    ids=["does not load", "hangs", "keeper"],
)
def test_what_shows_before_anything_is_given_up_changes_nothing(tmp_path, change, in_file, patience, why):
    with site(TOML) as where, running(where) as run:
        was, info = lives(run), run.client.info()
        run.may_complain = True  # of the keeper's traceback
        done = upgrade(run, version(tmp_path, change, in_file), patience)
        assert done.returncode == 1
        assert f"not upgraded, version {info['version']} continues: " in done.stderr
        assert why in done.stderr
        assert run.record(event="not upgraded", level="error")
        assert lives(run) == was
        assert (run.client.info()["pid"], run.client.info()["version"]) == (info["pid"], info["version"])
        run.stop()
        over(run)


EARLY = "        with runtime_directory(config) as directory:\n"
LATE = "                groups.watch()\n"


@pytest.mark.parametrize(
    ("change", "place", "why"),
    [
        ("raise RuntimeError('broken')", EARLY, "it ended before it was up"),
        ("raise RuntimeError('broken')", LATE, "it ended before it was up"),
        ("__import__('time').sleep(1000)", EARLY, "it was not up within"),
    ],
    ids=["ends", "ends after it has taken over", "hangs"],
)
def test_what_shows_only_then_is_rolled_back_and_says_why(tmp_path, change, place, why):
    """One that failed after it had taken over killed all workloads."""
    with site(TOML) as where, running(where) as run:
        was, info = lives(run), run.client.info()
        run.may_complain = True
        indent = " " * (len(place) - len(place.lstrip()))
        done = upgrade(run, version(tmp_path, f"{indent}{change}\n", "service/run.py", place), 5)
        assert done.returncode == 1
        assert f"rolled back to version {info['version']}" in done.stderr
        assert why in run.record(event="upgrade rolled back", level="error")["message"]
        assert lives(run) == was


@contextmanager
def by_itself(where: Site, package: Path = ROOT) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """``run --supervise-self``: the small parent, and its standard error."""
    stderr = where.directory / "stderr"
    command = [sys.executable, "-P", "-c", ENTRY_POINT, str(package), "run", "--supervise-self", str(where.config)]
    environment = {**os.environ, "PYTHONPATH": str(package), observe.MARK: where.mark}
    with stderr.open("wb") as told, (where.directory / "stdout").open("wb") as stdout:
        parent = subprocess.Popen(command, env=environment, stdout=stdout, stderr=told)
    try:
        yield parent, stderr
    finally:
        parent.kill()
        parent.wait()


def said(stderr: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in stderr.read_text().splitlines() if line.startswith("{")]


def test_a_version_that_ends_with_any_status_is_rolled_back_by_the_small_parent_too(tmp_path):
    """It took the exit status for a last word, ended as well, and nobody supervised any more."""
    with site(TOML) as where, by_itself(where) as (parent, stderr):
        client = Client(str(where.runtime / "api.sock"))

        def all_run() -> dict[str, int] | None:
            try:
                found = {one["name"]: one["pid"] for one in client.status() if one["state"] == "running"}
            except ClientError:
                return None
            return found if len(found) == 2 else None

        before, info = until("all run", all_run), client.info()
        broken = version(tmp_path, "        return EXIT_FAILED\n", "service/run.py", EARLY)
        script = [sys.executable, "-P", "-c", ENTRY_POINT, str(broken), "upgrade", "--socket", client.socket_path]
        done = subprocess.run([*script, "--timeout", str(deadline(5))], capture_output=True, text=True, check=False)
        assert f"rolled back to version {info['version']}" in done.stderr
        assert until("all run", all_run) == before
        assert [(one["event"], one["code"]) for one in said(stderr)] == [("supervisor failed", 1)]
        parent.terminate()
        assert parent.wait(deadline(20)) == 0
        where.demand_nothing_left()


def test_a_supervisor_with_a_defect_is_started_again_by_the_small_parent(tmp_path):
    broken = version(tmp_path, "        raise RuntimeError('broken')\n", "service/run.py", EARLY)
    with site(TOML) as where, by_itself(where, broken) as (parent, stderr):
        until("it has been started again", lambda: len(said(stderr)) > 1)
        assert {(one["event"], one["code"]) for one in said(stderr)} == {("supervisor failed", 70)}
        assert "RuntimeError: broken" in stderr.read_text()
        parent.terminate()
        assert parent.wait(deadline(20)) == 70
