"""The real command line in a process of its own."""

import os
import subprocess
import sys

from tests.needs import ROOT
from tests.timing import deadline


def nsupervisor(
    *arguments, socket="/nonexistent/api.sock", stdin="", **environment
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, with warnings as errors. NSUPERVISOR_SOCKET is `socket`."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "nsupervisor", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=deadline(30),
        cwd=ROOT,
        env={**os.environ, "NSUPERVISOR_SOCKET": str(socket), **environment},
    )
