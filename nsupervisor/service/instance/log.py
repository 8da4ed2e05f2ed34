"""Journal records about one workload instance, held back while something more urgent is in progress."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs

from nsupervisor.cgroups import CgroupError
from nsupervisor.config.expansion import Instance
from nsupervisor.config.problems import ConfigError
from nsupervisor.logs import FilteringBoundLogger, Journal, timestamp_now

WORKLOAD_ERRORS = (OSError, CgroupError, ConfigError, ValueError)
"""Errors that the kernel, or the data of a workload, may cause at any step about that workload."""


@attrs.define(eq=False)
class InstanceLog:
    """Writes records in the name of one instance. `name` is "web", or "web@2" if there are several instances."""

    name: str
    instance: Instance | None
    journal: Journal
    last_event: dict[str, Any] | None = None
    """The latest record, as `status` shows it."""
    _labels: dict[str, Any] = attrs.field(init=False)
    """The fields that all records of the instance have."""
    _log: FilteringBoundLogger = attrs.field(init=False)
    """The journal's logger with these fields."""
    _status_text: tuple[int, str] = (0, "")
    """The generation that has last reported a status text, and the text."""
    _errors: tuple[int, dict[str, str]] = attrs.field(factory=lambda: (0, {}))
    """The generation that has last reported an error, and the error by the names of sd_notify(3), in lower case."""
    _held_records: list[tuple[str, str, dict[str, Any]]] | None = None
    """Records that wait for something more urgent, in order; None while records are written at once."""

    def __attrs_post_init__(self) -> None:
        self._labels = {"workload": self.name}
        if self.instance is not None:
            self._labels["instance"] = self.instance
        self._log = self.journal.log.bind(**self._labels)

    def write(self, generation: int, event: str, level: str = "info", /, **fields: Any) -> dict[str, Any]:
        """Write a record, or keep it until `release`; return it as it is written."""
        if event == "status":
            self._status_text = generation, fields["message"]
        timestamp = timestamp_now()
        self.last_event = {"timestamp": timestamp, "event": event, **fields}
        if self._held_records is not None:  # without the timestamp: those in the stream are in order
            self._held_records.append((level, event, {"generation": generation, **fields}))
        else:
            getattr(self._log, level)(event, timestamp=timestamp, generation=generation, **fields)
        return {
            "timestamp": timestamp,
            "level": level,
            "event": event,
            **self._labels,
            "generation": generation,
            **fields,
        }

    def status_text(self, generation: int) -> str:
        """Return the last status text that this generation has reported, or ""."""
        return self._status_text[1] if self._status_text[0] == generation else ""

    def note_error(self, generation: int, **errors: str) -> None:
        """Note an error that a program has reported: `errno`, a number, or `buserror`, a text."""
        before = self._errors[1] if self._errors[0] == generation else {}
        self._errors = generation, {**before, **errors}

    def error_text(self, generation: int) -> str:
        """Return the error that this generation has last reported, in words, or ""."""
        errors = self._errors[1] if self._errors[0] == generation else {}
        number = int(errors.get("errno", "0"))
        texts = [f"{number} ({os.strerror(number)})"] if number else []
        return ", ".join((*texts, *filter(None, [errors.get("buserror", "")])))

    def hold(self) -> None:
        """Hold back all records from now on."""
        self._held_records = []

    def release(self) -> None:
        """Write the records that were held back."""
        held, self._held_records = self._held_records or (), None
        for level, event, record in held:
            getattr(self._log, level)(event, **record)

    @contextmanager
    def contain_errors(self, generation: int, doing: str) -> Iterator[None]:
        """Log an error about this instance, and continue: it must not end a task that serves others too."""
        try:
            yield
        except WORKLOAD_ERRORS as error:
            self.release()
            self.write(generation, "warning", "error", message=f"{doing}: {error}")
