"""Probes of cgroups: which hierarchies, which limits, and the features of a cgroup made for the purpose."""

from __future__ import annotations

import os

from nsupervisor.cgroups.errors import CgroupError, HostProblem
from nsupervisor.cgroups.files import RESOURCE_FILES
from nsupervisor.cgroups.host import DELEGATE_REMEDY, Host
from nsupervisor.cli.probes import LIMITED, MISSING, OK, Finding
from nsupervisor.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def findings() -> Iterator[Finding]:
    """Yield the hierarchies, the features of one cgroup, and one finding per limit."""
    try:
        host = Host.discover()
    except CgroupError as error:
        yield Finding("hierarchies", MISSING, str(error), "start from a shell in another cgroup", True)
        return
    yield _mode_finding(host)
    if host.core is None:
        return
    yield from _cgroup(host)
    for key, file in RESOURCE_FILES.items():
        problem = host.check_key(key)
        if problem is not None:
            yield Finding(key, MISSING, f"cannot be enforced: {problem.reason}", problem.remedy)
        else:
            controller = host.controllers[file.partition(".")[0]]
            yield Finding(key, OK, f"enforced by the kernel (cgroup v{controller.hierarchy.version})")


def _mode_finding(host: Host) -> Finding:
    if host.mode == "unified":
        return Finding("hierarchies", OK, "unified: all is cgroup v2")
    problem = host.locate("cgroup.events")
    if isinstance(problem, HostProblem):
        return Finding("hierarchies", MISSING, problem.reason, problem.remedy, True)
    v1_controllers = ", ".join(
        name for name, controller in host.controllers.items() if controller.hierarchy.version == 1
    )
    return Finding(
        "hierarchies",
        LIMITED,
        f"hybrid: groups, freezing and killing are cgroup v2; {v1_controllers} are v1, which has fewer limits",
        "for all of them boot with systemd.unified_cgroup_hierarchy=1",
    )


def _cgroup(host: Host) -> Iterator[Finding]:
    """Make a cgroup, inspect it, start a process in it, remove it."""
    path = f"{host.base}/nsupervisor-doctor-{os.getpid()}"
    try:
        os.mkdir(path)
    except OSError as error:
        text = f"none can be made in {host.base}: {error.strerror}"
        yield Finding("making cgroups", MISSING, text, DELEGATE_REMEDY, True)
        return
    try:
        yield Finding("making cgroups", OK, f"below {host.base}")
        yield _clone_into(path)
        yield _file_finding(
            path, "cgroup.kill", "all processes of a workload are killed at once, however fast it forks", "5.14"
        )
        yield _file_finding(path, "cgroup.freeze", "a workload can be frozen and thawed as one", "5.2")
    finally:
        os.rmdir(path)


def _clone_into(path: str) -> Finding:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        pid, pidfd = syscalls.clone3(0, directory)
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(pidfd)
    except OSError as error:
        return Finding(
            "clone into cgroup",
            MISSING,
            f"a program cannot start inside its cgroup: {error.strerror}",
            DELEGATE_REMEDY,
            True,
        )
    finally:
        os.close(directory)
    return Finding("clone into cgroup", OK, "a program is in its cgroup from its first instruction")


def _file_finding(path: str, name: str, meaning: str, since: str) -> Finding:
    if os.path.exists(f"{path}/{name}"):
        return Finding(name, OK, meaning)
    return Finding(name, LIMITED, f"this kernel has no {name}", f"boot a newer kernel ({since} has it)")
