"""One workload instance from its declaration: its cgroup, the rules that this host can have, its actor."""

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
"""Where instances live."""


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
    """The actor, with its cgroup and these limits in force. CgroupError: what could not be had, of which workload.

    ``left``: the groups in which an earlier supervisor has left it, if one has. ``given``: the cgroup has got these
    limits from that one; whether it still has them is for `Setter.verify`.
    """
    tree, groups = home
    create = partial(groups.cgroup, tree, name, workload)
    cgroup = create(in_force) if left is None else tree.make(name, in_force, tree.groups(left), given=given)
    moves = left is not None and left != tuple(group.config.name for group in groups.around(workload))
    if moves and not cgroup.populated():
        cgroup.remove()
        cgroup, moves = create(in_force), False
    try:
        able = usable(workload, name, cgroup, world)
    except CgroupError:
        if not cgroup.populated():
            cgroup.remove()
        raise
    if cgroup.problems:
        told = {problem.key for problem in cgroup.host.problems(workload.resources, cgroup.around())}
        for problem in cgroup.problems:
            if problem.key not in told:
                world.journal.log.warning("limit not enforced", workload=name, message=str(problem))
    actor = Actor(name, able, instance, cgroup, world)
    actor.configured = workload
    actor.setter.resources = actor.setter.given = in_force
    actor.moves_to = create if moves else None
    groups.add(actor)
    return actor


def usable(workload: Workload, name: str, cgroup: Cgroup, world: World) -> Workload:
    """The workload with the rules that can be had. One on what this host does not count is refused (CgroupError), or
    left out with a warning where the resources say ``required = false``."""
    rules = []
    for rule in workload.policy:
        why = uncounted(rule, cgroup)
        if why and workload.resources.required:
            raise CgroupError(f"workload.{workload.name}.{rule.name} (line {rule.line}): {why}")
        if why:
            world.journal.log.warning("rule left out", workload=name, message=f"{rule.name}: {why}")
        else:
            rules.append(rule)
    return attrs.evolve(workload, policy=tuple(rules))


def settle(actor: Actor, workload: Workload, home: Home) -> None:
    """It is a member of the workload's groups from now on; where they are others than before, its next generation lives
    in their cgroup."""
    tree, groups = home
    around = groups.around(workload)
    there = around[-1].cgroup.path if around else tree.path
    create = partial(groups.cgroup, tree, actor.name, workload)
    actor.moves_to = None if os.path.dirname(actor.cgroup.path) == there else create
    if actor.groups != (*around, groups.host):
        groups.remove(actor)
        groups.add(actor)
