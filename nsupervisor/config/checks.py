"""Conflicts between the values of a configuration, which no single value can show.

`find_conflicts` also receives configurations with wrong values in them (None stands for a required one); the loader
drops the conflicts that involve a value which it has reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from os.path import normpath
from typing import NamedTuple

import attrs

from nsupervisor.config import kinds
from nsupervisor.config.condition_terms import LIMIT_KEYS, NOT_FILES, PROBE
from nsupervisor.config.kinds import MAX_SOCKET_PATH
from nsupervisor.config.limits import find_resource_conflicts
from nsupervisor.config.model import (
    NOTIFY_TYPES,
    Condition,
    Config,
    GroupConfig,
    GroupRule,
    IdMapping,
    MountConfig,
    Resources,
    Rule,
    SocketConfig,
    SupervisorConfig,
    WorkloadConfig,
)
from nsupervisor.config.paths import find_path_conflicts
from nsupervisor.config.positions import KeyPath
from nsupervisor.config.probes import ASKING_KEYS, ReadinessConfig
from nsupervisor.config.quoting import did_you_mean, format_path, quoted
from nsupervisor.config.relations import COMPLETION_CONDITIONS, EDGE_KEYS, ORDERING_KEYS, RELATION_KEYS, related_names
from nsupervisor.config.security import DYNAMIC_USER_KEYS, STRONGER
from nsupervisor.config.sockets import find_socket_conflicts, overlap
from nsupervisor.config.timers import find_timer_conflicts
from nsupervisor.config.units import RelativeChange, format_address, format_duration
from nsupervisor.mount_data import VOLUME, value_paths

NOTIFY_PATH = "/notify/0123456789abcdef/socket"
WORKLOADS_API_PATH = "/notify/control/api/api.sock"
"""Sockets below the runtime directory: paths of their lengths."""
_PROCESS_ROOT = re.compile(r"^(/+proc/+(self|thread-self|[0-9]+)/+root(?=/|$))+")
"""Names of the root directory, proc_pid_root(5)."""


class Conflict(NamedTuple):
    """A conflict at a key path, and the other values that take part in it."""

    path: KeyPath
    message: str
    involved: tuple[KeyPath, ...] = ()
    shown: tuple[KeyPath, ...] = ()
    """Values whose lines end the message."""


def find_conflicts(config: Config) -> Iterator[Conflict]:
    """Find everything in a configuration that does not fit together."""
    yield from _supervisor_conflicts(config.supervisor)
    yield from _missing_references(config)
    yield from _condition_conflicts(config)
    yield from _cycles(config)
    yield from _relation_conflicts(config)
    yield from _shared_log_files(config)
    yield from _published_port_conflicts(config)
    yield from _name_conflicts(config)
    yield from _membership_conflicts(config)
    yield from _shared_addresses(config)
    for workload in config.workloads.values():
        if any(variant.timer != workload.timer for _, variant in workload.each_variant()):
            yield Conflict(("workload", workload.name, "timer"), "differs between instances; write one for all of them")
        if any(variant.paths != workload.paths for _, variant in workload.each_variant()):
            yield Conflict(("workload", workload.name, "paths"), "differ between instances; write them for all of them")
    for _, workload in config.each_variant():
        path: KeyPath = ("workload", workload.name)
        yield from _program_conflicts(workload, path)
        if workload.notify_access == "none" and workload.uses_notify_socket:
            text = 'is for a program without notifications, but it needs some; remove it, or write "main" or "all"'
            yield Conflict((*path, "notify_access"), text)
        yield from _probe_conflicts(workload, path)
        yield from _probe_rule_conflicts(workload, path)
        yield from _reload_conflicts(workload, path)
        yield from _hook_conflicts(workload, path)
        for key, message in find_timer_conflicts(workload.timer, workload.type, len(workload.instance_ids)):
            yield Conflict((*path, "timer", key) if key else (*path, "timer"), message)
        for socket_path, message in find_socket_conflicts(workload.sockets, config.supervisor.runtime_directory):
            yield Conflict((*path, "sockets", *socket_path), message)
        for trigger_path, message in _find_path_conflicts(workload, config):
            yield Conflict((*path, "paths", *trigger_path), message)
        yield from _namespace_conflicts(workload, path)
        yield from _join_conflicts(workload, path, config)
        yield from _root_conflicts(workload, path)
        yield from _security_conflicts(workload, path)
        yield from _dynamic_user_conflicts(workload, path)
        yield from _scheduling_conflicts(workload, path)
        yield from find_limit_conflicts(workload, path)
        yield from _socket_length_conflicts(workload, path, config.supervisor)
        for number, mount in enumerate(workload.mounts):
            yield from _mount_conflicts(mount, (*path, "mounts", number))
            yield from _runtime_directory_conflicts(mount, (*path, "mounts", number), config.supervisor)
        for number, rule in enumerate(workload.policy):
            yield from _rule_conflicts(rule, path, number)
    for name, group in config.groups.items():
        yield from find_limit_conflicts(group, ("group", name))
        for number, rule in enumerate(group.policy):
            yield from _rule_conflicts(rule, ("group", name), number)
            yield from _victim_conflicts(rule, ("group", name, "policy", number))
    for number, rule in enumerate(config.host.policy):
        yield from _rule_conflicts(rule, ("host",), number)
        yield from _victim_conflicts(rule, ("host", "policy", number))
        yield from _rule_limit_conflicts(rule, Resources(), ("host",), number)


def _find_path_conflicts(workload: WorkloadConfig, config: Config) -> Iterator[tuple[KeyPath, str]]:
    if workload.paths:
        can_reload = workload.signal_of_reload is not None or bool(workload.exec_reload)
        log_files = workload.own_log_files(config.supervisor.log_directory)
        yield from find_path_conflicts(workload.paths, workload.type, can_reload, log_files)


def _shared_addresses(config: Config) -> Iterator[Conflict]:
    """Check that no two workloads have sockets with the same address."""
    earlier: dict[str, list[tuple[SocketConfig, KeyPath]]] = {}
    for _, workload in config.each_variant():
        for number, socket in enumerate(workload.sockets):
            if not socket.listen_key:
                continue
            address = socket.address
            path: KeyPath = ("workload", workload.name, "sockets", number, socket.listen_key)
            users = earlier.setdefault(address.path or str(address.port), [])
            for other, other_path in users:
                if other_path[1] != workload.name and overlap(socket, other):
                    yield Conflict(
                        path,
                        f"is an address of workload {quoted(str(other_path[1]))}, too ({other.text}); write another",
                        (other_path,),
                    )
                    break
            users.append((socket, path))
            metrics = config.supervisor.metrics
            if metrics is not None and socket.type == "stream" and address.port == metrics[1]:
                own = SocketConfig(listen_stream=format_address(metrics))
                if overlap(socket, own):
                    yield Conflict(
                        path, "is the address of supervisor.metrics; write another one", (("supervisor", "metrics"),)
                    )


def find_limit_conflicts(owner: WorkloadConfig | GroupConfig, path: KeyPath) -> Iterator[Conflict]:
    """Find conflicts within the resources of a workload or group, and between them and its rules."""
    resources_path = path if isinstance(owner, GroupConfig) else (*path, "resources")
    for misfit in find_resource_conflicts(owner.resources):
        yield Conflict(
            (*resources_path, *misfit.key), misfit.message, tuple((*resources_path, key) for key in misfit.involved)
        )
    for number, rule in enumerate(owner.policy):
        yield from _rule_limit_conflicts(rule, owner.resources, resources_path, number, path)


def _supervisor_conflicts(supervisor: SupervisorConfig) -> Iterator[Conflict]:
    if supervisor.name == "supervisor":
        # On a unified hierarchy the supervisor's own processes run in a leaf of this name next to the
        # subtree.
        yield Conflict(
            ("supervisor", "name"), '"supervisor" is the cgroup of the supervisor itself; write another name'
        )
    socket = f"{supervisor.runtime_directory}/keeper.sock"
    if len(socket.encode()) > MAX_SOCKET_PATH:
        longest = MAX_SOCKET_PATH - len("/keeper.sock")
        yield Conflict(
            ("supervisor", "runtime_directory"),
            f"is too long for the sockets in it; write a path of at most {longest} bytes",
        )


def _socket_length_conflicts(
    workload: WorkloadConfig, path: KeyPath, supervisor: SupervisorConfig
) -> Iterator[Conflict]:
    """The sockets of some workloads are deeper in the runtime directory."""
    for key, is_needed, below in (
        ("type", workload.type in NOTIFY_TYPES, NOTIFY_PATH),
        ("watchdog_sec", bool(workload.watchdog_sec), NOTIFY_PATH),
        ("may_control", bool(workload.may_control), WORKLOADS_API_PATH),
    ):
        if is_needed and len(f"{supervisor.runtime_directory}{below}".encode()) > MAX_SOCKET_PATH:
            yield Conflict(
                (*path, key),
                "needs a socket whose path would be too long; set supervisor.runtime_directory to one of at most "
                f"{MAX_SOCKET_PATH - len(below)} bytes",
                (("supervisor", "runtime_directory"),),
            )


def _missing_references(config: Config) -> Iterator[Conflict]:
    for number, condition in enumerate(config.supervisor.exit_on):
        named, _, _ = condition.rpartition(" ")
        if named not in config.workloads and named != "all":
            instead = did_you_mean(named, config.workloads).removeprefix(", ") or "write the name of one"
            yield Conflict(("supervisor", "exit_on", number), f"there is no workload {quoted(named)}; {instead}")
    for name, workload in config.workloads.items():
        references = {key: related_names(workload, key) for key in RELATION_KEYS}
        for key, names in {**references, "may_control": workload.may_control}.items():
            for number, dependency in enumerate(names):
                if dependency in config.workloads:
                    continue
                instead = did_you_mean(dependency, config.workloads).removeprefix(", ") or "write the name of one"
                yield Conflict(
                    ("workload", name, key, number),
                    f"there is no workload {quoted(dependency)}; {instead}",
                    (("workload", dependency),),
                )


def _condition_conflicts(config: Config) -> Iterator[Conflict]:
    """Check that each condition can become true, and that a workload waits for another one in one way only."""
    for name, workload in config.workloads.items():
        first: dict[str, tuple[KeyPath, str]] = {}
        for key in EDGE_KEYS:
            for number, edge in enumerate(getattr(workload, key)):
                path: KeyPath = ("workload", name, key, number)
                other = config.workloads.get(edge.name)
                if edge.condition in COMPLETION_CONDITIONS and other is not None and other.type != "oneshot":
                    yield Conflict(
                        path,
                        f'waits until {edge.name} is complete, which only a program with type = "oneshot" is; write '
                        f'condition = "ready" or "started", or the type of {edge.name}',
                        (("workload", edge.name, "type"),),
                    )
                earlier_path, condition = first.setdefault(edge.name, (path, edge.condition))
                if condition != edge.condition:
                    yield Conflict(
                        path,
                        f"waits for {edge.name} with the condition {quoted(edge.condition)}, and "
                        f"{format_path(earlier_path[2:])} with {quoted(condition)}; keep one of the two",
                        (earlier_path,),
                    )


def _cycles(config: Config) -> Iterator[Conflict]:
    """Find each cycle of the ordering keys; report it at the key that closes it."""
    edges = {
        name: [
            (key, number, other)
            for key in ORDERING_KEYS
            for number, other in enumerate(related_names(workload, key))
            if other in config.workloads
        ]
        + [
            ("namespaces", kind, other)
            for kind, other in workload.namespaces.joined_workloads.items()
            if other in config.workloads
        ]
        for name, workload in config.workloads.items()
    }
    visited: set[str] = set()
    on_chain: set[str] = set()  # the members of the current chain
    taken: list[KeyPath] = []  # the edges between them
    for root in edges:
        # Depth first with an explicit stack: a chain may be longer than Python's recursion limit.
        chain = [root] if root not in visited else []
        on_chain.update(chain)
        remaining = [iter(edges[root])]
        while chain:
            for key, number, dependency in remaining[-1]:
                if dependency in on_chain:
                    begin = chain.index(dependency)
                    cycle = " → ".join([*chain[begin:], dependency])
                    path: KeyPath = ("workload", chain[-1], key, number)
                    yield Conflict(
                        path,
                        f"closes a cycle, so that none of them could start: {cycle}; remove one of these edges: ",
                        shown=(*taken[begin:], path),
                    )
                elif dependency not in visited:
                    taken.append(("workload", chain[-1], key, number))
                    chain.append(dependency)
                    on_chain.add(dependency)
                    remaining.append(iter(edges[dependency]))
                    break
            else:
                on_chain.remove(chain[-1])
                visited.add(chain.pop())
                if taken:
                    taken.pop()
                remaining.pop()


def _relation_conflicts(config: Config) -> Iterator[Conflict]:
    """Check `conflicts`, and that no workload names itself in a key that is not one of the order."""
    needs = {
        name: [other for key in ("requires", "binds_to", "wants", "upholds") for other in related_names(workload, key)]
        + list(workload.namespaces.joined_workloads.values())
        for name, workload in config.workloads.items()
    }
    at_boot = _reachable([name for name, workload in config.workloads.items() if workload.autostart], needs)
    for name, workload in config.workloads.items():
        for key in ("conflicts", "upholds", "on_failure", "on_success"):
            for number, other in enumerate(related_names(workload, key)):
                path: KeyPath = ("workload", name, key, number)
                if other == name:
                    yield Conflict(path, "is the workload itself; write the name of another one")
                elif key == "conflicts" and (needed_by := _needing(name, other, needs)):
                    yield Conflict(
                        path,
                        f"{needed_by[0]} needs {needed_by[1]}, so the two must be able to run together; remove one of "
                        "these",
                    )
                elif key == "conflicts" and name in at_boot and other in at_boot:
                    yield Conflict(
                        path,
                        f"{name} and {other} would both start with the supervisor; write autostart = false for one of "
                        "them, and for all that need it",
                        (("workload", name, "autostart"), ("workload", other, "autostart")),
                    )


def _needing(name: str, other: str, needs: dict[str, list[str]]) -> tuple[str, str] | None:
    """Return which of two workloads needs the other one, directly or not, first; None if neither does."""
    for needing, needed in ((name, other), (other, name)):
        if needed in _reachable([needing], needs):
            return needing, needed
    return None


def _reachable(names: list[str], edges: dict[str, list[str]]) -> set[str]:
    """Return the names, and all that the edges lead to; names without edges of their own are left out."""
    reached: set[str] = set()
    queue = [name for name in names if name in edges]
    while queue:
        name = queue.pop()
        if name not in reached:
            reached.add(name)
            queue += [other for other in edges[name] if other in edges]
    return reached


_SPECIAL_DIRECTORIES = ("/dev/", "/proc/", "/sys/")
_ROTATED = re.compile(r"(?P<base>.+)\.[0-9]+(\.gz)?")
"""The name of a rotated file (`nsupervisor.logs.log_file`)."""
_OWN_STREAM = re.compile(r"/dev/(?P<name>stdout|stderr)|(?:/dev|/proc/self)/fd/(?P<fd>[0-9]+)")
_FILE = ("file", "both")


def _shared_log_files(config: Config) -> Iterator[Conflict]:
    """Check that each instance has a log file of its own: two instances that rotate one file would lose lines.

    Paths are compared as the kernel would read them without links; a link to another's file is refused when it is
    opened.
    """
    users = _default_log_files(config)
    for instance, workload in config.each_variant():
        name = workload.name
        keys = [key for key in ("path", "stdout_path", "stderr_path") if getattr(workload.log, key) is not None]
        own = {
            _absolute(getattr(workload.log, key)): _FileUser(f"log.{key}", ("workload", name, "log", key))
            for key in reversed(keys)
        }
        for key in keys:
            value = getattr(workload.log, key)
            path: KeyPath = ("workload", name, "log", key)
            file = _absolute(value)
            rotated = _ROTATED.fullmatch(file)
            if file.startswith(_SPECIAL_DIRECTORIES):
                yield Conflict(path, _no_place(file, key), ())
            elif instance is None and len(workload.instance_ids) > 1:
                yield Conflict(
                    path,
                    "would be the file of several instances; remove it: they have NAME@1.log, NAME@2.log, … in "
                    'supervisor.log_directory; or write "{instance}" in it, with expand = true',
                    (("workload", name, "instances"),),
                )
            elif user := users.get(file):
                message = f"{quoted(value)} is the file of {user.description}, too; write another one"
                yield Conflict(path, message, (user.key,))
            elif rotated and (user := users.get(rotated["base"]) or own.get(rotated["base"])):
                rotation = f"when the file of {user.description} is rotated"
                message = f"{quoted(value)} would be overwritten {rotation}; write another one"
                yield Conflict(path, message, (user.key,))
            elif (stream := key.removesuffix("_path")) != "path" and getattr(workload.log, stream) not in _FILE:
                yield Conflict(
                    path,
                    f'has no effect without {stream} = "file"; add that, or remove this',
                    (("workload", name, "log", stream),),
                )
        for file, user in own.items():
            users.setdefault(file, _FileUser(f"workload {quoted(workload.instance_name(instance))}", user.key))


def _no_place(file: str, key: str) -> str:
    """Explain that a device is no log file. Standard output and standard error can be had otherwise."""
    if own := _OWN_STREAM.fullmatch(file):
        stream = own["name"] or {"1": "stdout", "2": "stderr"}.get(own["fd"], "")
        if stream:
            source = key.removesuffix("_path") if key != "path" else stream
            return f'{quoted(file)} is no place for a log file; write {source} = "inherit" for the bytes as they are'
    return f'{quoted(file)} is no place for a log file; write stdout = "journal" for the stream of records'


def _absolute(path: str) -> str:
    """Return an absolute path in its shortest spelling; `normpath` keeps two slashes at the front, as POSIX allows."""
    return "/" + normpath(path).lstrip("/")


class _FileUser(NamedTuple):
    description: str
    key: KeyPath


def _default_log_files(config: Config) -> dict[str, _FileUser]:
    """Return the log files whose paths are not given by `log.path`, and the file of the stream of records."""
    users = {}
    output, directory = config.supervisor.log_output, config.supervisor.log_directory
    if isinstance(output, str) and output.startswith("/"):
        users[_absolute(output)] = _FileUser("supervisor.log_output", ("supervisor", "log_output"))
    for name, workload in config.workloads.items():
        if None in workload.log.file_keys().values():
            user = _FileUser(f"workload {quoted(name)}", ("workload", name, "log"))
            for instance in workload.instance_ids:
                file = _absolute(f"{directory}/{workload.instance_name(instance)}.log")
                users.setdefault(file, user)
    return users


def _program_conflicts(workload: WorkloadConfig, path: KeyPath) -> Iterator[Conflict]:
    if workload.command and not workload.command[0].strip():
        yield Conflict((*path, "command", 0), "the program's name is empty; write its name or path")
    if workload.restart_sec > workload.restart_max_delay_sec:
        yield Conflict(
            (*path, "restart_sec"),
            f"{format_duration(workload.restart_sec)} is more than restart_max_delay_sec "
            f"({format_duration(workload.restart_max_delay_sec)}); write a shorter time, or a longer one there",
            ((*path, "restart_max_delay_sec"),),
        )

    if workload.type == "oneshot" and workload.restart in ("always", "on-success"):
        yield Conflict(
            (*path, "restart"),
            f'"{workload.restart}" would run a oneshot again each time that it is done, so it would never be; '
            'write "on-failure", or type = "simple"',
            ((*path, "type"),),
        )
    if workload.type == "oneshot" and workload.min_ready_sec:
        text = "is for programs that keep running; the start of a oneshot is complete when it exits; remove it"
        yield Conflict((*path, "min_ready_sec"), text, ((*path, "type"),))
    yield from _daemon_conflicts(workload, path)


def _daemon_conflicts(workload: WorkloadConfig, path: KeyPath) -> Iterator[Conflict]:
    """Find contradictions of `type = "forking"`, `pid_file` and `exit_type = "cgroup"`."""
    is_forking, type_ = workload.type == "forking", ((*path, "type"),)
    if is_forking and workload.pid_file is None:
        text = '"forking" needs pid_file, the file in which the daemon writes its pid; or run it in the '
        yield Conflict((*path, "type"), text + 'foreground with type = "simple"')
    if workload.pid_file is not None and not is_forking:
        yield Conflict((*path, "pid_file"), 'is for type = "forking"; write that, or remove it', type_)
    if workload.pid_file is not None and workload.root.path is not None:
        text = "is a file of the host, and its root file system is another one; run the program in the foreground"
        yield Conflict((*path, "pid_file"), text, ((*path, "root", "path"),))
    if is_forking and workload.watchdog_sec:
        text = 'is for a program that sends messages from its start on; remove it, or write type = "notify"'
        yield Conflict((*path, "watchdog_sec"), text, type_)
    if workload.exit_type == "cgroup" and workload.type == "oneshot":
        text = '"cgroup" is for programs that keep running; remove it, or write type = "simple"'
        yield Conflict((*path, "exit_type"), text, type_)
    if workload.kill_mode == "process" and workload.exit_type == "cgroup":
        text = '"process" ends the program alone, and with this exit_type other processes replace it; remove one'
        yield Conflict((*path, "kill_mode"), text, ((*path, "exit_type"),))
    if workload.kill_mode == "process" and workload.namespaces.pid:
        text = '"process" leaves processes, and with them their PID namespace; write namespaces = { pid = false }'
        yield Conflict((*path, "kill_mode"), text, ((*path, "namespaces", "pid"),))
    follows_others = is_forking or workload.exit_type == "cgroup"
    if follows_others and workload.namespaces.pid and not workload.init:
        text = "in a PID namespace without an init all processes end with the first; write init = true"
        yield Conflict((*path, "init"), text, (*type_, (*path, "exit_type")))
    for kind in workload.probes if follows_others else ():
        key = "type" if is_forking else "exit_type"
        text = f"is about the program, and with this {key} other processes replace it; remove one of them"
        yield Conflict((*path, kind), text, ((*path, key),))


def _reload_conflicts(workload: WorkloadConfig, path: KeyPath) -> Iterator[Conflict]:
    if workload.type == "oneshot" and workload.reload_signal is not None:
        yield Conflict((*path, "reload_signal"), "is for programs that keep running; remove it", ((*path, "type"),))
    if not workload.exec_reload:
        return
    if workload.type == "oneshot":
        yield Conflict((*path, "exec_reload"), "is for programs that keep running; remove it", ((*path, "type"),))
    elif workload.signal_of_reload is not None:
        involved = "type" if workload.type == "notify-reload" else "reload_signal"
        yield Conflict(
            (*path, "exec_reload"),
            "and a signal both have the program reload; write one of them",
            ((*path, involved),),
        )


def _hook_conflicts(workload: WorkloadConfig, path: KeyPath) -> Iterator[Conflict]:
    if workload.exec_start_post and workload.type == "oneshot":
        text = "is for programs that keep running; use a second workload that requires this one"
        yield Conflict((*path, "exec_start_post"), text, ((*path, "type"),))
    if workload.exec_stop and workload.type == "oneshot":
        yield Conflict(
            (*path, "exec_stop"), "is for programs that keep running; use exec_stop_post", ((*path, "type"),)
        )
    if workload.kill_mode == "process":
        for name in ("exec_condition", "exec_start_pre", "exec_start_post", "exec_stop", "exec_stop_post"):
            if getattr(workload, name):
                text = "leaves nothing behind, and this kill_mode leaves processes in its cgroup; remove one of them"
                yield Conflict((*path, name), text, ((*path, "kill_mode"),))
    for name in ("exec_condition", "exec_start_pre", "exec_stop_post"):
        if not getattr(workload, name):
            continue
        if not workload.namespaces.pid:
            text = "runs without the program, and needs a PID namespace that ends what it leaves; set pid = true"
            yield Conflict((*path, name), text, ((*path, "namespaces", "pid"),))
        if workload.namespaces.joined:
            kinds_ = ", ".join(sorted(workload.namespaces.joined))
            text = f"runs without the program, and cannot join namespaces ({kinds_}); use a workload of its own"
            yield Conflict((*path, name), text, ((*path, "namespaces"),))


def _probe_conflicts(workload: WorkloadConfig, path: KeyPath) -> Iterator[Conflict]:
    for kind, probe in workload.probes.items():
        table = (*path, kind)
        ways: dict[str, object] = {
            "http_get": probe.http_get,
            "tcp_socket": probe.tcp_socket,
            "exec": probe.exec_ or None,
        }
        if isinstance(probe, ReadinessConfig):
            ways |= {"log": probe.log, "fd": probe.fd}
        given = [way for way, value in ways.items() if value is not None]
        if len(given) != 1:
            number = "several" if given else "none"
            *others, last = ways
            yield Conflict(table, f"has {number} of {', '.join(others)} and {last}; write one of them")
        elif isinstance(probe, ReadinessConfig) and probe.is_own_report:
            yield from _own_report_conflicts(workload, probe, given[0], path)
        if probe.success_threshold > 1 and kind != "readiness":
            yield Conflict((*table, "success_threshold"), f"is 1 for {kind}: one success is enough; remove it")
        if workload.type == "oneshot":
            yield Conflict(table, "is for programs that keep running; remove it", ((*path, "type"),))
        elif workload.type in NOTIFY_TYPES and kind != "liveness":
            yield Conflict(
                table,
                f'and type = "{workload.type}" both say when it is ready; remove one of them',
                ((*path, "type"),),
            )
        if kind != "liveness" and probe.initial_delay_sec >= workload.timeout_start_sec:
            yield Conflict(
                (*table, "initial_delay_sec"),
                f"is not less than timeout_start_sec ({format_duration(workload.timeout_start_sec)}), so it could not "
                "be ready in time; write a shorter delay, or a longer time there",
                ((*path, "timeout_start_sec"),),
            )


def _probe_rule_conflicts(workload: WorkloadConfig, path: KeyPath) -> Iterator[Conflict]:
    """Check that the workload has the probes that its rules read."""
    for number, rule in enumerate(workload.policy):
        for atom in rule.when.atoms if rule.when is not None else ():
            kind = (atom.key or "").partition(" ")[0]
            if atom.file == PROBE and kind not in workload.probes:
                text = f'"{atom.text}" is about a probe that it does not have; add the table {kind}'
                yield Conflict((*path, "policy", number, "when"), text, ((*path, kind),))


def _own_report_conflicts(
    workload: WorkloadConfig, probe: ReadinessConfig, way: str, path: KeyPath
) -> Iterator[Conflict]:
    """Check a readiness that the program itself reports, by a line of its output or a newline on a descriptor."""
    table = (*path, "readiness")
    fields = attrs.fields_dict(ReadinessConfig)
    for key in ASKING_KEYS:
        if getattr(probe, key) != fields[key].default:
            text = (
                f"is for probes that are sent again and again, and {way} waits for what the program writes; remove it"
            )
            yield Conflict((*table, key), text, ((*table, way),))
    first_free = 3 + len(workload.sockets) + workload.file_descriptor_store_max
    if probe.fd is not None and probe.fd < first_free:
        text = f"may be the number of one of its sockets or stored descriptors; write {first_free} or more"
        yield Conflict((*table, "fd"), text, ((*path, "sockets"), (*path, "file_descriptor_store_max")))
    if workload.startup is not None:
        text = (
            f"and readiness.{way} both say when it has started; remove one of them (timeout_start_sec limits a start)"
        )
        yield Conflict((*path, "startup"), text, ((*table, way),))


def _namespace_conflicts(workload: WorkloadConfig, path: KeyPath) -> Iterator[Conflict]:
    spaces = workload.namespaces
    requirements = (
        (spaces.hostname is not None, ("namespaces", "hostname"), "uts", spaces.uts is True),
        (bool(spaces.time_offsets), ("namespaces", "time_offsets"), "time", spaces.time),
        (bool(workload.mounts), ("mounts",), "mount", spaces.mount),
        (workload.root.is_own, ("root",), "mount", spaces.mount),
        (bool(workload.volumes), ("volumes",), "mount", spaces.mount),
        (bool(workload.credentials), ("credentials",), "mount", spaces.mount),
        (bool(workload.user_namespace.uid_mappings), ("user_namespace", "uid_mappings"), "user", spaces.user),
        (bool(workload.user_namespace.gid_mappings), ("user_namespace", "gid_mappings"), "user", spaces.user),
    )
    for is_given, key, namespace, is_new in requirements:
        if is_given and not is_new:
            yield Conflict(
                (*path, *key),
                f"needs a {namespace} namespace of its own; write {namespace} = true under namespaces, or remove it",
                ((*path, "namespaces", namespace),),
            )
    for kind in spaces.joined if spaces.user else ():
        yield Conflict(
            (*path, "namespaces", kind),
            "cannot be entered by a program in a user namespace of its own, which has no privilege over it; write "
            "user = false under namespaces, or a namespace of its own (true)",
            ((*path, "namespaces", "user"),),
        )
    for kind, mappings in (
        ("uid_mappings", workload.user_namespace.uid_mappings),
        ("gid_mappings", workload.user_namespace.gid_mappings),
    ):
        yield from _mapping_conflicts(mappings, (*path, "user_namespace", kind))


def _join_conflicts(workload: WorkloadConfig, path: KeyPath, config: Config) -> Iterator[Conflict]:
    """Check that each workload whose namespace is joined has exactly one, for as long as it runs."""
    for kind, name in workload.namespaces.joined_workloads.items():
        key, other = (*path, "namespaces", kind), config.workloads.get(name)
        own = ("workload", name, "namespaces", kind)
        if other is None:
            instead = did_you_mean(name, config.workloads).removeprefix(", ") or "write the name of one"
            yield Conflict(key, f"there is no workload {quoted(name)}; {instead}", (("workload", name),))
        elif name != workload.name and not getattr(other.namespaces, kind):
            yield Conflict(
                key,
                f"{name} uses the {kind} namespace of the supervisor; write {kind} = true under its namespaces, or "
                f"{kind} = false here",
                (own,),
            )
        elif other.instance_ids != (None,):
            yield Conflict(
                key,
                f"{name} has instances, each with a namespace of its own; join that of a workload without instances",
                (("workload", name, "instances"),),
            )
        elif other.type == "oneshot":
            yield Conflict(
                key,
                f"{name} is a oneshot, whose namespace ends with its program; join that of a workload that keeps "
                "running",
                (("workload", name, "type"),),
            )


def _published_port_conflicts(config: Config) -> Iterator[Conflict]:
    """Check that each port of the host leads to one instance, and that there is a network that can publish it."""
    users: dict[tuple[int, str], list[tuple[str, KeyPath]]] = {}
    for instance, workload in config.each_variant():
        table: KeyPath = ("workload", workload.name, "network", "publish")
        if workload.network.publish and not workload.namespaces.cni_network:
            yield Conflict(
                table,
                'needs a network that plugins set up; write network = "cni:default" under namespaces, or remove it',
                (("workload", workload.name, "namespaces", "network"),),
            )
        if workload.network.bandwidth_max is not None and not workload.namespaces.cni_network:
            yield Conflict(
                ("workload", workload.name, "network", "bandwidth_max"),
                'needs a network that plugins set up; write network = "cni:default" under namespaces, or remove it',
                (("workload", workload.name, "namespaces", "network"),),
            )
        for number, port in enumerate(workload.network.publish):
            path: KeyPath = (*table, number)
            if instance is None and len(workload.instance_ids) > 1:
                yield Conflict(
                    path,
                    "would be the port of several instances; publish it for a workload with one instance, or write "
                    '"{instance}" in it, with expand = true',
                    (("workload", workload.name, "instances"),),
                )
            known = users.setdefault((port.host_port, port.protocol), [])
            for host, other in known:
                if host == port.host or not host or not port.host:
                    yield Conflict(path, f"{quoted(str(port))} is published before, by {format_path(other)}", (other,))
                    break
            known.append((port.host, path))


_MAX_SERVERS = 3
"""MAXNS of resolv.conf(5): a program would not ask others."""
MAX_HOSTS = 10_000


def _name_conflicts(config: Config) -> Iterator[Conflict]:
    """Check that a program can have the files /etc/hosts and /etc/resolv.conf that its keys ask for."""
    for _, workload in config.each_variant():
        path: KeyPath = ("workload", workload.name, "network")
        dns, hosts = workload.network.dns, workload.network.hosts
        if len(dns.servers) > _MAX_SERVERS:
            yield Conflict(
                (*path, "dns", "servers"), f"has more than {_MAX_SERVERS} servers, and programs use no others"
            )
        if len(hosts) > MAX_HOSTS:
            yield Conflict((*path, "hosts"), f"has more than {MAX_HOSTS:,} names; use a name server (network.dns)")
        for name, file, is_written in (
            ("dns", "/etc/resolv.conf", bool(dns.servers or dns.search or dns.options)),
            ("hosts", "/etc/hosts", bool(hosts)),
        ):
            if not is_written:
                continue
            namespaces: KeyPath = ("workload", workload.name, "namespaces")
            if not workload.namespaces.mount:
                yield Conflict(
                    (*path, name), "needs a mount namespace; remove mount = false, or this", ((*namespaces, "mount"),)
                )
            if joined := workload.namespaces.joined_workloads.get("network"):
                text = f"is for the workload whose network it is; write it for {joined}, whose files this one sees"
                yield Conflict((*path, name), text, ((*namespaces, "network"),))
            if any(mount.destination == file for mount in workload.mounts):
                yield Conflict(
                    (*path, name),
                    f"and a mount on {file} are two files; remove one",
                    (("workload", workload.name, "mounts"),),
                )


def _root_conflicts(workload: WorkloadConfig, path: KeyPath) -> Iterator[Conflict]:
    root = workload.root
    if root.path is not None and root.image is not None:
        yield Conflict(
            (*path, "root", "image"), "and path are two roots; remove one of them", ((*path, "root", "path"),)
        )
    if any("image" in differences.get("root", ()) for differences in workload.variants.values()):
        yield Conflict((*path, "root", "image"), "is the same for all instances; write a workload for each image")
    if root.path is None and root.image is not None:
        return
    if root.path is None:
        for name, is_given in (("readonly", root.readonly), ("overlay", root.overlay)):
            if is_given:
                yield Conflict(
                    (*path, "root", name),
                    "is about a root of its own; write root.path, or leave it out",
                    ((*path, "root", "path"),),
                )
    elif normpath(_PROCESS_ROOT.sub("", root.path) or "/") in ("/", "//"):
        yield Conflict((*path, "root", "path"), "is the root of the host; leave root out, or write another directory")


def _scheduling_conflicts(workload: WorkloadConfig, path: KeyPath) -> Iterator[Conflict]:
    if workload.cpu_scheduling_priority is not None and workload.cpu_scheduling_policy not in ("fifo", "rr"):
        yield Conflict(
            (*path, "cpu_scheduling_priority"),
            'is for real-time policies; write cpu_scheduling_policy = "fifo" or "rr", or remove it',
            ((*path, "cpu_scheduling_policy"),),
        )
    if workload.io_scheduling_priority is not None and workload.io_scheduling_class in (None, "idle"):
        yield Conflict(
            (*path, "io_scheduling_priority"),
            'is for classes with priorities; write io_scheduling_class = "best-effort" or "realtime", or remove it',
            ((*path, "io_scheduling_class"),),
        )


def _security_conflicts(workload: WorkloadConfig, path: KeyPath) -> Iterator[Conflict]:
    security, table = workload.security, (*path, "security")
    bounding, ambient = security.capability_bounding_set, security.ambient_capabilities
    if bounding and len({word[0] in "+-" for word in bounding}) > 1:
        yield Conflict(
            (*table, "capability_bounding_set"),
            'has names with and without "+" or "-"; write either all capabilities, or changes of those of the profile',
        )
    elif bounding is not None and "ALL" not in bounding and not any(word[0] in "+-" for word in bounding):
        for number, name in enumerate(ambient or ()):
            if name not in bounding:
                yield Conflict(
                    (*table, "ambient_capabilities", number),
                    f"{quoted(name)} is not in capability_bounding_set; add it there, or remove it",
                    ((*table, "capability_bounding_set"),),
                )
    if security.protect_control_groups == "strict" and not workload.namespaces.cgroup:
        yield Conflict(
            (*table, "protect_control_groups"),
            '"strict" shows the cgroup namespace of the program, which it does not have; write true',
            ((*path, "namespaces", "cgroup"),),
        )
    if security.landlock is not None and security.no_new_privileges is False:
        yield Conflict(
            (*table, "landlock"),
            "needs no_new_privileges, as a set-user-id program would get privileges else; remove one of both",
            ((*table, "no_new_privileges"),),
        )
    families = security.restrict_address_families or ()
    if len({word.startswith("~") for word in families}) > 1 or ("none" in families and len(families) > 1):
        yield Conflict(
            (*table, "restrict_address_families"),
            'mixes families that are allowed with others; write names only, names with "~" only, or ["none"]',
        )


def _dynamic_user_conflicts(workload: WorkloadConfig, path: KeyPath) -> Iterator[Conflict]:
    if not workload.dynamic_user:
        return
    own = (*path, "dynamic_user")
    if workload.user is not None:
        yield Conflict(own, "gives it a user of its own, and so does user; remove one of both", ((*path, "user"),))
    if workload.namespaces.user:
        message = "is for programs without a user namespace, which has ids of its own; remove one of both"
        yield Conflict(own, message, ((*path, "namespaces", "user"),))
    for key, value in DYNAMIC_USER_KEYS.items():
        written = getattr(workload.security, key)
        if written not in (None, value, *STRONGER.get(key, ())):
            yield Conflict(
                (*path, "security", key),
                f"is weaker than what dynamic_user sets ({quoted(value)}), so files might outlive its user; remove it",
                (own,),
            )


def _mapping_conflicts(mappings: tuple[IdMapping, ...], path: KeyPath) -> Iterator[Conflict]:
    """Check the rules of user_namespaces(7): no overlap on either side, and at most 340 ranges."""
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
                yield Conflict(path, f"two ranges overlap at {side} {second}; write ranges that do not overlap")
                break


def _runtime_directory_conflicts(mount: MountConfig, path: KeyPath, supervisor: SupervisorConfig) -> Iterator[Conflict]:
    """The sockets of the service are in that directory, so no mount may show it.

    Only names are compared. A link to it, and a directory above it as a layer of an overlay, are found at the start.
    """
    if not isinstance(supervisor.runtime_directory, str):
        return
    directory = normpath(supervisor.runtime_directory)
    involved = (("supervisor", "runtime_directory"),)
    is_bind = mount.type == "bind" or not {"bind", "rbind"}.isdisjoint(mount.options or ())
    if is_bind and mount.source is not None and _is_within(mount.source, directory):
        yield Conflict(
            (*path, "source"),
            f"{quoted(mount.source)} is the supervisor's runtime directory, or in it, which workloads may not see; "
            "remove the mount, or use may_control to let the workload use the API",
            involved,
        )
    for number, option in enumerate(() if is_bind else mount.options or ()):
        for layer in value_paths(option):
            if _is_within(layer, directory):
                yield Conflict(
                    (*path, "options", number),
                    f"{quoted(layer)} is the supervisor's runtime directory, or in it, which workloads may not see; "
                    "remove it from the layers",
                    involved,
                )
    hides_it = mount.type != "tmpfs" or is_bind  # in a tmpfs the sockets of the workload are made
    if mount.destination is not None and hides_it and normpath(mount.destination) == directory:
        yield Conflict(
            (*path, "destination"),
            f"{quoted(mount.destination)} is the supervisor's runtime directory, where a workload sees its own sockets "
            "only; write another place",
            involved,
        )
    if mount.destination is not None and _is_within(mount.destination, directory, itself=False):
        yield Conflict(
            (*path, "destination"),
            f"{quoted(mount.destination)} is in the supervisor's runtime directory, which is hidden from workloads; "
            "write another place",
            involved,
        )


def _is_within(place: str, directory: str, itself: bool = True) -> bool:
    place = normpath(_PROCESS_ROOT.sub("", place))
    return place.startswith(f"{directory}/") or (itself and place == directory)


def _mount_conflicts(mount: MountConfig, path: KeyPath) -> Iterator[Conflict]:
    if mount.type == VOLUME:
        try:
            kinds.NAME.load(mount.source)
        except ValueError:
            yield Conflict(
                (*path, "source"),
                'is not the name of a volume; write letters, digits, "-" and "_", for example "data"',
                ((*path, "type"),),
            )
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
            f'{quoted(mount.source)} is not an absolute path; write it from the root, for example "/srv/site"',
            ((*path, "type"),),
        )


def _rule_conflicts(rule: Rule, workload_path: KeyPath, number: int) -> Iterator[Conflict]:
    path: KeyPath = (*workload_path, "policy", number)
    actions = (rule.action, *rule.then)
    webhook = rule.webhook if rule.webhook is not None else rule.webhook_file
    for action, key, is_given, example in (
        ("set", "set", bool(rule.set_), '{ memory_high = "+25%" }'),
        ("webhook", "webhook", webhook is not None, '"http://127.0.0.1:9000/hook"'),
        ("notify", "notify", rule.notify is not None, '"/run/alerts.sock"'),
        ("signal", "signal", rule.signal is not None, '"SIGHUP"'),
        ("exec", "exec", bool(rule.exec_), '["/usr/local/bin/page-oncall"]'),
    ):
        involved = ((*path, "action"), (*path, key))
        if action in actions and not is_given:
            yield Conflict(
                (*path, "action"), f'"{action}" does not say which; add for example {key} = {example}', involved
            )
        if action not in actions and is_given:
            key = "webhook_file" if key == "webhook" and rule.webhook is None else key
            yield Conflict((*path, key), f'is for action = "{action}" alone; write that action, or remove it', involved)
    if rule.webhook is not None and rule.webhook_file is not None:
        yield Conflict((*path, "webhook_file"), "is there next to webhook; write one of the two", ((*path, "webhook"),))
    escalation_keys = {"at_most": rule.at_most is not None, "within": rule.within > 0, "then": bool(rule.then)}
    until_its_bound = rule.action == "set" and rule.limit and rule.then  # which ends without a count
    if (
        any(escalation_keys.values())
        and not all(escalation_keys.values())
        and not (until_its_bound and rule.at_most is None)
    ):
        absent = [key for key, is_given in escalation_keys.items() if not is_given]
        present_key = next(key for key, is_given in escalation_keys.items() if is_given)
        yield Conflict(
            (*path, present_key),
            f'goes together with {" and ".join(absent)}; write for example at_most = 3, within = "1h", then = "stop"',
            tuple((*path, key) for key in absent),
        )
    yield from _set_conflicts(rule, path)
    condition = rule.when
    if condition is None:  # reported already
        return
    if condition.is_momentary and rule.for_ > 0:
        yield Conflict(
            (*path, "for"),
            f'is for levels, but "{condition.text}" is true for a moment only, '
            f"because {_momentary_reason(condition)}; remove it",
            ((*path, "when"),),
        )


def _momentary_reason(condition: Condition) -> str:
    kinds = {atom.kind for atom in condition.atoms}
    if "counter" in kinds:
        return "it has a counter in it"
    return "it has a stall in it" if "stall" in kinds else "it has an exit in it"


def _set_conflicts(rule: Rule, path: KeyPath) -> Iterator[Conflict]:
    """Check that each bound under `limit` belongs to a relative change under `set`."""
    for key in rule.limit:
        limit_path = (*path, "limit", key)
        if key not in rule.set_:
            yield Conflict(
                limit_path, f"is no bound of anything; write {key} under set too, or remove it", ((*path, "set", key),)
            )
        elif not isinstance(rule.set_[key], RelativeChange):
            yield Conflict(
                limit_path,
                f"{key} is set to one value, which needs no bound; remove it, or write a change under set: "
                f'{key} = "+25%"',
                ((*path, "set", key),),
            )


def _rule_limit_conflicts(
    rule: Rule, resources: Resources, resources_path: KeyPath, number: int, policy_path: KeyPath | None = None
) -> Iterator[Conflict]:
    """Check a rule's relative changes and percentages against the limits that they refer to.

    resources_path: path of the resources. policy_path: path of the table with the policy, if it is another one.
    """
    path: KeyPath = (*(policy_path or resources_path), "policy", number)
    for key, target in rule.set_.items():
        if isinstance(target, RelativeChange) and key != "cpu_weight" and getattr(resources, key) is None:
            yield Conflict(
                (*path, "set", key),
                f"{target} of what? {key} is not set; set it under [{format_path(resources_path)}], or write a value",
                ((*resources_path, key),),
            )
    if rule.when is None:  # reported already
        return
    for atom in rule.when.atoms:
        limit = LIMIT_KEYS.get(atom.file) if atom.is_percent else None
        if limit is None or getattr(resources, limit) is not None:
            continue
        unit = "a size" if atom.file in ("memory.current",) else "a number"
        suggestion = f"set {limit} under [{format_path(resources_path)}], or " if resources_path != ("host",) else ""
        yield Conflict(
            (*path, "when"),
            f'"{atom.text}" is in per cent of {limit}, which is not set; {suggestion}compare with {unit}',
            ((*resources_path, limit),),
        )


MEMBERLESS_ACTIONS = ("log", "notify", "webhook", "exec")
"""Actions of a group's rule that affect none of its members."""


def _victim_conflicts(rule: GroupRule, path: KeyPath) -> Iterator[Conflict]:
    actions = [action for action in (rule.action, *rule.then) if action is not None]
    if rule.victim is None and not {*actions} <= {*MEMBERLESS_ACTIONS}:
        action = next(action for action in actions if action not in MEMBERLESS_ACTIONS)
        yield Conflict(
            (*path, "action"),
            f'"{action}" does not choose a member; add for example victim = "largest-memory"',
            ((*path, "victim"), (*path, "then")),
        )
    if rule.victim is not None and {*actions} <= {*MEMBERLESS_ACTIONS}:
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


def _membership_conflicts(config: Config) -> Iterator[Conflict]:
    """Check that every named group exists, and that no group contains itself."""
    members: list[tuple[KeyPath, WorkloadConfig | GroupConfig]] = [
        *((("workload", name), workload) for name, workload in config.workloads.items()),
        *((("group", name), group) for name, group in config.groups.items()),
    ]
    for path, member in members:
        if member.group is not None and member.group not in config.groups:
            suggestion = did_you_mean(member.group, config.groups).removeprefix(", ")
            instead = suggestion or f"write [group.{member.group}] with its limits, or remove it"
            yield Conflict((*path, "group"), f"there is no group {quoted(member.group)}; {instead}", (("group",),))
    reported: set[str] = set()
    for name in config.groups:
        chain = [name]
        while (outer := config.groups[chain[-1]].group) in config.groups and outer not in chain:
            chain.append(str(outer))
        if outer in chain and reported.isdisjoint(chain):
            reported.update(chain)
            cycle = " → ".join([*chain[chain.index(str(outer)) :], str(outer)])
            yield Conflict(
                ("group", chain[-1], "group"), f"closes a cycle of groups: {cycle}; remove one of these", (("group",),)
            )
