"""Output that cannot be written: for how long already, and why."""

from __future__ import annotations

import errno
import os

import attrs

STALLED_AFTER_S = 1.0
"""Seconds from which output that waits without an error is blocked: its disk or its reader does not answer."""
_NO_SPACE = os.strerror(errno.ENOSPC)


@attrs.frozen
class Blockage:
    """Output that waits: for `seconds` already, for a `reason` in words ("no space on /var/log/web.log")."""

    seconds: float
    reason: str


def describe_blockage(error: str | None, destination: str, *, is_file: bool) -> str:
    """Describe why `destination` takes nothing. `error`: in the system's words; None if the write has not failed."""
    if error == _NO_SPACE:
        return f"no space on {destination}"
    if error is not None:
        return f"cannot write {destination}: {error}"
    return f"{destination} does not answer" if is_file else f"nothing reads {destination}"
