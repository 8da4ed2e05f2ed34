"""Writers without a supervisor: the upper bounds of the log benchmark."""

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
    """The simplest possible capture through a pipe."""

    name = "cat"
    note = "program | cat > file"
    benchmarks = ("logs",)

    def command(self) -> list[str]:
        """A pipeline."""
        service = self.services[0]
        return ["sh", "-c", f"{shlex.join(service.command)} | cat >{service.log}/current"]

    def stop(self) -> None:
        """Signal the process group, because the shell does not forward signals to its pipeline."""
        os.killpg(self.pid, signal.SIGTERM)
