"""Networks as CNI configuration lists: what is asked of each plugin, and what it answers. Pure.

Source: the CNI specification, versions 0.4.0 to 1.1.0 (containernetworking.github.io): sections 1 (lists), 2 (execution
protocol), 3 (derivation of requests) and 5 (results). With these versions DEL gets the result of ADD, without which
plugins cannot undo everything.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

CNI_VERSIONS = ("0.4.0", "1.0.0", "1.1.0")
MAX_PLUGINS = 16
INTERFACE = "eth0"
"""The name of the device in the workload, as in containers."""
DEFAULT_NETWORK = "default"
_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DEFAULT: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "name": DEFAULT_NETWORK,
    "plugins": [
        {
            "type": "bridge",
            "bridge": "nsupervisor0",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.131.0.0/16"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "firewall", "backend": "iptables"},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    ],
}


class NetworkError(Exception):
    """A network cannot be used; the text says which part, and why."""


class NetworkList(NamedTuple):
    """A network: its name, the version of the protocol, and the configuration of each plugin, in the order of ADD."""

    name: str
    version: str
    plugins: tuple[dict[str, Any], ...]

    @property
    def types(self) -> tuple[str, ...]:
        """The names of the plugins' programs, each once, with those that assign addresses."""
        names = [plugin["type"] for plugin in self.plugins]
        names += [plugin["ipam"]["type"] for plugin in self.plugins if plugin.get("ipam", {}).get("type")]
        return tuple(dict.fromkeys(names))

    @property
    def enables_forwarding(self) -> str:
        """The plugin that switches on the host's forwarding of packets, for its gateway; "" if none does."""
        for plugin in self.plugins:
            is_gateway = plugin.get("isGateway") or plugin.get("isDefaultGateway")
            if plugin["type"] == "ptp" or (plugin["type"] == "bridge" and is_gateway):
                return str(plugin["type"])
        return ""

    @property
    def masquerades(self) -> bool:
        """Whether it changes the source addresses of packets that leave the host."""
        return any(plugin["type"] in ("bridge", "ptp") and plugin.get("ipMasq") for plugin in self.plugins)

    @property
    def needs_iptables(self) -> str:
        """The plugin that makes rules of the firewall with the program iptables; "" if none does."""
        for plugin in self.plugins:
            uses = {
                "portmap": plugin.get("backend", "iptables") == "iptables",
                "firewall": plugin.get("backend") == "iptables",
            }.get(plugin["type"], False)
            masquerades = plugin["type"] in ("bridge", "ptp") and plugin.get("ipMasq")
            if uses or (masquerades and plugin.get("ipMasqBackend", "iptables") == "iptables"):
                return str(plugin["type"])
        return ""

    def has_capability(self, name: str) -> bool:
        """Return whether a plugin takes runtime values of this name, such as "portMappings"."""
        return any(_capabilities(plugin).get(name) is True for plugin in self.plugins)


def default_network() -> NetworkList:
    """Return the network that is there without any file."""
    return parse_network(json.dumps(_DEFAULT), DEFAULT_NETWORK)


def parse_network(text: str, name: str) -> NetworkList:
    """Parse a configuration list, the contents of NAME.conflist. Raises NetworkError."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise NetworkError("it is not JSON") from None
    if not isinstance(document, dict) or not isinstance(document.get("plugins"), list):
        raise NetworkError('it is not a configuration list: it has no list "plugins"')
    if document.get("name") != name:
        raise NetworkError(f'its "name" is {document.get("name")!r:.80}; write "{name}", as in the name of the file')
    version = document.get("cniVersion")
    if version not in CNI_VERSIONS:
        raise NetworkError(f'its "cniVersion" is {version!r:.80}; write one of {", ".join(CNI_VERSIONS)}')
    plugins = document["plugins"]
    if not 1 <= len(plugins) <= MAX_PLUGINS:
        raise NetworkError(f"it has {len(plugins)} plugins; write 1 to {MAX_PLUGINS}")
    for plugin in plugins:
        if not isinstance(plugin, dict) or not _is_type(plugin.get("type")):
            raise NetworkError('a plugin has no "type", the name of its program')
        ipam = plugin.get("ipam", {})
        if not isinstance(ipam, dict) or (ipam and not _is_type(ipam.get("type"))):
            raise NetworkError(f'"ipam" of {plugin["type"]} has no "type", the name of a program')
        if not isinstance(plugin.get("capabilities", {}), dict):
            raise NetworkError(f'"capabilities" of {plugin["type"]} is not an object')
    return NetworkList(name, version, tuple(plugins))


def _is_type(value: object) -> bool:
    return isinstance(value, str) and _TYPE.fullmatch(value) is not None


def _capabilities(plugin: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = plugin.get("capabilities", {})
    return found


def request(
    network: NetworkList, plugin: Mapping[str, Any], runtime: Mapping[str, Any], previous: Mapping[str, Any] | None
) -> bytes:
    """Return the standard input of a plugin. `runtime`: values by capability. `previous`: the result so far."""
    document: dict[str, Any] = {**plugin, "name": network.name, "cniVersion": network.version}
    document.pop("capabilities", None)
    own = {key: value for key, value in runtime.items() if _capabilities(plugin).get(key) is True}
    if own:
        document["runtimeConfig"] = own
    if previous is not None:
        document["prevResult"] = dict(previous)
    return json.dumps(document).encode()


def parse_result(output: bytes) -> dict[str, Any]:
    """Return the result of ADD. Raises NetworkError."""
    try:
        result = json.loads(output)
    except (ValueError, RecursionError):
        raise NetworkError("its answer is not JSON") from None
    if not isinstance(result, dict) or not isinstance(result.get("ips", []), list):
        raise NetworkError("its answer is not a result")
    return result


def error_text(output: bytes, errors: bytes, status: int) -> str:
    """Return why a plugin has failed: the message of its error object, or what it wrote."""
    text = ""
    try:
        document = json.loads(output)
        text = ": ".join(str(document[key]) for key in ("msg", "details") if document.get(key))
    except (ValueError, RecursionError, TypeError, AttributeError, KeyError):
        pass
    if not text:
        lines = (output + b"\n" + errors).decode(errors="replace").strip().splitlines()
        text = lines[-1] if lines else f"exit status {status}"
    return "".join(character if character.isprintable() else " " for character in text)[:300]


def addresses(result: Mapping[str, Any] | None) -> list[str]:
    """Return the IP addresses in a result, without the lengths of their prefixes."""
    entries = [entry for entry in (result or {}).get("ips", []) if isinstance(entry, dict)]
    return [str(entry["address"]).partition("/")[0] for entry in entries if "address" in entry]


def port_mappings(ports: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
    """Return the runtime value "portMappings" of (host address, host port, port, protocol) each."""
    return [
        {"hostPort": host_port, "containerPort": port, "protocol": protocol, **({"hostIP": host} if host else {})}
        for host, host_port, port, protocol in ports
    ]


_MIN_BURST, _MAX_BURST = 64 << 13, (1 << 31) - 1
"""In bits: 64 KiB, the largest packet of a device with segmentation offload; and the most that the plugin takes."""


def bandwidth(bytes_per_second: int) -> dict[str, int]:
    """Return the runtime value "bandwidth": bits a second, in both directions, and bits that may come at once.

    The burst is what comes in a tenth of a second: tbf(8) needs at least what comes in one tick of the kernel's timer.
    """
    rate = bytes_per_second * 8
    burst = min(max(rate // 10, _MIN_BURST), _MAX_BURST)
    return {"ingressRate": rate, "ingressBurst": burst, "egressRate": rate, "egressBurst": burst}


def masquerade_chain(network: str, container_id: str) -> str:
    """Return the name of the chain in the table nat that the plugins bridge and ptp make for an attachment.

    As `FormatChainName` in pkg/utils of the plugins. They remove it only while the device in the workload is there.
    """
    return f"CNI-{hashlib.sha512(f'{network}{container_id}'.encode()).hexdigest()[:24]}"


def masquerade_deletions(rules: str, chain: str) -> list[list[str]]:
    """Return the arguments of iptables that remove a chain and the jumps to it. `rules`: of iptables -t nat -S."""
    import shlex

    deletions = []
    for line in rules.splitlines():
        try:
            words = shlex.split(line)
        except ValueError:  # a rule of others, whose comment has quotes of its own
            continue
        if words[:1] == ["-A"] and words[-2:] == ["-j", chain]:
            deletions.append(["-D", *words[1:]])
    if f"-N {chain}" in rules.splitlines():
        deletions += [["-F", chain], ["-X", chain]]
    return deletions
