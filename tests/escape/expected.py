"""The expected result of each attempt in each of our parties, and what other programs allow: both are data.

`expected.toml` is written by hand: for each party, the rows that are allowed, and those that are allowed today and
should not be (`gaps`). All other rows are refused. `measured.json` is written by scripts/escape.
"""

import json
import re
import textwrap
import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

EXPECTED = Path(__file__).with_name("expected.toml")
CHECKLIST = Path(__file__).with_name("checklist.toml")
MEASURED = Path(__file__).with_name("measured.json")


class Expected(NamedTuple):
    """Names of attempts in one party; they are disjoint."""

    allowed: frozenset[str]
    gaps: frozenset[str]


def remove_gaps(closed: dict[str, frozenset[str]]) -> None:
    """Remove rows from the gaps in the file, by party. Its lines otherwise stay as they are."""
    parts = re.split(r"(?m)^(?=\[)", EXPECTED.read_text())
    for index, part in enumerate(parts):
        if not (head := re.match(r'\[party\."(.+)"\]\n', part)):
            continue
        before, _, gaps = part.partition("gaps = ")
        kept = [name for name in re.findall(r'"([\w-]+)"', gaps) if name not in closed.get(head[1], ())]
        parts[index] = f"{before}gaps = {_listed(kept)}\n\n"
    EXPECTED.write_text("".join(parts))
    expected.cache_clear()


def _listed(names: list[str]) -> str:
    """Return an array of TOML in lines of at most 118 characters."""
    if not names:
        return "[]"
    text = ", ".join(f'"{name}"' for name in names) + ","
    return (
        "[\n"
        + textwrap.fill(text, 118, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
        + "\n]"
    )


@cache
def expected() -> dict[str, Expected]:
    """Return what is expected, by party."""
    tables = tomllib.loads(EXPECTED.read_text())["party"]
    return {name: Expected(frozenset(table["allowed"]), frozenset(table["gaps"])) for name, table in tables.items()}


@cache
def nothing_to_refuse() -> dict[str, str]:
    """Return the attempts that cannot succeed on the machines that the tests know, with the reason."""
    return tomllib.loads(EXPECTED.read_text())["nothing_to_refuse"]


@cache
def measured() -> dict[str, frozenset[str]]:
    """Return the attempts that other programs allow, by party."""
    return {name: frozenset(rows) for name, rows in json.loads(MEASURED.read_text())["allowed"].items()}


@cache
def checklist() -> list[dict[str, str]]:
    """Return the cases of other projects' tests, each with `project`, `file`, `case`, and its test or a reason."""
    cases: list[dict[str, str]] = tomllib.loads(CHECKLIST.read_text())["case"]
    return cases
