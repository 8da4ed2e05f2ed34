"""Convert two samples of the instances' counters (`Stats` of the API) to rates per second, and to a table. Pure."""

from __future__ import annotations

from nsupervisor.terminal.numbers import format_size

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

HEADS = (
    *("NAME", "STATE", "CPU%", "MEMORY", "PIDS", "THROTTLED%", "READ/S", "WRITE/S", "RECEIVE/S", "SEND/S"),
    *("CPU-WAIT%", "MEM-WAIT%", "IO-WAIT%"),
)
SORT_COLUMNS = {
    "cpu": ("cpu_percent",),
    "memory": ("memory_current",),
    "processes": ("pids_current",),
    "io": ("io_read_bytes_per_sec", "io_write_bytes_per_sec"),
    "network": ("network_receive_bytes_per_sec", "network_transmit_bytes_per_sec"),
    "pressure": ("cpu_wait_percent", "memory_wait_percent", "io_wait_percent"),
    "state": (),
    "name": (),
}
"""The orders of a table, and the columns of each; several columns are added up."""
STATE_ORDER = ("failed", "backoff", "stopping", "starting", "frozen", "running", "ready", "exited", "stopped")
"""The order by state: problems first."""
_COPIED_KEYS = ("name", "state", "memory_current", "memory_max", "pids_current", "pids_max", "cpu_max_percent")


def compute_rates(before: Iterable[dict[str, Any]], after: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one object per instance, in the order of `after`; None for values that the host does not count.

    cpu_percent: of one processor. throttled_percent: the share of the periods with runnable tasks in which the CPU
    limit stopped them. …_wait_percent: the share of time in which a task waited for the resource (pressure, "some").
    """
    earlier = {instance["name"]: instance for instance in before}
    return [_rate(earlier.get(instance["name"], {}), instance) for instance in after]


def _rate(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    seconds = after["at"] - before["at"] if before else 0.0

    def increase(counter: str) -> float | None:
        old, new = before.get(counter), after[counter]
        if old is None or new is None:
            return None
        return float(new - old if new >= old else new)  # lower: its cgroup was recreated, and counts from 0

    def per_second(counter: str, unit: float = 1.0) -> float | None:
        difference = increase(counter)
        return None if difference is None or seconds <= 0 else round(difference / unit / seconds, 3)

    periods, throttled = increase("periods"), increase("throttled_periods")
    return {
        **{key: after[key] for key in _COPIED_KEYS},
        "interval_sec": round(seconds, 6),
        "cpu_percent": per_second("cpu_usage_usec", 1e4),
        "throttled_percent": None if periods is None or throttled is None else _percentage(throttled, periods),
        "io_read_bytes_per_sec": per_second("io_read_bytes"),
        "io_write_bytes_per_sec": per_second("io_write_bytes"),
        "network_receive_bytes_per_sec": per_second("network_receive_bytes"),
        "network_transmit_bytes_per_sec": per_second("network_transmit_bytes"),
        **{f"{kind}_wait_percent": per_second(f"{kind}_stalled_usec", 1e4) for kind in ("cpu", "memory", "io")},
    }


def sort_instances(measured: Iterable[dict[str, Any]], by: str, reverse: bool = False) -> list[dict[str, Any]]:
    """Sort by one of `SORT_COLUMNS`, the largest first; by name in alphabetical order, by state problems first.

    Equal rows keep their order.
    """

    def key(instance: dict[str, Any]) -> Any:
        if by == "name":
            return instance["name"]
        if by == "state":
            return STATE_ORDER.index(instance["state"])
        return sum(instance[column] or 0 for column in SORT_COLUMNS[by])

    return sorted(measured, key=key, reverse=reverse != bool(SORT_COLUMNS[by]))


def _percentage(part: float, whole: float) -> float:
    return round(part / whole * 100, 3) if whole else 0.0


def table_cells(instance: dict[str, Any]) -> Sequence[str]:
    """Return one line of the table."""
    bytes_per_second = (instance[column] for column in (*SORT_COLUMNS["io"], *SORT_COLUMNS["network"]))
    cpu_max = instance["cpu_max_percent"]
    runs = instance["state"] not in ("stopped", "exited", "failed", "backoff")  # else its cgroup holds only caches
    return (
        instance["name"],
        instance["state"],
        format_with_limit(format_percent(instance["cpu_percent"]), None if cpu_max is None else f"{cpu_max:g}"),
        format_with_limit(
            format_size(instance["memory_current"] if runs else None),
            None if instance["memory_max"] is None else format_size(instance["memory_max"]),
        ),
        format_with_limit(
            "-" if instance["pids_current"] is None or not runs else str(instance["pids_current"]), instance["pids_max"]
        ),
        format_percent(instance["throttled_percent"]),
        *(format_size(None if bytes_ is None else round(bytes_)) for bytes_ in bytes_per_second),
        *(format_percent(instance[f"{kind}_wait_percent"]) for kind in ("cpu", "memory", "io")),
    )


def format_percent(value: float | None) -> str:
    """Format a percentage: "25.0"; "-" for None."""
    return "-" if value is None else f"{value:.1f}"


def format_with_limit(current: str, limit: object) -> str:
    """Format a value with its limit: "9.8M/128M"; without a limit "9.8M"."""
    return current if limit is None or current == "-" else f"{current}/{limit}"
