"""Exit statuses, messages and the cache of the virtual machine."""

import os
import subprocess
import sys
from pathlib import Path

CACHE = Path(os.environ.get("NSUPERVISOR_VM_CACHE", "/var/cache/nsupervisor-vm"))
"""Holds the unpacked kernel and the directories of running machines; may be deleted when none runs."""

FAILED = 125
"""Exit status when the machine could not be prepared, did not boot, or died."""

TIMED_OUT = 124
"""Exit status when the command's time was up."""


def say(message: str) -> None:
    """Write a line about the machine itself (not the command's) to stderr."""
    print(f"vm: {message}", file=sys.stderr, flush=True)


class MachineError(Exception):
    """There is no machine, and why."""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command of the preparation and return what it wrote; MachineError with its last lines when it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=cwd,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )
    if done.returncode:
        raise MachineError(f"{' '.join(map(str, command))}: exit status {done.returncode}:\n{done.stdout[-2000:]}")
    return done.stdout
