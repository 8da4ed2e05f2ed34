"""How many open files a configuration needs, in the supervisor and in the keeper, and whether the limit allows them.

This is checked before anything starts: otherwise the last workloads would not start, and logs, cgroups and the API
would fail with them.
"""

import resource
from collections.abc import Sequence
from typing import NamedTuple

from nsupervisor.api.http.limits import TCP_CONNECTIONS, UNIX_CONNECTIONS
from nsupervisor.cgroups.host import Host
from nsupervisor.config.condition_terms import has_notification
from nsupervisor.config.model import Config, Rule
from nsupervisor.core.instances import expand_instances

SUPERVISOR_BASE_FDS, KEEPER_BASE_FDS = 160, 150
"""Other open files of each process: sockets, log files, starts in progress; connections of the API are not counted."""
FDS_PER_START = 3
"""Descriptors per running program: its two log pipes and its pidfd."""
FDS_PER_TRIGGER = 2
"""Descriptors per pressure trigger: the pressure file and what waits for it."""


class Connections(NamedTuple):
    """The most connections that each listener of the API may have at a time."""

    unix: int
    tcp: int


class DescriptorNeed(NamedTuple):
    """The open files that each process needs."""

    supervisor: int
    keeper: int


def descriptors_needed(config: Config, host: Host) -> DescriptorNeed:
    """Return the open files that the configuration needs when everything in it runs at once.

    Cgroup files that are read repeatedly are not counted: they are kept open only as far as the limit allows.
    """
    connections = connections_allowed()
    supervisor = SUPERVISOR_BASE_FDS + connections.unix + (connections.tcp if config.supervisor.metrics else 0)
    keeper = KEEPER_BASE_FDS
    for name, _ in expand_instances(config).values():
        workload = config.workloads[name]
        socket = int(workload.uses_notify_socket)
        files = {getattr(workload.log, stream) for stream in ("stdout", "stderr")} & {"file", "both"}
        stored = workload.file_descriptor_store_max
        supervisor += FDS_PER_START + socket + bool(files) + _watch_descriptors(workload.policy, host) + stored
        keeper += FDS_PER_START - (not workload.init) + socket + stored
    for group in config.groups.values():
        supervisor += _watch_descriptors(group.policy, host)
    return DescriptorNeed(supervisor + _watch_descriptors(config.host.policy, host), keeper)


def _watch_descriptors(rules: Sequence[Rule], host: Host) -> int:
    atoms = [atom for rule in rules for atom in rule.when.atoms]
    triggers = {(atom.file, atom.key) for atom in atoms if atom.kind == "stall"}
    place = host.locate("memory.events")
    is_v1 = getattr(place, "v1", None) is not None
    eventfd = is_v1 and any(has_notification(atom.file) and atom.file.startswith("memory.") for atom in atoms)
    return FDS_PER_TRIGGER * len(triggers) + eventfd


def connections_allowed() -> Connections:
    """Return at most a sixteenth of all files for connections on the Unix socket, and half of that for TCP."""
    limit = descriptor_limit()
    return Connections(
        unix=min(max(limit // 16, 64), UNIX_CONNECTIONS),
        tcp=min(max(limit // 32, 32), TCP_CONNECTIONS),
    )


def descriptor_limit() -> int:
    """Return the hard limit of open files; this process and the keeper it starts both raise their soft limit to it."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 30 if hard_limit == resource.RLIM_INFINITY else hard_limit


def descriptor_shortage(config: Config, host: Host) -> str:
    """Return why the configuration does not fit into the limit, and what to do instead; "" if it fits."""
    need, limit = descriptors_needed(config, host), descriptor_limit()
    if max(need.supervisor, need.keeper) <= limit:
        return ""
    count = len(expand_instances(config))
    return (
        f"{count:,} instances need {need.supervisor:,} open files in the supervisor and {need.keeper:,} in the keeper, "
        f"and a process may have {limit:,} here; raise the hard limit (ulimit -Hn; LimitNOFILE= in a systemd unit), or "
        "divide them among several services"
    )


def raise_descriptor_limit(config: Config, host: Host) -> None:
    """Limit the cgroup files that are kept open to what the other needs leave, and to a third of the limit."""
    from nsupervisor.cgroups.cgroup import set_max_open_files  # imported here: only a running service needs it

    limit = descriptor_limit()
    set_max_open_files(max(min(limit // 3, limit - descriptors_needed(config, host).supervisor), 0))
