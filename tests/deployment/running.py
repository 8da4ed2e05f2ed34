"""Run the service as `docs/deployment.md` says: its blocks of commands, with names put in, in a shell of their own."""

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from tests.needs import ROOT
from tests.system.service import Service
from tests.timing import deadline

PAGE = ROOT / "docs" / "deployment.md"

COMMAND = f"""#!/bin/sh
export PYTHONPATH={ROOT}
exec {sys.executable} -m nsupervisor "$@"
"""
"""What is called ``nsupervisor`` here: that of this folder, whatever may be installed."""


def documented(first_line: str, **names: object) -> str:
    """The page's block of shell commands that begins with this line; each of ``names`` is replaced as a whole word."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (text,) = [block for block in blocks if block.startswith(first_line)]
    for name, value in names.items():
        text, number = re.subn(rf"(?<![\w.-]){name}(?![\w.-])", str(value), text)
        assert number, f"no {name} in the block"
    return text


def settings(directory: Path, workloads: str) -> Path:
    """Write ``directory/site.toml``: these workloads, with the runtime directory ``directory/run``."""
    file = directory / "site.toml"
    file.write_text(f'[supervisor]\nname = "site"\nruntime_directory = "{directory}/run"\n{workloads}')
    return file


def shell(script: str, directory: Path) -> dict[str, Any]:
    """For `subprocess` and trio: this script in ``directory``, where ``nsupervisor`` is a command."""
    commands = directory / "bin"
    commands.mkdir(exist_ok=True)
    command = commands / "nsupervisor"
    command.write_text(COMMAND)
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}:/usr/sbin:/sbin"}
    environment.pop("NSUPERVISOR_SOCKET", None)
    return {"command": ["sh", "-euc", script], "cwd": directory, "env": environment}


async def refusal(script: str, directory: Path) -> tuple[int, str]:
    """The exit status and the standard error of a service that does not start."""
    with trio.fail_after(deadline(20)):
        done = await trio.run_process(
            **shell(script, directory), capture_stdout=True, capture_stderr=True, check=False, stdin=b""
        )
    assert b"supervisor started" not in done.stdout
    return done.returncode, done.stderr.decode()


class Deployed(Service):
    """A service that may run below other programs, which do not hand signals on."""

    def leader(self) -> int:
        """The supervisor's pid as the tests number it."""
        return self.process.pid

    def terminate(self) -> None:
        """SIGTERM."""
        os.kill(self.leader(), 15)

    async def stop(self) -> int:
        self.terminate()
        with trio.fail_after(deadline(40)):
            return await self.process.wait()


class Contained(Deployed):
    """A service below `unshare --fork`."""

    def leader(self) -> int:
        (child,) = children(self.process.pid)
        return child

    def client(self) -> list[str]:
        """As `docker exec`: it answers processes that are in its own PID namespace."""
        return ["nsenter", "--target", str(self.leader()), "--pid", "--mount", *super().client()]


def children(pid: int) -> list[int]:
    """The child processes, in the order of their birth."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@asynccontextmanager
async def started(
    script: str, directory: Path, kind: type[Deployed] = Deployed, *, status: int = 0
) -> AsyncIterator[Deployed]:
    """Run the script, whose last command has to be the service; at the end stop it, which gives ``status``."""
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(
            **shell(script, directory), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        it = kind(process, directory)
        nursery.start_soon(it.read)
        try:
            await it.record(event="supervisor started", patience=20)
            yield it
            if process.returncode is None:
                assert await it.stop() == status
        finally:
            if process.returncode is None:
                it.terminate()
                with trio.move_on_after(deadline(15), shield=True):
                    await process.wait()
            if process.returncode is None:
                process.kill()
    it.valid()
    assert it.records[-1]["event"] == "supervisor stopped"
