"""The first jobs of a service: the starts at boot, and those that an earlier supervisor had begun when it was killed.

They are one `Transaction` of `nsupervisor.service.jobs`, as a reload is. So a reload that was killed in the middle is
completed in its order: a program that was to be restarted is stopped after its dependents, if it still runs, and
instances that the configuration no longer has end before others of the same workload start.
"""

import trio

from nsupervisor.core import dependencies
from nsupervisor.core.initiators import BOOT, CONFIGURATION, Initiator
from nsupervisor.core.lifecycle import stopped_by_shutdown
from nsupervisor.service.instance.actor import Actor
from nsupervisor.service.instance.start_status import NO_START
from nsupervisor.service.jobs.jobs import Jobs, Transaction
from nsupervisor.service.state.file import SavedState


def begin_first_jobs(jobs: Jobs, saved: SavedState, nursery: trio.Nursery) -> None:
    """Begin all starts and removals; return at once."""
    starts, leftovers = _starts(jobs, saved), dict.fromkeys(jobs.leftovers.values(), CONFIGURATION)
    existed_before = [actor for actor in starts if actor.name in saved.instances]
    transaction = jobs.begin(
        starts,
        leftovers,
        {actor: dependencies.start_dependencies(actor.workload) for actor in (*existed_before, *leftovers)},
    )
    for actor in leftovers:
        nursery.start_soon(_remove, transaction, actor)


def _starts(jobs: Jobs, saved: SavedState) -> dict[Actor, Initiator]:
    """Return the instances to start, each with its initiator.

    They are those whose start was pending, those that are new and start by themselves, and those that they depend on. A
    supervisor that was killed while it stopped everything had no request about the workloads: they start as after an
    orderly stop.
    """
    starts: dict[Actor, Initiator] = {}
    for name, actor in jobs.actors.items():
        record = saved.instances.get(name)
        if record is not None and (initiator := record.start_initiator):
            # A generation that was adopted has begun after the checkpoint: it is the start that was pending.
            if record.start_is_due and actor.lifecycle.generation == record.lifecycle.generation:
                starts[actor] = initiator
            else:
                actor.set_start_status(NO_START)
        is_new = record is None and not actor.lifecycle.is_alive
        if actor.workload.starts_with_service and (is_new or stopped_by_shutdown(actor.lifecycle)):
            starts.setdefault(actor, BOOT)
    edges = jobs.actors.start_edges
    for name in dependencies.transitive_closure({actor.workload.name: None for actor in starts}, edges):
        for actor in jobs.actors.instances(name):
            if not actor.is_up and not actor.lifecycle.is_alive and _has_no_request(actor):
                starts.setdefault(actor, BOOT)
    return starts


def _has_no_request(actor: Actor) -> bool:
    """Return whether no command has ever started or stopped it, except the end of a service."""
    return (actor.lifecycle.generation == 0 and not actor.lifecycle.reason) or stopped_by_shutdown(actor.lifecycle)


async def _remove(transaction: Transaction, actor: Actor) -> None:
    if actor.lifecycle.is_alive:
        actor.log_event("warning", "warning", message="no longer in the configuration: stopped")
    await transaction.remove(actor)
