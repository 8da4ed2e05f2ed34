"""The devices that the security of a workload allows: from paths to the rules of its cgroup."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any

from nsupervisor.cgroups.device_filter import DEFAULT_RULES, DeviceRule
from nsupervisor.cgroups.errors import CgroupError


def device_rules(values: Mapping[str, Any]) -> tuple[DeviceRule, ...] | None:
    """Return the rules for the values of the keys of `security`; None if each device is allowed.

    The numbers of devices are looked up now. Raises CgroupError for a device that is missing.
    """
    if values["device_policy"] == "auto":
        return None
    further = (rule for entry in values["device_allow"] for rule in _rules(entry))
    return tuple(dict.fromkeys((*DEFAULT_RULES, *further)))


def _rules(entry: str) -> Iterator[DeviceRule]:
    given, _, access = entry.partition(" ")
    path = given.removeprefix("-")
    try:
        status = os.stat(path)
    except OSError as error:
        if given == path:
            raise CgroupError(f'cannot allow {path}: {error.strerror}; write "-{path}" if it may be missing') from error
        return
    if stat.S_ISDIR(status.st_mode):
        for name in sorted(os.listdir(path)):
            yield from _rules(f"-{path}/{name} {access}".rstrip())
    elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        kind = "c" if stat.S_ISCHR(status.st_mode) else "b"
        yield DeviceRule(kind, os.major(status.st_rdev), os.minor(status.st_rdev), access or "rw")
