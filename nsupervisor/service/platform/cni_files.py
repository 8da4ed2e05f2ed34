"""Files of networks: plugins and their configuration, and whether they can be used here.

This module does not import trio, because `check` and `doctor` have to be quick.
"""

import os
import shutil

from nsupervisor.core.cni import DEFAULT_NETWORK, NetworkError, NetworkList, default_network, parse_network
from nsupervisor.linux.trusted_paths import UntrustedPathError, open_for_reading, untrusted_part

PLUGIN_DIRECTORIES = ("/usr/lib/cni", "/opt/cni/bin")
FORWARDING_FILE = "/proc/sys/net/ipv4/ip_forward"
_MAX_LIST_BYTES = 1 << 20


def plugin_directories() -> tuple[str, ...]:
    """Return where plugins are looked for: the directories in CNI_PATH, or else the usual ones."""
    return tuple(path for path in os.environ.get("CNI_PATH", "").split(":") if path) or PLUGIN_DIRECTORIES


def find_plugin(name: str) -> str | None:
    """Return the path of a plugin's program; None if it is not installed."""
    return shutil.which(name, path=":".join(plugin_directories()))


def read_network(name: str, directory: str) -> NetworkList:
    """Read a network: NAME.conflist in `directory`, or the one that needs no file. Raises NetworkError."""
    path = f"{directory}/{name}.conflist"
    try:
        with os.fdopen(open_for_reading(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            text = file.read(_MAX_LIST_BYTES + 1)
    except FileNotFoundError:
        if name == DEFAULT_NETWORK:
            return default_network()
        raise NetworkError(f"there is no {path}; write one, or use the network {DEFAULT_NETWORK}") from None
    except UntrustedPathError as error:
        raise NetworkError(str(error)) from None
    except OSError as error:
        raise NetworkError(f"cannot read {path}: {error.strerror}") from None
    if len(text) > _MAX_LIST_BYTES:
        raise NetworkError(f"{path} is larger than {_MAX_LIST_BYTES} bytes")
    try:
        return parse_network(text.decode(errors="replace"), name)
    except NetworkError as error:
        raise NetworkError(f"{path}: {error}") from None


def find_obstacle(network: NetworkList, may_enable_forwarding: bool) -> str | None:
    """Return why the plugins of a network cannot run here, with what to do instead; None: nothing is known."""
    for name in network.types:
        if (path := find_plugin(name)) is None:
            return (
                f"there is no plugin {name} in {', '.join(plugin_directories())}; install the package "
                "containernetworking-plugins, or say where they are with CNI_PATH"
            )
        if reason := untrusted_part(os.path.dirname(path), "write another directory into CNI_PATH"):
            return reason
    if (plugin := network.needs_iptables) and shutil.which("iptables") is None:
        return f"its plugin {plugin} needs the program iptables, which is not in PATH; install the package iptables"
    if (plugin := network.enables_forwarding) and not may_enable_forwarding and not is_forwarding():
        return (
            f"its plugin {plugin} would make this host forward packets, which it does not do now; run sysctl -w "
            "net.ipv4.ip_forward=1, or write allow_forwarding = true under [network]"
        )
    return None


def find_bandwidth_obstacle(network: NetworkList) -> str | None:
    """Return why the bandwidth of a program cannot be limited in a network, with what to do instead; None: it can."""
    instead = "or remove network.bandwidth_max"
    if not network.has_capability("bandwidth"):
        return f'none of its plugins has the capability "bandwidth"; add the plugin bandwidth, {instead}'
    from nsupervisor.linux.traffic_control import find_missing_limiter  # few configurations limit bandwidth

    try:
        missing = find_missing_limiter()
    except OSError:  # the service may not make a network either, which is reported as such
        return None
    return missing and f"this kernel lacks {missing}, which limits bandwidth; install the module, {instead}"


def is_forwarding() -> bool:
    """Return whether this host forwards IPv4 packets between its devices, ip-sysctl.rst."""
    try:
        with open(FORWARDING_FILE) as file:
            return file.read().strip() != "0"
    except OSError:
        return False
