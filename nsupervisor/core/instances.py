"""Instances of a configuration.

A module of its own, because checking a file needs nothing else of the decisions.
"""

from collections.abc import Mapping

from nsupervisor.config.model import Config


def expand_instances(config: Config) -> Mapping[str, tuple[str, int | None]]:
    """Map the names of all instances, in order, to the workload's name and the instance number.

    The number is None if the workload has a single instance.
    """
    names: dict[str, tuple[str, int | None]] = {}
    for name, workload in config.workloads.items():
        if workload.instances == 1:
            names[name] = (name, None)
        else:
            names |= {f"{name}@{i}": (name, i) for i in range(1, workload.instances + 1)}
    return names
