"""Plans: the set-up of a program as a list of system calls, which the standby's program performs (native/setup.c).

A fork of a Python process, its page faults and its end cost more than the namespaces of a program. So the keeper
decides what to do, by the specification, and a small C program does it. A plan has the same steps as steps.py, in the
same order. `is_possible` says for which specifications.

An operation is a system call with its arguments. It has a text for its failure, the beginning of a JSON object that the
standby completes with the errno and `errors.decode_failure` turns into a sentence.
"""

from __future__ import annotations

import errno
import functools
import os
import resource
import signal
import socket
import stat
import struct

from nsupervisor.keeper import native
from nsupervisor.keeper.setup import cover, handover, landlock, mount_steps, privileges, sandbox, scheduling, steps
from nsupervisor.keeper.setup.errors import CGROUP_HINTS, StepError, begin_failure
from nsupervisor.linux import mounts, syscalls
from nsupervisor.linux.namespaces import CLONE_NEWCGROUP, CLONE_NEWTIME, CLONE_NEWUSER, NAMESPACES, clone_flags
from nsupervisor.linux.process_titles import INIT_TITLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from nsupervisor.keeper.setup.sandbox import Operation
    from nsupervisor.keeper.setup.spec import Spec

CALLS = (
    *("hand_over", "send_order", "send_ready", "landlock_add_path", "openat", "write", "close", "socket", "ioctl"),
    *("mount", "open_tree"),
    *("move_mount", "mkdirat", "symlinkat", "unshare", "setns", "sethostname", "setsid", "prlimit64", "setpriority"),
    *("umask", "setgroups", "setresgid", "setresuid", "chdir", "prctl", "rt_sigprocmask", "keyctl", "capset"),
    *("seccomp", "ioprio_set", "sched_setscheduler", "openat2", "mount_setattr", "mknodat", "fsopen", "fsconfig"),
    *("fsmount", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "execve"),
)
"""The operations, in the order of `calls` in setup.c."""
_CODES = {name: code for code, name in enumerate(CALLS)}

_HEADER = struct.Struct("4I")  # flags, size, number of operations, of relocations
_OPERATION = struct.Struct("HBBBBBx5q2QQ")
_POINTER = struct.Struct("q")
_HAS_CGROUP, _IS_ADVANCE, _IN_FILE, _HAS_TREE = 1, 2, 4, 8
_MAX_SHOWN = 8
"""Directories that a cover may show: the standby has room for 15 results."""

_AT_FDCWD = -100
_SIOCSIFFLAGS, _IFF_UP_RUNNING = 0x8914, 0x1 | 0x40
_PR_SET_NO_NEW_PRIVS = 38
_SIG_SETMASK, _SIGSET_SIZE = 2, 8


class Pointer:
    """An argument of an operation: the offset in the plan's data of what it points to."""

    __slots__ = ("offset",)

    def __init__(self, offset: int) -> None:
        self.offset = offset


class Plan:
    """A list of operations that grows; `pack` returns its bytes.

    `common`: a plan whose operations can be added with `call_common`; its data is part of this plan from the start.
    """

    __slots__ = ("_advance", "_common", "_data", "_failure", "_operations", "_relocations", "_size", "_strings")

    def __init__(self, common: Plan | None = None) -> None:
        self._common = common
        self._operations: list[bytes] = []
        self._data: list[bytes] = [] if common is None else common._data.copy()
        self._size: int = 0 if common is None else common._size
        self._strings: dict[bytes, int] = {} if common is None else common._strings.copy()
        self._relocations: list[int] = []
        self._failure = 0
        self._advance = 0

    def begin_step(self, failure: bytes, advance: int = 0) -> None:
        """Begin a step, whose operations follow. `failure` is of `errors.begin_failure`.

        `advance`: the number of the step among those in advance, or 0.
        """
        self._failure = self._string(failure)
        self._advance = advance

    def call(
        self,
        name: str,
        *arguments: int | bytes | Pointer,
        use: int = 0,
        target: int = 0,
        save: int = 0,
        accepted: Sequence[int] = (),
    ) -> None:
        """Add an operation of `CALLS`. Bytes are passed as a string that ends with a NUL.

        `use`: the first argument is the result of the operation that had this number as `save`; `target`: so is the
        third. `accepted`: each errno below 128 that is not a failure.
        """
        values, pointers, masks = [0, 0, 0, 0, 0], 0, _error_masks(accepted) if accepted else (0, 0)
        for index, argument in enumerate(arguments):
            if isinstance(argument, int):
                values[index] = argument
            else:
                values[index] = argument.offset if isinstance(argument, Pointer) else self._string(argument)
                pointers |= 1 << index
        self._operations.append(
            _OPERATION.pack(*(_CODES[name], use, save, pointers, self._advance, target), *values, *masks, self._failure)
        )

    def call_common(self) -> None:
        """Add the operations of the common plan."""
        assert self._common is not None
        self._operations += self._common._operations
        self._advance = 0

    def join_data(self) -> None:
        """Join the data, if other plans are to begin with it."""
        self._data = [b"".join(self._data)]

    def place(self, content: bytes) -> Pointer:
        """Add data at an address that is a multiple of 8."""
        return Pointer(self._place(content))

    def _place(self, content: bytes) -> int:
        offset = self._size
        padded = content + _PADDING[len(content) % 8]
        self._data.append(padded)
        self._size = offset + len(padded)
        return offset

    def place_strings(self, strings: Sequence[bytes]) -> Pointer:
        """Add an array of pointers to strings, with a null pointer at its end."""
        places = [self._string(text) for text in strings]
        array = self.place(struct.pack(f"{len(places) + 1}q", *places, 0))
        self._relocations += range(array.offset, array.offset + 8 * len(places), 8)
        return array

    def place_filter(self, program: bytes) -> Pointer:
        """Add a seccomp filter as `struct sock_fprog`: the number of instructions, and a pointer to them."""
        instructions = self._place(program)
        header = self.place(struct.pack("H6xq", len(program) // syscalls.SECCOMP_INSTRUCTION_SIZE, instructions))
        self._relocations.append(header.offset + 8)
        return header

    def _string(self, text: bytes) -> int:
        offset = self._strings.get(text)
        if offset is None:
            offset = self._strings[text] = self._place(text + b"\0")
        return offset

    def pack(self, flags: int = 0) -> bytes:
        """Return the plan in the form of setup.c."""
        count, relocations = len(self._operations), len(self._relocations)
        size = _HEADER.size + count * _OPERATION.size + relocations * 8 + self._size
        header = _HEADER.pack(flags, size, count, relocations)
        return b"".join([header, *self._operations, struct.pack(f"{relocations}Q", *self._relocations), *self._data])


_PADDING = tuple(bytes(-size % 8) for size in range(8))


def _error_masks(numbers: Sequence[int]) -> tuple[int, int]:
    mask = 0
    for number in numbers:
        mask |= 1 << number
    return mask & (1 << 64) - 1, mask >> 64


# ---- the steps


def is_possible(spec: Spec) -> bool:
    """Return whether a plan can do the set-up of a program with an init.

    Mounts depend on what is there when they are made, and a namespace to join on another program. A plan has no
    descriptors to pass on. The standby of a user
    namespace cannot execute a program before its maps are written, as it would lose its capabilities (capabilities(7)).
    """
    shown = spec.cover[1] if spec.cover else ()
    if (
        spec.mounts
        or spec.root is not None
        or spec.credentials
        or spec.name_files
        or spec.joins
        or spec.passed_fds
        or spec.flags & CLONE_NEWUSER
        or len(shown) > _MAX_SHOWN
    ):
        return False
    # The directories to show have to be held before the runtime directory is hidden.
    return spec.sandbox is None or not (spec.cover and shown and sandbox.hides(spec.sandbox, spec.cover[0]))


class Common:
    """The part of a specification that many programs have in common, in a form that can be a key.

    `flags`: those of clone(2). `covered`: the directory that is hidden from them, or "". `protection`: the operations
    of the sandbox in advance; `late`: those after the process has joined its cgroups, as a v1 cgroup is joined by a
    file below /sys/fs/cgroup, which must be writable until then. `shared`: what `sandbox.clone_tree` takes, if the plan
    needs its tree. `drops`: the calls that limit the bounding set.
    """

    __slots__ = ("_key", "covered", "drops", "flags", "has_devices", "late", "protection", "shared")

    def __init__(self, spec: Spec) -> None:
        """Raises StepError for a path of the sandbox that is missing, or too many."""
        self.flags = spec.flags & ~CLONE_NEWCGROUP
        self.covered = covered_in_advance(spec)
        self.has_devices = spec.sandbox is not None and spec.sandbox[0] is not None
        self.protection: tuple[Operation, ...] = ()
        self.late: tuple[Operation, ...] = ()
        self.shared: tuple[object, ...] | None = None
        if spec.sandbox is not None:
            first, last = sandbox.split(mount_steps.resolve_sandbox(spec), bool(spec.cgroup_procs))
            if sandbox.can_share(first):
                self.shared = first
            self.protection = mount_steps.sandbox_operations(spec, first, self.shared is not None)
            self.late = mount_steps.sandbox_operations(spec, last)
            if any(operation.save >= sandbox.TREE for operation in (*self.protection, *self.late)):
                raise StepError("cannot protect that many paths by a plan", errno.E2BIG)
        bounding = spec.capability_bounding_set, spec.no_new_privileges
        self.drops = _bounding_drops(*bounding)
        self._key = self.flags, self.covered, self.has_devices, id(self.protection), bounding

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Common) and self._key == other._key and self.protection is other.protection

    def __hash__(self) -> int:
        return hash(self._key)


@functools.lru_cache(64)
def _bounding_drops(bounding: int | None, no_new_privileges: bool) -> tuple[privileges.Call, ...]:
    permitted = 0 if bounding is None else syscalls.permitted_capabilities()
    return tuple(privileges.bounding_drops(bounding, no_new_privileges, _highest_capability(), permitted))


@functools.lru_cache(16)
def pack_advance(common: Common) -> bytes:
    """Return the plan of what all programs with this in common need."""
    return _common_plan(common).pack(_IS_ADVANCE | (_HAS_TREE if common.shared is not None else 0))


@functools.lru_cache(16)
def _common_plan(common: Common) -> Plan:
    plan = Plan()
    for number, step in enumerate(_ADVANCE_STEPS, 1):
        step(plan, common, number)
    return plan


@functools.lru_cache(16)
def _program_base(common: Common, late: tuple[Operation, ...]) -> Plan:
    """Return the operations of the common plan and those of `late`, which are the same for many programs, too."""
    plan = Plan(_common_plan(common))
    plan.call_common()
    _add_protection(plan, late)
    plan.join_data()
    return plan


def covered_in_advance(spec: Spec) -> str:
    """Return the directory whose cover is the same for all programs with these namespaces, or ""."""
    return spec.cover[0] if spec.cover and not spec.cover[1] else ""


def pack_plan(spec: Spec, common: Common, has_cgroup: bool) -> bytes:
    """Return the plan that makes a standby the program of a specification for which `is_possible` is true."""
    plan = Plan(_program_base(common, common.late))
    _shift_clocks(plan, spec)
    plan.begin_step(begin_failure("clone", "start the program's process", _CGROUP_HINTS))
    plan.call("hand_over")
    plan.call("setsid")
    _join_cgroups(plan, spec)
    if spec.flags & CLONE_NEWCGROUP:
        plan.begin_step(begin_failure("new_cgroup_namespace", "make a cgroup namespace"))
        plan.call("unshare", CLONE_NEWCGROUP)
    plan.call_common()
    if spec.cover and not common.covered:
        _cover(plan, spec, *spec.cover)
    if spec.hostname is not None:
        name = spec.hostname.encode()
        plan.begin_step(begin_failure("set_hostname", f"set the host name {spec.hostname}"))
        plan.call("sethostname", name, len(name))
    _set_resources(plan, spec)
    _confine(plan, spec, syscalls.permitted_capabilities() if privileges.is_changed(spec) else 0, _groups(spec))
    order = native.order(0, f"{INIT_TITLE}{spec.title}")
    plan.begin_step(_execute_failure(spec))
    plan.call("send_order", plan.place(order), len(order))
    _execute(plan, spec)
    return plan.pack(_HAS_CGROUP if has_cgroup else 0)


def _set_resources(plan: Plan, spec: Spec) -> None:
    """Set what a child of the process inherits: limits, and how the kernel treats it."""
    _set_limits(plan, spec)
    if spec.nice is not None:
        plan.begin_step(begin_failure("set_nice", f"set nice to {spec.nice}"))
        plan.call("setpriority", os.PRIO_PROCESS, 0, spec.nice)
    _set_scheduling(plan, spec)


def _confine(plan: Plan, spec: Spec, permitted: int, groups: Sequence[int] | None) -> None:
    """Become the user of the program, with its capabilities, in its directory.

    `permitted`: the permitted capabilities of the process before. `groups`: None if they stay.
    """
    plan.call("umask", spec.umask)
    _add_calls(plan, "limit_capabilities", privileges.before_user(spec))
    _become_user(plan, spec, groups)
    if privileges.is_changed(spec):
        permitted = privileges.permitted_after(spec, permitted)
        _add_calls(plan, "set_capabilities", privileges.after_user(spec, permitted))
    plan.begin_step(begin_failure("enter_directory", f"enter {spec.cwd}"))
    plan.call("chdir", os.fsencode(spec.cwd))
    if spec.no_new_privileges:
        plan.begin_step(begin_failure("give_up_new_privileges", "set no_new_privs"))
        plan.call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if spec.landlock is not None:
        _restrict_by_landlock(plan, spec.landlock)


_RULESET, _RULE_PATH = 1, 2
"""Numbers of results: the ruleset, and a path of a rule."""


def _restrict_by_landlock(plan: Plan, rules: tuple[object, ...]) -> None:
    """Do what `landlock.perform` does. The standby's program makes the rule of a path, which has its descriptor."""
    how = landlock.OPEN_HOW
    for text, name, arguments in landlock.calls(rules):
        hints = landlock.PATH_HINTS if name == "path" else landlock.HINTS
        plan.begin_step(begin_failure("restrict_by_landlock", text, hints))
        if name == "create":
            plan.call("landlock_create_ruleset", plan.place(arguments[0]), len(arguments[0]), 0, save=_RULESET)
        elif name == "path":
            path, may_be_missing, rights = arguments
            plan.call(
                *("openat2", _AT_FDCWD, os.fsencode(path), plan.place(how), len(how)),
                save=_RULE_PATH,
                accepted=(errno.ENOENT,) if may_be_missing else (),
            )
            plan.call("landlock_add_path", 0, rights, 0, use=_RULESET, target=_RULE_PATH)
            plan.call("close", 0, use=_RULE_PATH, accepted=(errno.EBADF,))
        elif name == "port":
            kind = syscalls.LANDLOCK_RULE_NET_PORT
            plan.call("landlock_add_rule", 0, kind, plan.place(arguments[0]), 0, use=_RULESET)
        else:
            plan.call("landlock_restrict_self", 0, 0, use=_RULESET)
            plan.call("close", 0, use=_RULESET)


def pack_entry(spec: Spec, has_cgroup: bool, has_terminal: bool) -> bytes:
    """Return the plan of a process that enters the namespaces of a running program, with the same confinement.

    `spec`: that of the program, but for what it executes, after `Spec.choose_entry_ids`.
    `has_terminal`: descriptor 0 becomes the controlling terminal.

    **Race: the program may watch.** After setns(2) it may find the process in /proc. By then the process has no
    descriptor of the host but that of its reports and, for its first steps, those of its cgroup and of the program. It
    is not dumpable: without CAP_SYS_PTRACE in the keeper's user namespace no process may trace it, or look at its
    memory, files or executable (ptrace(2)). A change of ids may make it dumpable (fs.suid_dumpable, proc_sys_fs(5)).
    It follows no path there before it is the program's user, as names there are the program's; the steps that need a
    path of the host come first.
    """
    plan = Plan()
    _join_session_keyring(plan, 0)
    _forbid_dump(plan)
    _join_cgroups(plan, spec)
    _set_resources(plan, spec)
    if flags := (spec.flags | clone_flags({*spec.joins})) & ~CLONE_NEWCGROUP:
        plan.begin_step(begin_failure("enter", "enter its namespaces", _ENTRY_REASONS))
        plan.call("setns", 0, flags, use=sandbox.TREE)
    # Born in the cgroup and the PID namespace. After setns(2), which a process with foreign memory may not call for
    # clocks; but before it enters the cgroup namespace (outside of which it comes from) and gives up its user.
    plan.begin_step(begin_failure("clone", "start its process", _CGROUP_HINTS + _ENTRY_REASONS))
    plan.call("hand_over")
    plan.call("setsid")
    if spec.flags & CLONE_NEWCGROUP:
        plan.begin_step(begin_failure("enter", "enter its cgroup namespace", _ENTRY_REASONS))
        plan.call("setns", 0, CLONE_NEWCGROUP, use=sandbox.TREE)
    plan.call("close", 0, use=sandbox.TREE)
    if has_terminal:
        plan.begin_step(begin_failure("terminal", "make the terminal its own"))
        plan.call("ioctl", 0, _TIOCSCTTY, 0)
    permitted = syscalls.permitted_capabilities()
    groups = _groups(spec)
    if spec.flags & CLONE_NEWUSER:
        _forbid_dump(plan)
        permitted = (1 << (_highest_capability() + 1)) - 1  # setns(2) gives all in that namespace
        if spec.groups is None:  # the keeper's are groups outside; an unprivileged keeper's cannot be dropped
            plan.call("setgroups", 0, 0, accepted=(errno.EPERM,))
            groups = None
    bounding = spec.capability_bounding_set, spec.no_new_privileges
    _add_calls(plan, "limit_capabilities", privileges.bounding_drops(*bounding, _highest_capability(), permitted))
    _confine(plan, spec, permitted, groups)
    _forbid_dump(plan)
    plan.begin_step(begin_failure("clone", "bind its life to the keeper's"))
    plan.call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # after the ids, whose change resets it
    _execute(plan, spec)
    return plan.pack(_HAS_TREE | (_HAS_CGROUP if has_cgroup else 0))


def send_entry(report: socket.socket, spec: Spec, cgroup: int, program: int, has_terminal: bool) -> None:
    """Send a process the plan to enter the namespaces of `program`, a pidfd. Raises OSError."""
    _send(report, pack_entry(spec, cgroup >= 0, has_terminal), cgroup, program)


def _forbid_dump(plan: Plan) -> None:
    plan.begin_step(begin_failure("enter", "forbid others to trace it"))
    plan.call("prctl", syscalls.PR_SET_DUMPABLE, 0, 0, 0, 0)


_PR_SET_PDEATHSIG, _TIOCSCTTY = 1, 0x540E
_ENDED = "the workload has just ended"
_ENTRY_REASONS = (
    (errno.ESRCH, _ENDED),
    (errno.ENOMEM, _ENDED),  # clone(2), for a PID namespace whose init has ended
    (errno.EPERM, "it needs the privileges that made them"),
)


def send_advance(report: socket.socket, packed: bytes, common: Common) -> None:
    """Send a standby its plan in advance, of `pack_advance`. Raises OSError."""
    tree = -1 if common.shared is None else sandbox.clone_tree(common.shared)
    try:
        handover.send(report, packed, (tree,))
    finally:
        if tree >= 0:
            os.close(tree)


def send(report: socket.socket, spec: Spec, common: Common, cgroup: int) -> None:
    """Send a standby the plan of its program. `cgroup` is a directory's descriptor, or -1.

    Raises OSError, for instance BrokenPipeError if the standby has been killed.
    """
    _send(report, pack_plan(spec, common, cgroup >= 0), cgroup)


def _send(report: socket.socket, packed: bytes, *descriptors: int) -> None:
    if len(packed) <= handover.MAX_BYTES:
        handover.send(report, packed, descriptors)
    else:
        flags, *rest = _HEADER.unpack_from(packed)
        handover.send(report, _HEADER.pack(flags | _IN_FILE, *rest), descriptors, packed)


_CGROUP_HINTS = tuple(CGROUP_HINTS.items())
_FILTER_REASONS = tuple(steps.INSTALL_FILTER_HINTS.items())


def _shift_clocks(plan: Plan, spec: Spec) -> None:
    if not spec.flags & CLONE_NEWTIME:
        return
    plan.begin_step(begin_failure("shift_clocks", "make a time namespace"))
    plan.call("unshare", CLONE_NEWTIME)
    if spec.time_offsets:
        _write(plan, "/proc/self/timens_offsets", spec.time_offsets)
    plan.call("openat", _AT_FDCWD, b"/proc/self/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC, save=1)
    plan.call("setns", 0, CLONE_NEWTIME, use=1)
    plan.call("close", 0, use=1)


def _write(plan: Plan, path: str, content: bytes) -> None:
    plan.call("openat", _AT_FDCWD, os.fsencode(path), os.O_WRONLY | os.O_CLOEXEC, save=1)
    plan.call("write", 0, content, len(content), use=1)
    plan.call("close", 0, use=1)


def _join_cgroups(plan: Plan, spec: Spec) -> None:
    for path in spec.cgroup_procs:
        plan.begin_step(begin_failure("join_cgroups", f"join the cgroup {os.path.dirname(path)}"))
        _write(plan, path, b"0")


def _new_session_keyring(plan: Plan, common: Common, number: int) -> None:
    _join_session_keyring(plan, number)


def _join_session_keyring(plan: Plan, number: int) -> None:
    plan.begin_step(begin_failure("new_session_keyring", "make a session keyring"), number)
    plan.call("keyctl", syscalls.KEYCTL_JOIN_SESSION_KEYRING, 0, accepted=syscalls.KEYRING_ERRORS)


def _separate_mounts(plan: Plan, common: Common, number: int) -> None:
    if common.flags & NAMESPACES["mount"].flag:
        plan.begin_step(begin_failure("separate_mounts", "separate the mounts from the host's"), number)
        plan.call("mount", 0, b"/", 0, mounts.MS_REC | mounts.MS_SLAVE, 0)


def _mount_proc(plan: Plan, common: Common, number: int) -> None:
    if common.flags & NAMESPACES["mount"].flag and common.flags & NAMESPACES["pid"].flag:
        plan.begin_step(begin_failure("mount_proc", "mount a new /proc"), number)
        plan.call("mount", b"proc", b"/proc", b"proc", mount_steps.RESTRICTED, 0)


def _mount_ipc(plan: Plan, common: Common, number: int) -> None:
    has_namespaces = common.flags & NAMESPACES["mount"].flag and common.flags & NAMESPACES["ipc"].flag
    if has_namespaces and not common.has_devices:
        for path, fstype, options, data in mount_steps.ipc_mounts():
            plan.begin_step(begin_failure("mount_ipc", f"mount a new {path}"), number)
            accepted = errno.ENOENT, errno.ENOTDIR, errno.ENODEV
            kind = fstype.encode()
            plan.call("mount", kind, path.encode(), kind, options, data.encode(), accepted=accepted)


def _mount_sys(plan: Plan, common: Common, number: int) -> None:
    has_namespaces = common.flags & NAMESPACES["mount"].flag and common.flags & NAMESPACES["network"].flag
    if not has_namespaces or not os.path.exists("/sys/class/net"):
        return
    cgroups = mount_steps.CGROUPS.encode() if os.path.exists(mount_steps.CGROUPS) else b""
    if cgroups:
        plan.begin_step(begin_failure("mount_sys", f"hold {mount_steps.CGROUPS}"), number)
        options = mounts.OPEN_TREE_CLONE | os.O_CLOEXEC | mounts.AT_RECURSIVE
        plan.call("open_tree", _AT_FDCWD, cgroups, options, save=1)
    plan.begin_step(begin_failure("mount_sys", "mount a new /sys"), number)
    plan.call("mount", b"sysfs", b"/sys", b"sysfs", mount_steps.RESTRICTED | mounts.MS_RDONLY, 0)
    if cgroups:
        plan.call("move_mount", 0, b"", _AT_FDCWD, cgroups, mounts.MOVE_MOUNT_F_EMPTY_PATH, use=1)
        plan.call("close", 0, use=1)


def _protect_paths(plan: Plan, common: Common, number: int) -> None:
    _add_protection(plan, common.protection, number)


def _add_protection(plan: Plan, operations: Sequence[Operation], number: int = 0) -> None:
    for operation in operations:
        plan.begin_step(begin_failure("protect_paths", operation.text), number)
        arguments = [
            plan.place(argument) if isinstance(argument, sandbox.Structure) else argument
            for argument in operation.arguments
        ]
        plan.call(
            operation.name,
            *arguments,
            use=operation.use,
            target=operation.target,
            save=operation.save,
            accepted=operation.accepted,
        )


def _cover_in_advance(plan: Plan, common: Common, number: int) -> None:
    if common.covered:
        plan.begin_step(begin_failure("mount_all", f"cover the runtime directory {common.covered}"), number)
        _mount_cover(plan, common.covered, mounts.MS_RDONLY)


def _bring_up_loopback(plan: Plan, common: Common, number: int) -> None:
    if common.flags & NAMESPACES["network"].flag:
        plan.begin_step(begin_failure("bring_up_loopback", "bring up the loopback interface"), number)
        request = plan.place(struct.pack("16sh22x", b"lo", _IFF_UP_RUNNING))
        plan.call("socket", socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0, save=1)
        plan.call("ioctl", 0, _SIOCSIFFLAGS, request, use=1)
        plan.call("close", 0, use=1)


def _limit_capabilities(plan: Plan, common: Common, number: int) -> None:
    for text, call, arguments in common.drops:
        plan.begin_step(begin_failure("limit_capabilities", text), number)
        plan.call(call, *(argument for argument in arguments if isinstance(argument, int)))


_ADVANCE_STEPS: tuple[Callable[[Plan, Common, int], None], ...] = (
    _new_session_keyring,
    _separate_mounts,
    _mount_proc,
    _mount_ipc,
    _mount_sys,
    _protect_paths,
    _cover_in_advance,
    _bring_up_loopback,
    _limit_capabilities,
)


def _mount_cover(plan: Plan, directory: str, flags: int) -> None:
    # A directory that this process cannot reach is not visible to the program either.
    plan.call(
        *("mount", b"tmpfs", os.fsencode(directory), b"tmpfs", cover.FLAGS | flags),
        cover.OPTIONS.encode(),
        accepted=(errno.ENOENT,),
    )


def _cover(plan: Plan, spec: Spec, directory: str, show: dict[str, str], links: dict[str, str]) -> None:
    """Do what `cover.Cover` does without other mounts."""
    for number, name in enumerate(show, 1):
        path = f"{directory}/{name}"
        plan.begin_step(begin_failure("mount_all", f"hold {path}"))
        flags = mounts.OPEN_TREE_CLONE | os.O_CLOEXEC
        plan.call("open_tree", _AT_FDCWD, os.fsencode(path), flags, save=number)
    plan.begin_step(begin_failure("mount_all", f"cover the runtime directory {directory}"))
    _mount_cover(plan, directory, 0)
    for number, (name, shown) in enumerate(show.items(), 1):
        plan.begin_step(begin_failure("mount_all", f"bind {directory}/{shown}"))
        _bind(plan, f"{directory}/{name}", directory, shown, number)
    for name, target in links.items():
        path = f"{directory}/{name}"
        plan.begin_step(begin_failure("mount_all", f"make the link {path}"))
        plan.call("symlinkat", os.fsencode(target), _AT_FDCWD, os.fsencode(path), accepted=(errno.EEXIST,))
    plan.begin_step(begin_failure("mount_all", f"make the cover of {directory} read-only"))
    _make_read_only(plan, directory)


def _bind(plan: Plan, source: str, directory: str, shown: str, number: int) -> None:
    """Bind what `open_tree` has saved as `number` to a path in the cover."""
    *parents, last = [part for part in shown.split("/") if part not in ("", ".")]
    path = directory
    for part in parents:
        path = f"{path}/{part}"
        plan.call("mkdirat", _AT_FDCWD, os.fsencode(path), 0o777, accepted=(errno.EEXIST,))
    path = f"{path}/{last}"
    try:
        is_directory = stat.S_ISDIR(os.stat(source).st_mode)
    except OSError:  # `open_tree` fails, and reports it
        is_directory = True
    if is_directory:
        plan.call("mkdirat", _AT_FDCWD, os.fsencode(path), 0o777, accepted=(errno.EEXIST,))
    else:
        flags = os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC
        plan.call("openat", _AT_FDCWD, os.fsencode(path), flags, 0o644, save=_MAX_SHOWN + 1)
        plan.call("close", 0, use=_MAX_SHOWN + 1)
    plan.call("move_mount", 0, b"", _AT_FDCWD, os.fsencode(path), mounts.MOVE_MOUNT_F_EMPTY_PATH, use=number)
    plan.call("close", 0, use=number)
    if is_directory:
        _make_read_only(plan, path)


def _make_read_only(plan: Plan, path: str) -> None:
    flags = mounts.MS_REMOUNT | mounts.MS_BIND | mounts.MS_RDONLY | cover.FLAGS
    plan.call("mount", 0, os.fsencode(path), 0, flags, 0)


_LIMIT_REASONS = (
    (errno.EPERM, "raising it needs CAP_SYS_RESOURCE"),
    (errno.EINVAL, "the soft limit is above the hard one"),
)


def _set_limits(plan: Plan, spec: Spec) -> None:
    limits = list(spec.rlimits)
    if steps.initial_nofile is not None:
        limits.insert(0, ("nofile", resource.RLIMIT_NOFILE, steps.initial_nofile))
    for name, number, pair in limits:
        shown = ":".join("infinity" if value < 0 else str(value) for value in pair)
        plan.begin_step(begin_failure("set_limits", f"set limit_{name} to {shown}", _LIMIT_REASONS))
        plan.call("prlimit64", 0, number, plan.place(struct.pack("2q", *pair)), 0)  # -1 is RLIM64_INFINITY


_SCHEDULING_REASONS = tuple(scheduling.HINTS.items())
_highest_capability = functools.cache(privileges.highest_capability)


def _set_scheduling(plan: Plan, spec: Spec) -> None:
    for text, call, arguments in scheduling.calls(spec):
        plan.begin_step(begin_failure("set_scheduling", text, _SCHEDULING_REASONS))
        match call:
            case "oom_score_adj":
                _write(plan, scheduling.OOM_SCORE_ADJUST, str(arguments[0]).encode())
            case "ioprio_set":
                plan.call("ioprio_set", syscalls.IOPRIO_WHO_PROCESS, 0, *arguments)
            case "sched_setscheduler":
                policy, priority = arguments
                plan.call("sched_setscheduler", 0, policy, plan.place(struct.pack("i", priority)))
            case "timer_slack":
                plan.call("prctl", syscalls.PR_SET_TIMERSLACK, *arguments, 0, 0, 0)


def _add_calls(plan: Plan, step: str, calls: Iterable[privileges.Call]) -> None:
    for text, call, arguments in calls:
        plan.begin_step(begin_failure(step, text))
        plan.call(call, *(plan.place(data) if isinstance(data, bytes) else data for data in arguments))


def _groups(spec: Spec) -> Sequence[int] | None:
    """Return the groups to set; None if they stay."""
    groups = spec.groups
    if groups is None and not (spec.uid is None and spec.gid is None) and os.getgroups():
        groups = [] if steps.is_setgroups_allowed() else None
    return groups


def _become_user(plan: Plan, spec: Spec, groups: Sequence[int] | None) -> None:
    if groups is not None:
        plan.begin_step(begin_failure("become_user", f"set the groups {groups}"))
        plan.call("setgroups", len(groups), plan.place(struct.pack(f"{len(groups)}I", *groups)))
    if spec.gid is not None:
        plan.begin_step(begin_failure("become_user", f"become gid {spec.gid}"))
        plan.call("setresgid", spec.gid, spec.gid, spec.gid)
    if spec.uid is not None:
        plan.begin_step(begin_failure("become_user", f"become uid {spec.uid}"))
        plan.call("setresuid", spec.uid, spec.uid, spec.uid)


def _execute_failure(spec: Spec) -> bytes:
    name = spec.argv[0]
    has_path = b"/" in name
    reasons = steps.execute_hints(spec)
    if not has_path:
        reasons = {**reasons, errno.ENOENT: f"searched PATH={spec.path}"}
    shown = name.decode("utf-8", "backslashreplace")
    path = os.path.join(spec.cwd, os.fsdecode(name)) if has_path else ""
    return begin_failure("execute", f"execute {shown}", tuple(reasons.items()), path)


def _execute(plan: Plan, spec: Spec) -> None:
    """Report that the process is ready, and execute the program."""
    name, failure = spec.argv[0], _execute_failure(spec)
    plan.begin_step(failure)
    plan.call("send_ready", steps.READY, len(steps.READY))
    plan.call("rt_sigprocmask", _SIG_SETMASK, plan.place(bytes(_SIGSET_SIZE)), 0, _SIGSET_SIZE)
    argv, environment = (
        plan.place_strings(spec.argv),
        plan.place_strings([b"=".join(pair) for pair in spec.env.items()]),
    )
    for program in spec.filters:
        plan.begin_step(begin_failure("execute", steps.INSTALL_FILTER, _FILTER_REASONS))
        flags = syscalls.SECCOMP_FILTER_FLAG_SPEC_ALLOW
        plan.call("seccomp", syscalls.SECCOMP_SET_MODE_FILTER, flags, plan.place_filter(program))
    plan.begin_step(failure)
    directories = [None] if b"/" in name else spec.path.split(":")
    for directory in directories:
        candidate = name if directory is None else os.fsencode(directory or ".") + b"/" + name
        plan.call("execve", candidate, argv, environment)
