"""Parsers of cgroup interface files: pure functions from text to numbers.

Every parser returns a flat mapping from key to number. The formats are those of the section "Interface Files / Format"
of the kernel's Documentation/admin-guide/cgroup-v2.rst; "max" reads as infinity. ValueError for anything else.
"""

from __future__ import annotations

from math import inf


def parse_number(word: str) -> float:
    """Parse a number as the kernel writes it: an int if it is one, a float ("0.25"), or infinity for "max"."""
    if word == "max":
        return inf
    try:
        return int(word)
    except ValueError:
        pass
    value = float(word)
    if value != value:
        raise ValueError(f"not a number: {word!r}")
    return value


def parse_single(text: str) -> dict[str, float]:
    """Parse a file with one number: `4096` or `max` → {"": 4096}."""
    return {"": parse_number(text.strip())}


def parse_flat(text: str) -> dict[str, float]:
    """Parse lines of one key and one number: `oom 1` → {"oom": 1}."""
    values = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if not key or not value:
            raise ValueError(f"not a key and a number: {line!r}")
        values[key] = parse_number(value.strip())
    return values


def parse_nested(text: str) -> dict[str, float]:
    """Parse lines of a key and pairs: `some avg10=0.00 total=7` → {"some avg10": 0.0, "some total": 7}.

    Pressure files (Documentation/accounting/psi.rst), io.stat and io.max have this form. A key without pairs gives
    nothing; io.stat has such keys for devices that were never used.
    """
    values = {}
    for line in text.splitlines():
        words = line.split()
        if not words or "=" in words[0]:
            raise ValueError(f"not a key followed by pairs: {line!r}")
        for pair in words[1:]:
            name, equals, value = pair.partition("=")
            if not name or not equals:
                raise ValueError(f"not a pair: {pair!r} in {line!r}")
            values[f"{words[0]} {name}"] = parse_number(value)
    return values


def parse_meminfo(text: str) -> dict[str, float]:
    """Parse /proc/meminfo: `MemTotal:  16000 kB` → {"MemTotal": 16384000}, in bytes.

    Values without a unit are left out.
    """
    values = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if value.endswith(" kB"):
            values[key] = parse_number(value.removesuffix(" kB").strip()) * 1024
    return values


HOST_FILES = {
    "host.meminfo": "/proc/meminfo",
    **{f"host.{kind}.pressure": f"/proc/pressure/{kind}" for kind in ("cpu", "io", "memory")},
}
"""The files with the readings of the whole host, by the names under which rules can use them like a cgroup's."""


def parse_cpu_max(text: str) -> dict[str, float]:
    """Parse cpu.max: `max 100000` → {"quota": inf, "period": 100000}, in microseconds."""
    words = text.split()
    if len(words) != 2:
        raise ValueError(f"not a quota and a period: {text!r}")
    return {"quota": parse_number(words[0]), "period": parse_number(words[1])}


def parse_file(file: str, text: str) -> dict[str, float]:
    """Parse the text of a v2 file in the format that its name implies."""
    if file == "cpu.max":
        return parse_cpu_max(text)
    if file == "host.meminfo":
        return parse_meminfo(text)
    if file.endswith(".pressure") or file in ("io.stat", "io.max", "io.latency", "rdma.max", "rdma.current"):
        return parse_nested(text)
    if file in ("misc.max", "misc.current", "io.weight", "io.bfq.weight"):
        return parse_flat(text)
    stem = file.removesuffix(".local")
    if stem.endswith((".events", ".stat")):
        return parse_flat(text)
    return parse_single(text)


def parse_cpu_list(text: str) -> frozenset[int]:
    """Parse a list of CPUs: `0-2,4` → {0, 1, 2, 4}; blank → nothing (cpuset.cpus, "List format" in cpuset(7))."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        if not part:
            continue
        first, dash, last = part.partition("-")
        cpus.update(range(int(first), int(last if dash else first) + 1))
    return frozenset(cpus)
