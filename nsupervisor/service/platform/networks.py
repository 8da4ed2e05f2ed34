"""The networks that plugins have set up for workload instances, from before the program's start to after its end.

What is set up is outside of the process: an address that is reserved, rules of the firewall, a device of the host. So
each attachment has a record in the state directory, which is written before the first plugin runs and again after each:
whatever dies at whatever instant, the next supervisor finds the record, and has the plugins undo what they have done.
DEL may be repeated, also after it has succeeded (CNI specification, section 2). What it cannot undo now is tried again.

**Race: a plugin outlives its supervisor.** It would set up something after the next one has undone it. Each plugin
inherits the lock that this service holds; the next supervisor waits until no process has it.
"""

import errno
import fcntl
import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import attrs
import trio

from nsupervisor.config.model import NetworksConfig
from nsupervisor.core.cni import (
    NetworkError,
    NetworkList,
    addresses,
    bandwidth,
    masquerade_chain,
    masquerade_deletions,
    parse_result,
    port_mappings,
    request,
)
from nsupervisor.json_codec import decode, encode
from nsupervisor.linux.trusted_paths import TrustedDirectory
from nsupervisor.logs import call_in_thread
from nsupervisor.service.platform import cni_files, cni_plugins
from nsupervisor.service.platform.plugin_cgroup import PluginCgroup

DIRECTORY = "networks"
"""Below the state directory; in it, one directory for each service."""
LOCK_TIMEOUT_S = 60.0
"""Seconds to wait for plugins of an earlier supervisor: longer than one of them may take."""
FIRST_RETRY_S, LONGEST_RETRY_S = 5.0, 300.0
_LOCK, _SUFFIX = "lock", ".json"
_INSTEAD = "set supervisor.state_directory"
_LOCK_POLL_S = 0.05


@attrs.define(eq=False)
class Attachment:
    """One network of an instance: all that plugins have done for it, or may have done."""

    instance: str
    container_id: str
    network: NetworkList
    runtime: dict[str, Any]
    """The runtime values, by capability."""
    begun: int = 0
    """How many plugins have been started for ADD; DEL goes through these."""
    result: dict[str, Any] | None = None
    namespace: int = -1
    """The descriptor of its network namespace; -1: it is not known."""

    def begin_plugin(self, number: int) -> None:
        """Note that the plugin of this number is about to run ADD."""
        self.begun = number + 1

    def set_result(self, result: dict[str, Any]) -> None:
        """Keep the result of a plugin, which has those of the ones before in it."""
        self.result = result

    def hold_namespace(self, namespace: int) -> None:
        """Take over the descriptor of its network namespace, or -1."""
        self.namespace = namespace

    def close_namespace(self) -> None:
        """Close the descriptor of its namespace, if there is one."""
        if self.namespace >= 0:
            os.close(self.namespace)
            self.namespace = -1

    def to_json(self) -> bytes:
        """Return the record of it."""
        return encode(
            {
                "instance": self.instance,
                "container_id": self.container_id,
                "network": [self.network.name, self.network.version, self.network.plugins],
                "runtime": self.runtime,
                "begun": self.begun,
                "result": self.result,
            }
        )

    @classmethod
    def from_json(cls, text: bytes) -> "Attachment":
        """Return the attachment of a record. Raises ValueError, KeyError or TypeError if it is damaged."""
        record = decode(text)
        name, version, plugins = record["network"]
        network = NetworkList(str(name), str(version), tuple(map(dict, plugins)))
        begun = min(int(record["begun"]), len(plugins))
        return cls(record["instance"], record["container_id"], network, record["runtime"], begun, record["result"])


@attrs.define(eq=False)
class Networks:
    """The attachments of all instances of one service. Nothing is read or made before `begin`."""

    state_directory: str
    service: str
    warn: Callable[[str, str], None]
    """Reports a problem with an instance: its name, and a sentence."""
    settings: NetworksConfig = attrs.field(factory=NetworksConfig)
    on_change: Callable[[], None] = lambda: None
    """Called when an instance has got addresses or has lost them."""
    plugin_cgroup: PluginCgroup | None = None
    """The cgroup in which plugins run; None: that of the service."""
    _attachments: dict[str, Attachment] = attrs.field(init=False, factory=dict)
    """By instance."""
    _pending: dict[str, float] = attrs.field(init=False, factory=dict)
    """Instances whose attachment is to be undone without waiting for a start: the seconds until the next attempt."""
    _locks: dict[str, trio.Lock] = attrs.field(init=False, factory=dict)
    """By instance: one plugin at a time."""
    _lock_fd: int = attrs.field(init=False, default=-1)
    _opening: trio.Lock = attrs.field(init=False, factory=trio.Lock)
    _has_pending: trio.Event = attrs.field(init=False, factory=trio.Event)

    def configure(self, settings: NetworksConfig) -> None:
        """Use other settings from the next start of a workload on."""
        self.settings = settings

    def addresses(self, instance: str) -> list[str]:
        """Return the IP addresses of an instance in its network; [] if it has none."""
        attachment = self._attachments.get(instance)
        return addresses(attachment.result) if attachment is not None else []

    def attachments(self) -> list[tuple[str, str, list[str]]]:
        """Return the name, the network and the addresses of each instance that is in one."""
        return [
            (instance, attachment.network.name, addresses(attachment.result))
            for instance, attachment in self._attachments.items()
            if attachment.namespace >= 0 and attachment.result is not None
        ]

    async def begin(self, open_namespace: Callable[[str], int]) -> None:
        """Read the records of an earlier supervisor, before anything starts.

        `open_namespace` returns the descriptor of the network namespace of the program that an instance runs, which
        then is this object's, or -1 if it does not run: then what was set up for it is undone.
        """
        try:
            records = await call_in_thread(self._read_records)
        except FileNotFoundError:  # no network was ever set up
            return
        except OSError as error:
            self.warn("", f"cannot read the records of networks in {self._directory}: {error.strerror or error}")
            return
        for attachment in records:
            self._attachments[attachment.instance] = attachment
            attachment.hold_namespace(open_namespace(attachment.instance))
            if attachment.namespace < 0:
                self._undo_later(attachment.instance, 0.0)

    async def run(self) -> None:
        """Undo what could not be undone before, with growing delays. Never returns."""
        while True:
            await self._has_pending.wait()
            self._has_pending = trio.Event()
            while self._pending:
                instance, delay_s = min(self._pending.items(), key=lambda item: item[1])
                await trio.sleep(delay_s)
                if instance in self._pending:
                    await self.release(instance)

    async def attach(
        self, instance: str, name: str, ports: Iterable[Sequence[Any]], bandwidth_max: int | None = None
    ) -> int:
        """Set up the network `name` for the next program of an instance; return a descriptor of its namespace.

        `ports`: (host address or "", host port, port, protocol) each. `bandwidth_max`: bytes a second, in each
        direction. The descriptor stays this object's. What was set
        up for an earlier program is undone first.

        Raises NetworkError: nothing is set up, or it will be undone.
        """
        async with self._lock_of(instance):
            if not await self._undo(instance):
                raise NetworkError(f"the network of its last program is still set up: {self._problem}")
            await self._open_lock()
            network = cni_files.read_network(name, self.settings.config_directory)
            if reason := cni_files.find_obstacle(network, self.settings.allow_forwarding):
                raise NetworkError(f"network {name}: {reason}")
            mappings = port_mappings(ports)
            if mappings and not network.has_capability("portMappings"):
                raise NetworkError(f'network {name}: none of its plugins has the capability "portMappings" for publish')
            runtime: dict[str, Any] = {"portMappings": mappings} if mappings else {}
            if bandwidth_max is not None:
                if reason := await call_in_thread(cni_files.find_bandwidth_obstacle, network):
                    raise NetworkError(f"network {name}: {reason}")
                runtime["bandwidth"] = bandwidth(bandwidth_max)
            attachment = Attachment(
                instance,
                f"{self.service}-{instance.replace('@', '.')}-{secrets.token_hex(6)}",
                network,
                runtime,
            )
            try:
                self._attachments[instance] = attachment
                attachment.hold_namespace(await call_in_thread(cni_plugins.make_network_namespace))
                await self._add(attachment)
            except (NetworkError, OSError) as error:
                text = str(error) if isinstance(error, NetworkError) else f"{error.strerror or error}"
                await self._undo(instance)
                raise NetworkError(f"network {name}: {text}") from None
            self.on_change()
            return attachment.namespace

    async def release(self, instance: str) -> None:
        """Undo what was set up for an instance, when its program has ended. What fails is reported and tried again."""
        delay_s = self._pending.pop(instance, None)
        if instance not in self._attachments:
            return
        async with self._lock_of(instance):
            is_undone = await self._undo(instance)
        if is_undone:
            return
        if delay_s is None or delay_s == 0:
            self.warn(instance, f"its network cannot be undone now: {self._problem}; it is tried again")
        self._undo_later(instance, min(max((delay_s or 0) * 2, FIRST_RETRY_S), LONGEST_RETRY_S))

    def _undo_later(self, instance: str, delay_s: float) -> None:
        self._pending[instance] = delay_s
        self._has_pending.set()

    def _lock_of(self, instance: str) -> trio.Lock:
        return self._locks.setdefault(instance, trio.Lock())

    # ---- plugins

    _problem: str = attrs.field(init=False, default="")
    """Why the latest attempt to undo something has failed."""

    async def _add(self, attachment: Attachment) -> None:
        network = attachment.network
        for number, plugin in enumerate(network.plugins):
            attachment.begin_plugin(number)
            await self._save(attachment)
            body = request(network, plugin, attachment.runtime, attachment.result)
            output = await self._run_plugin("ADD", plugin, attachment, body)
            try:
                attachment.set_result(parse_result(output))
            except NetworkError as error:
                raise NetworkError(f"plugin {plugin['type']}: {error}") from None
        await self._save(attachment)
        if "portMappings" in attachment.runtime:
            await self._refuse_loopback(attachment)

    async def _refuse_loopback(self, attachment: Attachment) -> None:
        """Drop what leaves the namespace for 127.0.0.0/8, by a rule of its own firewall, which ends with it.

        So that ports of 127.0.0.1 can be published, the plugin portmap has the host take packets to that address from
        the network (route_localnet, ip-sysctl). Any program may send them, bound to its device (SO_BINDTODEVICE).
        """
        enter = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{attachment.namespace}"]
        rule = ["-A", "OUTPUT", "!", "-o", "lo", "-d", "127.0.0.0/8", "-j", "DROP"]
        try:
            with self._cgroup_files() as files:
                await cni_plugins.run_tool([*enter, "iptables", "-w", *rule], (self._lock_fd,), files)
        except NetworkError as error:
            text = "cannot keep the program from the loopback device of the host, which published ports open to it; "
            raise NetworkError(f"{text}install iptables: {error}") from None

    async def _undo(self, instance: str) -> bool:
        """Run DEL of each plugin that may have done something, the last one first; return whether all is undone."""
        attachment = self._attachments.get(instance)
        if attachment is None:
            return True
        problems = []
        try:
            await self._open_lock()
            network = attachment.network
            for plugin in reversed(network.plugins[: attachment.begun]):
                body = request(network, plugin, attachment.runtime, attachment.result)
                try:
                    await self._run_plugin("DEL", plugin, attachment, body)
                except NetworkError as error:  # the others may undo their part
                    problems.append(str(error))
            if attachment.begun and network.masquerades and (attachment.namespace < 0 or attachment.result is None):
                await self._remove_masquerading(attachment)
            if not problems:
                await call_in_thread(self._remove_record, instance)
        except (NetworkError, OSError) as error:
            problems.append(str(error))
        if problems:
            self._problem = "; ".join(dict.fromkeys(problems))
            return False
        attachment.close_namespace()
        del self._attachments[instance]
        self.on_change()
        self._pending.pop(instance, None)
        return True

    async def _run_plugin(self, command: str, plugin: Mapping[str, Any], attachment: Attachment, body: bytes) -> bytes:
        inherited = (self._lock_fd,)
        with self._cgroup_files() as files:
            return await cni_plugins.run_plugin(
                command, plugin["type"], attachment.container_id, attachment.namespace, body, inherited, files
            )

    def _cgroup_files(self) -> AbstractContextManager[tuple[str, ...]]:
        return nullcontext(()) if self.plugin_cgroup is None else self.plugin_cgroup.entered()

    async def _remove_masquerading(self, attachment: Attachment) -> None:
        """Remove the rules that the plugins leave if the device in the workload has gone before DEL."""
        with self._cgroup_files() as files:
            await self._remove_masquerading_rules(attachment, files)

    async def _remove_masquerading_rules(self, attachment: Attachment, files: Sequence[str]) -> None:
        chain = masquerade_chain(attachment.network.name, attachment.container_id)
        for program in ("iptables", "ip6tables"):
            run = partial(cni_plugins.run_tool, inherited=(self._lock_fd,), cgroup_files=files)
            try:
                rules = await run([program, "-w", "-t", "nat", "-S"])
            except NetworkError:  # without this program, or without such tables, the plugins have made no rules
                continue
            for arguments in masquerade_deletions(rules, chain):
                await run([program, "-w", "-t", "nat", *arguments])

    # ---- records

    @property
    def _directory(self) -> str:
        return f"{self.state_directory}/{DIRECTORY}/{self.service}"

    async def _save(self, attachment: Attachment) -> None:
        await call_in_thread(self._write_record, attachment.instance, attachment.to_json())

    def _write_record(self, instance: str, content: bytes) -> None:
        with TrustedDirectory(self._directory, _INSTEAD, mode=0o700) as directory:
            directory.replace(f"{instance}{_SUFFIX}", content)

    def _remove_record(self, instance: str) -> None:
        with TrustedDirectory(self._directory, _INSTEAD, mode=0o700) as directory:
            try:
                directory.unlink(f"{instance}{_SUFFIX}")
            except FileNotFoundError:  # it was never written
                pass

    def _read_records(self) -> list[Attachment]:
        found = []
        with TrustedDirectory(self._directory, _INSTEAD) as directory:
            for name in sorted(os.listdir(self._directory)):
                if not name.endswith(_SUFFIX):
                    continue
                with os.fdopen(directory.open(name, os.O_RDONLY), "rb") as file:
                    text = file.read()
                try:
                    found.append(Attachment.from_json(text))
                except (ValueError, KeyError, TypeError):
                    path = f"{self._directory}/{name}"
                    self.warn(
                        name.removesuffix(_SUFFIX),
                        f"the record of its network is damaged, so that it cannot be undone: {path}; remove it",
                    )
        return found

    async def _open_lock(self) -> None:
        """Take the lock of this service, once. Raises NetworkError if another process keeps it."""
        async with self._opening:
            if self._lock_fd >= 0:
                return
            fd = await call_in_thread(self._open_lock_file)
            try:
                with trio.move_on_after(LOCK_TIMEOUT_S):
                    while True:
                        try:
                            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                            break
                        except OSError as error:
                            if error.errno != errno.EWOULDBLOCK:
                                raise
                        await trio.sleep(_LOCK_POLL_S)
                    # Shared from now on: the plugins have it, too, by the same open file.
                    fcntl.flock(fd, fcntl.LOCK_SH)
                    self._lock_fd, fd = fd, -1
                    return
            finally:
                if fd >= 0:
                    os.close(fd)
            raise NetworkError(
                f"another process has {self._directory}/{_LOCK}: a service of the same name, or a plugin of an earlier "
                "one that does not end"
            )

    def _open_lock_file(self) -> int:
        with TrustedDirectory(self._directory, _INSTEAD, mode=0o700) as directory:
            return directory.open(_LOCK, os.O_RDWR, mode=0o600)

    def close(self) -> None:
        """Close all descriptors, at the end of the service."""
        for attachment in self._attachments.values():
            attachment.close_namespace()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1
