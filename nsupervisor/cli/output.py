"""Helpers that the commands share: exit statuses, messages, JSON."""

from __future__ import annotations

import json
import sys

from nsupervisor.terminal.style import escape_control

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from typing import Any

DONE, FAILED, USAGE = 0, 1, 2  # the client's errors define the others


def print_message(text: str) -> None:
    """Print a message for people to stderr."""
    print(escape_control(text), file=sys.stderr)


def print_json(value: Any) -> None:
    """Print a value for programs to stdout."""
    print(json.dumps(value, indent=2))
