"""Value kinds for resource limits, [workload.NAME.resources]; the other kinds are in `kinds`."""

from __future__ import annotations

import re
from typing import Any

from nsupervisor.config import units
from nsupervisor.config.kinds import PATH, PERCENT_PATTERN, TEXT, Scalar, is_integer, size, whole_text_pattern
from nsupervisor.config.quoting import quoted


def number(minimum: int) -> Scalar:
    """Create a kind for numbers from `minimum` up, and "max" or "infinity", which become None."""

    def load(value: Any) -> int | None:
        if isinstance(value, str) and value in units.INFINITY_WORDS:
            return None
        if not is_integer(value):
            raise ValueError('is not a number; write for example 100, or "max" for no limit')
        if not minimum <= value <= units.MAX_SIZE:
            raise ValueError(f'is out of range; write a number from {minimum} up, or "max" for no limit')
        return int(value)

    return Scalar(load, {"anyOf": [{"type": "integer", "minimum": minimum}, {"enum": ["infinity", "max"]}]})


def _count_limit(value: Any) -> int | units.Percent | None:
    if isinstance(value, str) and value in units.INFINITY_WORDS:
        return None
    if isinstance(value, str) and (share := units.parse_percent(value)) is not None:
        return share
    if not is_integer(value):
        raise ValueError('is not a number of processes; write for example 256, "25%" or "max" for no limit')
    # PIDS_MAX of kernel/cgroup/pids.c is PID_MAX_LIMIT + 1.
    if not 1 <= value <= 2**22:
        raise ValueError(f'is out of range; write a number from 1 to {2**22}, or "max" for no limit')
    return int(value)


def _cpu_max(value: Any) -> tuple[int | None, int]:
    if not isinstance(value, str):
        raise ValueError(units.CPU_SHARE_PROBLEM)
    return units.parse_cpu_max(value)


def _microseconds(value: Any) -> int:
    """Load microseconds from a number, or from text with a unit."""
    if isinstance(value, str) and re.search("[a-zµ]", value):
        value = round(units.parse_duration(value) * 1_000_000)
    elif not is_integer(value):
        raise ValueError('is not a time; write for example "20ms", or a number of microseconds')
    if not 0 <= value <= 2**44:
        raise ValueError('is out of range; write for example "20ms", or a number of microseconds from 0 up')
    return int(value)


def _latency(value: Any) -> int:
    result = _microseconds(value)
    if not result:
        raise ValueError('is no time to wait for; write for example "20ms"')
    return result


def _cpu_weight(value: Any) -> int | str:
    if value == "idle":
        return "idle"
    if not is_integer(value):
        raise ValueError('is not a weight; write for example 200, or "idle"')
    if not 1 <= value <= 10_000:
        raise ValueError('is out of range; write a number from 1 to 10000, or "idle"')
    return int(value)


def _io_weight(value: Any) -> dict[str, int]:
    """Load weights: {"default": 100, "/srv": 50} from 100 or a table."""
    instead = 'write a number from 1 to 10000, or { default = 100, "/srv" = 50 }'
    weights = value if isinstance(value, dict) else {"default": value}
    if not weights:
        raise ValueError(f"is empty; {instead}")
    for name, weight in weights.items():
        if name != "default" and not name.startswith("/"):
            raise ValueError(f"has a weight for {quoted(name)}, which is neither a path nor default; {instead}")
        if not is_integer(weight) or not 1 <= weight <= 10_000:
            what = f"has {quoted(weight)} in it, which is no weight" if weights is value else "is no weight"
            raise ValueError(f"{what}; {instead}")
        if name != "default":
            PATH.load(name)
    return {"default": 100, **weights}


RAW_PATTERN = (
    r"(memory|pids|cpu|cpuset|io|hugetlb|misc|rdma|dmem)\.[A-Za-z0-9_.]{1,60}"
    r"|cgroup\.(max\.depth|max\.descendants|pressure)"
)


def _raw_file(value: Any) -> str:
    if not re.fullmatch(RAW_PATTERN, value, re.ASCII):
        raise ValueError('is no cgroup v2 file that can be set; write for example "memory.swap.high"')
    return str(value)


def _raw_value(value: Any) -> str:
    text = str(TEXT.load(value)).strip()
    if not text or len(text) > 4000:
        raise ValueError("is not what a cgroup file takes; write what you would write into the file")
    return text


def _cpu_list(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError('is not a list of CPUs; write for example "0-1,4"')
    return units.format_cpu_list(units.parse_cpu_list(value))


def _node_list(value: Any) -> str:
    problem = 'is not a list of memory nodes; write for example "0" or "0-1"'
    if not isinstance(value, str):
        raise ValueError(problem)
    try:
        nodes = units.parse_cpu_list(value)
    except ValueError:
        raise ValueError(problem) from None
    if nodes[-1] > 1023:  # MAX_NUMNODES is at most 1024 (CONFIG_NODES_SHIFT)
        raise ValueError("names a memory node above 1023; write nodes that the machine has")
    return units.format_cpu_list(nodes)


def adjustment(kind: Scalar, *, amount: Scalar | None = None, bound: bool = False) -> Scalar:
    """Create the kind of a rule's `set` or `limit` entry for a key of `kind`.

    It accepts a value of the key, "+25%" or "-25%" of the value in force, or "+64M", if `amount` can load what
    follows the sign. With `bound`, it accepts only a value.
    """

    def load(value: Any) -> Any:
        if not bound and isinstance(value, str) and value[:1] in ("+", "-"):
            return _relative(value, amount)
        try:
            loaded = kind.load(value)
        except ValueError as error:
            addition = "" if bound else ', or "+25%"'
            raise ValueError(f"{error}{addition}") from None
        if isinstance(loaded, units.Percent):
            raise ValueError('is a share of the host, which a rule cannot set; write a value, or "+25%" of what is')
        if loaded == "idle":
            raise ValueError("is no number; write for example 50")
        return loaded

    def text(value: Any) -> str:
        return (
            str(value) if kind.to_text is None or isinstance(value, units.RelativeChange) else str(kind.to_text(value))
        )

    if bound:
        return Scalar(load, kind.schema, text)
    return Scalar(load, {"anyOf": [dict(kind.schema), {"type": "string", "pattern": "^[+-]"}]}, text)


def _relative(value: str, amount: Scalar | None) -> units.RelativeChange:
    example = 'write for example "+25%"' + (', "+64" or "+64M"' if amount else "")
    text = value[1:].strip()
    sign = -1 if value[0] == "-" else 1
    if text.endswith("%"):
        share = text.removesuffix("%").rstrip()
        if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,3})?", share, re.ASCII) or not 0 < float(share) <= 1000:
            raise ValueError(f"is not a change by a percentage; {example}")
        if sign < 0 and float(share) >= 100:
            raise ValueError(f'takes everything away; {example}, or "-50%"')
        return units.RelativeChange(sign * float(share))
    number: Any = None
    try:
        number = amount.load(int(text) if re.fullmatch("[0-9]{1,18}", text) else text) if amount else None
    except ValueError:
        pass
    if not is_integer(number) or number == 0:
        raise ValueError(f"is not a change; {example}")
    return units.RelativeChange(amount=sign * int(number))


CPU_WEIGHT = Scalar(_cpu_weight, {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 10_000}, {"const": "idle"}]})
IO_WEIGHT = Scalar(
    _io_weight,
    {
        "type": ["integer", "object"],
        "minimum": 1,
        "maximum": 10_000,
        "minProperties": 1,
        "propertyNames": {"pattern": "^(default$|/)"},
        "additionalProperties": {"type": "integer", "minimum": 1, "maximum": 10_000},
    },
)
MEMORY_LIMIT = size(minimum=1, unlimited=True, percent=True)
MEMORY_LIMIT_0 = size(minimum=0, unlimited=True, percent=True)
MEMORY_PROTECTION = size(minimum=0, unlimited=False, percent=True)
HUGE_PAGE_LIMIT = size(minimum=0, unlimited=True)
RATE_LIMIT = number(1)
NUMBER_LIMIT = number(0)
COUNT_LIMIT = Scalar(
    _count_limit,
    {
        "anyOf": [
            {"type": "integer", "minimum": 1},
            {"type": "string", "pattern": whole_text_pattern("infinity|max" + PERCENT_PATTERN)},
        ]
    },
)
CPU_MAX = Scalar(_cpu_max, {"type": "string"}, units.format_cpu_max)
MICROSECONDS = Scalar(_microseconds, {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}]})
LATENCY = Scalar(_latency, {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}]})
CPU_LIST = Scalar(_cpu_list, {"type": "string", "pattern": whole_text_pattern("[0-9, -]+")})
NODE_LIST = Scalar(_node_list, {"type": "string", "pattern": whole_text_pattern("[0-9, -]+")})
RAW_FILE = Scalar(_raw_file, {"type": "string", "pattern": whole_text_pattern(RAW_PATTERN)})
RAW_VALUE = Scalar(_raw_value, {"type": "string"})
HUGE_PAGES = {f"{size}_max": HUGE_PAGE_LIMIT for size in ("64KB", "2MB", "32MB", "1GB")}
"""The page sizes that x86-64 and arm64 have with pages of 4 KB; `unified` covers the others."""

_ADJUSTABLE = {
    **dict.fromkeys(("memory_min", "memory_low"), (MEMORY_PROTECTION, HUGE_PAGE_LIMIT)),
    **dict.fromkeys(("memory_high", "memory_max"), (MEMORY_LIMIT, HUGE_PAGE_LIMIT)),
    **dict.fromkeys(("memory_swap_max", "memory_zswap_max"), (MEMORY_LIMIT_0, HUGE_PAGE_LIMIT)),
    "pids_max": (COUNT_LIMIT, NUMBER_LIMIT),
    "cpu_max": (CPU_MAX, None),
    "cpu_weight": (CPU_WEIGHT, NUMBER_LIMIT),
}
ADJUSTMENTS = {key: adjustment(kind, amount=amount) for key, (kind, amount) in _ADJUSTABLE.items()}
BOUNDS = {key: adjustment(kind, bound=True) for key, (kind, _) in _ADJUSTABLE.items()}
"""Bounds for the limits that a rule may set: those that are a single number."""
