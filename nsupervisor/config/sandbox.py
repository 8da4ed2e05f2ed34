"""The keys of the table `security` about what a program sees: paths, devices and processes; by systemd.exec(5)'s names.

They are a part of `SecurityConfig`, with the same rule: a key that is left out (None) has the value of the profile.
"""

from __future__ import annotations

from typing import Any, Literal

from attrs import field, frozen

from nsupervisor.config import kinds
from nsupervisor.config.kinds import Choice, ListOf, Scalar, key
from nsupervisor.config.quoting import alternatives, did_you_mean
from nsupervisor.config.table import Table

ProtectProc = Literal["default", "noaccess", "invisible", "ptraceable"]
ProcSubset = Literal["all", "pid"]
DevicePolicy = Literal["auto", "closed"]


def _boolean_or(*words: str) -> Scalar:
    def load(value: Any) -> bool | str:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value in words:
            return str(value)
        hint = did_you_mean(value, words) if isinstance(value, str) else ""
        raise ValueError(f"is not one of the choices{hint}; write true, false, {alternatives(words)}")

    return Scalar(load, {"enum": [True, False, *words]})


def _protected_path(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("is not a string; write a path in quotes")
    kinds.PATH.load(value.removeprefix("-"))
    if ".." in value.split("/"):
        raise ValueError('has a ".." in it; write the path that it leads to')
    return value


def _device(value: Any) -> str:
    words = value.split() if isinstance(value, str) else []
    if len(words) not in (1, 2) or not words[0].removeprefix("-").startswith("/dev/"):
        raise ValueError('is not a device; write for example "/dev/fuse rw", or "-/dev/fuse rw" if it may be missing')
    _protected_path(words[0])
    if len(words) == 2 and (set(words[1]) - {*"rwm"} or len(set(words[1])) != len(words[1])):
        raise ValueError('has no valid access; write "r" for reading, "w" for writing and "m" for making nodes')
    return value if len(words) == 1 else " ".join(words)


PROTECTED_PATHS = ListOf(
    Scalar(_protected_path, {"type": "string", "pattern": "^-?/"}),
)
_DEVICES = ListOf(
    Scalar(_device, {"type": "string", "pattern": "^-?/dev/\\S+(\\s+[rwm]{1,3})?$"}),
)


@frozen(repr=False)
class SandboxConfig(Table):
    """The keys of [workload.NAME.security] about what the program sees."""

    protect_system: bool | Literal["full", "strict"] | None = field(
        default=None,
        metadata=key(
            _boolean_or("full", "strict"), '/usr and /boot are read-only; "full": /etc, too; "strict": all but /dev'
        ),
    )
    protect_home: bool | Literal["read-only", "tmpfs"] | None = field(
        default=None,
        metadata=key(_boolean_or("read-only", "tmpfs"), "/home, /root and /run/user are inaccessible"),
    )
    private_tmp: bool | None = field(
        default=None, metadata=key(kinds.BOOLEAN, "temporary directories of its own, which end with it")
    )
    private_devices: bool | None = field(
        default=None, metadata=key(kinds.BOOLEAN, "/dev has no devices but null, zero, full, random, urandom and tty")
    )
    device_policy: DevicePolicy | None = field(
        default=None,
        metadata=key(Choice.of(DevicePolicy), '"closed": it may use only these devices, and those of device_allow'),
    )
    device_allow: tuple[str, ...] | None = field(
        default=None, metadata=key(_DEVICES, 'further devices, or directories of some: "/dev/fuse rw"')
    )
    shm_size: int | None = field(default=None, metadata=key(kinds.FILE_SIZE, "the size of /dev/shm, which is its own"))
    read_write_paths: tuple[str, ...] | None = field(
        default=None,
        metadata=key(PROTECTED_PATHS, 'as they are outside, in what is read-only; "-/path" may be missing'),
    )
    read_only_paths: tuple[str, ...] | None = field(
        default=None, metadata=key(PROTECTED_PATHS, "read-only, with all that is mounted in them")
    )
    inaccessible_paths: tuple[str, ...] | None = field(
        default=None, metadata=key(PROTECTED_PATHS, "empty, and closed to all users but root")
    )
    protect_kernel_tunables: bool | None = field(
        default=None, metadata=key(kinds.BOOLEAN, "/proc/sys, /sys and others are read-only, or empty")
    )
    protect_kernel_modules: bool | None = field(
        default=None, metadata=key(kinds.BOOLEAN, "/usr/lib/modules is inaccessible")
    )
    protect_kernel_logs: bool | None = field(
        default=None, metadata=key(kinds.BOOLEAN, "/dev/kmsg and /proc/kmsg are empty")
    )
    protect_control_groups: bool | Literal["strict"] | None = field(
        default=None,
        metadata=key(_boolean_or("strict"), '/sys/fs/cgroup is read-only; "strict": and shows its own cgroup alone'),
    )
    protect_clock: bool | None = field(
        default=None, metadata=key(kinds.BOOLEAN, "the clock devices /dev/rtc* are empty")
    )
    protect_proc: ProtectProc | None = field(
        default=None,
        metadata=key(Choice.of(ProtectProc), "the processes of other users in /proc: hidepid= of proc(5)"),
    )
    proc_subset: ProcSubset | None = field(
        default=None, metadata=key(Choice.of(ProcSubset), '"pid": /proc has processes only')
    )
