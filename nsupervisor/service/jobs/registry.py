"""The actors by name, with indexes for constant-time look-ups by workload."""

from collections.abc import Mapping
from typing import Any

from nsupervisor.core.dependencies import bound_to, restarted_with, start_dependencies, started_along, stopped_with
from nsupervisor.service.instance.actor import Actor


class Registry(dict[str, Actor]):
    """A dict of actors in the order of the configuration, with indexes that are rebuilt after a change.

    A reload replaces an actor's workload by another one with the same name, and then inserts all actors again.
    """

    _revision: int = 0
    _instances: dict[str, list[Actor]] | None = None
    _stopped_with: dict[str, list[Actor]]
    _dependents: dict[str, list[Actor]]
    _restarted_with: dict[str, list[Actor]]
    _bound_to: dict[str, list[Actor]]
    _upholders: dict[str, list[Actor]]
    _conflicting: dict[str, dict[str, None]]
    _start_edges: dict[str, tuple[str, ...]]

    @property
    def revision(self) -> int:
        """A number that changes with the actors, and with what they depend on."""
        self._index()
        return self._revision

    def instances(self, workload: str) -> list[Actor]:
        """Return all instances of one workload."""
        self._index()
        assert self._instances is not None
        return self._instances.get(workload, [])

    def stopped_with(self, workload: str) -> list[Actor]:
        """Return all instances that stop with this workload: they require it, are bound to it, or are part of it."""
        self._index()
        return self._stopped_with.get(workload, [])

    def restarted_with(self, workload: str) -> list[Actor]:
        """Return all instances that restart with this workload: they are bound to it, or are part of it."""
        self._index()
        return self._restarted_with.get(workload, [])

    def bound_to(self, workload: str) -> list[Actor]:
        """Return all instances that run only while this workload is up."""
        self._index()
        return self._bound_to.get(workload, [])

    def upholders(self, workload: str) -> list[Actor]:
        """Return all instances that start this workload whenever it is down."""
        self._index()
        return self._upholders.get(workload, [])

    def conflicting(self, workload: str) -> list[Actor]:
        """Return all instances that never run together with this workload."""
        self._index()
        return [actor for name in self._conflicting.get(workload, ()) for actor in self.instances(name)]

    def dependents(self, workload: str) -> list[Actor]:
        """Return all instances that start after this workload, and so stop before it."""
        self._index()
        return self._dependents.get(workload, [])

    @property
    def start_edges(self) -> Mapping[str, tuple[str, ...]]:
        """The workloads that each workload starts along with itself: those that it requires or wants."""
        self._index()
        return self._start_edges

    def _index(self) -> None:
        if self._instances is not None:
            return
        self._revision += 1
        self._instances, self._stopped_with, self._dependents = {}, {}, {}
        self._restarted_with, self._bound_to, self._upholders, self._conflicting = {}, {}, {}, {}
        for actor in self.values():
            self._instances.setdefault(actor.workload.name, []).append(actor)
            for index, related in (
                (self._stopped_with, stopped_with(actor.workload)),
                (self._restarted_with, restarted_with(actor.workload)),
                (self._bound_to, dict.fromkeys(bound_to(actor.workload))),
                (self._upholders, dict.fromkeys(actor.workload.upholds)),
            ):
                for name in related:
                    index.setdefault(name, []).append(actor)
            for name in actor.workload.conflicts:
                self._conflicting.setdefault(name, {})[actor.workload.name] = None
                self._conflicting.setdefault(actor.workload.name, {})[name] = None
            for name in start_dependencies(actor.workload):
                self._dependents.setdefault(name, []).append(actor)
        workloads = [instances[0].workload for instances in self._instances.values()]
        # An instance that is being removed may require one that has been removed already.
        self._start_edges = {
            workload.name: tuple(name for name in started_along(workload) if name in self._instances)
            for workload in workloads
        }

    def __setitem__(self, name: str, actor: Actor) -> None:
        self._instances = None
        super().__setitem__(name, actor)

    def __delitem__(self, name: str) -> None:
        self._instances = None
        super().__delitem__(name)

    def clear(self) -> None:
        """Remove all actors, and discard the indexes."""
        self._instances = None
        super().clear()

    def update(self, *others: Any, **more: Any) -> None:
        self._instances = None
        super().update(*others, **more)
