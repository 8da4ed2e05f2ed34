"""Privileges that this process lacks, found before anything starts, with what to do instead."""

import os
import resource
from collections.abc import Iterator

from nsupervisor.config.model import Config, WorkloadConfig
from nsupervisor.linux.namespaces import NAMESPACES
from nsupervisor.linux.privileges import SETGID, SETUID, SYS_ADMIN, SYS_NICE, SYS_RESOURCE, Privileges
from nsupervisor.service.instance.root import resolve_identity
from nsupervisor.service.instance.users import IdentityError
from nsupervisor.service.state.dynamic_users import DYNAMIC_USERS
from nsupervisor.service.state.uid_ranges import UID_RANGES


def has_uid_ranges(own: Privileges) -> bool:
    """Return whether this process is root of a user namespace with all of `UID_RANGES`, as of the first one."""
    return own.uid == 0 and _has_ids(own, UID_RANGES)


def has_dynamic_users(own: Privileges) -> bool:
    """Return whether this process may start programs with each of the ids of `DYNAMIC_USERS`."""
    return own.has(SETUID) and own.has(SETGID) and _has_ids(own, DYNAMIC_USERS)


def _has_ids(own: Privileges, ids: range) -> bool:
    return all(
        any(first <= ids[0] and ids[-1] < first + count for first, count in id_map)
        for id_map in (own.uid_map, own.gid_map)
    )


def missing_privileges(workload: WorkloadConfig, own: Privileges) -> Iterator[tuple[str, str]]:
    """Yield each key of the workload that needs a missing privilege, with the problem and what to do instead."""
    user = _user(own)
    spaces = [name for name in NAMESPACES if name != "user" and getattr(workload.namespaces, name) is True]
    for kind in workload.namespaces.joined if not own.has(SYS_ADMIN) else ():
        yield (
            f"namespaces.{kind}",
            f"to {'set up a network' if kind == 'network' and workload.namespaces.cni_network else 'join a namespace'} "
            f"needs CAP_SYS_ADMIN, which {user} does not have here; write a namespace of its own "
            "(true), or run as root with that capability",
        )
    # A user namespace gives the privilege for all others (user_namespaces(7)).
    if spaces and not workload.namespaces.user and not own.has(SYS_ADMIN):
        yield (
            "namespaces",
            f"new namespaces ({', '.join(spaces)}) need CAP_SYS_ADMIN, which {user} does not have here; "
            "set namespaces.user = true, or each of these to false, or run as root with that capability",
        )
    yield from _missing_for_limits(workload, own)
    if workload.dynamic_user and not has_dynamic_users(own):
        ids = f"{DYNAMIC_USERS[0]} to {DYNAMIC_USERS[-1]}"
        yield (
            "dynamic_user",
            f"needs CAP_SETUID, CAP_SETGID and the ids {ids}, which {user} does not have here; leave it out, or run as "
            "root of the host",
        )
    if own.has(SETUID) and own.has(SETGID):
        return
    requirement = f"CAP_SETUID and CAP_SETGID, which {user} does not have here; leave it out, or run as root with those"
    for key in ("user", "supplementary_groups"):
        if getattr(workload, key) and not (key == "user" and _is_own(workload, own)):
            yield key, f"to become another user or group needs {requirement}"
    if not workload.namespaces.user:
        return
    given = workload.user_namespace.uid_mappings, workload.user_namespace.gid_mappings
    if not all(given) and has_uid_ranges(own):
        yield (
            "namespaces.user",
            f"a range of ids of its own needs {requirement}; or write mappings of the one id 0, which is root outside",
        )
    for key, own_id in (("uid_mappings", own.uid), ("gid_mappings", own.gid)):
        mappings = getattr(workload.user_namespace, key)
        if mappings and [(mapping.host_id, mapping.size) for mapping in mappings] != [(own_id, 1)]:
            yield "user_namespace", f"{key} to others than one's own id {own_id} alone needs {requirement}"


def _is_own(workload: WorkloadConfig, own: Privileges) -> bool:
    """Return whether the workload's user and group are those that this process has already."""
    try:
        identity = resolve_identity(workload)
    except IdentityError:  # reported for itself
        return False
    return not workload.supplementary_groups and (identity.uid, identity.gid) == (own.uid, own.gid)


def _user(own: Privileges) -> str:
    return f"user {own.uid}" if own.uid else "root"


def _missing_for_limits(workload: WorkloadConfig, own: Privileges) -> Iterator[tuple[str, str]]:
    """Yield the resource limits above the present hard limits, setrlimit(2), and a niceness below the present one.

    Both capabilities count in the first user namespace only, user_namespaces(7).
    """
    user = _user(own)
    if workload.namespaces.user:
        own, user = own._replace(capabilities=0), "a program in a user namespace"
    for name, (_, wanted) in workload.security.rlimits.items():
        hard = own.hard_limits[name]
        is_above = hard != resource.RLIM_INFINITY and (wanted == -1 or wanted > hard)
        if is_above and not own.has(SYS_RESOURCE):
            yield (
                f"security.limit_{name}",
                f"above the hard limit of {hard} needs CAP_SYS_RESOURCE, which {user} does not have here; write at "
                f"most {hard}, or raise the limit of the service (Limit{name.upper()}= of its systemd unit)",
            )
    least = own.lowest_niceness
    if workload.nice is not None and workload.nice < least and not own.has(SYS_NICE):
        yield (
            "nice",
            f"below {least} needs CAP_SYS_NICE, which {user} does not have here; write at least {least}, or run as "
            "root with that capability",
        )


def explain_permission_error(error: PermissionError, config: Config) -> str:
    """Describe what to do about a start that was not permitted."""
    from pathlib import Path  # imported here: `check` does not need it, and the import is slow

    instead = "run as root, or see: nsupervisor doctor"
    directory = Path(config.supervisor.runtime_directory)
    # The path that could not be made may also be a directory above it, or the lock in it.
    refused = Path(error.filename or "nowhere")
    if directory.is_relative_to(refused) or refused.is_relative_to(directory):
        place = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
        instead = f'run as root, or set supervisor.runtime_directory to a place of yours, such as "{place}/nsupervisor"'
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}; {instead}"
