"""The inputs of a reload plan: each instance as it is now, and whether it still matches how it was started.

The configuration in force answers most of this, with two exceptions: the contents of an environment file when the
program was started, and the settings of a program that an earlier supervisor started from another file. The checkpoint
holds a digest of each.
"""

from collections.abc import Mapping

from nsupervisor.config.load import ConfigError
from nsupervisor.config.model import Config
from nsupervisor.core.plan import Files, Running
from nsupervisor.service.actor import Actor
from nsupervisor.service.spec import file_variables
from nsupervisor.service.trail import fits

Contents = Mapping[str, dict[str, str] | str]
"""By workload: the variables of its environment files, or why they cannot be read."""


def read_contents(config: Config) -> Contents:
    """Read the environment files of all workloads; call it in a thread, since there may be many on a slow disk."""
    contents: dict[str, dict[str, str] | str] = {}
    for name, workload in config.workloads.items():
        if workload.environment_file:
            try:
                contents[name] = file_variables(workload)
            except (ConfigError, OSError) as error:
                contents[name] = str(error)
    return contents


def running(actor: Actor, config: Config, contents: Contents) -> Running:
    """Describe an instance for a plan that leads to `config`."""
    life, wanted = actor.life, config.workloads.get(actor.workload.name)
    return Running(
        actor.name,
        actor.configured,
        actor.resources,
        life.state,
        wanted=actor.leaving.wanted if actor.leaving else life.wanted or actor.pending is not None,
        waits=actor.pending is not None and not life.alive,
        touched=life.generation > 0 or bool(life.reason),
        leaving=actor.leaving is not None,
        fits=fits(actor, wanted) if actor.trail.outdated and wanted is not None else None,
        files=_files(actor, contents.get(actor.workload.name)),
    )


def _files(actor: Actor, now: dict[str, str] | str | None) -> Files:
    if now is None or not actor.trail.files:
        return Files()
    if isinstance(now, str):
        return Files(problem=now)
    return Files(differ=actor.world.seal.differs(actor.trail.files, now))
