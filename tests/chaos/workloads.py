"""The workloads that the driver runs: one of each manner."""

import re
import signal

TOML = """
[workload.steady]
command = ["sleep", "100000"]
timeout_stop_sec = "1s"
restart = "always"
restart_sec = 0
start_limit_burst = 1000000

[workload.leans]
command = ["sleep", "100000"]
timeout_stop_sec = "1s"
requires = ["steady"]
restart = "always"
restart_sec = "10ms"
restart_max_delay_sec = "50ms"
start_limit_burst = 1000000
[workload.leans.namespaces]
pid = false

[workload.count]
command = ["sh", "-c", "i=0; while :; do i=$((i+1)); echo count $i; sleep 0.1; done"]
instances = 2
timeout_stop_sec = "1s"
restart = "always"
restart_sec = 0
start_limit_burst = 1000000

[workload.family]
command = ["sh", "-c", "sleep 100000 & (sleep 100000 & exec sleep 100000) & wait"]
restart = "always"
timeout_stop_sec = "1s"
restart_sec = "10ms"
restart_max_delay_sec = "50ms"
start_limit_burst = 1000000
[workload.family.namespaces]
pid = false

[workload.deaf]
command = ["sh", "-c", "trap '' TERM HUP; while :; do sleep 0.2; done"]
restart = "always"
restart_sec = 0
start_limit_burst = 1000000
timeout_stop_sec = "300ms"

[workload.says]
type = "notify"
timeout_stop_sec = "1s"
command = ["python3", "-S", "-E", "-c", '''
import os, signal, socket
said = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
said.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
signal.pause()
''']
restart = "always"
restart_sec = 0
start_limit_burst = 1000000

[workload.crash]
command = ["sh", "-c", "exit 3"]
restart_sec = "10ms"
start_limit_burst = 3

[workload.once]
command = ["true"]
type = "oneshot"
"""
NAMES = ("steady", "leans", "count@1", "count@2", "family", "deaf", "says", "crash", "once")
LASTING = ("steady", "leans", "count@1", "count@2", "family", "deaf", "says")
"""Those that run until they are told not to."""
HEALTHY = {
    **dict.fromkeys(LASTING, frozenset({"running", "frozen"})),
    "says": frozenset({"ready", "frozen"}),
    "crash": frozenset({"failed"}),
    "once": frozenset({"exited"}),
}
"""The states in which each may be, once all is quiet, when it shall be up."""
CHANGES = {"description": "live", "umask": "with a restart"}
"""Keys that a reload changes, and how."""
WITHOUT_INIT = ("leans", "family")
FATAL = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM)


def changed(toml: str, name: str, key: str, value: str) -> str:
    """The configuration with another value for a key of a workload, in the first line of its table."""
    head = f"[workload.{name.partition('@')[0]}]\n"
    before, after = toml.split(head)
    table, mark, others = after.partition("\n[")
    table = re.sub(rf"(?m)^{key} = .*\n", "", table)
    return f"{before}{head}{key} = {value}\n{table}{mark}{others}"


ECHO = """
command = ["python3", "-S", "-E", "-c", '''
import os, socket
listening = socket.socket(socket.AF_UNIX)
listening.bind(f"\\0echo-{os.environ['NSUPERVISOR_WORKLOAD']}-{os.environ['NSUPERVISOR_CHAOS']}")
listening.listen()
while True:
    connection, _ = listening.accept()
    while data := connection.recv(100):
        connection.sendall(data)
''']
"""
"""The rest of the table of a workload that answers each ping; see `tests.chaos.stress`."""
