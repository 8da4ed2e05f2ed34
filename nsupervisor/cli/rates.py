"""Two samples of the instances' counters (`Stats` of the API) → what that is a second, and as a table. Pure."""

from __future__ import annotations

from nsupervisor.cli.output import size

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

HEADS = (
    *("NAME", "STATE", "CPU%", "MEMORY", "PIDS", "THROTTLED%", "READ/S", "WRITE/S", "RECEIVE/S", "SEND/S"),
    *("CPU-WAIT%", "MEM-WAIT%", "IO-WAIT%"),
)
SORTS = {
    "cpu": ("cpu_percent",),
    "memory": ("memory_current",),
    "processes": ("pids_current",),
    "io": ("io_read_bytes_per_sec", "io_write_bytes_per_sec"),
    "network": ("network_receive_bytes_per_sec", "network_transmit_bytes_per_sec"),
    "pressure": ("cpu_wait_percent", "memory_wait_percent", "io_wait_percent"),
    "name": (),
}
"""What a table can be sorted by; of several values it is their sum."""
_KEPT = ("name", "state", "memory_current", "memory_max", "pids_current", "pids_max", "cpu_max_percent")


def rates(before: Iterable[dict[str, Any]], after: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One object per instance, in the order of ``after``; None for what the host does not count.

    cpu_percent: of one processor. throttled_percent: of the periods in which it wanted to run, those in which its limit
    stopped it. …_wait_percent: of the time, that in which a task of it waited for that (pressure, "some").
    """
    earlier = {one["name"]: one for one in before}
    return [_rate(earlier.get(one["name"], {}), one) for one in after]


def _rate(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    seconds = after["at"] - before["at"] if before else 0.0

    def more(counter: str) -> float | None:
        old, new = before.get(counter), after[counter]
        if old is None or new is None:
            return None
        return float(new - old if new >= old else new)  # lower: its cgroup was made anew, and counts from 0

    def a_second(counter: str, unit: float = 1.0) -> float | None:
        change = more(counter)
        return None if change is None or seconds <= 0 else round(change / unit / seconds, 3)

    periods, throttled = more("periods"), more("throttled_periods")
    return {
        **{key: after[key] for key in _KEPT},
        "interval_sec": round(seconds, 6),
        "cpu_percent": a_second("cpu_usage_usec", 1e4),
        "throttled_percent": None if periods is None or throttled is None else _part(throttled, periods),
        "io_read_bytes_per_sec": a_second("io_read_bytes"),
        "io_write_bytes_per_sec": a_second("io_write_bytes"),
        "network_receive_bytes_per_sec": a_second("network_receive_bytes"),
        "network_transmit_bytes_per_sec": a_second("network_transmit_bytes"),
        **{f"{kind}_wait_percent": a_second(f"{kind}_stalled_usec", 1e4) for kind in ("cpu", "memory", "io")},
    }


def sort(measured: Iterable[dict[str, Any]], by: str, reverse: bool = False) -> list[dict[str, Any]]:
    """By one of `SORTS`, the largest first; by name the other way round. What is equal stays as it was."""

    def amount(one: dict[str, Any]) -> float:
        return sum(one[column] or 0 for column in SORTS[by])

    key = amount if SORTS[by] else lambda one: one["name"]
    return sorted(measured, key=key, reverse=reverse != bool(SORTS[by]))


def _part(some: float, of: float) -> float:
    return round(some / of * 100, 3) if of else 0.0


def cells(one: dict[str, Any]) -> Sequence[str]:
    """One line of the table."""
    moved = (one[column] for column in (*SORTS["io"], *SORTS["network"]))
    cpu_max = one["cpu_max_percent"]
    return (
        one["name"],
        one["state"],
        limited(percent(one["cpu_percent"]), None if cpu_max is None else f"{cpu_max:g}"),
        limited(size(one["memory_current"]), None if one["memory_max"] is None else size(one["memory_max"])),
        limited("-" if one["pids_current"] is None else str(one["pids_current"]), one["pids_max"]),
        percent(one["throttled_percent"]),
        *(size(None if bytes_ is None else round(bytes_)) for bytes_ in moved),
        *(percent(one[f"{kind}_wait_percent"]) for kind in ("cpu", "memory", "io")),
    )


def percent(value: float | None) -> str:
    """ "25.0"; "-" for None."""
    return "-" if value is None else f"{value:.1f}"


def limited(current: str, limit: object) -> str:
    """ "9.8M/128M"; without a limit "9.8M"."""
    return current if limit is None or current == "-" else f"{current}/{limit}"
