"""From a workload's resources to v2 texts: which keys are set, and what each one writes into its file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from nsupervisor.cgroups.devices import disk
from nsupervisor.cgroups.files import RESOURCES, UNLIMITED

RAW = "unified."
"""What a raw file's key begins with: "unified.memory.swap.high"."""

_HUGE = "hugetlb_"


def settings(resources: Any) -> dict[str, Any]:
    """The keys that are set and their values, in the order of writing; raw files last, as "unified.FILE".

    resources: `config.model.Resources`, or anything with its fields. None, and an empty table or list, is not set.
    """
    kind: Any = type(resources)
    if resources == _unset(kind):  # most are, and this is asked for often at a start
        return {}
    huge: Mapping[str, Any] = resources.hugetlb
    values = {
        key: huge.get(key.removeprefix(_HUGE)) if key.startswith(_HUGE) else getattr(resources, key)
        for key in RESOURCES
    }
    values |= {f"{RAW}{file}": text for file, text in resources.unified.items()}
    return {key: value for key, value in values.items() if value not in (None, (), {})}


@cache
def _unset(kind: Callable[[], Any]) -> Any:
    """One with nothing set."""
    return kind()


def file_of(key: str) -> str:
    """The v2 file that a key of `settings` is for."""
    return key.removeprefix(RAW) if key.startswith(RAW) else RESOURCES[key]


def encode(key: str, value: Any) -> str:
    """The v2 text of a resource's value: 67108864 → "67108864", (50000, 100000) → "50000 100000", None → no limit.

    Files with a line for each device give several lines, the devices in them as MAJOR:MINOR. UnfitError where a path
    is on no disk. Percentages have been made into numbers before.
    """
    if value in (None, (), {}):
        return UNLIMITED[file_of(key)]
    if isinstance(value, bool):
        return "1" if value else "0"
    if key in _LINES:
        return "\n".join(_LINES[key](value))
    if isinstance(value, tuple):
        quota, period = value
        return f"{_or_max(quota)} {period}"
    return str(value)


def _or_max(value: int | None) -> str:
    return "max" if value is None else str(value)


def _io_max(limits: Any) -> list[str]:
    return [
        f"{disk(one.device)} rbps={_or_max(one.rbps)} wbps={_or_max(one.wbps)} "
        f"riops={_or_max(one.riops)} wiops={_or_max(one.wiops)}"
        for one in limits
    ]


_LINES: Mapping[str, Callable[[Any], list[str]]] = {
    "io_max": _io_max,
    "io_weight": lambda weights: [
        f"{name if name == 'default' else disk(name)} {weight}" for name, weight in weights.items()
    ],
    "io_latency": lambda targets: [f"{disk(one.device)} target={one.target}" for one in targets],
    "misc_max": lambda limits: [f"{name} {_or_max(limit)}" for name, limit in limits.items()],
    "rdma_max": lambda limits: [
        f"{one.device} hca_handle={_or_max(one.hca_handle)} hca_object={_or_max(one.hca_object)}" for one in limits
    ],
}


def display(file: str, text: str) -> str:
    """A v2 text as a person would write it: sizes with a unit where it is exact, "no limit" for "max"."""
    if text == "max":
        return "no limit"
    if re.match(r"(memory|hugetlb)\.", file) and text.isdecimal():
        size = int(text)
        for unit, shift in (("G", 30), ("M", 20), ("K", 10)):
            if size and size % (1 << shift) == 0:
                return f"{size >> shift}{unit}"
    text = text.replace("\n", ", ")
    return f'"{text}"' if " " in text or not text else text
