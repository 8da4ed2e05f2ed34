"""nsupervisor: with default isolation, and without isolation, like the other supervisors."""

import json
import os
import resource
import types
from typing import ClassVar

from benchmarks import hierarchy
from benchmarks.checkout import HERE, Checkout
from benchmarks.peer import LOG_FILES, LOG_SIZE, Peer

# The start limit would end these endless restarts.
ENDLESS = """restart_sec = 0
start_limit_burst = 1000000
start_limit_interval_sec = "1ms"
"""

RULES = (
    ("memory.events oom_kill", "restart"),
    ("pids.events max", "log"),
    ("memory.current >= 90%", "log"),
    ("pids.current >= 90%", "log"),
    ("pids.current > 1000", "stop"),
)


def five_rules(name: str) -> str:
    """Lines for the table of a workload: limits, and five rules that never fire: two counters, three levels."""
    rules = [f'[[workload.{name}.policy]]\nwhen = "{when}"\naction = "{action}"\n' for when, action in RULES]
    return 'resources = { memory_max = "1G", pids_max = 2000 }\n' + "".join(rules)


class Nsupervisor(Peer):
    """Default namespaces: mount, pid, uts, ipc and cgroup, and an init in each."""

    name = "nsupervisor"
    note = "each in 5 namespaces, with an init and a cgroup"
    benchmarks = (*Peer.benchmarks, "react")
    workload: ClassVar[str] = 'restart = "always"\n'
    """More lines for the table of each workload."""
    files: ClassVar[int] = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = (files - 250) // 3
    """The supervisor and the keeper have two pipes and a pidfd of each program."""
    log: ClassVar[str] = ""
    """The log table of a workload with a log file of its own."""
    checkout: ClassVar[Checkout] = HERE
    """The checkout whose code runs."""

    def write(self) -> None:
        """One TOML file. Strings as JSON writes them are strings of TOML, too."""
        logs = next((service.log for service in self.services if service.log), None)
        out = json.dumps(str(logs / "current")) if logs and not self.log else '"stdout"'
        lines = [
            f'[supervisor]\nname = "{self.cgroup}"\nruntime_directory = {json.dumps(str(self.directory / "run"))}',
            f"log_output = {out}",
            f"log_directory = {json.dumps(str(logs or self.directory))}",
            f"{self.settings()}\n",
        ]
        for service in self.services:
            lines.append(f"[workload.{service.name}]\ncommand = {json.dumps(service.command)}")
            lines.append(ENDLESS + self.workload + (self.log if service.log else "") + service.extra)
            if service.restart_above:
                lines.append(f'[[workload.{service.name}.policy]]\naction = "restart"')
                lines.append(f'when = "memory.current >= {service.restart_above}"\n')
        (self.directory / "site.toml").write_text("\n".join(lines))

    def settings(self) -> str:
        """More lines for the table of the supervisor."""
        return ""

    @property
    def socket(self) -> str:
        """The path of its control socket."""
        return str(self.directory / "run" / "api.sock")

    @property
    def cgroup(self) -> str:
        """Unique among runs at the same time and among the sides of one run: the parent directory's name is random."""
        return f"nsupervisor-benchmark-{os.getpid()}-{self.directory.parent.name}"

    def command(self) -> list[str]:
        """From the checkout's own environment."""
        return [self.checkout.program, "run", str(self.directory / "site.toml")]

    def environment(self) -> dict[str, str]:
        """Nothing that would have it import another checkout's modules."""
        return self.checkout.environment()

    def clean(self) -> None:
        """Remove the cgroups that a failure may leave behind."""
        hierarchy.remove(self.cgroup)


def taken_from(kind: type[Nsupervisor], checkout: Checkout) -> type[Nsupervisor]:
    """A product like `kind` that runs the code of `checkout`; its figures have the name `checkout.label`."""
    body = {"name": checkout.label, "checkout": checkout}
    return types.new_class(kind.__name__, (kind,), {"listed": False}, lambda names: names.update(body))


class Plain(Nsupervisor):
    """No namespaces, no init; the cgroup stays."""

    name = "nsupervisor-plain"
    note = "no namespaces, no init; a cgroup each"
    benchmarks = ("restart", "footprint")
    workload = Nsupervisor.workload + (
        "init = false\nnamespaces = { mount = false, pid = false, uts = false, ipc = false, cgroup = false }\n"
    )


class Raw(Nsupervisor):
    """Raw bytes, into a rotated file."""

    name = "nsupervisor-raw"
    note = "log.stdout = file, format = raw"
    benchmarks = ("logs",)
    log = f'log = {{ stdout = "file", format = "raw", max_size = {LOG_SIZE}, max_files = {LOG_FILES} }}\n'


class Records(Nsupervisor):
    """A JSON record per line, into a rotated file."""

    name = "nsupervisor-json"
    note = "log.stdout = file, format = json"
    benchmarks = ("logs",)
    log = f'log = {{ stdout = "file", max_size = {LOG_SIZE}, max_files = {LOG_FILES} }}\n'
