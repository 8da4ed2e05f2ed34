"""Refuse a text whose shape makes parsing slow, before it is parsed.

tomllib needs time that grows with the square of the number of parts of a dotted key: 40 KB of `a.a.a…=1` take 10 s.
"""

from __future__ import annotations

import re

from nsupervisor.config.problems import ConfigError, Problem

TOO_DEEP = "is nested too deeply; no key needs more than a few levels"
KEY_PARTS_LIMIT = 100
"""Parts of a dotted key or of a table's header. The model needs no more than six."""
VALUES_LIMIT = 500_000
"""Keys and list elements of a text; 5,000 workloads have about 100,000."""

# Every alternative consumes what it begins with, also where it is not closed, and gives nothing back (possessive
# quantifiers), so that the time grows with the size only.
_PART = r"""(?: [A-Za-z0-9_-]++ | " (?: [^"\\\n] | \\[^\n] )*+ (?: " | \\?(?=\n|\Z) ) | ' [^'\n]*+ '? )"""
_TOKEN = re.compile(
    rf'''
      """ (?: [^"\\] | \\[\s\S] | "{{1,2}}(?!") )*+ (?: "{{3,5}} | \\?\Z )
    | \'\'\' (?: [^'] | '{{1,2}}(?!') )*+ (?: '{{3,5}} | \Z )
    | {_PART} (?: [ \t]*+ \. [ \t]*+ {_PART} ){{0,{KEY_PARTS_LIMIT - 1}}}+ (?P<deep> [ \t]*+ \. [ \t]*+ {_PART} )?
    | \#[^\n]*+
    | [^A-Za-z0-9_\-"'\#]++
    ''',
    re.VERBOSE,
)


def check_bounds(text: str, path: str) -> None:
    """Raise ConfigError if the text has too many values, or a key with too many parts. `path` is for the message.

    The time is that of a search through the text; only a text with a line that has more dots than a key may have parts
    is looked at token by token.
    """
    if text.count("=") + text.count(",") > VALUES_LIMIT:
        message = f"has more than {VALUES_LIMIT:,} keys and list elements; divide it among several services"
        raise ConfigError([Problem(path, 0, "", message)])
    if not any(line.count(".") >= KEY_PARTS_LIMIT for line in text.split("\n")):
        return
    for match in _TOKEN.finditer(text):
        if match["deep"] is not None:
            line = text.count("\n", 0, match.start()) + 1
            raise ConfigError([Problem(path, line, "", TOO_DEEP)])
