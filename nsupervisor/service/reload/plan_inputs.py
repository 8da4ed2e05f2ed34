"""The inputs of a reload plan: each instance as it is now, and whether it still matches how it was started.

The configuration in force answers most of this, with two exceptions: the contents of an environment file when the
program was started, and the settings of a program that an earlier supervisor started from another file. The checkpoint
holds a digest of each.
"""

from collections.abc import Mapping

from nsupervisor.config.load import ConfigError
from nsupervisor.config.model import Config, WorkloadConfig
from nsupervisor.core.reload.plan import CurrentInstance, EnvironmentFiles
from nsupervisor.service.instance.actor import Actor
from nsupervisor.service.instance.spawn_spec import environment_file_variables
from nsupervisor.service.jobs.jobs import Jobs

Contents = Mapping[str, dict[str, str] | str]
"""By instance: the variables of its environment files, or why they cannot be read."""


def read_contents(config: Config) -> Contents:
    """Read the environment files of all workloads; call it in a thread, since there may be many on a slow disk."""
    contents: dict[str, dict[str, str] | str] = {}
    for workload in config.workloads.values():
        for instance, variant in workload.each_variant():
            if not variant.environment_file:
                continue
            names = [instance] if workload.variants else workload.instance_ids
            contents |= dict.fromkeys(map(workload.instance_name, names), _read(variant))
    return contents


def _read(workload: WorkloadConfig) -> dict[str, str] | str:
    try:
        return environment_file_variables(workload)
    except (ConfigError, OSError) as error:
        return str(error)


def running_instance(actor: Actor, jobs: Jobs, config: Config, contents: Contents) -> CurrentInstance:
    """Describe an instance for a plan that leads to `config`."""
    has_pending_start, removal = jobs.has_pending_start(actor), jobs.removal_of(actor)
    lifecycle, wanted = actor.lifecycle, config.workloads.get(actor.workload.name)
    if wanted is not None:
        wanted = wanted.for_instance(actor.instance)
    should_run = lifecycle.should_run or has_pending_start
    return CurrentInstance(
        actor.name,
        actor.configured,
        actor.resources,
        lifecycle.state,
        should_run=removal.was_wanted if removal else should_run,
        is_waiting=has_pending_start and not lifecycle.is_alive,
        was_started=lifecycle.generation > 0 or bool(lifecycle.reason),
        is_being_removed=removal is not None,
        matches_new_file=_matches(actor, jobs, wanted) if wanted is not None else None,
        start_revision=actor.program.start_revision,
        environment_files=_environment_files(actor, contents.get(actor.name)),
    )


def _matches(actor: Actor, jobs: Jobs, wanted: WorkloadConfig) -> bool | None:
    """Return `CurrentInstance.matches_new_file`: None if the program was started as the file in force says."""
    if not actor.program.is_outdated and jobs.groups.is_in_place(actor, actor.configured):
        return None
    return actor.program.matches(wanted, actor.lifecycle, actor.cgroup) and jobs.groups.is_in_place(actor, wanted)


def _environment_files(actor: Actor, contents: dict[str, str] | str | None) -> EnvironmentFiles:
    if contents is None or not actor.program.environment_digest:
        return EnvironmentFiles()
    if isinstance(contents, str):
        return EnvironmentFiles(problem=contents)
    return EnvironmentFiles(have_changed=actor.context.digest.differs(actor.program.environment_digest, contents))
