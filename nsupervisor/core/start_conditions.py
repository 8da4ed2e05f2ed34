"""Conditions of a start (`condition_*`): whether they are met on a host whose facts are given."""

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

from nsupervisor.config.model import WorkloadConfig

CONDITION_KEYS = ("condition_path_exists", "condition_file_not_empty", "condition_host", "condition_environment")


class StartCondition(NamedTuple):
    """One condition of a start."""

    key: str
    value: str
    """Without the "!"."""
    is_negated: bool

    def __str__(self) -> str:
        """Return the condition as in the configuration."""
        return f'{self.key} = "{"!" if self.is_negated else ""}{self.value}"'


class HostFacts(NamedTuple):
    """The facts of a host that conditions are about."""

    host_name: str
    environment: Mapping[str, str]
    """The environment of the service."""
    path_exists: Callable[[str], bool]
    file_is_not_empty: Callable[[str], bool]


def start_conditions(workload: WorkloadConfig) -> tuple[StartCondition, ...]:
    """Return all conditions of a workload; each must be met."""
    return tuple(
        StartCondition(key, value.removeprefix("!"), value.startswith("!"))
        for key in CONDITION_KEYS
        for value in getattr(workload, key)
    )


def find_unmet(conditions: tuple[StartCondition, ...], facts: HostFacts) -> StartCondition | None:
    """Return the first condition that is not met; None if all are."""
    return next((condition for condition in conditions if _holds(condition, facts) is condition.is_negated), None)


def _holds(condition: StartCondition, facts: HostFacts) -> bool:
    """Check a condition without its negation, as systemd.unit(5) does, "Conditions and Asserts"."""
    match condition.key:
        case "condition_path_exists":
            return facts.path_exists(condition.value)
        case "condition_file_not_empty":
            return facts.file_is_not_empty(condition.value)
        case "condition_host":
            return fnmatchcase(facts.host_name.lower(), condition.value.lower())
    name, has_value, value = condition.value.partition("=")
    return facts.environment.get(name) == value if has_value else name in facts.environment
