"""Measure `exec` of true in a running workload: the command, the same over the API alone, and `podman exec`."""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.figures import Result, Target
from benchmarks.peers.nsupervisor import Nsupervisor
from benchmarks.session import Options, RunError, idle, running
from nsupervisor.api import exec_frames as frames
from nsupervisor.api.client import Client
from tests.roots import make_root

OURS, API, PODMAN = "nsupervisor exec", "exec over the API", "podman exec"
CASE, AT_ONCE = "true", "200 at once"
CONCURRENT = 200


def run(options: Options) -> Result:
    """Run each of them in turn, in every round once."""
    result = Result("execute", "from the call to the exit status, in a workload that runs")
    rounds = options.number(50, 3)
    try:
        with running(Nsupervisor, idle(1)) as session, _container(result) as podman:
            session.up(1)
            peer = session.peer
            assert isinstance(peer, Nsupervisor)
            client = Client(peer.socket)
            command = [peer.checkout.program, "exec", "--socket", peer.socket, "w0", "true"]
            sides: dict[str, Callable[[], None]] = {
                OURS: lambda: _call(command, peer.environment()),
                API: lambda: _finish(client, 1),
            }
            if podman:
                sides[PODMAN] = lambda: _call([*podman, "true"], dict(os.environ))
            for number in range(rounds):
                for name, work in sides.items():
                    began = time.monotonic()
                    work()
                    result.add(name, CASE, "ms", number, [(time.monotonic() - began) * 1000])
            for number in range(options.number(3, 1)):
                began = time.monotonic()
                _finish(client, CONCURRENT)
                result.add(API, AT_ONCE, "ms", number, [(time.monotonic() - began) * 1000])
    except (RunError, OSError) as error:
        result.remarks.append(f"failed: {error}")
    theirs = result.median(PODMAN, CASE, "ms")
    if theirs is not None:
        result.targets.append(Target("exec of true over the API", result.median(API, CASE, "ms"), theirs / 10, "ms"))
        result.targets.append(Target("exec of true by the command", result.median(OURS, CASE, "ms"), theirs / 10, "ms"))
    return result


def _call(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    if done.returncode:
        raise RunError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-300:]}")


def _finish(client: Client, count: int) -> None:
    """Execute this number of commands at once, and wait for their ends."""
    connections = [client.exec("w0", {"argv": ["true"]}) for _ in range(count)]
    for connection, data in connections:
        with connection:
            while piece := connection.recv(65536):
                data += piece
        kind, content = list(frames.Unpacker().feed(data))[-1]
        if kind != frames.EXIT or json.loads(content)["code"] != 0:
            raise RunError(f"a command ended with {content!r}")


@contextmanager
def _container(result: Result) -> Iterator[list[str]]:
    """Yield the beginning of a command that executes one in a container of podman; [] without podman."""
    podman = shutil.which("podman")
    if podman is None:
        result.remarks.append("podman is missing here, so there is nothing to compare with")
        yield []
        return
    with tempfile.TemporaryDirectory(prefix="nsb-") as directory:
        root = make_root(Path(directory) / "root", "true")
        start = [podman, "run", "--detach", "--network", "none", "--rootfs", f"{root}:O", "sleep", "100000"]
        done = subprocess.run(start, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            result.remarks.append(f"podman cannot run a container here: {done.stderr.strip()[-300:]}")
            yield []
            return
        try:
            yield [podman, "exec", done.stdout.strip()]
        finally:
            subprocess.run(
                [podman, "rm", "--force", "--time", "0", done.stdout.strip()], capture_output=True, check=False
            )
