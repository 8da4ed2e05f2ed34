"""Groups: cgroups around those of workloads, with limits that count for all of them together."""

import os

import pytest

from nsupervisor.cgroups import Cgroup, CgroupError, Host, Tree, directories
from nsupervisor.cgroups.limits import apply_limits, change_limits, set_limit
from nsupervisor.config.model import Resources
from nsupervisor.config.units import Percent
from tests.cgroups.conftest import Programs, wait_until
from tests.needs import needs

pytestmark = needs("root", "cgroup", "memory", "pids")

MIB = 1 << 20


def groups(tree: Tree) -> tuple[Cgroup, Cgroup]:
    outer = tree.make_group("outer", Resources(memory_max=512 * MIB, pids_max=40))
    return outer, tree.make_group("inner", Resources(pids_max=8), [outer])


@pytest.mark.system
def test_members_share_the_limits_of_the_groups_around_them(tree: Tree, programs: Programs) -> None:
    outer, inner = groups(tree)
    one, other = (tree.make(name, Resources(), [outer, inner]) for name in ("one", "other"))
    assert os.path.relpath(one.path, tree.path) == "group.outer/group.inner/one"
    assert (outer.read_limits()["memory.max"], inner.read_limits()["pids.max"], one.read_limits()["pids.max"]) == (
        512 * MIB,
        8,
        None,
    )
    code = "import os, time; [os.fork() or time.sleep(1000) for _ in range(5)]; time.sleep(1000)"
    programs.python(one, code)
    wait_until(lambda: inner.read_cached("pids.current")[""] == 6)
    programs.python(other, code)
    wait_until(
        lambda: inner.read_cached("pids.events")["max"] >= 1
    )  # 6 and 2 make 8: the third fork of the other is refused
    assert len(one.pids()) == 6
    assert outer.read_cached("pids.current") == inner.read_cached("pids.current")
    assert outer.read_cached("memory.current")[""] >= one.read_cached("memory.current")[""]


def test_a_groups_events_tell_of_a_member_that_ran_out_of_memory(tree: Tree, programs: Programs) -> None:
    outer = tree.make_group("outer", Resources(memory_max=32 * MIB))
    member = tree.make("member", Resources(), [outer])
    programs.python(member, "x = bytearray(200 << 20)").wait()
    wait_until(lambda: outer.read_cached("memory.events")["oom_kill"] >= 1)


def test_a_percentage_is_of_the_smallest_limit_around(tree: Tree, host: Host) -> None:
    outer, inner = groups(tree)
    half = Resources(memory_max=Percent(50), pids_max=Percent(50))
    assert tree.make("outside", half).read_limits()["pids.max"] == host.resolve_percentage("pids_max", Percent(50))
    assert tree.make("in-outer", half, [outer]).read_limits() == {"memory.max": 256 * MIB, "pids.max": 20}
    member = tree.make("in-both", half, [outer, inner])
    assert member.read_limits() == {"memory.max": 256 * MIB, "pids.max": 4}
    set_limit(inner, "pids_max", 6)
    apply_limits(member, half)
    assert member.read_limits()["pids.max"] == 3


def test_what_percentages_of_groups_will_be_is_known_before_there_are_any(host: Host) -> None:
    around = host.group_limits([Resources(memory_max=512 * MIB), Resources(memory_max=Percent(50))])
    assert around == {"memory": (512 * MIB, 256 * MIB)}
    # Half of the group's is less than memory_max; half of the host's would be more, and refused.
    assert host.check_resources(Resources(memory_low=Percent(50), memory_max=300 * MIB), around) == [
        problem for problem in [host.check_key("memory_low")] if problem
    ]


@needs("cpu")
def test_a_limit_given_to_a_group_at_run_time_counts_for_members_that_run(tree: Tree, programs: Programs) -> None:
    outer, inner = groups(tree)
    member = tree.make("member", Resources(), [outer, inner])
    process = programs.start(member, "sleep", "1000")
    wait_until(lambda: member.pids() == [process.pid])
    change_limits(outer, Resources(), Resources(cpu_max=(50_000, 100_000)))
    assert outer.read_cached("cpu.max") == {"quota": 50_000, "period": 100_000}
    late = tree.make("late", Resources(), [outer, inner])
    for hierarchy, directory in outer.v1.items():
        if "cpu" in hierarchy.controllers:  # on v2 whoever is below is under it anyway
            assert late.v1[hierarchy].startswith(f"{directory}/")
            with open(f"{member.v1[hierarchy]}/cgroup.procs") as file:
                assert file.read().split() == [str(process.pid)]


@needs("cpuset")
def test_a_group_that_is_pinned_to_a_cpu_pins_its_members(tree: Tree, programs: Programs) -> None:
    outer = tree.make_group("outer", Resources(cpuset_cpus="0"))
    member = tree.make("member", Resources(), [outer])
    process = programs.start(member, "sleep", "1000")
    wait_until(lambda: member.pids() == [process.pid])
    # It is listed as soon as it belongs there, and pinned a moment after.
    wait_until(lambda: os.sched_getaffinity(process.pid) == {0})


@pytest.mark.system
@needs("cgroup_v2")
def test_controllers_are_handed_on_level_by_level(tree: Tree) -> None:
    outer, inner = groups(tree)

    def handed_on(directory: str) -> set[str]:
        with open(f"{directory}/cgroup.subtree_control") as file:
            return set(file.read().split())

    assert handed_on(tree.path) == handed_on(outer.path) == handed_on(inner.path) >= {"memory", "pids"}


@needs("cgroup_v2")
def test_a_process_in_a_group_itself_is_told(tree: Tree, programs: Programs) -> None:
    os.mkdir(f"{tree.path}/group.mine")
    process = programs.start(Cgroup(tree.host, "mine", f"{tree.path}/group.mine"), "sleep", "1000")
    wait_until(lambda: directories.list_own_processes(f"{tree.path}/group.mine") == [process.pid])
    with pytest.raises(CgroupError, match=f"group/mine .*{process.pid} are in it, where only cgroups may be"):
        tree.make_group("mine", Resources())


def test_close_removes_what_is_empty_in_a_group_and_says_what_is_not(host: Host, programs: Programs) -> None:
    tree = Tree.create(host, f"nsupervisor-test-{os.getpid()}-groups")
    try:
        outer, inner = groups(tree)
        busy = tree.make("busy", Resources(), [outer, inner])
        empty = tree.make("empty", Resources(cpu_weight=50), [outer])
        process = programs.start(busy, "sleep", "1000")
        wait_until(busy.is_populated)
        with pytest.raises(CgroupError, match=str(process.pid)):
            tree.close()
        assert os.path.exists(busy.path)
        assert not os.path.exists(empty.path)
    finally:
        busy.kill()
        wait_until(lambda: not busy.is_populated())
        tree.close()
    assert not os.path.exists(tree.path)


def test_what_was_left_of_groups_is_removed_and_what_runs_is_adopted(
    host: Host, tree: Tree, programs: Programs
) -> None:
    outer, inner = groups(tree)
    path = tree.make("web", Resources(), [outer, inner]).path
    Tree.create(host, tree.name)
    assert not os.path.exists(outer.path)
    outer, inner = groups(tree)
    web = tree.make("web", Resources(), [outer, inner])
    process = programs.start(web, "sleep", "1000")
    wait_until(web.is_populated)
    successor = Tree.create(Host.discover(), tree.name, adopt=True)
    outer, inner = groups(successor)
    again = successor.make("web", Resources(), [outer, inner])
    assert (again.path, again.pids()) == (path, [process.pid])


def test_the_host_reads_beside_every_cgroup(tree: Tree) -> None:
    web = tree.make("web", Resources())
    memory = web.read_cached("host.meminfo")
    assert memory["MemTotal"] >= memory["MemAvailable"] > MIB
    if os.path.exists("/proc/pressure/memory"):
        assert web.read_cached("host.memory.pressure")["some avg10"] >= 0
    assert tree.root().read_cached("memory.current")[""] >= 0


@pytest.mark.system
def test_programs_of_the_service_have_a_cgroup_that_is_no_instance(tree: Tree, programs: Programs) -> None:
    helper = tree.make_helper("plugins", Resources(memory_max=64 * MIB, pids_max=4))
    limits = helper.read_limits()
    assert (limits["memory.max"], limits["pids.max"]) == (64 * MIB, 4)
    assert tree.list_instances() == {}
    programs.python(helper, "import time; time.sleep(1000)")
    again = tree.make_helper("plugins", Resources(memory_max=64 * MIB, pids_max=4))
    wait_until(lambda: len(again.pids()) == 1)
    again.kill()
    wait_until(lambda: not again.pids())
    again.remove()
    assert not os.path.exists(helper.path)
