"""What a host offers and what it cannot do, in words; on directories that look like other hosts' cgroups."""

import os
from pathlib import Path

import attrs
import pytest

from nsupervisor.cgroups import CgroupError, Host, Tree
from nsupervisor.cgroups.host import DELEGATE_REMEDY, delegate_remedy
from nsupervisor.config.model import Resources
from tests.needs import needs

ALL = Resources(
    memory_max=1 << 30,
    memory_high=1 << 29,
    memory_oom_group=True,
    pids_max=10,
    cpu_max=(50000, 100000),
    cpu_weight=50,
    cpuset_cpus="0",
)


@attrs.define
class Pretend:
    """Directories and files as another host has them."""

    top: Path
    mounts: list[str] = attrs.field(factory=list)
    memberships: list[str] = attrs.field(factory=list)

    def v2(self, own: str = "/", controllers: str = "cpuset cpu io memory pids", options: str = "rw") -> Path:
        """A cgroup2 mount with the own cgroup in it; not the real root, which has no cgroup.type."""
        mount = self.top / "v2"
        directory = mount / own.strip("/")
        directory.mkdir(parents=True)
        for path in {directory, mount, directory.parent} - {self.top}:
            (path / "cgroup.controllers").write_text(controllers + "\n")
            (path / "cgroup.type").write_text("domain\n")
            (path / "cgroup.procs").write_text("")
        (directory / "cgroup.procs").write_text(f"{os.getpid()}\n")
        self.mounts.append(f"31 24 0:27 / {mount} {options} - cgroup2 cgroup2 rw")
        self.memberships.append(f"0::{own}")
        return directory

    def v1(self, controllers: str, own: str = "/") -> Path:
        mount = self.top / controllers
        directory = mount / own.strip("/")
        directory.mkdir(parents=True)
        self.mounts.append(f"40 24 0:30 / {mount} rw - cgroup cgroup rw,{controllers}")
        self.memberships.append(f"{len(self.memberships) + 1}:{controllers}:{own}")
        return directory

    def discover(self) -> Host:
        (self.top / "mountinfo").write_text("\n".join(self.mounts) + "\n")
        (self.top / "cgroup").write_text("\n".join(self.memberships) + "\n")
        return Host.discover(str(self.top / "mountinfo"), str(self.top / "cgroup"))


@pytest.fixture
def pretend(tmp_path: Path) -> Pretend:
    return Pretend(tmp_path)


def test_a_delegated_service_on_v2_can_do_everything(pretend: Pretend) -> None:
    own = pretend.v2("/system.slice/nsupervisor.service")
    host = pretend.discover()
    assert (host.mode, host.base, host.at_root) == ("unified", str(own), False)
    assert sorted(host.controllers) == ["cpu", "cpuset", "io", "memory", "pids"]
    assert host.check_resources(ALL) == []


def test_in_the_leaf_called_supervisor_its_parent_is_the_base(pretend: Pretend) -> None:
    own = pretend.v2("/system.slice/nsupervisor.service/supervisor")
    assert pretend.discover().base == str(own.parent)


def test_a_controller_that_is_not_delegated_says_how_to_get_it(pretend: Pretend) -> None:
    pretend.v2("/user.slice/app.scope", controllers="memory pids")
    (problem,) = pretend.discover().check_resources(Resources(memory_max=1 << 30, cpu_weight=50))
    assert problem.key == "cpu_weight"
    assert "cpu is not delegated" in problem.reason
    assert "memory, pids" in problem.reason
    assert problem.remedy == DELEGATE_REMEDY


def test_other_processes_in_the_own_cgroup_are_named(pretend: Pretend) -> None:
    own = pretend.v2("/user.slice/session-3.scope")
    (own / "cgroup.procs").write_text(f"1\n{os.getpid()}\n")
    problem = pretend.discover().check_resources(Resources(memory_max=1 << 30))[0]
    assert f"the cgroup {own} also holds other processes (1 (" in problem.reason
    assert problem.remedy == DELEGATE_REMEDY


@pytest.mark.parametrize("mode", ["ro,nosuid", "rw"])
def test_a_read_only_tree_as_in_unprivileged_containers_is_a_problem(pretend: Pretend, mode: str) -> None:
    pretend.v2("/", options=mode)
    problems = pretend.discover().check_resources(Resources(pids_max=5))
    assert [problem.key for problem in problems] == (["pids_max"] if mode != "rw" else [])
    assert all("mounted read-only" in problem.reason for problem in problems)


def test_hybrid_hosts_have_no_honest_equivalent_of_two_keys(pretend: Pretend) -> None:
    pretend.v2(controllers="")
    for name in ("memory", "pids", "cpu,cpuacct", "cpuset"):
        pretend.v1(name)
    host = pretend.discover()
    assert host.mode == "hybrid"
    high, group = host.check_resources(ALL)
    assert (high.key, group.key) == ("memory_high", "memory_oom_group")
    assert high.reason == "needs cgroup v2; this host has memory on v1"
    assert "memory_max" in high.remedy
    assert "oom_kill" in group.remedy


def test_a_controller_mounted_nowhere_says_how_to_mount_it(pretend: Pretend) -> None:
    pretend.v2(controllers="")
    pretend.v1("memory")
    (problem,) = pretend.discover().check_resources(Resources(pids_max=5))
    assert "neither" in problem.reason
    assert "mount -t cgroup -o pids" in problem.remedy


def test_a_controller_may_be_on_v2_while_others_are_on_v1(pretend: Pretend) -> None:
    pretend.v2(controllers="memory")
    pretend.v1("pids")
    host = pretend.discover()
    assert {name: one.hierarchy.version for name, one in host.controllers.items()} == {"memory": 2, "pids": 1}
    assert host.check_resources(Resources(memory_high=1 << 20, pids_max=5)) == []


@pytest.mark.parametrize(
    ("version", "cpus", "fits"), [(1, "1", True), (1, "1-2", False), (2, "1-2", True), (2, "99", False)]
)
def test_cpus_that_are_not_there_are_a_problem_before_anything_starts(
    pretend: Pretend, version: int, cpus: str, fits: bool
) -> None:
    own = pretend.v2("/app", controllers="cpuset" if version == 2 else "")
    (own / "cpuset.cpus.effective").write_text("0-1\n")
    if version == 1:
        (pretend.v1("cpuset") / "cpuset.cpus").write_text("0-1\n")
    problems = pretend.discover().check_resources(Resources(cpuset_cpus=cpus))
    told = f'cpuset_cpus: not all of the CPUs "{cpus}" are there for it; write some of 0-1'
    assert [str(problem) for problem in problems] == ([] if fits else [told])


def test_v1_alone_is_refused_with_what_to_do(pretend: Pretend) -> None:
    pretend.v1("memory")
    host = pretend.discover()
    assert host.mode == "legacy"
    (problem,) = host.check_resources(Resources(memory_max=1 << 30))
    assert "mount -t cgroup2" in problem.remedy
    with pytest.raises(CgroupError, match="mount -t cgroup2"):
        Tree.create(host, "anything")


def test_an_own_cgroup_that_was_removed_is_said_so(pretend: Pretend) -> None:
    pretend.v2("/gone (deleted)")
    with pytest.raises(CgroupError, match="has been removed"):
        pretend.discover()


def test_a_threaded_cgroup_cannot_hand_out_controllers(pretend: Pretend) -> None:
    own = pretend.v2("/threads")
    (own / "cgroup.type").write_text("threaded\n")
    assert "not a domain cgroup" in pretend.discover().check_resources(Resources(memory_max=1 << 30))[0].reason


def test_problems_read_as_sentences(pretend: Pretend) -> None:
    pretend.v2("/a", controllers="")
    (problem,) = pretend.discover().check_resources(Resources(pids_max=5))
    assert str(problem) == f"pids_max: {problem.reason}; {problem.remedy}"


def test_nothing_set_is_no_problem_anywhere(pretend: Pretend) -> None:
    pretend.v1("memory")
    assert pretend.discover().check_resources(Resources()) == []


@needs("cgroup", "memory", "pids")
def test_this_host_limits_memory_and_processes(host: Host) -> None:
    assert host.check_resources(Resources(memory_max=1 << 30, pids_max=5)) == []
    assert host.mode in ("unified", "hybrid")


@needs("hybrid")
def test_a_controller_that_the_kernel_lacks_is_not_to_be_mounted():
    """`doctor` advised to mount as v1 what the kernel does not have."""
    built_in = [line.split()[0] for line in Path("/proc/cgroups").read_text().splitlines()[1:]]
    host = Host.discover()._replace(controllers={})
    for name in ("misc", "rdma", "pids"):
        assert ("mount it" in str(host.check_key(f"{name}_max"))) == (name in built_in)


@pytest.mark.fault("D23")
def test_a_host_without_systemd_was_advised_to_use_it() -> None:
    assert "systemd-run --scope -p Delegate=yes" in delegate_remedy(has_systemd=True)
    assert delegate_remedy(has_systemd=False) == (
        "run it in a cgroup of its own that is delegated to it: as root, make one in each hierarchy, give it to this "
        "user (chown -R), and start the service in it; or be the first process of a container"
    )
