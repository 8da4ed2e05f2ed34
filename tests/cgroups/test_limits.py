"""Each limit is set on the real kernel and read back, or refused in words; changes are all or nothing."""

import os
import subprocess
from collections.abc import Iterator
from decimal import Decimal
from math import inf
from pathlib import Path
from typing import Any

import attrs
import pytest

from nsupervisor.cgroups import Cgroup, CgroupError, Host, Tree
from nsupervisor.cgroups.devices import resolve_disk
from nsupervisor.cgroups.errors import UnsupportedValueError
from nsupervisor.cgroups.limits import change_limits, recreate_cgroup, set_limit
from nsupervisor.config.model import IoLatency, IoMax, RdmaMax, Resources
from nsupervisor.config.units import Percent
from tests.cgroups.conftest import Programs, wait_until
from tests.needs import needs, scratch_disk
from tests.timing import deadline

pytestmark = needs("root", "cgroup", "memory", "pids")

M = 1 << 20


def keys_refused(host: Host, **values: Any) -> dict[str, str]:
    return {problem.key: str(problem) for problem in host.check_resources(Resources(**values))}


# memory ------------------------------------------------------------------------------------------------------------


@needs("cgroup_v2")
def test_every_limit_of_memory_is_set_changed_and_lifted(tree: Tree) -> None:
    before = Resources(
        memory_min=1 * M, memory_low=2 * M, memory_high=30 * M, memory_max=40 * M, memory_swap_max=0,
        memory_oom_group=True,
    )  # fmt: skip
    web = tree.make("web", before)
    files = ("memory.min", "memory.low", "memory.high", "memory.max", "memory.swap.max", "memory.oom.group")
    assert [web.read_cached(file)[""] for file in files] == [1 * M, 2 * M, 30 * M, 40 * M, 0, 1]
    after = Resources(memory_high=50 * M, memory_max=60 * M, memory_swap_max=5 * M)
    change_limits(web, before, after)
    assert [web.read_cached(file)[""] for file in files] == [0, 0, 50 * M, 60 * M, 5 * M, 0]
    change_limits(web, after, Resources())
    assert [web.read_cached(file)[""] for file in files] == [0, 0, inf, inf, inf, 0]


@needs("hybrid")
def test_what_v1_has_no_equivalent_of_is_refused_with_the_way_out(host: Host, tree: Tree) -> None:
    refused = keys_refused(
        host, memory_min=1, memory_low=1, memory_high=1, memory_zswap_max=1, memory_oom_group=True,
        cpuset_cpus="0", cpuset_cpus_partition="root", io_latency=(IoLatency(device="/", target=5),),
        unified={"memory.swap.high": "5"},
    )  # fmt: skip
    assert set(refused) == {
        "memory_min", "memory_low", "memory_high", "memory_zswap_max", "memory_oom_group", "cpuset_cpus_partition",
        "io_latency", "unified.memory.swap.high",
    }  # fmt: skip
    assert all("systemd.unified_cgroup_hierarchy=1" in text for text in refused.values())
    with pytest.raises(CgroupError, match=r"cannot set memory\.swap\.high of web: .* on v1; boot"):
        tree.make("web", Resources(unified={"memory.swap.high": "5"}))


@needs("hybrid")
def test_swap_on_v1_is_what_is_above_memory_and_follows_it(host: Host, tree: Tree) -> None:
    given = Resources(memory_max=10 * M, memory_swap_max=5 * M)
    if problems := host.check_resources(given):
        pytest.skip(str(problems[0]))
    web = tree.make("web", given)
    (directory,) = [web.v1[one] for one in web.v1 if "memory" in one.controllers]
    both = Path(f"{directory}/memory.memsw.limit_in_bytes")

    def now() -> tuple[float, float, str]:
        return web.read_cached("memory.max")[""], web.read_cached("memory.swap.max")[""], both.read_text().strip()

    assert now() == (10 * M, 5 * M, str(15 * M))
    for after in (  # the kernel refuses memory above memory and swap, so that the order matters both ways
        Resources(memory_max=40 * M, memory_swap_max=5 * M),
        Resources(memory_max=20 * M, memory_swap_max=0),
        Resources(memory_max=4 * M, memory_swap_max=60 * M),
        Resources(memory_max=64 * M, memory_swap_max=1 * M),
    ):
        change_limits(web, given, after)
        assert now()[:2] == (after.memory_max, after.memory_swap_max)
        given = after
    change_limits(web, given, Resources())
    assert now()[:2] == (inf, inf)
    with pytest.raises(CgroupError, match=r"memory and swap together; set memory_max as well"):
        change_limits(web, Resources(), Resources(memory_swap_max=0))
    with pytest.raises(CgroupError, match=r"memory and swap together"):
        tree.make("other", Resources(memory_swap_max=0))


def test_percentages_are_of_what_the_host_has(tree: Tree) -> None:
    half = Percent(Decimal(50))
    web = tree.make("web", Resources(memory_max=half, pids_max=half))
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    all_memory = int(line.split()[1]) * 1024
    all_pids = min(int(Path(f"/proc/sys/kernel/{name}").read_text()) for name in ("pid_max", "threads-max"))
    limits = web.read_limits()
    assert 0 < limits["memory.max"] <= all_memory // 2
    assert 0 < limits["pids.max"] <= all_pids // 2
    if tree.host.mode == "unified":  # nothing around us in the virtual machine
        assert limits == {"memory.max": all_memory // 2 // 4096 * 4096, "pids.max": all_pids // 2}


@needs("cgroup_v2")
def test_percentages_are_of_the_smallest_limit_around(host: Host, tree: Tree) -> None:
    Path(f"{tree.path}/memory.max").write_text(str(100 * M))
    Path(f"{tree.path}/pids.max").write_text("50")
    around = host._replace(base=tree.path)
    half = Percent(Decimal(50))
    assert (around.resolve_percentage("memory_max", half), around.resolve_percentage("pids_max", half)) == (50 * M, 25)
    problems = around.check_resources(Resources(memory_high=half, memory_max=10 * M))
    assert [str(one) for one in problems] == [
        "memory_high: 50M is above memory_max (10M), so it would never be reached; write a size below it"
    ]


# cpu ---------------------------------------------------------------------------------------------------------------


@needs("cpu")
def test_idle_is_a_weight_and_can_be_taken_back(tree: Tree) -> None:
    web = tree.make("web", Resources(cpu_weight="idle"))
    idle = Path(f"{web.directory('cpu.weight')}/cpu.idle")
    assert idle.read_text() == "1\n"
    change_limits(web, Resources(cpu_weight="idle"), Resources(cpu_weight=300))
    assert (idle.read_text(), web.read_cached("cpu.weight")) == ("0\n", {"": 300})
    change_limits(web, Resources(cpu_weight=300), Resources(cpu_weight="idle"))
    change_limits(web, Resources(cpu_weight="idle"), Resources())
    assert (idle.read_text(), web.read_cached("cpu.weight")) == ("0\n", {"": 100})
    set_limit(web, "cpu_weight", "idle")
    web.close()
    assert tree.make("web", Resources()).read_cached("cpu.weight") == {"": 100}  # no longer configured


@needs("cpu")
def test_a_burst_follows_the_quota_up_and_down(tree: Tree) -> None:
    """The kernel refuses a quota below the burst in force, and a burst above the quota."""
    given = Resources(cpu_max=(50000, 100000), cpu_max_burst=40000)
    web = tree.make("web", given)
    for quota, burst in ((20000, 10000), (90000, 80000), (80000, 80000), (10000, None), (None, None)):
        after = Resources(cpu_max=(quota, 100000), cpu_max_burst=burst)
        change_limits(web, given, after)
        assert web.read_cached("cpu.max")["quota"] == (quota or inf)
        assert web.read_cached("cpu.max.burst")[""] == (burst or 0)
        given = after
    with pytest.raises(CgroupError, match=r"cpu.max.burst of web to 90000: more than the quota of cpu.max"):
        change_limits(web, given, Resources(cpu_max=(50000, 100000), cpu_max_burst=90000))
    assert (web.read_cached("cpu.max")["quota"], web.read_cached("cpu.max.burst")[""]) == (inf, 0)


@needs("cpuset")
def test_memory_nodes_are_set_and_unknown_ones_refused(tree: Tree, programs: Programs) -> None:
    web = tree.make("web", Resources(cpuset_mems="0"))
    process = programs.start(web, "sleep", "1000")
    wait_until(lambda: "Mems_allowed_list:\t0\n" in Path(f"/proc/{process.pid}/status").read_text())
    change_limits(web, Resources(cpuset_mems="0"), Resources())
    with pytest.raises(CgroupError, match=r"not all of the memory nodes .63. are there for it; write some of 0"):
        change_limits(web, Resources(), Resources(cpuset_mems="63"))


@needs("cgroup_v2", "cpuset", "kernel:6.7")
def test_a_partition_takes_its_cpus_away_from_the_others(tree: Tree) -> None:
    if (os.cpu_count() or 1) < 2:
        pytest.skip("needs two CPUs")
    other = tree.make("other", Resources())
    given = Resources(cpuset_cpus="1", cpuset_cpus_partition="root")
    web = tree.make("web", given)

    def others() -> str:
        return Path(f"{other.path}/cpuset.cpus.effective").read_text().strip()

    assert Path(f"{web.path}/cpuset.cpus.partition").read_text() == "root\n"
    assert "1" not in others().replace("-", ",").split(",")
    with pytest.raises(CgroupError, match=r"cannot set cpuset.cpus of second to 1: web has the CPUs 1 for itself"):
        tree.make("second", given)
    assert Path(f"{web.path}/cpuset.cpus.partition").read_text() == "root\n"
    change_limits(web, given, Resources(cpuset_cpus="1"))
    assert Path(f"{web.path}/cpuset.cpus.partition").read_text() == "member\n"
    assert others() == Path("/sys/devices/system/cpu/online").read_text().strip()


# disks -------------------------------------------------------------------------------------------------------------


def test_paths_without_a_disk_are_refused_in_words() -> None:
    for path, message in (
        ("/proc/self", "/proc/self is on the file system proc, which has no one disk behind it; write the disk's"),
        ("/dev/null", "/dev/null is a character device, not a disk; write a file or directory"),
        ("/nonexistent", "cannot look at /nonexistent: No such file or directory; write a path that is there"),
    ):
        with pytest.raises(UnsupportedValueError) as caught:
            resolve_disk(path)
        assert str(caught.value).startswith(message)


def test_a_partition_s_file_is_on_the_whole_disk(tmp_path: Path) -> None:
    number = os.stat(tmp_path).st_dev
    name = f"{os.major(number)}:{os.minor(number)}"
    partition = tmp_path / "devices" / "sda" / "sda1"
    partition.mkdir(parents=True)
    (partition / "partition").write_text("1\n")
    (partition.parent / "dev").write_text("8:0\n")
    (tmp_path / "dev" / "block").mkdir(parents=True)
    (tmp_path / "dev" / "block" / name).symlink_to(partition)
    assert resolve_disk(str(tmp_path), sysfs=str(tmp_path)) == "8:0"


@pytest.fixture
def device() -> Iterator[str]:
    """A disk that may be limited: the scratch disk, or an unused loop device."""
    path = scratch_disk() or next((str(one) for one in sorted(Path("/dev").glob("loop[0-9]"), reverse=True)), "")
    if not path or not Path(path).is_block_device():
        pytest.skip("no block device to limit")
    return path


@needs("io")
def test_a_path_without_a_disk_is_a_problem_of_its_key(host: Host, tree: Tree) -> None:
    given = Resources(io_max=(IoMax(device="/proc", rbps=M),))
    (problem,) = host.check_resources(given)
    assert str(problem).startswith("io_max: /proc is on the file system proc, which has no one disk behind it; write ")
    with pytest.raises(CgroupError, match=r"cannot set io.max of web: /proc is on the file system proc"):
        tree.make("web", given)
    lenient = attrs.evolve(given, required=False)
    assert [one.key for one in tree.make("web", lenient).problems] == ["io_max"]
    of_profile = attrs.evolve(given, of_profile=frozenset({"io_max"}))
    assert [one.key for one in tree.make("web", of_profile).problems] == ["io_max"]


@needs("io")
def test_speeds_of_disks_are_set_changed_and_lifted(tree: Tree, device: str) -> None:
    name = resolve_disk(device)
    given = Resources(io_max=(IoMax(device=device, rbps=M, wiops=50),))
    web = tree.make("web", given)
    assert web.read_cached("io.max") == {
        f"{name} rbps": M,
        f"{name} wbps": inf,
        f"{name} riops": inf,
        f"{name} wiops": 50,
    }
    after = Resources(io_max=(IoMax(device=device, rbps=2 * M, wbps=3 * M),))
    change_limits(web, given, after)
    assert web.read_cached("io.max") == {
        f"{name} rbps": 2 * M, f"{name} wbps": 3 * M, f"{name} riops": inf, f"{name} wiops": inf
    }  # fmt: skip
    change_limits(web, after, Resources())
    assert set(web.read_cached("io.max").values()) <= {inf}


@needs("io", "cgroup_v2")
def test_a_latency_of_disks_is_set_and_lifted_where_the_kernel_has_it(tree: Tree, device: str) -> None:
    given = Resources(io_latency=(IoLatency(device=device, target=5000),))
    if not Path(f"{tree.make('probe', Resources()).path}/io.latency").exists():  # CONFIG_BLK_CGROUP_IOLATENCY
        with pytest.raises(CgroupError, match=r"io\.latency"):
            tree.make("web", given)
        return
    web = tree.make("web", given)
    assert web.read_cached("io.latency") == {f"{resolve_disk(device)} target": 5000}
    change_limits(web, given, Resources())
    assert web.read_cached("io.latency") == {}


READ = """
import os, sys, time, mmap
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
buffer = mmap.mmap(-1, 64 << 10)
start = time.monotonic()
for number in range(24):
    os.preadv(fd, [buffer], number << 16)
print(time.monotonic() - start)
"""


@needs("io", "scratch_disk")
def test_a_slow_disk_is_slow(tree: Tree, programs: Programs, tmp_path: Path) -> None:
    program = tmp_path / "read.py"
    program.write_text(READ)

    def seconds(cgroup: Cgroup) -> float:
        process = programs.start(cgroup, "python3", "-I", "-S", str(program), scratch_disk())
        return float(process.communicate(timeout=deadline(60))[0])

    # 1.5 MB at 1 MB a second; the kernel lets a tenth of a second's worth pass at once
    slow = tree.make("slow", Resources(io_max=(IoMax(device=scratch_disk(), rbps=M),)))
    assert seconds(slow) > 1.2
    assert seconds(tree.make("free", Resources())) < 1.2


@pytest.fixture
def scheduler(device: str) -> Iterator[Path]:
    """BFQ for the device, as long as the test runs."""
    file = Path("/sys/block") / Path(device).name / "queue" / "scheduler"
    before = file.read_text().split("[")[1].split("]")[0]
    try:
        file.write_text("bfq")
    except OSError as error:
        pytest.skip(f"cannot use BFQ here: {error.strerror}")
    yield file
    file.write_text(before)


@needs("io")
def test_weights_of_disks_go_to_who_weighs(tree: Tree, device: str, scheduler: Path) -> None:
    if tree.host.check_key("io_weight"):
        pytest.skip(str(tree.host.check_key("io_weight")))
    given = Resources(io_weight={"default": 300, device: 50})
    web = tree.make("web", given)
    assert web.read_cached("io.weight") == {"default": 300, resolve_disk(device): 50}
    change_limits(web, given, Resources(io_weight={"default": 40}))
    assert web.read_cached("io.weight") == {"default": 40}
    with pytest.raises(CgroupError, match="takes weights up to 1000; write smaller ones"):
        change_limits(web, Resources(), Resources(io_weight={"default": 2000}))


@needs("io")
def test_weights_that_nobody_weighs_are_refused(host: Host) -> None:
    if any("[bfq]" in file.read_text() for file in Path("/sys/block").glob("*/queue/scheduler")):
        pytest.skip("a disk of this host has the scheduler BFQ")
    assert (
        "no disk of this host is shared by weight; choose" in keys_refused(host, io_weight={"default": 9})["io_weight"]
    )


# the rest ----------------------------------------------------------------------------------------------------------


@needs("hugetlb")
def test_huge_pages_are_limited(host: Host, tree: Tree) -> None:
    given = Resources(hugetlb={"2MB_max": 4 * M})
    web = tree.make("web", given)
    assert web.read_cached("hugetlb.2MB.max") == {"": 4 * M}
    after = Resources(hugetlb={"2MB_max": 5 * M})  # rounded down to whole pages
    change_limits(web, given, after)
    assert web.read_cached("hugetlb.2MB.max") == {"": 4 * M}
    change_limits(web, after, Resources())
    assert web.read_cached("hugetlb.2MB.max") == {"": inf}
    assert "no huge pages of this size" in keys_refused(host, hugetlb={"32MB_max": 1}).get("hugetlb_32MB_max", "")


@needs("cgroup_v2")
def test_what_the_kernel_does_not_know_is_refused(tree: Tree) -> None:
    for resources, message in (
        (Resources(misc_max={"nonsense": 1}), r"cannot set misc\.max of web to .nonsense 1.: the kernel has no such"),
        (
            Resources(rdma_max=(RdmaMax(device="x0", hca_handle=1),)),
            r"cannot set rdma\.max of web to .*: the kernel has",
        ),
        (Resources(unified={"memory.nonsense": "1"}), r"this kernel has no memory\.nonsense"),
    ):
        with pytest.raises(CgroupError, match=message):
            tree.make("web", resources)


@needs("cgroup_v2")
def test_raw_files_are_written_as_they_are_and_put_back(tree: Tree) -> None:
    web = tree.make("web", Resources(unified={"memory.swap.high": str(8 * M), "cgroup.max.descendants": "5"}))
    high, below = Path(f"{web.path}/memory.swap.high"), Path(f"{web.path}/cgroup.max.descendants")
    assert (high.read_text(), below.read_text()) == (f"{8 * M}\n", "5\n")
    before = Resources(unified={"memory.swap.high": str(8 * M)})
    with pytest.raises(CgroupError, match=r"memory\.nonsense"):
        change_limits(web, before, Resources(unified={"memory.swap.high": "4096", "memory.nonsense": "1"}))
    assert high.read_text() == f"{8 * M}\n"
    set_limit(web, "unified.memory.swap.high", None)
    assert high.read_text() == "max\n"
    with pytest.raises(CgroupError, match=r"cannot set cpu\.weight\.nice of web to 100: "):
        set_limit(web, "unified.cpu.weight.nice", "100")


@needs("cpu")
def test_a_change_is_all_or_nothing(tree: Tree) -> None:
    given = Resources(memory_max=64 * M, pids_max=10)
    web = tree.make("web", given)
    with pytest.raises(CgroupError, match=r"cannot set cpu\.max of web to .*: out of the kernel's range"):
        change_limits(web, given, Resources(memory_max=32 * M, pids_max=20, cpu_max=(1000, 10)))
    assert web.read_limits() == {"memory.max": 64 * M, "pids.max": 10}
    change_limits(web, given, Resources(pids_max=20))
    assert web.read_limits() == {"memory.max": None, "pids.max": 20}


def test_a_cgroup_made_anew_has_the_limits_it_is_given(tree: Tree) -> None:
    web = tree.make("web", Resources(pids_max=10))
    change_limits(web, Resources(pids_max=10), Resources(pids_max=20, memory_max=64 * M))
    recreate_cgroup(web, Resources(pids_max=20, memory_max=64 * M))
    assert web.read_limits() == {"memory.max": 64 * M, "pids.max": 20}


def test_a_killed_cgroup_counts_as_killed_until_it_has_its_limits_again(tree: Tree) -> None:
    web = tree.make("web", Resources(pids_max=10))
    web.kill()
    with pytest.raises(CgroupError, match=r"cannot set cpuset\.cpus of web"):
        recreate_cgroup(web, Resources(pids_max=10, cpuset_cpus="4000"))  # more CPUs than any host of the tests has
    assert web.was_killed
    recreate_cgroup(web, Resources(pids_max=10))
    assert not web.was_killed
    assert web.read_limits()["pids.max"] == 10


@pytest.mark.fault("B4")
@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("below/", ""),
        ("below/further/", ""),
        pytest.param("v1/below/", "", marks=needs("hybrid")),
        ("cgroup.freeze", "1"),
        # Among domain controllers the kernel refuses it.
        pytest.param("cgroup.type", "threaded", marks=needs("hybrid")),
        pytest.param("cgroup.subtree_control", "+pids", marks=needs("cgroup_v2")),
    ],
)
def test_a_cgroup_that_a_program_has_changed_is_made_anew(tree: Tree, programs: Programs, file: str, text: str) -> None:
    """Each later start was refused (EBUSY), or the program was frozen."""
    web = tree.make("web", Resources(pids_max=10))
    web.begin_use()
    assert not web.has_leftovers()
    for directory in web.v1.values() if file.startswith("v1/") else [web.path]:
        if text:
            Path(directory, file).write_text(text)
        else:
            Path(directory, file.removeprefix("v1/")).mkdir(parents=True)
    assert web.has_leftovers()
    recreate_cgroup(web, Resources(pids_max=10))
    assert not web.has_leftovers()
    assert web.read_limits()["pids.max"] == 10
    programs.start(web, "true").wait()


@pytest.mark.fault("B4")
def test_a_cgroup_that_has_been_removed_is_made_anew(tree: Tree) -> None:
    web = tree.make("web", Resources())
    web.begin_use()
    os.rmdir(web.path)
    assert web.has_leftovers()
    recreate_cgroup(web, Resources())
    assert not web.has_leftovers()


@needs("hybrid")
def test_memory_in_use_is_not_taken_away_on_v1(tree: Tree, programs: Programs) -> None:
    web = tree.make("web", Resources())
    programs.python(web, f"import time\nkept = b'x' * {64 * M}\ntime.sleep(1000)")
    wait_until(lambda: web.read_cached("memory.current")[""] > 64 * M)
    with pytest.raises(
        CgroupError, match=r"memory\.max of web to 8M: more than that is in use and cannot be reclaimed"
    ):
        change_limits(web, Resources(), Resources(memory_max=8 * M))
    assert web.read_limits()["memory.max"] is None


SWAP = """
import time
kept = bytearray(96 << 20)
for place in range(0, len(kept), 4096):
    kept[place] = place >> 12 & 255
print("done", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def swap() -> Iterator[None]:
    subprocess.run(["mkswap", scratch_disk()], check=True, capture_output=True)
    subprocess.run(["swapon", scratch_disk()], check=True)
    yield
    subprocess.run(["swapoff", scratch_disk()], check=True)
    subprocess.run(["wipefs", "-aq", scratch_disk()], check=False)


@needs("cgroup_v2", "scratch_disk", "program:mkswap")
def test_swap_is_what_makes_a_limit_of_memory_bearable(tree: Tree, programs: Programs, swap: None) -> None:
    with_swap = tree.make("with", Resources(memory_max=64 * M))
    without = tree.make("without", Resources(memory_max=64 * M, memory_swap_max=0))
    first, second = programs.python(with_swap, SWAP), programs.python(without, SWAP)
    assert first.stdout.readline() == "done\n"
    assert with_swap.read_cached("memory.swap.current")[""] > 16 * M
    assert second.wait(deadline(30)) == -9
    assert without.read_cached("memory.events")["oom_kill"] == 1
    first.kill()
    first.wait()
