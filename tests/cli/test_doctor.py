"""`nsupervisor doctor` and its probes: on this host, and for a user who may do little."""

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nsupervisor.cli import probes
from nsupervisor.cli.probes import LIMITED, MISSING, OK, in_child, namespaces, network, privileges
from tests.cli.command import nsupervisor
from tests.descriptors import open_descriptors
from tests.needs import ROOT, missing, needs
from tests.timing import deadline


@pytest.fixture(scope="module")
def report():
    done = nsupervisor("doctor", "--json")
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def finding(report, section, name):
    (found,) = [one for one in report[1]["sections"][section] if one["name"] == name]
    return found


def test_sections_are_all_there_and_say_something(report):
    _, said = report
    assert list(said["sections"]) == ["kernel", "privileges", "namespaces", "cgroups", "rootless", "network"]
    for findings in said["sections"].values():
        for one in findings:
            assert one["state"] in (OK, LIMITED, MISSING)
            assert one["text"]
            assert one["state"] == OK or one["instead"] or one["name"] == "capabilities", one


@pytest.mark.system
def test_the_exit_status_says_whether_workloads_can_be_run(report):
    status, said = report
    fatal = [
        one
        for findings in said["sections"].values()
        for one in findings
        if one["essential"] and one["state"] == MISSING
    ]
    assert said["ok"] is (not fatal)
    assert status == (1 if fatal else 0)


def test_for_people(report):
    done = nsupervisor("doctor")
    assert done.returncode == report[0]
    for section, findings in report[1]["sections"].items():
        assert f"\n{section}\n" in "\n" + done.stdout
        for one in findings:
            assert one["name"] in done.stdout


@pytest.mark.system
@needs("root", "cgroup", "netns", "time_namespace", "userns")
def test_where_all_can_be_had_it_says_so(report):
    for name in (*namespaces.MEANINGS, "own /proc"):
        assert finding(report, "namespaces", name)["state"] == OK
    assert finding(report, "cgroups", "clone into cgroup")["state"] == OK
    assert report[0] == 0


def test_it_agrees_with_the_kernel_about_limits(report):
    for key, controller in (
        ("memory_max", "memory"),
        ("pids_max", "pids"),
        ("cpu_weight", "cpu"),
        ("cpuset_cpus", "cpuset"),
    ):
        if not missing(controller):
            assert finding(report, "cgroups", key)["state"] == OK


@needs("hybrid")
def test_a_limit_that_cannot_be_enforced_is_missing_with_what_to_do(report):
    found = finding(report, "cgroups", "memory_high")
    assert found["state"] == MISSING
    assert "memory on v1" in found["text"]
    assert "memory_max" in found["instead"]


@pytest.mark.skipif(bool(missing("kernel:6.15")), reason="needs kernel:6.15: for PIDFD_INFO_EXIT")
def test_exit_statuses_from_pidfds_are_found(report):
    assert finding(report, "kernel", "pidfd exit info")["state"] == OK


@needs("sys_resource", "psi_short_windows")
def test_pressure_with_all_capabilities(report):
    assert finding(report, "kernel", "pressure (PSI)")["state"] == OK


@needs("root")
def test_for_a_user_who_may_little():
    """In a bare environment as nobody: no exception, each refusal with what to do."""
    code = (
        "import os, sys; import nsupervisor.cli.main, nsupervisor.cli.commands.doctor;"
        "from nsupervisor.cli.probes import cgroups, kernel, namespaces, network, privileges;"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); sys.argv = ['nsupervisor', 'doctor', '--json'];"
        "nsupervisor.cli.main.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=deadline(30), cwd=ROOT)
    assert done.stderr == ""
    report = done.returncode, json.loads(done.stdout)
    assert done.returncode == 1
    assert finding(report, "privileges", "user")["state"] == LIMITED
    assert finding(report, "privileges", "capabilities")["text"].startswith("none")
    making = finding(report, "cgroups", "making cgroups")
    assert (making["state"], making["essential"]) == (MISSING, True)
    assert "delegated" in making["instead"]
    if not missing("unprivileged_userns"):
        assert {finding(report, "namespaces", name)["state"] for name in namespaces.DEFAULT_NAMESPACES} == {LIMITED}
        assert finding(report, "namespaces", "user")["state"] == OK


def children() -> str:
    return Path("/proc/thread-self/children").read_text()


def test_nothing_is_left_behind(report):
    before = set(open_descriptors()), children()
    for _, findings in probes.sections():
        for one in findings:
            assert one.name
    assert (set(open_descriptors()), children()) == before


class TestInChild:
    def test_success(self):
        assert in_child(lambda: None) is None

    def test_an_error_comes_back_with_what_was_tried(self):
        def fail():
            raise OSError(errno.EPERM, "x", "unshare")

        error = in_child(fail)
        assert (error.errno, error.strerror, error.filename) == (errno.EPERM, os.strerror(errno.EPERM), "unshare")

    @pytest.mark.parametrize("end", [lambda: os.kill(os.getpid(), 31), lambda: os._exit(3)])
    def test_a_child_that_dies_is_no_success(self, end):
        """A seccomp filter may end who tries, with SIGSYS."""
        assert in_child(end) is not None


class TestNamespaces:
    def test_a_limit_is_named_with_its_file(self):
        text = namespaces._remedy("network", OSError(errno.ENOSPC, ""), False)
        assert "/proc/sys/user/max_net_namespaces" in text

    def test_a_kernel_without_them(self):
        assert "CONFIG_TIME_NS" in namespaces._remedy("time", OSError(errno.EINVAL, ""), False)


class TestNetwork:
    def test_plugins_are_found_by_cni_path(self, tmp_path, monkeypatch):
        for name in network.REQUIRED_PLUGINS:
            (tmp_path / name).touch(mode=0o755)
        (tmp_path / "README").touch(mode=0o644)
        monkeypatch.setenv("CNI_PATH", f"/nonexistent:{tmp_path}")
        found = network._cni()
        assert found.state == OK
        assert found.text.startswith(f"5 in {tmp_path},")

    def test_plugins_that_lack_are_named(self, tmp_path, monkeypatch):
        (tmp_path / "bridge").touch(mode=0o755)
        monkeypatch.setenv("CNI_PATH", str(tmp_path))
        found = network._cni()
        assert found.state == LIMITED
        assert "lacks host-local, portmap, firewall, bandwidth" in found.text

    def test_none(self, tmp_path, monkeypatch):
        monkeypatch.setenv("CNI_PATH", str(tmp_path))
        assert network._cni().state == MISSING


class TestPrivileges:
    def test_capabilities_are_numbered_as_the_kernel_does(self):
        header = "/usr/include/linux/capability.h"
        if not os.path.exists(header):
            pytest.skip("needs linux headers: no /usr/include/linux/capability.h")
        with open(header) as file:
            lines = [line.split() for line in file if line.startswith("#define CAP_")]
        kernel = {words[1]: int(words[2]) for words in lines if len(words) > 2 and words[2].isdigit()}
        ours = {f"CAP_{name}": number for number, name in enumerate(privileges.CAPABILITIES)}
        assert {name: number for name, number in kernel.items() if name in ours} == ours

    def test_what_is_missed_is_a_capability(self):
        assert set(privileges.LOST_FEATURES) <= set(privileges.CAPABILITIES)

    def test_one_missing_capability_is_told_with_its_consequence(self, monkeypatch):
        monkeypatch.setattr(
            privileges, "effective_capabilities", lambda: set(privileges.CAPABILITIES) - {"SYS_RESOURCE"}
        )
        found = {one.name: one for one in privileges.findings()}
        assert found["capabilities"].state == LIMITED
        assert "hard limits cannot be raised" in found["CAP_SYS_RESOURCE"].text
        assert "--cap-add SYS_RESOURCE" in found["CAP_SYS_RESOURCE"].remedy


def test_the_program_is_not_set_user_id():
    """Probing as root on behalf of anybody would be a hole."""
    assert not os.stat(sys.executable).st_mode & (stat.S_ISUID | stat.S_ISGID)
