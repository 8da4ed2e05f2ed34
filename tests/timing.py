"""How long tests wait: one number for slow machines (the virtual machine of the tests emulates its processor), and for
busy ones (the host, while the virtual machine is running).

``deadline(5)`` is five seconds on the host and a hundred where ``NSUPERVISOR_TEST_SLOWDOWN=20``. Use it for every
time limit that stands for "this should have happened long ago", never for a sleep.
"""

import os

slowdown = float(os.environ.get("NSUPERVISOR_TEST_SLOWDOWN", "1"))
"""Factor by which this machine is slower than a usual one, ≥ 1."""

LONGEST = 240.0
"""The longest scaled time limit, in seconds. It is below the time limit of a test in the virtual machine, so a test
that waits in vain says what it waited for, and ends what it started, before it is interrupted."""


def deadline(seconds: float) -> float:
    """Scale a time limit (seconds) to this machine; a longer one than `LONGEST` stays as it is."""
    return max(seconds, min(seconds * slowdown, LONGEST))
