"""The differences between a start of this version and that of an earlier one. Pure.

A program keeps what it was started with, also when another version takes it over. The revision is saved with each
start, so a plan can list what the next start changes although the file is the same. A change of the meaning of an
existing configuration raises `START_REVISION`, adds an entry here, and is described under "Migration" in CHANGELOG.md.
"""

from collections.abc import Callable
from typing import Any

import attrs

from nsupervisor.config.model import Resources, WorkloadConfig

START_REVISION = 3
"""The revision of this version's starts. Version 0.1.0 saved none, which reads as 0."""
_PROFILE_LIMITS = 3
"""The first revision that sets the limits of security profiles."""


@attrs.frozen
class StartChange:
    """One difference to the starts of earlier revisions."""

    revision: int
    """The first revision that does it."""
    text: str
    """The difference, as `nsupervisor plan` shows it."""
    concerns: Callable[[WorkloadConfig], bool]


def _has_default_mappings(workload: WorkloadConfig) -> bool:
    given = workload.user_namespace.uid_mappings, workload.user_namespace.gid_mappings
    return workload.namespaces.user and not all(given)


START_CHANGES = (
    StartChange(
        1,
        "if the service runs as root, it gets a range of ids of its own in place of root's: see that its files belong "
        "to it (uid-ranges.json), or write user_namespace mappings",
        _has_default_mappings,
    ),
    StartChange(
        1,
        "it has no supplementary groups but those of supplementary_groups",
        lambda workload: workload.namespaces.user,
    ),
    StartChange(
        1,
        "it has failed if it ends before it has sent READY=1, whatever its exit status",
        lambda workload: workload.type == "notify",
    ),
    StartChange(
        1,
        "/dev/shm and /dev/mqueue are its own; programs that share memory need namespaces = { ipc = false }",  # noqa: S108
        lambda workload: workload.namespaces.ipc is True and workload.namespaces.mount,
    ),
    StartChange(
        1,
        "/sys is a read-only view of its own network namespace",
        lambda workload: workload.namespaces.network is True and workload.namespaces.mount,
    ),
    StartChange(
        1,
        "its mounts do not follow symbolic links that another user may control",
        lambda workload: bool(workload.mounts),
    ),
    StartChange(1, "it has a session keyring of its own", lambda _: True),
    StartChange(
        2,
        "it has eleven capabilities and a filter of system calls (docs/security.md says what stops working); as before "
        'with security = { profile = "none" }',
        lambda workload: workload.security.profile == "default",
    ),
    StartChange(
        2,
        "it has a /dev of its own without disks; /dev, /usr, /boot and the kernel's settings are read-only",
        lambda workload: workload.security.profile == "default" and workload.namespaces.mount,
    ),
    StartChange(
        3,
        "it sees no cgroup but its own; as before with security = { protect_control_groups = true }",
        lambda workload: (
            workload.security.profile != "none"
            and workload.security.protect_control_groups is None
            and workload.namespaces.mount
            and workload.namespaces.cgroup
        ),
    ),
    StartChange(
        _PROFILE_LIMITS,
        'it has at most 2,048 processes and threads; as before with resources = { pids_max = "max" }',
        lambda workload: "pids_max" in workload.resources.of_profile,
    ),
)


def limits_at_start(resources: Resources, revision: int) -> Resources:
    """Return the limits, of those that the file and its profile now mean, that a start of that revision has set."""
    if revision >= _PROFILE_LIMITS or not resources.of_profile:
        return resources
    lifted: dict[str, Any] = dict.fromkeys(resources.of_profile)
    return attrs.evolve(resources, **lifted)


def find_start_changes(workload: WorkloadConfig, revision: int) -> tuple[str, ...]:
    """Return what the next start of a workload does differently than a start of that revision."""
    return tuple(change.text for change in START_CHANGES if change.revision > revision and change.concerns(workload))
