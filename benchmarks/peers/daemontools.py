"""The daemontools family, each with a small supervisor process (and a logger) per service."""

import signal
import subprocess
from typing import ClassVar

from benchmarks.peer import LOG_FILES, LOG_SIZE, Peer, script


class Daemontools(Peer):
    """svscan and supervise, https://cr.yp.to/daemontools.html."""

    name = "daemontools"
    product = "svscan"
    note = "svscan, a supervise each"
    most = 999
    logger: ClassVar[str] = "multilog n{files} s{size} {log}"

    def write(self) -> None:
        """A directory a service, with a script `run`."""
        for service in self.services:
            directory = self.directory / "services" / service.name
            script(directory / "run", f"exec {' '.join(service.command)}")
            if service.log:
                log = self.logger.format(files=LOG_FILES, size=LOG_SIZE, log=service.log)
                script(directory / "log" / "run", f"exec {log}")

    def command(self) -> list[str]:
        """In the foreground."""
        return ["svscan", str(self.directory / "services")]

    def stop(self) -> None:
        """Stop each supervise separately, because they survive the end of svscan."""
        self.signal(signal.SIGTERM)
        if self.process is not None:
            self.process.wait()
        directories = [str(self.directory / "services" / service.name) for service in self.services]
        loggers = [f"{d}/log" for d, service in zip(directories, self.services, strict=True) if service.log]
        subprocess.run(["svc", "-dx", *directories], check=False)
        if loggers:
            subprocess.run(["svc", "-dx", *loggers], check=False)


class Runit(Daemontools):
    """runsvdir and runsv, http://smarden.org/runit."""

    name = "runit"
    product = "runsvdir"
    note = "runsvdir, a runsv each; waits 1 s when a service lived < 1 s"
    most = 1000
    logger = "svlogd {log}"

    def write(self) -> None:
        """Its logger has a file for its settings."""
        super().write()
        for service in self.services:
            if service.log:
                (service.log / "config").write_text(f"s{LOG_SIZE}\nn{LOG_FILES}\n")

    def command(self) -> list[str]:
        """In the foreground."""
        return ["runsvdir", "-P", str(self.directory / "services")]

    def stop(self) -> None:
        """SIGTERM would leave each runsv running."""
        self.signal(signal.SIGHUP)


class S6(Daemontools):
    """s6-svscan and s6-supervise, https://skarnet.org/software/s6."""

    name = "s6"
    product = "s6-svscan"
    note = "s6-svscan, an s6-supervise each; waits 1 s after each death"
    most = 4000
    logger = "s6-log -b n{files} s{size} {log}"

    def command(self) -> list[str]:
        """Run in the foreground, with a raised limit on services (the default is 500)."""
        return ["s6-svscan", "-c", str(self.most), str(self.directory / "services")]

    def stop(self) -> None:
        """An orderly end of everything."""
        self.signal(signal.SIGTERM)
