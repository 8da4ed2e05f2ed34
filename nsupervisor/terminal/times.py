"""Times of records, in the local zone."""

from __future__ import annotations

from datetime import datetime

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def local_time(record: Mapping[str, Any]) -> datetime:
    """Return the time of a record, in the local zone."""
    return datetime.fromisoformat(record["timestamp"]).astimezone()


def format_time(time: datetime, today: datetime) -> str:
    """Format the time of day with milliseconds, after the date if that is not today."""
    text = time.strftime("%H:%M:%S.") + f"{time.microsecond // 1000:03}"
    return text if time.date() == today.date() else f"{time.date()} {text}"
