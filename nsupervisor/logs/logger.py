"""The logger in front of the journal: structlog, without the packages that it would load for terminals."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def _import_instead(name: str, module: ModuleType | None) -> Iterator[None]:
    """Have imports of a package within the block find this module, unless it has been imported already.

    None: it is unavailable to them.
    """
    was_imported = name in sys.modules
    if not was_imported:
        sys.modules[name] = module  # type: ignore[assignment]
    try:
        yield
    finally:
        if not was_imported:
            del sys.modules[name]


# structlog imports rich if it is installed, for coloured tracebacks that are not used here: a tenth of everything that
# must be imported before the first answer after a takeover, and 7 MB. It uses asyncio in the coroutines of its loggers
# only, which are not used here either.
with _import_instead("rich", None), _import_instead("asyncio", ModuleType("asyncio")):
    import structlog
    from structlog import DropEvent
    from structlog.typing import EventDict, FilteringBoundLogger, Processor

__all__ = ["DropEvent", "EventDict", "FilteringBoundLogger", "make_logger"]


class _PutLogger:
    """The logger that structlog wraps: each of its methods receives the record that the last processor has rendered."""

    def __init__(self, put: Callable[[bytes], None]) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = put


def make_logger(put: Callable[[bytes], None], processors: Sequence[Processor]) -> FilteringBoundLogger:
    """Make a bound logger for one journal; structlog's global configuration is neither read nor changed.

    Each record passes through the processors. The last one returns the bytes for `put`. No level is filtered here: a
    processor does that, after the listener has received the record.
    """
    logger: FilteringBoundLogger = structlog.wrap_logger(
        _PutLogger(put),
        processors=[structlog.processors.format_exc_info, *processors],
        wrapper_class=structlog.make_filtering_bound_logger("debug"),
        context_class=dict,
        cache_logger_on_first_use=True,
    ).bind()
    return logger
