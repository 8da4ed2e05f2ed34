"""The expected result of each attempt in each of our parties, and what other programs allow: both are data.

`expected.toml` is written by hand: for each party, the rows that are allowed, and those that are allowed today and
should not be (`gaps`). All other rows are refused. `measured.json` is written by scripts/escape.
"""

import json
import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

EXPECTED = Path(__file__).with_name("expected.toml")
MEASURED = Path(__file__).with_name("measured.json")


class Expected(NamedTuple):
    """Names of attempts in one party; they are disjoint."""

    allowed: frozenset[str]
    gaps: frozenset[str]


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
