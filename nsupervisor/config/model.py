"""The configuration as frozen classes, which declare each key exactly once.

An attribute with `metadata=key(kind, "what it does")` is a TOML key of the same name (a trailing "_" is dropped, as in
`for_`). Its kind defines the accepted values and their Python form; the loader, its messages, and the JSON Schema all
follow from that. The loader fills in attributes without a kind (`WorkloadConfig.name`, `Rule.line`).

`live=True` means that a reload applies a changed value to a running workload; a change of any other key needs a new
process. In a table that is live, every key is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, Literal

from attrs import evolve, field, fields, frozen

from nsupervisor.config import kinds
from nsupervisor.config import limit_kinds as limits
from nsupervisor.config.conditions import Condition as Condition  # a part of the model like the others
from nsupervisor.config.expansion import Instance
from nsupervisor.config.kinds import Choice, ListOf, MapOf, PrefixedKeys, TableOf, TablesOf, key
from nsupervisor.config.paths import PathConfig as PathConfig
from nsupervisor.config.ports import PUBLISHED_PORT, PublishedPort
from nsupervisor.config.probes import LivenessConfig, ProbeConfig, ProbeKind, ReadinessConfig, StartupConfig
from nsupervisor.config.relations import DEPENDENCY, DependencyConfig, to_dependencies
from nsupervisor.config.security import SecurityConfig as SecurityConfig
from nsupervisor.config.sockets import SocketConfig as SocketConfig
from nsupervisor.config.table import Table as Table
from nsupervisor.config.timers import TimerConfig as TimerConfig
from nsupervisor.config.units import Percent
from nsupervisor.config.variants import Differences, apply_differences
from nsupervisor.wire_names import wire

LogLevel = Literal["debug", "info", "warning", "error"]
DEFAULT_RELOAD_SIGNAL = 1
"""SIGHUP, as in systemd.service(5), "ReloadSignal="."""
DEFAULT_START_LIMIT = 5
"""`start_limit_burst` of a workload that is not always restarted."""
Restart = Literal["no", "always", "on-success", "on-failure", "on-abnormal", "on-watchdog"]
ActionName = kinds.ActionName
LogFormat = Literal["auto", "json", "console"]
IsolationMode = Literal["full", "auto", "none"]
OrphanPolicy = Literal["adopt", "kill", "leave"]
CpusetPartition = Literal["member", "root", "isolated"]
Victim = Literal["largest-memory", "fastest-growing", "lowest-priority", "newest"]
LogDestination = Literal["journal", "file", "both", "inherit", "none"]
LogFileFormat = Literal["json", "raw"]
FullPolicy = Literal["block", "drop"]
WorkloadType = Literal["simple", "notify", "notify-reload", "oneshot", "forking"]
NOTIFY_TYPES = ("notify", "notify-reload")
"""The types of programs that report with READY=1 that they are ready."""
ExitType = Literal["main", "cgroup"]
KillMode = Literal["main", "all", "process"]
RestartMode = Literal["normal", "debug"]
NotifyAccess = Literal["none", "main", "all"]
StorePreserve = Literal["restart", "yes", "no"]
MAX_STORED_DESCRIPTORS = 64
"""The largest file_descriptor_store_max: with 64 sockets these are as many as a program can get at its start."""
OomPreference = Literal["none", "avoid", "omit"]
IoClass = Literal["realtime", "best-effort", "idle"]
"""In the order of their numbers in ioprio_set(2), from 1."""
CpuPolicy = Literal["other", "batch", "idle", "fifo", "rr"]


@frozen(repr=False)
class SupervisorConfig(Table):
    """[supervisor]: the service itself."""

    name: str = field(
        default="nsupervisor",
        metadata=key(kinds.NAME, "the name of its cgroup subtree"),
    )
    runtime_directory: str = field(
        default="/run/nsupervisor",
        metadata=key(kinds.PATH, "where the control socket, the keeper's socket and the state are"),
    )
    state_directory: str | None = field(
        default=None,
        metadata=key(kinds.PATH, "what outlives a stop; default: /var/lib/nsupervisor, without root XDG_STATE_HOME"),
    )
    isolation: IsolationMode = field(
        default="full",
        metadata=key(
            Choice.of(IsolationMode),
            "cgroups and namespaces: required; used as far as they are available; not used, as in plain containers",
        ),
    )
    exit_on: tuple[str, ...] = field(
        default=(),
        metadata=key(ListOf(kinds.EXIT_ON), "stop the service when a workload has ended, with its exit status"),
    )
    log_level: LogLevel = field(
        default="info",
        metadata=key(Choice.of(LogLevel), "the least important record to write", live=True),
    )
    log_format: LogFormat = field(
        default="auto",
        metadata=key(
            Choice.of(LogFormat),
            "one JSON object a line, or text for people; auto: text if the output is a terminal, else JSON",
        ),
    )
    log_output: str | tuple[str, ...] = field(
        default="stdout",
        metadata=key(kinds.LOG_OUTPUT, '"stdout", a file\'s path, "journald", "syslog:SOCKET", or { command = [...] }'),
    )
    log_max_size: int = field(
        default=64 << 20, metadata=key(kinds.FILE_SIZE, "log_output: a larger file is rotated", live=True)
    )
    log_max_files: int = field(
        default=5,
        metadata=key(
            kinds.POSITIVE,
            "log_output: how many files to keep, the one in use included; a rotation deletes the oldest",
            live=True,
        ),
    )
    log_max_age: float | None = field(
        default=None, metadata=key(kinds.AGE, "log_output: an older file is rotated", live=True)
    )
    log_compress: bool = field(
        default=False, metadata=key(kinds.BOOLEAN, "log_output: compress rotated files with gzip", live=True)
    )
    orphans: OrphanPolicy = field(
        default="adopt",
        metadata=key(
            Choice.of(OrphanPolicy),
            "what to do, when the service starts, with unknown processes in a workload's cgroup",
        ),
    )
    log_directory: str = field(
        default="/var/log/nsupervisor",
        metadata=key(kinds.PATH, "where the workloads' own log files are"),
    )
    metrics: tuple[str, int] | None = field(
        default=None,
        metadata=key(kinds.ADDRESS, 'the IP address and port that answer GET /metrics: "127.0.0.1:9631"'),
    )


@frozen(repr=False)
class NamespacesConfig(Table):
    """[workload.NAME.namespaces]: true makes a new namespace, false shares the supervisor's.

    "workload:NAME" and "path:/FILE" join that of another workload, or the one behind a file. "cni:NAME" is a new
    network namespace, in which plugins set up the network NAME.
    """

    mount: bool = field(default=True, metadata=key(kinds.MOUNT_NAMESPACE, "its own mounts, with its own /proc"))
    pid: bool = field(default=True, metadata=key(kinds.PID_NAMESPACE, "its own process numbers"))
    uts: bool | str = field(default=True, metadata=key(kinds.JOINABLE_NAMESPACE, "its own host name"))
    ipc: bool | str = field(
        default=True, metadata=key(kinds.JOINABLE_NAMESPACE, "its own System V IPC and message queues")
    )
    cgroup: bool = field(default=True, metadata=key(kinds.CGROUP_NAMESPACE, "sees its own cgroup as the root"))
    network: bool | str = field(default=False, metadata=key(kinds.NETWORK, "its own network, with loopback only"))
    user: bool = field(default=False, metadata=key(kinds.USER_NAMESPACE, "its own users and capabilities"))
    time: bool = field(default=False, metadata=key(kinds.TIME_NAMESPACE, "its own monotonic and boot-time clocks"))
    hostname: str | None = field(default=None, metadata=key(kinds.HOSTNAME, "the host name in a new uts namespace"))
    time_offsets: dict[str, float] = field(
        factory=dict,
        metadata=key(
            MapOf(kinds.OFFSET, names=("monotonic", "boottime")),
            "how far the clocks of a new time namespace are ahead (seconds or a duration; may be negative)",
        ),
    )

    @property
    def joined(self) -> dict[str, str]:
        """The namespaces that are entered: by kind, "workload:NAME", "path:/FILE", or "cni:NAME" for a network."""
        values = {kind: getattr(self, kind) for kind in ("network", "uts", "ipc")}
        return {kind: value for kind, value in values.items() if isinstance(value, str)}

    @property
    def joined_workloads(self) -> dict[str, str]:
        """The names of the workloads whose namespaces are joined, by kind."""
        return {
            kind: value.removeprefix(kinds.JOIN_WORKLOAD)
            for kind, value in self.joined.items()
            if value.startswith(kinds.JOIN_WORKLOAD)
        }

    @property
    def cni_network(self) -> str:
        """The name of the network that plugins set up; "" if none does."""
        is_cni = isinstance(self.network, str) and self.network.startswith(kinds.CNI)
        return str(self.network).removeprefix(kinds.CNI) if is_cni else ""

    @property
    def has_peers(self) -> bool:
        """Whether other workloads may have addresses in its network."""
        return bool(self.cni_network) or "network" in self.joined_workloads


@frozen(repr=False)
class DnsConfig(Table):
    """[workload.NAME.network.dns]: what its /etc/resolv.conf says in place of the host's."""

    servers: tuple[str, ...] = field(
        default=(), metadata=key(ListOf(kinds.IP_ADDRESS), "addresses of at most three name servers, in this order")
    )
    search: tuple[str, ...] = field(
        default=(), metadata=key(ListOf(kinds.SEARCH_DOMAIN), "domains in which short names are looked up")
    )
    options: tuple[str, ...] = field(
        default=(), metadata=key(ListOf(kinds.RESOLVER_OPTION), 'options of resolv.conf(5): "ndots:2"')
    )


@frozen(repr=False)
class NetworkConfig(Table):
    """[workload.NAME.network]: the ports that lead into its network, and how it resolves names."""

    publish: tuple[PublishedPort, ...] = field(
        default=(),
        metadata=key(
            ListOf(PUBLISHED_PORT), 'ports of the host that lead to ports of the workload: "127.0.0.1:8080:80/tcp"'
        ),
    )
    bandwidth_max: int | None = field(
        default=None,
        metadata=key(kinds.BANDWIDTH, 'bytes a second that it receives, and sends, at most: "10MB/s"'),
    )
    dns: DnsConfig = field(
        factory=DnsConfig, metadata=key(TableOf(DnsConfig), "what its /etc/resolv.conf says in place of the host's")
    )
    hosts: dict[str, str] = field(
        factory=dict,
        metadata=key(MapOf(kinds.IP_ADDRESS, key=kinds.HOSTS_NAME), "names in its /etc/hosts, and their addresses"),
    )


@frozen(repr=False)
class NetworksConfig(Table):
    """[network]: the networks of this host."""

    allow_forwarding: bool = field(
        default=False,
        metadata=key(
            kinds.BOOLEAN, "plugins may switch on the host's forwarding of packets (net.ipv4.ip_forward)", live=True
        ),
    )
    config_directory: str = field(
        default="/etc/cni/net.d",
        metadata=key(kinds.PATH, "where the files NAME.conflist of networks are", live=True),
    )


@frozen(repr=False)
class IdMapping(Table):
    """A range of ids inside the workload and the corresponding ids outside (user_namespaces(7))."""

    container_id: int = field(metadata=key(kinds.ID, "the first id inside"))
    host_id: int = field(metadata=key(kinds.ID, "the first id outside"))
    size: int = field(metadata=key(kinds.ID_COUNT, "how many ids"))


@frozen(repr=False)
class UserNamespaceConfig(Table):
    """[workload.NAME.user_namespace]; without mappings, a range of ids of its own; without root, the own user alone."""

    uid_mappings: tuple[IdMapping, ...] = field(default=(), metadata=key(TablesOf(IdMapping), "user ids"))
    gid_mappings: tuple[IdMapping, ...] = field(default=(), metadata=key(TablesOf(IdMapping), "group ids"))


@frozen(repr=False)
class RootConfig(Table):
    """[workload.NAME.root]: a root file system of its own, in place of the host's."""

    path: str | None = field(
        default=None, metadata=key(kinds.PATH, "a directory with the root file system; default: the host's root")
    )
    image: str | None = field(
        default=None,
        metadata=key(kinds.IMAGE, 'a container image in place of a directory: "oci:DIR:TAG", "docker-archive:FILE"'),
    )
    readonly: bool = field(default=False, metadata=key(kinds.BOOLEAN, "it is read-only, with all that is in it"))
    overlay: bool | str = field(
        default=False,
        metadata=key(
            kinds.OVERLAY, 'changes go to a layer above it: true, in memory; "NAME", kept below the state directory'
        ),
    )

    @property
    def is_own(self) -> bool:
        """Whether the workload has a root of its own, a directory or an image."""
        return self.path is not None or self.image is not None


@frozen(kw_only=True, repr=False)
class MountConfig(Table):
    """[[workload.NAME.mounts]]: a mount in the workload's mount namespace, in OCI runtime terms."""

    type: str = field(
        default="bind", metadata=key(kinds.FILESYSTEM, '"bind", "volume", or a file system such as "tmpfs"')
    )
    source: str | None = field(
        default=None, metadata=key(kinds.TEXT, "what to mount; for a bind, an absolute path; for a volume, its name")
    )
    destination: str = field(metadata=key(kinds.PATH, "where, inside of the workload"))
    options: tuple[str, ...] = field(default=(), metadata=key(ListOf(kinds.MOUNT_OPTION), "as mount(8) takes them"))


@frozen(kw_only=True, repr=False)
class IoMax(Table):
    """[[workload.NAME.resources.io_max]]: limits for one disk. None: no limit."""

    device: str = field(metadata=key(kinds.PATH, "a file or directory on the disk, or its device node"))
    rbps: int | None = field(default=None, metadata=key(kinds.LIMIT, "bytes read a second"))
    wbps: int | None = field(default=None, metadata=key(kinds.LIMIT, "bytes written a second"))
    riops: int | None = field(default=None, metadata=key(limits.RATE_LIMIT, "reads a second"))
    wiops: int | None = field(default=None, metadata=key(limits.RATE_LIMIT, "writes a second"))


@frozen(kw_only=True, repr=False)
class IoLatency(Table):
    """[[workload.NAME.resources.io_latency]]: a latency target; other cgroups are throttled when it is missed."""

    device: str = field(metadata=key(kinds.PATH, "a file or directory on the disk, or its device node"))
    target: int = field(metadata=key(limits.LATENCY, 'how long a request may take: "20ms", or microseconds'))


@frozen(kw_only=True, repr=False)
class RdmaMax(Table):
    """[[workload.NAME.resources.rdma_max]]: limits for one RDMA device. None: no limit."""

    device: str = field(metadata=key(kinds.WORD, 'as rdma.max calls it: "mlx4_0"'))
    hca_handle: int | None = field(default=None, metadata=key(limits.NUMBER_LIMIT, "handles"))
    hca_object: int | None = field(default=None, metadata=key(limits.NUMBER_LIMIT, "objects"))


@frozen(repr=False)
class Resources(Table):
    """[workload.NAME.resources], and the keys of [group.NAME]: cgroup v2 files by their own names.

    None, or an empty table or list, means not set.
    """

    required: bool = field(
        default=True,
        metadata=key(kinds.BOOLEAN, "refuse to start where the host cannot enforce these; false: warn and go on"),
    )
    memory_min: int | Percent | None = field(
        default=None, metadata=key(limits.MEMORY_PROTECTION, "below it, nothing is ever taken away from it")
    )
    memory_low: int | Percent | None = field(
        default=None, metadata=key(limits.MEMORY_PROTECTION, "below it, others give memory back first")
    )
    memory_high: int | Percent | None = field(
        default=None, metadata=key(limits.MEMORY_LIMIT, "above it, allocations slow down")
    )
    memory_max: int | Percent | None = field(
        default=None, metadata=key(limits.MEMORY_LIMIT, "above it, the OOM killer acts")
    )
    memory_swap_max: int | Percent | None = field(
        default=None, metadata=key(limits.MEMORY_LIMIT_0, "what it may have in swap, in addition to memory_max")
    )
    memory_zswap_max: int | Percent | None = field(
        default=None, metadata=key(limits.MEMORY_LIMIT_0, "what it may have compressed in memory")
    )
    memory_oom_group: bool | None = field(
        default=None, metadata=key(kinds.BOOLEAN, "the OOM killer ends the whole workload")
    )
    pids_max: int | Percent | None = field(default=None, metadata=key(limits.COUNT_LIMIT, "processes and threads"))
    cpu_max: tuple[int | None, int] | None = field(
        default=None,
        metadata=key(limits.CPU_MAX, 'share of CPU time: "150%", "QUOTA PERIOD" in microseconds, "max"'),
    )
    cpu_max_burst: int | None = field(
        default=None, metadata=key(limits.MICROSECONDS, 'unused time it may catch up on: "20ms", or microseconds')
    )
    cpu_weight: int | Literal["idle"] | None = field(
        default=None,
        metadata=key(
            limits.CPU_WEIGHT, 'share of busy CPUs against its siblings; the kernel\'s is 100; "idle": only else'
        ),
    )
    cpuset_cpus: str | None = field(default=None, metadata=key(limits.CPU_LIST, 'the CPUs it may run on: "0-1,4"'))
    cpuset_mems: str | None = field(default=None, metadata=key(limits.NODE_LIST, 'its memory nodes: "0"'))
    cpuset_cpus_partition: CpusetPartition | None = field(
        default=None,
        metadata=key(Choice.of(CpusetPartition), "whether its CPUs are taken away from all others"),
    )
    io_max: tuple[IoMax, ...] = field(default=(), metadata=key(TablesOf(IoMax), "how fast disks may be used"))
    io_weight: dict[str, int] | None = field(
        default=None,
        metadata=key(limits.IO_WEIGHT, "share of busy disks against its siblings; the kernel's is 100"),
    )
    io_latency: tuple[IoLatency, ...] = field(
        default=(), metadata=key(TablesOf(IoLatency), "how long requests to disks may take")
    )
    hugetlb: dict[str, int | None] = field(
        factory=dict,
        metadata=key(PrefixedKeys("hugetlb_", limits.HUGE_PAGES), "bytes in huge pages of this size") | wire("hugetlb"),
    )
    """Limits by page size: {"2MB_max": bytes, or None for no limit}."""
    misc_max: dict[str, int | None] = field(
        factory=dict,
        metadata=key(MapOf(limits.NUMBER_LIMIT, key=kinds.WORD), "other resources, as misc.capacity has"),
    )
    rdma_max: tuple[RdmaMax, ...] = field(
        default=(), metadata=key(TablesOf(RdmaMax), "what may be had of RDMA devices")
    )
    unified: dict[str, str] = field(
        factory=dict,
        metadata=key(MapOf(limits.RAW_VALUE, key=limits.RAW_FILE), "other cgroup v2 files, as they are"),
    )
    of_profile: frozenset[str] = field(default=frozenset(), eq=False, metadata=wire(None))
    """Keys whose values are those of the security profile: what cannot be enforced prevents no start."""


@frozen(kw_only=True, repr=False)
class Rule(Table):
    """[[workload.NAME.policy]]: a condition, and the action to take when it holds."""

    when: Condition = field(
        metadata=key(kinds.CONDITION, "a cgroup file, its key, and for levels a comparison; and, or, not, ( )")
        | wire(None)  # traces have its text
    )
    for_: float = field(default=0.0, metadata=key(kinds.DURATION, "how long a level must hold") | wire("for_"))
    action: ActionName = field(metadata=key(kinds.ACTION, "what to do"))
    cooldown: float = field(default=0.0, metadata=key(kinds.DURATION, "how long to be silent after it fired"))
    signal: int | None = field(default=None, metadata=key(kinds.SIGNAL, 'which one, for action = "signal"'))
    exec_: tuple[str, ...] = field(
        default=(),
        metadata=key(kinds.COMMAND, 'what to run, for action = "exec"; the record is its standard input')
        | wire("exec_"),
    )
    at_most: int | None = field(default=None, metadata=key(kinds.POSITIVE, "fire this often …"))
    within: float = field(default=0.0, metadata=key(kinds.DURATION, "… within this time; after that do"))
    then: tuple[ActionName, ...] = field(
        default=(),
        metadata=key(kinds.STEPS, "… this instead; of several, each this often, then the next"),
    )
    set_: dict[str, Any] = field(
        factory=dict,
        metadata=key(MapOf.each(limits.ADJUSTMENTS), 'limits for action = "set": values, or "+25%" of what they are')
        | wire("set_"),
    )
    """Targets by key of `Resources`: a value of that key, or a `units.RelativeChange`."""
    limit: dict[str, Any] = field(
        factory=dict, metadata=key(MapOf.each(limits.BOUNDS), "how far set may go, for each of its keys")
    )
    webhook: str | None = field(
        default=None, metadata=key(kinds.URL, 'where to POST the record to, for action = "webhook"')
    )
    webhook_file: str | None = field(
        default=None, metadata=key(kinds.PATH, "a file with that URL, for one that contains a secret")
    )
    notify: str | None = field(
        default=None, metadata=key(kinds.SOCKET, 'the Unix socket that gets the record, for action = "notify"')
    )
    dry_run: bool = field(default=False, metadata=key(kinds.BOOLEAN, "report what would be done, and do nothing"))
    name: str = field(default="policy[0]", metadata=wire(None))
    line: int = field(default=0, metadata=wire(None))


@frozen(kw_only=True, repr=False)
class GroupRule(Rule):
    """[[group.NAME.policy]] and [[host.policy]]: a condition, and the action to take on one of the members."""

    action: ActionName = field(metadata=key(kinds.GROUP_ACTION, "what to do"))
    then: tuple[ActionName, ...] = field(
        default=(),
        metadata=key(kinds.GROUP_STEPS, "… this instead; of several, each this often, then the next"),
    )
    victim: Victim | None = field(
        default=None,
        metadata=key(
            Choice.of(Victim),
            "which member to act on; actions that only report need none",
        ),
    )
    cooldown: float = field(
        default=15.0, metadata=key(kinds.DURATION, "how long to be silent after the last action on a member")
    )
    verify_sec: float = field(
        default=5.0,
        metadata=key(kinds.DURATION, "how long an action may take to help; after that, the next member is chosen"),
    )


@frozen(kw_only=True, repr=False)
class GroupConfig(Resources):
    """[group.NAME]: a cgroup around those of its members, with limits for all of them together."""

    description: str = field(default="", metadata=key(kinds.TEXT, "for people"))
    override: bool = field(default=False, metadata=key(kinds.BOOLEAN, "change a group of an earlier file, key by key"))
    group: str | None = field(default=None, metadata=key(kinds.NAME, "the group that it is in itself"))
    policy: tuple[GroupRule, ...] = field(
        default=(), metadata=key(TablesOf(GroupRule), "what the group's readings lead to")
    )
    name: str = ""

    @property
    def resources(self) -> Resources:
        """The limits alone, without the other keys."""
        return Resources(**{attribute.name: getattr(self, attribute.name) for attribute in fields(Resources)})


@frozen(repr=False)
class HostConfig(Table):
    """[host]: rules about the readings of the whole host."""

    policy: tuple[GroupRule, ...] = field(
        default=(), metadata=key(TablesOf(GroupRule), "what to do to one of all workloads, and when")
    )


@frozen(repr=False)
class RateLimitConfig(Table):
    """[workload.NAME.log.rate_limit]: how much output a second is recorded; what is above it is dropped and counted."""

    bytes: int | None = field(
        default=None, metadata=key(kinds.BYTE_RATE, "the most bytes a second, of both streams together; default: any")
    )
    lines: int | None = field(
        default=None, metadata=key(kinds.POSITIVE, "the most lines a second, of both streams together; default: any")
    )


@frozen(repr=False)
class LogConfig(Table):
    """[workload.NAME.log]: the destinations of the workload's output."""

    stdout: LogDestination = field(
        default="journal",
        metadata=key(
            Choice.of(LogDestination),
            "the supervisor's log, a file of its own, both, the supervisor's own standard output as it is, or nowhere",
        ),
    )
    stderr: LogDestination = field(
        default="journal",
        metadata=key(
            Choice.of(LogDestination),
            "the supervisor's log, a file of its own, both, the supervisor's own standard error as it is, or nowhere",
        ),
    )
    format: LogFileFormat = field(
        default="json",
        metadata=key(Choice.of(LogFileFormat), "format of the file: one record a line, or the raw bytes"),
    )
    path: str | None = field(
        default=None, metadata=key(kinds.PATH, "path of the file; default: NAME.log in supervisor.log_directory")
    )
    stdout_path: str | None = field(
        default=None, metadata=key(kinds.PATH, "path of a file for standard output alone; default: path")
    )
    stderr_path: str | None = field(
        default=None, metadata=key(kinds.PATH, "path of a file for standard error alone; default: path")
    )
    max_size: int = field(default=64 << 20, metadata=key(kinds.FILE_SIZE, "a larger file is rotated"))
    max_files: int = field(
        default=5, metadata=key(kinds.POSITIVE, "how many to keep, the one in use included; the oldest is deleted")
    )
    max_age: float | None = field(default=None, metadata=key(kinds.AGE, "an older file is rotated"))
    compress: bool = field(default=False, metadata=key(kinds.BOOLEAN, "compress rotated files with gzip"))
    tail: int = field(
        default=64 << 10,
        metadata=key(kinds.TAIL_SIZE, "without a file: how much of the latest output `logs` can show; 0: nothing"),
    )
    max_line: int = field(default=16384, metadata=key(kinds.LINE_SIZE, "longer lines are cut into partial records"))
    parse_json: bool = field(
        default=False, metadata=key(kinds.BOOLEAN, "lines that are JSON objects keep their fields, under fields")
    )
    on_full: FullPolicy = field(
        default="block",
        metadata=key(Choice.of(FullPolicy), "where it cannot be written: the workload waits, or lines are dropped"),
    )
    rate_limit: RateLimitConfig = field(
        factory=RateLimitConfig,
        metadata=key(TableOf(RateLimitConfig), "output above this is dropped and counted; default: no limit"),
    )

    def file_keys(self) -> dict[str, str | None]:
        """Return, by stream, the key whose value is the path of its log file; None: that is the default path.

        Streams without a log file are left out.
        """
        keys: dict[str, str | None] = {}
        for stream, where, own in (
            ("stdout", self.stdout, self.stdout_path),
            ("stderr", self.stderr, self.stderr_path),
        ):
            if where in ("file", "both"):
                keys[stream] = f"{stream}_path" if own is not None else "path" if self.path is not None else None
        return keys


@frozen(repr=False)
class WorkloadConfig(Table):
    """[workload.NAME]: one program and how to run it.

    `nsupervisor.config.compose` consumes the keys `extends`, `override` and `expand`: an object has their defaults.
    """

    name: str
    command: tuple[str, ...] = field(metadata=key(kinds.COMMAND, "the program and its arguments; no shell"))
    extends: str | None = field(
        default=None,
        metadata=key(kinds.NAME, "the template whose keys it has, as far as its own do not say else", live=True),
    )
    override: bool = field(
        default=False, metadata=key(kinds.BOOLEAN, "change a workload of an earlier file, key by key", live=True)
    )
    description: str = field(default="", metadata=key(kinds.TEXT, "for people", live=True))
    working_directory: str = field(default="/", metadata=key(kinds.PATH, "where it starts"))
    user: str | None = field(default=None, metadata=key(kinds.USER, '"NAME", "UID", "NAME:GROUP"; else our own'))
    dynamic_user: bool = field(
        default=False,
        metadata=key(
            kinds.BOOLEAN, "a user and group without a name that only it has, and protected files of the host"
        ),
    )
    supplementary_groups: tuple[str, ...] = field(
        default=(), metadata=key(ListOf(kinds.WORD), "more groups, by name or number")
    )
    environment: dict[str, str] = field(
        factory=dict, metadata=key(MapOf(kinds.TEXT, key=kinds.VARIABLE), "variables; values are literal", secret=True)
    )
    pass_environment: tuple[str, ...] = field(
        default=(),
        metadata=key(
            ListOf(kinds.PASSED_VARIABLE),
            'variables of the environment in which the service was started: "LANG", "APP_*"',
        ),
    )
    environment_file: tuple[str, ...] = field(
        default=(), metadata=key(ListOf(kinds.OPTIONAL_PATH), 'files of NAME=VALUE lines; "-/path" may be missing')
    )
    umask: int = field(default=0o022, metadata=key(kinds.OCTAL, "permission bits that new files do not get"))
    nice: int | None = field(default=None, metadata=key(kinds.NICE, "-20 (first) to 19 (last); else our own"))
    oom_score_adjust: int | None = field(
        default=None,
        metadata=key(
            kinds.integer(-1000, 1000, 500), "the OOM killer of the host chooses it first (1000) or never (-1000)"
        ),
    )
    io_scheduling_class: IoClass | None = field(
        default=None, metadata=key(Choice.of(IoClass), "how the scheduler of disks treats it, ioprio_set(2)")
    )
    io_scheduling_priority: int | None = field(
        default=None, metadata=key(kinds.integer(0, 7, 4), "in its class: 0 (first) to 7 (last)")
    )
    cpu_scheduling_policy: CpuPolicy | None = field(
        default=None, metadata=key(Choice.of(CpuPolicy), "how the scheduler of CPUs treats it, sched(7)")
    )
    cpu_scheduling_priority: int | None = field(
        default=None, metadata=key(kinds.integer(1, 99, 10), "for fifo and rr: 1 (last) to 99 (first)")
    )
    timer_slack: float | None = field(
        default=None, metadata=key(kinds.DURATION, "how much later its timers may expire, to save wake-ups")
    )
    init: bool = field(
        default=True,
        metadata=key(kinds.BOOLEAN, "in a new pid namespace, run below an init that reaps and forwards signals"),
    )
    instances: int | tuple[str, ...] = field(
        default=1,
        metadata=key(
            kinds.INSTANCES, 'how many to run; above 1: NAME@1, NAME@2, …; or ["eu", "us"]: NAME@eu, NAME@us', live=True
        ),
    )
    expand: bool = field(
        default=False,
        metadata=key(kinds.BOOLEAN, "replace {instance}, {name}, {var.NAME} and {env.NAME} in its values", live=True),
    )
    autostart: bool = field(default=True, metadata=key(kinds.BOOLEAN, "start with the supervisor", live=True))
    type: WorkloadType = field(
        default="simple",
        metadata=key(
            Choice.of(WorkloadType),
            "runs; runs and sends READY=1; and RELOADING=1; is done when it exits; or goes to the background",
        ),
    )
    pid_file: str | None = field(
        default=None,
        metadata=key(kinds.PATH, 'with type = "forking": the file in which the daemon writes its pid', live=True),
    )
    exit_type: ExitType = field(
        default="main",
        metadata=key(
            Choice.of(ExitType), "it has ended with its program; or with the last process in its cgroup", live=True
        ),
    )
    watchdog_sec: float = field(
        default=0.0,
        metadata=key(kinds.DURATION, "once started, it must send WATCHDOG=1 at least this often; 0: not required"),
    )
    startup: StartupConfig | None = field(
        default=None,
        metadata=key(TableOf(StartupConfig), "a probe that must succeed once before others begin", live=True),
    )
    readiness: ReadinessConfig | None = field(
        default=None, metadata=key(TableOf(ReadinessConfig), "a probe that says whether it is ready", live=True)
    )
    liveness: LivenessConfig | None = field(
        default=None, metadata=key(TableOf(LivenessConfig), "a probe that ends the program if it fails", live=True)
    )
    requires: tuple[DependencyConfig, ...] = field(
        default=(),
        converter=to_dependencies,
        metadata=key(ListOf(DEPENDENCY), "starts after these are ready, and stops before them", live=True),
    )
    wants: tuple[DependencyConfig, ...] = field(
        default=(),
        converter=to_dependencies,
        metadata=key(ListOf(DEPENDENCY), "starts these first, but goes on when they fail", live=True),
    )
    after: tuple[DependencyConfig, ...] = field(
        default=(),
        converter=to_dependencies,
        metadata=key(ListOf(DEPENDENCY), "order only: starts after these where both start", live=True),
    )
    binds_to: tuple[str, ...] = field(
        default=(),
        metadata=key(
            ListOf(kinds.NAME), "as requires; and stopped when these end, started again when they are up", live=True
        ),
    )
    part_of: tuple[str, ...] = field(
        default=(),
        metadata=key(
            ListOf(kinds.NAME), "stopped and restarted with these; starts after them where both start", live=True
        ),
    )
    conflicts: tuple[str, ...] = field(
        default=(),
        metadata=key(ListOf(kinds.NAME), "never runs with these: the start of one stops the other", live=True),
    )
    upholds: tuple[str, ...] = field(
        default=(), metadata=key(ListOf(kinds.NAME), "starts these whenever they are down while it is up", live=True)
    )
    on_failure: tuple[str, ...] = field(
        default=(), metadata=key(ListOf(kinds.NAME), "starts these when it has failed and is not restarted", live=True)
    )
    on_success: tuple[str, ...] = field(
        default=(),
        metadata=key(ListOf(kinds.NAME), "starts these when it has ended successfully and is not restarted", live=True),
    )
    timer: TimerConfig = field(
        factory=TimerConfig,
        metadata=key(
            TableOf(TimerConfig), "when to start it by itself; then it does not start with the service", live=True
        ),
    )
    sockets: tuple[SocketConfig, ...] = field(
        default=(),
        metadata=key(TablesOf(SocketConfig), "sockets that the service listens on for it, whether it runs or not"),
    )
    paths: tuple[PathConfig, ...] = field(
        default=(),
        metadata=key(
            TablesOf(PathConfig), "files and directories that start it, or have it restarted or reloaded", live=True
        ),
    )
    notify_access: NotifyAccess = field(
        default="all",
        metadata=key(
            Choice.of(NotifyAccess), "which of its processes may send notifications: none; its program; each of them"
        ),
    )
    file_descriptor_store_max: int = field(
        default=0,
        metadata=key(
            kinds.integer(0, MAX_STORED_DESCRIPTORS, 8),
            "how many descriptors it may store with FDSTORE=1, and gets back at its next start; 0: none",
        ),
    )
    file_descriptor_store_preserve: StorePreserve = field(
        default="restart",
        metadata=key(
            Choice.of(StorePreserve),
            "until it is down and not restarted; until the service stops; until it ends",
            live=True,
        ),
    )
    condition_path_exists: tuple[str, ...] = field(
        default=(),
        metadata=key(
            ListOf(kinds.PATH_CONDITION),
            'skips the start unless these exist; "!/path": unless it does not',
            live=True,
        ),
    )
    condition_file_not_empty: tuple[str, ...] = field(
        default=(),
        metadata=key(
            ListOf(kinds.PATH_CONDITION),
            'skips the start unless these are files with contents; "!" as above',
            live=True,
        ),
    )
    condition_host: tuple[str, ...] = field(
        default=(),
        metadata=key(
            ListOf(kinds.HOST_CONDITION),
            'skips the start unless the host has this name, a glob; "!" as above',
            live=True,
        ),
    )
    condition_environment: tuple[str, ...] = field(
        default=(),
        metadata=key(
            ListOf(kinds.ENVIRONMENT_CONDITION),
            "skips the start unless the supervisor has the variable NAME, or NAME=VALUE",
            live=True,
        ),
    )
    restart: Restart = field(
        default="on-failure",
        metadata=key(
            Choice.of(Restart),
            "after which exits",
            live=True,
        ),
    )
    restart_sec: float = field(
        default=0.1, metadata=key(kinds.DURATION, "the first delay; it doubles each time", live=True)
    )
    restart_max_delay_sec: float = field(default=30.0, metadata=key(kinds.DURATION, "the longest delay", live=True))
    restart_reset_sec: float = field(
        default=60.0, metadata=key(kinds.DURATION, "healthy for this long: the delay starts over", live=True)
    )
    start_limit_burst: int | None = field(
        default=None,
        metadata=key(kinds.POSITIVE, 'more starts than this …; 5, but none with restart = "always"', live=True),
    )
    start_limit_interval_sec: float = field(
        default=60.0, metadata=key(kinds.DURATION, "… within this time: failed, and left so", live=True)
    )
    success_exit_status: tuple[int | str, ...] = field(
        default=(0,), metadata=key(ListOf(kinds.EXIT_STATUS), "exit codes and signals that are no failure", live=True)
    )
    restart_prevent_exit_status: tuple[int | str, ...] = field(
        default=(),
        metadata=key(ListOf(kinds.EXIT_STATUS), "after these no restart, whatever `restart` says", live=True),
    )
    restart_force_exit_status: tuple[int | str, ...] = field(
        default=(), metadata=key(ListOf(kinds.EXIT_STATUS), "after these a restart, whatever `restart` says", live=True)
    )
    restart_mode: RestartMode = field(
        default="normal",
        metadata=key(Choice.of(RestartMode), "debug: a restart after a failure has DEBUG_INVOCATION=1", live=True),
    )
    min_ready_sec: float = field(
        default=0.0,
        metadata=key(
            kinds.DURATION,
            "how long it must be up until its start is complete; then the start limit is reset",
            live=True,
        ),
    )
    kill_mode: KillMode = field(
        default="main",
        metadata=key(
            Choice.of(KillMode),
            "stop the program first, then what it leaves; or all processes at once; or only the program",
            live=True,
        ),
    )
    kill_signal: int = field(default=15, metadata=key(kinds.SIGNAL, "what stop sends first", live=True))
    send_sighup: bool = field(
        default=False, metadata=key(kinds.BOOLEAN, "stop sends SIGHUP after kill_signal, for shells", live=True)
    )
    final_kill_signal: int = field(
        default=9,
        metadata=key(
            kinds.SIGNAL, "what is left after timeout_stop_sec gets; SIGKILL follows after the same time", live=True
        ),
    )
    reload_signal: int | None = field(
        default=None,
        metadata=key(
            kinds.SIGNAL, "what `reload --workload` sends; default: SIGHUP with notify-reload, else nothing", live=True
        ),
    )
    exec_reload: tuple[tuple[str, ...], ...] = field(
        default=(),
        metadata=key(
            kinds.HOOK_COMMANDS,
            'commands in the workload that `reload --workload` runs; "-program": its failure does not count',
            live=True,
        ),
    )
    exec_condition: tuple[tuple[str, ...], ...] = field(
        default=(),
        metadata=key(
            kinds.HOOK_COMMANDS,
            "commands before a start; exit status 1 to 254 skips the start, 255 or a signal is a failure",
            live=True,
        ),
    )
    exec_start_pre: tuple[tuple[str, ...], ...] = field(
        default=(),
        metadata=key(
            kinds.HOOK_COMMANDS,
            "commands before the program, confined as it is; it starts when all have succeeded",
            live=True,
        ),
    )
    exec_start_post: tuple[tuple[str, ...], ...] = field(
        default=(),
        metadata=key(
            kinds.HOOK_COMMANDS,
            "commands in the workload once the program is up; its start is complete after them",
            live=True,
        ),
    )
    exec_stop: tuple[tuple[str, ...], ...] = field(
        default=(),
        metadata=key(
            kinds.HOOK_COMMANDS,
            "commands in the workload at a stop, before kill_signal; $MAINPID is the program",
            live=True,
        ),
    )
    exec_stop_post: tuple[tuple[str, ...], ...] = field(
        default=(),
        metadata=key(
            kinds.HOOK_COMMANDS,
            "commands after each end; $SERVICE_RESULT, $EXIT_CODE and $EXIT_STATUS say how it ended",
            live=True,
        ),
    )
    timeout_start_sec: float = field(
        default=30.0, metadata=key(kinds.TIMEOUT, 'how long a start may take; "infinity" for no limit', live=True)
    )
    timeout_stop_sec: float = field(
        default=10.0,
        metadata=key(kinds.TIMEOUT, 'then everything left is killed; "infinity" to wait without a limit', live=True),
    )
    runtime_max_sec: float = field(
        default=float("inf"),
        metadata=key(kinds.TIMEOUT, "how long it may run once its start is complete; then it has failed", live=True),
    )
    runtime_randomized_extra_sec: float = field(
        default=0.0, metadata=key(kinds.DURATION, "a random part of this is added to runtime_max_sec", live=True)
    )
    group: str | None = field(default=None, metadata=key(kinds.NAME, "the group whose limits it shares"))
    priority: int = field(
        default=0,
        metadata=key(kinds.PRIORITY, "how much it matters compared with others: victim = lowest-priority", live=True),
    )
    managed_oom_preference: OomPreference = field(
        default="none",
        metadata=key(Choice.of(OomPreference), "whether it can be a victim: yes, last of all, never", live=True),
    )
    namespaces: NamespacesConfig = field(
        factory=NamespacesConfig, metadata=key(TableOf(NamespacesConfig), "true: a new one; false: the supervisor's")
    )
    user_namespace: UserNamespaceConfig = field(
        factory=UserNamespaceConfig, metadata=key(TableOf(UserNamespaceConfig), "the mappings of a new user namespace")
    )
    network: NetworkConfig = field(
        factory=NetworkConfig,
        metadata=key(TableOf(NetworkConfig), "the ports that lead into its network, and how it resolves names"),
    )
    may_control: tuple[str, ...] = field(
        default=(), metadata=key(ListOf(kinds.NAME), "its processes may use the API, for these workloads alone")
    )
    root: RootConfig = field(
        factory=RootConfig, metadata=key(TableOf(RootConfig), "a root file system of its own; else the host's")
    )
    credentials: dict[str, str] = field(
        factory=dict,
        metadata=key(
            MapOf(kinds.PATH, key=kinds.CREDENTIAL), "files that only it sees, in $CREDENTIALS_DIRECTORY: from where"
        ),
    )
    volumes: dict[str, str] = field(
        factory=dict,
        metadata=key(
            MapOf(kinds.PATH, key=kinds.NAME), "directories kept below the state directory: where it sees each"
        ),
    )
    runtime_directory: tuple[str, ...] = field(
        default=(),
        metadata=key(ListOf(kinds.RELATIVE_PATH), "directories in /run that are made for it, which end with it"),
    )
    runtime_directory_mode: int = field(default=0o755, metadata=key(kinds.OCTAL, "the mode of runtime_directory"))
    state_directory: tuple[str, ...] = field(
        default=(),
        metadata=key(ListOf(kinds.RELATIVE_PATH), "directories in /var/lib that are made for it, which stay"),
    )
    state_directory_mode: int = field(default=0o755, metadata=key(kinds.OCTAL, "the mode of state_directory"))
    cache_directory: tuple[str, ...] = field(
        default=(),
        metadata=key(
            ListOf(kinds.RELATIVE_PATH), "directories in /var/cache that are made for it, for what can be made again"
        ),
    )
    cache_directory_mode: int = field(default=0o755, metadata=key(kinds.OCTAL, "the mode of cache_directory"))
    logs_directory: tuple[str, ...] = field(
        default=(),
        metadata=key(ListOf(kinds.RELATIVE_PATH), "directories in /var/log that are made for it, for its logs"),
    )
    logs_directory_mode: int = field(default=0o755, metadata=key(kinds.OCTAL, "the mode of logs_directory"))
    configuration_directory: tuple[str, ...] = field(
        default=(),
        metadata=key(ListOf(kinds.RELATIVE_PATH), "directories in /etc that are made for it, which stay root's"),
    )
    configuration_directory_mode: int = field(
        default=0o755, metadata=key(kinds.OCTAL, "the mode of configuration_directory")
    )
    mounts: tuple[MountConfig, ...] = field(
        default=(), metadata=key(TablesOf(MountConfig), "mounts in a new mount namespace")
    )
    security: SecurityConfig = field(
        factory=SecurityConfig, metadata=key(TableOf(SecurityConfig), "what the program may do")
    )
    resources: Resources = field(
        factory=Resources, metadata=key(TableOf(Resources), "what the cgroup limits", live=True)
    )
    policy: tuple[Rule, ...] = field(
        default=(), metadata=key(TablesOf(Rule), "what the cgroup's events lead to", live=True)
    )
    log: LogConfig = field(factory=LogConfig, metadata=key(TableOf(LogConfig), "what becomes of its output", live=True))
    image_environment: dict[str, str] = field(factory=dict)
    """The variables of its image, once that is loaded. The environment files and `environment` win."""
    variants: dict[Instance, Differences] = field(factory=dict)
    """For each instance that differs, how; the attributes above are those of the first instance."""
    differ: Callable[[Instance], Differences] | None = field(default=None, eq=False)
    """Returns how any other instance would differ; raises ConfigError if it cannot be. None: none differs."""
    scaled_from: int | None = None
    """The number of instances of the file, if another one was set (`nsupervisor.config.scaling`)."""

    @property
    def instance_ids(self) -> tuple[Instance | None, ...]:
        """The parts of the instances' names behind the "@"; (None,) for a single instance without it."""
        if isinstance(self.instances, tuple):
            return self.instances
        return (None,) if self.instances == 1 else tuple(range(1, self.instances + 1))

    def instance_name(self, instance: Instance | None) -> str:
        """Return the name of one instance: "web@2", or "web" for None."""
        return self.name if instance is None else f"{self.name}@{instance}"

    def for_instance(self, instance: Instance | None) -> WorkloadConfig:
        """Return the configuration of one instance."""
        if not self.variants:
            return self
        differences = self.variants.get(1 if instance is None else instance, Differences())
        result: WorkloadConfig = apply_differences(evolve(self, variants={}), differences)
        return result

    def each_variant(self) -> list[tuple[Instance | None, WorkloadConfig]]:
        """Return the configurations of all instances if they differ, and else one for all, with None."""
        if not self.variants:
            return [(None, self)]
        return [(instance, self.for_instance(instance)) for instance in self.instance_ids]

    @property
    def readiness_pattern(self) -> str | None:
        """The pattern of the line that says that the program is ready; None if no line says so."""
        return None if self.readiness is None else self.readiness.log

    @property
    def probes(self) -> dict[ProbeKind, ProbeConfig]:
        """The probes by kind, in the order in which they begin."""
        found: dict[ProbeKind, ProbeConfig | None]
        found = {"startup": self.startup, "readiness": self.readiness, "liveness": self.liveness}
        return {kind: probe for kind, probe in found.items() if probe is not None}

    @property
    def starts_with_service(self) -> bool:
        """Whether it is started when the service starts, and not by its timer or by a path."""
        return self.autostart and not self.starts_by

    @property
    def starts_by(self) -> str:
        """The cause that starts it in place of the service: "timer", "path", or ""."""
        if self.timer.is_set and self.timer.action == "start":
            return "timer"
        return "path" if any(path.action == "start" for path in self.paths) else ""

    def own_log_files(self, directory: str) -> list[str]:
        """Return its log files; those without a path of their own are in `directory`."""
        keys = set(self.log.file_keys().values())
        files = {os.path.normpath(getattr(self.log, name)) for name in keys if name is not None}
        if None in keys:
            files |= {
                os.path.normpath(f"{directory}/{self.instance_name(instance)}.log") for instance in self.instance_ids
            }
        return sorted(files)

    @property
    def uses_notify_socket(self) -> bool:
        """Whether the program sends notifications, sd_notify(3)."""
        return self.type in NOTIFY_TYPES or bool(self.watchdog_sec) or bool(self.file_descriptor_store_max)

    @property
    def signal_of_reload(self) -> int | None:
        """The signal that has the program read its configuration again; None: there is none."""
        if self.reload_signal is None and self.type == "notify-reload":
            return DEFAULT_RELOAD_SIGNAL
        return self.reload_signal

    @property
    def start_limit(self) -> int:
        """The start limit in force; 0 for none. A workload that is always restarted is given up only if asked for."""
        if self.start_limit_burst is not None:
            return self.start_limit_burst
        return 0 if self.restart == "always" else DEFAULT_START_LIMIT


class TemplateConfig(WorkloadConfig):
    """[template.NAME] and [defaults.workload]: keys of workloads that several have. Never an object: see `compose`."""

    __slots__ = ()


@frozen(repr=False)
class DefaultsConfig(Table):
    """[defaults]: values that all have, as far as they have none of their own."""

    workload: TemplateConfig | None = field(
        default=None, metadata=key(TableOf(TemplateConfig), "the keys that all workloads have")
    )


@frozen(repr=False)
class Config(Table):
    """The supervisor and its workloads by name, in the order of the files (instances are not expanded).

    `nsupervisor.config.compose` consumes the keys `include`, `defaults`, `template` and `var`: an object has their
    defaults.
    """

    path: str
    include: tuple[str, ...] = field(
        default=(),
        metadata=key(ListOf(kinds.TEXT), "more files, relative to this one; the last part may have wildcards"),
    )
    supervisor: SupervisorConfig = field(
        factory=SupervisorConfig, metadata=key(TableOf(SupervisorConfig), "the service itself")
    )
    workloads: dict[str, WorkloadConfig] = field(
        factory=dict, metadata=key(TableOf(WorkloadConfig, is_named=True), "the programs, by name", toml="workload")
    )
    groups: dict[str, GroupConfig] = field(
        factory=dict,
        metadata=key(TableOf(GroupConfig, is_named=True), "limits that several share, by name", toml="group"),
    )
    host: HostConfig = field(factory=HostConfig, metadata=key(TableOf(HostConfig), "what the host's readings lead to"))
    network: NetworksConfig = field(
        factory=NetworksConfig, metadata=key(TableOf(NetworksConfig), "the networks of this host")
    )
    defaults: DefaultsConfig = field(
        factory=DefaultsConfig, metadata=key(TableOf(DefaultsConfig), "what all workloads have")
    )
    templates: dict[str, TemplateConfig] = field(
        factory=dict,
        metadata=key(TableOf(TemplateConfig, is_named=True), "what several workloads have, by name", toml="template"),
    )
    variables: dict[str, str] = field(
        factory=dict,
        metadata=key(
            MapOf(kinds.VARIABLE_VALUE, key=kinds.VARIABLE_NAME), "values for {var.NAME}, see expand", toml="var"
        ),
    )

    def each_variant(self) -> Iterator[tuple[Instance | None, WorkloadConfig]]:
        """Yield each workload, and of those whose instances differ each instance (`WorkloadConfig.each_variant`)."""
        for workload in self.workloads.values():
            yield from workload.each_variant()

    def enclosing_groups(self, member: WorkloadConfig | GroupConfig) -> tuple[GroupConfig, ...]:
        """Return the groups that enclose a workload or a group, the outermost first."""
        enclosing: list[GroupConfig] = []
        while member.group is not None and (group := self.groups.get(member.group)) is not None:
            if group in enclosing:  # a cycle, which the checks report
                break
            enclosing.insert(0, group)
            member = group
        return tuple(enclosing)


PLANNED_KEYS: dict[type, tuple[str, ...]] = {
    SupervisorConfig: ("dashboard", "api"),
}
"""Keys of later versions, by class: rejected like any unknown key, with a message that they are planned."""
KEYS_ELSEWHERE: dict[type, dict[str, str]] = {
    Resources: {"network_max": "is no limit of a cgroup; write bandwidth_max in the table network of the workload"},
}
"""Keys that are looked for in another place than they have: what the message says."""
