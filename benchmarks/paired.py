"""The comparison of two checkouts: ratios of paired measurements, their median with an interval, a verdict. Pure.

The machine's speed drifts, and other work comes and goes. Both sides of a pair are measured within seconds and
have about the same share of that, and the ratio of the pair is free of most of it.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import attrs

from benchmarks.figures import Result, number

NEW, OLD = "new", "old"
"""The names of the two sides: this checkout, and the one that --against names."""
CONFIDENCE = 0.95
MARGIN = 1.05
"""A ratio has to be certain to lie beyond this, or below its inverse, to count as a difference."""
BIGGER_IS_BETTER = frozenset({"MB/s", "requests/s"})
"""Units of rates. The ratio of these is old / new, so that more than 1 always means slower."""
NOT_COMPARED = frozenset({"ms in which the kernel acted", "lines lost", "MB kept", "processes"})
"""Units that say how a measurement went, not what the product costs."""


def log_median(ratios: Sequence[float]) -> float:
    """The median of positive ratios; of two in the middle their geometric mean, so that the median of the inverse
    ratios is the inverse median. Raises statistics.StatisticsError for an empty sequence."""
    return math.exp(statistics.median(math.log(ratio) for ratio in ratios))


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """A confidence interval for the median of the distribution that `values` are drawn from, whatever its shape.

    It goes from the k-th smallest value to the k-th largest: the median lies outside with the probability that fewer
    than k of n fair coins show heads, twice (H. A. David, H. N. Nagaraja, Order Statistics, section 7.1). The largest k
    for which that is at most 1 - `confidence` is taken. None if there is none: 95 % need six values.
    """
    count, below, k = len(values), 0, 0
    while k < count:
        below += math.comb(count, k)
        if 2 * below > (1 - confidence) * 2**count:
            break
        k += 1
    if k == 0:
        return None
    ordered = sorted(values)
    return ordered[k - 1], ordered[count - k]


@attrs.frozen
class Comparison:
    """One case: the medians of both sides, and the cost of `new` in parts of the cost of `old`, pair by pair."""

    benchmark: str
    case: str
    unit: str
    new: float
    old: float
    ratios: tuple[float, ...]
    """More than 1: `new` is slower, in each unit."""

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return log_median(self.ratios)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of the median; None if there are too few pairs."""
        return median_interval(self.ratios)

    @property
    def verdict(self) -> str:
        """ "slower" or "faster" only if the whole interval lies beyond `MARGIN`."""
        if self.interval is None:
            return "too few pairs"
        low, high = self.interval
        return "slower" if low > MARGIN else "faster" if high < 1 / MARGIN else "same"

    def json(self) -> dict[str, Any]:
        """For the file: what was measured and what follows from it."""
        derived = {"ratio": self.ratio, "interval": self.interval, "verdict": self.verdict}
        return attrs.asdict(self) | derived

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> "Comparison":
        """What `json` has written."""
        own = {field.name: entry[field.name] for field in attrs.fields(cls)}
        return cls(**own | {"ratios": tuple(own["ratios"])})


def ratios(new: Sequence[Sequence[float]], old: Sequence[Sequence[float]], unit: str) -> tuple[float, ...]:
    """The cost of each round of `new` in parts of the same round of `old`. A round that a side lacks makes no pair, nor
    does one whose median is not positive on a side."""
    medians = [(statistics.median(a), statistics.median(b)) for a, b in zip(new, old, strict=False) if a and b]
    pairs = [(a, b) for a, b in medians if a > 0 and b > 0]
    return tuple(b / a if unit in BIGGER_IS_BETTER else a / b for a, b in pairs)


def compare(result: Result) -> list[Comparison]:
    """Each case and unit that both sides have at least one pair of, in the order of measurement."""
    found = []
    for case, unit in dict.fromkeys((series.case, series.unit) for series in result.series):
        new, old = result.find(NEW, case, unit), result.find(OLD, case, unit)
        if unit in NOT_COMPARED or new is None or old is None:
            continue
        pairs = ratios(new.rounds, old.rounds, unit)
        if pairs and new.median is not None and old.median is not None:
            found.append(Comparison(result.name, case, unit, new.median, old.median, pairs))
    return found


HEAD = ["benchmark", "case", "unit", "new", "old", "cost, new / old", "95 % interval", "pairs", "verdict"]


def table(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """Rows of text, the head first."""
    rows = [HEAD]
    for one in comparisons:
        interval = "" if one.interval is None else "{:.3f} to {:.3f}".format(*one.interval)
        row = [one.benchmark, one.case, one.unit, number(one.new), number(one.old), f"{one.ratio:.3f}", interval]
        rows.append([*row, str(len(one.ratios)), one.verdict])
    return rows


def last_line(comparisons: Sequence[Comparison], failed: Sequence[str]) -> str:
    """How many cases are slower, and what could not be measured."""
    slower = sum(one.verdict == "slower" for one in comparisons)
    failures = f"; not measured to the end: {', '.join(failed)}" if failed else ""
    return f"{slower} of {len(comparisons)} cases slower{failures}"
