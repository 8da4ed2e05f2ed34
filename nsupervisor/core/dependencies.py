"""Start order of workloads, and what a start waits for; they stop in the reverse order. Pure.

`requires`, `binds_to`, `wants` and `part_of` imply *after*: users of supervisors complain more about programs that
start too early than about ones that start one by one. A workload that joins a namespace of another one is bound to
that, too, and starts when the program of that has been executed. They differ if the other workload cannot start:
`requires` and `binds_to` wait until it can, `wants` goes on without it, and `part_of` and `after` never start it in the
first place.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from nsupervisor.config.model import WorkloadConfig
from nsupervisor.config.relations import (
    EDGE_KEYS,
    RELATION_KEYS,
    DependencyCondition,
    DependencyConfig,
    related_names,
    to_dependencies,
)


class Wait(NamedTuple):
    """An edge as a start sees it."""

    name: str
    condition: DependencyCondition
    is_required: bool
    """Whether the start waits until the condition holds; otherwise only while the other workload starts."""


def holders(workload: WorkloadConfig) -> tuple[str, ...]:
    """Return the names of the workloads whose namespaces `workload` joins, each once."""
    return tuple(dict.fromkeys(workload.namespaces.joined_workloads.values()))


def bound_to(workload: WorkloadConfig) -> tuple[str, ...]:
    """Return the names of the workloads without which `workload` cannot go on, each once.

    A namespace ends with the programs in it: the next program of its workload has another one.
    """
    return tuple(dict.fromkeys((*workload.binds_to, *holders(workload))))


def names(edges: Iterable[DependencyConfig]) -> tuple[str, ...]:
    """Return the names of the workloads that edges lead to."""
    return tuple(edge.name for edge in edges)


def waits(workload: WorkloadConfig) -> tuple[Wait, ...]:
    """Return what a start of `workload` waits for: each other workload once, what it requires first."""
    found: dict[str, Wait] = {}
    # A namespace is there once the program has been executed; a sidecar may be what makes that program ready.
    joined = [DependencyConfig(name, "started") for name in holders(workload)]
    required = (*workload.requires, *to_dependencies(workload.binds_to), *joined)
    others = (*workload.wants, *to_dependencies(workload.part_of), *workload.after)
    for is_required, edges in ((True, required), (False, others)):
        for edge in edges:
            found.setdefault(edge.name, Wait(edge.name, edge.condition, is_required))
    return tuple(found.values())


def start_dependencies(workload: WorkloadConfig) -> tuple[str, ...]:
    """Return the names of the workloads that `workload` starts after, each once, in the given order."""
    return tuple(wait.name for wait in waits(workload))


def started_along(workload: WorkloadConfig) -> tuple[str, ...]:
    """Return the names of the workloads that a start of `workload` starts, too."""
    return (*names(workload.requires), *bound_to(workload), *names(workload.wants))


def related(workload: WorkloadConfig) -> list[dict[str, str]]:
    """Return all relations of `workload` as objects of the API: the key, the other workload, and the condition."""
    conditions = {key: {edge.name: edge.condition for edge in getattr(workload, key)} for key in EDGE_KEYS}
    named = [
        {"key": key, "name": name, "condition": conditions.get(key, {}).get(name, "ready")}
        for key in RELATION_KEYS
        for name in related_names(workload, key)
    ]
    joined = [name for name in holders(workload) if name not in workload.binds_to]
    return named + [{"key": "binds_to", "name": name, "condition": "started"} for name in joined]


def stopped_with(workload: WorkloadConfig) -> Mapping[str, str]:
    """Map each workload with which `workload` is stopped to the key that says so; "" for `requires`."""
    return {**restarted_with(workload), **dict.fromkeys(names(workload.requires), "")}


def restarted_with(workload: WorkloadConfig) -> Mapping[str, str]:
    """Map each workload with which `workload` is restarted, if it runs, to the key that says so."""
    return dict.fromkeys(workload.part_of, "part_of") | dict.fromkeys(bound_to(workload), "binds_to")


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
