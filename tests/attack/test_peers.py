"""Workloads against the service that runs them: its sockets, its keeper's, and those of other workloads.

Each attacker is a real workload that reports what it could do. A connection that is refused, a path that is not there,
and a response 403 are all of no use to it.
"""

import contextlib
import errno
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.deployment.conftest import cgroups, folder, interpreter_for_all
from tests.deployment.running import settings, started
from tests.deployment.test_rootless import enter
from tests.needs import needs
from tests.system.service import NSUPERVISOR, PATIENCE, Service, service

__all__ = ["cgroups", "enter", "folder", "interpreter_for_all"]  # fixtures

pytestmark = needs("root", "cgroup")

PYTHON = "/usr/bin/python3"
USELESS = {
    "HTTP/1.1 403",
    "closed",
    "Broken pipe",
    "Connection reset by peer",
    "No such file or directory",
    "Not a directory",
    "Permission denied",
}

TOOLS = r"""
import json, os, socket, sys, time


def attempt(name, path):
    '''The first bytes of an answer; why there is none.'''
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET if name == "keeper" else socket.SOCK_STREAM)
    sock.settimeout(20)
    try:
        sock.connect(path)
        if name == "api":
            sock.send(b"GET /v1/info HTTP/1.1\r\nHost: x\r\n\r\n")
        return sock.recv(12).decode() or "closed"
    except OSError as error:
        return error.strerror or type(error).__name__
    finally:
        sock.close()


def notify(path, text):
    '''Send a message to a notify socket; "sent", or why not.'''
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(text, path)
        return "sent"
    except OSError as error:
        return error.strerror


def report(found):
    print(json.dumps(found), flush=True)
    time.sleep(1000)  # while it lives its cgroup decides
"""

SOCKETS = """
outside, run, descriptor = sys.argv[1:4]
places = {"own": run, "outside": f"/proc/{outside}/root{run}", "inherited": f"/proc/{outside}/fd/{descriptor}"}
places |= {place: place for place in sys.argv[4:]}
found = {}
for where, place in places.items():
    for name in ("api", "keeper"):
        found[f"{where} {name}"] = attempt(name, f"{place}/{name}.sock")
    found[f"{where} workloads"] = attempt("api", f"{place}/notify/control/api/api.sock")
    try:
        found[f"{where} names"] = sorted(os.listdir(place))
    except OSError as error:
        found[f"{where} names"] = error.strerror
report(found)
"""

WAYS = {
    "root": "",
    "nobody": 'user = "nobody"',
    "user namespace": "namespaces = { user = true }",
    "host's pids": "namespaces = { pid = false }",
    "host's mounts": "namespaces = { mount = false }",
    "without init": "init = false",
    "without namespaces": "namespaces = { mount = false, pid = false, ipc = false, uts = false, cgroup = false }",
}
VICTIM = """
[workload.victim]
command = ["sleep", "1000"]
type = "notify"
timeout_start_sec = "infinity"
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user may enter."""
    directory = Path(tempfile.mkdtemp(prefix="attack-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def workload(name: str, directory: Path, script: str, *arguments: object, keys: str = "", profile: str = "none") -> str:
    """A workload that runs this script after `TOOLS`, without the profile that would stop most of it at once."""
    path = directory / f"{name}.py"
    path.write_text(TOOLS + script)
    path.chmod(0o644)
    command = json.dumps([PYTHON, str(path), *map(str, arguments)])
    return f'[workload.{name}]\ncommand = {command}\nrestart = "no"\nsecurity.profile = "{profile}"\n{keys}\n'


async def reported(it: Service, name: str) -> dict[str, Any]:
    """What `report` of a workload has printed."""
    return json.loads(
        (await it.record(event="output", workload=name, stream="stdout", patience=PATIENCE * 3))["message"]
    )


def assert_useless(found: dict[str, Any]) -> None:
    answers = {what: answer for what, answer in found.items() if not what.endswith("names")}
    assert {what: answer for what, answer in answers.items() if answer not in USELESS} == {}


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[int]:
    """A descriptor of the runtime directory in this process, which is outside of all workloads."""
    directory.mkdir(exist_ok=True)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


# ---- the sockets of the service and of its keeper


@pytest.mark.fault("A4")
@pytest.mark.parametrize("way", WAYS)
async def test_no_socket_of_the_service_answers_a_workload(place: Path, way: str) -> None:
    run = place / "run"
    with opened(run) as fd:
        evil = workload("evil", place, SOCKETS, os.getpid(), run, fd, keys=WAYS[way])
        async with service(place, evil + VICTIM) as it:
            victim = await it.pid("victim")
            found = await reported(it, "evil")
            assert_useless(found)
            if "mount = false" not in WAYS[way]:
                assert found["own names"] == []
            if way in ("host's pids", "without namespaces"):
                assert "keeper.sock" in found["inherited names"], "the attack has reached the directory"
                assert found["inherited api"] == "HTTP/1.1 403"
                assert found["inherited keeper"] in ("closed", "Connection reset by peer")
            os.kill(victim, 0)
            assert (await it.status("victim"))["state"] == "running", "the service and its keeper go on"
            await it.cli("stop", "victim")


async def test_a_copy_of_the_directory_above_shows_nothing(place: Path) -> None:
    copy = place / "copy"
    copy.mkdir()
    mounts = f'mounts = [{{ source = "{place}", destination = "{copy}" }}]'
    evil = workload("evil", place, SOCKETS, os.getpid(), place / "run", 9, copy / "run", keys=mounts)
    async with service(place, evil) as it:
        found = await reported(it, "evil")
        assert_useless(found)
        assert found[f"{copy}/run names"] == []


async def test_a_refused_connection_is_in_the_records(place: Path) -> None:
    evil = workload("evil", place, SOCKETS, os.getpid(), place / "run", 9, keys=WAYS["without namespaces"])
    async with service(place, evil) as it:
        record = await it.record(event="connection error", kind="refused", listener="unix")
        assert "is part of a workload" in record["message"]
        assert "/evil)" in record["message"]
        assert f"process {await it.pid('evil')} (uid 0)" in record["message"]
        assert record["peer"] == f"workload evil, pid {await it.pid('evil')}, uid 0"


@pytest.mark.fault("A4")
@needs("memory", "pids", "userns", "program:setpriv", "program:unshare")
async def test_a_workload_of_a_service_without_root_is_refused(enter, cgroups, folder) -> None:
    workloads = "".join(
        workload(name, folder, SOCKETS, 1, folder / "run", 9, keys=f"namespaces = {{ {spaces} }}")
        for name, spaces in (
            ("inside", "user = true"),
            ("outside", "mount = false, pid = false, uts = false, ipc = false, cgroup = false"),
        )
    )
    settings(folder, workloads)
    async with started(enter, folder) as it:
        inside, outside = await reported(it, "inside"), await reported(it, "outside")
        assert_useless(inside)
        assert_useless(outside)
        assert inside["own names"] == []
        assert outside["own api"] == "HTTP/1.1 403"
        assert outside["own keeper"] in ("closed", "Connection reset by peer")
        assert (await it.status("outside"))["state"] == "running"


# ---- notify sockets


FORGE = """
import glob
sent = {}
for environment in glob.glob("/proc/[0-9]*/environ"):
    try:
        text = open(environment, "rb").read()
    except OSError:
        continue
    for variable in text.split(b"\\0"):
        if variable.startswith(b"NOTIFY_SOCKET=") and b"victim" in text:
            path = variable.partition(b"=")[2].decode()
            root = os.path.dirname(environment) + "/root"
            for place in (path, root + path):
                sent[place] = notify(place, b"READY=1\\nSTATUS=forged")
for path in glob.glob(sys.argv[1] + "/notify/*/*"):
    sent[path] = notify(path, b"READY=1\\nSTATUS=forged")
report(sent)
"""


@pytest.mark.fault("A7")
@pytest.mark.parametrize("user", ["root", "nobody"])
async def test_no_workload_speaks_for_another_one_of_its_user(place: Path, user: str) -> None:
    """They have the same user, and the attacker sees the other's environment."""
    same = "" if user == "root" else 'user = "nobody"\n'
    spaces = "namespaces = { mount = false, pid = false, ipc = false, uts = false, cgroup = false }"
    evil = workload("evil", place, FORGE, place / "run", keys=same + spaces + '\nafter = ["victim"]')
    victim = VICTIM.replace('type = "notify"', 'type = "notify"\n' + same + spaces)
    async with service(place, victim.replace('"infinity"', '"30s"'), wait=True) as it:
        await it.pid("victim")
        path = place / "nsupervisor.toml"
        path.write_text(path.read_text() + evil.replace('after = ["victim"]', ""))
        await it.cli("reload")
        sent = await reported(it, "evil")
        assert "sent" in sent.values(), "the attack has reached the socket"
        record = await it.record(event="notify refused", workload="victim")
        assert "not part of this workload" in record["message"]
        assert (await it.status("victim"))["state"] == "running", "and not ready"
        assert not [r for r in it.records if r["event"] == "status"]


@pytest.mark.fault("A7")
async def test_its_own_helpers_speak_for_a_workload(place: Path) -> None:
    """Also one that has ended before its message is read."""
    script = "sleep 1000 & python3 -c '$0' & exec sleep 1000"
    talk = (
        "import os, socket; "
        "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])"
    )
    command = json.dumps(["sh", "-c", script.replace("'$0'", '"$0"'), talk])
    toml = f'[workload.web]\ncommand = {command}\ntype = "notify"\n'
    for keys in ("", 'user = "nobody"\n', "namespaces = { user = true }\n"):
        async with service(place, toml + keys) as it:
            await it.record(event="state", workload="web", to="ready")


@pytest.mark.fault("B11")
async def test_a_tmpfs_over_the_directory_above_leaves_the_notify_socket(place: Path) -> None:
    talk = (
        "import os, socket, time; "
        "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', os.environ['NOTIFY_SOCKET']); "
        "time.sleep(1000)"
    )
    mounts = f'mounts = [{{ type = "tmpfs", destination = "{place}" }}]'
    command = json.dumps([PYTHON, "-c", talk])
    async with service(place, f'[workload.web]\ncommand = {command}\ntype = "notify"\n{mounts}\n') as it:
        await it.record(event="state", workload="web", to="ready")


# ---- may_control


PANEL = """
def ask(method, path, body=None):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(os.environ["NSUPERVISOR_SOCKET"])
    text = json.dumps(body).encode() if body else b""
    sock.sendall(f"{method} {path} HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n"
                 f"Content-Length: {len(text)}\\r\\n\\r\\n".encode() + text)
    answer = b""
    while chunk := sock.recv(65536):
        answer += chunk
    return int(answer.split()[1]), answer.partition(b"\\r\\n\\r\\n")[2].decode()


while True:
    status, body = ask("GET", "/v1/status")
    report = {
        "status": status,
        "names": [one["name"] for one in json.loads(body)],
        "stop": ask("POST", "/v1/workloads/stop", {"names": ["mine"]})[0],
        "start": ask("POST", "/v1/workloads/start", {"names": ["mine"]})[0],
        "other": ask("POST", "/v1/workloads/kill", {"names": ["victim"]}),
        "all": ask("POST", "/v1/workloads/kill", {"names": ["*"]})[0],
        "reload": ask("POST", "/v1/reload", {})[0],
        "metrics": ask("GET", "/metrics")[0],
        "listing": sorted(os.listdir(os.path.dirname(os.environ["NSUPERVISOR_SOCKET"]))),
    }
    print(json.dumps(report), flush=True)
    os.kill(os.getpid(), 19)  # SIGSTOP, until somebody wants it again
"""
MINE = '[workload.mine]\ncommand = ["sleep", "1000"]\n'


@pytest.mark.parametrize("way", [way for way in WAYS if way != "without namespaces"])
async def test_a_workload_controls_exactly_what_it_may(place: Path, way: str) -> None:
    if way == "host's mounts" and "nobody" in WAYS[way]:
        return
    panel = workload("panel", place, PANEL, keys=f'{WAYS[way]}\nmay_control = ["mine"]\nafter = ["mine", "victim"]')
    async with service(place, MINE + VICTIM.replace('type = "notify"', "") + panel) as it:
        victim = await it.pid("victim")
        found = await reported(it, "panel")
        assert (found["status"], found["names"]) == (200, ["mine"])
        assert (found["stop"], found["start"]) == (200, 200)
        assert found["other"][0] == 403
        assert "workload panel may control only mine, not victim" in found["other"][1]
        assert (found["all"], found["reload"], found["metrics"]) == (200, 403, 403), "* means what it may control"
        if "mount = false" not in WAYS[way]:
            assert found["listing"] == ["api", "api.sock"]
        os.kill(victim, 0)
        await it.record(event="exited", workload="mine")
        os.kill(await it.pid("panel"), signal.SIGCONT)


async def test_the_commands_of_a_workload_were_recorded_as_those_of_an_operator(place: Path) -> None:
    report = """
answers = [ask("POST", f"/v1/workloads/{verb}", {"names": ["mine"], **parameters}) for verb, parameters in VERBS]
report({"answers": answers})
"""
    verbs = [("signal", {"signal": "SIGCONT"}), ("set", {"resources": {"pids_max": 99}}), ("freeze", {}), ("thaw", {})]
    verbs += [("restart", {}), ("stop", {}), ("start", {}), ("kill", {})]
    source = f"{PANEL.partition('while True')[0]}\nVERBS = {verbs!r}\n{report}"
    panel = workload("panel", place, source, keys='may_control = ["mine"]\nafter = ["mine"]')
    async with service(place, MINE + panel) as it:
        found = await reported(it, "panel")
        assert [status for status, _ in found["answers"]] == [200] * len(verbs), found
        for verb, _ in verbs:
            await it.record(
                event="action", workload="mine", action=verb, cause={"by": "workload panel", "kind": "workload"}
            )


CLI = r"""
import subprocess
found = {}
for arguments in (["status", "--json"], ["restart", "mine"], ["kill", "victim"], ["reload"], ["events"]):
    done = subprocess.run([*sys.argv[1:], *arguments], capture_output=True, text=True)
    found[" ".join(arguments)] = [done.returncode, done.stdout if "status" in arguments else "", done.stderr]
report(found)
"""


async def test_the_command_line_works_from_inside(place: Path) -> None:
    panel = workload("panel", place, CLI, *NSUPERVISOR, keys='may_control = ["mine"]\nafter = ["mine", "victim"]')
    panel += f'working_directory = "{Path.cwd()}"\n'
    async with service(place, MINE + VICTIM.replace('type = "notify"', "") + panel) as it:
        victim = await it.pid("victim")
        found = await reported(it, "panel")
        status, text, _ = found["status --json"]
        assert (status, [one["name"] for one in json.loads(text)]) == (0, ["mine"])
        assert found["restart mine"][0] == 0, found["restart mine"]
        assert found["events"][0] == 0, found["events"]
        for refused in ("kill victim", "reload"):
            assert found[refused][0] != 0
            assert "workload panel may" in found[refused][2]
        os.kill(victim, 0)


async def test_the_next_supervisor_answers_at_the_same_place(place: Path) -> None:
    """A socket that was bound in would be that of the dead one for good."""
    panel = workload("panel", place, PANEL, keys='may_control = ["mine"]')
    async with service(place, MINE + panel, status=-signal.SIGKILL) as it:
        await reported(it, "panel")
        pid = await it.pid("panel")
        it.process.kill()
        await it.process.wait()
    async with service(place, MINE + panel) as it:
        os.kill(pid, signal.SIGCONT)
        found = await reported(it, "panel")
        assert (found["status"], found["names"], found["reload"]) == (200, ["mine"], 403)
        assert (await it.status("panel"))["pid"] == pid


# ---- what is known not to hold yet


LEAVE = """
for line in open("/proc/self/mountinfo"):
    before, _, after = line.partition(" - ")
    if after.split()[0] in ("cgroup", "cgroup2"):
        try:
            with open(before.split()[4] + "/cgroup.procs", "w") as file:
                file.write("0")
        except OSError:
            pass
report({"api": attempt("api", sys.argv[1] + "/api.sock")})
"""
TRACE = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
SINGLESTEP, GETREGS, SETREGS, ATTACH, DETACH = 9, 12, 13, 16, 17
WALL = 0x40000000
RSI, RDI, RDX, RAX, ORIG_RAX, RIP = 13, 14, 12, 10, 15, 16  # struct user_regs_struct of x86-64

def registers(*values):
    return (ctypes.c_ulonglong * 27)(*values)

def call(number, *arguments):  # by the init, at the instruction that it has just executed
    changed = registers(*saved)
    changed[RIP], changed[RAX], changed[ORIG_RAX] = saved[RIP] - 2, number, 2**64 - 1
    for place, argument in zip((RDI, RSI, RDX), arguments):
        changed[place] = argument
    assert libc.ptrace(SETREGS, 1, None, ctypes.addressof(changed)) == 0
    assert libc.ptrace(SINGLESTEP, 1, None, None) == 0
    os.waitpid(1, WALL)
    assert libc.ptrace(GETREGS, 1, None, ctypes.addressof(changed)) == 0
    return ctypes.c_longlong(changed[RAX]).value

results = {}
if libc.ptrace(ATTACH, 1, None, None) == 0:
    os.waitpid(1, WALL)
    saved = registers()
    libc.ptrace(GETREGS, 1, None, ctypes.addressof(saved))
    results = {"getpid": call(39), "socket": call(41, 1, 1, 0), "fork": call(57), "execve": call(59, 0, 0, 0)}
    libc.ptrace(SETREGS, 1, None, ctypes.addressof(saved))
    libc.ptrace(DETACH, 1, None, None)
report(results)
"""


@pytest.mark.parametrize("keys", ["", "namespaces = { cgroup = false, pid = false }"], ids=["root", "host's pids"])
async def test_the_default_profile_keeps_a_root_workload_in_its_cgroups(place: Path, keys: str) -> None:
    evil = workload("evil", place, LEAVE, place / "run", keys=keys, profile="default")
    async with service(place, evil) as it:
        assert (await reported(it, "evil"))["api"] in USELESS


@pytest.mark.xfail(strict=True, reason="without a mount namespace or a profile, root may write to all cgroups")
async def test_a_root_workload_that_leaves_its_cgroups_is_refused(place: Path) -> None:
    spaces = "namespaces = { mount = false, cgroup = false }"
    async with service(place, workload("evil", place, LEAVE, place / "run", keys=spaces)) as it:
        assert (await reported(it, "evil"))["api"] in USELESS


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="needs the registers of x86-64")
async def test_a_root_workload_cannot_act_as_its_init(place: Path) -> None:
    """Root of the host may trace it, and it is in no workload's cgroup. But it can make no socket and no process."""
    async with service(place, workload("evil", place, TRACE)) as it:
        assert set((await reported(it, "evil")).values()) == {-errno.EPERM}


UNCOVER = """
import ctypes
MNT_DETACH = 2
ctypes.CDLL(None).umount2(sys.argv[1].encode(), MNT_DETACH)
try:
    with open(sys.argv[1] + "/key", "rb") as file:
        found = "read" if file.read() else "empty"
except OSError as error:
    found = error.strerror
report({"key": found})
"""


MAPPED_TO_ROOT = (
    WAYS["user namespace"]
    + """
[workload.evil.user_namespace]
uid_mappings = [{ container_id = 0, host_id = 0, size = 1 }]
gid_mappings = [{ container_id = 0, host_id = 0, size = 1 }]
"""
)


@pytest.mark.parametrize("keys", ["", MAPPED_TO_ROOT], ids=["root", "mapped to root"])
async def test_the_default_profile_keeps_the_runtime_directory_covered(place: Path, keys: str) -> None:
    async with service(place, workload("evil", place, UNCOVER, place / "run", keys=keys, profile="default")) as it:
        assert (await reported(it, "evil"))["key"] in USELESS


@pytest.mark.parametrize("keys", ["", MAPPED_TO_ROOT], ids=["root", "mapped to root"])
@pytest.mark.xfail(strict=True, reason="root may unmount what its own mount namespace has, and may read all files")
async def test_a_root_workload_cannot_uncover_the_runtime_directory(place: Path, keys: str) -> None:
    async with service(place, workload("evil", place, UNCOVER, place / "run", keys=keys)) as it:
        assert (await reported(it, "evil"))["key"] in USELESS


@pytest.mark.fault("A5")
async def test_the_root_of_a_user_namespace_reads_nothing_in_the_runtime_directory(place: Path) -> None:
    """It may unmount the cover, but it is no user that owns anything below."""
    async with service(place, workload("evil", place, UNCOVER, place / "run", keys=WAYS["user namespace"])) as it:
        assert (await reported(it, "evil"))["key"] in USELESS


OTHER_SERVICE = """
report({"api": attempt("api", sys.argv[1] + "/api.sock")})
"""


@pytest.mark.xfail(strict=True, reason="a service knows its own tree of cgroups only")
async def test_a_workload_of_another_service_is_refused(place: Path) -> None:
    for name in ("first", "second"):
        (place / name).mkdir()
    evil = workload("evil", place, OTHER_SERVICE, place / "first" / "run")
    async with service(place / "first", ""), service(place / "second", evil) as it:
        assert (await reported(it, "evil"))["api"] in USELESS


FORGE_ENDED = """
import glob, struct
print("ready", flush=True)
with open(sys.argv[1] + "/go") as file:
    file.read()
paths, pid = [], 0
for environment in glob.glob("/proc/[0-9]*/environ"):
    try:
        variables = open(environment, "rb").read().split(b"\\0")
    except OSError:
        continue
    for variable in variables:
        if variable.startswith(b"NOTIFY_SOCKET=") and b"WORKLOAD=victim" in variables:
            paths.append(variable.partition(b"=")[2].decode())
            pid = int(environment.split("/")[2])
credentials = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("iII", pid, 0, 0))]
for path in set(paths):
    child = os.fork()
    if child == 0:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendmsg([b"READY=1"], credentials if sys.argv[2] == "credentials" else [], 0, path)
        os._exit(0)
    os.waitpid(child, 0)
with open(sys.argv[1] + "/sent", "w") as file:
    file.write("sent" * len(paths))
time.sleep(1000)
"""


@pytest.mark.parametrize("way", ["root", "nobody", "credentials"])
@pytest.mark.xfail(strict=True, reason="a sender that has ended has no cgroup, and root may name another process")
async def test_no_helper_of_another_workload_speaks_for_one(place: Path, way: str) -> None:
    """The service is stopped while the helper sends its message and ends."""
    same = 'user = "nobody"\n' if way == "nobody" else ""
    spaces = "namespaces = { mount = false, pid = false, ipc = false, uts = false, cgroup = false }"
    variables = '\nenvironment = { WORKLOAD = "victim" }'
    victim = VICTIM.replace('"infinity"', '"infinity"\n' + same + spaces + variables)
    evil = workload("evil", place, FORGE_ENDED, place, way, keys=same + spaces)
    for name in ("go", "sent"):
        os.mkfifo(place / name)
        (place / name).chmod(0o666)
    async with service(place, victim + evil) as it:
        await it.pid("victim")
        await it.record(event="output", workload="evil", message="ready")
        go = await trio.to_thread.run_sync(os.open, place / "go", os.O_WRONLY)
        it.process.send_signal(signal.SIGSTOP)
        try:
            os.close(go)
            assert await trio.Path(place / "sent").read_text() == "sent", "the attack has reached the socket"
        finally:
            it.process.send_signal(signal.SIGCONT)

        def verdicts() -> list[str]:
            of_victim = [record for record in it.records if record.get("workload") == "victim"]
            return [r["event"] for r in of_victim if r["event"] == "notify refused" or r.get("to") == "ready"]

        assert await it.heard(lambda: bool(verdicts()))
        assert verdicts() == ["notify refused"]
