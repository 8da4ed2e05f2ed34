"""One cgroup on the real kernel: limits, readings, signals, freezing, killing, removing."""

import math
import os
import signal
from pathlib import Path

import pytest

from nsupervisor.cgroups import Cgroup, CgroupError, CgroupGoneError, Host, Tree
from nsupervisor.cgroups import cgroup as cgroup_module
from nsupervisor.cgroups.files import PAGE_SIZE
from nsupervisor.cgroups.limits import set_limit
from nsupervisor.config.model import Resources
from tests.cgroups.conftest import Programs, wait_until
from tests.descriptors import open_descriptors
from tests.needs import in_guest, needs

pytestmark = needs("root", "cgroup", "memory", "pids")

# bounded by pids.max; every child goes on forking
FORK_BOMB = "import os\nwhile True:\n try: os.fork()\n except OSError: pass\n"


def kill(cgroup: Cgroup) -> None:
    cgroup.kill()
    wait_until(lambda: not cgroup.is_populated())


# limits ------------------------------------------------------------------------------------------------------------


@needs("cpu", "cpuset")
def test_limits_are_in_force_and_read_back(tree: Tree) -> None:
    web = tree.make(
        "web",
        Resources(memory_max=64 << 20, pids_max=10, cpu_max=(50000, 100000), cpu_weight=200, cpuset_cpus="0"),
    )
    assert web.read_limits() == {"memory.max": 64 << 20, "pids.max": 10}
    assert web.read_cached("cpu.max") == {"quota": 50000, "period": 100000}
    assert web.read_cached("cpu.weight") == {"": 200}


def test_without_limits_there_is_none(tree: Tree) -> None:
    web = tree.make("web", Resources())
    assert web.read_limits() == {"memory.max": None, "pids.max": None}
    assert web.read_cached("pids.max") == {"": math.inf}


def test_sizes_are_rounded_to_pages_as_the_kernel_does(tree: Tree) -> None:
    web = tree.make("web", Resources(memory_max=100 * PAGE_SIZE + 1))
    assert web.read_limits()["memory.max"] == 100 * PAGE_SIZE


@needs("cpu")
@pytest.mark.parametrize("weight", [1, 50, 99, 100, 101, 10000])
def test_every_weight_reads_back(tree: Tree, weight: int) -> None:
    assert tree.make("web", Resources(cpu_weight=weight)).read_cached("cpu.weight") == {"": weight}


@needs("cgroup_v2")
def test_v2_has_high_and_group_kill(tree: Tree) -> None:
    web = tree.make("web", Resources(memory_high=32 << 20, memory_max=64 << 20, memory_oom_group=True))
    assert web.read_cached("memory.high") == {"": 32 << 20}
    assert web.read_cached("memory.oom.group") == {"": 1}


@needs("hybrid")
def test_hybrid_refuses_high(tree: Tree) -> None:
    with pytest.raises(CgroupError, match=r"cannot set memory\.high of web: needs cgroup v2"):
        tree.make("web", Resources(memory_high=32 << 20))
    assert not os.path.exists(f"{tree.path}/web")


@needs("hybrid")
def test_what_is_not_required_becomes_a_problem(tree: Tree) -> None:
    web = tree.make("web", Resources(required=False, memory_high=32 << 20, pids_max=7))
    assert [problem.key for problem in web.problems] == ["memory_high"]
    assert web.read_limits()["pids.max"] == 7


@needs("cpuset")
def test_cpus_that_do_not_exist_are_refused(tree: Tree) -> None:
    with pytest.raises(CgroupError, match=r"not all of the CPUs .4095. are there for it; write some of 0"):
        tree.make("web", Resources(cpuset_cpus="4095"))


@needs("cpuset")
def test_cpus_above_the_kernels_present_ones_are_not_quietly_replaced(tree: Tree) -> None:
    # v2 takes any CPU that could exist, and then lets the cgroup run on its parent's
    present = Path("/sys/devices/system/cpu/possible").read_text().strip().split("-")[-1]
    with pytest.raises(CgroupError, match=r"not all of the CPUs .* are there for it"):
        tree.make("web", Resources(cpuset_cpus=str(int(present) + 1)))


@needs("cpu")
def test_a_period_out_of_range_says_the_range(tree: Tree) -> None:
    with pytest.raises(CgroupError, match=r'cannot set cpu\.max of web to "1000 10": .*1000 to 1000000'):
        tree.make("web", Resources(cpu_max=(1000, 10)))


@needs("cpu", "cpuset")
def test_limits_change_while_it_runs(tree: Tree, programs: Programs) -> None:
    web = tree.make("web", Resources(memory_max=64 << 20, cpu_max=(50000, 100000), cpuset_cpus="0"))
    programs.start(web, "sleep", "1000")
    set_limit(web, "memory_max", 128 << 20)
    set_limit(web, "cpu_max", (20000, 50000))
    set_limit(web, "cpu_max", None)
    assert web.read_limits()["memory.max"] == 128 << 20
    assert web.read_cached("cpu.max")["quota"] == math.inf
    set_limit(web, "cpuset_cpus", None)
    kill(web)


@needs("cpu")
def test_the_cgroup_of_a_restarted_workload_is_the_same_and_loses_old_limits(tree: Tree) -> None:
    first = tree.make("web", Resources(pids_max=10, cpu_max=(50000, 100000)))
    inode = os.stat(first.path).st_ino
    first.close()
    second = tree.make("web", Resources(memory_max=64 << 20))
    assert os.stat(second.path).st_ino == inode
    assert second.read_limits() == {"memory.max": 64 << 20, "pids.max": None}
    assert second.read_cached("cpu.max")["quota"] == math.inf


# readings ----------------------------------------------------------------------------------------------------------


FILES = {
    "cgroup.events": {"populated", "frozen"},
    "memory.current": {""},
    "memory.max": {""},
    "memory.events": {"oom_kill", "max"},
    "memory.stat": {"anon", "file", "pgfault"},
    "pids.current": {""},
    "pids.max": {""},
    "pids.events": {"max"},
    "cpu.stat": {"usage_usec", "user_usec", "system_usec"},
}


@pytest.mark.parametrize("file", FILES)
def test_files_have_the_keys_of_v2_on_every_host(tree: Tree, file: str) -> None:
    assert FILES[file] <= tree.make("web", Resources()).read_cached(file).keys()


@needs("cpu")
def test_throttling_is_counted(tree: Tree) -> None:
    values = tree.make("web", Resources(cpu_max=(50000, 100000))).read_cached("cpu.stat")
    assert {"usage_usec", "nr_periods", "nr_throttled", "throttled_usec"} <= values.keys()


@needs("psi")
@pytest.mark.parametrize("file", ["memory.pressure", "cpu.pressure", "io.pressure"])
def test_pressure_is_there_on_every_host(tree: Tree, file: str) -> None:
    assert {"some avg10", "some total", "full avg10"} <= tree.make("web", Resources()).read_cached(file).keys()


def test_levels_follow_what_runs(tree: Tree, programs: Programs) -> None:
    web = tree.make("web", Resources())
    assert not web.is_populated()
    assert web.read_cached("pids.current") == {"": 0}
    for _ in range(3):
        programs.start(web, "sleep", "1000")
    wait_until(lambda: web.read_cached("pids.current")[""] == 3)
    assert web.is_populated()
    assert len(web.pids()) == 3
    assert web.read_cached("memory.current")[""] > 0
    kill(web)


def test_a_second_reading_opens_nothing(tree: Tree) -> None:
    web = tree.make("web", Resources())
    web.read_cached("memory.events")
    before = open_descriptors()
    web.read_cached("memory.events")
    assert open_descriptors() == before


def test_an_unknown_file_is_an_error_in_words(tree: Tree) -> None:
    web = tree.make("web", Resources())
    assert not web.supports("memory.nonsense")
    with pytest.raises(CgroupError, match=r"memory\.nonsense"):
        web.read_cached("memory.nonsense")
    with pytest.raises(CgroupError, match=r"rdma"):
        web.read_cached("rdma.current")


def test_a_removed_cgroup_says_so_and_is_empty(tree: Tree) -> None:
    web = tree.make("web", Resources())
    watched = Cgroup(tree.host, "web", web.path)
    watched.read_cached("cgroup.events")
    web.remove()
    assert not watched.is_populated()
    with pytest.raises(CgroupGoneError, match="has been removed"):
        watched.read_cached("cgroup.events")
    watched.close()
    with pytest.raises(CgroupGoneError):
        watched.read_cached("cgroup.events")


# processes ---------------------------------------------------------------------------------------------------------


def test_a_signal_reaches_every_process_also_nested_ones(tree: Tree, programs: Programs) -> None:
    web = tree.make("web", Resources())
    os.mkdir(f"{web.path}/nested")
    running = [programs.start(web, "sleep", "1000") for _ in range(2)]
    running.append(programs.start(Cgroup(tree.host, "nested", f"{web.path}/nested"), "sleep", "1000"))
    wait_until(lambda: [Path(f"/proc/{one.pid}/comm").read_text() for one in running] == ["sleep\n"] * 3)
    assert sorted(web.pids()) == sorted(one.pid for one in running)
    assert web.send_signal(signal.SIGTERM) == 3
    assert [one.wait() for one in running] == [-signal.SIGTERM] * 3
    assert web.send_signal(signal.SIGTERM) == 0


@pytest.mark.parametrize("how", ["kill", "_kill_by_freezing"])
def test_kill_empties_a_cgroup_with_a_fork_bomb_in_it(tree: Tree, programs: Programs, how: str) -> None:
    web = tree.make("web", Resources(pids_max=30))
    programs.python(web, FORK_BOMB)
    wait_until(lambda: web.read_cached("pids.current")[""] == 30)
    getattr(web, how)()
    wait_until(lambda: not web.is_populated())
    assert web.pids() == []
    assert not web.is_frozen()


def test_freeze_stops_and_thaw_lets_go_on(tree: Tree, programs: Programs) -> None:
    web = tree.make("web", Resources())
    programs.start(web, "sleep", "1000")
    web.freeze()
    wait_until(web.is_frozen)
    web.thaw()
    wait_until(lambda: not web.is_frozen())
    web.freeze()
    wait_until(web.is_frozen)
    kill(web)  # a frozen cgroup can be killed


# end ---------------------------------------------------------------------------------------------------------------


def test_remove_takes_what_the_workload_made_below(tree: Tree) -> None:
    web = tree.make("web", Resources())
    os.makedirs(f"{web.path}/a/b")
    os.makedirs(f"{web.path}/c")
    for file in web.join_files:
        os.makedirs(f"{os.path.dirname(file)}/a/b")
    web.remove()
    assert not os.path.exists(web.path)
    assert not any(os.path.exists(os.path.dirname(file)) for file in web.join_files)
    web.remove()  # again is fine


def test_remove_of_a_populated_cgroup_names_the_processes(tree: Tree, programs: Programs) -> None:
    web = tree.make("web", Resources())
    process = programs.start(web, "sleep", "1000")
    wait_until(web.is_populated)
    with pytest.raises(CgroupError, match=rf"still holds the processes {process.pid}; kill them first"):
        web.remove()
    kill(web)
    web.remove()


def test_remove_is_possible_as_soon_as_populated_is_0(tree: Tree, programs: Programs) -> None:
    def once() -> None:
        web = tree.make("web", Resources(pids_max=20))
        programs.python(web, FORK_BOMB)
        wait_until(lambda: web.read_cached("pids.current")[""] == 20)
        kill(web)
        web.remove()

    for _ in range(2 if in_guest() else 5):
        once()


def test_files_stay_open_only_until_remove(host: Host, tree: Tree) -> None:
    before = len(open_descriptors())
    for _ in range(20):
        web = tree.make("web", Resources(pids_max=5))
        for file in FILES:
            web.read_cached(file)
        web.remove()
    assert len(open_descriptors()) == before


def _open_files() -> list[str]:
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return sorted(os.readlink(link) for link in links if os.path.exists(link))


def test_what_is_read_now_and_then_stays_in_no_descriptor(tree: Tree) -> None:
    """With thousands of workloads the supervisor had no descriptors left: it kept the files of limits open."""
    web = tree.make("web", Resources())
    before = _open_files()
    web.read_limits()
    assert web.supports("cgroup.events")
    assert web.read_once("cgroup.events")["populated"] == 0
    assert _open_files() == before


def test_beyond_the_most_that_are_kept_open_files_are_still_read(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tree.make("first", Resources()), tree.make("second", Resources())
    monkeypatch.setattr(cgroup_module, "MAX_OPEN_FILES", Cgroup._open_files + 1)
    first.read_cached("cgroup.events")
    before = _open_files()
    assert second.read_cached("cgroup.events")["populated"] == 0
    assert _open_files() == before
    first.close()
    second.read_cached("cgroup.events")
    assert f"{second.path}/cgroup.events" in _open_files()
