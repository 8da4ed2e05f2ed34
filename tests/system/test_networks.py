"""Networks by the usual plugins, with real programs, in a network namespace in place of the host's.

What is set up must be gone after each end, wherever the service is killed: addresses, devices, and rules.
"""

import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest
import trio

from tests.needs import PROGRAM_PATH, ROOT, needs
from tests.system.service import NSUPERVISOR, service
from tests.timing import deadline

pytestmark = needs(
    "root",
    "cgroup",
    "netns",
    "program:ip",
    "program:tc",
    "program:iptables",
    "program:iptables-save",
    "program:host-local",
)

TOML = """
[workload.web]
command = ["python3", "-m", "http.server", "--bind", "0.0.0.0", "80"]
restart = "always"
restart_sec = 0
working_directory = "/usr/share"
namespaces = { network = "cni:blue" }
network = { publish = ["127.0.0.1:8080:80"] }

[workload.side]
command = ["sleep", "1000"]
namespaces = { network = "workload:web" }

[network]
allow_forwarding = true
config_directory = "DIRECTORY"
"""


@attrs.frozen
class Network:
    """A network namespace in place of the host's, and the files of its networks."""

    directory: Path
    within: tuple[str, ...]

    @property
    def toml(self) -> str:
        return TOML.replace("DIRECTORY", str(self.directory))

    def run(self, *command: str) -> str:
        return subprocess.run([*self.within, *command], check=True, capture_output=True, text=True).stdout

    @contextmanager
    def receiving(self) -> Iterator[subprocess.Popen[str]]:
        """Run `RECEIVER`; it has its socket."""
        command = [*self.within, "python3", "-c", RECEIVER]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "bound\n"
            try:
                yield process
            finally:
                process.kill()

    def leases(self) -> list[str]:
        """The addresses that are reserved."""
        return sorted(path.name for path in self.directory.glob("leases/blue/10.*"))

    def devices(self) -> list[str]:
        return [line.split("@")[0].split()[0] for line in self.run("ip", "-br", "link").splitlines()]

    def rules(self) -> list[str]:
        """The rules of the firewall that are about one program."""
        lines = self.run("iptables-save").splitlines()
        return [line for line in lines if "10.88." in line or "id: " in line or line.startswith((":CNI-DN-", ":CNI-f"))]

    def is_clean(self) -> bool:
        veths = [device for device in self.devices() if device.startswith(("veth", "bwp"))]
        return not (self.leases() or veths or self.rules())


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    monkeypatch.setenv("PATH", PROGRAM_PATH)
    monkeypatch.setenv("CNI_PATH", f"{ROOT}/.programs/cni/usr/lib/cni:/usr/lib/cni")
    bridge = {
        "type": "bridge", "bridge": "blue0", "isGateway": True, "ipMasq": True, "hairpinMode": True,
        "ipam": {"type": "host-local", "dataDir": str(tmp_path / "leases"), "ranges": [[{"subnet": "10.88.7.0/24"}]]},
    }  # fmt: skip
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    plugins_of_blue = [bridge, portmap, {"type": "firewall", "backend": "iptables"}]
    plugins_of_blue.append({"type": "bandwidth", "capabilities": {"bandwidth": True}})
    text = json.dumps({"cniVersion": "1.0.0", "name": "blue", "plugins": plugins_of_blue})
    (tmp_path / "blue.conflist").write_text(text)
    script = "ip link set lo up; echo; read line"
    with subprocess.Popen(["unshare", "--net", "sh", "-c", script], stdin=-1, stdout=-1) as it:
        assert it.stdout is not None
        assert it.stdout.readline() == b"\n"
        yield Network(tmp_path, ("nsenter", f"--net=/proc/{it.pid}/ns/net"))
        it.kill()


async def test_a_published_port_leads_to_the_program(network):
    async with service(network.directory, network.toml, within=network.within) as it:
        pid = await it.pid("web")
        await it.record(event="started", workload="side")
        with trio.fail_after(deadline(20)):
            while True:  # until it listens
                try:
                    network.run("curl", "-sS", "-o", "/dev/null", "http://127.0.0.1:8080/")
                    break
                except subprocess.CalledProcessError:
                    await trio.sleep(0.05)
        assert os.readlink(f"/proc/{pid}/ns/net") == os.readlink(f"/proc/{await it.pid('side')}/ns/net")
        assert network.leases() == ["10.88.7.2"]
        assert "eth0" in await it.cli("exec", "side", "--", "cat", "/proc/net/dev")
        for generation in (2, 3, 4):
            os.kill(pid, signal.SIGKILL)
            pid = await it.pid("web", generation)
            assert len(network.leases()) == 1
            assert len([device for device in network.devices() if device.startswith("veth")]) == 1
        await it.cli("stop", "web")
        with trio.fail_after(deadline(20)):  # "stop" does not wait for the plugins
            while not network.is_clean():  # noqa: ASYNC110
                await trio.sleep(0.05)
        assert [record for record in it.records if "cannot be undone" in record.get("message", "")] == []
    assert network.is_clean()


NAMED = """
[workload.web]
command = ["sleep", "1000"]
namespaces = { network = "cni:blue", hostname = "shop" }
network.bandwidth_max = "1MB/s"
network.hosts = { printer = "10.9.9.9" }
network.dns = { servers = ["10.88.7.1"], options = ["ndots:2"] }

[workload.side]
command = ["sleep", "1000"]
namespaces = { network = "workload:web" }

[workload.db]
command = ["sleep", "1000"]
namespaces = { network = "cni:blue" }

[network]
allow_forwarding = true
config_directory = "DIRECTORY"
"""


async def test_workloads_of_a_network_find_each_other_by_name(network):
    """Also while they run, and after the service has been killed. The files of the host stay as they are."""
    before = [Path(path).read_bytes() for path in ("/etc/hosts", "/etc/resolv.conf")]
    toml = NAMED.replace("DIRECTORY", str(network.directory))

    async def hosts(it, name: str, wanted: bool) -> dict[str, str]:
        with trio.fail_after(deadline(20)):
            while True:
                text = await it.cli("exec", name, "--", "cat", "/etc/hosts")
                lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
                found = {other: address for address, *others in lines for other in others}
                if ("db" in found) == wanted:
                    return found
                await trio.sleep(0.02)

    async with service(network.directory, toml, within=network.within, status=-9) as it:
        await it.record(event="started", workload="side")
        await it.record(event="started", workload="db")
        found = await hosts(it, "web", True)
        assert found["printer"] == "10.9.9.9"
        assert found["web"] == found["shop"] != found["db"]
        assert await hosts(it, "side", True) == found
        limits = [line for line in network.run("tc", "qdisc", "show").splitlines() if " tbf " in line]
        assert len(limits) == 2
        assert all(" rate 8388Kbit " in line for line in limits), limits
        names = await it.cli("exec", "db", "--", "getent", "hosts", "web")
        assert names.split() == [found["web"], "web"]
        await it.cli("stop", "db")
        await hosts(it, "web", False)
        assert await it.cli("exec", "web", "--", "cat", "/etc/resolv.conf") == "nameserver 10.88.7.1\noptions ndots:2\n"
        os.kill(it.process.pid, signal.SIGKILL)
        await it.process.wait()
    async with service(network.directory, toml, within=network.within) as it:
        await it.cli("start", "db")
        assert "printer" in await hosts(it, "side", True)
    assert not list((network.directory / "state/names").glob("*/*"))
    assert [Path(path).read_bytes() for path in ("/etc/hosts", "/etc/resolv.conf")] == before


async def test_nothing_is_left_when_the_service_is_killed_at_any_time(network):
    """Also when the programs and their keeper are killed with it, so that the devices are gone before DEL."""
    moments = random.Random(5)
    for round_ in range(6):
        async with service(network.directory, network.toml, within=network.within, status=-9) as it:
            pid = (await it.status("web"))["pid"] if round_ % 2 else None
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
            await trio.sleep(moments.random() * 0.5)
            keeper = (await it.record(event="supervisor started"))["keeper_pid"]
            os.kill(it.process.pid, signal.SIGKILL)
            if round_ % 3 == 0:
                os.kill(keeper, signal.SIGKILL)
            await it.process.wait()
    async with service(network.directory, network.toml, within=network.within) as it:
        await it.until(lambda: any(r["event"] in ("started", "taken over") for r in it.records))
        await it.cli("stop", "web")
        with trio.fail_after(deadline(60)):
            while not network.is_clean():  # noqa: ASYNC110
                await trio.sleep(0.1)
    assert network.is_clean(), (network.leases(), network.devices(), network.rules())
    assert not list((network.directory / "state/networks").glob("*/*.json"))


def test_forwarding_is_not_switched_on_without_permission(network):
    config = network.directory / "site.toml"
    config.write_text(
        f'[supervisor]\nruntime_directory = "{network.directory}/run"\n'
        + network.toml.replace("allow_forwarding = true", "allow_forwarding = false")
    )
    found = subprocess.run([*network.within, *NSUPERVISOR, "run", str(config)], capture_output=True, text=True)
    assert found.returncode == 2
    assert "workload.web.namespaces.network: its plugin bridge would make this host forward packets" in found.stderr
    assert network.run("cat", "/proc/sys/net/ipv4/ip_forward") == "0\n"
    assert "blue0" not in network.devices()


DATAGRAM = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    sock.sendto(b"x", ("127.0.0.1", 9))
"""
RECEIVER = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(("127.0.0.1", 9))
    print("bound", flush=True)
    print(sock.recvfrom(1)[0].decode())
"""


async def test_no_datagram_reaches_the_loopback_device_of_the_host(network):
    """The plugin portmap let packets to 127.0.0.1 in. It still does when the rule of the program's network is gone."""
    async with service(network.directory, network.toml, within=network.within) as it:
        await it.record(event="started", workload="side")
        of_program = ("nsenter", f"--net=/proc/{await it.pid('web')}/ns/net")
        with network.receiving() as receiver:
            refused = await it.cli_result("exec", "side", "--", "python3", "-c", DATAGRAM)
            assert b"Operation not permitted" in refused.stderr
            await trio.run_process([*of_program, "iptables", "-F", "OUTPUT"])
            await it.cli("exec", "side", "--", "python3", "-c", DATAGRAM)
            assert receiver.communicate(timeout=deadline(20))[0] == "x\n"
