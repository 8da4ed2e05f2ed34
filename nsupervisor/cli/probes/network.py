"""Probes of networks: the programs of others that set them up."""

from __future__ import annotations

import os
import shutil

from nsupervisor.cli.probes import LIMITED, MISSING, OK, Finding
from nsupervisor.core.name_files import (
    MAX_RESOLVER_BYTES,
    RESOLVER,
    SYSTEMD_RESOLVER,
    parse_resolver,
    reachable_resolver,
)
from nsupervisor.linux.traffic_control import find_missing_limiter
from nsupervisor.service.platform.cni_files import FORWARDING_FILE, is_forwarding, plugin_directories

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

REQUIRED_PLUGINS = ("bridge", "host-local", "portmap", "firewall", "bandwidth")
"""The plugins of the network that needs no file."""
USE = 'for network = "cni:NAME"'


def findings() -> Iterator[Finding]:
    """Yield CNI plugins and what they need, the host's forwarding of packets, its name servers, and pasta."""
    yield _cni()
    yield _iptables()
    yield _bandwidth()
    yield _forwarding()
    yield _resolvers()
    if path := shutil.which("pasta"):
        yield Finding("pasta", OK, f"{path}: networks for users other than root; this version does not use it yet")
    else:
        text = "no networks for users other than root; this version does not use it yet"
        yield Finding("pasta", MISSING, text, "install the package passt")


def _cni() -> Finding:
    directories = plugin_directories()
    plugins = {plugin: path for path in reversed(directories) for plugin in _programs(path)}
    install = "install the package containernetworking-plugins, or say where they are with CNI_PATH"
    if not plugins:
        return Finding("CNI plugins", MISSING, f"none in {', '.join(directories)}, {USE}", install)
    missing = [plugin for plugin in REQUIRED_PLUGINS if plugin not in plugins]
    places = ", ".join(dict.fromkeys(plugins.values()))
    if missing:
        return Finding("CNI plugins", LIMITED, f"{places} lacks {', '.join(missing)}, {USE}", install)
    return Finding("CNI plugins", OK, f"{len(plugins)} in {places}, {USE}")


def _iptables() -> Finding:
    if path := shutil.which("iptables"):
        return Finding("iptables", OK, f"{path}, with which plugins publish ports")
    return Finding("iptables", MISSING, 'networks such as "cni:default" need it', "install the package iptables")


def _bandwidth() -> Finding:
    try:
        missing = find_missing_limiter()
    except OSError:
        return Finding("bandwidth", LIMITED, "it cannot be limited by this user", "run doctor as root to find out more")
    if missing is None:
        return Finding("bandwidth", OK, "network.bandwidth_max can be used")
    return Finding(
        "bandwidth", MISSING, f"this kernel lacks {missing}, for network.bandwidth_max", "install the module"
    )


def _forwarding() -> Finding:
    if is_forwarding():
        return Finding("ip_forward", OK, "the host forwards packets: networks with a gateway can be used")
    remedy = f"sysctl -w net.ipv4.ip_forward=1 ({FORWARDING_FILE}), or write allow_forwarding = true under [network]"
    return Finding("ip_forward", LIMITED, 'off: networks with a gateway, such as "cni:default", need it', remedy)


def _resolvers() -> Finding:
    usual, other = (parse_resolver(_read_text(path)) for path in (RESOLVER, SYSTEMD_RESOLVER))
    if found := reachable_resolver(usual, [other]).servers:
        return Finding("name servers", OK, f"{', '.join(found)}: programs with a network of their own use them")
    remedy = 'write network.dns = { servers = ["ADDRESS"] } for workloads that look up names'
    return Finding("name servers", LIMITED, f"none in {RESOLVER} that a network of its own reaches", remedy)


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(MAX_RESOLVER_BYTES)
    except OSError:
        return ""


def _programs(directory: str) -> dict[str, str]:
    try:
        entries = list(os.scandir(directory))
    except OSError:
        return {}
    return {entry.name: directory for entry in entries if entry.is_file() and os.access(entry.path, os.X_OK)}
