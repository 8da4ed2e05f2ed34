"""How many open files a configuration needs, in the supervisor and in the keeper, and whether the limit allows them.

This is checked before anything starts: otherwise the last workloads would not start, and logs, cgroups and the API
would fail with them.
"""

import resource
from collections.abc import Sequence
from typing import NamedTuple

from nsupervisor.api.http.limits import TCP_CONNECTIONS, UNIX_CONNECTIONS
from nsupervisor.cgroups.host import Host
from nsupervisor.config.facts import notifies
from nsupervisor.config.model import Config, Rule
from nsupervisor.core.instances import instances

SUPERVISOR_OWN, KEEPER_OWN = 160, 150
"""Other open files of each process: sockets, log files, starts in progress; connections of the API are not counted."""
PER_START = 3
"""Descriptors per running program: its two log pipes and its pidfd."""
PER_TRIGGER = 2
"""Descriptors per pressure trigger: the pressure file and what waits for it."""


class Connections(NamedTuple):
    """The most connections that each listener of the API may have at a time."""

    unix: int
    tcp: int


class Need(NamedTuple):
    """The open files that each process needs."""

    supervisor: int
    keeper: int


def needed(config: Config, host: Host) -> Need:
    """Return the open files that the configuration needs when everything in it runs at once.

    Cgroup files that are read repeatedly are not counted: they are kept open only as far as the limit allows.
    """
    connections = connections_allowed()
    supervisor = SUPERVISOR_OWN + connections.unix + (connections.tcp if config.supervisor.metrics else 0)
    keeper = KEEPER_OWN
    for name, _ in instances(config).values():
        workload = config.workloads[name]
        socket = int(workload.speaks)
        files = {getattr(workload.log, stream) for stream in ("stdout", "stderr")} & {"file", "both"}
        supervisor += PER_START + socket + bool(files) + _watched(workload.policy, host)
        keeper += PER_START - (not workload.init) + socket
    for group in config.groups.values():
        supervisor += _watched(group.policy, host)
    return Need(supervisor + _watched(config.host.policy, host), keeper)


def _watched(rules: Sequence[Rule], host: Host) -> int:
    atoms = [atom for rule in rules for atom in rule.when.atoms]
    triggers = {(atom.file, atom.key) for atom in atoms if atom.kind == "stall"}
    place = host.place("memory.events")
    is_v1 = getattr(place, "v1", None) is not None
    eventfd = is_v1 and any(notifies(atom.file) and atom.file.startswith("memory.") for atom in atoms)
    return PER_TRIGGER * len(triggers) + eventfd


def connections_allowed() -> Connections:
    """Return at most a sixteenth of all files for connections on the Unix socket, and half of that for TCP."""
    limit = allowed()
    return Connections(
        unix=min(max(limit // 16, 64), UNIX_CONNECTIONS),
        tcp=min(max(limit // 32, 32), TCP_CONNECTIONS),
    )


def allowed() -> int:
    """Return the hard limit of open files; this process and the keeper it starts both raise their soft limit to it."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 30 if hard_limit == resource.RLIM_INFINITY else hard_limit


def shortage(config: Config, host: Host) -> str:
    """Return why the configuration does not fit into the limit, and what to do instead; "" if it fits."""
    need, limit = needed(config, host), allowed()
    if max(need.supervisor, need.keeper) <= limit:
        return ""
    count = len(instances(config))
    return (
        f"{count:,} instances need {need.supervisor:,} open files in the supervisor and {need.keeper:,} in the keeper, "
        f"and a process may have {limit:,} here; raise the hard limit (ulimit -Hn; LimitNOFILE= in a systemd unit), or "
        "divide them among several services"
    )


def make_room(config: Config, host: Host) -> None:
    """Limit the cgroup files that are kept open to what the other needs leave, and to a third of the limit."""
    from nsupervisor.cgroups.cgroup import keep_at_most  # imported here: only a running service needs it

    limit = allowed()
    keep_at_most(max(min(limit // 3, limit - needed(config, host).supervisor), 0))
