"""The supervisor's subtree: made, refused, adopted, removed; and its own place in a delegated cgroup."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsupervisor.cgroups import Cgroup, CgroupError, Host, Tree
from nsupervisor.cgroups.host import DELEGATE_REMEDY
from nsupervisor.cgroups.limits import set_limit
from nsupervisor.config.model import Resources
from tests.cgroups.conftest import JOIN, Programs, wait_until
from tests.needs import NOBODY, ROOT, needs
from tests.timing import deadline

pytestmark = needs("root", "cgroup", "memory", "pids")


def test_an_empty_left_over_is_made_anew(host: Host, tree: Tree) -> None:
    tree.make("web", Resources(pids_max=5)).close()
    Tree.create(host, tree.name)
    assert not os.path.exists(f"{tree.path}/web")
    assert os.path.exists(tree.path)


def test_a_populated_tree_is_somebody_elses_and_refused(host: Host, tree: Tree, programs: Programs) -> None:
    web = tree.make("web", Resources())
    process = programs.start(web, "sleep", "1000")
    wait_until(web.is_populated)
    with pytest.raises(CgroupError, match=f"in use by another supervisor .*{process.pid}.*another name"):
        Tree.create(host, tree.name)
    assert web.is_populated()


def test_a_populated_tree_of_ours_is_adopted_with_its_workloads(host: Host, tree: Tree, programs: Programs) -> None:
    """After the supervisor was killed, its successor goes on with what runs."""
    tree.make("web", Resources(memory_max=64 << 20)).close()
    process = programs.start(Cgroup(host, "web", f"{tree.path}/web"), "sleep", "1000")
    successor = Tree.create(Host.discover(), tree.name, adopt=True)
    web = successor.make("web", Resources(memory_max=64 << 20))
    wait_until(lambda: web.pids() == [process.pid])
    assert web.read_limits()["memory.max"] == 64 << 20
    web.close()


def test_close_says_what_still_runs_and_can_be_called_again(host: Host, programs: Programs) -> None:
    tree = Tree.create(host, f"nsupervisor-test-{os.getpid()}-close")
    try:
        empty, busy = tree.make("empty", Resources()), tree.make("busy", Resources())
        process = programs.start(busy, "sleep", "1000")
        wait_until(busy.is_populated)
        with pytest.raises(CgroupError, match=str(process.pid)):
            tree.close()
        assert not os.path.exists(empty.path)
    finally:
        busy.kill()
        wait_until(lambda: not busy.is_populated())
        tree.close()
    assert not os.path.exists(tree.path)


def test_only_a_new_cgroup_is_known_to_have_counted_nothing(host: Host, tree: Tree) -> None:
    web = tree.make("web", Resources(memory_max=64 << 20, cpu_weight=10))
    assert [web.begin_use(), web.begin_use()] == [True, False]
    assert not tree.make("web", Resources(memory_max=64 << 20, cpu_weight=10)).is_unused
    db = tree.make("db", Resources())
    os.rmdir(db.path)
    # A directory of another hierarchy may be left, and have counted something.
    assert tree.make("db", Resources()).is_unused == (not db.v1)


def test_a_failed_make_leaves_nothing(tree: Tree) -> None:
    with pytest.raises(CgroupError, match="cannot set"):
        tree.make("web", Resources(pids_max=-5))
    assert os.listdir(tree.path).count("web") == 0
    with pytest.raises(CgroupError, match="cannot make the cgroup"):
        tree.make("two\nlines", Resources())  # which the kernel refuses


@needs("hybrid", "cpu", "cpuset")
def test_hierarchies_are_joined_only_for_what_they_are_needed(tree: Tree) -> None:
    def joined(cgroup: Cgroup) -> set[str]:
        return {name for one in cgroup.v1 for name in one.controllers & {"memory", "pids", "cpu", "cpuset"}}

    assert joined(tree.make("plain", Resources())) == {"memory", "pids"}
    assert joined(tree.make("weighed", Resources(cpu_weight=50))) == {"memory", "pids", "cpu"}
    pinned = tree.make("pinned", Resources(cpuset_cpus="0"))
    assert joined(pinned) == {"memory", "pids", "cpuset"}


@needs("hybrid", "cpu")
def test_a_hierarchy_is_joined_by_what_runs_when_a_limit_first_needs_it(tree: Tree, programs: Programs) -> None:
    web = tree.make("web", Resources())
    process = programs.python(web, "import os, time\nos.fork()\nos.fork()\ntime.sleep(1000)")
    wait_until(lambda: len(web.pids()) == 4)
    before = Path(f"/proc/{process.pid}/cgroup").read_text()
    set_limit(web, "cpu_weight", 50)
    assert web.read_cached("cpu.weight") == {"": 50}
    (directory,) = [web.v1[one] for one in web.v1 if "cpu" in one.controllers]
    assert sorted(map(int, Path(f"{directory}/cgroup.procs").read_text().split())) == sorted(web.pids())
    assert Path(f"/proc/{process.pid}/cgroup").read_text() != before
    assert f"{directory}/tasks" in web.join_files


@needs("hybrid", "cpuset")
def test_a_v1_cpuset_has_memory_nodes_before_anybody_joins(tree: Tree, programs: Programs) -> None:
    web = tree.make("web", Resources(cpuset_cpus="0"))
    process = programs.start(web, "sleep", "1000")
    wait_until(web.is_populated)
    status = Path(f"/proc/{process.pid}/status")
    wait_until(lambda: "Cpus_allowed_list:\t0\n" in status.read_text())


# away from the root: what a service, a scope or a container is given ------------------------------------------------


@pytest.fixture
def delegated(host: Host) -> Iterator[Path]:
    """A cgroup to start a supervisor in. On hybrid hosts it is in the v2 core alone."""
    assert host.core is not None
    path = Path(host.base) / f"nsupervisor-test-{os.getpid()}-delegated"
    path.mkdir()
    offered = (Path(host.base) / "cgroup.subtree_control").read_text().split()
    enabled = [
        name
        for name, one in host.controllers.items()
        if one.hierarchy.version == 2 and one.is_delegated and host.at_root
    ]
    new = [name for name in enabled if name not in offered]
    for name in new:
        (Path(host.base) / "cgroup.subtree_control").write_text(f"+{name}")
    yield path
    cgroup = Cgroup(host, "delegated", str(path))
    cgroup.kill()
    wait_until(lambda: not cgroup.is_populated())
    cgroup.remove()
    for name in new:
        (Path(host.base) / "cgroup.subtree_control").write_text(f"-{name}")


REPORT = """
import json, os, subprocess
from nsupervisor.cgroups import CgroupError, Host, Tree
from nsupervisor.config.model import Resources

if "TEST_UID" in os.environ:
    os.setgroups([])
    os.setresuid(*[int(os.environ["TEST_UID"])] * 3)

def own(pid="self"):
    with open(f"/proc/{pid}/cgroup") as file:
        return next(line[3:].strip() for line in file if line.startswith("0:"))

report = {"own": own()}
before, after = subprocess.Popen(["sleep", "1000"]), None
host = Host.discover()
report["base"], report["at_root"] = host.base, host.at_root
resources = Resources(memory_max=1 << 26, pids_max=20)
report["problems"] = [str(problem) for problem in host.check_resources(resources)]
try:
    tree = Tree.create(host, "tree")
    report["moved"] = own()
    report["problems"] = [str(problem) for problem in host.check_resources(resources)]
    if not report["problems"]:
        web = tree.make("web", resources)
        report["limits"] = web.read_limits()
        web.close()
    after = subprocess.Popen(["sleep", "1000"])
    tree.move_to_leaf(after.pid)
    report["children"] = [own(before.pid), own(after.pid)]
    dead = subprocess.Popen(["true"])
    dead.wait()
    tree.move_to_leaf(dead.pid)  # a keeper that has died meanwhile; it is replaced soon
except CgroupError as error:
    report["error"] = str(error)
for child in before, after:
    if child is not None:
        child.kill()
        child.wait()
if "KILLED" in os.environ:  # as if by SIGKILL, and there is another one
    tree = Tree.create(Host.discover(), "tree", adopt=True, own_leaf=tree.owns_leaf)
    report["leaf"] = tree.owns_leaf
if "error" not in report:
    tree.close()
report["after"] = own()
print(json.dumps(report))
"""


def run_in(path: Path, *prefix: str, first: str = "") -> dict[str, object]:
    """Run REPORT in the cgroup; prefix: a command that runs the rest; first: shell code to run before."""
    files = [f"{path}/cgroup.procs"]
    code = f'{first} exec "$@"'
    command = [*prefix, "/bin/sh", "-c", code, "sh", sys.executable, "-c", REPORT]
    done = subprocess.run(
        ["/bin/sh", "-c", JOIN, "sh", *files, "--", *command],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=deadline(30),
        cwd=ROOT,
    )
    return json.loads(done.stdout)


@needs("cgroup_v2")
def test_in_a_delegated_cgroup_the_supervisor_moves_to_a_leaf_and_back(delegated: Path) -> None:
    report = run_in(delegated)
    own = "/" + delegated.name
    assert report["own"] == own
    assert report["problems"] == []
    assert report["moved"] == f"{own}/supervisor"
    assert report["children"] == [f"{own}/supervisor"] * 2
    assert report["limits"] == {"memory.max": 1 << 26, "pids.max": 20}
    assert report["after"] == own
    assert [path.name for path in delegated.iterdir() if path.is_dir()] == []
    assert (delegated / "cgroup.subtree_control").read_text().split() == []


@needs("cgroup_v2")
def test_the_leaf_of_a_supervisor_that_was_killed_goes_with_the_next_one(
    delegated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KILLED", "1")
    report = run_in(delegated)
    assert report["leaf"] is True
    assert report["after"] == "/" + delegated.name
    assert [path.name for path in delegated.iterdir() if path.is_dir()] == []
    assert (delegated / "cgroup.subtree_control").read_text().split() == []


@needs("cgroup_v2")
def test_a_user_does_all_that_in_a_cgroup_delegated_to_them(delegated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (delegated, delegated / "cgroup.procs", delegated / "cgroup.subtree_control"):
        os.chown(path, NOBODY, NOBODY)
    monkeypatch.setenv("TEST_UID", str(NOBODY))
    report = run_in(delegated)
    assert report["problems"] == []
    assert report["moved"] == f"/{delegated.name}/supervisor"
    assert report["limits"] == {"memory.max": 1 << 26, "pids.max": 20}
    assert report["after"] == report["own"]


def test_a_user_without_a_delegated_cgroup_is_told_what_to_do(delegated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_UID", str(NOBODY))
    report = run_in(delegated)
    assert f"not writable for user {NOBODY}" in report["problems"][0]
    assert DELEGATE_REMEDY in report["error"]


@needs("cgroup_v2")
def test_in_systemds_delegated_subgroup_the_tree_is_beside_it(delegated: Path) -> None:
    (delegated / "supervisor").mkdir()
    report = run_in(delegated / "supervisor")
    assert report["problems"] == []
    assert report["base"] == str(delegated)
    assert report["moved"] == report["own"] == report["after"] == f"/{delegated.name}/supervisor"
    assert report["limits"] == {"memory.max": 1 << 26, "pids.max": 20}


@needs("cgroup_v2")
def test_other_processes_in_the_own_cgroup_are_a_problem_in_words(delegated: Path, programs: Programs) -> None:
    """The no-internal-processes rule makes the kernel say EBUSY, which nobody understands."""
    stranger = programs.start(Cgroup(Host.discover(), "delegated", str(delegated)), "sleep", "1000")
    wait_until(lambda: Path(f"/proc/{stranger.pid}/comm").read_text() == "sleep\n")
    report = run_in(delegated)
    memory, pids = report["problems"]
    assert memory.startswith("memory_max: ")
    assert pids.startswith("pids_max: ")
    assert f"also holds other processes ({stranger.pid} (sleep))" in memory
    assert DELEGATE_REMEDY in memory
    assert "error" not in report
    assert report["after"] == report["own"]


NAMESPACE = ("unshare", "--cgroup", "--mount", "--propagation", "private")


@needs("cgroup_v2")
def test_the_root_of_a_cgroup_namespace_is_not_taken_for_the_real_root(delegated: Path) -> None:
    report = run_in(delegated, *NAMESPACE, first="umount -l /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup;")
    assert (report["own"], report["base"], report["at_root"]) == ("/", "/sys/fs/cgroup", False)
    assert report["problems"] == []
    assert report["moved"] == "/supervisor"
    assert report["limits"] == {"memory.max": 1 << 26, "pids.max": 20}
    assert report["after"] == "/"


@needs("cgroup_v2")
def test_a_namespace_with_a_read_only_mount_says_so(delegated: Path) -> None:
    mount = "umount -l /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; mount -o remount,bind,ro /sys/fs/cgroup;"
    report = run_in(delegated, *NAMESPACE, first=mount)
    assert "mounted read-only" in report["problems"][0]
    assert "read-only" in report["error"].lower()


def test_a_namespace_that_sees_only_the_mounts_of_outside_is_said_so(delegated: Path) -> None:
    report = run_in(delegated, *NAMESPACE)
    assert "no cgroup v2 hierarchy that shows the own cgroup" in report["error"]
