"""The names and addresses of this host that a `Host` field may have on TCP.

A web page can make its own name resolve to this host's address (DNS rebinding), and then read what the browser can
reach; the browser still sends the page's name in `Host`. No name server is queried, as that could block.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Collection

_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._~-]*))(?::[0-9]*)?")
HOSTS_FILE = "/etc/hosts"


class AllowedHosts:
    """Decides whether a `Host` field names this host. `address`: the IP address of the listener."""

    def __init__(
        self,
        address: str,
        names: Collection[str] | None = None,
        is_local: Callable[[str], bool] | None = None,
    ) -> None:
        self._address = ipaddress.ip_address(address)
        self._names = frozenset(name.lower() for name in (local_host_names() if names is None else names))
        self._is_local = is_local or is_local_address

    def allows(self, host: str) -> bool:
        """Return whether a `Host` field (a name or an address, with or without a port) names this host.

        The port is ignored: a forwarded port may differ, and a rebinding page has the same port.

        Raises:
            ValueError: the field is not valid, RFC 9110 section 7.2.
        """
        match = _HOST.fullmatch(host.strip())
        if match is None:
            raise ValueError("the Host field is neither a name nor an address")
        name = (match["v6"] or match["name"]).lower().removesuffix(".")
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        if not self._address.is_unspecified:
            return address == self._address
        # A socket can be bound to these addresses, too, but no interface has them.
        if address.is_multicast or address.is_unspecified or (address.version == 4 and address.is_reserved):
            return False
        return self._is_local(str(address))


def local_host_names() -> set[str]:
    """Return localhost, the host name, and the names in the same line of /etc/hosts as the host name."""
    name = socket.gethostname().lower()
    names = {"localhost", name}
    try:
        with open(HOSTS_FILE, encoding="utf-8", errors="replace") as file:
            lines = [line.partition("#")[0].lower().split()[1:] for line in file]
    except OSError:
        lines = []
    for words in lines:
        if name in words:
            names.update(words)
    return {name.removesuffix(".") for name in names}


def is_local_address(address: str) -> bool:
    """Return whether an interface of this network namespace has the address: only then can a socket be bound, ip(7)."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True
