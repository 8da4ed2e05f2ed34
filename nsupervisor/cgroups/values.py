"""Convert a workload's resources to v2 texts: which keys are set, and the text that each one writes to its file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from nsupervisor.cgroups.devices import resolve_disk
from nsupervisor.cgroups.files import KERNEL_DEFAULTS, RESOURCE_FILES

RAW_PREFIX = "unified."
"""The prefix of a raw file's key: "unified.memory.swap.high"."""

_HUGETLB_PREFIX = "hugetlb_"


def configured_values(resources: Any) -> dict[str, Any]:
    """Return the keys that are set and their values, in the order of writing; raw files last, as "unified.FILE".

    resources: `config.model.Resources`, or anything with its fields. None, and an empty table or list, is not set.
    """
    resources_class: Any = type(resources)
    if resources == _empty_resources(resources_class):  # true for most, and this is called often at a start
        return {}
    hugetlb: Mapping[str, Any] = resources.hugetlb
    values = {
        key: hugetlb.get(key.removeprefix(_HUGETLB_PREFIX))
        if key.startswith(_HUGETLB_PREFIX)
        else getattr(resources, key)
        for key in RESOURCE_FILES
    }
    values |= {f"{RAW_PREFIX}{file}": text for file, text in resources.unified.items()}
    return {key: value for key, value in values.items() if value not in (None, (), {})}


@cache
def _empty_resources(resources_class: Callable[[], Any]) -> Any:
    """Return resources of this class with no key set."""
    return resources_class()


def file_for_key(key: str) -> str:
    """Return the v2 file for a key of `configured_values`."""
    return key.removeprefix(RAW_PREFIX) if key.startswith(RAW_PREFIX) else RESOURCE_FILES[key]


def encode_value(key: str, value: Any) -> str:
    """Return the v2 text of a value: 67108864 → "67108864", (50000, 100000) → "50000 100000", None → no limit.

    Files with a line for each device give several lines, with the devices as MAJOR:MINOR. Percentages must have been
    converted to numbers before. Raises UnsupportedValueError if a path is not on a disk.
    """
    if value in (None, (), {}):
        return KERNEL_DEFAULTS[file_for_key(key)]
    if isinstance(value, bool):
        return "1" if value else "0"
    if key in _LINE_ENCODERS:
        return "\n".join(_LINE_ENCODERS[key](value))
    if isinstance(value, tuple):
        quota, period = value
        return f"{_or_max(quota)} {period}"
    return str(value)


def _or_max(value: int | None) -> str:
    return "max" if value is None else str(value)


def _io_max(limits: Any) -> list[str]:
    return [
        f"{resolve_disk(limit.device)} rbps={_or_max(limit.rbps)} wbps={_or_max(limit.wbps)} "
        f"riops={_or_max(limit.riops)} wiops={_or_max(limit.wiops)}"
        for limit in limits
    ]


_LINE_ENCODERS: Mapping[str, Callable[[Any], list[str]]] = {
    "io_max": _io_max,
    "io_weight": lambda weights: [
        f"{name if name == 'default' else resolve_disk(name)} {weight}" for name, weight in weights.items()
    ],
    "io_latency": lambda targets: [f"{resolve_disk(entry.device)} target={entry.target}" for entry in targets],
    "misc_max": lambda limits: [f"{name} {_or_max(limit)}" for name, limit in limits.items()],
    "rdma_max": lambda limits: [
        f"{entry.device} hca_handle={_or_max(entry.hca_handle)} hca_object={_or_max(entry.hca_object)}"
        for entry in limits
    ],
}


def display_text(file: str, text: str) -> str:
    """Return a v2 text for people: sizes with a unit if that is exact, "no limit" for "max"."""
    if text == "max":
        return "no limit"
    if re.match(r"(memory|hugetlb)\.", file) and text.isdecimal():
        size = int(text)
        for unit, shift in (("G", 30), ("M", 20), ("K", 10)):
            if size and size % (1 << shift) == 0:
                return f"{size >> shift}{unit}"
    text = text.replace("\n", ", ")
    return f'"{text}"' if " " in text or not text else text
