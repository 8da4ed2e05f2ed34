"""The tables `startup`, `readiness` and `liveness` of a workload: how the supervisor finds out whether it works.

The words, the defaults and the meaning are those of Kubernetes' probes, in snake_case; `start_interval_sec` is Docker's
`--health-start-interval`.
"""

from __future__ import annotations

from typing import Any, Literal

from attrs import field, frozen

from nsupervisor.config import kinds
from nsupervisor.config.kinds import Choice, MapOf, Scalar, TableOf, key, matching
from nsupervisor.config.line_patterns import LINE_PATTERN
from nsupervisor.config.table import Table

Scheme = Literal["http", "https"]
ProbeKind = Literal["startup", "readiness", "liveness"]

LOOPBACK = "127.0.0.1"
MIN_INTERVAL_S = 0.1
"""The shortest time between two probes, in seconds."""
_PATH_PATTERN = r"/[!-~]*"
_HOST_PATTERN = r"[A-Za-z0-9._:-]{1,253}"
_NAME_PATTERN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # a token, RFC 9110, 5.6.2
_FRAMING_HEADERS = frozenset(
    ("connection", "content-length", "transfer-encoding", "upgrade", "expect", "te", "trailer")
)
"""Headers that say how a request is framed, in lower case."""
_VALUE_PATTERN = r"([!-~]([ \t!-~]*[!-~])?)?"  # ASCII without line ends, RFC 9110, 5.5


def _header_name(value: Any) -> str:
    name: str = _TOKEN.load(value)
    if name.lower() in _FRAMING_HEADERS:
        raise ValueError("is set by the probe itself; remove it")
    return name


def _interval(value: Any) -> float:
    seconds: float = kinds.DURATION.load(value)
    if seconds < MIN_INTERVAL_S:
        raise ValueError(f"is shorter than {MIN_INTERVAL_S:g} s; write a longer time")
    return seconds


_PORT = kinds.integer(1, 65535, 8080)
_FD = kinds.integer(3, 1023, 3)
_PATH = matching(_PATH_PATTERN, 'is not the path of a URL in ASCII; write for example "/healthz"')
_HOST = matching(_HOST_PATTERN, f'is not an IP address or a host name; write for example "{LOOPBACK}"')
_TOKEN = matching(_NAME_PATTERN, 'is not the name of a header; write for example "Host"')
_HEADER_NAME = Scalar(_header_name, _TOKEN.schema)
_HEADER_VALUE = matching(_VALUE_PATTERN, "is not a value of a header: ASCII without line ends; write another one")
_INTERVAL = Scalar(_interval, kinds.DURATION.schema, kinds.DURATION.to_text)


@frozen(kw_only=True, repr=False)
class HttpGet(Table):
    """[workload.NAME.readiness.http_get]: a GET request that has to be answered with a status from 200 to 399."""

    port: int = field(metadata=key(_PORT, "the TCP port"))
    path: str = field(default="/", metadata=key(_PATH, "the path, with a query if it needs one"))
    host: str = field(default=LOOPBACK, metadata=key(_HOST, "an IP address of this host, or a name"))
    scheme: Scheme = field(
        default="http", metadata=key(Choice.of(Scheme), "https: the certificate of the server is not checked")
    )
    http_headers: dict[str, str] = field(
        factory=dict, metadata=key(MapOf(_HEADER_VALUE, key=_HEADER_NAME), "headers of the request", secret=True)
    )


@frozen(kw_only=True, repr=False)
class TcpSocket(Table):
    """[workload.NAME.readiness.tcp_socket]: a connection that has to be accepted; it is closed at once."""

    port: int = field(metadata=key(_PORT, "the TCP port"))
    host: str = field(default=LOOPBACK, metadata=key(_HOST, "an IP address of this host, or a name"))


@frozen(kw_only=True, repr=False)
class ProbeConfig(Table):
    """The keys that all probes have."""

    http_get: HttpGet | None = field(
        default=None, metadata=key(TableOf(HttpGet), "an HTTP request; exactly one of http_get, tcp_socket and exec")
    )
    tcp_socket: TcpSocket | None = field(default=None, metadata=key(TableOf(TcpSocket), "a TCP connection"))
    exec_: tuple[str, ...] = field(
        default=(), metadata=key(kinds.COMMAND, "a command in the workload, whose exit status has to be 0")
    )
    initial_delay_sec: float = field(
        default=0.0, metadata=key(kinds.DURATION, "how long after the program's start the first one is")
    )
    period_sec: float = field(default=10.0, metadata=key(_INTERVAL, "the time between two"))
    timeout_sec: float = field(default=1.0, metadata=key(_INTERVAL, "one that takes longer has failed"))
    success_threshold: int = field(
        default=1, metadata=key(kinds.POSITIVE, "after a failure, how many in a row have to succeed")
    )
    failure_threshold: int = field(default=3, metadata=key(kinds.POSITIVE, "how many in a row have to fail"))
    start_interval_sec: float = field(
        default=0.5, metadata=key(_INTERVAL, "the time between two until the first success, if period_sec is longer")
    )


@frozen(kw_only=True, repr=False)
class EndingProbeConfig(ProbeConfig):
    """A probe whose failure ends the program."""

    termination_grace_period_sec: float | None = field(
        default=None,
        metadata=key(kinds.TIMEOUT, "the program's time to end after kill_signal; default: timeout_stop_sec"),
    )


@frozen(kw_only=True, repr=False)
class StartupConfig(EndingProbeConfig):
    """[workload.NAME.startup]: has the program started? Other probes begin when this one has succeeded once."""


@frozen(kw_only=True, repr=False)
class ReadinessConfig(ProbeConfig):
    """[workload.NAME.readiness]: can the program do its work now? Never ends it; dependents wait for it."""

    log: str | None = field(
        default=None,
        metadata=key(
            LINE_PATTERN, "in place of a probe: a line of its output that matches this means that it is ready"
        ),
    )

    fd: int | None = field(
        default=None,
        metadata=key(_FD, "in place of a probe: a newline that the program writes to this descriptor, as with s6"),
    )

    @property
    def is_own_report(self) -> bool:
        """Whether the program itself says that it is ready, once, so that nothing is asked."""
        return self.log is not None or self.fd is not None


ASKING_KEYS = (
    *("initial_delay_sec", "period_sec", "timeout_sec", "success_threshold", "failure_threshold"),
    "start_interval_sec",
)
"""The keys of a probe that is sent again and again."""


@frozen(kw_only=True, repr=False)
class LivenessConfig(EndingProbeConfig):
    """[workload.NAME.liveness]: does the program still work? If not, it is ended, and `restart` decides."""
