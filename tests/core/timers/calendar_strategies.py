"""Hypothesis strategies for calendar expressions and cron lines, as text."""

from hypothesis import strategies as st

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago", "Asia/Kathmandu")
"""Time zones: with a change at night, at midnight, of half an hour, in the southern hemisphere, and without one."""


def _elements(low: int, high: int, width: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)

    @st.composite
    def element(draw: st.DrawFn) -> str:
        start = draw(number)
        kind = draw(st.sampled_from(("number", "range", "step", "range step")))
        if kind == "number" or start == high:
            return f"{start:0{width}}"
        if kind == "step":
            return f"{start:0{width}}/{draw(st.integers(1, high - start))}"
        stop = draw(st.integers(start + 1, high))
        step = f"/{draw(st.integers(1, stop - start))}" if kind == "range step" else ""
        return f"{start:0{width}}..{stop:0{width}}{step}"

    return element()


def field(low: int, high: int, width: int = 2) -> st.SearchStrategy[str]:
    """Return a strategy for one field of a calendar expression."""
    lists = st.lists(_elements(low, high, width), min_size=1, max_size=3).map(",".join)
    return st.one_of(st.just("*"), lists)


_DAY_NAMES = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@st.composite
def weekdays(draw: st.DrawFn) -> str:
    """Generate a list of weekdays, or nothing."""
    parts = []
    for _ in range(draw(st.integers(0, 2))):
        first = draw(st.integers(0, 6))
        last = draw(st.integers(first, 6))
        parts.append(_DAY_NAMES[first] if first == last else f"{_DAY_NAMES[first]}..{_DAY_NAMES[last]}")
    return ",".join(parts)


@st.composite
def calendar_texts(draw: st.DrawFn) -> str:
    """Generate a calendar expression. Some match only dates that do not exist."""
    day = draw(st.one_of(field(1, 31).map("-{}".format), _days_from_end().map("~{}".format)))
    year = draw(st.one_of(st.just("*"), field(2020, 2040, 4)))
    date = f"{year}-{draw(field(1, 12))}{day}"
    time = f"{draw(field(0, 23))}:{draw(field(0, 59))}:{draw(st.one_of(st.just('00'), field(0, 59)))}"
    parts = [draw(weekdays()), draw(st.sampled_from((date, "*-*-*", ""))), time]
    return " ".join(part for part in parts if part)


@st.composite
def _days_from_end(draw: st.DrawFn) -> str:
    start = draw(st.integers(1, 28))
    if start > 1 and draw(st.booleans()):
        return f"{start:02}/{draw(st.integers(1, start - 1))}"
    return f"{start:02}"


@st.composite
def cron_texts(draw: st.DrawFn) -> str:
    """Generate a cron line."""

    def cron_field(low: int, high: int) -> st.SearchStrategy[str]:
        @st.composite
        def element(draw: st.DrawFn) -> str:
            start = draw(st.integers(low, high))
            stop = draw(st.integers(start, high))
            forms = [f"{start}", f"{start}-{stop}", f"*/{draw(st.integers(1, 9))}"]
            if stop > start:  # cronsim takes "1-1/2" for "1/2"
                forms.append(f"{start}-{stop}/2")
            return draw(st.sampled_from(forms))

        return st.one_of(st.just("*"), st.lists(element(), min_size=1, max_size=2).map(",".join))

    fields = (cron_field(0, 59), cron_field(0, 23), cron_field(1, 28), cron_field(1, 12), cron_field(0, 6))
    return " ".join(draw(one) for one in fields)
