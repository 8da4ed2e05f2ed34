"""circus, https://circus.readthedocs.io."""

from benchmarks.peer import LOG_FILES, LOG_SIZE, Peer
from benchmarks.products import PYPI

HEAD = """[circus]
check_delay = {1}
warmup_delay = 0
endpoint = ipc://{0}/e
pubsub_endpoint = ipc://{0}/p
loglevel = WARNING
"""
WATCHER = """[watcher:{0}]
cmd = {1}
args = {2}
max_retry = -1
warmup_delay = 0
graceful_timeout = 10
copy_env = True
"""
STREAM = """stdout_stream.class = FileStream
stdout_stream.filename = {0}/current
stdout_stream.max_bytes = {1}
stdout_stream.backup_count = {2}
"""


WATCHED = """[plugin:watch-{0}]
use = circus.plugins.resource_watcher.ResourceWatcher
loop_rate = 1
watcher = {0}
max_mem = {1}M
max_cpu = 1000
health_threshold = 1000
max_count = 0
"""


class Circus(Peer):
    """circus, which polls for dead children, by default every 5 s."""

    name = "circus"
    product = "circus"
    poll = 0.1
    note = "check_delay=0.1 (default 5)"
    benchmarks = (*Peer.benchmarks, "react")

    def write(self) -> None:
        """An INI file."""
        parts = [HEAD.format(self.directory, self.poll)]
        for service in self.services:
            parts.append(WATCHER.format(service.name, service.command[0], " ".join(service.command[1:])))
            if service.log:
                parts.append(STREAM.format(service.log, LOG_SIZE, LOG_FILES))
            if service.restart_above:
                parts.append(WATCHED.format(service.name, service.restart_above >> 20))
        (self.directory / "circus.ini").write_text("".join(parts))

    def command(self) -> list[str]:
        """In the foreground."""
        return [str(PYPI["circus"]), str(self.directory / "circus.ini")]
