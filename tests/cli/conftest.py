"""A supervisor's API in a process of its own, for commands to talk to."""

import os
import signal
import subprocess
import sys

import pytest

from tests.needs import ROOT


@pytest.fixture(scope="package")
def standins():
    """The process that forks a service for each path that it reads."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.api.standin"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        cwd=ROOT,
    )
    with process:
        yield process
        process.kill()


@pytest.fixture
def supervisor(tmp_path, standins):
    """Path of a socket on which the real API answers for a service in memory, fresh for each test."""
    path = tmp_path / "api.sock"
    standins.stdin.write(f"{path}\n")
    pid, _, word = standins.stdout.readline().partition(" ")
    assert word == "listening\n"
    yield path
    os.kill(int(pid), signal.SIGKILL)  # it ends by nothing else, so this is still its pid
