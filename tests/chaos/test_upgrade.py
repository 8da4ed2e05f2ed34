"""`nsupervisor upgrade` into a copy of the package: one that works, and such as are broken on purpose."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.service import Run, over, running, site, until
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


@pytest.mark.parametrize(
    ("change", "in_file", "patience", "why"),
    [
        ("raise RuntimeError('broken on purpose')\n", "service/run.py", 5, "broken on purpose"),
        ("import time; time.sleep(1000)\n", "core/__init__.py", 1, "not up within"),
        ("raise RuntimeError('broken')\n", "keeper/server.py", 5, "the keeper of version 99 did not come up"),
    ],
    ids=["does not load", "hangs", "keeper"],
)
def test_what_shows_before_anything_is_given_up_changes_nothing(tmp_path, change, in_file, patience, why):
    with site(TOML) as where, running(where) as run:
        was, info = lives(run), run.client.info()
        run.may_complain = True  # of the keeper's traceback
        done = upgrade(run, version(tmp_path, change, in_file), patience)
        assert done.returncode == 1
        assert f"not upgraded, version {info['version']} goes on: " in done.stderr
        assert why in done.stderr
        assert run.record(event="not upgraded", level="error")
        assert lives(run) == was
        assert (run.client.info()["pid"], run.client.info()["version"]) == (info["pid"], info["version"])
        run.stop()
        over(run)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("raise RuntimeError('broken')", "it ended before it was up"),
        ("__import__('time').sleep(1000)", "it was not up within"),
    ],
    ids=["ends", "hangs"],
)
def test_what_shows_only_then_is_rolled_back_and_says_why(tmp_path, change, why):
    place = "        with _runtime_directory(config) as directory:\n"
    with site(TOML) as where, running(where) as run:
        was, info = lives(run), run.client.info()
        run.may_complain = True
        done = upgrade(run, version(tmp_path, f"        {change}\n", "service/run.py", place), 5)
        assert done.returncode == 1
        assert f"rolled back to version {info['version']}" in done.stderr
        assert why in run.record(event="upgrade rolled back", level="error")["message"]
        assert lives(run) == was
