"""Resolve the security of a workload: the values of its profile, and of the keys that override it. Pure.

Each item of a profile is a key of `SecurityConfig`. A key that is left out has the value of the profile, and one that
no profile sets has its neutral value, which changes nothing for the program.

What the host cannot provide is treated by its origin. If a key asks for it, the start is refused. If it is only an item
of the profile, it is left out and reported once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import attrs

from nsupervisor.capability_names import NAMES
from nsupervisor.config.model import Config, SecurityConfig, WorkloadConfig
from nsupervisor.config.positions import KeyPath
from nsupervisor.core.isolation import Absence

NEUTRAL: dict[str, Any] = {
    "no_new_privileges": False,
    "capability_bounding_set": NAMES,
    "ambient_capabilities": (),
    "secure_bits": (),
    "seccomp": "off",
    "system_call_filter": (),
    "restrict_address_families": (),
    "restrict_namespaces": (),
    "lock_personality": False,
    "memory_deny_write_execute": False,
    "restrict_realtime": False,
    "restrict_suid_sgid": False,
    "landlock": None,
    **dict.fromkeys(("protect_system", "protect_home", "private_tmp", "private_devices"), False),
    **dict.fromkeys(("device_allow", "read_write_paths", "read_only_paths", "inaccessible_paths"), ()),
    **dict.fromkeys(("protect_kernel_tunables", "protect_kernel_modules", "protect_kernel_logs"), False),
    **dict.fromkeys(("protect_control_groups", "protect_clock"), False),
    "device_policy": "auto",
    "shm_size": None,
    "protect_proc": "default",
    "proc_subset": "all",
}
"""By key, the value with which the item does nothing."""

DEFAULT_CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP"),
    *("SETUID", "SYS_CHROOT"),
)

_DEFAULT_VIEW = {
    "protect_system": True,
    "private_devices": True,
    "device_policy": "closed",
    "protect_kernel_tunables": True,
    "protect_control_groups": "strict",
}
_STRICT_VIEW = {
    **_DEFAULT_VIEW,
    "protect_system": "strict",
    "protect_home": True,
    "private_tmp": True,
    "protect_proc": "invisible",
    "protect_kernel_modules": True,
    "protect_kernel_logs": True,
    "protect_clock": True,
}

PROFILES: dict[str, dict[str, Any]] = {
    "none": {"no_new_privileges": True},  # the behaviour of version 0.1.0
    "default": {
        "no_new_privileges": True,
        "capability_bounding_set": DEFAULT_CAPABILITIES,
        "seccomp": "default",
        **_DEFAULT_VIEW,
    },
    "strict": {
        "no_new_privileges": True,
        "capability_bounding_set": (),
        "seccomp": "default",
        "system_call_filter": ("@system-service",),
        **_STRICT_VIEW,
    },
}
"""By profile, the values of its items by key."""


class Setting(NamedTuple):
    """The value of an item in force. `is_explicit`: a key asks for it; otherwise it is of the profile."""

    value: Any
    is_explicit: bool


class Unsupported(NamedTuple):
    """An item that this host cannot provide. `is_refused`: a key asks for it."""

    path: KeyPath
    message: str
    is_refused: bool


Support = Callable[[WorkloadConfig, str, Any], "Absence | None"]
"""Returns why this host cannot provide a workload with a value of a key; None if it can."""


@functools.lru_cache(256)
def settings(security: SecurityConfig) -> Mapping[str, Setting]:
    """Return the items in force by key, with their origin. Every start asks, so the answers are kept."""
    profile = PROFILES[security.profile]
    found = {}
    for key, neutral in NEUTRAL.items():
        value, of_profile = getattr(security, key), profile.get(key, neutral)
        if key == "capability_bounding_set" and value is not None:
            value = _capabilities(value, of_profile)
        if value is not None:
            found[key] = Setting(value, True)
        else:
            found[key] = Setting(neutral if key in security.unavailable else of_profile, False)
    ambient = found["ambient_capabilities"].value
    bounding = found["capability_bounding_set"]
    if not bounding.is_explicit:  # what is asked for as ambient is not taken away by the profile
        wanted = {*bounding.value, *ambient}
        found["capability_bounding_set"] = Setting(tuple(name for name in NAMES if name in wanted), False)
    return MappingProxyType(found)


def _capabilities(words: tuple[str, ...], of_profile: tuple[str, ...]) -> tuple[str, ...]:
    """Return the capabilities of a bounding set; words with a mark are about the set of the profile."""
    found = set(of_profile) if words and all(word[0] in "+-" for word in words) else set()
    for word in words:
        named = NAMES if word.lstrip("+-") == "ALL" else (word.lstrip("+-"),)
        found = found - set(named) if word.startswith("-") else found | set(named)
    return tuple(name for name in NAMES if name in found)


def written_keys(security: SecurityConfig) -> dict[str, Any]:
    """Return the keys that the file has, and the profile if it is not the one without that key."""
    found = {key: getattr(security, key) for key in NEUTRAL if getattr(security, key) is not None}
    if security.landlock is not None:
        found["landlock"] = attrs.asdict(security.landlock)
    if security.profile != SecurityConfig().profile:
        found["profile"] = security.profile
    return found


@functools.lru_cache(256)
def is_required(security: SecurityConfig) -> bool:
    """Return whether a key or a profile that is written asks for an item; otherwise all are of the default profile."""
    found = settings(security)
    is_asked_for = any(found[key].is_explicit and found[key].value != neutral for key, neutral in NEUTRAL.items())
    return is_asked_for or security.profile == "strict"


@functools.lru_cache(256)
def values(security: SecurityConfig) -> Mapping[str, Any]:
    """Return the values in force by key."""
    return MappingProxyType({key: setting.value for key, setting in settings(security).items()})


def without_unsupported(config: Config, support: Support) -> tuple[Config, list[Unsupported]]:
    """Return the configuration without the items that the host cannot provide, and these.

    In the result an item that is left out has its neutral value (`SecurityConfig.unavailable`).
    """
    workloads: dict[str, WorkloadConfig] = {}
    found: list[Unsupported] = []
    for name, workload in config.workloads.items():
        missing = list(_unsupported(workload, support))
        found += missing
        if missing:
            unavailable = frozenset(str(item.path[-1]) for item in missing if not item.is_refused)
            workload = attrs.evolve(workload, security=attrs.evolve(workload.security, unavailable=unavailable))
        workloads[name] = workload
    return attrs.evolve(config, workloads=workloads), found


def _unsupported(workload: WorkloadConfig, support: Support) -> Iterator[Unsupported]:
    for key, setting in settings(workload.security).items():
        if setting.value == NEUTRAL[key]:
            continue
        absence = support(workload, key, setting.value)
        if absence is not None:
            yield Unsupported(("workload", workload.name, "security", key), str(absence), setting.is_explicit)


def degraded(items: list[Unsupported]) -> Mapping[str, str]:
    """Return the items of profiles that the host cannot provide, by key, with the reason: one for all workloads."""
    return {str(item.path[-1]): item.message for item in items if not item.is_refused}
