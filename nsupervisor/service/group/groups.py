"""All groups of the service, and their members."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import attrs
import trio

from nsupervisor.cgroups import Cgroup, CgroupError, Tree
from nsupervisor.config.model import Config, GroupConfig, Resources, WorkloadConfig
from nsupervisor.core.reload.differences import merge_limits
from nsupervisor.service.context import ServiceContext
from nsupervisor.service.group.group import HOST, Group
from nsupervisor.service.instance.actor import Actor
from nsupervisor.service.preflight.requirements import supported_rules
from nsupervisor.service.state.checkpoint import limits_in_force
from nsupervisor.service.state.file import GroupCheckpoint

PREFIX = "group/"
"""Prefix of group names on the command line, which distinguishes them from workloads."""


@attrs.define(eq=False)
class Groups:
    """The groups by name ("batch"), each after those that contain it; and the host."""

    config: Config
    tree: Tree
    context: ServiceContext
    by_name: dict[str, Group] = attrs.field(init=False, factory=dict)
    host: Group = attrs.field(init=False)
    _around: dict[str, tuple[Group, ...]] = attrs.field(init=False, factory=dict)
    """By the name of an instance: the groups that contain it, the outermost first, and the host."""
    _action_lock: trio.Lock = attrs.field(init=False, factory=trio.Lock)
    _retired: list[Group] = attrs.field(init=False, factory=list)
    """Groups that a reload has removed, each after those that contain it; their cgroups may have members yet."""

    @classmethod
    def make(
        cls, config: Config, tree: Tree, context: ServiceContext, checkpoints: Mapping[str, GroupCheckpoint]
    ) -> Groups:
        """Create the cgroups of the groups, the outermost first.

        `checkpoints` is what an earlier supervisor saved, by the full names of the groups. Raises CgroupError as
        `Tree.make_group` does.
        """
        groups = cls(config, tree, context)
        host = GroupConfig(name=HOST, policy=config.host.policy)
        groups.host = groups._make_group(HOST, host, tree.root(), host.resources, (), checkpoints.get(HOST))
        for group in _outermost_first(config):
            groups._make(group, checkpoints.get(f"{PREFIX}{group.name}"))
        for name in checkpoints.keys() - {HOST, *(group.name for group in groups.by_name.values())}:
            context.state.save_group(name, None)
        return groups

    def _make(self, group: GroupConfig, before: GroupCheckpoint | None = None) -> Group:
        """Create the cgroup of a group of `config`, whose outer groups exist. Raises CgroupError."""
        name = f"{PREFIX}{group.name}"
        around = tuple(self.by_name[outer.name] for outer in self.config.enclosing_groups(group))
        in_force = limits_in_force(group.resources, before.changed_limits) if before is not None else group.resources
        cgroup = self.tree.make_group(group.name, in_force, [outer.cgroup for outer in around])
        for problem in cgroup.problems:
            self.context.journal.log.warning("limit not enforced", group=name, message=str(problem))
        try:
            made = self.by_name[group.name] = self._make_group(name, group, cgroup, in_force, around, before)
        except CgroupError:
            if not cgroup.is_populated():
                self._remove_cgroup(cgroup)
            raise
        return made

    def _make_group(
        self,
        name: str,
        group: GroupConfig,
        cgroup: Cgroup,
        limits: Resources,
        around: tuple[Group, ...],
        before: GroupCheckpoint | None,
    ) -> Group:
        supported = _require_supported(name, group, cgroup, self.context)
        made = Group(name, supported, cgroup, self.context, limits, self.around, self._action_lock, around)
        if before is not None:
            made.restore(before)
        return made

    # ---- groups that come and go

    def add_new(self, config: Config) -> list[Group]:
        """Create the groups that only `config` has, the outermost first; their rules are watched with `apply_config`.

        Raises CgroupError after what was made has been removed.
        """
        before, added = self.config, list[Group]()
        new = [group for group in _outermost_first(config) if group.name not in self.by_name]
        self.config = attrs.evolve(before, groups={**before.groups, **{group.name: group for group in new}})
        try:
            added.extend(self._make(group) for group in new)
        except CgroupError:
            self.discard([self.by_name[group.name] for group in new if group.name in self.by_name])
            self.config = before
            raise
        return added

    def discard(self, added: Sequence[Group]) -> None:
        """Undo `add_new`: the reload is refused."""
        retired = {group.name for group in self._retired}
        for group in reversed(added):
            self._forget(group)
            if group.name not in retired:
                self._remove_cgroup(group.cgroup)
        names = {group.config.name for group in added}
        kept = {name: group for name, group in self.config.groups.items() if name not in names}
        self.config = attrs.evolve(self.config, groups=kept)

    def _forget(self, group: Group) -> None:
        """Forget a group, whose rules end; its members are in no group that it was in."""
        group.retire()
        del self.by_name[group.config.name]
        for name, around in self._around.items():
            self._around[name] = tuple(other for other in around if other is not group)

    def _remove_cgroup(self, cgroup: Cgroup) -> None:
        try:
            cgroup.remove()
        except CgroupError as error:
            self.context.journal.log.error("warning", group=cgroup.name, message=str(error))

    def remove_retired(self, instances: Iterable[Actor]) -> None:
        """Remove the cgroups of removed groups that contain none of these instances any more."""
        paths = [actor.cgroup.path for actor in instances]
        for group in self._retired.copy()[::-1]:
            if group.config.name in self.by_name:  # a reload is about to have it again
                continue
            if not any(path.startswith(f"{group.cgroup.path}/") for path in paths):
                self._remove_cgroup(group.cgroup)
                self._retired.remove(group)

    def enclosing(self, workload: WorkloadConfig) -> tuple[Group, ...]:
        """Return the groups that contain a workload, the outermost first."""
        return tuple(self.by_name[group.name] for group in self.config.enclosing_groups(workload))

    def make_cgroup(self, tree: Tree, name: str, workload: WorkloadConfig, resources: Resources) -> Cgroup:
        """Create the cgroup of an instance inside those of its groups. Raises CgroupError as `Tree.make` does."""
        return tree.make(name, resources, [group.cgroup for group in self.enclosing(workload)])

    # ---- members

    def around(self, name: str) -> tuple[Group, ...]:
        """Return the groups that contain an instance, the outermost first, and the host; none if it is no member."""
        return self._around.get(name, ())

    def add(self, actor: Actor) -> None:
        """Make an instance a member of all groups whose cgroups contain it, and of no others.

        Until its next start, a program may be elsewhere than its configuration says.
        """
        self.remove(actor)
        self._around[actor.name] = self._groups_in_force(actor)
        for group in self.around(actor.name):
            group.add_member(actor)

    def remove(self, actor: Actor) -> None:
        """Remove an instance from all its groups."""
        for group in self._around.pop(actor.name, ()):
            group.remove_member(actor.name)

    def _groups_in_force(self, actor: Actor) -> tuple[Group, ...]:
        inside = (group for group in self.enclosing(actor.workload) if _contains(group.cgroup, actor.cgroup))
        return (*inside, self.host)

    def is_in_place(self, actor: Actor, workload: WorkloadConfig) -> bool:
        """Return whether the cgroup of an instance is where `workload` says."""
        around = self.enclosing(workload)
        return os.path.dirname(actor.cgroup.path) == (around[-1] if around else self.host).cgroup.path

    def member_started(self, actor: Actor) -> None:
        """Have the groups around an instance look at it soon: its program has been executed."""
        if self.around(actor.name) != self._groups_in_force(actor):  # it has been started in another cgroup
            self.add(actor)
        for group in self.around(actor.name):
            group.member_started()

    @property
    def all_groups(self) -> tuple[Group, ...]:
        """All groups, each after those that contain it; the host last."""
        return (*self.by_name.values(), self.host)

    def watch(self) -> None:
        """Start to watch the files of all groups."""
        for group in self.all_groups:
            group.watch()

    def close(self) -> None:
        """Close the cgroup files that are kept open."""
        for group in self.all_groups:
            group.observer.unwatch()
            group.cgroup.close()

    def matching(self, pattern: str) -> list[Group]:
        """Return the groups that "group/batch" or a glob like "group/*" matches; none if `pattern` names workloads."""
        if not pattern.startswith(PREFIX):  # "*" matches all workloads
            return []
        return [group for group in self.by_name.values() if fnmatch.fnmatchcase(group.name, pattern)]

    def differing(self, config: Config) -> list[tuple[Group, GroupConfig]]:
        """Return the groups, and the host, that differ in `config`, each with its new configuration."""
        wanted = {group: config.groups[name] for name, group in self.by_name.items() if name in config.groups}
        wanted[self.host] = GroupConfig(name=HOST, policy=config.host.policy)
        supported = ((group, _supported(wanted_config, group.cgroup)) for group, wanted_config in wanted.items())
        return [(group, wanted_config) for group, wanted_config in supported if group.config != wanted_config]

    def apply_config(self, config: Config) -> None:
        """Switch all groups, and the host, to another configuration, without their limits (`apply_limits`).

        Groups that it does not have end; those of `add_new` begin.
        """
        for group, wanted in self.differing(config):
            group.apply_config(wanted)
        for group in [group for name, group in self.by_name.items() if name not in config.groups]:
            self._forget(group)
            self.context.state.save_group(group.name, None)
            self._retired.append(group)
        self._retired = [group for group in self._retired if group.config.name not in self.by_name]
        for group in self.by_name.values():
            if not group.is_watched:
                group.watch()
        self.config = config

    async def apply_limits(self, group: Group, config: GroupConfig) -> None:
        """Apply the changed limits of a configuration file to a group.

        Raises CgroupError if that is not possible or if a rule reads a file that this host does not have; then nothing
        has changed.
        """
        supported_rules(config.policy, group.cgroup, owner=f"{group.name}: ", is_required=True, report=lambda _: None)
        if config.resources != group.config.resources:
            target = partial(merge_limits, group.config.resources, config.resources)
            await group.apply_limits(target, config.resources)

    def status(self) -> list[dict[str, Any]]:
        """Return one status object per group."""
        return [group.status() for group in self.by_name.values()]


def _outermost_first(config: Config) -> list[GroupConfig]:
    return sorted(config.groups.values(), key=lambda group: len(config.enclosing_groups(group)))


def _contains(outer: Cgroup, inner: Cgroup) -> bool:
    return inner.path.startswith(f"{outer.path}/")


def _supported(config: GroupConfig, cgroup: Cgroup) -> GroupConfig:
    """Drop the rules that this host cannot evaluate, unless the limits of the group are required."""
    if config.required:
        return config
    rules = supported_rules(config.policy, cgroup, owner="", is_required=False, report=lambda _message: None)
    return attrs.evolve(config, policy=rules)


def _require_supported(name: str, config: GroupConfig, cgroup: Cgroup, context: ServiceContext) -> GroupConfig:
    """Return the group without the rules that this host cannot evaluate; each is logged.

    Raises CgroupError if the limits of the group are required.
    """

    def report(message: str) -> None:
        context.journal.log.warning("rule left out", group=name, message=message)

    rules = supported_rules(config.policy, cgroup, owner="", is_required=config.required, report=report)
    return attrs.evolve(config, policy=rules)
