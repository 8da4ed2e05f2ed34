"""Relations between workloads: the edges of `requires`, `wants` and `after`, each with its condition."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args

from nsupervisor.config.kinds import NAME, Scalar
from nsupervisor.config.quoting import alternatives, did_you_mean, quoted

DependencyCondition = Literal["ready", "started", "completed", "completed_successfully"]
"""The words of Compose and process-compose, the first is the default."""
CONDITIONS = get_args(DependencyCondition)
COMPLETION_CONDITIONS = ("completed", "completed_successfully")
"""Conditions that only a program which ends by itself can fulfil."""
EDGE_KEYS = ("requires", "wants", "after")
"""The keys whose values are edges with conditions."""
ORDERING_KEYS = ("requires", "binds_to", "wants", "part_of", "after")
"""The keys by which a workload starts after others, and stops before them."""
RELATION_KEYS = (*ORDERING_KEYS, "conflicts", "upholds", "on_failure", "on_success")
"""All keys that name other workloads for their starts and stops."""


class DependencyConfig(NamedTuple):
    """An edge to the workload `name`: the one that has it starts when `condition` holds."""

    name: str
    condition: DependencyCondition = "ready"


def to_dependencies(values: Iterable[str | DependencyConfig]) -> tuple[DependencyConfig, ...]:
    """Return edges; a plain name is one with the condition "ready"."""
    return tuple(DependencyConfig(value) if isinstance(value, str) else value for value in values)


def related_names(workload: Any, key: str) -> tuple[str, ...]:
    """Return the names that the value of one of `RELATION_KEYS` has, in order."""
    return tuple(item if isinstance(item, str) else item.name for item in getattr(workload, key))


def _load(value: Any) -> DependencyConfig:
    if not isinstance(value, dict):
        return DependencyConfig(NAME.load(value))
    for key in value:
        if key not in ("name", "condition"):
            hint = did_you_mean(key, ("name", "condition"))
            raise ValueError(f"has the key {quoted(key)}, which an edge does not have{hint}; write name and condition")
    if "name" not in value:
        raise ValueError('has no name; write for example { name = "db", condition = "started" }')
    try:
        name = NAME.load(value["name"])
    except ValueError as error:
        raise ValueError(f"has a name that {error}") from None
    condition = value.get("condition", "ready")
    if condition not in CONDITIONS:
        hint = did_you_mean(condition, CONDITIONS) if isinstance(condition, str) else ""
        raise ValueError(f"has the condition {quoted(condition)}{hint}; write {alternatives(CONDITIONS)}")
    return DependencyConfig(name, condition)


def _to_text(dependency: DependencyConfig) -> str | dict[str, str]:
    if dependency.condition == "ready":
        return dependency.name
    return {"name": dependency.name, "condition": dependency.condition}


DEPENDENCY = Scalar(
    _load,
    {
        "anyOf": [
            dict(NAME.schema),
            {
                "type": "object",
                "properties": {"name": dict(NAME.schema), "condition": {"enum": list(CONDITIONS)}},
                "required": ["name"],
                "additionalProperties": False,
            },
        ]
    },
    _to_text,
)
