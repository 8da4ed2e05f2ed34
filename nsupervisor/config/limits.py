"""Conflicts within a workload's resources; the checks apply to the file and to changes at run time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from attrs import fields

from nsupervisor.config.quoting import quoted
from nsupervisor.config.units import Percent, format_size

if TYPE_CHECKING:  # callers that check memory limits alone do not need the model, which is slow to import
    from nsupervisor.config.model import Resources

_MEMORY_ORDER = ("memory_min", "memory_low", "memory_high", "memory_max")
"""Each value must not exceed the values after it."""

_NO_EFFECT = {
    "memory_low": "so that memory_low has no effect; write a size up to it",
    "memory_high": "which is all that it may have; write a size up to it",
    "memory_max": "which is all that it may have; write a size up to it",
}

_NEVER_REACHED = "so it would never be reached; write a size below it"


class LimitConflict(NamedTuple):
    """A conflict at the value of `key` (below the resources), and the other keys that take part in it."""

    key: tuple[str | int, ...]
    message: str
    involved: tuple[str, ...] = ()


def find_resource_conflicts(resources: Resources) -> Iterator[LimitConflict]:
    """Find every conflict. Percentages and sizes cannot be compared before the host is known."""
    yield from find_memory_conflicts({key: getattr(resources, key) for key in _MEMORY_ORDER})
    yield from _cpu_conflicts(resources)
    yield from _device_conflicts(resources)
    yield from _unified_conflicts(resources)


def find_memory_conflicts(memory: Mapping[str, int | Percent | None]) -> Iterator[LimitConflict]:
    """Check memory_min ≤ memory_low ≤ memory_high ≤ memory_max, as far as they are set and of the same kind."""
    for index, key in enumerate(_MEMORY_ORDER):
        for larger_key in _MEMORY_ORDER[index + 1 :]:
            value, other_value = memory.get(key), memory.get(larger_key)
            if _is_above(value, other_value):
                consequence = _NEVER_REACHED if key == "memory_high" else _NO_EFFECT[larger_key]
                yield LimitConflict(
                    (key,),
                    f"{format_size(value)} is above {larger_key} ({format_size(other_value)}), {consequence}",
                    (larger_key,),
                )
                break


def _is_above(low: int | Percent | None, high: int | Percent | None) -> bool:
    if isinstance(low, Percent) and isinstance(high, Percent):
        return low.percent > high.percent
    return isinstance(low, int) and isinstance(high, int) and low > high


def _cpu_conflicts(resources: Resources) -> Iterator[LimitConflict]:
    burst, share = resources.cpu_max_burst, resources.cpu_max
    quota = share[0] if share else None
    if burst and quota is None:
        yield LimitConflict(
            ("cpu_max_burst",), 'needs a share to go beyond; set cpu_max, for example "50%", or remove it', ("cpu_max",)
        )
    elif burst and quota is not None and burst > quota:
        yield LimitConflict(
            ("cpu_max_burst",),
            f"{burst} microseconds is above the quota of cpu_max ({quota}), which it cannot be; write at most that",
            ("cpu_max",),
        )
    if resources.cpuset_cpus_partition not in (None, "member") and resources.cpuset_cpus is None:
        yield LimitConflict(
            ("cpuset_cpus_partition",),
            f'"{resources.cpuset_cpus_partition}" does not say of which CPUs; set cpuset_cpus',
            ("cpuset_cpus",),
        )


def _device_conflicts(resources: Resources) -> Iterator[LimitConflict]:
    for key in ("io_max", "io_latency", "rdma_max"):
        devices: set[str] = set()
        for number, item in enumerate(getattr(resources, key)):
            if item.device in devices:
                yield LimitConflict(
                    (key, number, "device"), f"{quoted(item.device)} is there twice; write one table for it"
                )
            if item.device is not None:  # a missing one is reported already
                devices.add(item.device)
            names = [field.name for field in fields(type(item)) if field.name != "device"]
            if all(getattr(item, name) is None for name in names):
                yield LimitConflict((key, number), f"limits nothing; write one of {', '.join(names)}", (key,))


def _unified_conflicts(resources: Resources) -> Iterator[LimitConflict]:
    declared = fields(type(resources))
    own = {field.name for field in declared}
    huge_pages = declared.hugetlb.metadata["key"].kind.items
    for file in resources.unified:
        key = {"cpu.idle": "cpu_weight", "cpu.weight.nice": "cpu_weight"}.get(file, file.replace(".", "_"))
        if key in own or (key.startswith("hugetlb_") and key.removeprefix("hugetlb_") in huge_pages):
            yield LimitConflict(("unified", file), f"has a key of its own; write {key} = … instead")
