"""The set-up of a new process before it executes the program: small named steps in a fixed order.

clone3 creates the first process of a workload in its v2 cgroup and in all its new namespaces but two. With an init,
that process is the init, and forks at once (see zygote.py). Its child, in the same namespaces, does the following:

1. `new_session_keyring`, as the keeper's user, to whose quota the keyring counts.
2. `NAMESPACE_STEPS`, with the keeper's privileges: cgroups of v1 hierarchies (the init joins none, so the workload is
   not charged for it there); the ids in a user namespace; the cgroup namespace (created only now, so that its root is
   the cgroup just joined); mounts, of which some belong to other new namespaces; namespaces to join; host name;
   clocks; loopback.
3. The rest of `STEPS`, which drop the privileges. The process enters the working directory as the program's user, so a
   directory that this user may not enter is an error.
4. `execute`.

Descriptors: 0 is /dev/null, `REPORT_FD` the socket to the keeper, `STDOUT_FD` and `STDERR_FD` the log pipes; all others
are closed. Signals are blocked until just before exec; none has a handler.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the wrapper `signal` would create an enum member for each signal
import array
import errno
import fcntl
import gc
import os
import resource
import socket
import struct

from nsupervisor.keeper import native
from nsupervisor.keeper.setup import landlock, privileges, scheduling
from nsupervisor.keeper.setup.descriptors import REPORT_FD, STDERR_FD, STDOUT_FD, gather
from nsupervisor.keeper.setup.errors import StepError, encode_failure, step_error
from nsupervisor.keeper.setup.mount_steps import (
    hold_shown_directories,
    mount_all,
    mount_ipc,
    mount_joined,
    mount_proc,
    mount_sys,
    protect_paths,
    separate_mounts,
)
from nsupervisor.keeper.setup.root import enter_root
from nsupervisor.keeper.setup.spec import is_zero_mapped
from nsupervisor.linux import namespaces, syscalls
from nsupervisor.linux.process_titles import INIT_TITLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import NoReturn

    from nsupervisor.keeper.setup.spec import Spec

initial_nofile: tuple[int, int] | None = None
"""The limit on open files (soft, hard) of each child. The keeper raises its own and stores the previous one here."""

CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid

READY = b"ready"
PROCEED = b"ug"
"""The message that lets a child in a user namespace proceed: there is a user 0, and a group 0. If not, the letter is
replaced by a dot."""

# The exit codes that shells and container engines use; the error itself is sent to the keeper.
EXIT_SETUP, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND = 125, 126, 127


# ---- the first process


def new_session_keyring(spec: Spec) -> None:
    """Leave the keys of the keeper's session, and those of a program before: session-keyring(7)."""
    try:
        syscalls.join_new_session_keyring()
    except OSError as error:
        raise step_error("make a session keyring", error) from None


def join_cgroups(spec: Spec) -> None:
    """Join the cgroups of v1 hierarchies, which do not support CLONE_INTO_CGROUP.

    This is the first step, so that the others are accounted there. 0 means the writing process, cgroups(7).
    """
    for path in spec.cgroup_procs:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            os.write(fd, b"0")
            os.close(fd)
        except OSError as error:
            raise step_error(f"join the cgroup {os.path.dirname(path)}", error) from None


def become_namespace_root(spec: Spec) -> None:
    """Become user 0 of the new user namespace, if it has one.

    After the v1 cgroups are joined, as this step drops the privileges for that.
    """
    if "user" in spec.namespaces:
        _wait_and_become_root(spec.report)


def _wait_and_become_root(report: int) -> None:
    """Wait until the keeper has written the identity maps, and become the user and group 0 that they have.

    The keeper's supplementary groups are dropped: they are groups outside, and would still give access to files.
    `report` is the socket to the keeper, which sends `PROCEED` or a variant of it.
    """
    mapped = os.read(report, len(PROCEED))
    if not mapped:
        raise StepError("cannot become root of the user namespace: the parent is gone")
    try:
        if os.getgroups() and is_setgroups_allowed():
            os.setgroups([])
        if b"g" in mapped:
            os.setresgid(0, 0, 0)
        if b"u" in mapped:
            os.setresuid(0, 0, 0)
        syscalls.set_dumpable()
    except OSError as error:
        raise step_error("become root of the user namespace", error) from None


def proceed_message(spec: Spec) -> bytes:
    """Build the keeper's message for a child in a new user namespace; it is sent when the maps are written."""
    return bytes(
        letter if is_zero_mapped(mappings) else ord(".")
        for letter, mappings in zip(PROCEED, (spec.uid_mappings, spec.gid_mappings), strict=True)
    )


def new_cgroup_namespace(spec: Spec) -> None:
    """Create a cgroup namespace. Its root is the present cgroup of this process, cgroup_namespaces(7)."""
    if "cgroup" in spec.namespaces:
        try:
            syscalls.unshare(namespaces.CLONE_NEWCGROUP)
        except OSError as error:
            raise step_error("make a cgroup namespace", error) from None


def set_hostname(spec: Spec) -> None:
    """Set the host name of the new UTS namespace, uname(2)."""
    if spec.hostname is not None:
        try:
            syscalls.sethostname(spec.hostname)
        except OSError as error:
            raise step_error(f"set the host name {spec.hostname}", error) from None


def shift_clocks(spec: Spec) -> None:
    """Create a time namespace, set its clocks and enter it.

    clone3 could create it, but its offsets can be set only while no process is inside, time_namespaces(7).
    """
    if "time" not in spec.namespaces:
        return
    try:
        syscalls.unshare(namespaces.CLONE_NEWTIME)
        if spec.time_offsets:
            fd = os.open("/proc/self/timens_offsets", os.O_WRONLY | os.O_CLOEXEC)
            os.write(fd, spec.time_offsets)
            os.close(fd)
        fd = os.open("/proc/self/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC)
        syscalls.setns(fd, namespaces.CLONE_NEWTIME)
        os.close(fd)
    except OSError as error:
        raise step_error("make a time namespace", error) from None


def bring_up_loopback(spec: Spec) -> None:
    """Bring up the loopback interface of a new network namespace, so that 127.0.0.1 works."""
    if "network" in spec.namespaces:
        try:
            syscalls.bring_up_loopback()
        except OSError as error:
            raise step_error("bring up the loopback interface", error) from None


def join_namespaces(spec: Spec) -> None:
    """Enter the namespaces whose descriptors came with the specification, setns(2)."""
    for kind, fd in zip(spec.joins, spec.join_fds, strict=True):
        try:
            syscalls.setns(fd, namespaces.NAMESPACES[kind].flag)
            os.close(fd)
        except OSError as error:
            raise step_error(f"join the {kind} namespace", error, _JOIN_HINTS.get(error.errno or 0, "")) from None
    if spec.joins:
        mount_joined(spec)


_JOIN_HINTS = {errno.EPERM: "it needs CAP_SYS_ADMIN, here and in the user namespace that owns it"}

NAMESPACE_STEPS: tuple[Callable[[Spec], None], ...] = (
    join_cgroups,
    hold_shown_directories,
    become_namespace_root,
    new_cgroup_namespace,
    separate_mounts,
    mount_proc,
    mount_ipc,
    mount_sys,
    join_namespaces,
    protect_paths,
    enter_root,
    mount_all,
    set_hostname,
    shift_clocks,
    bring_up_loopback,
)


# ---- the program's process


def set_limits(spec: Spec) -> None:
    """Set the resource limits. Before the privileges are dropped: raising a hard limit needs CAP_SYS_RESOURCE."""
    if initial_nofile is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, initial_nofile)
    for name, number, pair in spec.rlimits:
        try:
            resource.setrlimit(number, pair)
        except (OSError, ValueError) as error:
            shown = ":".join("infinity" if value < 0 else str(value) for value in pair)
            reason = error.strerror if isinstance(error, OSError) else f"{error} (raising it needs CAP_SYS_RESOURCE)"
            raise StepError(f"cannot set limit_{name} to {shown}: {reason}", errno.EPERM) from None


def set_nice(spec: Spec) -> None:
    """Set the nice value, which is absolute: it does not depend on the keeper's."""
    if spec.nice is not None:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, spec.nice)
        except OSError as error:
            raise step_error(f"set nice to {spec.nice}", error) from None


def set_scheduling(spec: Spec) -> None:
    """Set how the kernel treats the process: the OOM killer, the schedulers of CPU and disks, and timers."""
    for text, call, arguments in scheduling.calls(spec):
        try:
            _SCHEDULING_CALLS[call](*arguments)
        except OSError as error:
            raise step_error(text, error, scheduling.HINTS.get(error.errno or 0, "")) from None


def _write_oom_score_adjust(value: int) -> None:
    fd = os.open(scheduling.OOM_SCORE_ADJUST, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def _set_scheduler(policy: int, priority: int) -> None:
    os.sched_setscheduler(0, policy, os.sched_param(priority))


_SCHEDULING_CALLS: dict[str, Callable[..., None]] = {
    "oom_score_adj": _write_oom_score_adjust,
    "ioprio_set": syscalls.set_io_priority,
    "sched_setscheduler": _set_scheduler,
    "timer_slack": lambda value: syscalls.call_prctl(syscalls.PR_SET_TIMERSLACK, value, 0, 0, 0),
}


def set_umask(spec: Spec) -> None:
    """Set the umask of the program. umask(2) cannot fail."""
    os.umask(spec.umask)


def limit_capabilities(spec: Spec) -> None:
    """Drop capabilities from the bounding set, while the process may."""
    if privileges.is_changed(spec):
        permitted = syscalls.permitted_capabilities()
        _call_all(
            privileges.bounding_drops(
                spec.capability_bounding_set, spec.no_new_privileges, privileges.highest_capability(), permitted
            )
        )
        _call_all(privileges.before_user(spec))


def set_capabilities(spec: Spec) -> None:
    """Set the capabilities of the process; those of the program follow from them at its exec."""
    if privileges.is_changed(spec):
        _call_all(privileges.after_user(spec, syscalls.permitted_capabilities()))


def _call_all(calls: Iterable[privileges.Call]) -> None:
    for text, call, arguments in calls:
        try:
            (syscalls.capset if call == "capset" else syscalls.call_prctl)(*arguments)  # type: ignore[arg-type]
        except OSError as error:
            raise step_error(text, error) from None


def become_user(spec: Spec) -> None:
    """Set the groups, gid and uid, in this order, as the privilege to set groups is lost with the uid.

    If the user changes and the specification names no groups, the keeper's groups are dropped.
    """
    groups = spec.groups
    if groups is None and not (spec.uid is None and spec.gid is None) and os.getgroups() and is_setgroups_allowed():
        groups = []
    if groups is not None:
        try:
            os.setgroups(groups)
        except OSError as error:
            raise step_error(f"set the groups {groups}", error) from None
    if spec.gid is not None:
        try:
            os.setresgid(spec.gid, spec.gid, spec.gid)
        except OSError as error:
            raise step_error(f"become gid {spec.gid}", error) from None
    if spec.uid is not None:
        try:
            os.setresuid(spec.uid, spec.uid, spec.uid)
        except OSError as error:
            raise step_error(f"become uid {spec.uid}", error) from None


def is_setgroups_allowed() -> bool:
    """Return whether setgroups(2) is allowed; not in an unprivileged user's user namespace, user_namespaces(7)."""
    with open("/proc/self/setgroups") as file:
        return file.read().strip() == "allow"


def enter_directory(spec: Spec) -> None:
    """Enter the working directory, as it is after the mounts."""
    try:
        os.chdir(spec.cwd)
    except OSError as error:
        raise step_error(f"enter {spec.cwd}", error) from None


def give_up_new_privileges(spec: Spec) -> None:
    """Set no_new_privs if requested: then a set-user-ID program runs as its caller."""
    if spec.no_new_privileges:
        try:
            syscalls.set_no_new_privileges()
        except OSError as error:
            raise step_error("set no_new_privs", error) from None


def restrict_by_landlock(spec: Spec) -> None:
    """Restrict the program to the files and ports of its Landlock rules, as its user and in its root."""
    if spec.landlock is not None:
        landlock.perform(spec.landlock)


STEPS: tuple[Callable[[Spec], None], ...] = (
    new_session_keyring,
    *NAMESPACE_STEPS,
    set_limits,
    set_nice,
    set_scheduling,
    set_umask,
    limit_capabilities,
    become_user,
    set_capabilities,
    enter_directory,
    give_up_new_privileges,
    restrict_by_landlock,
)

STEP_NAMES: dict[Callable[[Spec], None], str] = {
    new_session_keyring: "new_session_keyring",
    join_cgroups: "join_cgroups",
    hold_shown_directories: "hold_shown_directories",
    become_namespace_root: "become_namespace_root",
    new_cgroup_namespace: "new_cgroup_namespace",
    separate_mounts: "separate_mounts",
    mount_proc: "mount_proc",
    mount_ipc: "mount_ipc",
    mount_sys: "mount_sys",
    join_namespaces: "join_namespaces",
    protect_paths: "protect_paths",
    enter_root: "enter_root",
    mount_all: "mount_all",
    set_hostname: "set_hostname",
    shift_clocks: "shift_clocks",
    bring_up_loopback: "bring_up_loopback",
    set_limits: "set_limits",
    set_nice: "set_nice",
    set_scheduling: "set_scheduling",
    set_umask: "set_umask",
    limit_capabilities: "limit_capabilities",
    become_user: "become_user",
    set_capabilities: "set_capabilities",
    enter_directory: "enter_directory",
    give_up_new_privileges: "give_up_new_privileges",
    restrict_by_landlock: "restrict_by_landlock",
}
"""The wire name of each step, for the `step` of a failure."""


def execute(spec: Spec, mask: Iterable[int] = ()) -> NoReturn:
    """Unblock all signals but those in `mask`, install the filters, and execute the program. Raises StepError."""
    _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
    candidates = _candidates(spec)  # before the filters, which may refuse to look for files
    install_filters(spec)
    become_program(spec, candidates)


def install_filters(spec: Spec) -> None:
    """Install the seccomp filters, as the last step: they need not allow what the others do. Raises StepError."""
    for program in spec.filters:
        try:
            syscalls.set_seccomp_filter(program)
        except OSError as error:
            raise step_error(INSTALL_FILTER, error, INSTALL_FILTER_HINTS.get(error.errno or 0, "")) from None


INSTALL_FILTER = "install the seccomp filter"
INSTALL_FILTER_HINTS = {
    errno.EPERM: "a filter before it refuses further ones",
    errno.EINVAL: "the kernel does not accept the filter",
    errno.ENOSYS: "this kernel has no seccomp",
}


def become_program(spec: Spec, candidates: Sequence[bytes] | None = None) -> NoReturn:
    """Execute the program, the first of `candidates` that can be. Raises StepError.

    It is searched as by execvp(3), except that no shell runs a script without a #! line.
    """
    name = spec.argv[0]
    shown = name.decode("utf-8", "backslashreplace")
    refused: OSError | None = None
    for candidate in _candidates(spec) if candidates is None else candidates:
        try:
            os.execve(candidate, spec.argv, spec.env)  # noqa: S606
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            refused = refused or error  # like execvp(3): a later directory may have one that works
        except OSError as error:
            raise step_error(f"execute {shown}", error, execute_hints(spec).get(error.errno or 0, "")) from None
    if refused is not None:
        raise step_error(f"execute {shown}", refused, execute_hints(spec).get(errno.EACCES, "")) from None
    hint, inside = "", "" if spec.root is None else f" in the root {spec.root[0]}"
    if b"/" not in name:
        hint = f"searched PATH={spec.path}{inside}"
    elif os.path.exists(name):
        hint = f"the file is there, so the interpreter that it names is not{inside}"
    elif inside:
        hint = f"searched{inside}"
    raise StepError(f"cannot execute {shown}: {os.strerror(errno.ENOENT)}{f' ({hint})' if hint else ''}", errno.ENOENT)


EXECUTE_HINTS = {
    errno.ENOEXEC: "a script needs a first line like #!/bin/sh",
    errno.EAGAIN: "a limit on processes is reached, such as limit_nproc",
    errno.E2BIG: "the arguments and the environment are too long",
}


def execute_hints(spec: Spec) -> dict[int, str]:
    """Return hints for the errors of execve(2), by errno."""
    return EXECUTE_HINTS if spec.landlock is None else {**EXECUTE_HINTS, errno.EACCES: landlock.EXECUTE_HINT}


def _candidates(spec: Spec) -> list[bytes]:
    name = spec.argv[0]
    if b"/" in name:
        return [name]
    paths = [os.fsencode(directory or ".") + b"/" + name for directory in spec.path.split(":")]
    return [path for path in paths if os.path.lexists(path)]


# ---- from clone to exec


class SetupRun:
    """Runs the set-up steps of one child. `step` is the wire name of the current step, for the error message."""

    __slots__ = ("report_fd", "step")

    def __init__(self) -> None:
        self.step = "prepare"
        self.report_fd = REPORT_FD

    def run_steps(self, steps: Sequence[Callable[[Spec], None]], spec: Spec, done: Sequence[object] = ()) -> None:
        """Run the steps that are not `done`."""
        for step in steps:
            if step not in done:
                self.step = STEP_NAMES[step]
                step(spec)

    def run_to_exec(self, body: Callable[[], None]) -> NoReturn:
        """Call `body`, which executes the program. If it raises, send the failure and exit. Never returns."""
        code = EXIT_SETUP
        try:
            body()
        except StepError as error:
            send_failure(self.report_fd, self.step, str(error), error.number)
            if self.step == "execute":
                code = EXIT_NOT_FOUND if error.number == errno.ENOENT else EXIT_NOT_EXECUTABLE
        except BaseException as error:
            number = getattr(error, "errno", None) or 0
            send_failure(self.report_fd, self.step, f"{type(error).__name__}: {error}", number)
        finally:
            os._exit(code)

    def pass_descriptors(self, spec: Spec) -> None:
        """Move the program's descriptors to the numbers from 3 on, and name them in its environment, sd_listen_fds(3).

        As the last step before the program is executed: the numbers are those of other descriptors until then.
        """
        if not spec.passed_fds:
            return
        self.step, count = "pass_descriptors", len(spec.descriptors)
        try:
            # A number above the program's. Closed by execve, which tells the keeper that it has succeeded.
            first_free = max(FIRST_PASSED_FD + len(spec.passed_fds), spec.readiness_fd + 1)
            self.report_fd = fcntl.fcntl(self.report_fd, fcntl.F_DUPFD_CLOEXEC, first_free)
            gather(spec.passed_fds, FIRST_PASSED_FD, inheritable=True)
            if spec.readiness_fd > FIRST_PASSED_FD + count:
                os.dup2(FIRST_PASSED_FD + count, spec.readiness_fd)
                os.close(FIRST_PASSED_FD + count)
        except OSError as error:
            hint = "limit_nofile is too low for these descriptors"
            raise step_error("pass the descriptors", error, hint) from None
        if not count:
            return
        spec.env[b"LISTEN_FDS"] = str(count).encode()
        spec.env[b"LISTEN_PID"] = str(os.getpid()).encode()  # as the program sees itself
        spec.env[b"LISTEN_FDNAMES"] = ":".join(name for _, name in spec.descriptors).encode()


FIRST_PASSED_FD = 3
"""SD_LISTEN_FDS_START, sd_listen_fds(3)."""


def run(spec: Spec, enter_child: Callable[[], None], complete: Callable[[], None] = lambda: None) -> NoReturn:
    """Run all steps and execute the program, in a child without an init.

    `enter_child` moves the descriptors to their fixed numbers. `complete` is called after the steps.
    """
    setup_run = SetupRun()

    def set_up() -> None:
        gc.disable()  # a collection would write to all objects, so the pages shared with the keeper would be copied
        enter_child()
        os.setsid()
        setup_run.run_steps(STEPS, spec)
        complete()
        setup_run.step = "execute"
        os.write(REPORT_FD, READY)
        os.dup2(STDOUT_FD, 1)
        os.dup2(STDERR_FD, 2)
        setup_run.pass_descriptors(spec)
        setup_run.step = "execute"
        execute(spec)

    setup_run.run_to_exec(set_up)


def init_order(spec: Spec) -> bytes:
    """Build what the program's process sends to its init: the init looks after this process from then on."""
    in_user_namespace = "user" in spec.namespaces
    return native.order(
        os.getpid(),
        f"{INIT_TITLE}{spec.title}",
        is_user_root=in_user_namespace and is_zero_mapped(spec.uid_mappings),
        is_group_root=in_user_namespace and is_zero_mapped(spec.gid_mappings),
    )


def send_ready(report: socket.socket) -> None:
    """Report that all steps are done. The kernel adds this process' pid in the keeper's PID namespace (unix(7)).

    The message carries a pidfd, as the keeper cannot signal the program by pid: the program is not its child, so its
    pid may be reused.
    """
    pidfd = os.pidfd_open(os.getpid())
    report.sendmsg([READY], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (pidfd,)))])
    os.close(pidfd)


def send_failure(report: int, step: str, message: str, number: int) -> None:
    """Report a failed step to the keeper. If the keeper is gone, nothing is reported."""
    try:
        os.write(report, encode_failure(step, message, number))
    except OSError:
        pass
