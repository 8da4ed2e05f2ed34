"""All groups of the service, and their members."""

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
"""Prefix of group names on the command line, which distinguishes them from workloads."""


@attrs.define(eq=False)
class Groups:
    """The groups by name ("batch"), each after those that contain it; and the host."""

    config: Config
    by_name: dict[str, Group]
    host: Group

    @classmethod
    def make(cls, config: Config, tree: Tree, world: World, left: Mapping[str, GroupRecord]) -> Groups:
        """Create the cgroups of the groups, the outermost first.

        `checkpoints` is what an earlier supervisor saved, by the full names of the groups. Raises CgroupError as
        `Tree.make_group` does.
        """
        turn = trio.Lock()
        root = Group(HOST, GroupConfig(name=HOST, policy=config.host.policy), tree.root(), world, turn=turn)
        groups = cls(config, {}, _checked(root))
        groups.host.resume_from(left.get(HOST))
        for group in sorted(config.groups.values(), key=lambda group: len(config.around(group))):
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
        """Return the groups that contain a workload, the outermost first."""
        return tuple(self.by_name[group.name] for group in self.config.around(workload))

    def cgroup(self, tree: Tree, name: str, workload: Workload, resources: Resources) -> Cgroup:
        """Create the cgroup of an instance inside those of its groups. Raises CgroupError as `Tree.make` does."""
        return tree.make(name, resources, [group.cgroup for group in self.around(workload)])

    def add(self, actor: Actor) -> None:
        """Make an instance a member of all groups that contain it."""
        actor.groups = (*self.around(actor.workload), self.host)
        for group in actor.groups:
            group.members.append(actor)

    def remove(self, actor: Actor) -> None:
        """Remove an instance from all its groups."""
        for group in actor.groups:
            group.members.remove(actor)
        actor.groups = ()

    @property
    def all(self) -> tuple[Group, ...]:
        """All groups, each after those that contain it; the host last."""
        return (*self.by_name.values(), self.host)

    def watch(self) -> None:
        """Start to watch the files of all groups."""
        for group in self.all:
            group.watch()

    def close(self) -> None:
        """Close the cgroup files that are kept open."""
        for group in self.all:
            group.cgroup.close()

    def matching(self, pattern: str) -> list[Group]:
        """Return the groups that "group/batch" or a glob like "group/*" matches; none if `pattern` names workloads."""
        if not pattern.startswith(PREFIX):  # "*" matches all workloads
            return []
        return [group for group in self.by_name.values() if fnmatch.fnmatchcase(group.name, pattern)]

    async def change(self, name: str, changes: Mapping[str, Any], by: str = "operator") -> tuple[bool, str]:
        """Change the limits of a group (by its full name, "group/batch"), as `Group.change_limits` does.

        Limits inside it that are percentages of the changed ones are written again.
        """
        (group,) = self.matching(name)
        done, message = await group.change(changes, by)
        if done:
            inner = [inner_group for inner_group in self.by_name.values() if group in inner_group.around]
            failures = [await inner_group.remeasure() for inner_group in inner]
            failures += [await member.remeasure() for member in group.members]
            message = "; ".join(filter(None, failures))
        return done, message

    def differing(self, config: Config) -> list[tuple[Group, GroupConfig]]:
        """Return the groups, and the host, that differ in `config`, each with its new configuration."""
        wanted = {group: config.groups[name] for name, group in self.by_name.items()}
        wanted[self.host] = GroupConfig(name=HOST, policy=config.host.policy)
        supported = ((group, _able(wanted_config, group.cgroup)) for group, wanted_config in wanted.items())
        return [(group, wanted_config) for group, wanted_config in supported if group.config != wanted_config]

    async def go(self, group: Group, config: GroupConfig) -> None:
        """Apply the changed limits of a configuration file to a group, and update the percentages inside it.

        Raises CgroupError if that is not possible or if a rule reads a file that this host does not have; then nothing
        has changed.
        """
        for rule in config.policy:
            if reason := uncounted(rule, group.cgroup):
                raise CgroupError(f"{group.name}: {rule.name} (line {rule.line}): {reason}")
        after = merged(group.config.resources, config.resources, group.resources)
        if after != group.resources:
            await group.go(after)
            inner = [inner_group for inner_group in self.by_name.values() if group in inner_group.around]
            for inner_group in inner:
                await inner_group.remeasure()
            for member in group.members:
                await member.remeasure()

    def status(self) -> list[dict[str, Any]]:
        """Return one status object per group."""
        return [group.status() for group in self.by_name.values()]


def _able(config: GroupConfig, cgroup: Cgroup) -> GroupConfig:
    """Drop the rules that this host cannot evaluate, unless the limits of the group are required."""
    if config.required:
        return config
    return attrs.evolve(config, policy=tuple(rule for rule in config.policy if not uncounted(rule, cgroup)))


def _checked(group: Group) -> Group:
    """Return the group without the rules that this host cannot evaluate; each is logged.

    Raises CgroupError if the limits of the group are required.
    """
    rules: list[GroupRule] = []
    for rule in group.config.policy:
        reason = uncounted(rule, group.cgroup)
        if reason and group.config.required:
            raise CgroupError(f"{rule.name} (line {rule.line}): {reason}")
        if reason:
            group.world.journal.log.warning("rule left out", group=group.name, message=f"{rule.name}: {reason}")
        else:
            rules.append(rule)
    if len(rules) < len(group.config.policy):
        supported = attrs.evolve(group, config=attrs.evolve(group.config, policy=tuple(rules)))
        supported.resources = group.resources
        return supported
    return group
