"""The sandboxes with a root file system of their own, as other programs have by default.

Everything of them, with the targets, is in a network namespace in place of the host's: there a network of plugins may
be set up, and each port is free.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from nsupervisor.linux.namespaces import NAMESPACES
from nsupervisor.linux.syscalls import setns, unshare
from tests.escape import parties, peers
from tests.escape.parties import DEFAULT, Results
from tests.escape.targets import Targets
from tests.needs import PROGRAM_PATH, ROOT

OWN = "namespaces = { network = true }"
JOINED = 'namespaces = { network = "workload:holder", uts = "path:FILE", ipc = "workload:holder" }'
CNI = 'namespaces = { network = "cni:escape" }\nnetwork = { publish = ["127.0.0.1:8080:80"] }'
SOCKET = """
[[workload.own-root-socket.sockets]]
listen_stream = "127.0.0.1:8081"
"""
PARTIES = {
    "own root": f"{OWN}\n{DEFAULT}",
    "own root, strict": 'security = { profile = "strict" }',
    "own root, joined": f"{JOINED}\n{DEFAULT}",
    "own root, CNI": f"{CNI}\n{DEFAULT}",
    "own root, socket": f"{OWN}\n{DEFAULT}{SOCKET}",
}
"""Party → the keys of its workload, of a service that runs as root, without its root."""
ROOTLESS = {"own root, rootless": f"namespaces = {{ user = true, network = true }}\n{DEFAULT}"}
"""The same for a service without root."""
HOLDER = """
[workload.holder]
command = ["sleep", "1000"]
namespaces = { network = true }
"""
NETWORK = """
[network]
allow_forwarding = true
config_directory = "DIRECTORY"
"""


@contextmanager
def own_network() -> Iterator[None]:
    """Be in a new network namespace, whose loopback device is up, with one more device."""
    flag = NAMESPACES["network"].flag
    with open("/proc/self/ns/net") as before:
        unshare(flag)
        try:
            for command in ("link set lo up", "link add escape1 type bridge"):
                subprocess.run(["ip", *command.split()], check=True)
            yield
        finally:
            setns(before.fileno(), flag)


@contextmanager
def namespace(option: str, name: str) -> Iterator[str]:
    """Make a namespace with an option of unshare(1); yield the file of it."""
    command = ["unshare", option, "sh", "-c", "echo; read line"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"\n"
        try:
            yield f"/proc/{holder.pid}/ns/{name}"
        finally:
            holder.kill()


def results() -> dict[str, Results]:
    """Run the attempts in each party that this machine has everything for."""
    with own_network(), parties.new_targets() as targets, namespace("--uts", "uts") as uts:
        targets.environment["PATH"] = PROGRAM_PATH
        targets.environment["CNI_PATH"] = f"{ROOT}/.programs/cni/usr/lib/cni:/usr/lib/cni"
        root = peers.root_file_system(targets.directory)
        found: dict[str, Results] = {}
        for chosen, run, place in (
            (parties.possible(PARTIES), _privileged, targets.directory),
            (ROOTLESS, parties.rootless_results, targets.directory / "rootless"),
        ):
            workloads = {
                name: f'root = {{ path = "{root}" }}\n{keys.replace("FILE", uts)}' for name, keys in chosen.items()
            }
            commands = dict.fromkeys(chosen, peers.own(targets, runtime=f"{place}/run"))
            found |= run(targets, workloads, commands)
        return found


def _privileged(targets: Targets, workloads: dict[str, str], commands: parties.Commands) -> dict[str, Results]:
    """Run the attempts in workloads of one service of root, with a network of plugins."""
    directory = targets.directory
    network = {
        "type": "bridge", "bridge": "escape0", "isGateway": True, "ipMasq": True, "hairpinMode": True,
        "ipam": {
            "type": "host-local", "dataDir": f"{directory}/leases",
            "ranges": [[{"subnet": "10.88.9.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}],
        },
    }  # fmt: skip
    plugins = [network, {"type": "portmap", "capabilities": {"portMappings": True}}, {"type": "firewall"}]
    (directory / "escape.conflist").write_text(
        json.dumps({"cniVersion": "1.0.0", "name": "escape", "plugins": plugins})
    )
    further = HOLDER + NETWORK.replace("DIRECTORY", str(directory))
    return parties.workload_results(targets, workloads, commands=commands, further=further)
