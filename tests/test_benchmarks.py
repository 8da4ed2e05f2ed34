"""The page of figures: what was measured anew replaces what was there, and nothing else."""

import pytest

from benchmarks.figures import Result, Target
from benchmarks.page import END, START, with_figures

ORDER = ("spawn", "restart", "logs")
MACHINE = {"processor": "P", "cores": 2, "memory_gib": 4, "kernel": "6", "cgroups": "hybrid", "python": "3", "load": 0}
REPORT = {"when": "2026-02-01", "quick": False, "machine": MACHINE}


def result(name, value):
    made = Result(name, f"what {name} is", targets=[Target("time", value, 5, "ms")], remarks=["a remark"])
    made.add("nsupervisor", "case", "ms", 0, [value])
    return made


def lines(text):
    return [line[:25] for line in text.splitlines() if line.startswith(("###", "2026", "* time"))]


def test_only_what_was_measured_is_replaced():
    empty = f"Above.\n\n{START}\n\n{END}\n\nBelow.\n"
    first = with_figures(empty, REPORT, [result("logs", 1.0), result("spawn", 2.0)], ORDER)
    later = {**REPORT, "when": "2026-02-02"}
    second = with_figures(first, later, [result("spawn", 7.0), result("restart", 3.0)], ORDER)
    assert lines(second) == [
        *("### spawn: what spawn is", "2026-02-02; P, 2 cores, 4", "* time: 7.00 of 5.00 ms —"),
        *("### restart: what restart", "2026-02-02; P, 2 cores, 4", "* time: 3.00 of 5.00 ms —"),
        *("### logs: what logs is", "2026-02-01; P, 2 cores, 4", "* time: 1.00 of 5.00 ms —"),
    ]
    assert (second.startswith("Above.\n\n<!--"), second.endswith("-->\n\nBelow.\n")) == (True, True)
    assert with_figures(second, REPORT, [], ORDER) == second


def test_a_page_without_a_place_for_them_is_refused():
    with pytest.raises(ValueError, match="lacks the lines"):
        with_figures("nothing", REPORT, [], ORDER)
