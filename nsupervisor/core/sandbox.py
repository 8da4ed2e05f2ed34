"""The paths and devices that a program sees, by the keys of its security: the key `sandbox` of a specification. Pure.

The keeper does what it says (keeper/setup/sandbox.py). Later steps override earlier ones for the same path: the
profile's, then `read_write_paths`, `read_only_paths` and `inaccessible_paths`. For different paths the longer decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nsupervisor.core.security import Setting
from nsupervisor.mount_data import INACCESSIBLE, MASKED, OWN_CGROUP, READ_ONLY, READ_WRITE, TEMPORARY

MASKED_PATHS = (
    *(
        f"/proc/{name}"
        for name in (
            *("acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "timer_list", "timer_stats"),
            *("sched_debug", "scsi"),
        )
    ),
    *("/sys/firmware", "/sys/devices/virtual/powercap"),
    *("/sys/kernel/debug", "/sys/kernel/security", "/sys/kernel/tracing"),  # the host mounts file systems here
)
"""Files and directories of the kernel that no program needs, and that tell about the host or its users."""
READ_ONLY_PATHS = (*(f"/proc/{name}" for name in ("bus", "fs", "irq", "sys", "sysrq-trigger")), "/sys")
"""Files and directories by which root changes the whole host."""
CONTROL_GROUPS = "/sys/fs/cgroup"
SYSTEM_PATHS = (
    *("/usr", "/boot", "/efi"),
    *("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"),  # on most hosts links to directories in /usr
)
HOME_PATHS = ("/home", "/root", "/run/user")
TEMPORARY_PATHS = ("/tmp", "/var/tmp")  # noqa: S108
MODULE_PATHS = ("/usr/lib/modules", "-/lib/modules")
LOG_DEVICES, CLOCK_DEVICES = ("/dev/kmsg",), ("/dev/rtc0", "/dev/rtc1")
SHM_SIZE = 64 << 20
"""Bytes of /dev/shm, as in a container of Docker or podman."""

_HOME_ACTIONS = {True: INACCESSIBLE, "read-only": READ_ONLY, "tmpfs": TEMPORARY}


def for_own_root(found: Mapping[str, Setting]) -> dict[str, Any]:
    """Return the values in force for a program with a root of its own, by key.

    `protect_system` of the default profile protects the host's programs, which that one does not see.
    """
    values = {key: setting.value for key, setting in found.items()}
    if not found["protect_system"].is_explicit and values["protect_system"] is True:
        values["protect_system"] = False
    return values


def sandbox(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the key of a specification; None if the program sees what the host has.

    `values`: those in force of the keys of `SandboxConfig`.
    """
    found: dict[str, Any] = {}
    if values["private_devices"]:
        nodes = [device.split()[0] for device in values["device_allow"]]
        found["devices"] = {"nodes": nodes, "shm_size": values["shm_size"] or SHM_SIZE}
    proc = [f"hidepid={values['protect_proc']}"] if values["protect_proc"] != "default" else []
    proc += [f"subset={values['proc_subset']}"] if values["proc_subset"] != "all" else []
    if proc:
        found["proc"] = ",".join(proc)
    if paths := _paths(values):
        found["paths"] = [[path, action] for path, action in paths.items()]
    return found or None


def _paths(values: Mapping[str, Any]) -> dict[str, str]:
    """Return what is done with each path."""
    paths: dict[str, str] = {}
    is_strict = values["protect_system"] == "strict"
    if is_strict:
        paths["/"] = READ_ONLY
    elif values["protect_system"]:
        paths |= dict.fromkeys(SYSTEM_PATHS, READ_ONLY)
        if values["protect_system"] == "full":
            paths["/etc"] = READ_ONLY
    if values["protect_home"]:
        paths |= dict.fromkeys(HOME_PATHS, _HOME_ACTIONS[values["protect_home"]])
    if values["private_tmp"]:
        paths |= dict.fromkeys(TEMPORARY_PATHS, TEMPORARY)
    if values["protect_kernel_tunables"]:
        paths |= dict.fromkeys(MASKED_PATHS, MASKED) | dict.fromkeys(READ_ONLY_PATHS, READ_ONLY)
    elif is_strict:
        paths["/sys"] = READ_WRITE
    if values["protect_control_groups"]:
        paths[CONTROL_GROUPS] = OWN_CGROUP if values["protect_control_groups"] == "strict" else READ_ONLY
    elif is_strict or values["protect_kernel_tunables"]:
        paths[CONTROL_GROUPS] = READ_WRITE
    if values["protect_kernel_modules"]:
        paths |= dict.fromkeys(MODULE_PATHS, INACCESSIBLE)
    if values["protect_kernel_logs"]:
        paths |= {"/proc/kmsg": MASKED, **_devices(LOG_DEVICES, values)}
    if values["protect_clock"]:
        paths |= _devices(CLOCK_DEVICES, values)
    for key, action in (
        ("read_write_paths", READ_WRITE),
        ("read_only_paths", READ_ONLY),
        ("inaccessible_paths", INACCESSIBLE),
    ):
        for path in values[key]:
            paths.pop(path.removeprefix("-"), None)
            paths[path] = action
    return paths


def _devices(devices: tuple[str, ...], values: Mapping[str, Any]) -> dict[str, str]:
    """Return the devices to hide: those of the host, unless the program has only devices of its own."""
    return {} if values["private_devices"] else {f"-{device}": MASKED for device in devices}
