"""What single values cannot show: that the parts of a configuration fit together.

`conflicts` also gets configurations with wrong values in them (None stands for a required one); the loader drops the
conflicts that touch a value which it has reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from nsupervisor.config.facts import LIMITS, NOT_FILES
from nsupervisor.config.kinds import LONGEST_SOCKET
from nsupervisor.config.limits import misfits
from nsupervisor.config.model import (
    Condition,
    Config,
    Group,
    GroupRule,
    IdMapping,
    Mount,
    Resources,
    Rule,
    Supervisor,
    Workload,
)
from nsupervisor.config.positions import Path
from nsupervisor.config.shown import did_you_mean, shown, shown_path
from nsupervisor.config.units import Relative, format_duration

ORDERING_KEYS = ("requires", "wants", "after")


class Conflict(NamedTuple):
    """What is wrong at a key path, and which other values take part in it."""

    path: Path
    message: str
    involves: tuple[Path, ...] = ()


def conflicts(config: Config) -> Iterator[Conflict]:
    """Everything that does not fit together."""
    yield from _supervisor(config.supervisor)
    yield from _references(config)
    yield from _cycles(config)
    yield from _log_files(config)
    yield from _membership(config)
    for name, workload in config.workloads.items():
        path: Path = ("workload", name)
        yield from _program(workload, path)
        yield from _namespaces(workload, path)
        yield from limit_conflicts(workload, path)
        for number, mount in enumerate(workload.mounts):
            yield from _mount(mount, (*path, "mounts", number))
        for number, rule in enumerate(workload.policy):
            yield from _rule(rule, path, number)
    for name, group in config.groups.items():
        yield from limit_conflicts(group, ("group", name))
        for number, rule in enumerate(group.policy):
            yield from _rule(rule, ("group", name), number)
            yield from _victim(rule, ("group", name, "policy", number))
    for number, rule in enumerate(config.host.policy):
        yield from _rule(rule, ("host",), number)
        yield from _victim(rule, ("host", "policy", number))
        yield from _rule_limit(rule, Resources(), ("host",), number)


def limit_conflicts(owner: Workload | Group, path: Path) -> Iterator[Conflict]:
    """What does not fit together in the resources of a workload or group, or between them and its rules."""
    place = path if isinstance(owner, Group) else (*path, "resources")
    for misfit in misfits(owner.resources):
        yield Conflict((*place, *misfit.key), misfit.message, tuple((*place, key) for key in misfit.involves))
    for number, rule in enumerate(owner.policy):
        yield from _rule_limit(rule, owner.resources, place, number, path)


def _supervisor(supervisor: Supervisor) -> Iterator[Conflict]:
    if supervisor.name == "supervisor":
        # On a unified hierarchy our own processes go to a leaf of this name beside the subtree.
        yield Conflict(
            ("supervisor", "name"), '"supervisor" is the cgroup of the supervisor itself; write another name'
        )
    socket = f"{supervisor.runtime_directory}/keeper.sock"
    if len(socket.encode()) > LONGEST_SOCKET:
        longest = LONGEST_SOCKET - len("/keeper.sock")
        yield Conflict(
            ("supervisor", "runtime_directory"),
            f"is too long for the sockets in it; write a path of at most {longest} bytes",
        )


def _references(config: Config) -> Iterator[Conflict]:
    for name, workload in config.workloads.items():
        for key in ORDERING_KEYS:
            for number, other in enumerate(getattr(workload, key)):
                if other in config.workloads:
                    continue
                instead = did_you_mean(other, config.workloads).removeprefix(", ") or "write the name of one"
                yield Conflict(
                    ("workload", name, key, number),
                    f"there is no workload {shown(other)}; {instead}",
                    (("workload", other),),
                )


def _cycles(config: Config) -> Iterator[Conflict]:
    """Each chain of requires, wants and after that leads back to its beginning, at the key that closes it."""
    edges = {
        name: [
            (key, number, other)
            for key in ORDERING_KEYS
            for number, other in enumerate(getattr(workload, key))
            if other in config.workloads
        ]
        for name, workload in config.workloads.items()
    }
    done: set[str] = set()
    waiting: set[str] = set()  # the members of the chain
    for root in edges:
        # Depth first with a stack of our own: a chain may be longer than Python's.
        chain = [root] if root not in done else []
        waiting.update(chain)
        remaining = [iter(edges[root])]
        while chain:
            for key, number, other in remaining[-1]:
                if other in waiting:
                    cycle = " → ".join([*chain[chain.index(other) :], other])
                    yield Conflict(
                        ("workload", chain[-1], key, number),
                        f"closes a circle, so that none of them could start: {cycle}; remove one of these",
                    )
                elif other not in done:
                    chain.append(other)
                    waiting.add(other)
                    remaining.append(iter(edges[other]))
                    break
            else:
                waiting.remove(chain[-1])
                done.add(chain.pop())
                remaining.pop()


def _log_files(config: Config) -> Iterator[Conflict]:
    """Each instance needs a file of its own: two that put the same one aside would lose lines."""
    users: dict[str, str] = {}
    for name, workload in config.workloads.items():
        if workload.log.path is None:
            continue
        path: Path = ("workload", name, "log", "path")
        if workload.instances > 1:
            yield Conflict(
                path,
                "would be the file of several instances; remove it: they have NAME@1.log, NAME@2.log, … in "
                "supervisor.log_directory",
                (("workload", name, "instances"),),
            )
        elif other := users.get(workload.log.path):
            message = f"{shown(workload.log.path)} is the file of workload {shown(other)}, too; write another one"
            yield Conflict(path, message, (("workload", other, "log", "path"),))
        users.setdefault(workload.log.path, name)


def _program(workload: Workload, path: Path) -> Iterator[Conflict]:
    if workload.command and not workload.command[0].strip():
        yield Conflict((*path, "command", 0), "the program's name is empty; write its name or path")
    if workload.restart_sec > workload.restart_max_delay_sec:
        yield Conflict(
            (*path, "restart_sec"),
            f"{format_duration(workload.restart_sec)} is more than restart_max_delay_sec "
            f"({format_duration(workload.restart_max_delay_sec)}); write a shorter time, or a longer one there",
            ((*path, "restart_max_delay_sec"),),
        )


def _namespaces(workload: Workload, path: Path) -> Iterator[Conflict]:
    spaces = workload.namespaces
    needs = (
        (spaces.hostname is not None, ("namespaces", "hostname"), "uts", spaces.uts),
        (bool(spaces.time_offsets), ("namespaces", "time_offsets"), "time", spaces.time),
        (bool(workload.mounts), ("mounts",), "mount", spaces.mount),
        (bool(workload.user_namespace.uid_mappings), ("user_namespace", "uid_mappings"), "user", spaces.user),
        (bool(workload.user_namespace.gid_mappings), ("user_namespace", "gid_mappings"), "user", spaces.user),
    )
    for given, key, namespace, new in needs:
        if given and not new:
            yield Conflict(
                (*path, *key),
                f"needs a {namespace} namespace of its own; write {namespace} = true under namespaces, or remove it",
                ((*path, "namespaces", namespace),),
            )
    for kind, mappings in (
        ("uid_mappings", workload.user_namespace.uid_mappings),
        ("gid_mappings", workload.user_namespace.gid_mappings),
    ):
        yield from _mappings(mappings, (*path, "user_namespace", kind))


def _mappings(mappings: tuple[IdMapping, ...], path: Path) -> Iterator[Conflict]:
    """user_namespaces(7): ranges must not overlap on either side, and at most 340 of them."""
    if len(mappings) > 340:
        yield Conflict(path, "has more ranges than the kernel takes; write at most 340")
    complete = [m for m in mappings if None not in (m.container_id, m.host_id, m.size)]
    for number, mapping in enumerate(mappings):
        if mapping in complete and max(mapping.container_id, mapping.host_id) + mapping.size > 2**32 - 1:
            yield Conflict((*path, number), "reaches past the largest id, 4294967294; write a smaller size")
    for side in ("container_id", "host_id"):
        ranges = sorted((getattr(m, side), m.size) for m in complete)
        for (first, size), (second, _) in pairwise(ranges):
            if first + size > second:
                yield Conflict(path, f"two ranges overlap at {side} {second}; write ranges that lie beside each other")
                break


def _mount(mount: Mount, path: Path) -> Iterator[Conflict]:
    if mount.type != "bind":
        return
    if mount.source is None:
        yield Conflict(
            (*path, "source"),
            'is missing; a bind mount needs it, or write another type, for example type = "tmpfs"',
            ((*path, "type"),),
        )
    elif not mount.source.startswith("/"):
        yield Conflict(
            (*path, "source"),
            f'{shown(mount.source)} is not an absolute path; write it from the root, for example "/srv/site"',
            ((*path, "type"),),
        )


def _rule(rule: Rule, workload_path: Path, number: int) -> Iterator[Conflict]:
    path: Path = (*workload_path, "policy", number)
    done = (rule.action, *rule.then)
    for action, key, given, example in (
        ("set", "set", bool(rule.set_), '{ memory_high = "+25%" }'),
        ("webhook", "webhook", rule.webhook is not None, '"http://127.0.0.1:9000/hook"'),
        ("notify", "notify", rule.notify is not None, '"/run/alerts.sock"'),
        ("signal", "signal", rule.signal is not None, '"SIGHUP"'),
        ("exec", "exec", bool(rule.exec_), '["/usr/local/bin/page-oncall"]'),
    ):
        both = ((*path, "action"), (*path, key))
        if action in done and not given:
            yield Conflict((*path, "action"), f'"{action}" does not say which; add for example {key} = {example}', both)
        if action not in done and given:
            yield Conflict((*path, key), f'is for action = "{action}" alone; write that action, or remove it', both)
    together = {"at_most": rule.at_most is not None, "within": rule.within > 0, "then": bool(rule.then)}
    until_its_bound = rule.action == "set" and rule.limit and rule.then  # which ends without a count
    if any(together.values()) and not all(together.values()) and not (until_its_bound and rule.at_most is None):
        absent = [key for key, given in together.items() if not given]
        there = next(key for key, given in together.items() if given)
        yield Conflict(
            (*path, there),
            f'goes together with {" and ".join(absent)}; write for example at_most = 3, within = "1h", then = "stop"',
            tuple((*path, key) for key in absent),
        )
    yield from _set(rule, path)
    condition = rule.when
    if condition is None:  # reported already
        return
    if condition.momentary and rule.for_ > 0:
        yield Conflict(
            (*path, "for"),
            f'is for levels, but "{condition.text}" is true for a moment only, because {_moment(condition)}; remove it',
            ((*path, "when"),),
        )


def _moment(condition: Condition) -> str:
    kinds = {atom.kind for atom in condition.atoms}
    if "counter" in kinds:
        return "it has a counter in it"
    return "it has a stall in it" if "stall" in kinds else "it has an exit in it"


def _set(rule: Rule, path: Path) -> Iterator[Conflict]:
    """Bounds, and what they are for."""
    for key in rule.limit:
        place = (*path, "limit", key)
        if key not in rule.set_:
            yield Conflict(
                place, f"is no bound of anything; write {key} under set too, or remove it", ((*path, "set", key),)
            )
        elif not isinstance(rule.set_[key], Relative):
            yield Conflict(
                place,
                f"{key} is set to one value, which needs no bound; remove it, or write a change under set: "
                f'{key} = "+25%"',
                ((*path, "set", key),),
            )


def _rule_limit(
    rule: Rule, resources: Resources, place: Path, number: int, owner: Path | None = None
) -> Iterator[Conflict]:
    """place: where the resources are; owner: where the policy is, if not there."""
    path: Path = (*(owner or place), "policy", number)
    for key, wanted in rule.set_.items():
        if isinstance(wanted, Relative) and key != "cpu_weight" and getattr(resources, key) is None:
            yield Conflict(
                (*path, "set", key),
                f"{wanted} of what? {key} is not set; set it under [{shown_path(place)}], or write a value",
                ((*place, key),),
            )
    if rule.when is None:  # reported already
        return
    for atom in rule.when.atoms:
        limit = LIMITS.get(atom.file) if atom.percent else None
        if limit is None or getattr(resources, limit) is not None:
            continue
        unit = "a size" if atom.file in ("memory.current",) else "a number"
        add = f"set {limit} under [{shown_path(place)}], or " if place != ("host",) else ""
        yield Conflict(
            (*path, "when"),
            f'"{atom.text}" is in per cent of {limit}, which is not set; {add}compare with {unit}',
            ((*place, limit),),
        )


_HARMLESS = ("log", "notify", "webhook", "exec")
"""Actions of a group's rule that are done to none of its members."""


def _victim(rule: GroupRule, path: Path) -> Iterator[Conflict]:
    actions = [action for action in (rule.action, *rule.then) if action is not None]
    if rule.victim is None and not {*actions} <= {*_HARMLESS}:
        action = next(action for action in actions if action not in _HARMLESS)
        yield Conflict(
            (*path, "action"),
            f'"{action}" does not say whom; add for example victim = "largest-memory"',
            ((*path, "victim"), (*path, "then")),
        )
    if rule.victim is not None and {*actions} <= {*_HARMLESS}:
        yield Conflict(
            (*path, "victim"),
            f'"{rule.action}" is done to none of them; remove it, or write another action, for example "kill"',
            ((*path, "action"), (*path, "then")),
        )

    for atom in rule.when.atoms if rule.when is not None else ():
        if atom.file in NOT_FILES:
            yield Conflict(
                (*path, "when"), f'"{atom.text}" is about one program, not about a group; write a rule of the workload'
            )


def _membership(config: Config) -> Iterator[Conflict]:
    """Groups that are not there, and groups that are in themselves."""
    members: list[tuple[Path, Workload | Group]] = [
        *((("workload", name), workload) for name, workload in config.workloads.items()),
        *((("group", name), group) for name, group in config.groups.items()),
    ]
    for path, member in members:
        if member.group is not None and member.group not in config.groups:
            there = did_you_mean(member.group, config.groups).removeprefix(", ")
            instead = there or f"write [group.{member.group}] with its limits, or remove it"
            yield Conflict((*path, "group"), f"there is no group {shown(member.group)}; {instead}", (("group",),))
    told: set[str] = set()
    for name in config.groups:
        chain = [name]
        while (outer := config.groups[chain[-1]].group) in config.groups and outer not in chain:
            chain.append(str(outer))
        if outer in chain and told.isdisjoint(chain):
            told.update(chain)
            cycle = " → ".join([*chain[chain.index(str(outer)) :], str(outer)])
            yield Conflict(
                ("group", chain[-1], "group"), f"closes a circle of groups: {cycle}; remove one of these", (("group",),)
            )
