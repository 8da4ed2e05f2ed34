"""How many files a configuration needs open at once, in the supervisor and in the keeper, and whether it may have them.

Told before anything starts: otherwise the last workloads would not start, and logs, cgroups and the API fail with them.
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
"""Files that each has open besides: sockets, log files, starts under way. Connections of the API are not among them."""
PER_START = 3
"""Of a program that runs: its two log pipes, and its pidfd."""
PER_TRIGGER = 2
"""A pressure file, and what is waited with for it."""


class Connections(NamedTuple):
    """How many connections each listener of the API may have at a time."""

    unix: int
    tcp: int


class Need(NamedTuple):
    """Open files of each process."""

    supervisor: int
    keeper: int


def needed(config: Config, host: Host) -> Need:
    """For everything that the configuration has, running at once. Files of cgroups that are read again and again are
    not among them: those are kept open as far as there is room."""
    connections = connections_allowed()
    supervisor = SUPERVISOR_OWN + connections.unix + (connections.tcp if config.supervisor.metrics else 0)
    keeper = KEEPER_OWN
    for workload, _ in instances(config).values():
        one = config.workloads[workload]
        socket = int(one.speaks)
        files = {getattr(one.log, stream) for stream in ("stdout", "stderr")} & {"file", "both"}
        supervisor += PER_START + socket + bool(files) + _watched(one.policy, host)
        keeper += PER_START - (not one.init) + socket
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
    """At most a sixteenth of all files for the connections of the Unix socket, and half of that for those on TCP."""
    most = allowed()
    return Connections(
        unix=min(max(most // 16, 64), UNIX_CONNECTIONS),
        tcp=min(max(most // 32, 32), TCP_CONNECTIONS),
    )


def allowed() -> int:
    """How many files this process, and the keeper that it starts, may have open at most: both raise their own limit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 30 if most == resource.RLIM_INFINITY else most


def shortage(config: Config, host: Host) -> str:
    """Why the configuration does not fit, and what to do instead; "" where it does."""
    need, most = needed(config, host), allowed()
    if max(need.supervisor, need.keeper) <= most:
        return ""
    count = len(instances(config))
    return (
        f"{count:,} instances need {need.supervisor:,} open files in the supervisor and {need.keeper:,} in the keeper, "
        f"and a process may have {most:,} here; raise the hard limit (ulimit -Hn; LimitNOFILE= in a systemd unit), or "
        "divide them among several services"
    )


def make_room(config: Config, host: Host) -> None:
    """Keep no more files of cgroups open than what else is needed leaves room for; a third of all at most."""
    from nsupervisor.cgroups.cgroup import keep_at_most  # only who runs something needs it

    most = allowed()
    keep_at_most(max(min(most // 3, most - needed(config, host).supervisor), 0))
