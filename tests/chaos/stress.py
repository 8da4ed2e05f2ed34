"""stress-ng beside three neighbours that answer pings: how quickly they answer, and whether `why` explains each kill.

In turn nothing, memory, processes, processor and disk are under stress, for some seconds each, again and again: a
machine's speed drifts, so what is undisturbed is measured as often as what is disturbed. What decides is that the
neighbours run on, that whatever ended in the stressed workloads has a cause in the story that `why` tells, and that the
neighbours answer within `TARGET`, where limits can see to that: they cannot, where the host limits no disk, or where
somebody else uses the processors meanwhile. So what others used is measured beside, and said.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from nsupervisor.cgroups import Host
from nsupervisor.cli.episodes import group_episodes
from nsupervisor.config.changes import parse_changes
from nsupervisor.config.model import Resources
from tests.chaos.service import BrokenError, Run, over, running, site, until
from tests.chaos.workloads import ECHO

NEIGHBOURS = ("one", "two", "three")
QUIET = "undisturbed"
TARGET = 1.5
"""The neighbours' 99th percentile under stress, in parts of the undisturbed one."""
QUIET_ENOUGH = 0.1
"""What everybody else on the machine, the kernel's threads included, may use of one processor, with what is stolen from
it, where answers are to be judged: it competes with the neighbours, whatever limits our own workloads have."""
PAUSE = 0.003
"""Seconds between two pings."""

STRESS = {
    "memory": (
        "--vm 2 --vm-bytes 192M --vm-keep",
        'memory_max = "96M"',
        ('when = "memory.events oom_kill"\naction = "restart"',),
    ),
    "processes": (
        "--fork 4 --fork-max 64",
        'pids_max = 64\nmemory_max = "256M"',
        ('when = "pids.events max"\naction = "restart"\ncooldown = "5s"',),
    ),
    "processor": ("--cpu 4", "", ()),
    # Direct, because v1 charges nobody for what is written out later.
    "disk": ("--hdd 2 --hdd-bytes 64M --hdd-opts direct --temp-path {directory}", 'memory_max = "96M"{io}', ()),
}
"""By name: stress-ng's arguments, limits, and rules."""
BANDWIDTH = "8M"
"""Bytes a second that the disk's stress may read, and write."""


def toml(directory: str) -> str:
    """The neighbours have the first processor for themselves, and whoever is under stress half of the last one."""
    first, last = processors()
    resources = f'cpu_weight = 10000\ncpuset_cpus = "{first}"\n'
    io = f"\nio_max = {_io_max(directory)}" if not unlimited_disk(directory) else ""
    parts = [f"[workload.{name}]{ECHO}[workload.{name}.resources]\n{resources}" for name in NEIGHBOURS]
    for name, (arguments, limits, rules) in STRESS.items():
        command, given = ["stress-ng", *arguments.format(directory=directory).split()], limits.format(io=io)
        parts.append(
            f"[workload.{name}]\ncommand = {json.dumps(command)}\nautostart = false\nrestart = 'always'\n"
            'restart_sec = "100ms"\nrestart_max_delay_sec = "1s"\nstart_limit_burst = 1000000\n'
            f'[workload.{name}.resources]\ncpu_weight = 1\ncpu_max = "50%"\ncpuset_cpus = "{last}"\n{given}\n'
        )
        parts += [f"[[workload.{name}.policy]]\n{rule}\n" for rule in rules]
    return "\n".join(parts)


def _io_max(directory: str) -> str:
    return f'[{{ device = "{directory}", rbps = "{BANDWIDTH}", wbps = "{BANDWIDTH}" }}]'


def unlimited_disk(directory: str) -> str:
    """Why this host cannot limit what is written to a directory's disk; "" where it can."""
    resources = parse_changes(tomllib.loads(f"io_max = {_io_max(directory)}"))
    return "; ".join(str(problem) for problem in Host.discover().check_resources(Resources(**resources)))


def processors() -> tuple[int, int]:
    """For the neighbours and for the stress; the same one where there is only one."""
    allowed = os.sched_getaffinity(0)
    return min(allowed), max(allowed)


@attrs.define
class Phase:
    """What has been seen under one kind of stress."""

    name: str
    rounds: list[list[float]] = attrs.field(factory=list)
    """Milliseconds to an answer, by round."""
    others: list[float] = attrs.field(factory=list)
    """Of one processor: what neither our workloads nor our own processes used, and what was stolen, by round."""
    service: list[float] = attrs.field(factory=list)
    """Of one processor: what supervisor and keeper used, by round."""

    @property
    def all(self) -> list[float]:
        return sorted(sample for samples in self.rounds for sample in samples)


def part(times: Sequence[float], of: float) -> float:
    """The time below which a part of them are; they are sorted."""
    return times[min(len(times) - 1, int(len(times) * of))]


@attrs.frozen
class Used:
    """Seconds of processor time, and when."""

    at: float
    everybody: float
    """All processors, with what a hypervisor has stolen from them."""
    ours: float
    service: float
    """Of the supervisor and the keeper, which are part of ours."""

    @classmethod
    def now(cls, run: Run) -> "Used":
        ticks = os.sysconf("SC_CLK_TCK")
        with open("/proc/stat") as file:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
        service = 0.0
        for pid in (run.pid, run.keeper_pid):
            with open(f"/proc/{pid}/stat") as file:
                service += sum(map(int, file.read().rpartition(")")[2].split()[11:13])) / ticks
        ours = sum(one["cpu_usage_usec"] or 0 for one in run.status()) / 1e6 + sum(os.times()[:4]) + service
        busy = (user + nice + system + irq + softirq + steal) / ticks
        return cls(time.monotonic(), busy, ours, service)

    def since(self, before: "Used") -> tuple[float, float]:
        """What others have used of one processor since then, and what the service has."""
        seconds = self.at - before.at
        used = (self.everybody - before.everybody) - (self.ours - before.ours)
        return max(used / seconds, 0.0), (self.service - before.service) / seconds


@contextmanager
def connected(run: Run) -> Iterator[list[socket.socket]]:
    """To each neighbour; they take one connection at a time."""
    sockets = []
    everywhere = os.sched_getaffinity(0)
    # Else it would be this program that waits for the disturbed processor; the service has been started before.
    os.sched_setaffinity(0, {processors()[0]})
    try:
        for name in NEIGHBOURS:
            connection = socket.socket(socket.AF_UNIX)
            sockets.append(connection)
            connection.settimeout(30)
            until(f"{name} answers", lambda c=connection, n=name: c.connect_ex(f"\0echo-{n}-{run.site.mark}") == 0)
        yield sockets
    finally:
        os.sched_setaffinity(0, everywhere)
        for connection in sockets:
            connection.close()


def ping(sockets: Sequence[socket.socket], seconds: float) -> list[float]:
    """Ping them in turn for so long; milliseconds each."""
    times = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for connection in sockets:
            time.sleep(PAUSE)
            begin = time.perf_counter()
            connection.sendall(b"x")
            if connection.recv(1) != b"x":
                raise BrokenError("answers: a neighbour has closed its connection")
            times.append(1000 * (time.perf_counter() - begin))
    return times


def unexplained(records: Sequence[dict[str, Any]]) -> list[str]:
    """Of one workload's records: each end that `why` gives no cause for. Pure."""
    found = []
    for episode in group_episodes(list(records)):
        for record in episode:
            if record["event"] != "exited" or not record.get("signal"):
                continue
            first = episode[0]
            named = first["event"] == "action" and ("rule" in first["cause"] or "by" in first["cause"])
            if not named and not record["oom_killed"]:
                found.append(
                    f"{record['workload']}#{record['generation']} ended by {record['signal']}: no cause is told"
                )
    return found


@attrs.define
class Report:
    """What came of it."""

    phases: dict[str, Phase]
    ends: dict[str, dict[str, int]]
    """By stressed workload: how many starts, kills by the kernel, acts of rules."""
    unexplained: list[str]
    why: dict[str, str]
    disk: str = ""
    """Why the disk's bandwidth could not be limited."""

    def ratio(self, name: str) -> float:
        """The 99th percentile in parts of the undisturbed one."""
        return part(self.phases[name].all, 0.99) / part(self.phases[QUIET].all, 0.99)

    def excuse(self, name: str) -> str:
        """Why no limit could see to the answers under this stress; "" where one could."""
        if name == "disk" and self.disk:
            return f"nothing limits the disk here: {self.disk}"
        busiest = max((*self.phases[name].others, *self.phases[QUIET].others), default=0.0)
        if busiest > QUIET_ENOUGH:
            return (
                f"others, or the kernel itself, used up to {busiest:.0%} of a processor meanwhile "
                f"(with at most {QUIET_ENOUGH:.0%} it could be judged)"
            )
        return ""

    @property
    def outside(self) -> list[str]:
        """The kinds of stress under which the neighbours took too long, although limits could see to it."""
        return [name for name in self.phases if name != QUIET and self.ratio(name) > TARGET and not self.excuse(name)]

    @property
    def unjudged(self) -> list[str]:
        """The kinds of which nothing can be said: it took too long, and nothing here could have helped."""
        return [name for name in self.phases if name != QUIET and self.ratio(name) > TARGET and self.excuse(name)]

    def verdict(self) -> tuple[str, int]:
        """In one line, with the exit status."""
        wrong = [f"{name} {self.ratio(name):.2f}" for name in self.outside]
        said = [f"{len(self.unexplained)} ends have no cause that is told"] if self.unexplained else []
        said += [f"the neighbours took longer than {TARGET} times beside {', '.join(wrong)}"] if wrong else []
        if said:
            return f"FAILED: {'; '.join(said)}", 1
        if self.unjudged:
            return f"NOT JUDGED: {'; '.join(f'{name}: {self.excuse(name)}' for name in self.unjudged)}", 3
        return f"passed: every end is explained, and the neighbours answered within {TARGET} times", 0

    def lines(self) -> Iterator[str]:
        yield (
            f"{'':12}  {'pings':>7}  {'median':>7}  {'99 %':>7}  {'most':>7}  {'others':>6}  {'service':>7}  "
            "99 % in parts of undisturbed (rounds)"
        )
        for name, phase in self.phases.items():
            times = phase.all
            row = f"{name:12}  {len(times):7}  {part(times, 0.5):7.3f}  {part(times, 0.99):7.3f}  {times[-1]:7.2f}"
            row += f"  {max(phase.others, default=0.0):6.0%}  {max(phase.service, default=0.0):7.1%}"
            if name != QUIET:
                pairs = zip(phase.rounds, self.phases[QUIET].rounds, strict=False)
                each = [part(sorted(a), 0.99) / part(sorted(b), 0.99) for a, b in pairs if a and b]
                told = "within" if self.ratio(name) <= TARGET else "OUTSIDE"
                excuse = self.excuse(name) if told == "OUTSIDE" else ""
                row += f"  {self.ratio(name):.2f} ({min(each):.2f} to {max(each):.2f}) of {TARGET}: {told}"
                row += f", but {excuse}" if excuse else ""
            yield row
        for name, ends in self.ends.items():
            yield f"{name}: " + ", ".join(f"{number} {what}" for what, number in ends.items())
        limited = f"to {BANDWIDTH} a second each way, by io_max" if not self.disk else f"by nobody: {self.disk}"
        yield f"what the disk's stress reads and writes was limited {limited}"
        yield f"ends without a cause that is told: {len(self.unexplained)}"
        yield from self.unexplained
        for name, text in self.why.items():
            yield f"\n$ nsupervisor why -n 2 {name}\n{text}"


def stress(seconds: float, rounds: int) -> Report:
    """`seconds` of each kind of stress in each round. Raises BrokenError where a neighbour does not run on."""
    kinds = [QUIET, *STRESS]
    phases = {name: Phase(name) for name in kinds}
    with (
        tempfile.TemporaryDirectory(prefix="nsupervisor-stress-", dir="/var/tmp") as directory,
        site(toml(directory)) as where,
        running(where) as run,
    ):
        with connected(run) as sockets:
            for number in range(rounds):
                for name in kinds[number % len(kinds) :] + kinds[: number % len(kinds)]:
                    mark = len(run.records)
                    if name != QUIET:
                        run.tell("start", name)
                    before = Used.now(run)
                    phases[name].rounds.append(ping(sockets, seconds))
                    others, service = Used.now(run).since(before)
                    phases[name].others.append(others)
                    phases[name].service.append(service)
                    if name in STRESS and STRESS[name][2]:  # on a busy machine it may take longer to be too much
                        until(f"a rule acts on {name}", lambda n=name, m=mark: _acts(run.matching(m, workload=n)))
                    if name != QUIET:
                        run.tell("stop", name)
        status = {one["name"]: one for one in run.status()}
        wrong = [f"{name} is {status[name]['state']}" for name in NEIGHBOURS if status[name]["generation"] != 1]
        if wrong:
            raise BrokenError(f"neighbours run on: {', '.join(wrong)}")
        why = {name: _why(run, name) for name in STRESS}
        run.stop()
        over(run)
        of = {name: run.matching(workload=name) for name in STRESS}
        disk = unlimited_disk(directory)
    ends = {name: _ends(of[name]) for name in STRESS}
    return Report(phases, ends, [each for records in of.values() for each in unexplained(records)], why, disk)


def _ends(records: Sequence[dict[str, Any]]) -> dict[str, int]:
    return {
        "starts": sum(record["event"] == "started" for record in records),
        "killed for lack of memory": sum(bool(record.get("oom_killed")) for record in records),
        "acts of rules": _acts(records),
    }


def _acts(records: Sequence[dict[str, Any]]) -> int:
    return sum(record["event"] == "action" and "rule" in record["cause"] for record in records)


def _why(run: Run, name: str) -> str:
    command = [sys.executable, "-m", "nsupervisor", "why", "-n", "2", name]
    environment = {**os.environ, "NSUPERVISOR_SOCKET": str(run.site.runtime / "api.sock")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.rstrip()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/stress", description="stress-ng beside neighbours that answer pings."
    )
    parser.add_argument("--minutes", type=float, default=20, metavar="M", help="of stress, in all (default: 20)")
    parser.add_argument("--seconds", type=float, default=20, metavar="S", help="of each kind at a time (default: 20)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all times and counts there")
    arguments = parser.parse_args()
    rounds = max(1, round(60 * arguments.minutes / (len(STRESS) * arguments.seconds)))
    print(f"stress: {rounds} rounds of {arguments.seconds:g} s undisturbed and {', '.join(STRESS)}", flush=True)
    report = stress(arguments.seconds, rounds)
    print("\n".join(report.lines()))
    if arguments.json:
        arguments.json.write_text(json.dumps(attrs.asdict(report)) + "\n")
    text, status = report.verdict()
    print(f"\n{text}")
    return status


if __name__ == "__main__":
    sys.exit(main())
