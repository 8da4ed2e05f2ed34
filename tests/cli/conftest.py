"""A supervisor's API in a process of its own, for commands to talk to."""

import subprocess
import sys

import pytest

from tests.needs import ROOT


@pytest.fixture
def supervisor(tmp_path):
    """Path of a socket on which the real API answers for a service in memory."""
    path = tmp_path / "api.sock"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.api.standin", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    try:
        assert process.stdout.readline() == b"listening\n", process.stderr.read().decode()
        yield path
    finally:
        process.kill()
        process.communicate()
