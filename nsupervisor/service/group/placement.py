"""Make a workload instance from its configuration: its cgroup, its supported rules, its actor."""

from collections.abc import Sequence
from functools import partial

import attrs

from nsupervisor.cgroups import Cgroup, CgroupError, Tree
from nsupervisor.config.expansion import Instance
from nsupervisor.config.model import Resources, WorkloadConfig
from nsupervisor.keeper.messages import Child
from nsupervisor.service.context import ServiceContext
from nsupervisor.service.group.groups import Groups
from nsupervisor.service.instance.actor import Actor
from nsupervisor.service.instance.restore import restore_actor
from nsupervisor.service.preflight.requirements import supported_rules
from nsupervisor.service.state.file import InstanceCheckpoint

Placement = tuple[Tree, Groups]
"""The tree and the groups in which the cgroups of instances are made."""


def make_instance(
    name: str,
    workload: WorkloadConfig,
    instance: Instance | None,
    placement: Placement,
    context: ServiceContext,
    limits: Resources,
    group_names_before: tuple[str, ...] | None = None,
    limits_applied: bool = False,
    saved: InstanceCheckpoint | None = None,
    children: Sequence[Child] = (),
) -> Actor:
    """Make the actor and its cgroup with these limits in force.

    `group_names_before`: the groups in which an earlier supervisor left the cgroup, if one did. `limits_applied`: that
    supervisor has written these limits; `LimitWriter.verify` checks whether they are still there. `saved` and
    `children`: what that supervisor and the keeper know of the instance.

    Raises CgroupError, which names the workload and what was not possible.
    """
    tree, groups = placement
    create = partial(groups.make_cgroup, tree, name, workload)
    cgroup = (
        create(limits)
        if group_names_before is None
        else tree.make(name, limits, tree.open_groups(group_names_before), limits_known=limits_applied)
    )
    moves = group_names_before is not None and group_names_before != tuple(
        group.config.name for group in groups.enclosing(workload)
    )
    if moves and not cgroup.is_populated():
        try:
            cgroup.remove()
        except CgroupError as error:  # a process of another program is in it; the next start tries again
            context.journal.log.error("warning", workload=name, message=str(error))
        else:
            cgroup, moves = create(limits), False
    try:
        supported = supported_workload(workload, name, cgroup, context)
    except CgroupError:
        if not cgroup.is_populated():
            cgroup.remove()
        raise
    if cgroup.problems:
        reported = {
            problem.key for problem in cgroup.host.check_resources(workload.resources, cgroup.ancestor_limits())
        }
        for problem in cgroup.problems:
            if problem.key not in reported:
                context.journal.log.warning("limit not enforced", workload=name, message=str(problem))

    def on_started() -> None:
        groups.member_started(actor)

    actor = restore_actor(saved, children, name, workload, supported, instance, cgroup, context, on_started, limits)
    if group_names_before is not None:
        actor.inherit_cgroup()
    actor.plan_move(create if moves else None)
    groups.add(actor)
    return actor


def supported_workload(workload: WorkloadConfig, name: str, cgroup: Cgroup, context: ServiceContext) -> WorkloadConfig:
    """Return the workload with the rules that this host can evaluate.

    A rule that reads what this host does not count raises CgroupError, or is left out with a warning if the resources
    say `required = false`.
    """

    def report(message: str) -> None:
        context.journal.log.warning("rule left out", workload=name, message=message)

    owner, is_required = f"workload.{workload.name}.", workload.resources.required
    rules = supported_rules(workload.policy, cgroup, owner=owner, is_required=is_required, report=report)
    return attrs.evolve(workload, policy=rules)


def update_membership(actor: Actor, workload: WorkloadConfig, placement: Placement) -> None:
    """Make the instance a member of the groups of `workload` that it is in.

    If they differ from its present groups, its next generation starts in a new cgroup inside them.
    """
    tree, groups = placement
    create = partial(groups.make_cgroup, tree, actor.name, workload)
    actor.plan_move(None if groups.is_in_place(actor, workload) else create)
    groups.add(actor)
