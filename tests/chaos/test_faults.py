"""One fault each, and what goes on meanwhile."""

import os
import signal
import time

import pytest

from tests.chaos.service import Run, demand, few_descriptors, full_disk, over, running, site, until
from tests.chaos.workloads import ECHO
from tests.needs import cgroup_directories, needs

pytestmark = [pytest.mark.slow, needs("root", "cgroup")]

COUNTS = """
[workload.count]
command = ["sh", "-c", "i=0; while :; do i=$((i+1)); echo count $i; sleep 0.05; done"]
restart = "always"
restart_sec = 0
"""
LINES = 100_000
FLOOD = f"""
[workload.flood]
command = ["seq", "-f", "count %.0f", "{LINES}"]
type = "oneshot"
autostart = false
"""


def dies_and_comes_back(run: Run, name: str = "count") -> None:
    """A program that is killed is replaced, while whatever is going on goes on."""
    before = until(f"{name} runs", lambda: (one := run.one(name))["state"] == "running" and one)
    os.kill(before["pid"], signal.SIGKILL)
    until(f"{name} runs again", lambda: (o := run.one(name))["generation"] > before["generation"] and o["pid"])


# ---- readers and disks


@needs("program:unshare")
@pytest.mark.parametrize("output", ["stdout", "fifo", "disk"])
def test_a_stopped_reader_or_a_full_disk_costs_nothing_that_fits_into_the_buffer(output):
    with site(COUNTS, output) as where, running(where) as run:
        run.record(event="output", message="count 3")
        if output == "disk":
            with full_disk(run):
                dies_and_comes_back(run)
        else:
            run.stop_reading()
            dies_and_comes_back(run)
            run.read_on()
        run.record(event="output", generation=2, message="count 3")
        run.stop()
        over(run)
        assert not run.matching(event="dropped")


@pytest.mark.parametrize("first", ["reads", "stops"])
def test_a_reader_that_dies_ends_nothing(first):
    with site(COUNTS) as where, running(where) as run:
        run.record(event="output", message="count 3")
        if first == "stops":
            run.stop_reading()
            dies_and_comes_back(run)
        run.die_as_reader()
        dies_and_comes_back(run)
        assert run.stop() == 0
        demand(run.complaints())
        where.demand_nothing_left()


def flooded(run: Run) -> None:
    """More output than fits into the buffer, while nobody reads; every line is recorded or counted as dropped."""
    run.stop_reading()
    run.tell("start", "flood")
    until("the flood is over", lambda: run.one("flood")["state"] == "exited")
    dies_and_comes_back(run)
    run.read_on()
    run.tell("stop", "count")
    assert run.stop() == 0
    recorded = len(run.matching(event="output", workload="flood"))
    dropped = sum(record["dropped"] for record in run.matching(event="dropped"))
    others = len([r for r in run.records if r["event"] != "output" or r["workload"] != "flood"])
    print(f"\nflood: {LINES} lines, {recorded} recorded, {dropped} records dropped, {others} others recorded")
    assert recorded < LINES <= recorded + dropped


def test_a_stopped_reader_costs_only_what_does_not_fit_and_that_is_counted():
    with site(COUNTS + FLOOD) as where, running(where) as run:
        flooded(run)
        where.demand_nothing_left()


# ---- descriptors


@pytest.mark.parametrize(("kind", "room"), [("simple", 0), ("simple", 3), ("simple", 6), ("simple", 9), ("notify", 0)])
def test_a_keeper_without_descriptors_says_so_and_starts_programs_when_it_has_some_again(kind, room):
    """Wherever in the middle of a start, or of the preparation for the next one, the descriptors end; for a program
    that notifies, also already when its socket is handed over."""
    slow = COUNTS.replace(
        "restart_sec = 0",
        f'type = "{kind}"\nrestart_sec = "20ms"\nrestart_max_delay_sec = "20ms"\nstart_limit_burst = 100000',
    )
    with site(slow) as where, running(where) as run:
        with few_descriptors(run.keeper_pid, room):
            for generation in (1, 2, 3):
                started = until(
                    "started, or refused",
                    lambda generation=generation: (
                        run.matching(event="started", generation=generation)
                        or run.matching(event="not started", generation=generation)
                    ),
                )[0]
                if started["event"] == "started":
                    os.kill(started["pid"], signal.SIGKILL)
        run.program("count")
        run.stop()
        over(run)
        refusals = run.matching(event="not started")
    assert {record["message"].rpartition(": ")[2] for record in refusals} <= {"Too many open files"}


def test_a_supervisor_without_descriptors_ends_no_workload():
    toml = COUNTS + '[workload.chill]\ncommand = ["sleep", "100000"]\n'
    with site(toml) as where, running(where) as run:
        run.may_complain = True
        chill, count = run.program("chill"), run.program("count")
        with few_descriptors(run.pid, -1):
            os.kill(count, signal.SIGKILL)
            run.record(event="exited", workload="count", generation=1)
            run.record(event="not started", workload="count")
        assert run.program("chill") == chill
        run.ask("start", "count")  # it may have been given up meanwhile
        dies_and_comes_back(run)
        run.stop()
        over(run)


# ---- memory


@needs("memory", "hybrid")
@pytest.mark.parametrize("megabytes", [32, 2])
def test_a_supervisor_short_of_memory(megabytes):
    """With its own limit it stays below that when nobody reads. With far too little the kernel kills it, and the next
    run ends what it left."""
    group = cgroup_directories()["memory"] / f"chaos-memory-{os.getpid()}"
    group.mkdir()
    try:
        with site(COUNTS + FLOOD) as where, running(where) as run:
            run.program("count")
            (group / "memory.limit_in_bytes").write_text(f"{megabytes}M")
            (group / "cgroup.procs").write_text(str(run.pid))
            if megabytes > 16:
                flooded(run)
                most = int((group / "memory.max_usage_in_bytes").read_text())
                print(f"\nmemory: at most {most / (1 << 20):.1f} MiB more than at the start")
                where.demand_nothing_left()
                return
            run.stop_reading()
            run.ask("start", "flood")
            assert run.wait() == -signal.SIGKILL
            run.close()
            with running(where) as second:
                dies_and_comes_back(second)
                second.stop()
                over(second)
    finally:
        until("its cgroup is empty", lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


# ---- bad neighbours

BAD = """
[workload.forks]
autostart = false
restart = "always"
start_limit_burst = 1000000
command = ["python3", "-S", "-E", "-c", '''
import os, time
while True:
    try:
        os.fork()
    except BlockingIOError:
        time.sleep(0.02)
''']
[workload.forks.resources]
pids_max = 24
[workload.swells]
autostart = false
restart = "always"
restart_sec = "10ms"
restart_max_delay_sec = "50ms"
start_limit_burst = 1000000
command = ["python3", "-S", "-E", "-c", '''
kept = []
while True:
    kept.append(bytearray(1 << 20))
''']
[workload.swells.resources]
memory_max = "24M"
"""


def round_trips(run: Run, name: str, number: int) -> list[float]:
    """How long a program takes to answer, in milliseconds, sorted."""
    import socket

    times = []
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(f"\0echo-{name}-{run.site.mark}")
        for _ in range(number):
            begin = time.perf_counter()
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
            times.append(1000 * (time.perf_counter() - begin))
    return sorted(times)


def shown(times: list[float]) -> str:
    return (
        f"median {times[len(times) // 2]:.2f} ms, 99 % {times[len(times) * 99 // 100]:.2f} ms, most {times[-1]:.2f} ms"
    )


@needs("memory", "pids")
def test_bombs_beside_good_neighbours():
    """What decides is that those answer and are not restarted; how quickly is printed."""
    good = ("one", "two")
    with site("".join(f"[workload.{name}]{ECHO}" for name in good) + BAD) as where, running(where) as run:
        for name in good:
            run.program(name)
            until(f"{name} answers", lambda name=name: answers(run, name))
        print(f"\nalone:        {shown(round_trips(run, 'one', 500))}")
        run.tell("start", "forks", "swells")
        until("the bomb is full", lambda: (run.one("forks")["pids_current"] or 0) >= 20)
        run.record(event="exited", workload="swells", generation=2, oom_killed=True)
        for name in good:
            print(f"beside bombs: {shown(round_trips(run, name, 500))}")
        begin = time.perf_counter()
        status = {one["name"]: one for one in run.status()}
        print(f"the API:      {1000 * (time.perf_counter() - begin):.1f} ms")
        assert [(status[name]["generation"], status[name]["state"]) for name in good] == [(1, "running")] * 2
        assert status["swells"]["generation"] > 2
        run.stop()
        over(run)


def answers(run: Run, name: str) -> bool:
    try:
        return bool(round_trips(run, name, 1))
    except OSError:
        return False


CRASHERS = int(os.environ.get("NSUPERVISOR_CHAOS_CRASHERS", "60"))


def test_many_crash_loops_at_once():
    """NSUPERVISOR_CHAOS_CRASHERS says how many; a thousand take some minutes of processor time."""
    crash = f"""
[workload.crash]
command = ["false"]
instances = {CRASHERS}
restart_sec = "200ms"
restart_max_delay_sec = "1min"
start_limit_burst = 1000000
"""
    toml = f"{crash}[workload.good]{ECHO}"
    with site(toml) as where, running(where) as run:
        begin = time.monotonic()

        def all_have_crashed_twice() -> bool:
            return len(run.matching(event="exited", generation=2)) >= CRASHERS

        until("each has crashed twice", all_have_crashed_twice, 300)
        seconds = time.monotonic() - begin
        begin = time.monotonic()
        status = run.status()
        asked = time.monotonic() - begin
        assert next(one for one in status if one["name"] == "good")["restarts"] == 0
        times = round_trips(run, "good", 200)
        starts = sum(one["generation"] for one in status)
        begin = time.monotonic()
        run.signal(signal.SIGTERM)
        run.wait(300)
        print(
            f"\n{CRASHERS} crash loops: {starts} starts in {seconds:.1f} s; status takes {1000 * asked:.0f} ms; "
            f"a neighbour answers: {shown(times)}; all stopped in {time.monotonic() - begin:.1f} s"
        )
        over(run)
