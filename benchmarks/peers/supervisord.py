"""supervisord, http://supervisord.org."""

from benchmarks.peer import LOG_FILES, LOG_SIZE, Peer
from benchmarks.products import PYPI

HEAD = """[supervisord]
nodaemon=true
logfile={0}/supervisord.log
loglevel=warn
pidfile={0}/supervisord.pid
childlogdir={0}
minfds={1}
minprocs=200
[unix_http_server]
file={0}/s.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""
PROGRAM = """[program:{0}]
command={1}
autorestart=true
startsecs=0
startretries=1000000
stopwaitsecs=10
redirect_stderr=true
stdout_logfile={2}
stdout_logfile_maxbytes={3}
stdout_logfile_backups={4}
"""


class Supervisord(Peer):
    """supervisord, whose loop checks for dead children once a second."""

    name = "supervisord"
    product = "supervisor"
    poll = 1.0
    note = "startsecs=0; looks once a second"

    def write(self) -> None:
        """An INI file."""
        parts = [HEAD.format(self.directory, max(1024, 8 * len(self.services) + 200))]
        for service in self.services:
            log = f"{service.log}/current" if service.log else "NONE"
            parts.append(PROGRAM.format(service.name, " ".join(service.command), log, LOG_SIZE, LOG_FILES))
        (self.directory / "supervisord.conf").write_text("".join(parts))

    def command(self) -> list[str]:
        """In the foreground."""
        return [str(PYPI["supervisor"]), "-c", str(self.directory / "supervisord.conf")]
