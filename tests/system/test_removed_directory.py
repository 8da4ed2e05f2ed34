"""The runtime directory, or a file in it, is removed while the service runs."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.needs import cgroup_directories, needs
from tests.system.service import NSUPERVISOR, Service, service
from tests.timing import deadline

pytestmark = [needs("root", "cgroup"), pytest.mark.fault("D19")]

WEB = """
[workload.web]
command = ["sh", "-c", "while :; do sleep 1; done"]
"""


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_removed_directory_is_made_again_with_the_same_keeper_and_program(tmp_path):
    run = tmp_path / "run"
    async with service(tmp_path, WEB, status=-signal.SIGKILL) as it:
        keeper = (await it.record(event="supervisor started"))["keeper_pid"]
        pid = await it.pid("web")
        before = {path.name for path in run.iterdir()}
        shutil.rmtree(run)
        made = await it.record(event="runtime directory")
        assert made["level"] == "warning"
        assert made["message"].startswith(f"made again what was removed from {run}: ")
        assert made["message"].endswith("the keeper's socket, api.sock")
        assert {path.name for path in run.iterdir()} >= before - {"tails"}
        assert (await it.status("web"))["pid"] == pid
        second = await trio.run_process(
            [*NSUPERVISOR, "run", str(tmp_path / "nsupervisor.toml")], capture_stderr=True, check=False
        )
        assert second.returncode == 1
        assert f"is in use by another supervisor (pid {it.process.pid})" in second.stderr.decode()
        it.process.kill()
    async with service(tmp_path, WEB) as it:
        assert (await it.record(event="supervisor started"))["keeper_pid"] == keeper
        assert await it.record(event="taken over", workloads=1)
        web = await it.status("web")
        assert (web["pid"], web["generation"], web["state"]) == (pid, 1, "running")
    assert not is_alive(pid)
    assert not is_alive(keeper)


@pytest.mark.parametrize("name", ["api.sock", "keeper.sock", "keeper.lock", "lock", "key", "state.json"])
async def test_a_removed_file_is_made_again(tmp_path, name):
    run = tmp_path / "run"
    async with service(tmp_path, WEB) as it:
        await it.pid("web")
        inode = (run / name).stat().st_ino
        content = (run / name).read_bytes() if name == "key" else None
        os.link(run / name, tmp_path / "removed")  # so that its inode number is not used again
        (run / name).unlink()
        await it.record(event="runtime directory")
        assert (run / name).stat().st_ino != inode
        assert content is None or (run / name).read_bytes() == content
        assert (await it.status("web"))["state"] == "running"


REPORTS = """
[workload.web]
command = ["sh", "-c", '''
notify() { python3 -c 'import os, socket, sys
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(sys.argv[1].encode(), os.environ["NOTIFY_SOCKET"])' "$1"; }
notify READY=1
while read line; do notify "STATUS=$line"; done <FIFO
''', "sh"]
type = "notify"
user = "USER"
may_control = ["web"]
namespaces = { mount = MOUNT }
"""


async def reported(it: Service, text: str) -> None:
    """Wait until the service has this text of STATUS=, which no record shows."""
    with trio.fail_after(deadline(20)):
        while (await it.status("web"))["status_text"] != text:  # noqa: ASYNC110
            await trio.sleep(0.05)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that all users can enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="removed-") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.mark.parametrize("removed", ["the directory", "all in it", "the notify sockets"])
@pytest.mark.parametrize("mount", [True, False])
@pytest.mark.parametrize("user", ["nobody", "root"])
async def test_a_running_program_can_report_again(folder, mount, user, removed):
    """It has a new socket. One with a mount namespace of its own still sees only what is meant for it."""
    run, fifo = folder / "run", folder / "fifo"
    os.mkfifo(fifo)
    os.chown(fifo, 65534, 65534)
    toml = REPORTS.replace("USER", user).replace("MOUNT", str(mount).lower()).replace("FIFO", str(fifo))
    async with service(folder, toml, status=-signal.SIGKILL) as it:
        lines = os.open(fifo, os.O_RDWR)
        await it.record(event="state", workload="web", to="ready")
        inside = Path(f"/proc/{await it.pid('web')}/root{run}")
        seen = {path.name for path in inside.iterdir()}
        for path in {"the directory": [run], "all in it": [*run.iterdir()]}.get(removed, [run / "notify"]):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        await it.record(event="runtime directory")
        assert not mount or {path.name for path in inside.iterdir()} == seen == {"notify", "api", "api.sock"}
        assert not mount or [path.name for path in (inside / "api").iterdir()] == ["api.sock"]
        os.write(lines, b"again\n")
        await reported(it, "again")
        it.process.kill()
    async with service(folder, toml) as it:
        os.write(lines, b"and again\n")
        await reported(it, "and again")
        os.close(lines)


SET_UP_SLOWLY = """
[workload.panel]
command = ["sleep", "1000"]
autostart = false
restart = "no"
may_control = ["panel"]
security.profile = "none"
namespaces = { user = USER }
"""


@pytest.mark.parametrize("removed", ["another file", "the sockets"])
@pytest.mark.parametrize("user", [True, False], ids=["user namespace", "no user namespace"])
async def test_a_program_that_was_being_set_up_did_not_find_the_socket_that_it_may_use(folder, user, removed):
    """Its init was taken for the program: it was in the mount namespace, in which nothing was covered yet."""
    run, socket = folder / "run", "notify/control/api/api.sock"
    async with service(folder, SET_UP_SLOWLY.replace("USER", str(user).lower())) as it:
        cgroup = cgroup_directories()[""] / (await it.record(event="supervisor started"))["name"] / "panel"
        (cgroup / "cgroup.freeze").write_text("1")  # the process of the program is born in it, and waits
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.cli, "start", "panel")
            await it.until(lambda: (cgroup / "cgroup.procs").read_text() != "")
            with trio.fail_after(deadline(20)):
                while (await it.status("panel"))["pid"] is None:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            if removed == "the sockets":
                shutil.rmtree(run / "notify")
            (run / "key").unlink()  # a record reports it, when all is made again
            await it.record(event="runtime directory")
            (cgroup / "cgroup.freeze").write_text("0")
        inside = Path(f"/proc/{await it.pid('panel')}/root{run}")
        assert {path.name for path in inside.iterdir()} == {"api", "api.sock"}
        assert (inside / "api" / "api.sock").samefile(run / socket)
