"""Patterns that lines of a workload's output are searched for: `readiness.log`.

The workload chooses the lines, so a pattern must not take longer than linear time. Python's `re` may take exponential
time; RE2 (https://github.com/google/re2) does not. Its library is optional.
"""

from __future__ import annotations

import importlib
from typing import Any

from nsupervisor.config import kinds
from nsupervisor.config.kinds import Scalar

MAX_PATTERN_LENGTH = 1024
"""In characters."""
_PREFIX = "(?m)"
NO_LIBRARY = (
    'needs the Python package google-re2; install it (pip install "nsupervisor[re2]"), or use http_get, tcp_socket or '
    "exec"
)


def compile_pattern(pattern: str) -> Any:
    """Compile a pattern that is searched in bytes, in each line by itself. Raises ValueError: what is wrong with it.

    ^ and $ are the beginning and the end of a line.
    """
    try:
        re2 = importlib.import_module("re2")  # optional, and imported late: few workloads have patterns
    except ImportError:
        raise ValueError(NO_LIBRARY) from None
    options = re2.Options()
    options.never_nl = options.never_capture = True
    options.log_errors = False
    try:
        return re2.compile(_PREFIX + pattern, options)
    except re2.error as error:
        (reason,) = error.args
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        text = text.replace(_PREFIX, "", 1)
        raise ValueError(
            f"is not a regular expression of RE2: {text}; see https://github.com/google/re2/wiki/Syntax"
        ) from None


def _load(value: Any) -> str:
    text: str = kinds.TEXT.load(value)
    if not text or len(text) > MAX_PATTERN_LENGTH or not text.isprintable():
        raise ValueError(
            f"is not a pattern of 1 to {MAX_PATTERN_LENGTH} printable characters; write for example "
            "'listening on port [0-9]+'"
        )
    compile_pattern(text)
    return text


LINE_PATTERN = Scalar(_load, {"type": "string", "minLength": 1, "maxLength": MAX_PATTERN_LENGTH})
