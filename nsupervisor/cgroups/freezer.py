"""Processes that another program has frozen in a cgroup v1 freezer: SIGKILL ends them only after they are thawed.

On version 2, SIGKILL ends frozen processes as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import attrs

from nsupervisor.cgroups.mounts import CgroupMount, own_directory, parse_memberships, parse_mountinfo, read_proc_file

_FROZEN_STATES = ("FROZEN", "FREEZING")


@attrs.frozen
class FrozenProcesses:
    """Processes that were found frozen by others."""

    pids: tuple[int, ...]
    directories: tuple[str, ...]
    """The freezer cgroups that they were in."""
    problem: str = ""
    """Why they could not be moved out of these cgroups; "" if they were."""


def release_frozen(pids: Collection[int]) -> FrozenProcesses | None:
    """Move processes that a cgroup v1 freezer holds to this process's own freezer cgroup, which thaws them.

    Source: kernel documentation, cgroup-v1/freezer-subsystem.rst. A process is moved instead of thawing its cgroup, in
    which other programs may keep processes of their own. Returns None if none is frozen.
    """
    mount = _freezer_mount()
    own = _freezer_directory("self", mount) if mount is not None else None
    if mount is None or own is None:
        return None
    frozen = {pid: directory for pid in pids if (directory := _freezer_directory(pid, mount)) and _is_frozen(directory)}
    if not frozen:
        return None
    problem = _move(frozen, own) if not _is_frozen(own) else f"the cgroup of this service, {own}, is frozen, too"
    return FrozenProcesses(tuple(frozen), tuple(dict.fromkeys(frozen.values())), problem)


def _move(pids: Iterable[int], directory: str) -> str:
    problem = ""
    for pid in pids:
        try:
            with open(f"{directory}/cgroup.procs", "w", encoding="ascii") as file:
                file.write(str(pid))
        except ProcessLookupError:
            pass  # it has ended
        except OSError as error:
            problem = f"cannot move them to {directory}: {error.strerror}"
    return problem


def _freezer_mount() -> CgroupMount | None:
    try:
        mounts = parse_mountinfo(read_proc_file("/proc/self/mountinfo"))
    except OSError:
        return None
    return next((mount for mount in mounts if mount.version == 1 and "freezer" in mount.controllers), None)


def _freezer_directory(pid: int | str, mount: CgroupMount) -> str | None:
    """Return the directory of a process's cgroup in the freezer hierarchy; None if it has ended or is not shown."""
    try:
        memberships = parse_memberships(read_proc_file(f"/proc/{pid}/cgroup"))
    except (OSError, ValueError):
        return None
    paths = (own_directory(mount, member.path) for member in memberships if "freezer" in member.controllers)
    return next(paths, None)


def _is_frozen(directory: str) -> bool:
    try:
        with open(f"{directory}/freezer.state", encoding="ascii") as file:
            return file.read().strip() in _FROZEN_STATES
    except OSError:  # the root of the hierarchy has no such file, and cannot be frozen
        return False
