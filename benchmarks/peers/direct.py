"""No supervisor at all: what the log benchmark is to be measured by."""

import os
import shlex
import signal

from benchmarks.peer import Peer


class DirectFile(Peer):
    """The program writes straight into a file."""

    name = "file"
    note = "no capture: the program's own file"
    benchmarks = ("logs",)

    def command(self) -> list[str]:
        """A redirection."""
        service = self.services[0]
        return ["sh", "-c", f"exec {shlex.join(service.command)} >{service.log}/current"]


class Cat(Peer):
    """The least that a capture by a pipe can be."""

    name = "cat"
    note = "program | cat > file"
    benchmarks = ("logs",)

    def command(self) -> list[str]:
        """A pipeline."""
        service = self.services[0]
        return ["sh", "-c", f"{shlex.join(service.command)} | cat >{service.log}/current"]

    def stop(self) -> None:
        """The shell would not tell its pipeline; all of it is one process group."""
        os.killpg(self.pid, signal.SIGTERM)
