"""Journal records about one workload instance, held back while something more urgent is in progress."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

import attrs

from nsupervisor.cgroups import CgroupError
from nsupervisor.config.expansion import Instance
from nsupervisor.config.problems import ConfigError
from nsupervisor.logs import Journal, timestamp_now

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

    def write(self, generation: int, event: str, level: str = "info", /, **fields: Any) -> dict[str, Any]:
        """Write a record, or keep it until `release`; return it as it is written."""
        if event == "status":
            self._status_text = generation, fields["message"]
        timestamp, record = timestamp_now(), {**self._labels, "generation": generation, **fields}
        self.last_event = {"timestamp": timestamp, "event": event, **fields}
        if self._held_records is not None:  # without the timestamp: those in the stream are in order
            self._held_records.append((level, event, record))
        else:
            self.journal.write(level, event, record, timestamp)
        return {"timestamp": timestamp, "level": level, "event": event, **record}

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
            self.journal.write(level, event, record)

    def contain_errors(self, generation: int, doing: str) -> ErrorContainment:
        """Log an error about this instance, and continue: it must not end a task that serves others too."""
        return ErrorContainment(self, generation, doing)


class ErrorContainment:
    """The context manager of `InstanceLog.contain_errors`: a class, as each message of an actor needs one."""

    __slots__ = ("_doing", "_generation", "_log")

    def __init__(self, log: InstanceLog, generation: int, doing: str) -> None:
        """Write errors to this log."""
        self._log, self._generation, self._doing = log, generation, doing

    def __enter__(self) -> None:
        """Begin to contain errors."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        """Log an error that a workload may cause, and suppress it."""
        if error is None or not isinstance(error, WORKLOAD_ERRORS):
            return False
        self._log.release()
        self._log.write(self._generation, "warning", "error", message=f"{self._doing}: {error}")
        return True
