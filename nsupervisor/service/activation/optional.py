"""The path triggers of the service, which are loaded when a configuration has one: most configurations have none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import trio

from nsupervisor.config.model import Config

if TYPE_CHECKING:
    from nsupervisor.service.activation.paths import PathTriggers
    from nsupervisor.service.context import ServiceContext
    from nsupervisor.service.jobs.jobs import Jobs
    from nsupervisor.service.state.file import PathCheckpoint


@attrs.define(eq=False)
class OptionalPathTriggers:
    """The path triggers of all workloads, or nothing until a configuration or an earlier supervisor has some.

    The methods are those of `nsupervisor.service.activation.paths.PathTriggers`.
    """

    _jobs: Jobs
    _context: ServiceContext
    _nursery: trio.Nursery
    _triggers: PathTriggers | None = attrs.field(init=False, default=None)

    def status_of(self, workload: str) -> list[dict[str, Any]]:
        """Return one object for each path of a workload."""
        return self._triggers.status_of(workload) if self._triggers is not None else []

    def begin(self, config: Config, saved: Mapping[str, PathCheckpoint]) -> None:
        """Watch the paths of a configuration; at the start only, after the first jobs have begun."""
        if saved or _has_paths(config):
            self._load().begin(config, saved)

    def configure(self, config: Config) -> None:
        """Watch the paths of another configuration; those that stay keep their state."""
        if self._triggers is not None:
            self._triggers.configure(config)
        elif _has_paths(config):
            self._load().begin(config, {})

    def _load(self) -> PathTriggers:
        from nsupervisor.service.activation.paths import PathTriggers  # few services have path triggers

        self._triggers = PathTriggers(self._jobs, self._context, self._nursery)
        return self._triggers


def _has_paths(config: Config) -> bool:
    return any(workload.paths for workload in config.workloads.values())
