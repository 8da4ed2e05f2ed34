"""One fault each, and what goes on meanwhile."""

import os
import re
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from nsupervisor.api.client import ClientError
from tests.chaos import invariants
from tests.chaos.service import Run, Site, answer, demand, few_descriptors, full_disk, over, running, site, until
from tests.chaos.workloads import ECHO
from tests.needs import cgroup_directories, needs

pytestmark = [pytest.mark.slow, needs("root", "cgroup")]

COUNTS = """
[workload.count]
command = ["sh", "-c", "i=0; while :; do i=$((i+1)); echo count $i; sleep 0.05; done"]
restart = "always"
restart_sec = 0
"""
LINES = 120_000
"""Of the flood: 1.4 MB, more than its pipe and the stream's can hold; as records, several times the buffer."""
DROPPING_LINES = 300_000
"""3.9 MB. A megabyte may still be in the pipe when the flood has ended: the rest is more than the buffer holds."""
FLOOD = """
[workload.flood]
command = ["seq", "-f", "count %.0f", "LINES"]
type = "oneshot"
autostart = false
"""
DROPS = '[workload.flood.log]\non_full = "drop"\n'


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
        said = run.stderr.read_text()
        assert re.fullmatch(
            r"nsupervisor: supervisor\.log_output: [0-9]+ records? (was|were) lost: Broken pipe\n", said
        )
        where.demand_nothing_left()


def is_full(pid: int) -> bool:
    """Whether the pipe that is the standard output of this process takes nothing."""
    fd = os.open(f"/proc/{pid}/fd/1", os.O_WRONLY | os.O_NONBLOCK)
    try:
        return not select.select([], [fd], [], 0)[1]
    finally:
        os.close(fd)


def numbers(run: Run, name: str) -> list[int]:
    return [int(record["message"].split()[1]) for record in run.matching(event="output", workload=name)]


def flooded_and_held_up(run: Run) -> None:
    """More output than fits into the buffer, while nobody reads: its writer waits, nobody else does, and nothing is
    lost."""
    run.stop_reading()
    ended = run.ask("start", "flood")  # answered at its end
    flood = run.program("flood")
    until("the stream and the flood are held up", lambda: is_full(run.pid) and is_full(flood))
    dies_and_comes_back(run)
    assert run.one("flood")["pid"] == flood
    assert not ended.done()
    run.read_on()
    answer(ended, "start flood")
    run.tell("stop", "count")
    assert run.stop() == 0
    assert numbers(run, "flood") == list(range(1, LINES + 1))
    assert not run.matching(event="dropped")
    demand([*invariants.output_gapless(run.records), *invariants.states_chain(run.records), *run.complaints()])


def flooded_and_dropped(run: Run) -> None:
    """The same with `on_full = "drop"`: nobody waits, and every record is there or counted, those of the service, too;
    the lines of a workload that blocks are all there."""
    run.stop_reading()
    run.tell("start", "flood")
    assert run.one("flood")["state"] == "exited"
    dies_and_comes_back(run)
    generation = run.one("count")["generation"]
    run.read_on()
    until("the reader has caught up", lambda: run.records[-1].get("generation") == generation)
    run.tell("stop", "count")
    own = sum(len(one["records"]) for one in run.client.history("*"))
    assert run.stop() == 0
    end = run.records.index(run.record(event="supervisor stopping"))
    told = sum(record["event"] not in ("output", "dropped") and "workload" in record for record in run.records[:end])
    recorded = numbers(run, "flood")
    dropped = sum(record["dropped"] for record in run.matching(event="dropped"))
    print(
        f"\nflood: {len(recorded)} of {DROPPING_LINES} lines recorded; {dropped} dropped, {own - told} of the service"
    )
    assert 0 < len(recorded) < DROPPING_LINES
    assert DROPPING_LINES - len(recorded) + own - told == dropped
    # Two generations are recorded side by side here, and number their lines together.
    lines = sorted(record["seq"] for record in run.matching(event="output", workload="count"))
    assert lines == list(range(len(lines)))
    demand([*invariants.output_gapless(run.records), *run.complaints()])


FLOODS = {"block": flooded_and_held_up, "drop": flooded_and_dropped}
CONFIGURATIONS = {
    "block": COUNTS + FLOOD.replace("LINES", str(LINES)),
    "drop": COUNTS + FLOOD.replace("LINES", str(DROPPING_LINES)) + DROPS,
}


@pytest.mark.parametrize("on_full", FLOODS)
def test_a_stopped_reader_holds_up_who_blocks_or_costs_what_is_counted(on_full):
    with site(CONFIGURATIONS[on_full]) as where, running(where) as run:
        FLOODS[on_full](run)
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


@contextmanager
def short_of_memory(run: Run, megabytes: int) -> Iterator[Path]:
    """The supervisor, and nothing else of the service, gets this much more than it has."""
    group = cgroup_directories()["memory"] / f"chaos-memory-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(f"{megabytes}M")
        (group / "cgroup.procs").write_text(str(run.pid))
        yield group
    finally:
        run.process.kill()  # where something went wrong
        run.process.wait()
        until("its cgroup is empty", lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


@needs("memory", "hybrid")
@pytest.mark.parametrize("on_full", FLOODS)
def test_a_supervisor_with_a_limit_of_its_own_stays_below_it_when_nobody_reads(on_full):
    with site(CONFIGURATIONS[on_full]) as where, running(where) as run:
        run.program("count")
        with short_of_memory(run, 32) as group:
            FLOODS[on_full](run)
            most = int((group / "memory.max_usage_in_bytes").read_text())
            print(f"\nmemory: at most {most / (1 << 20):.1f} MiB more than at the start")
            where.demand_nothing_left()


WAITING_FLOOD = f"""
[workload.flood]
command = ["sh", "-c", "read go < {{directory}}/go; exec seq -f 'count %.0f' {LINES}"]
restart = "no"
"""


@contextmanager
def waiting_site() -> Iterator[Site]:
    with site(COUNTS + WAITING_FLOOD) as where:
        where.config.write_text(where.config.read_text().replace("{directory}", str(where.directory)))
        os.mkfifo(where.directory / "go")
        yield where


def once(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records without those that are marked as duplicates and have been there before."""
    seen: set[object] = set()
    kept = []
    for record in records:
        key = (record["workload"], record["stream"], record["seq"]) if record["event"] == "output" else None
        if key not in seen or not record.get("duplicate"):
            kept.append(record)
        seen.add(key)
    return kept


@needs("memory", "hybrid")
def test_a_supervisor_with_far_too_little_memory_is_killed_and_the_next_one_goes_on_with_every_line():
    """By the kernel, while its workloads write; they do not notice."""
    with waiting_site() as where, running(where) as first:
        before = {name: first.program(name) for name in ("count", "flood")}
        with short_of_memory(first, 1) as group:
            first.stop_reading()
            (where.directory / "go").write_text("go\n")

            def killed() -> bool:
                """By then, or because now it gets nothing more than it has."""
                with suppress(OSError, ClientError):
                    (group / "memory.limit_in_bytes").write_text((group / "memory.usage_in_bytes").read_text())
                    first.status()
                return first.process.poll() is not None

            until("killed", killed)
            assert first.wait() == -signal.SIGKILL
        first.close()
        with running(where) as second:
            assert second.record(event="taken over")["workloads"] == 2
            assert second.program("count") == before["count"]
            end = second.record(event="exited", workload="flood")
            assert (end["pid"], end["generation"], end["code"]) == (before["flood"], 1, 0)
            second.record(event="output", workload="flood", message=f"count {LINES}")
            dies_and_comes_back(second)
            assert second.stop() == 0
            both = once([*first.records, *second.records])
            assert not [record for record in both if record["event"] == "dropped"]
            demand([*invariants.output_gapless(both), *first.complaints(), *second.complaints()])
            where.demand_nothing_left()


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
        run.record(event="started", workload="swells", generation=3)
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
