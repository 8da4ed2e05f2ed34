"""The whole service on a simulated machine, for tests of its modules: without root, without waiting.

A test is an async function that acts as a client while the service runs. `simulated(CONFIG)` makes a test of it:

    @simulated('[workload.web]\ncommand = ["program"]')
    async def test_a_stop_ends_the_program(service: Client) -> None:
        assert (await service.command("stop", "web"))["ok"]

For programs see `tests.simulation.programs`; time is simulated, so a sleep takes none. Afterwards the service gets
SIGTERM, and must end with exit status 0 and without open descriptors. A test of several supervisors, one after the
other, makes a `Site` (`make_site`) and calls `serve` for each.
"""

from __future__ import annotations

import inspect
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import trio

from nsupervisor.config.problems import ConfigError
from nsupervisor.service.control import Supervisor
from tests.simulation.machine import Process
from tests.simulation.service import CONFIG_PATH, HEADER, Service, Site

TIMEOUT_S = 300.0
"""Simulated seconds that a client may take."""
QUIET = 'timeout_stop_sec = 3\nlog = { stdout = "none", stderr = "none" }\nnamespaces = { pid = false }\n'
"""Settings that the simulated machine needs in each workload, or that keep it quick."""


def workload(name: str, *keys: str, program: str = "") -> str:
    """Return the text of a workload; `program`: options of the simulated program, in one string."""
    words = ", ".join(f'"{word}"' for word in ("program", *program.split()))
    common = "".join(f"{line}\n" for line in QUIET.splitlines() if not any(key[:8] == line[:8] for key in keys))
    return "\n".join((f"[workload.{name}]", f"command = [{words}]", *keys, common))


class Client:
    """A client of a service that runs."""

    def __init__(self, site: Site, service: Service) -> None:
        assert service.supervisor is not None
        self.site, self.service, self.machine = site, service, site.machine
        self.supervisor: Supervisor = service.supervisor
        self.has_stopped = False
        """Whether the client itself has sent SIGTERM."""

    # ---- commands

    async def command(self, verb: str, name: str, **parameters: Any) -> dict[str, Any]:
        """Run a command; return its answer."""
        return await self.supervisor.command(verb, name, **parameters)

    async def begin(self, work: Callable[..., Awaitable[Any]], *arguments: Any) -> list[Any]:
        """Begin a call; return a list that gets its result once the call has done what it can at once."""
        results: list[Any] = []

        async def run() -> None:
            results.append(await work(*arguments))

        self.service.start_soon(run)
        await trio.sleep(0.0001)
        return results

    async def reload(self, text: str) -> list[dict[str, Any]]:
        """Reload with another file, and wait for its end; return the reports."""
        return await self.read_reports(await self.begin_reload(text))

    async def begin_reload(self, text: str) -> Any:
        """Reload with another file; return the stream of reports when it is in force. Raises ConfigError."""
        self.site.text = text
        return await self.supervisor.reload(None, None)

    async def read_reports(self, stream: Any) -> list[dict[str, Any]]:
        """Return all reports of a reload."""
        with stream as lines:
            return [orjson.loads(line) async for piece in lines for line in piece.splitlines()]

    async def refused_reload(self, text: str) -> str:
        """Reload with a file that is refused; return why."""
        try:
            await self.begin_reload(text)
        except ConfigError as error:
            return "\n".join(map(str, error.problems))
        raise AssertionError("the reload was not refused")

    def signal(self, signum: int) -> None:
        """Send a signal to the supervisor."""
        self.has_stopped = self.has_stopped or signum == signal.SIGTERM
        self.service.signals.send(signum)

    # ---- observations

    def status(self, name: str) -> dict[str, Any]:
        """Return the status of an instance."""
        return self.supervisor.actors[name].status()  # not those of all: a test may have hundreds, and ask often

    def state(self, name: str) -> str:
        """Return the state of an instance."""
        return str(self.status(name)["state"])

    def names(self) -> list[str]:
        """Return the names of all instances."""
        return list(self.supervisor.actors)

    async def until(self, name: str, *states: str) -> None:
        """Wait until an instance is in one of these states."""
        actor = self.supervisor.actors[name]
        with trio.fail_after(TIMEOUT_S):
            await actor.wait_until(lambda lifecycle: lifecycle.state.value in states)

    async def until_true(self, condition: Callable[[], bool]) -> None:
        """Wait until something is true."""
        with trio.fail_after(TIMEOUT_S):
            while not condition():  # noqa: ASYNC110 - simulated time
                await trio.sleep(0.01)

    def program(self, name: str) -> Process:
        """Return the process of an instance."""
        return next(
            process for process in self.machine.living() if process.is_leader and process.id.rpartition("#")[0] == name
        )

    def course(self) -> list[str]:
        """Return the executions and ends of programs so far, in their order: "execed web#1", "ends web#1"."""
        return course(self.site)

    def records(self, event: str, name: str | None = None) -> list[dict[str, Any]]:
        """Return the records of an event that have been written."""
        return [
            record
            for record in self.site.records()
            if record["event"] == event and name in (None, record.get("workload"), record.get("group"))
        ]


def course(site: Site) -> list[str]:
    """Return the executions and ends of programs on a site, in their order."""
    words = (line.split() for line in site.machine.events)
    return [f"{event} {id_}" for _, event, id_, *_ in (w for w in words if len(w) > 2) if event in ("execed", "ends")]


def make_site(text: str, seed: int = 1, path: str = CONFIG_PATH) -> Site:
    """Make a simulated machine with a configuration; `path` is its name in messages."""
    return Site(seed, text, path)


def serve(
    site: Site,
    client: Callable[[Client], Awaitable[None]],
    *,
    stop: bool = True,
    dies_at_call: int | None = None,
) -> int | None:
    """Run a supervisor with a client; return its exit status, or None if it was killed. Raises what the client raises.

    Afterwards the service is stopped, unless the client has done that; if `stop` is false, it is killed.
    """
    errors: list[BaseException] = []
    clients: list[Client] = []

    async def act(service: Service) -> None:
        try:
            with trio.fail_after(TIMEOUT_S):
                while not service.is_started:  # noqa: ASYNC110 - simulated time
                    await trio.sleep(0.001)
                clients.append(Client(site, service))
                await client(clients[0])
        except Exception as error:
            errors.append(error)
        if errors or not stop:
            service.life.die()
        elif not clients[0].has_stopped:
            service.signals.send(signal.SIGTERM)

    status = site.run(dies_at_call, on_start=lambda service: service.start_soon(act, service))
    if errors:
        raise errors[0]
    assert clients or dies_at_call is not None, "the service ended before its client"
    return status


def simulated(text: str, *, seed: int = 1) -> Callable[[Callable[..., Awaitable[None]]], Callable[..., None]]:
    """Make a test of a function that acts as a client of the service; see the module."""

    def decorate(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
        def run(**fixtures: Any) -> None:
            site = make_site(text, seed)
            assert serve(site, lambda client: test(client, **fixtures)) == 0

        _, *others = inspect.signature(test).parameters.values()
        run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
        run.__signature__ = inspect.Signature(others)  # type: ignore[attr-defined]
        run.pytestmark = getattr(test, "pytestmark", [])  # type: ignore[attr-defined]
        return run

    return decorate


__all__ = ["HEADER", "Client", "course", "make_site", "serve", "simulated", "workload"]
