"""The actors by name, with indexes for constant-time look-ups by workload."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nsupervisor.service.instance.actor import Actor


class Registry(dict[str, "Actor"]):
    """A dict of actors in the order of the configuration, with two indexes that are rebuilt after a change.

    A reload replaces an actor's workload by another one with the same name, and then inserts all actors again.
    """

    _instances: dict[str, list["Actor"]] | None = None
    _requirers: dict[str, list["Actor"]]

    def instances(self, workload: str) -> list["Actor"]:
        """Return all instances of one workload."""
        self._index()
        assert self._instances is not None
        return self._instances.get(workload, [])

    def requirers(self, workload: str) -> list["Actor"]:
        """Return all instances whose workloads require this one."""
        self._index()
        return self._requirers.get(workload, [])

    def _index(self) -> None:
        if self._instances is not None:
            return
        self._instances, self._requirers = {}, {}
        for actor in self.values():
            self._instances.setdefault(actor.workload.name, []).append(actor)
            for name in dict.fromkeys(actor.workload.requires):
                self._requirers.setdefault(name, []).append(actor)

    def __setitem__(self, name: str, actor: "Actor") -> None:
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
