"""What one does by hand to understand namespaces, one kind after the other: what is inside is not seen outside."""

import json
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.experiments.laboratory import KINDS, namespaces
from tests.needs import needs
from tests.timing import deadline

pytestmark = needs("root", "cgroup", "userns", "netns", "time_namespace")

DAY = 86_400

TOML = """
[workload.shared]
namespaces = { mount = false, pid = false, uts = false, ipc = false, cgroup = false }
[workload.island]
namespaces = { network = true, time = true, hostname = "island", time_offsets = { boottime = 86400, monotonic = 7200 } }
security = { profile = "none" } # it mounts, and sets its host name
[[workload.island.mounts]]
type = "tmpfs"
destination = "/mnt"
[[workload.island.mounts]]
source = "DIRECTORY/bound"
destination = "/mnt/bound"
options = ["ro"]
[workload.neighbour]
namespaces = { network = true }
[workload.first]
init = false
kill_signal = "SIGKILL"
[workload.mapped]
namespaces = { user = true }
[workload.mapped.user_namespace]
uid_mappings = [{ container_id = 0, host_id = 100000, size = 1000 }]
gid_mappings = [{ container_id = 0, host_id = 200000, size = 1000 }]
"""

LISTEN = """python3 -c '
import os, socket
server = socket.create_server(("127.0.0.1", {port}))
if os.fork():
    print("bound", flush=True)
    os._exit(0)
connection = server.accept()[0]
connection.sendall(b"{name}")
connection.close()' """

ASK = """python3 -c '
import socket
print(socket.create_connection(("127.0.0.1", {port})).recv(100).decode())' """


def test_what_is_not_asked_for_stays_shared(lab):
    assert namespaces(lab.pid("shared")) == namespaces()


def test_each_kind_that_is_asked_for_is_new(lab):
    def new(name: str) -> set[str]:
        ours, theirs = namespaces(), namespaces(lab.pid(name))
        return {kind for kind in KINDS if ours[kind] != theirs[kind]}

    assert new("island") == set(KINDS) - {"user"}
    assert new("mapped") == {"user", "mnt", "pid", "uts", "ipc", "cgroup"}
    theirs = {kind: namespaces(lab.pid("neighbour"))[kind] for kind in ("net", "uts")}
    assert not set(theirs.values()) & set(namespaces(lab.pid("island")).values())


def test_uts_a_host_name_of_its_own(lab):
    outside = os.uname().nodename
    assert lab.inside("island", "uname -n") == ["island"]
    lab.inside("island", "hostname atoll")
    assert lab.inside("island", "uname -n; cat /proc/sys/kernel/hostname") == ["atoll", "atoll"]
    assert os.uname().nodename == outside
    assert lab.inside("shared", "uname -n") == [outside]
    assert lab.inside("neighbour", "uname -n") == ["neighbour"]


def test_pid_numbers_begin_at_one(lab):
    assert lab.inside("first", "echo $$") == ["1"]
    assert lab.inside("neighbour", "echo $$") == ["3"]  # 1 is the init, 2 was what made it ready
    pid = lab.pid("neighbour")
    assert lab.inside("shared", "echo $$") == [str(lab.pid("shared"))]
    status = Path(f"/proc/{pid}/status").read_text()
    assert f"NSpid:\t{pid}\t3\n" in status  # one process, two numbers


def test_pid_only_its_own_processes_are_seen(lab):
    # Opening the FIFO for writing waits until cat opens it for reading: then the shell's child has become cat.
    fifo = lab.directory / "seen.fifo"
    os.mkfifo(fifo)
    lab.inside("neighbour", f"cat {fifo} & exec 3>{fifo}")
    # What prepared the namespaces ends after the program's exec, at any moment; the init reaps it.
    lab.inside("neighbour", "while [ -e /proc/2 ]; do :; done")
    first, *others = [line.split(None, 1) for line in lab.inside("neighbour", "ps -e -o pid=,comm=")]
    assert first[0] == "1"  # the init
    assert sorted(command for _, command in others) == ["cat", "ps", "sh"]
    # What has no number in here can't be signalled.
    assert lab.inside("neighbour", f"kill -0 {lab.pid('island')} 2>/dev/null || echo refused") == ["refused"]
    assert lab.inside("neighbour", "exec 3>&-; wait $!; ps -e -o comm= | grep -c cat") == ["0"]


def test_mount_of_its_own_is_not_seen_outside(lab):
    before = Path("/proc/self/mountinfo").read_text()
    listing = sorted(os.listdir("/mnt"))
    assert lab.inside("island", "touch /mnt/only-here; ls /mnt") == ["bound", "only-here"]
    assert lab.inside("island", "stat -f -c %T /mnt") == ["tmpfs"]
    (lab.directory / "bound" / "outside").touch()
    assert lab.inside("island", "ls /mnt/bound") == ["outside"]
    assert "Read-only" in lab.inside("island", "touch /mnt/bound/x")[0]
    lab.inside("island", "mkdir /mnt/more; mount -t tmpfs -o size=1M only-inside /mnt/more")
    assert len(lab.inside("island", "grep only-inside /proc/self/mountinfo")) == 1
    assert lab.inside("neighbour", "grep only-inside /proc/self/mountinfo") == []
    assert (sorted(os.listdir("/mnt")), Path("/proc/self/mountinfo").read_text()) == (listing, before)


@needs("program:ipcmk", "program:ipcs", "program:ipcrm")
def test_ipc_queues_are_not_shared(lab):
    def queues() -> set[str]:
        """The keys of all System V message queues outside; they are chosen at random."""
        return {line.split()[0] for line in Path("/proc/sysvipc/msg").read_text().splitlines()[1:]}

    before = queues()
    assert lab.inside("island", "ipcmk -Q")[0].startswith("Message queue id: ")
    assert len([line for line in lab.inside("island", "ipcs -q") if line.startswith("0x")]) == 1
    assert queues() == before
    made = subprocess.run(["ipcmk", "-Q"], capture_output=True, text=True, check=True).stdout.split()[-1]
    try:
        (key,) = queues() - before
        assert key in lab.inside("shared", "tail -n +2 /proc/sysvipc/msg | awk '{print $1}'")
        assert key not in lab.inside("island", "tail -n +2 /proc/sysvipc/msg | awk '{print $1}'")
    finally:
        subprocess.run(["ipcrm", "-q", made], check=True)


def test_user_is_root_inside_and_nobody_special_outside(lab):
    assert lab.inside("mapped", "id -u; id -g") == ["0", "0"]
    pid = lab.pid("mapped")
    assert Path(f"/proc/{pid}/uid_map").read_text().split() == ["0", "100000", "1000"]
    assert Path(f"/proc/{pid}/gid_map").read_text().split() == ["0", "200000", "1000"]
    assert (os.stat(f"/proc/{pid}").st_uid, os.stat(f"/proc/{pid}").st_gid) == (100000, 200000)
    common = lab.directory / "common"
    common.mkdir()
    common.chmod(0o777)
    assert lab.inside("mapped", f"touch {common}/made-inside; stat -c %u:%g {common}/made-inside") == ["0:0"]
    made = (common / "made-inside").stat()
    assert (made.st_uid, made.st_gid) == (100000, 200000)
    # What has no number inside shows as the overflow user, and its root may not touch it.
    assert lab.inside("mapped", f"stat -c %u {common}") == ["65534"]
    assert "Operation not permitted" in lab.inside("mapped", f"chmod 700 {common}")[0]


@needs("program:ip")
def test_network_devices_and_addresses_of_its_own(lab):
    assert lab.inside("neighbour", "ip -4 -o addr | awk '{print $2, $4}'") == ["lo 127.0.0.1/8"]
    (lo,) = lab.inside("neighbour", "grep lo: /proc/net/dev")
    assert set(lo.replace("lo:", "").split()) == {"0"}  # not the host's counters
    addresses = json.loads(subprocess.check_output(["ip", "-json", "addr"]))
    outside = {device["ifname"] for device in addresses if any(a["scope"] == "global" for a in device["addr_info"])}
    devices = {line.split(":")[0].strip() for line in lab.inside("neighbour", "tail -n +3 /proc/net/dev")}
    assert "lo" in devices
    assert not devices & outside


def test_network_the_same_port_is_free_for_each(lab):
    with socket.create_server(("127.0.0.1", 0)) as ours:
        port = ours.getsockname()[1]
        for name in ("island", "neighbour"):
            assert lab.inside(name, LISTEN.format(port=port, name=name)) == ["bound"]
        for name in ("island", "neighbour"):
            assert lab.inside(name, ASK.format(port=port)) == [name]
        # Nobody of them was this one.
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.accept()
        assert "in use" in lab.inside("shared", LISTEN.format(port=port, name="shared"))[-1]


def test_time_clocks_with_an_offset(lab):
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    (inside,) = lab.inside("island", "cut -d ' ' -f 1 /proc/uptime")
    after = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before + DAY - 1 < float(inside) < after + DAY + 1
    offsets = Path(f"/proc/{lab.pid('island')}/timens_offsets").read_text().split()
    assert offsets == ["monotonic", "7200", "0", "boottime", str(DAY), "0"]
    (today,) = lab.inside("island", "date +%s")  # the wall clock has no offset
    assert abs(int(today) - time.time()) < deadline(10)


def test_cgroup_namespace_shows_its_own_as_the_root(lab):
    inside = lab.inside("island", "cat /proc/self/cgroup")
    assert "0::/" in inside
    assert {line.rpartition(":")[2] for line in inside} == {"/"}
    outside = Path(f"/proc/{lab.pid('island')}/cgroup").read_text().splitlines()
    assert outside[-1].endswith(f"/{lab.directory.name}/island")
    assert lab.inside("shared", "cat /proc/self/cgroup")[-1].endswith(f"/{lab.directory.name}/shared")
