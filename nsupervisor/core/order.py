"""Who waits for whom: the order of starting, and its reverse for stopping. Pure.

``requires`` and ``wants`` both mean *after*: the field's users complain more about programs that start too early than
about ones that start one by one. They differ when the other one cannot be had: ``requires`` then gives up, ``wants``
goes on without it, and ``after`` alone never asks for it in the first place.
"""

from collections.abc import Iterable, Mapping

from nsupervisor.config.model import Workload


def before(workload: Workload) -> tuple[str, ...]:
    """The names of those that have to be up before ``workload`` starts, each once, in the order given."""
    return tuple(dict.fromkeys((*workload.requires, *workload.wants, *workload.after)))


def dependants(workloads: Mapping[str, Workload]) -> dict[str, tuple[str, ...]]:
    """For each name those that have to be down before it stops: the reverse of `before`."""
    reverse: dict[str, list[str]] = {name: [] for name in workloads}
    for name, workload in workloads.items():
        for other in before(workload):
            reverse[other].append(name)
    return {name: tuple(names) for name, names in reverse.items()}


def closure(names: Iterable[str], edges: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """``names`` and all that can be reached from them, each once, nearest first."""
    found = dict.fromkeys(names)
    queue = list(found)
    for name in queue:  # grows while we walk it
        for other in edges[name]:
            if other not in found:
                found[other] = None
                queue.append(other)
    return tuple(found)
