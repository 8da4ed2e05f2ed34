"""Colours of a terminal, and text that cannot drive it."""

from __future__ import annotations

import os
import shutil
import sys

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from typing import TextIO

RED, GREEN, MAGENTA, FAINT, BOLD = "31", "32", "35", "2", "1"
"""Parameters of SGR, ECMA-48 8.3.117.

These colours are readable on dark and on light backgrounds. Yellow and cyan are not on white, nor is blue on black.
"""


def has_colour(stream: TextIO) -> bool:
    """Return whether to use colours: on terminals, unless NO_COLOR is set (no-color.org) or they are dumb."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def terminal_width() -> int:
    """Return the width of standard output if that is a terminal, else 0."""
    if not sys.stdout.isatty():
        return 0
    return shutil.get_terminal_size().columns


def colorize(text: str, colour: str, is_enabled: bool) -> str:
    """Return the text in a colour (an SGR parameter of ECMA-48); unchanged without `is_enabled` or a colour."""
    return f"\033[{colour}m{text}\033[0m" if is_enabled and colour else text


def escape_control(text: str) -> str:
    """Return the text without control characters, which could move the cursor; newlines and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
