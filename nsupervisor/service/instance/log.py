"""Journal records about one workload instance, held back while something more urgent is in progress."""

from datetime import UTC, datetime
from typing import Any

import attrs

from nsupervisor.logs import Journal


@attrs.define(eq=False)
class InstanceLog:
    """Writes records in the name of one instance. `name` is "web", or "web@2" if there are several instances."""

    name: str
    instance: int | None
    journal: Journal
    last_event: dict[str, Any] | None = None
    """The latest record, as `status` shows it."""
    _held_records: list[tuple[str, str, dict[str, Any]]] | None = None
    """Records that wait for something more urgent, in order; None while records are written at once."""

    def write(self, generation: int, event: str, level: str = "info", /, **fields: Any) -> dict[str, Any]:
        """Write a record, or keep it until `release`; return it with its timestamp."""
        self.last_event = {"timestamp": datetime.now(UTC).isoformat(timespec="microseconds"), "event": event, **fields}
        record: dict[str, Any] = {"workload": self.name, "generation": generation, **fields}
        if self.instance is not None:
            record["instance"] = self.instance
        if self._held_records is not None:
            self._held_records.append((level, event, record))
        else:
            getattr(self.journal.log, level)(event, **record)
        return {**self.last_event, **record}

    def hold(self) -> None:
        """Hold back all records from now on."""
        self._held_records = []

    def release(self) -> None:
        """Write the records that were held back."""
        held, self._held_records = self._held_records or (), None
        for level, event, record in held:
            getattr(self.journal.log, level)(event, **record)
