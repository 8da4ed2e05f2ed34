"""What a plan is made from: what each instance is now, and whether what it was started with still holds.

The file that is in force tells most of it. Two things it does not tell: what an environment file said when the program
was started, and with what an earlier supervisor, of another file, has started it. Of both there is a digest (`trail`).
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
    """What the environment files of all workloads say. For a thread: there may be many, and their disk may be slow."""
    found: dict[str, dict[str, str] | str] = {}
    for name, workload in config.workloads.items():
        if workload.environment_file:
            try:
                found[name] = file_variables(workload)
            except (ConfigError, OSError) as error:
                found[name] = str(error)
    return found


def running(actor: Actor, config: Config, contents: Contents) -> Running:
    """An instance, as a plan for ``config`` takes it."""
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
