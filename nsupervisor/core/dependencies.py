"""Start order of workloads; they stop in the reverse order. Pure.

`requires` and `wants` both imply *after*: users of supervisors complain more about programs that start too early than
about ones that start one by one. They differ if the other workload cannot start: `requires` waits until it can, `wants`
goes on without it, and `after` alone never starts it in the first place.
"""

from collections.abc import Iterable, Mapping

from nsupervisor.config.model import WorkloadConfig


def start_dependencies(workload: WorkloadConfig) -> tuple[str, ...]:
    """Return the names of the workloads that must be up before `workload` starts, each once, in the given order."""
    return tuple(dict.fromkeys((*workload.requires, *workload.wants, *workload.after)))


def transitive_closure(names: Iterable[str], edges: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """Return `names` and everything reachable from them, each once, nearest first."""
    reached = dict.fromkeys(names)
    queue = list(reached)
    for name in queue:  # the list grows during the iteration
        for other in edges[name]:
            if other not in reached:
                reached[other] = None
                queue.append(other)
    return tuple(reached)
