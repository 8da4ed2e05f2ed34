"""The files /etc/hosts and /etc/resolv.conf of programs, which are mounted over those that they would see.

They are in the state directory, below a directory that only the service's user enters, and never in a root file system.
A running program sees a change of its hosts file: the file is written in place, as the mount shows this file and not
its name. So the addresses of peers follow as they come and go. Only the lines after a certain one are changed. What is
before it is read again from the file after a takeover.

**Race: a program reads while the file is written.** The new text is written by one call, and is first as long as the
old one (with empty lines at its end), so a reader finds an older or a newer line and never the half of a file. The
kernel copies each page for itself: of a file above 4 KiB, one reader may see the beginning of the new text and the end
of the old one.
"""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import trio

from nsupervisor.config.model import WorkloadConfig
from nsupervisor.core.name_files import (
    HOSTS,
    MAX_HOSTS_BYTES,
    MAX_RESOLVER_BYTES,
    RESOLVER,
    SYSTEMD_RESOLVER,
    Resolver,
    has_name_as_peer,
    head_of,
    hosts_head,
    names_in,
    parse_resolver,
    peers_by_network,
    peers_part,
    reachable_resolver,
    wanted_files,
    with_peers,
)
from nsupervisor.linux.trusted_paths import TrustedDirectory, open_for_reading
from nsupervisor.logs import call_in_thread

DIRECTORY = "names"
"""Below the state directory; in it, one directory for each service."""
MIN_UPDATE_INTERVAL_S, MAX_UPDATE_INTERVAL_S = 0.05, 5.0
REST_FACTOR = 4
"""After an update nothing is written for this many times as long as it took."""
_INSTEAD = "set supervisor.state_directory"
_SUFFIXES = {HOSTS: ".hosts", RESOLVER: ".resolv.conf"}
_Peers = Mapping[str, Mapping[str, Sequence[str]]]


@attrs.define(eq=False)
class NameFiles:
    """The files of all instances of one service. Nothing is read or made before the first one is needed."""

    state_directory: str
    service: str
    attachments: Callable[[], Sequence[tuple[str, str, Sequence[str]]]]
    """Returns instance, network and addresses of each instance that is in a network of plugins."""
    warn: Callable[[str, str], None]
    """Reports a problem with an instance: its name, and a sentence."""
    host_hosts: str = HOSTS
    host_resolvers: tuple[str, ...] = (RESOLVER, SYSTEMD_RESOLVER)
    _instances: set[str] = attrs.field(init=False, factory=set)
    """The instances that have a file, or had one before."""
    _has_changed: trio.Event = attrs.field(init=False, factory=trio.Event)
    _lock: threading.Lock = attrs.field(init=False, factory=threading.Lock)
    """Held by the thread that writes."""
    _has_warned: bool = attrs.field(init=False, default=False)

    @property
    def _directory(self) -> str:
        return f"{self.state_directory}/{DIRECTORY}/{self.service}"

    def path(self, instance: str, place: str) -> str:
        """Return the path of a file of an instance, whether or not it is there; `place`: `HOSTS` or `RESOLVER`."""
        return f"{self._directory}/{instance}{_SUFFIXES[place]}"

    def notify(self) -> None:
        """Have the files follow a change of the attachments."""
        self._has_changed.set()

    async def begin(self, is_running: Callable[[str], bool]) -> None:
        """Find the files of an earlier supervisor, and remove those of instances that do not run."""
        try:
            names = await call_in_thread(os.listdir, self._directory)
        except FileNotFoundError:
            return
        except OSError as error:
            self.warn("", f"cannot read {self._directory}: {error.strerror or error}")
            return
        for name in names:
            for suffix in _SUFFIXES.values():
                if name.endswith(suffix):
                    self._instances.add(name.removesuffix(suffix))
        for instance in sorted(self._instances):
            if not is_running(instance):
                await self.release(instance)
        self.notify()

    async def run(self) -> None:
        """Write the addresses of peers into the files whenever attachments have changed. Never returns."""
        while True:
            await self._has_changed.wait()
            self._has_changed = trio.Event()
            begun = trio.current_time()
            peers = peers_by_network(self.attachments())
            try:
                await call_in_thread(self._update, peers, sorted(self._instances))
            except OSError as error:
                self._warn_once(f"cannot write the addresses of workloads into {self._directory}: {error}")
            else:
                self._has_warned = False
            pause = (trio.current_time() - begun) * REST_FACTOR
            await trio.sleep(min(max(pause, MIN_UPDATE_INTERVAL_S), MAX_UPDATE_INTERVAL_S))

    def _warn_once(self, text: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            self.warn("", text)

    async def prepare(
        self, instance: str, workload: WorkloadConfig, hostname: str | None, owner: str
    ) -> dict[str, dict[str, Any]]:
        """Write the files for the next program of an instance; return the key `name_files` of its specification.

        `hostname`: the program's. `owner`: the workload whose network it joins, maybe through others; or `instance`.
        Raises OSError.
        """
        wanted = wanted_files(workload)
        if owner != instance:
            found = {place: self.path(owner, place) for place in wanted if self.has_file(owner, place)}
        else:
            attachments = self.attachments()
            addresses, network = next(
                ((own, network) for name, network, own in attachments if name == instance), ((), None)
            )
            peers = peers_by_network(attachments).get(network or "", {})
            self._instances.add(instance)
            arguments = instance, workload, hostname, addresses, network, peers
            await call_in_thread(self._write, *arguments)
            self.notify()  # the peers may be others meanwhile
            found = {place: self.path(instance, place) for place in wanted}
        return {place: {"source": path, "settings": list(wanted[place].settings)} for place, path in found.items()}

    def has_file(self, instance: str, place: str) -> bool:
        """Return whether an instance has a file."""
        return instance in self._instances and os.path.exists(self.path(instance, place))

    async def release(self, instance: str) -> None:
        """Remove the files of an instance whose program has ended."""
        if instance in self._instances:
            self._instances.discard(instance)
            try:
                await call_in_thread(self._remove, instance)
            except OSError as error:
                self.warn(instance, f"cannot remove its files in {self._directory}: {error}")

    # ---- in threads

    def _write(
        self,
        instance: str,
        workload: WorkloadConfig,
        hostname: str | None,
        addresses: Sequence[str],
        network: str | None,
        peers: Mapping[str, Sequence[str]],
    ) -> None:
        wanted = wanted_files(workload)
        uses_host_network = workload.namespaces.network is False
        texts = {}
        if HOSTS in wanted:
            host_file = _read_text(self.host_hosts, MAX_HOSTS_BYTES) if uses_host_network else None
            own = None if network is None or has_name_as_peer(instance, hostname) else hostname
            head = hosts_head(workload.network.hosts, own, addresses, host_file)
            texts[HOSTS] = head if network is None else with_peers(head, network, peers)
        if RESOLVER in wanted:
            dns = workload.network.dns
            texts[RESOLVER] = self._resolver(uses_host_network).changed(dns.servers, dns.search, dns.options).text
        with self._lock, TrustedDirectory(self._directory, _INSTEAD, mode=0o700) as directory:
            for place, text in texts.items():
                write_in_place(directory, f"{instance}{_SUFFIXES[place]}", text.encode())

    def _resolver(self, uses_host_network: bool) -> Resolver:
        found = (parse_resolver(_read_text(path, MAX_RESOLVER_BYTES)) for path in self.host_resolvers)
        usual = next(found)
        return usual if uses_host_network else reachable_resolver(usual, found)

    def _update(self, peers: _Peers, instances: Sequence[str]) -> None:
        networks = {instance: network for network, members in peers.items() for instance in members}
        parts: dict[tuple[str, frozenset[str]], str] = {}  # most files have the same names before their peers
        with self._lock, TrustedDirectory(self._directory, _INSTEAD, mode=0o700) as directory:
            for instance in instances:
                if (network := networks.get(instance)) is None:
                    continue
                name = f"{instance}{_SUFFIXES[HOSTS]}"
                try:
                    with os.fdopen(directory.open(name, os.O_RDONLY), "rb") as file:
                        old = file.read()
                except FileNotFoundError:  # it has none, or is about to start
                    continue
                head = head_of(old.decode(errors="replace"))
                key = network, names_in(head)
                if key not in parts:
                    parts[key] = peers_part(network, peers[network], key[1])
                text = f"{head}{parts[key]}".encode()
                if text != old:
                    write_in_place(directory, name, text)

    def _remove(self, instance: str) -> None:
        with self._lock, TrustedDirectory(self._directory, _INSTEAD, mode=0o700) as directory:
            for suffix in _SUFFIXES.values():
                try:
                    directory.unlink(f"{instance}{suffix}")
                except FileNotFoundError:
                    pass


def write_in_place(directory: TrustedDirectory, name: str, content: bytes) -> None:
    """Write a file that all may read, and that stays the same file. Raises OSError."""
    fd = directory.open(name, os.O_WRONLY, 0o644)
    try:
        os.fchmod(fd, 0o644)  # whatever the umask
        padded = content.ljust(os.fstat(fd).st_size, b"\n")
        written = 0
        while written < len(padded):
            written += os.pwrite(fd, padded[written:], written)
        os.ftruncate(fd, len(content))
    finally:
        os.close(fd)


def _read_text(path: str, max_bytes: int) -> str:
    """Return the text of a file of the host; "" if it is missing. Raises OSError, also if it is too large."""
    try:
        with os.fdopen(open_for_reading(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            content = file.read(max_bytes + 1)
    except FileNotFoundError:
        return ""
    if len(content) > max_bytes:
        raise OSError(f"{path} has more than {max_bytes:,} bytes and cannot be copied for the program; shorten it")
    return content.decode(errors="replace")
