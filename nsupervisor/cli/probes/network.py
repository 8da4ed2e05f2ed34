"""Probes of networks: the programs of others that set them up."""

from __future__ import annotations

import os
import shutil

from nsupervisor.cli.probes import LIMITED, MISSING, OK, Finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

CNI_DIRECTORIES = ("/usr/lib/cni", "/opt/cni/bin")
REQUIRED_PLUGINS = ("bridge", "host-local", "loopback", "portmap")
NOT_USED_YET = "this version does not use them yet"


def findings() -> Iterator[Finding]:
    """Yield CNI plugins and pasta."""
    yield _cni()
    if path := shutil.which("pasta"):
        yield Finding("pasta", OK, f"{path}: networks for users other than root; this version does not use it yet")
    else:
        text = "no networks for users other than root; this version does not use it yet"
        yield Finding("pasta", MISSING, text, "install the package passt")


def _cni() -> Finding:
    directories = [path for path in os.environ.get("CNI_PATH", "").split(":") if path] or list(CNI_DIRECTORIES)
    plugins = {plugin: path for path in reversed(directories) for plugin in _programs(path)}
    install = "install the package containernetworking-plugins, or say where they are with CNI_PATH"
    if not plugins:
        return Finding("CNI plugins", MISSING, f"none in {', '.join(directories)}; {NOT_USED_YET}", install)
    missing = [plugin for plugin in REQUIRED_PLUGINS if plugin not in plugins]
    places = ", ".join(dict.fromkeys(plugins.values()))
    if missing:
        return Finding("CNI plugins", LIMITED, f"{places} lacks {', '.join(missing)}; {NOT_USED_YET}", install)
    return Finding("CNI plugins", OK, f"{len(plugins)} in {places}; {NOT_USED_YET}")


def _programs(directory: str) -> dict[str, str]:
    try:
        entries = list(os.scandir(directory))
    except OSError:
        return {}
    return {entry.name: directory for entry in entries if entry.is_file() and os.access(entry.path, os.X_OK)}
