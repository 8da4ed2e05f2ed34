"""All groups of the service, and who is in which."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import trio

from nsupervisor.cgroups import Cgroup, CgroupError, Tree
from nsupervisor.config.model import Config, GroupRule, Resources, Workload
from nsupervisor.config.model import Group as GroupConfig
from nsupervisor.core.differences import merged
from nsupervisor.service.group import HOST, Group
from nsupervisor.service.requirements import uncounted
from nsupervisor.service.state import GroupRecord
from nsupervisor.service.trail import resources
from nsupervisor.service.world import World

if TYPE_CHECKING:
    from nsupervisor.service.actor import Actor

PREFIX = "group/"
"""How a group is named on the command line, where workloads are, too."""


@attrs.define(eq=False)
class Groups:
    """By name ("batch"), each after those around it; and the host."""

    config: Config
    by_name: dict[str, Group]
    host: Group

    @classmethod
    def make(cls, config: Config, tree: Tree, world: World, left: Mapping[str, GroupRecord]) -> Groups:
        """Make the groups' cgroups, from the outside in. CgroupError as from `Tree.group`. ``left``: what an earlier
        supervisor has left of them, by their full names."""
        turn = trio.Lock()
        root = Group(HOST, GroupConfig(name=HOST, policy=config.host.policy), tree.root(), world, turn=turn)
        groups = cls(config, {}, _checked(root))
        groups.host.resume_from(left.get(HOST))
        for group in sorted(config.groups.values(), key=lambda one: len(config.around(one))):
            around = tuple(groups.by_name[outer.name] for outer in config.around(group))
            before = left.get(f"{PREFIX}{group.name}")
            in_force = resources(group.resources, before.set) if before is not None else group.resources
            cgroup = tree.group(group.name, in_force, [outer.cgroup for outer in around])
            for problem in cgroup.problems:
                world.journal.log.warning("limit not enforced", group=f"{PREFIX}{group.name}", message=str(problem))
            made = Group(f"{PREFIX}{group.name}", group, cgroup, world, around, turn)
            made.resources = in_force
            groups.by_name[group.name] = made = _checked(made)
            made.resume_from(before)
        for name in left.keys() - {HOST, *(group.name for group in groups.by_name.values())}:
            world.state.keep_group(name, None)
        return groups

    def around(self, workload: Workload) -> tuple[Group, ...]:
        """The groups that a workload is in, the outermost first."""
        return tuple(self.by_name[group.name] for group in self.config.around(workload))

    def cgroup(self, tree: Tree, name: str, workload: Workload, resources: Resources) -> Cgroup:
        """The cgroup of a workload's instance, where its groups are. CgroupError as from `Tree.make`."""
        return tree.make(name, resources, [group.cgroup for group in self.around(workload)])

    def add(self, actor: Actor) -> None:
        """An instance is a member of all groups around it, from now on."""
        actor.groups = (*self.around(actor.workload), self.host)
        for group in actor.groups:
            group.members.append(actor)

    def remove(self, actor: Actor) -> None:
        """It is a member of none any more."""
        for group in actor.groups:
            group.members.remove(actor)
        actor.groups = ()

    @property
    def all(self) -> tuple[Group, ...]:
        """Each after those around it; the host last."""
        return (*self.by_name.values(), self.host)

    def watch(self) -> None:
        """Begin to look at all of them."""
        for group in self.all:
            group.watch()

    def close(self) -> None:
        """Close the files that are kept open."""
        for group in self.all:
            group.cgroup.close()

    def matching(self, pattern: str) -> list[Group]:
        """The groups that "group/batch" or a glob like "group/*" means; none where it names no group."""
        if not pattern.startswith(PREFIX):  # "*" is all workloads
            return []
        return [group for group in self.by_name.values() if fnmatch.fnmatchcase(group.name, pattern)]

    async def change(self, name: str, changes: Mapping[str, Any], by: str = "operator") -> tuple[bool, str]:
        """Change the limits of a group (by its full name, "group/batch"), as `Group.change`; and those in it that are
        in per cent of them."""
        (group,) = self.matching(name)
        done, message = await group.change(changes, by)
        if done:
            inner = [one for one in self.by_name.values() if group in one.around]
            failures = [await one.remeasure() for one in inner] + [await one.remeasure() for one in group.members]
            message = "; ".join(filter(None, failures))
        return done, message

    def differing(self, config: Config) -> list[tuple[Group, GroupConfig]]:
        """The groups that are others in this configuration, with what they are to be; the host, too."""
        wanted = {group: config.groups[name] for name, group in self.by_name.items()}
        wanted[self.host] = GroupConfig(name=HOST, policy=config.host.policy)
        able = ((group, _able(one, group.cgroup)) for group, one in wanted.items())
        return [(group, one) for group, one in able if group.config != one]

    async def go(self, group: Group, config: GroupConfig) -> None:
        """Give a group the limits of a file, where that has changed them, and see to those in it that are in per cent
        of them. CgroupError: nothing has changed, and why; also for a rule on what this host does not count."""
        for rule in config.policy:
            if why := uncounted(rule, group.cgroup):
                raise CgroupError(f"{group.name}: {rule.name} (line {rule.line}): {why}")
        after = merged(group.config.resources, config.resources, group.resources)
        if after != group.resources:
            await group.go(after)
            inner = [one for one in self.by_name.values() if group in one.around]
            for one in inner:
                await one.remeasure()
            for member in group.members:
                await member.remeasure()

    def status(self) -> list[dict[str, Any]]:
        """One object per group."""
        return [group.status() for group in self.by_name.values()]


def _able(config: GroupConfig, cgroup: Cgroup) -> GroupConfig:
    """Without rules on what this host does not count, where its limits are not required either."""
    if config.required:
        return config
    return attrs.evolve(config, policy=tuple(rule for rule in config.policy if not uncounted(rule, cgroup)))


def _checked(group: Group) -> Group:
    """The group, without rules on what this host does not count, where its limits are not required either."""
    rules: list[GroupRule] = []
    for rule in group.config.policy:
        why = uncounted(rule, group.cgroup)
        if why and group.config.required:
            raise CgroupError(f"{rule.name} (line {rule.line}): {why}")
        if why:
            group.world.journal.log.warning("rule left out", group=group.name, message=f"{rule.name}: {why}")
        else:
            rules.append(rule)
    if len(rules) < len(group.config.policy):
        able = attrs.evolve(group, config=attrs.evolve(group.config, policy=tuple(rules)))
        able.resources = group.resources
        return able
    return group
