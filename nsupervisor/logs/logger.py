"""The logger in front of the journal: structlog, without what it would load for terminals."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """A package that cannot be imported meanwhile, unless it has been."""
    there = name in sys.modules
    if not there:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if not there:
            del sys.modules[name]


# It loads rich where that is installed, for tracebacks in colour that nobody sees here: a tenth of all that is to be
# loaded before the first answer after a take-over, and 7 MB.
with _hidden("rich"):
    import structlog
    from structlog import DropEvent
    from structlog.typing import FilteringBoundLogger

__all__ = ["DropEvent", "FilteringBoundLogger", "logger"]


class _Writer:
    """What structlog calls a logger: it is handed the finished record."""

    def __init__(self, put: Callable[[bytes], None]) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = put


def logger(
    put: Callable[[bytes], None], render: Callable[[Any, str, MutableMapping[str, Any]], bytes]
) -> FilteringBoundLogger:
    """A bound logger of one journal alone; structlog's global configuration is neither read nor changed."""
    made: FilteringBoundLogger = structlog.wrap_logger(
        _Writer(put),
        processors=[structlog.processors.format_exc_info, render],
        # Nothing is filtered here: the listener hears all, and `Journal` leaves out of the stream what is too low.
        wrapper_class=structlog.make_filtering_bound_logger("debug"),
        context_class=dict,
        cache_logger_on_first_use=True,
    ).bind()
    return made
