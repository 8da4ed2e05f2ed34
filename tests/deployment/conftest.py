"""Cgroups as an administrator or a container engine would make them for the service, and a folder of another user."""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsupervisor.cgroups import directories
from tests.needs import cgroup_directories
from tests.timing import deadline


@pytest.fixture
def cgroups() -> Iterator[list[Path]]:
    """A new cgroup in each hierarchy that limits memory or processes; the first one is cgroup v2's."""
    own = cgroup_directories()
    with tempfile.TemporaryDirectory(prefix="deployment-") as unique:
        made = [own[name] / Path(unique).name for name in ("", "memory", "pids") if name in own]
    for directory in made:
        directory.mkdir()
    yield made
    (made[0] / "cgroup.kill").write_text("1")
    end = time.monotonic() + deadline(5)
    while "populated 1" in (made[0] / "cgroup.events").read_text() and time.monotonic() < end:
        time.sleep(0.01)
    for directory in made:
        directories.remove(str(directory))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that all users can enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="deployment-") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.fixture(scope="session")
def interpreter_for_all() -> str:
    """Shell commands after which other users can execute this Python, even one that is installed in root's home."""
    return show_interpreter()


def show_interpreter() -> str:
    """Return these commands. They mount, so the shell needs a mount namespace of its own."""
    prefix = Path(sys.base_prefix)
    closed = [directory for directory in reversed(prefix.parents) if not directory.stat().st_mode & 0o001]
    if not closed:
        return ""
    return f"""
    exec 9<{prefix}
    mount -t tmpfs -o mode=755 none {closed[0]}
    mkdir -p {prefix}
    mount --no-canonicalize --bind /proc/self/fd/9 {prefix}
    exec 9<&-
    """
