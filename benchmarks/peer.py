"""The plug-in interface for supervisors: a product is a class derived from Peer, in a small file in peers/."""

import importlib
import os
import pkgutil
import signal
import subprocess
from pathlib import Path
from typing import ClassVar

import attrs


@attrs.frozen
class Service:
    """A program to supervise: an absolute path and arguments, without anything that a shell would interpret."""

    name: str
    command: tuple[str, ...]
    log: Path | None = None
    """The directory for its captured output; None: no capture."""
    restart_above: int = 0
    """Bytes of memory above which it should be restarted; 0: no limit."""
    extra: str = ""
    """nsupervisor only: more lines for its table of the configuration."""


LOG_SIZE, LOG_FILES = 10_000_000, 5
"""The rotation settings of products that rotate."""


class Peer:
    """A supervisor in the foreground. Its files are in `directory`, which is removed at the end."""

    name: ClassVar[str] = ""
    product: ClassVar[str] = ""
    """Its key in `products`; empty if it is always installed."""
    note: ClassVar[str] = ""
    poll: ClassVar[float] = 0.05
    """Its polling interval in seconds, over which kills are spread; 0: it does not poll."""
    most: ClassVar[int] = 100_000
    """The maximum number of services."""
    benchmarks: ClassVar[tuple[str, ...]] = ("restart", "footprint", "logs")
    """The benchmarks in which it takes part."""

    all: ClassVar[dict[str, type["Peer"]]] = {}
    """All products by name."""

    def __init_subclass__(cls, *, listed: bool = True) -> None:
        """Register the class under its name, unless it is not to be `listed` among the products."""
        if listed:
            Peer.all[cls.name] = cls

    def __init__(self, directory: Path, services: list[Service]) -> None:
        """Use `directory`, which is empty and belongs to this peer."""
        self.directory = directory
        self.services = services
        self.process: subprocess.Popen[bytes] | None = None

    def write(self) -> None:
        """Write the configuration (not timed)."""

    def command(self) -> list[str]:
        """Return the command that runs the supervisor in the foreground."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Return the environment of the supervisor."""
        return dict(os.environ)

    def start(self) -> None:
        """Start the supervisor."""
        with open(self.directory / "said", "wb") as out:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self.directory,
                env=self.environment(),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The pid of the supervisor."""
        assert self.process is not None
        return self.process.pid

    def stop(self) -> None:
        """Request an orderly stop of everything with the product's own command."""
        self.signal(signal.SIGTERM)

    def signal(self, signum: int) -> None:
        """Send a signal to the supervisor, if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signum)

    def clean(self) -> None:
        """Remove files outside of the directory. No process runs any more."""


def script(path: Path, text: str) -> None:
    """Write an executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def load(names: list[str] | None, benchmark: str) -> dict[str, type[Peer]]:
    """Return the products that take part in `benchmark`, restricted to `names`; nsupervisor comes first."""
    found = [name for name, peer in known().items() if benchmark in peer.benchmarks and (not names or name in names)]
    return {name: Peer.all[name] for name in sorted(found, key=lambda name: (not name.startswith("nsupervisor"), name))}


def known() -> dict[str, type[Peer]]:
    """Return all products by name: every class in peers/."""
    package = importlib.import_module("benchmarks.peers")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"benchmarks.peers.{module.name}")
    return Peer.all
