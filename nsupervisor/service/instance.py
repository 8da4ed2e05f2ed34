"""Make a workload instance from its configuration: its cgroup, its supported rules, its actor."""

import os
from functools import partial

import attrs

from nsupervisor.cgroups import Cgroup, CgroupError, Tree
from nsupervisor.config.model import Resources, Workload
from nsupervisor.service.actor import Actor
from nsupervisor.service.groups import Groups
from nsupervisor.service.requirements import uncounted
from nsupervisor.service.world import World

Home = tuple[Tree, Groups]
"""The tree and the groups in which the cgroups of instances are made."""


def make(
    name: str,
    workload: Workload,
    instance: int | None,
    home: Home,
    world: World,
    in_force: Resources,
    left: tuple[str, ...] | None = None,
    given: bool = False,
) -> Actor:
    """Make the actor and its cgroup with these limits in force.

    `group_names_before`: the groups in which an earlier supervisor left the cgroup, if one did. `limits_applied`: that
    supervisor has written these limits; `LimitWriter.verify` checks whether they are still there.

    Raises CgroupError, which names the workload and what was not possible.
    """
    tree, groups = home
    create = partial(groups.cgroup, tree, name, workload)
    cgroup = create(in_force) if left is None else tree.make(name, in_force, tree.groups(left), given=given)
    moves = left is not None and left != tuple(group.config.name for group in groups.around(workload))
    if moves and not cgroup.populated():
        cgroup.remove()
        cgroup, moves = create(in_force), False
    try:
        supported = usable(workload, name, cgroup, world)
    except CgroupError:
        if not cgroup.populated():
            cgroup.remove()
        raise
    if cgroup.problems:
        reported = {problem.key for problem in cgroup.host.problems(workload.resources, cgroup.around())}
        for problem in cgroup.problems:
            if problem.key not in reported:
                world.journal.log.warning("limit not enforced", workload=name, message=str(problem))
    actor = Actor(name, supported, instance, cgroup, world)
    actor.configured = workload
    actor.setter.resources = actor.setter.given = in_force
    actor.moves_to = create if moves else None
    groups.add(actor)
    return actor


def usable(workload: Workload, name: str, cgroup: Cgroup, world: World) -> Workload:
    """Return the workload with the rules that this host can evaluate.

    A rule that reads what this host does not count raises CgroupError, or is left out with a warning if the resources
    say `required = false`.
    """
    rules = []
    for rule in workload.policy:
        reason = uncounted(rule, cgroup)
        if reason and workload.resources.required:
            raise CgroupError(f"workload.{workload.name}.{rule.name} (line {rule.line}): {reason}")
        if reason:
            world.journal.log.warning("rule left out", workload=name, message=f"{rule.name}: {reason}")
        else:
            rules.append(rule)
    return attrs.evolve(workload, policy=tuple(rules))


def settle(actor: Actor, workload: Workload, home: Home) -> None:
    """Make the instance a member of the groups of `workload`.

    If they differ from its present groups, its next generation starts in a new cgroup inside them.
    """
    tree, groups = home
    around = groups.around(workload)
    there = around[-1].cgroup.path if around else tree.path
    create = partial(groups.cgroup, tree, actor.name, workload)
    actor.moves_to = None if os.path.dirname(actor.cgroup.path) == there else create
    if actor.groups != (*around, groups.host):
        groups.remove(actor)
        groups.add(actor)
