"""Adapt a configuration to a place where cgroups or new namespaces are missing. Pure.

`[supervisor] isolation` decides what is asked for. "full": both; what is missing is refused, by each workload that
needs it. "auto": what is missing is reported, and left out. "none": neither is asked for.

A request is never left out silently. With "auto", each one that the file makes is a finding; a default is not, as the
missing feature itself is reported once. With "none", a request in the file contradicts the key, so it is refused. What
changes which files a program sees, or its user, is refused in any case: the program would do damage elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import attrs

from nsupervisor.config.condition_terms import HOST_PREFIX, NOT_FILES
from nsupervisor.config.model import Config, GroupConfig, NamespacesConfig, Rule, WorkloadConfig
from nsupervisor.config.positions import KeyPath, Positions

CGROUPS, NAMESPACES, USER_NAMESPACES = "cgroups", "namespaces", "user namespaces"
"""The features, by their names in records and in the status."""
AUTO_REASON = 'isolation = "auto"'
"""Why a request that cannot be provided is only a warning."""
_KINDS = tuple(
    attribute.name for attribute in attrs.fields(NamespacesConfig) if attribute.name not in ("hostname", "time_offsets")
)
_RANKED_BY_FILES = ("largest-memory", "fastest-growing")
"""Victims that are chosen by readings of their cgroups."""

_RuleT = TypeVar("_RuleT", bound=Rule)


class Absence(NamedTuple):
    """Why a feature is missing, a sentence without full stop, and what to do to have it, in the same form."""

    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}"


class Finding(NamedTuple):
    """A request that cannot be provided. `is_refused`: also with "auto"."""

    path: KeyPath
    message: str
    is_refused: bool = False


def without_namespaces(
    config: Config, positions: Positions, missing: Mapping[str, Absence]
) -> tuple[Config, list[Finding]]:
    """Return the configuration without the namespaces that are missing, and the requests for those."""
    findings: list[Finding] = []
    workloads: dict[str, WorkloadConfig] = {}
    for name, workload in config.workloads.items():
        absence = missing.get(USER_NAMESPACES if workload.namespaces.user else NAMESPACES)
        lost = dict.fromkeys(_KINDS, absence) if absence is not None else {}
        if absence is None and CGROUPS in missing:
            lost = {"cgroup": missing[CGROUPS]}
        lost = {kind: why for kind, why in lost.items() if getattr(workload.namespaces, kind)}
        if lost:
            findings += _namespace_findings(workload, positions, lost)
            off: dict[str, Any] = dict.fromkeys(lost, False)
            spaces = attrs.evolve(workload.namespaces, **off)
            if not spaces.uts:
                spaces = attrs.evolve(spaces, hostname=None)
            if not spaces.time:
                spaces = attrs.evolve(spaces, time_offsets={})
            workload = attrs.evolve(workload, namespaces=spaces)
        workloads[name] = workload
    return attrs.evolve(config, workloads=workloads), findings


def _namespace_findings(
    workload: WorkloadConfig, positions: Positions, lost: Mapping[str, Absence | None]
) -> Iterator[Finding]:
    path: KeyPath = ("workload", workload.name)
    for kind, why in lost.items():
        key = (*path, "namespaces", kind)
        if key in positions:
            yield Finding(key, f"no new {kind} namespace here: {why}")
    for key, kind, is_given, is_refused in (
        ((*path, "namespaces", "hostname"), "uts", workload.namespaces.hostname is not None, False),
        ((*path, "namespaces", "time_offsets"), "time", bool(workload.namespaces.time_offsets), False),
        ((*path, "mounts"), "mount", bool(workload.mounts), True),
        ((*path, "root"), "mount", workload.root.is_own, True),
        ((*path, "volumes"), "mount", bool(workload.volumes), True),
        ((*path, "credentials"), "mount", bool(workload.credentials), True),
        ((*path, "user_namespace", "uid_mappings"), "user", bool(workload.user_namespace.uid_mappings), True),
        ((*path, "user_namespace", "gid_mappings"), "user", bool(workload.user_namespace.gid_mappings), True),
    ):
        if is_given and kind in lost:
            yield Finding(key, f"needs a new {kind} namespace: {lost[kind]}", is_refused)


def cgroup_findings(config: Config, absence: Absence) -> Iterator[Finding]:
    """Yield what rules ask of cgroups other than a file to read: freezing, and victims by their memory."""
    for path, rules in _all_rules(config):
        for number, rule in enumerate(rules):
            if "freeze" in (rule.action, *rule.then):
                key = "action" if rule.action == "freeze" else "then"
                yield Finding((*path, "policy", number, key), f"nothing can be frozen here: {absence}")
            victim = getattr(rule, "victim", None)
            if victim in _RANKED_BY_FILES:
                message = f'"{victim}" compares what cgroups count: {absence}'
                yield Finding((*path, "policy", number, "victim"), message)


def _all_rules(config: Config) -> Iterator[tuple[KeyPath, Sequence[Rule]]]:
    for name, workload in config.workloads.items():
        yield ("workload", name), workload.policy
    for name, group in config.groups.items():
        yield ("group", name), group.policy
    yield ("host",), config.host.policy


def without_requirements(config: Config, has_cgroups: bool) -> Config:
    """Return the configuration for "auto": a limit that cannot be enforced prevents no start.

    Without cgroups the rules that need them are left out. All that has been reported before.
    """

    def kept(rules: tuple[_RuleT, ...]) -> tuple[_RuleT, ...]:
        return rules if has_cgroups else tuple(rule for rule in rules if not needs_cgroups(rule))

    workloads = {
        name: attrs.evolve(
            workload, resources=attrs.evolve(workload.resources, required=False), policy=kept(workload.policy)
        )
        for name, workload in config.workloads.items()
    }
    groups: dict[str, GroupConfig] = {
        name: attrs.evolve(group, required=False, policy=kept(group.policy)) for name, group in config.groups.items()
    }
    host = attrs.evolve(config.host, policy=kept(config.host.policy))
    return attrs.evolve(config, workloads=workloads, groups=groups, host=host)


def needs_cgroups(rule: Rule) -> bool:
    """Return whether a rule reads a file of a cgroup, or does something that only a cgroup can."""
    return (
        any(atom.file not in NOT_FILES and not atom.file.startswith(HOST_PREFIX) for atom in rule.when.atoms)
        or "freeze" in (rule.action, *rule.then)
        or getattr(rule, "victim", None) in _RANKED_BY_FILES
    )
