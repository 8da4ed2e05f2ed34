"""Other numbers of instances than the configuration's, as `nsupervisor scale` sets them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from attrs import evolve

from nsupervisor.config.checks import find_conflicts
from nsupervisor.config.kinds import INSTANCES
from nsupervisor.config.model import Config, WorkloadConfig
from nsupervisor.config.problems import ConfigError, Problem
from nsupervisor.config.quoting import did_you_mean, format_path, quoted


class Scale(NamedTuple):
    """The number of instances of one workload that was set, and the one of the file at that time."""

    instances: int
    configured: int


def scale(config: Config, counts: Mapping[str, int]) -> Config:
    """Return the configuration with other numbers of instances. Raises ConfigError with every problem."""
    problems: list[Problem] = []
    workloads = dict(config.workloads)
    for name, count in counts.items():
        path = ("workload", name, "instances")
        if (workload := config.workloads.get(name)) is None:
            instead = did_you_mean(name, config.workloads).removeprefix(", ") or "write the name of one"
            problems.append(Problem(config.path, 0, "", f"there is no workload {quoted(name)}; {instead}"))
            continue
        try:
            workloads[name] = scale_workload(workload, count)
        except ValueError as error:
            problems.append(Problem(config.path, 0, format_path(path), f"{quoted(count)} {error}"))
        except ConfigError as error:
            problems += error.problems
    scaled = evolve(config, workloads=workloads)
    if not problems:
        problems += (Problem(config.path, 0, format_path(c.path), c.message) for c in find_conflicts(scaled))
    if problems:
        raise ConfigError(problems)
    return scaled


def scale_workload(workload: WorkloadConfig, count: int) -> WorkloadConfig:
    """Return a workload with another number of instances.

    Raises ValueError, whose text ends the sentence "COUNT …", and ConfigError if a new instance has a problem.
    """
    if isinstance(workload.instances, tuple):
        raise ValueError("is no list of names, which its instances have; change the list in the file")
    INSTANCES.load(count)
    configured = workload.instances if workload.scaled_from is None else workload.scaled_from
    variants = {
        instance: differences for instance, differences in workload.variants.items() if instance in range(count + 1)
    }
    if workload.differ is not None:
        for instance in range(1, count + 1):
            if instance not in variants and (differences := workload.differ(instance)):
                variants[instance] = differences
    scaled_from = None if count == configured else configured
    return evolve(workload, instances=count, variants=variants, scaled_from=scaled_from)


def scales(config: Config) -> dict[str, Scale]:
    """Return the numbers of instances that were set, by workload."""
    return {
        name: Scale(workload.instances, workload.scaled_from)
        for name, workload in config.workloads.items()
        if workload.scaled_from is not None and isinstance(workload.instances, int)
    }


def keep_scales(config: Config, kept: Mapping[str, Scale]) -> Config:
    """Return the configuration with the numbers that were set, as far as its own are still those of that time.

    A number that does not fit the configuration any more is given up.
    """
    for name, (count, configured) in kept.items():
        workload = config.workloads.get(name)
        if workload is not None and workload.instances == configured:
            try:
                config = scale(config, {name: count})
            except ConfigError:
                continue
    return config
