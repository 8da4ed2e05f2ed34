"""Published ports: "127.0.0.1:8080:80/tcp", as in Compose and `podman run --publish`."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from nsupervisor.config.kinds import Scalar, whole_text_pattern

PROTOCOLS = ("tcp", "udp", "sctp")
_PATTERN = (
    r"(?:(?P<host>[0-9]{1,3}(?:\.[0-9]{1,3}){3}|\[[0-9A-Fa-f]*:[0-9A-Fa-f:.]*\]):)?"
    r"(?P<host_port>[0-9]{1,5}):(?P<port>[0-9]{1,5})(?:/(?P<protocol>[a-z]+))?"
)


class PublishedPort(NamedTuple):
    """A port of the host whose connections lead to a port of the workload. `host`: an address of the host, "": all."""

    host: str
    host_port: int
    port: int
    protocol: str

    def __str__(self) -> str:
        """Format the port as it is written."""
        host = f"[{self.host}]:" if ":" in self.host else f"{self.host}:" if self.host else ""
        return f"{host}{self.host_port}:{self.port}/{self.protocol}"


def _load(value: Any) -> PublishedPort:
    match = re.fullmatch(_PATTERN, value, re.ASCII) if isinstance(value, str) else None
    if match is None:
        raise ValueError(
            'is not a published port; write "HOST PORT:PORT", such as "127.0.0.1:8080:80/tcp" for this machine alone, '
            'or "8080:80" for every network'
        )
    host, protocol = (match["host"] or "").strip("[]"), match["protocol"] or "tcp"
    if host:
        import socket  # imported here because few files have an address, and it slows down every start

        try:
            socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
        except OSError:
            raise ValueError("has an address that cannot be; write one of the host's, or none") from None
    host_port, port = int(match["host_port"]), int(match["port"])
    if not (1 <= host_port <= 65535 and 1 <= port <= 65535):
        raise ValueError("has a port that cannot be; write numbers from 1 to 65535")
    if protocol not in PROTOCOLS:
        raise ValueError(f"has an unknown protocol; write one of {', '.join(PROTOCOLS)}")
    return PublishedPort(host, host_port, port, protocol)


PUBLISHED_PORT = Scalar(
    _load, {"type": "string", "pattern": whole_text_pattern(re.sub(r"\?P<[a-z_]+>", "", _PATTERN))}, str
)
