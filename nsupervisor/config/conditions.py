"""The conditions of policy rules: "memory.events oom_kill", "pids.current >= 90%", "memory.pressure some avg10 > 25%".

Pure. Two kinds: a *counter* of an event file, which fires when it went up, and a *level*, which holds while its
comparison does. The files and keys are the kernel's (Documentation/admin-guide/cgroup-v2.rst, Documentation/accounting/
psi.rst). The message of each ValueError ends the sentence "THE CONDITION …".
"""

from __future__ import annotations

import re
from typing import Literal, cast

from attrs import frozen

from nsupervisor.config.shown import did_you_mean, shown
from nsupervisor.config.units import parse_size


@frozen
class Condition:
    """What a rule waits for; `parse_condition` makes it from `when`.

    A counter ("memory.events oom_kill") fires when it went up. A level ("pids.current >= 90%") holds while the
    comparison does. `key` of a PSI file is "some avg10". `percent` is true only where the threshold is in per cent of
    the workload's own limit (pids.current, memory.current); the % of a pressure is the file's own unit.
    """

    text: str
    file: str
    key: str | None
    kind: Literal["counter", "level"]
    op: Literal[">", ">=", "<", "<="] | None = None
    threshold: float | None = None
    percent: bool = False


COUNTERS = {
    "memory.events": ("low", "high", "max", "oom", "oom_kill", "oom_group_kill"),
    "pids.events": ("max",),
    "cpu.stat": ("nr_throttled",),
}
_MEMORY_STAT = (
    "anon file kernel kernel_stack pagetables sec_pagetables percpu sock vmalloc shmem zswap zswapped file_mapped "
    "file_dirty file_writeback swapcached anon_thp file_thp shmem_thp inactive_anon active_anon inactive_file "
    "active_file unevictable slab_reclaimable slab_unreclaimable slab"
)
_PRESSURE = tuple(f"{kind} avg{window}" for kind in ("some", "full") for window in (10, 60, 300))
SIZES: dict[str, tuple[str, ...]] = {
    "memory.current": (),
    "memory.stat": tuple(_MEMORY_STAT.split()),
}
NUMBERS: dict[str, tuple[str, ...]] = {"pids.current": ()}
PRESSURES = {"cpu.pressure": _PRESSURE, "io.pressure": _PRESSURE, "memory.pressure": _PRESSURE}
LEVELS = SIZES | NUMBERS | PRESSURES
LIMITS = {"pids.current": "pids_max", "memory.current": "memory_max"}
"""The files that a percentage has a meaning for, and the key that it is a percentage of."""

_COMPARISON = re.compile(r"(>=|<=|>|<)\s*(\S.*)", re.DOTALL)
_NUMBER = re.compile(r"[0-9]{1,18}(\.[0-9]{1,9})?", re.ASCII)


def parse_condition(text: str) -> Condition:
    """The condition that `text` says; ValueError with what is wrong and what to write instead."""
    if len(text) > 200:
        raise ValueError("is too long for a condition; write a file, its key and for levels a comparison")
    operator = re.search(r"[<>=!]", text)
    words = (text[: operator.start()] if operator else text).split()
    comparison = text[operator.start() :].strip() if operator else ""
    if not words:
        raise ValueError('names no file; write for example "memory.events oom_kill" or "pids.current >= 90%"')
    file, key = words[0], " ".join(words[1:]) or None
    if "rate" in words[2:]:
        raise ValueError("compares a rate, which is not available yet in this version; write the counter alone")
    if file in COUNTERS:
        return _counter(text, file, key, comparison)
    if file in LEVELS:
        return _level(text, file, key, comparison)
    known = sorted(COUNTERS | LEVELS)
    raise ValueError(f"names an unknown file {shown(file)}{did_you_mean(file, known)}; write one of {', '.join(known)}")


def _counter(text: str, file: str, key: str | None, comparison: str) -> Condition:
    keys = COUNTERS[file]
    example = f'"{file} {keys[0] if file != "memory.events" else "oom_kill"}"'
    if key is None:
        raise ValueError(f"does not say which counter of {file}; write for example {example}")
    if key not in keys:
        raise ValueError(
            f"names an unknown counter {shown(key)} of {file}{did_you_mean(key, keys)}; write one of {', '.join(keys)}"
        )
    if comparison:
        raise ValueError(
            f'compares a counter, which only ever goes up; write "{file} {key}", which fires each time it does'
        )
    return Condition(" ".join(text.split()), file, key, "counter")


def _level(text: str, file: str, key: str | None, comparison: str) -> Condition:
    keys = LEVELS[file]
    examples = {"pids.current": ">= 90%", "memory.current": "> 90%", "memory.stat": "> 64M"}
    example_key = f" {'anon' if 'anon' in keys else keys[0]}" if keys else ""
    example = f'"{file}{example_key} {examples.get(file, "> 25%")}"'
    if keys and key is None:
        raise ValueError(f"does not say which value of {file}; write for example {example}")
    if keys and key not in keys:
        raise ValueError(
            f"names an unknown value {shown(key)} of {file}{did_you_mean(key, keys)}; write one of {', '.join(keys)}"
        )
    if not keys and key is not None:
        raise ValueError(f"names a value {shown(key)}, but {file} holds a single one; write for example {example}")
    if not comparison:
        raise ValueError(f"does not say at which level; write for example {example}")
    match = _COMPARISON.fullmatch(comparison)
    if match is None or match[2][0] in "<>=!":
        raise ValueError(f"has no comparison with >, >=, < or <=; write for example {example}")
    threshold, percent = _threshold(file, match[2], example)
    operator = cast('Literal[">", ">=", "<", "<="]', match[1])
    return Condition(" ".join(text.split()), file, key, "level", operator, threshold, percent)


def _threshold(file: str, text: str, example: str) -> tuple[float, bool]:
    """(number, whether it is in per cent of the workload's own limit)."""
    number = text.removesuffix("%").rstrip()
    percent = text.endswith("%")
    if percent and not (file in LIMITS or file in PRESSURES):
        raise ValueError(f"compares {file} with a percentage, but it has no limit; write for example {example}")
    if percent or file in PRESSURES:
        if not _NUMBER.fullmatch(number) or float(number) > 100:
            raise ValueError(f"compares with {shown(text)}, not a percentage up to 100%; write for example {example}")
        return float(number), percent and file in LIMITS
    if file in SIZES:
        try:
            size = parse_size(text)
        except ValueError:
            size = None
        if size is None:
            raise ValueError(f"compares with {shown(text)}, which is not a size; write for example {example}")
        return float(size), False
    if not _NUMBER.fullmatch(number):
        raise ValueError(f"compares with {shown(text)}, which is not a number; write for example {example}")
    return float(number), False
