"""Start virtual machines from tests on the host: ``vm("--systemd", "--", "systemctl", "is-system-running")``."""

import subprocess
import sys
from pathlib import Path

from tests.needs import ROOT

LIMIT = 900.0
"""Seconds after which a machine is given up. It has limits of its own; this is for waiting until another one ends."""


def command(*arguments: str) -> list[str]:
    """The command line of scripts/vm."""
    return [sys.executable, str(ROOT / "scripts" / "vm"), *arguments]


def vm(*arguments: str, cwd: Path = ROOT, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run scripts/vm to its end; stdin is handed on with ``--stdin``, the folder `cwd` is shared with the guest."""
    return subprocess.run(command(*arguments), input=stdin, capture_output=True, text=True, timeout=LIMIT, cwd=cwd)
