"""The timers of the service, which are loaded when a configuration has one: most configurations have none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import trio

from nsupervisor.config.model import Config

if TYPE_CHECKING:
    from nsupervisor.metrics.snapshot import TimerSnapshot
    from nsupervisor.service.context import ServiceContext
    from nsupervisor.service.jobs.jobs import Jobs
    from nsupervisor.service.state.file import TimerCheckpoint
    from nsupervisor.service.timers.timers import Timers


@attrs.define(eq=False)
class OptionalTimers:
    """The timers of all workloads, or nothing until a configuration or an earlier supervisor has some.

    The methods are those of `nsupervisor.service.timers.timers.Timers`.
    """

    _jobs: Jobs
    _context: ServiceContext
    _nursery: trio.Nursery
    _service: str
    """The name of the service."""
    _began_at: float = attrs.field(init=False, factory=trio.current_time)
    _timers: Timers | None = attrs.field(init=False, default=None)

    def status(self) -> list[dict[str, Any]]:
        """Return one object per timer, in the order of the configuration."""
        return self._timers.status() if self._timers is not None else []

    def status_of(self, workload: str) -> dict[str, Any] | None:
        """Return the object of the timer of a workload; None if it has none."""
        return self._timers.status_of(workload) if self._timers is not None else None

    def metrics(self) -> list[TimerSnapshot]:
        """Return what a scrape shows of each timer."""
        return self._timers.metrics() if self._timers is not None else []

    def begin(self, config: Config, saved: Mapping[str, TimerCheckpoint]) -> None:
        """Make the timers of a configuration, and complete the runs of an earlier supervisor; at the start only."""
        if saved or _has_timers(config):
            self._load().begin(config, saved)

    def configure(self, config: Config) -> None:
        """Take the timers of another configuration; those that stay keep their state."""
        if self._timers is not None:
            self._timers.configure(config)
        elif _has_timers(config):
            self._load().begin(config, {})

    def _load(self) -> Timers:
        from nsupervisor.service.timers.timers import Timers  # few services have timers

        self._timers = Timers(self._jobs, self._context, self._nursery, self._service, self._began_at)
        return self._timers


def _has_timers(config: Config) -> bool:
    return any(workload.timer.is_set for workload in config.workloads.values())
