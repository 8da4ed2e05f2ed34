"""What a test needs from its machine: ``from tests.needs import needs``.

``@needs("root", "memory")`` (or ``pytestmark = needs(...)`` for a module) skips the test where something is missing,
and says what. Each need is probed for real, once, by trying it. ``missing("psi")`` gives the reason, or ``""``.

Needs: ``root``; the controllers ``memory pids cpu cpuset io hugetlb`` (a cgroup with that controller can be made below
the own one); ``cgroup`` (any cgroup); ``cgroup_v2`` (pure unified hierarchy); ``hybrid`` (version 1 controllers and a
version 2 core); ``userns`` (this user can make user namespaces); ``unprivileged_userns`` (uid 65534 can); ``netns``;
``time_namespace``; ``psi``; ``psi_short_windows`` (triggers below 2 s); ``sys_resource`` (CAP_SYS_RESOURCE); ``vm``
(scripts/vm works here); ``scratch_disk`` (an empty block device, see `scratch_disk`); ``program:NAME``; ``file:PATH``;
``seccomp`` (libseccomp and the kernel's filters); ``module:NAME``; ``kernel:6.15`` (at least); ``landlock:3`` (at least
this version of its ABI); ``history:0.1.0`` (the commit of an earlier version is in this clone), and ``version:0.1.0``
(`scripts/setup` has made it, see `earlier_version`).
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAM_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin:{ROOT}/.programs/bin"
"""Where programs that tests need are looked for; the last directory has what scripts/setup could only unpack."""
PROBE_TIMEOUT = 60.0
EARLIER_VERSIONS = {"0.1.0": "11c6a89c0f35ccac65fb7d2f55a5465f6578df61"}
"""Commits of versions whose running services this one takes over; as in scripts/setup."""
NOBODY = 65534

# Version 1's limit file and a value to try; on version 2 the presence of the file in a new cgroup is the proof.
CONTROLLERS = {
    "memory": ("memory.limit_in_bytes", str(1 << 30), "memory.max"),
    "pids": ("pids.max", "1000", "pids.max"),
    "cpu": ("cpu.shares", "512", "cpu.max"),
    "cpuset": ("cpuset.cpus", "0", "cpuset.cpus"),
    "io": ("blkio.throttle.io_service_bytes", "", "io.max"),
    "hugetlb": ("hugetlb.2MB.limit_in_bytes", "4194304", "hugetlb.2MB.max"),
}
V1_NAMES = {"io": "blkio"}


def needs(*names: str) -> pytest.MarkDecorator:
    """Mark a test (class, module) as needing all of `names`; ValueError for a name that does not exist."""
    for name in names:
        _probe(name)
    return pytest.mark.needs(*names)


@cache
def missing(name: str) -> str:
    """Why this machine does not have `name`; "" where it has."""
    return _probe(name)()


def scratch_disk() -> str:
    """Path of the empty block device that tests may overwrite; "" where there is none."""
    return os.environ.get("NSUPERVISOR_SCRATCH_DISK", "")


def earlier_version(version: str) -> Path:
    """Path of the Python that has an earlier version of nsupervisor installed, with the libraries that one needs."""
    return ROOT / ".programs" / f"nsupervisor-{version}" / "venv" / "bin" / "python"


def in_guest() -> bool:
    """Whether this is the tests' virtual machine."""
    return "NSUPERVISOR_GUEST" in os.environ


# ---------------------------------------------------------------------------------------------------------- cgroups


@cache
def cgroup_directories() -> dict[str, Path]:
    """Directory of the own cgroup per hierarchy: {"": version 2, "memory": …}; only those that are mounted.

    Source: cgroups(7), "/proc files"; proc_pid_mountinfo(5). A mount may show only a part of the hierarchy (its root).
    """
    mounts: dict[str, tuple[str, str]] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        root, point = fields.split()[3:5]
        if kind == "cgroup2":
            mounts.setdefault("", (root, point))
        elif kind == "cgroup":
            for option in options.split()[-1].split(","):
                mounts.setdefault(option, (root, point))
    found = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            if name in mounts:
                root, point = mounts[name]
                inside = path.removeprefix(root) if root != "/" else path
                found[name] = Path(point + "/" + inside.strip("/"))
    return found


def _try_cgroup(directory: Path, check: Callable[[Path], str]) -> str:
    new = directory / f"probe-{os.getpid()}"
    try:
        new.mkdir()
    except OSError as error:
        return f"cannot make a cgroup in {directory}: {error.strerror}"
    try:
        return check(new)
    except OSError as error:
        return f"cannot use a cgroup in {directory}: {error.strerror}"
    finally:
        new.rmdir()


def _cgroup() -> str:
    own = cgroup_directories().get("")
    return _try_cgroup(own, lambda _: "") if own else "no cgroup2 file system is mounted"


def _controller(name: str) -> str:
    v1_file, value, v2_file = CONTROLLERS[name]
    directories = cgroup_directories()
    v1 = directories.get(V1_NAMES.get(name, name))

    def v1_check(new: Path) -> str:
        if not (new / v1_file).exists():
            return f"no {v1_file} in {new.parent}"
        if value:
            (new / v1_file).write_text(value)
        return ""

    def v2_check(new: Path) -> str:
        # Not switched on for children yet, but offered: who makes cgroups here may switch it on.
        offered = (new.parent / "cgroup.controllers").read_text().split()
        if (new / v2_file).exists() or name in offered:
            return ""
        return f"controller {name} is not delegated to {new.parent}"

    if v1 is not None:
        return _try_cgroup(v1, v1_check)
    return _try_cgroup(directories[""], v2_check) if "" in directories else "no cgroup file system is mounted"


def _cgroup_v2() -> str:
    extra = sorted(set(cgroup_directories()) - {""})
    if extra:
        return f"this host has version 1 hierarchies too ({', '.join(extra[:3])}, …)"
    return "" if "" in cgroup_directories() else "no cgroup2 file system is mounted"


def _hybrid() -> str:
    directories = cgroup_directories()
    return "" if "" in directories and "memory" in directories else "this host does not have both cgroup versions"


# ------------------------------------------------------------------------------------------------ kernel and programs


def _run(*command: str, user: int | None = None) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PROBE_TIMEOUT, user=user, cwd="/"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


def _root() -> str:
    return "" if os.geteuid() == 0 else f"runs as uid {os.geteuid()}, not as root"


def _unprivileged_userns() -> str:
    return _run("unshare", "--user", "true", user=NOBODY if os.geteuid() == 0 else None)


def _psi() -> str:
    try:
        Path("/proc/pressure/memory").read_text()
    except OSError as error:
        return f"cannot read /proc/pressure/memory: {error.strerror}"
    return ""


def _psi_short_windows() -> str:
    try:
        file = os.open("/proc/pressure/memory", os.O_RDWR | os.O_NONBLOCK)
    except OSError as error:
        return f"cannot open /proc/pressure/memory for writing: {error.strerror}"
    try:
        os.write(file, b"some 50000 500000\0")
    except OSError as error:
        return f"a trigger with a window of 0.5 s is refused: {error.strerror}"
    finally:
        os.close(file)
    return ""


def _sys_resource() -> str:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:"))
    return "" if int(line.split()[1], 16) >> 24 & 1 else "CAP_SYS_RESOURCE is not among this process's capabilities"


def _seccomp() -> str:
    from nsupervisor.linux import libseccomp

    has_kernel = Path("/proc/sys/kernel/seccomp/actions_avail").exists()
    return libseccomp.missing_reason() or ("" if has_kernel else "the kernel has no seccomp filters")


def _core_files() -> str:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    return (
        "" if pattern and pattern[0] not in "|/" else f"core dumps do not go where the program is, but to {pattern!r}"
    )


def _vm() -> str:
    if in_guest():
        return "no virtual machine inside the virtual machine"
    script = ROOT / "scripts" / "vm"
    return _run(sys.executable, str(script), "--check") if script.exists() else "there is no scripts/vm"


def _scratch_disk() -> str:
    disk = scratch_disk()
    return "" if disk and Path(disk).exists() else "no NSUPERVISOR_SCRATCH_DISK that tests may overwrite"


def _program(name: str) -> str:
    return "" if shutil.which(name, path=PROGRAM_PATH) else f"no program {name} on the PATH"


def _module(name: str) -> str:
    return "" if importlib.util.find_spec(name) else f"no Python module {name}"


def _kernel(version: str) -> str:
    have = os.uname().release
    numbers = [int(part) for part in have.split("-")[0].split(".")[:2]]
    return "" if numbers >= [int(part) for part in version.split(".")] else f"Linux {have} is older than {version}"


def _landlock(abi: str) -> str:
    from nsupervisor.linux import syscalls

    try:
        have = syscalls.landlock_abi()
    except OSError as error:
        return f"the kernel has no Landlock: {error.strerror}"
    return "" if have >= int(abi) else f"version {have} of Landlock's ABI is older than {abi}"


PROBES: dict[str, Callable[[], str]] = {
    "root": _root,
    "cgroup": _cgroup,
    "cgroup_v2": _cgroup_v2,
    "hybrid": _hybrid,
    "userns": lambda: _run("unshare", "--user", "true"),
    "unprivileged_userns": _unprivileged_userns,
    "netns": lambda: _run("unshare", "--net", "true"),
    "time_namespace": lambda: _run("unshare", "--time", "true"),
    "psi": _psi,
    "psi_short_windows": _psi_short_windows,
    "sys_resource": _sys_resource,
    "core_files": _core_files,
    "seccomp": _seccomp,
    "vm": _vm,
    "scratch_disk": _scratch_disk,
}


def _history(version: str) -> str:
    commit = EARLIER_VERSIONS[version]
    problem = _run("git", "-C", str(ROOT), "cat-file", "-e", f"{commit}^{{commit}}")
    return f"commit {commit[:7]} ({version}) is not in this clone's history: {problem}" if problem else ""


def _version(version: str) -> str:
    problem = _run(str(earlier_version(version)), "-P", "-c", "import nsupervisor.cli.main")
    return f"scripts/setup has not made version {version}: {problem}" if problem else ""


PARAMETRIC: dict[str, Callable[[str], str]] = {
    "file": lambda path: "" if os.path.exists(path) else f"no {path}",
    "program": _program,
    "module": _module,
    "kernel": _kernel,
    "landlock": _landlock,
    "history": _history,
    "version": _version,
}


def _probe(name: str) -> Callable[[], str]:
    if name in PROBES:
        return PROBES[name]
    if name in CONTROLLERS:
        return lambda: _controller(name)
    kind, colon, value = name.partition(":")
    if colon and value and kind in PARAMETRIC:
        return lambda: PARAMETRIC[kind](value)
    known = ", ".join([*CONTROLLERS, *PROBES, *(f"{kind}:…" for kind in PARAMETRIC)])
    raise ValueError(f"no need called {name!r}; there are: {known}")
