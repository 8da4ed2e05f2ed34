"""The instances that a configuration asks for. Apart, as checking a file needs no more of what decides than this."""

from collections.abc import Mapping

from nsupervisor.config.model import Config


def instances(config: Config) -> Mapping[str, tuple[str, int | None]]:
    """The names of all instances, in order, each with its workload's name and its number (None where there is one)."""
    names: dict[str, tuple[str, int | None]] = {}
    for name, workload in config.workloads.items():
        if workload.instances == 1:
            names[name] = (name, None)
        else:
            names |= {f"{name}@{i}": (name, i) for i in range(1, workload.instances + 1)}
    return names
