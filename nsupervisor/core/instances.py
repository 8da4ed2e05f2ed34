"""Instances of a configuration.

A module of its own, because checking a file needs nothing else of the decisions.
"""

from collections.abc import Mapping

from nsupervisor.config.expansion import Instance
from nsupervisor.config.model import Config


def expand_instances(config: Config) -> Mapping[str, tuple[str, Instance | None]]:
    """Map the names of all instances, in order, to the workload's name and what distinguishes the instance.

    That is None if the workload has a single instance without a name of its own.
    """
    return {
        workload.instance_name(instance): (name, instance)
        for name, workload in config.workloads.items()
        for instance in workload.instance_ids
    }
