"""The files by which a program resolves names, /etc/hosts and /etc/resolv.conf: which it gets, with which text. Pure.

Sources: hosts(5), resolv.conf(5), resolver(5). A line of either file ends at a newline, and a name at a blank, so each
text that comes from elsewhere (a configuration, the host's file, the answer of a plugin) is checked here once more.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from nsupervisor.config.model import WorkloadConfig

HOSTS, RESOLVER = "/etc/hosts", "/etc/resolv.conf"
SYSTEMD_RESOLVER = "/run/systemd/resolve/resolv.conf"
"""The servers that systemd-resolved asks; the usual file may have its loopback address, systemd-resolved.service(8)."""
MAX_RESOLVER_BYTES = 1 << 16
MAX_HOSTS_BYTES = 1 << 20
"""The largest files of the host that are copied."""
_LOCALHOST = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?"
_DOMAIN = r"\.|[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?"
_OPTION = r"[a-z0-9-]{1,32}(?::[0-9]{1,5})?"
_PEERS = "# The addresses of the workloads in the network "
"""The beginning of the line after which the names of peers follow."""


class WantedFile(NamedTuple):
    """A file that a program gets in place of what is at this path."""

    settings: tuple[str, ...]
    """The lines of the configuration about it, for comparisons."""

    @property
    def is_required(self) -> bool:
        """Whether a program without it must not start: the configuration asks for what is in it."""
        return bool(self.settings)


def wanted_files(workload: WorkloadConfig) -> dict[str, WantedFile]:
    """Return the files that the program of a workload gets, by path.

    A program with the host's network sees the host's files, and one with nothing but a loopback device, too: no
    resolver could be reached. Those of a workload that joins the network of another one are the files of that one.
    """
    if not workload.namespaces.mount:
        return {}
    network, settings = workload.namespaces.network, workload.network
    wanted = {}
    hosts = tuple(f"{name} {address}" for name, address in settings.hosts.items())
    if hosts or workload.namespaces.has_peers:
        wanted[HOSTS] = WantedFile(hosts)
    dns = settings.dns
    words = (("nameserver", dns.servers), ("search", dns.search), ("options", dns.options))
    resolver = tuple(" ".join([word, *values]) for word, values in words if values)
    if resolver or isinstance(network, str):
        wanted[RESOLVER] = WantedFile(resolver)
    mounted = {mount.destination for mount in workload.mounts}
    return {path: file for path, file in wanted.items() if path not in mounted}


# ---- /etc/hosts


def hosts_head(
    hosts: Mapping[str, str], hostname: str | None = None, addresses: Sequence[str] = (), host_file: str | None = None
) -> str:
    """Return the part of a hosts file that stays while its program runs.

    `hosts`: addresses by name. `hostname`, `addresses`: the program's own, if it is in a network. `host_file`: what the
    host's file has; None for a network other than the host's.
    """
    lines = [f"{address} {name}" for name, address in hosts.items() if _is_entry(address, name)]
    if hostname is not None:
        known = {name.lower() for name in hosts}
        lines += [f"{ip} {hostname}" for ip in addresses if _is_entry(ip, hostname) and hostname.lower() not in known]
    text = "".join(f"{line}\n" for line in lines)
    return (
        f"{text}{_LOCALHOST}"
        if host_file is None
        else f"{text}{host_file}{'' if host_file[-1:] == chr(10) else chr(10)}"
    )


def head_of(text: str) -> str:
    """Return the part of a hosts file that `hosts_head` has made."""
    position = text.find(f"\n{_PEERS}")
    return text if position < 0 else text[: position + 1]


def with_peers(head: str, network: str, peers: Mapping[str, Sequence[str]]) -> str:
    """Return a hosts file. `peers`: the addresses of each instance in the network.

    An instance "web@2" has the names "web-2" and "web", which it shares with the other instances of its workload. A
    name in the head is not repeated, so no workload takes the name of another host, or "localhost". If a workload has
    the name "web-2", that is the only one.
    """
    return head + peers_part(network, peers, names_in(head))


def names_in(head: str) -> frozenset[str]:
    """Return the names in a part of a hosts file, in lower case."""
    return frozenset(name.lower() for line in head.split("\n") for name in line.partition("#")[0].split()[1:])


def peers_part(network: str, peers: Mapping[str, Sequence[str]], taken: Collection[str]) -> str:
    """Return the part of a hosts file with the peers, without names that are `taken`, in lower case."""
    owners = {name.lower(): name for name in sorted(peers, reverse=True) if "@" not in name}
    lines = [f"{_PEERS}{network}:"]
    for instance in sorted(peers):
        names = []
        for name, owner in _names_of(instance):
            is_free = name.lower() not in taken and is_host_name(name)
            if is_free and owners.setdefault(name.lower(), owner) == owner:
                names.append(name)
        words = " ".join(names)
        lines += [f"{address} {words}" for address in peers[instance] if words and is_address(address)]
    return "".join(f"{line}\n" for line in lines)


def has_name_as_peer(instance: str, hostname: str | None) -> bool:
    """Return whether a host name is one that peers know the instance by: then its head need not have it."""
    return any(name == hostname for name, _ in _names_of(instance))


def _names_of(instance: str) -> list[tuple[str, str]]:
    """Return the names of an instance in its network, and for each who else may have it: those with the same text."""
    workload, at, number = instance.partition("@")
    return [(f"{workload}-{number}", instance), (workload, f"{workload}@")] if at else [(instance, instance)]


@functools.lru_cache(1 << 14)  # each start of a workload looks at all of its peers
def is_address(text: str) -> bool:
    """Return whether a text is an IP address, without a zone."""
    return _packed(text) is not None


def _packed(text: str) -> bytes | None:
    import socket  # imported here, as few configurations have any

    if not re.fullmatch(r"[0-9A-Fa-f:.]{2,45}", text, re.ASCII):
        return None
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except OSError:
        return None


@functools.lru_cache(1 << 14)
def is_host_name(text: str) -> bool:
    """Return whether a text can be a name in a hosts file."""
    return re.fullmatch(_NAME, text, re.ASCII) is not None


def is_domain(text: str) -> bool:
    """Return whether a text can be a domain to search in."""
    return re.fullmatch(_DOMAIN, text, re.ASCII) is not None


def is_option(text: str) -> bool:
    """Return whether a text can be an option of the resolver."""
    return re.fullmatch(_OPTION, text, re.ASCII) is not None


def _is_entry(address: str, name: str) -> bool:
    return is_address(address) and is_host_name(name)


# ---- /etc/resolv.conf


class Resolver(NamedTuple):
    """The name servers and other settings of a resolv.conf."""

    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The contents of the file."""
        lines = [f"nameserver {server}" for server in self.servers]
        lines += [
            " ".join([word, *values]) for word, values in (("search", self.search), ("options", self.options)) if values
        ]
        return "".join(f"{line}\n" for line in lines)

    def without_loopback(self) -> Resolver:
        """Return it without the servers that only the host's own network reaches."""
        return self._replace(servers=tuple(server for server in self.servers if not _is_local(server)))

    def changed(self, servers: Sequence[str], search: Sequence[str], options: Sequence[str]) -> Resolver:
        """Return it with these values in place of its own, as far as there are any."""
        given = {"servers": servers, "search": search, "options": options}
        return self._replace(**{key: tuple(values) for key, values in given.items() if values})


def _is_local(server: str) -> bool:
    """Return whether an address is a loopback address, none, or of IPv6 and valid on one link only."""
    packed = (_packed(server) or bytes(4)).removeprefix(bytes(10) + b"\xff\xff")
    if len(packed) == 4:
        return packed[0] == 127 or not any(packed)
    is_single = not any(packed[:15]) and packed[15] < 2
    return is_single or (packed[0] == 0xFE and packed[1] & 0xC0 == 0x80)


def parse_resolver(text: str) -> Resolver:
    """Return what a resolv.conf of the host says. What it does not understand, or what has a zone, is left out."""
    servers: list[str] = []
    search: list[str] = []
    options: list[str] = []
    for line in text.split("\n"):
        word, *values = line.split() or [""]
        if word == "nameserver":
            servers += [value for value in values[:1] if is_address(value)]
        elif word in ("search", "domain"):  # the last one counts
            search = [value for value in values if is_domain(value)]
        elif word == "options":
            options += [value for value in values if is_option(value)]
    return Resolver(tuple(servers), tuple(search), tuple(options))


def reachable_resolver(usual: Resolver, others: Iterable[Resolver]) -> Resolver:
    """Return the one to use in a network that is not the host's: without loopback, or the first that has more."""
    reachable = usual.without_loopback()
    if usual.servers and not reachable.servers:
        return next((found for other in others if (found := other.without_loopback()).servers), reachable)
    return reachable


def peers_by_network(attachments: Iterable[tuple[str, str, Sequence[str]]]) -> dict[str, dict[str, list[str]]]:
    """Return the addresses of each instance, by network. `attachments`: instance, network, addresses."""
    found: dict[str, dict[str, list[str]]] = {}
    for instance, network, addresses in attachments:
        found.setdefault(network, {})[instance] = list(addresses)
    return found
