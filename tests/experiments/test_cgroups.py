"""What one does by hand to understand cgroups: they limit, control and count a process and its later children.

The files are read by hand, by their names in the kernel; on hybrid hosts those of version 1.
"""

import json
import os
import select
import time

import pytest

from tests.experiments.laboratory import until
from tests.needs import needs
from tests.timing import deadline

pytestmark = [pytest.mark.system, needs("root", "cgroup", "memory", "pids", "cpu", "cpuset")]

MIB = 1 << 20

TOML = """
[workload.slow]
resources = { cpu_max = "20000 100000" }
[workload.heavy]
resources = { cpu_weight = 400, cpuset_cpus = "0" }
[workload.light]
resources = { cpu_weight = 100, cpuset_cpus = "0" }
[workload.small]
resources = { memory_max = "48M", pids_max = 12 }
[workload.crowd]
restart = "no"
"""

MANY = """
import os
waiting, end = os.pipe()
made = 0
try:
    while True:
        if os.fork() == 0:
            os.close(end)
            os.read(waiting, 1)  # until the first process ends
            os._exit(0)
        made += 1
except BlockingIOError as error:
    print(made, error.strerror)
"""

BUSY = "sh -c 'while :; do :; done'"


def test_cpu_quota_holds_for_all_children_together(lab):
    def used() -> float:
        return lab.read("slow", "cpu.stat", "usage_usec") / 1e6

    # A process that was there before, and two later children of it; together they get a fifth of one processor.
    before, begin = used(), time.monotonic()
    lab.inside("slow", f"{BUSY} & one=$!; {BUSY} & two=$!")
    until(lambda: used() - before >= 0.3, "0.3 s of processor time")
    spent, took = used() - before, time.monotonic() - begin
    # Half a second more for quota that was saved up, and for the time between the two readings.
    assert spent <= 0.2 * took + 0.1 + (0.5 if deadline(1) > 1 else 0)
    assert took >= 1.0  # unlimited it is 0.15 s, on two processors
    assert lab.read("slow", "cpu.stat", "nr_throttled") > 0
    lab.inside("slow", "kill $one $two; wait $one $two 2>/dev/null")


def test_cpu_weight_divides_one_processor(lab):
    def used(name: str) -> int:
        return lab.read(name, "cpu.stat", "usage_usec")

    for name in ("heavy", "light"):
        assert lab.inside(name, "grep Cpus_allowed_list /proc/self/status | cut -f 2") == ["0"]
        lab.inside(name, f"{BUSY} & busy=$!")
    heavy, light = used("heavy"), used("light")
    until(lambda: used("light") - light >= 250_000, "0.25 s of processor time for the light one")
    ratio = (used("heavy") - heavy) / (used("light") - light)
    assert 2.5 < ratio < 6, ratio  # 400 : 100
    for name in ("heavy", "light"):
        lab.inside(name, "kill $busy; wait $busy 2>/dev/null")
    # The one that is alone gets all of it, whatever its weight.
    heavy, light = used("heavy"), used("light")
    lab.inside("light", f"{BUSY} & busy=$!")
    until(lambda: used("light") - light >= 250_000, "0.25 s of processor time for the light one alone")
    assert used("heavy") - heavy < 50_000
    lab.inside("light", "kill $busy; wait $busy 2>/dev/null")


def test_memory_of_children_counts(lab):
    before = lab.read("small", "memory.current")
    lab.inside("small", f"mkfifo {lab.directory}/hold")
    holds = f"import sys; held = bytearray({20 * MIB}); print('held', flush=True); open('{lab.directory}/hold').read()"
    sent = lab.send("small", f'python3 -c "{holds}"')
    lab.record(event="output", workload="small", message="held")
    assert 20 * MIB <= lab.read("small", "memory.current") - before < 48 * MIB
    os.close(os.open(lab.directory / "hold", os.O_WRONLY))  # and so it ends
    assert lab.answer(sent) == ["held"]
    assert lab.read("small", "memory.current") - before < 20 * MIB


def test_memory_limit_kills_the_child_that_wants_more(lab):
    assert lab.read("small", "memory.max") == 48 * MIB
    assert lab.read("small", "memory.events", "oom_kill ") == 0
    assert lab.inside("small", f'python3 -c "bytearray({200 * MIB})" 2>/dev/null; echo $?')[-1] == "137"
    assert lab.read("small", "memory.events", "oom_kill ") == 1
    assert lab.inside("small", "echo here") == ["here"]  # the shell, its parent, has less and lives on
    assert lab.read("crowd", "memory.events", "oom_kill ") == 0


def test_number_of_processes_is_limited(lab):
    assert lab.read("small", "pids.max") == 12
    before = lab.read("small", "pids.current")
    (lab.directory / "many.py").write_text(MANY)
    lab.inside("small", "sleep 1000 & sleeper=$!")
    assert lab.read("small", "pids.current") == before + 1
    # The sleeper, and Python itself, leave this many for its children.
    assert lab.inside("small", f"python3 {lab.directory}/many.py") == [
        f"{12 - before - 2} Resource temporarily unavailable"
    ]
    assert lab.read("small", "pids.events", "max ") == 1
    until(lambda: lab.read("small", "pids.current") == before + 1, "the end of all of them")
    lab.inside("small", "kill $sleeper; wait $sleeper 2>/dev/null")


def test_a_frozen_cgroup_stands_still(lab):
    def used() -> int:
        return lab.read("crowd", "cpu.stat", "usage_usec")

    lab.inside("crowd", f"{BUSY} & busy=$!")
    before = used()
    until(lambda: used() > before, "processor time")
    lab.cli("freeze", "crowd")
    assert lab.read("crowd", "cgroup.events", "frozen ") == 1
    sent = lab.send("crowd", "echo 'first words'")
    before = used()
    assert json.loads(lab.cli("status", "--json", "crowd"))[0]["state"] == "frozen"
    assert used() == before
    lab.cli("thaw", "crowd")
    assert lab.answer(sent) == ["first words"]
    until(lambda: used() > before, "processor time after the thaw")
    lab.inside("crowd", "kill $busy; wait $busy 2>/dev/null")


@needs("kernel:5.14")
def test_all_are_killed_at_once(lab):
    """Also those who left their parent, their session and their process group, and are deaf to signals."""
    deaf = "trap '' TERM INT HUP; sleep 1000 & sleep 1000 & wait"
    lab.inside("crowd", f'({deaf}) &\n(setsid sh -c "{deaf}" &)')
    procs = lab.cgroup_file("crowd", "cgroup.procs")
    until(lambda: len(procs.read_text().split()) >= 7, "all seven processes")
    members = [os.pidfd_open(int(pid)) for pid in procs.read_text().split()]
    (procs.parent / "cgroup.kill").write_text("1")
    for member in members:
        assert select.select([member], [], [], deadline(10))[0], "one is alive"
        os.close(member)
    assert lab.record(event="exited", workload="crowd")["signal"] == "SIGKILL"
