"""The directories that the service makes for a program: those of systemd.exec(5), and named volumes. Pure."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from nsupervisor.config.expansion import Instance
from nsupervisor.config.model import WorkloadConfig
from nsupervisor.mount_data import VOLUME

SYSTEM_BASES = {
    "runtime": "/run",
    "state": "/var/lib",
    "cache": "/var/cache",
    "logs": "/var/log",
    "configuration": "/etc",
}
"""By kind, the directory that those of a service of root are in."""
_USER_BASES = {
    "runtime": ("XDG_RUNTIME_DIR", ""),
    "state": ("XDG_STATE_HOME", ".local/state"),
    "cache": ("XDG_CACHE_HOME", ".cache"),
    "logs": ("XDG_STATE_HOME", ".local/state"),
    "configuration": ("XDG_CONFIG_HOME", ".config"),
}
"""The same for another user: a variable, and a directory in the home if that is not set."""
_VOLUME_MODE = 0o755


def bases(uid: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Return by kind the directory that those of a service of user `uid` are in, as systemd.exec(5) has them."""
    if uid == 0:
        return dict(SYSTEM_BASES)
    home = environment.get("HOME") or "/"
    found = {kind: environment.get(name) or os.path.join(home, rest) for kind, (name, rest) in _USER_BASES.items()}
    found["runtime"] = environment.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}"
    found["logs"] = f"{found['logs']}/log"
    return found


def program_directories(
    workload: WorkloadConfig, instance: Instance | None, state_directory: str, found_bases: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return the directories to make: `kind`, the directory `base` that is there, `name` below it, `mode`.

    `has_contents`: what is in it belongs to the program's user, too, also if that has been another before.

    `found_bases`: of `bases`. A runtime directory is of one instance, as it ends with it; the others are of all.
    """
    found: list[dict[str, Any]] = []
    for kind, base in found_bases.items():
        for name in getattr(workload, f"{kind}_directory"):
            if kind == "runtime" and instance is not None:
                name = f"{name}@{instance}"
            mode = getattr(workload, f"{kind}_directory_mode")
            directory = {"kind": kind, "base": base, "name": name, "mode": mode}
            found.append({**directory, "has_contents": True} if workload.dynamic_user else directory)
    volumes = [*workload.volumes, *(mount.source for mount in workload.mounts if mount.type == VOLUME and mount.source)]
    base = f"{state_directory}/volumes"
    kept = ({"kind": VOLUME, "base": base, "name": name, "mode": _VOLUME_MODE} for name in dict.fromkeys(volumes))
    return [*found, *kept]


def path_of(directory: Mapping[str, Any]) -> str:
    """Return the path of a directory."""
    return f"{directory['base']}/{directory['name']}"


def directory_variables(directories: list[dict[str, Any]]) -> dict[str, str]:
    """Return the variables that name the directories to the program, with ":" between several of one kind."""
    found: dict[str, str] = {}
    for directory in directories:
        if directory["kind"] != VOLUME:
            name = f"{directory['kind'].upper()}_DIRECTORY"
            found[name] = ":".join(filter(None, (found.get(name), path_of(directory))))
    return found


def directory_mounts(
    workload: WorkloadConfig, directories: list[dict[str, Any]], state_directory: str
) -> list[dict[str, Any]]:
    """Return the mounts of a workload: of its directories in a root of its own, its volumes, and further ones."""
    mounts = []
    if workload.root.path is not None:
        mounts += [_bind(path_of(one), path_of(one)) for one in directories if one["kind"] != VOLUME]
    mounts += [_bind(_volume(state_directory, name), place) for name, place in workload.volumes.items()]
    for mount in workload.mounts:
        if mount.type == VOLUME:
            mounts.append(_bind(_volume(state_directory, str(mount.source)), mount.destination, list(mount.options)))
        else:
            mounts.append(
                {
                    "type": mount.type,
                    "source": mount.source,
                    "destination": mount.destination,
                    "options": list(mount.options),
                }
            )
    return mounts


def _volume(state_directory: str, name: str) -> str:
    return f"{state_directory}/volumes/{name}"


def _bind(source: str, destination: str, options: list[str] | None = None) -> dict[str, Any]:
    return {"type": "bind", "source": source, "destination": destination, "options": options or []}
