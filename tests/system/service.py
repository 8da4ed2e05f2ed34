"""The service as a user runs it: the real command, a real file, its records read from its standard output."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from nsupervisor.condition_variable import ConditionVariable
from nsupervisor.logs import schema
from tests.timing import deadline

PATIENCE = 10.0
"""Seconds after which what should have happened at once has not happened."""

NSUPERVISOR = [sys.executable, "-m", "nsupervisor"]


class Service:
    """A running ``nsupervisor run``; made by `service`."""

    def __init__(self, process: trio.Process, directory: Path) -> None:
        self.process = process
        self.directory = directory
        self.records: list[dict[str, Any]] = []
        self._news = ConditionVariable()
        self._ended = False

    async def read(self) -> None:
        """Take in records until the service closes its standard output; each line must be a JSON object."""
        assert self.process.stdout is not None
        buffer = b""
        async for chunk in self.process.stdout:
            buffer += chunk
            *lines, buffer = buffer.split(b"\n")
            self.records += [json.loads(line) for line in lines]
            self._news.notify()
        self._ended = True
        self._news.notify()
        assert buffer == b"", "the last line has no end"

    async def record(self, *, patience: float = PATIENCE, nth: int = 1, **fields: Any) -> dict[str, Any]:
        """The ``nth`` record, from the service's start on, that has all these fields; waits for it."""

        def matching() -> list[dict[str, Any]]:
            return [r for r in self.records if all(r.get(key.rstrip("_")) == value for key, value in fields.items())]

        with trio.move_on_after(deadline(patience)):
            await self._news.wait_for(lambda: len(matching()) >= nth or self._ended)
            if len(found := matching()) >= nth:
                return found[nth - 1]
        shown = "\n".join(json.dumps(record) for record in self.records[-40:])
        raise AssertionError(f"no record no. {nth} with {fields}; the last ones were:\n{shown}")

    async def heard(self, reached: Callable[[], bool], patience: float = PATIENCE) -> bool:
        """Wait until ``reached()``, which looks at the records; False when it is not in time. It is asked again
        whenever there are new ones."""
        with trio.move_on_after(deadline(patience)):
            await self._news.wait_for(lambda: reached() or self._ended)
        return reached()

    async def until(self, reached: Callable[[], bool], patience: float = PATIENCE) -> None:
        """Wait for something outside that nothing tells of."""
        with trio.fail_after(deadline(patience)):
            while not reached():  # noqa: ASYNC110
                await trio.sleep(0.01)

    async def cli(self, *arguments: str, status: int = 0) -> str:
        """Run a command of the client against this service; its standard output. It must end with ``status``."""
        result = await self.cli_result(*arguments)
        assert result.returncode == status, (result.returncode, result.stdout, result.stderr)
        return result.stdout.decode()

    def client(self) -> list[str]:
        """The command by which a client is run."""
        return NSUPERVISOR

    async def cli_result(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        with trio.fail_after(deadline(30)):
            return await trio.run_process(
                [*self.client(), *arguments],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env={**os.environ, "NSUPERVISOR_SOCKET": str(self.directory / "run" / "api.sock")},
            )

    async def status(self, name: str) -> dict[str, Any]:
        """The object of one instance in ``status --json``."""
        (found,) = json.loads(await self.cli("status", "--json", name))
        return found

    async def pid(self, name: str, generation: int = 1) -> int:
        """The program's pid on the host, once it runs."""
        return (await self.record(event="started", workload=name, generation=generation))["pid"]

    async def stop(self) -> int:
        """SIGTERM, and the exit status."""
        self.process.send_signal(signal.SIGTERM)
        with trio.fail_after(deadline(40)):
            return await self.process.wait()

    def valid(self) -> None:
        """Check each record against the schema that ships."""
        import jsonschema

        validator = jsonschema.Draft202012Validator(schema())
        for record in self.records:
            validator.validate(record)


@asynccontextmanager
async def service(
    directory: Path, toml: str, *, status: int = 0, wait: bool = True, within: Sequence[str] = (), **keys: str
) -> AsyncIterator[Service]:
    """Run the service with the workloads of ``toml``; at the end stop it, and check what it says and leaves.

    ``within``: a command that executes it, elsewhere. ``wait``: until it is up. ``status``: its exit status; -9 where
    it is killed, and its workloads run on for the next.
    """
    (directory / "run").mkdir(exist_ok=True)  # one that was killed may have left it to the next
    name = f"test-{os.getpid()}-{directory.name[-24:]}"
    places = {"runtime_directory": str(directory / "run"), "state_directory": str(directory / "state")}
    lines = {"name": name, **places, **keys}
    head = "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())
    config = directory / "nsupervisor.toml"
    config.write_text(f"[supervisor]\n{head}\n{toml}")
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(
            [*within, *NSUPERVISOR, "run", str(config)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        it = Service(process, directory)
        nursery.start_soon(it.read)
        try:
            if wait:
                await it.record(event="supervisor started", patience=20)
            yield it
            assert await it.stop() == status
        finally:
            if process.returncode is None:
                process.terminate()
                with trio.move_on_after(deadline(15), shield=True):
                    await process.wait()
            if process.returncode is None:
                process.kill()
    it.valid()
    assert status == -signal.SIGKILL or it.records[-1]["event"] == "supervisor stopped"


async def output_to_end(directory: Path, toml: str) -> str:
    """Run the service with a workload `w` to the end of its program; return the output, a line for each record."""
    async with service(directory, toml) as it:
        await it.record(event="exited", workload="w")
        await it.record(event="state", workload="w", to="exited")
        return "\n".join(record["message"] for record in it.records if record["event"] == "output")
