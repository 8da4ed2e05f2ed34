"""monit, https://mmonit.com/monit. It starts daemons and checks their pid files, so restarts are not compared."""

from benchmarks.peer import Peer, script

HEAD = """set daemon 1
set log {0}/log
set pidfile {0}/pid
set idfile {0}/id
set statefile {0}/state
"""
CHECK = """check process {1} with pidfile {0}/{1}.pid
  start program = "{0}/{1}" with timeout 5 seconds
  stop program = "{0}/{1}-stop"
"""


class Monit(Peer):
    """monit with an interval of one second, its minimum."""

    name = "monit"
    product = "monit"
    poll = 1.0
    note = "set daemon 1, the least there is; it starts daemons of their own"
    benchmarks = ("react",)

    def write(self) -> None:
        """Write a control file with mode 0600, and two scripts per service."""
        parts = [HEAD.format(self.directory)]
        for service in self.services:
            pid = f"{self.directory}/{service.name}.pid"
            started = f"setsid {' '.join(service.command)} </dev/null >/dev/null 2>&1 &"
            script(self.directory / service.name, f"{started}\necho $! >{pid}")
            script(self.directory / f"{service.name}-stop", f"kill $(cat {pid})")
            parts.append(CHECK.format(self.directory, service.name))
            if service.restart_above:
                parts.append(f"  if memory > {service.restart_above >> 20} MB then restart\n")
        file = self.directory / "monitrc"
        file.write_text("".join(parts))
        file.chmod(0o600)

    def command(self) -> list[str]:
        """In the foreground."""
        return ["monit", "-I", "-c", str(self.directory / "monitrc")]
