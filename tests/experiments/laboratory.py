"""One running service for all experiments of a module. Its workloads are shells, and a test says what they do inside.

A module has ``TOML`` with workloads that have no ``command``; the fixture `lab` gives each one a shell that reads its
commands from a FIFO, so ``lab.inside("island", "hostname")`` is what a person would type in there. What it prints comes
back the way of every workload's output: through the log pipe, as records of the service.
"""

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.needs import cgroup_directories
from tests.system.service import NSUPERVISOR
from tests.timing import deadline

PATIENCE = 20.0

KINDS = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
"""Namespaces by their names in /proc/PID/ns."""

V1_FILES = {
    "memory.max": "memory.limit_in_bytes",
    "memory.current": "memory.usage_in_bytes",
    "memory.events": "memory.oom_control",
    "cpu.weight": "cpu.shares",
}
"""Files with another name in a version 1 hierarchy. Read by hand here, so that it checks what the product reads."""

IN_THE_CORE = ("cgroup.", "cpu.stat usage_usec")
"""What the version 2 core of a hybrid host has without any controller."""


def until(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """For what the kernel never notifies: look until it is true; its value."""
    end = time.monotonic() + deadline(patience)
    while not (value := condition()):
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(0.01)
    return value


def namespaces(pid: int | str = "self") -> dict[str, str]:
    """``{"uts": "uts:[4026531838]", …}`` of a process."""
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in KINDS}


def cgroup_paths(pid: int | str) -> dict[str, str]:
    """The cgroup of a process in each hierarchy, by controller; "" is version 2. cgroups(7), "/proc files"."""
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    return {name: path for _, names, path in lines for name in names.split(",")}


class Lab:
    """The service, and a way into its workloads."""

    def __init__(self, directory: Path, process: subprocess.Popen[bytes]) -> None:
        self.directory, self.process = directory, process
        self.records: list[dict[str, Any]] = []
        self._fifos: dict[str, int] = {}
        self._asked = 0
        self._buffer = b""

    def record(self, **fields: Any) -> dict[str, Any]:
        """The first record that has these fields; waits for it."""
        end = time.monotonic() + deadline(PATIENCE)
        seen = 0
        while True:
            for record in self.records[seen:]:
                if all(record.get(key) == value for key, value in fields.items()):
                    return record
            seen = len(self.records)
            shown = "\n".join(map(str, self.records[-20:]))
            assert self._read(end - time.monotonic()), f"no record with {fields}; the last ones were:\n{shown}"

    def _read(self, patience: float) -> bool:
        """Take in what the service has said; False at its end, or when it says nothing for so long."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], max(patience, 0))[0]:
            return False
        data = os.read(self.process.stdout.fileno(), 1 << 16)
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        self.records += [json.loads(line) for line in lines]
        return bool(data)

    def pid(self, name: str) -> int:
        """On the host, of the shell inside."""
        return self.record(event="started", workload=name)["pid"]

    def send(self, name: str, command: str) -> str:
        """Let the shell inside run a command, and do not wait; `answer` wants what this returns."""
        if name not in self._fifos:
            self._fifos[name] = os.open(self.directory / f"{name}.fifo", os.O_RDWR | os.O_CLOEXEC)
        self._asked += 1
        begin, end = f"<<{self._asked}", f"{self._asked}>>"
        os.write(self._fifos[name], f"echo '{begin}'\n{command}\necho '{end}'\n".encode())
        return f"{name} {begin} {end}"

    def answer(self, sent: str) -> list[str]:
        """What the command wrote to its standard output, in lines."""
        name, begin, end = sent.split()
        output = {"event": "output", "workload": name}
        self.record(**output, message=end)
        lines = [r["message"] for r in self.records if r["event"] == "output" and r["workload"] == name]
        return lines[lines.index(begin) + 1 : lines.index(end)]

    def inside(self, name: str, command: str) -> list[str]:
        """Let the shell inside run a command; what it wrote, in lines."""
        return self.answer(self.send(name, command))

    def cli(self, *arguments: str) -> str:
        """The command's standard output; it must end well."""
        environment = {**os.environ, "NSUPERVISOR_SOCKET": str(self.directory / "run" / "api.sock")}
        done = subprocess.run(
            [*NSUPERVISOR, *arguments], env=environment, capture_output=True, text=True, timeout=deadline(30)
        )
        assert done.returncode == 0, (done.stdout, done.stderr)
        return done.stdout

    def cgroup_file(self, name: str, file: str, key: str = "") -> Path:
        """A file of the workload's cgroup, found by hand from /proc/PID/cgroup."""
        theirs, ours = cgroup_paths(self.pid(name)), cgroup_paths("self")
        controller = file.split(".")[0]
        if controller not in theirs or f"{file} {key}".startswith(IN_THE_CORE):
            controller = ""
        here = cgroup_directories()[controller]
        there = os.path.normpath(here / os.path.relpath(theirs[controller], ours[controller]))
        return Path(there) / (V1_FILES.get(file, file) if controller else file)

    def read(self, name: str, file: str, key: str = "") -> int:
        """A number from a file of the workload's cgroup; of the line that begins with ``key``, where there is one."""
        text = self.cgroup_file(name, file, key).read_text()
        return int(next(line.removeprefix(key) for line in text.splitlines() if line.startswith(key)))

    def close(self) -> None:
        """SIGTERM; all must end, in order, and in time."""
        self.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + deadline(30)
        while self._read(end - time.monotonic()):
            pass
        for fifo in self._fifos.values():
            os.close(fifo)
        assert self.process.wait(max(end - time.monotonic(), 1)) == 0
        assert self.records[-1]["event"] == "supervisor stopped"


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The service with the workloads of the module's ``TOML``."""
    # Not pytest's own directory: users of user namespaces must get through.
    with tempfile.TemporaryDirectory(prefix="experiments-") as path:
        directory = Path(path)
        directory.chmod(0o755)
        for name in ("run", "bound"):
            (directory / name).mkdir()
        toml = f'[supervisor]\nname = "{directory.name}"\nruntime_directory = "{directory}/run"\n'
        names = []
        for line in request.module.TOML.splitlines():
            toml += line + "\n"
            if line.startswith("[workload.") and line.count(".") == 1:
                names.append(line.strip("[]").split(".")[1])
                fifo = directory / f"{names[-1]}.fifo"
                os.mkfifo(fifo)
                fifo.chmod(0o666)
                toml += f'command = ["sh", "-c", "exec sh 2>&1 <>{fifo}"]\n'
        config = directory / "experiments.toml"
        config.write_text(toml.replace("DIRECTORY", path))
        with subprocess.Popen(
            [*NSUPERVISOR, "run", str(config)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        ) as process:
            it = Lab(directory, process)
            try:
                for name in names:
                    it.pid(name)
                yield it
                it.close()
            finally:
                process.terminate()  # does nothing to one that has ended
                try:
                    process.wait(deadline(20))
                finally:
                    process.kill()
