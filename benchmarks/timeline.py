"""Show where the time of one restart goes: each step from kill -9 to the first instruction, by the kernel's trace.

The trace (tracefs, in a mount namespace and an instance of its own) has the time of each system call, switch, fork and
exec of the product's processes, by CLOCK_MONOTONIC. For each step: milliseconds since the kill, which other work on the
machine makes longer; and for each process the time that it ran, its system calls, and how often it was woken, which
other work changes little. Tracing itself costs about a microsecond for each system call.
"""

import ctypes
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs

from benchmarks import processes
from benchmarks.checkout import HERE, Checkout
from benchmarks.figures import Result
from benchmarks.peers.nsupervisor import Nsupervisor, taken_from
from benchmarks.products import SetupError
from benchmarks.session import Options, RunError, Session, idle, in_pairs, together

PROGRAMS = 5
AGE_S = 2.0
STEP, RUN, CALLS, WAKE = "ms since the kill", "us of CPU", "system calls", "wake-ups"
STEPS = (
    "1 the program has exited",
    "2 its init reports that",
    "3 the keeper reports it",
    "4 the supervisor requests a start",
    "5 the keeper sends the plan",
    "6 the process is in the cgroup",
    "7 it has executed the program",
    "8 first instruction",
)
_EVENTS = ("sched/sched_switch", "sched/sched_wakeup", "sched/sched_process_fork", "sched/sched_process_exec")
_EVENTS += ("sched/sched_process_exit", "raw_syscalls/sys_enter")
_SENDS = {46: "sendmsg", 44: "sendto", 1: "write", 20: "writev"} if os.uname().machine == "x86_64" else {211: "sendmsg"}
_LINE = re.compile(r"\s*(.+)-(\d+)\s+\[\d+\]\s+\S+\s+(\d+)\.(\d+): (\w+): (.*)")
_CLONE_NEWNS, _MS_REC_PRIVATE = 0x20000, 0x44000


@attrs.frozen
class Event:
    """One line of the trace. `at`: nanoseconds of CLOCK_MONOTONIC. `pid`: the process that ran."""

    at: int
    pid: int
    name: str
    text: str

    def number(self, key: str) -> int:
        """Return a number of the line."""
        found = re.search(rf"\b{key}=(-?\d+)", self.text)
        return int(found[1]) if found else -1


def run(options: Options) -> Result:
    """Measure this checkout."""
    return _measure(options, [HERE], options.number(40, 5))


def compare(options: Options, sides: list[Checkout]) -> Result:
    """Measure both sides at the same time, one restart of each in each round."""
    return _measure(options, sides, options.number(40, 5))


def _measure(options: Options, sides: Sequence[Checkout], rounds: int) -> Result:
    result = Result("timeline", "the steps of one restart, by the kernel's trace")
    with tracing() as trace, together([taken_from(Nsupervisor, side) for side in sides], idle(PROGRAMS)) as sessions:
        for session in sessions:
            session.up(PROGRAMS)
        for number, order in in_pairs(sessions, rounds):
            if number % PROGRAMS == 0:
                time.sleep(AGE_S)
            for session in order:
                time.sleep(0.05)
                _restart(trace, session, f"w{number % PROGRAMS}", number, result)
    return result


def _restart(trace: Path, session: Session, name: str, number: int, result: Result) -> None:
    pid = session.pids()[name]
    keeper = next(child for child in processes.descendants(session.peer.pid) if _name(child) == "nsupervisor-kee")
    init = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    members = [session.peer.pid, *processes.descendants(session.peer.pid)]
    (trace / "set_event_pid").write_text(" ".join(map(str, members)))
    (trace / "trace").write_text("")
    (trace / "tracing_on").write_text("1")
    start = time.monotonic_ns()
    os.kill(pid, signal.SIGKILL)
    lines = session.reports.take(1, 20)
    time.sleep(0.02)
    (trace / "tracing_on").write_text("0")
    if not lines:
        raise RunError(f"no restart within 20 s{session.said()}")
    end = int(lines[0][0])
    events = [event for event in _read(trace) if event.at >= start]
    label = session.peer.name
    steps = _steps(events, pid, init, session.peer.pid, keeper)
    if steps is None:
        return
    for step, at in zip(STEPS, [*steps, end], strict=True):
        result.add(label, step, STEP, number, [(at - start) / 1e6])
    known = {session.peer.pid: "supervisor", keeper: "keeper", init: "init"}
    for child in processes.descendants(keeper):
        if _name(child) == "nsupervisor-zyg":
            known[child] = "zygote"
    for part, chosen in (("until the first instruction", (start, end)), ("in all", (start, end + 20_000_000))):
        for who, (ran, calls, woken) in _use(events, known, *chosen).items():
            case = f"{who}, {part}"
            result.add(label, case, RUN, number, [ran / 1e3])
            result.add(label, case, CALLS, number, [calls])
            result.add(label, case, WAKE, number, [woken])


def _steps(events: Sequence[Event], pid: int, init: int, supervisor: int, keeper: int) -> list[int] | None:
    """Return the times of all steps but the last; None if the trace lacks one."""
    found: list[int] = []

    def find(name: str, by: int, calls: Sequence[int] = ()) -> Event | None:
        for event in events:
            is_later = event.at >= (found[-1] if found else 0)
            if is_later and event.name == name and by in (event.pid, 0) and (not calls or _call(event) in calls):
                return event
        return None

    child = 0
    for name, by in (
        ("sched_process_exit", pid),
        ("sys_enter", init),
        ("sys_enter", keeper),
        ("sys_enter", supervisor),
        ("sys_enter", keeper),
        ("sched_process_fork", 0),
        ("sched_process_exec", -1),
    ):
        event = find(name, child if by < 0 else by, tuple(_SENDS) if name == "sys_enter" else ())
        if event is None:
            return None
        if name == "sched_process_fork":
            child = event.number("child_pid")
        found.append(event.at)
    return found


def _call(event: Event) -> int:
    return int(event.text.split()[1])


def _use(events: Sequence[Event], known: dict[int, str], start: int, end: int) -> dict[str, tuple[int, int, int]]:
    """Return for each process the nanoseconds that it ran, its system calls, and its wake-ups."""
    names = ("supervisor", "keeper", "zygote", "init", "standby and program")
    ran, calls, woken = (dict.fromkeys(names, 0) for _ in range(3))
    # A switch is also that of a process which is not the product's, and which has no system calls here.
    known = {event.pid: names[-1] for event in events if event.name == "sys_enter"} | known
    since: dict[int, int] = {}
    for event in (event for event in events if event.at < end):
        if event.name == "sched_switch":
            before, after = event.number("prev_pid"), event.number("next_pid")
            if before in since:
                ran[known[before]] += event.at - since.pop(before)
            if after in known:
                since[after] = event.at
        elif event.name == "sys_enter":
            calls[known[event.pid]] += 1
        elif event.name == "sched_wakeup":
            who = event.number("pid")
            if who in known:
                woken[known[who]] += 1
    for who, at in since.items():
        ran[known[who]] += end - at
    return {name: (ran[name], calls[name], woken[name]) for name in names}


def _read(trace: Path) -> Iterator[Event]:
    for line in (trace / "trace").read_text(errors="replace").splitlines():
        if found := _LINE.match(line):
            _, pid, seconds, micros, name, text = found.groups()
            yield Event(int(seconds) * 1_000_000_000 + int(micros.ljust(9, "0")), int(pid), name, text)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


@contextmanager
def tracing() -> Iterator[Path]:
    """Make an instance of the kernel's trace, seen by this process and its children alone. Raises SetupError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) or libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None):
        raise SetupError(f"no mount namespace: {os.strerror(ctypes.get_errno())}")
    root = Path("/sys/kernel/tracing")
    if not (root / "instances").exists() and libc.mount(b"tracefs", bytes(root), b"tracefs", 0, None):
        raise SetupError(f"cannot mount tracefs: {os.strerror(ctypes.get_errno())}")
    instance = root / "instances" / f"nsupervisor-benchmark-{os.getpid()}"
    instance.mkdir()
    try:
        (instance / "tracing_on").write_text("0")
        (instance / "trace_clock").write_text("mono")
        (instance / "buffer_size_kb").write_text("4096")
        (instance / "options" / "event-fork").write_text("1")
        for event in _EVENTS:
            (instance / "events" / event / "enable").write_text("1")
        yield instance
    finally:
        instance.rmdir()
