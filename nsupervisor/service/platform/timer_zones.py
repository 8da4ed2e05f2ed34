"""Time zones of the host. Does not import trio, because `check` has to be quick."""

from __future__ import annotations

import os
from datetime import UTC, tzinfo
from functools import cache

_LOCAL_TIME = "/etc/localtime"


@cache
def find_zone(name: str) -> tzinfo:
    """Return the time zone of a name, zoneinfo(3). Raises LookupError with what to do."""
    from zoneinfo import ZoneInfo  # imported late: most services have no timers

    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        raise LookupError(
            f"{name} is not a time zone of this host; write a name of /usr/share/zoneinfo, or install tzdata"
        ) from None


def local_zone() -> tzinfo:
    """Return the time zone of the host: that of TZ if it has a name there, of /etc/localtime, or UTC."""
    if name := os.environ.get("TZ", "").lstrip(":"):
        try:
            return find_zone(name)
        except LookupError:
            return UTC  # as in glibc
    from zoneinfo import ZoneInfo

    try:
        with open(_LOCAL_TIME, "rb") as file:
            return ZoneInfo.from_file(file)
    except (OSError, ValueError):
        return UTC
