"""The files of limits of a simulated cgroup: their defaults, and how the kernel reads what is written to them.

Source: admin-guide/cgroup-v2.rst; `tests/simulation/test_seam_conformance.py` compares it with the kernel.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping

LIMIT_FILES: Mapping[str, str] = {
    "memory.min": "0",
    "memory.low": "0",
    "memory.high": "max",
    "memory.max": "max",
    "memory.swap.max": "max",
    "memory.oom.group": "0",
    "pids.max": "max",
    "cpu.max": "max 100000",
    "cpu.max.burst": "0",
    "cpu.weight": "100",
}
"""The content of each file after the cgroup has been made."""
PAGE_BYTES = 4096
_SUFFIXES = "kmgtpe"
_MAX_PIDS = 4 * 1024 * 1024
"""PID_MAX_LIMIT of include/linux/threads.h."""
_MAX_WEIGHT = 10000
_MIN_PERIOD_US, _MAX_PERIOD_US = 1000, 1_000_000
"""The shortest and the longest period, and the shortest quota, of kernel/sched/core.c."""


def invalid(number: int = errno.EINVAL) -> OSError:
    """Return the exception for a value that the kernel refuses."""
    return OSError(number, os.strerror(number))


def parse_integer(text: str) -> int:
    """Return a number as kstrtoint reads it. Raises OSError (EINVAL)."""
    if not re.fullmatch(r"[+-]?\d+", text):
        raise invalid()
    return int(text)


def parse_switch(text: str, only: int | None = None) -> int:
    """Return the number that is written to cgroup.freeze or cgroup.kill. Raises OSError (EINVAL, ERANGE)."""
    number = parse_integer(text.strip())
    if number not in ((0, 1) if only is None else (only,)):
        raise invalid(errno.ERANGE)
    return number


def parse(file: str, text: str, limits: Mapping[str, str]) -> str:
    """Return the content of a limit file after `text` was written. `limits`: the present ones. Raises OSError."""
    text = text.strip()
    match file:
        case "memory.oom.group":
            if text not in ("0", "1"):
                raise invalid()
            return text
        case "pids.max":
            if text != "max" and not 0 <= parse_integer(text) < _MAX_PIDS:
                raise invalid()
            return text if text == "max" else str(parse_integer(text))
        case "cpu.weight":
            weight = parse_integer(text)
            if not 1 <= weight <= _MAX_WEIGHT:
                raise invalid(errno.ERANGE)
            return str(weight)
        case "cpu.max":
            return _parse_quota(text, limits)
        case "cpu.max.burst":
            quota = limits["cpu.max"].split()[0]
            burst = parse_integer(text)
            if burst < 0 or quota == "max" or burst > int(quota):
                raise invalid()
            return str(burst)
    return _parse_size(text)


def _parse_quota(text: str, limits: Mapping[str, str]) -> str:
    words = text.split()
    period = parse_integer(words[1]) if len(words) > 1 else int(limits["cpu.max"].split()[1])
    if not words or not _MIN_PERIOD_US <= period <= _MAX_PERIOD_US:
        raise invalid()
    if words[0] == "max":
        return f"max {period}"
    quota = parse_integer(words[0])
    if quota < _MIN_PERIOD_US or int(limits["cpu.max.burst"]) > quota:
        raise invalid()
    return f"{quota} {period}"


def _parse_size(text: str) -> str:
    if text == "max":
        return text
    found = re.fullmatch(r"(\d+)([kmgtpe]?)", text, re.IGNORECASE)
    if found is None:
        raise invalid()
    exponent = _SUFFIXES.index(found[2].lower()) + 1 if found[2] else 0
    return str((int(found[1]) << 10 * exponent) // PAGE_BYTES * PAGE_BYTES)
