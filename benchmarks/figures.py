"""The results of a benchmark: samples by round, their medians, ratios and targets. Pure."""

import statistics
from collections.abc import Sequence
from typing import Any

import attrs

OURS = "nsupervisor"


@attrs.define
class Series:
    """The samples of one product in one case, by round.

    The machine's speed drifts, so rounds are compared before they are merged.
    """

    peer: str
    case: str
    unit: str
    rounds: list[list[float]] = attrs.field(factory=list)
    note: str = ""
    """A note about this product in this case, or why it has no samples."""

    @property
    def samples(self) -> list[float]:
        """The samples of all rounds."""
        return [sample for samples in self.rounds for sample in samples]

    @property
    def median(self) -> float | None:
        """The median of all samples; None without any."""
        return statistics.median(self.samples) if self.samples else None

    def quantile(self, part: float) -> float:
        """Return the sample that is greater than the fraction `part` of all samples."""
        ordered = sorted(self.samples)
        return ordered[min(len(ordered) - 1, round(part * (len(ordered) - 1)))]


@attrs.frozen
class Ratio:
    """The ratio of two medians: over all samples, and the smallest and largest of single rounds."""

    value: float
    least: float
    greatest: float

    def __str__(self) -> str:
        return f"{number(self.value)} ({number(self.least)} to {number(self.greatest)})"


def ratio(of: Series, to: Series) -> Ratio | None:
    """Return the ratio of `of` to `to`; None if one of them has no samples, or `to` only zeros."""
    if not of.samples or not to.samples or not to.median:
        return None
    pairs = [
        (statistics.median(a), statistics.median(b)) for a, b in zip(of.rounds, to.rounds, strict=False) if a and b
    ]
    each = [a / b for a, b in pairs if b]
    whole = statistics.median(of.samples) / to.median
    return Ratio(whole, min([*each, whole]), max([*each, whole]))


@attrs.frozen
class Target:
    """A target: `value` must be below `limit`. None: not measured."""

    text: str
    value: float | None
    limit: float
    unit: str

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None if it was not measured."""
        return None if self.value is None else self.value < self.limit

    def __str__(self) -> str:
        answer = {True: "yes", False: "NO", None: "not measured"}[self.met]
        value = "" if self.value is None else f": {number(self.value)} of {number(self.limit)} {self.unit}".rstrip()
        return f"{self.text}{value} — {answer}"


@attrs.define
class Result:
    """The results of one benchmark."""

    name: str
    title: str
    series: list[Series] = attrs.field(factory=list)
    targets: list[Target] = attrs.field(factory=list)
    remarks: list[str] = attrs.field(factory=list)

    def at(self, peer: str, case: str, unit: str) -> Series:
        """Return the series of that product, case and unit; create it if there is none."""
        for series in self.series:
            if (series.peer, series.case, series.unit) == (peer, case, unit):
                return series
        self.series.append(Series(peer, case, unit))
        return self.series[-1]

    def add(self, peer: str, case: str, unit: str, round_: int, samples: Sequence[float]) -> None:
        """Add samples to round number `round_` (from 0)."""
        rounds = self.at(peer, case, unit).rounds
        rounds.extend([] for _ in range(round_ + 1 - len(rounds)))
        rounds[round_].extend(samples)

    def median(self, peer: str, case: str, unit: str) -> float | None:
        """Return the median of that series; None if nothing was measured."""
        found = self.find(peer, case, unit)
        return found.median if found else None

    def find(self, peer: str, case: str, unit: str) -> Series | None:
        """Return the series of that product, case and unit, or None."""
        return next((s for s in self.series if (s.peer, s.case, s.unit) == (peer, case, unit)), None)

    def json(self) -> dict[str, Any]:
        """Return everything, including medians, for the JSON file."""
        return {
            "name": self.name,
            "title": self.title,
            "remarks": self.remarks,
            "series": [attrs.asdict(series) | {"median": series.median} for series in self.series],
            "targets": [attrs.asdict(target) | {"met": target.met} for target in self.targets],
        }


def number(value: float) -> str:
    """Format a number with three significant digits and without an exponent."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.4f}"


def long_table(result: Result) -> list[list[str]]:
    """Return rows of text, the header first: one row per series, with its ratio to nsupervisor's."""
    rows = [["case", "product", "median", "unit", "min", "p95", "n", "times ours (rounds)", "note"]]
    for case, unit in dict.fromkeys((series.case, series.unit) for series in result.series):
        group = [s for s in result.series if (s.case, s.unit) == (case, unit) and s.samples]
        base = next((s for s in group if s.peer == OURS), None)
        for series in sorted(group, key=lambda s: s.median or 0):
            times = ratio(series, base) if base is not None and base is not series else None
            row = [case, series.peer, number(series.median or 0), unit, number(min(series.samples))]
            row += [number(series.quantile(0.95)), str(len(series.samples)), str(times or ""), series.note]
            rows.append(row)
    return rows


def wide_table(result: Result) -> list[list[str]]:
    """Return rows of text, the header first: one row per product and case, one column per unit."""
    units = list(dict.fromkeys(series.unit for series in result.series))
    rows = [["case", "product", *units]]
    by_key = {(s.case, s.peer, s.unit): s for s in result.series if s.samples}
    for case, peer in sorted(
        dict.fromkeys((s.case, s.peer) for s in result.series), key=lambda key: _order(result, key)
    ):
        row = [case, peer]
        for unit in units:
            series, base = by_key.get((case, peer, unit)), by_key.get((case, OURS, unit))
            times = ratio(series, base) if series and base and series is not base else None
            row.append(number(series.median or 0) + (f" ({number(times.value)} x)" if times else "") if series else "")
        rows.append(row)
    return rows


def _order(result: Result, key: tuple[str, str]) -> tuple[int, bool, bool, str]:
    """Sort by case in the order of measurement; nsupervisor comes first."""
    case, peer = key
    cases = list(dict.fromkeys(series.case for series in result.series))
    return cases.index(case), peer != OURS, not peer.startswith(OURS), peer


def page_table(result: Result) -> list[list[str]]:
    """Return the long table if there is one unit, else the wide one."""
    return wide_table(result) if len({series.unit for series in result.series}) > 1 else long_table(result)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; empty columns are left out."""
    keep = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    lines = ["| " + " | ".join(row[i] for i in keep) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(keep), *lines[1:]])


def plain(rows: Sequence[Sequence[str]]) -> str:
    """Return a table for a terminal."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
