"""Sizes, lengths of time and counts for people."""

from __future__ import annotations


def format_size(number: int | None) -> str:
    """Format bytes for people, in powers of 1024: 12939428 → "12.3M"; None → "-"."""
    if number is None:
        return "-"
    value = float(number)
    for unit in ("B", "K", "M", "G", "T", "P", "E"):
        if value < 1023.95 or unit == "E":
            break
        value /= 1024
    return f"{value:.1f}".removesuffix(".0") + (unit if number else "")


def format_duration(seconds: float | None) -> str:
    """Format seconds for people, in the two largest units: 93784 → "1d 2h"; 4.2 → "4s"; None → "-"."""
    if seconds is None:
        return "-"
    remaining = int(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, remaining = divmod(remaining, length)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
        elif parts:
            break  # "1d" rather than "1d 5min"
    return " ".join(parts[:2])


def format_count(count: int, noun: str) -> str:
    """Format a count with its noun: "1 workload", "2 workloads"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def format_past(count: int, noun: str, participle: str) -> str:
    """Format what has happened to some things: "1 line was dropped", "2 lines were dropped"."""
    return f"{format_count(count, noun)} {'was' if count == 1 else 'were'} {participle}"


def format_span(seconds: float) -> str:
    """Format a length of time, with milliseconds if it is short: "0.093 s", "2.5 s", "3min 20s"."""
    if seconds >= 100:
        return format_duration(seconds)
    return (
        f"{seconds:.3f}".rstrip("0").rstrip(".") + " s" if seconds < 1 else f"{seconds:.1f}".removesuffix(".0") + " s"
    )
