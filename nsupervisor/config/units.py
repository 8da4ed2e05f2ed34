"""Sizes, durations, signals, CPU shares and CPU lists: conversion from text to numbers and back.

Pure. Every `parse_…` raises ValueError whose message ends the sentence "THE VALUE …": what is wrong and what to write
instead. Every `format_…` returns text that its `parse_…` reads back as the same value.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable
from decimal import Decimal

from attrs import field, frozen

from nsupervisor.wire_names import wire

INFINITY_WORDS = ("infinity", "max")
MAX_SIZE = 2**63 - 1
MAX_SECONDS = 100 * 365 * 86400.0
"""A hundred years. A longer time is a wrong unit, and close to the range of the kernel's and the clock's arithmetic."""

_SIZE_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50, "E": 2**60}
SIZE_PATTERN = r"([0-9]+(?:\.[0-9]+)?)\s*([BKMGTPE]?)"
_SIZE = re.compile(SIZE_PATTERN, re.ASCII)

# systemd.time(7), without months and years, which have no fixed length.
_TIME_UNITS = {
    unit: Decimal(seconds)
    for seconds, units in (
        ("0.000001", ("us", "usec", "µs")),
        ("0.001", ("ms", "msec")),
        ("1", ("", "s", "sec", "second", "seconds")),
        ("60", ("m", "min", "minute", "minutes")),
        ("3600", ("h", "hr", "hour", "hours")),
        ("86400", ("d", "day", "days")),
        ("604800", ("w", "week", "weeks")),
    )
    for unit in units
}
_TIME = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zµ]*)", re.ASCII)

# Documentation/admin-guide/cgroup-v2.rst and kernel/sched/core.c: period 1 ms … 1 s, quota at least 1 ms.
DEFAULT_CPU_PERIOD = 100_000
_MIN_CPU_USEC, _MAX_CPU_PERIOD = 1_000, 1_000_000
_MAX_CPU_QUOTA = 2**44
_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*%", re.ASCII)

CPU_SHARE_PROBLEM = 'is no share of CPU time; write for example "150%" (one and a half CPUs), "150000 100000" or "max"'

MAX_CPU = 8191
"""The largest CPU number: kernels are built for at most 8192 CPUs (CONFIG_NR_CPUS)."""
_CPU_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)


def parse_size(text: str) -> int | None:
    """Parse a size in bytes: "64M", "1.5G" or "4096"; None for "infinity" and "max" (no limit)."""
    if text in INFINITY_WORDS:
        return None
    match = _SIZE.fullmatch(text)
    if match is None or len(text) > 40:
        raise ValueError('is not a size; write for example "64M"')
    number = Decimal(match[1]) * _SIZE_UNITS[match[2]]
    if number > MAX_SIZE:
        raise ValueError('is larger than any memory; write "max" for no limit')
    if number != int(number):
        raise ValueError("is not a whole number of bytes; write it in a smaller unit")
    return int(number)


def format_size(size: int | Percent | None) -> str:
    """Format a size in the shortest exact form: 67108864 → "64M", 1000 → "1000", None → "max"."""
    if size is None:
        return "max"
    if isinstance(size, Percent):
        return str(size)
    for unit in "EPTGMK":
        if size and size % _SIZE_UNITS[unit] == 0:
            return f"{size // _SIZE_UNITS[unit]}{unit}"
    return str(size)


@frozen
class Percent:
    """A share of a total of the host, which `share_of` computes once the host is known."""

    percent: Decimal = field(metadata=wire("percent"))

    def share_of(self, total: int) -> int:
        """Compute the share of `total`, rounded down, but at least 1."""
        return max(int(total * self.percent / 100), 1)

    def __str__(self) -> str:
        """Format the share as written: "25%"."""
        return f"{self.percent.normalize():f}%"


@frozen
class RelativeChange:
    """A change relative to the value in force: by a percentage of it, or by an amount; negative values decrease it."""

    percent: float | None = field(default=None, metadata=wire("percent"))
    amount: int = field(default=0, metadata=wire("amount"))

    def __str__(self) -> str:
        """Format the change as written: "+25%", "-67108864"."""
        return f"{self.percent:+g}%" if self.percent is not None else f"{self.amount:+d}"


ADDRESS_PATTERN = r"([0-9]{1,3}(?:\.[0-9]{1,3}){3}|\[[0-9A-Fa-f]*:[0-9A-Fa-f:.]*\]):([0-9]{1,5})"


def parse_address(text: str) -> tuple[str, int]:
    """Parse an IP address and a port: "127.0.0.1:9631" → ("127.0.0.1", 9631), "[::1]:9631" → ("::1", 9631)."""
    import socket  # imported here because few files have an address, and it slows down every start

    host, _, port = text.rpartition(":")
    port = port if re.fullmatch("[0-9]{1,5}", port, re.ASCII) else "9631"
    if not host:
        raise ValueError(
            f'does not say who may connect; write "127.0.0.1:{port}" for this machine alone, '
            f'or "0.0.0.0:{port}" for every network'
        )
    example = f'write an IP address and a port, for example "127.0.0.1:{port}"'
    match = re.fullmatch(ADDRESS_PATTERN, text, re.ASCII)
    if not match:
        raise ValueError(f"is not an address; {example}")
    host = match[1].strip("[]")
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    except OSError:
        raise ValueError(f"is not an address; {example}") from None
    if not 1 <= int(match[2]) <= 65535:
        raise ValueError("has a port that cannot be; write one from 1 to 65535")
    return host, int(port)


def format_address(address: tuple[str, int]) -> str:
    """Format an address: ("::1", 9631) → "[::1]:9631"."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_percent(text: str) -> Percent | None:
    """Parse a percentage such as "12.5%"; None for text without "%" at its end.

    Raises ValueError outside of 0 … 100.
    """
    if not text.endswith("%"):
        return None
    match = _PERCENT.fullmatch(text)
    if match is None or len(text) > 20:
        raise ValueError('is not a percentage; write for example "25%"')
    number = Decimal(match[1])
    if not 0 < number <= 100:
        raise ValueError('is not a share of what the host has; write "1%" … "100%"')
    return Percent(number)


def parse_duration(text: str) -> float:
    """Parse a duration in seconds: "250ms", "10s", "1min 30s" or "10"."""
    position, seconds = 0, Decimal(0)
    stripped = text.strip()
    while position < len(stripped):
        match = _TIME.match(stripped, position)
        if match is None or match[2] not in _TIME_UNITS or len(text) > 80:
            break
        seconds += Decimal(match[1]) * _TIME_UNITS[match[2]]
        position = match.end()
    if not stripped or position < len(stripped):
        raise ValueError('is not a duration; write for example "250ms", "10s" or "1min 30s"')
    if seconds > Decimal(MAX_SECONDS):
        raise ValueError("is longer than a hundred years; write a shorter time")
    return float(seconds)


def format_duration(seconds: float) -> str:
    """Format a time in the largest units that keep it exact: 90.0 → "1min 30s", 0.25 → "250ms"."""
    if not 0 < seconds <= MAX_SECONDS:
        return f"{seconds:g}s"
    remaining = Decimal(repr(seconds))
    parts: list[str] = []
    for unit in ("d", "h", "min"):
        whole, remaining = divmod(remaining, _TIME_UNITS[unit])
        if whole:
            parts.append(f"{int(whole)}{unit}")
    if remaining:
        if not parts and remaining < 1 and remaining * 1000 == int(remaining * 1000):
            parts.append(f"{int(remaining * 1000)}ms")
        else:
            parts.append(f"{remaining.normalize():f}s")
    return " ".join(parts)


def parse_signal(value: str | int) -> int:
    """Return the number of a signal: "SIGTERM", "TERM", "SIGRTMIN+3" or 15 (signal(7))."""
    problem = 'is not a signal; write for example "SIGTERM"'
    if isinstance(value, int):
        if value not in signal.valid_signals():
            raise ValueError(problem)
        return int(value)
    base, plus, offset = value.removeprefix("SIG").partition("+")
    number = _SIGNALS.get(base)
    if number is None or (plus and (base != "RTMIN" or not re.fullmatch("[0-9]{1,2}", offset))):
        raise ValueError(problem)
    number += int(offset or 0)
    if number > signal.SIGRTMAX:
        raise ValueError('is past SIGRTMAX; write "SIGRTMIN+0" … "SIGRTMIN+30"')
    return number


def format_signal(number: int) -> str:
    """Return the name of a signal: 15 → "SIGTERM"; real-time signals without a name become "SIGRTMIN+N"."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"


_SIGNALS = {s.name.removeprefix("SIG"): int(s) for s in signal.Signals} | {"CLD": int(signal.SIGCHLD)}


def parse_cpu_max(text: str) -> tuple[int | None, int]:
    """Parse (quota, period) in microseconds: "150%" (of one CPU), "150000 100000", "max" or "max 100000".

    The format of cpu.max in Documentation/admin-guide/cgroup-v2.rst; a quota of None is no limit.
    """
    problem = CPU_SHARE_PROBLEM
    quota: int | None
    period = DEFAULT_CPU_PERIOD
    words = text.split()
    if len(text) > 40 or not words:
        raise ValueError(problem)
    if percent := _PERCENT.fullmatch(text):
        quota = int(Decimal(percent[1]) * period / 100)
    elif len(words) <= 2 and words[0] == "max" and all(re.fullmatch("[0-9]+", word) for word in words[1:]):
        quota = None
        period = int(words[1]) if len(words) == 2 else period
    elif len(words) == 2 and all(re.fullmatch("[0-9]+", word) for word in words):
        quota, period = int(words[0]), int(words[1])
    else:
        raise ValueError(problem)
    if not _MIN_CPU_USEC <= period <= _MAX_CPU_PERIOD:
        raise ValueError("has a period outside of 1000 … 1000000 microseconds; write for example 100000")
    if quota is not None and quota < _MIN_CPU_USEC:
        raise ValueError('is less than the kernel grants (1000 microseconds in a period); write at least "1%"')
    if quota is not None and quota > _MAX_CPU_QUOTA:
        raise ValueError('is more than any machine has; write "max" for no limit')
    return quota, period


def format_cpu_max(value: tuple[int | None, int]) -> str:
    """Format as the kernel writes cpu.max: (150000, 100000) → "150000 100000"."""
    quota, period = value
    return f"{'max' if quota is None else quota} {period}"


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Parse a list of CPUs in the list format of cpuset(7): "0-1,4" → (0, 1, 4)."""
    cpus: set[int] = set()
    for part in text.split(","):
        match = _CPU_RANGE.fullmatch(part.strip())
        if match is None or len(text) > 4096:
            raise ValueError('is not a list of CPUs; write for example "0-1,4"')
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f'has a range that runs backwards; write "{last}-{first}"')
        if last > MAX_CPU:
            raise ValueError(f"names a CPU above {MAX_CPU}; write CPU numbers that the machine has")
        cpus.update(range(first, last + 1))
    return tuple(sorted(cpus))


def format_cpu_list(cpus: Iterable[int]) -> str:
    """Format a list of CPUs: (0, 1, 4) → "0-1,4"."""
    ranges: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if ranges and cpu == ranges[-1][1] + 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
