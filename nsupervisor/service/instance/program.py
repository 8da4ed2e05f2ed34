"""The program of an instance's current generation: its processes, its pipes, and its notify socket."""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

from nsupervisor.api.control import ExecRefused, ExecTerms
from nsupervisor.cgroups import Cgroup
from nsupervisor.config.expansion import Instance
from nsupervisor.config.load import ConfigError
from nsupervisor.config.model import WorkloadConfig
from nsupervisor.core.descriptor_store import StoreRequest
from nsupervisor.core.lifecycle import PROBED, Lifecycle, reports_readiness
from nsupervisor.core.reload.start_changes import START_REVISION, find_start_changes
from nsupervisor.keeper.messages import Child, KeeperLost, RefusedError, Spawned, UnknownChildError
from nsupervisor.logs import call_in_thread
from nsupervisor.notify_socket import socket_path
from nsupervisor.service.context import ServiceContext
from nsupervisor.service.instance.joined_namespaces import open_joined
from nsupervisor.service.instance.readiness import NotificationReader, host_owner
from nsupervisor.service.instance.spawn_spec import (
    cover,
    environment_file_variables,
    own_directories,
    spawn_inputs,
    spawn_spec,
)
from nsupervisor.service.instance.users import IdentityError
from nsupervisor.service.platform.start_obstacle import StartObstacle
from nsupervisor.service.state.file import InstanceCheckpoint, Process, ProcessRef

_OF_NAMESPACES = (
    *("mounts", "cover", "sandbox", "root", "directories", "credentials", "name_files"),
    *("hostname", "time_offsets", "requires_security", "init", "descriptors"),
)
"""Keys of a specification that are about what a command in the program finds there, or does not get."""
OBSTACLE_TIMEOUT_S = 2.0
"""Seconds that a restart waits for the file systems that its program is on."""
_OWN_PROCESS_PREFIX = "nsupervisor-"
"""Prefix of the names of the service's own processes: `linux.syscalls.set_process_name`."""


@attrs.define(eq=False)
class Program:
    """The present program: started by `spawn`, or found by a takeover."""

    name: str
    instance: Instance | None
    context: ServiceContext
    on_notification: Callable[[int, str, str], None]
    """Receives the generation and a report of `NotificationReader`."""
    on_status: Callable[[int, str, int], None]
    """Receives the generation and a status text, as `StatusTexts` reports it."""
    on_barrier: Callable[[int], None]
    """Receives the descriptor of a barrier, and owns it: see `NotificationReader`."""
    on_store: Callable[[StoreRequest, Sequence[int]], str] = lambda request, fds: ""
    """Receives what a message asks the descriptor store for: see `NotificationReader`."""
    notifies_alone: Callable[[], bool] = lambda: False
    """Returns whether the program alone may send notifications, and no other process of the workload."""
    max_stored: Callable[[], int] = lambda: 0
    """Returns the most descriptors that a program may store."""
    pid: int | None = attrs.field(init=False, default=None)
    """The program's pid, in the host's PID namespace; before it is executed, that of the first process."""
    process: ProcessRef | None = attrs.field(init=False, default=None)
    """Its processes; None before the program has been executed, and after its exit."""
    spawn_digest: str = attrs.field(init=False, default="")
    """Digest of what it was started with: see `spawn_inputs`."""
    environment_digest: str = attrs.field(init=False, default="")
    """Digest of the contents of its environment files; "" if it had none."""
    watchdog_sec: float | None = attrs.field(init=False, default=None)
    """The `watchdog_sec` that it was started with; None if that is not known."""
    start_revision: int = attrs.field(init=False, default=START_REVISION)
    """The `START_REVISION` of the version that started it; this version's if that is not known."""
    is_being_set_up: bool = attrs.field(init=False, default=False)
    """Whether the keeper has been asked for it and has not reported that it was executed. Until then its mount
    namespace belongs to its set-up, and `pid` may be that of its init, which is in the same namespace."""
    is_outdated: bool = attrs.field(init=False, default=False)
    """Whether an earlier supervisor started it, with other settings than this supervisor's file had at the takeover."""
    _pidfd: int = attrs.field(init=False, default=-1)
    """The program's pidfd, so that its exit is seen even without the keeper."""
    _pipe_inodes: tuple[int, int] = attrs.field(init=False, default=(0, 0))
    _notify_fd: int = attrs.field(init=False, default=-1)
    """The notify socket, or -1."""
    _notify_path: Path | None = attrs.field(init=False, default=None)
    _readiness_fd: int = attrs.field(init=False, default=-1)
    """The pipe on which the program says that it is ready, or -1."""
    _directories: Sequence[Mapping[str, Any]] = attrs.field(init=False, default=())
    """The directories that were made for it."""
    _notifications: NotificationReader | None = attrs.field(init=False, default=None)
    """Reads the notify socket; None if there is none."""
    _is_watchdog_active: bool = attrs.field(init=False, default=False)
    _notify_resources: contextlib.ExitStack = attrs.field(init=False, factory=contextlib.ExitStack)
    """The notify socket and the task that reads it."""

    @property
    def pidfd(self) -> int:
        """The program's pidfd while it runs, which stays this object's own; -1 if there is none."""
        return self._pidfd

    # ---- from its start to its exit

    async def spawn(
        self,
        workload: WorkloadConfig,
        generation: int,
        cgroup: Cgroup,
        while_spawning: Callable[[], None],
        is_debug: bool = False,
    ) -> Spawned:
        """Have the keeper start a generation; `while_spawning` is called while it works.

        `is_debug`: with DEBUG_INVOCATION=1, as systemd.exec(5) describes it.

        Raises KeeperLost if the outcome is unknown; IdentityError, ConfigError, SpawnError or OSError if the start has
        failed.
        """
        self.close_notify_socket()
        if workload.root.image is not None:
            if workload.root.path is None:
                from nsupervisor.images.errors import ImageUnavailableError

                raise ImageUnavailableError(_missing_image(workload))
            # In a thread: the store is locked for a moment, and written to the disk.
            note = self.context.kernel.note_image_use
            await call_in_thread(note, self.context.state_directory, self.name, workload)
        if workload.sockets:
            await self.context.sockets.ensure(workload)
        if stored := self.context.stores.names(self.name):
            await self.context.stores.sync(self.name)
        variables = environment_file_variables(workload)
        spec, digest = self._spec(workload, generation, cgroup, variables), self.context.digest
        watchdog_sec, own = workload.watchdog_sec, {}
        if workload.uses_notify_socket:
            own = self._open_notify_socket(generation, watchdog_sec, host_owner(spec))
            self._hold_notifications()
        spec["env"] |= own
        if workload.namespaces.mount:
            spec["cover"] = cover(workload, self.context.runtime_directory, own.get("NOTIFY_SOCKET"))
        self._directories = spec.pop("directories", ())
        if self._directories:
            self.context.kernel.make_directories(self._directories, host_owner(spec))
        if workload.root.path is not None and spec["root"]["overlay"]:
            self.context.kernel.make_overlay_directory(spec)
        # These are no part of what the workload is configured to be started with, so the digest does not have them.
        further: dict[str, Any] = {"env": {**spec["env"], "DEBUG_INVOCATION": "1"}} if is_debug else {}
        if stored:
            further["descriptors"] = [*spec.get("descriptors", ()), *self.context.stores.passed(self.name)]
        if workload.readiness is not None and workload.readiness.fd is not None:
            further["readiness_fd"] = workload.readiness.fd
        join_fds = await open_joined(self.name, workload, self.context) if "joins" in spec else []
        if "name_files" in spec:
            try:
                spec["name_files"] = await self.prepare_name_files(workload, spec["hostname"])
            except BaseException:
                self.close(*join_fds)
                raise
        self.is_being_set_up = True
        try:
            spawned = await self.context.keeper.spawn({**spec, **further}, while_spawning, self._notify_fd, join_fds)
        except KeeperLost:
            cgroup.search()
            raise
        except Exception:  # there is no process; after KeeperLost there may be one
            self.is_being_set_up = False
            raise
        finally:
            self.close(*join_fds)
        cgroup.track(spawned.pid)
        self.forget_process()
        self._readiness_fd = spawned.readiness
        self.pid, self.watchdog_sec, self.is_outdated = spawned.pid, watchdog_sec, False
        self.start_revision = START_REVISION
        self.spawn_digest = digest.digest(spawn_inputs(spec, workload.security))
        self.environment_digest = digest.digest(variables) if workload.environment_file else ""
        self._pipe_inodes = self._inodes(spawned.stdout, spawned.stderr)
        return spawned

    async def prepare_name_files(self, workload: WorkloadConfig, hostname: str | None) -> dict[str, Any]:
        """Write the files for names; return the key `name_files` of a specification. Raises OSError."""
        owner = self.context.find_network_owner(self.name) if workload.namespaces.joined_workloads else self.name
        return await self.context.name_files.prepare(self.name, workload, hostname, owner)

    def executed(self, pid: int) -> None:
        """Note that the program has been executed.

        It is a child of the keeper or of its init, so its pid cannot be reused before the keeper has reported its exit.
        """
        first, self.pid, self.is_being_set_up = self.pid or pid, pid, False
        self._hear()
        try:
            pidfd = self.context.kernel.processes.pin(pid)
        except OSError:  # the program has exited already, or no descriptor is free
            return
        starts = self.context.kernel.processes.start_time(first), self.context.kernel.processes.start_time(pid)
        if starts[0] is None or starts[1] is None:
            self.context.kernel.processes.close(pidfd)
            return
        self.forget_process()
        self._pidfd = pidfd
        self.process = ProcessRef(Process(first, starts[0]), Process(pid, starts[1]), self._pipe_inodes)

    def exited(self) -> None:
        """Note that the program has exited."""
        self.pid, self.is_being_set_up = None, False
        self.forget_process()
        self.close_notify_socket()

    def left_background(self) -> None:
        """Note that the program has exited and left the daemon that it has started; which one that is, is not known."""
        self.pid = None
        self.close(self._pidfd)
        self._pidfd = -1

    def pid_file_owners(self, workload: WorkloadConfig, generation: int, cgroup: Cgroup) -> set[int]:
        """Return the users on the host that a pid file may belong to. Raises as `exec_spec`."""
        owner = host_owner(self._spec(workload, generation, cgroup))
        return {0, os.geteuid(), *(() if owner is None else owner[:1])}

    async def change_main(self, id_: str, pid: int, cgroup: Cgroup) -> str:
        """Continue with another process of the workload as the program; return why that is not possible, or "".

        A pidfd of the process is opened first. So the check that it is part of the workload, its start time and the
        keeper's signals are about one process, also if its pid is given to another one meanwhile.
        """
        kernel = self.context.kernel.processes
        try:
            pidfd = kernel.pin(pid)
        except OSError as error:
            return f"process {pid} cannot be followed: {error.strerror}"
        started = kernel.start_time(pid)
        if started is None or pid not in cgroup.pids() or kernel.has_ended(pidfd):
            self.close(pidfd)
            return f"process {pid} is not part of this workload"
        main = Process(pid, started)
        before = self.process
        first = before.first if before is not None and before.first != before.program else main
        process = ProcessRef(first, main, self._pipe_inodes)
        try:
            try:
                await self.context.keeper.set_main(id_, (pid, started), pidfd)
            except UnknownChildError:  # the keeper that started it is dead
                await self._give_to_keeper(id_, process, pidfd, cgroup)
        except RefusedError as error:
            self.close(pidfd)
            return f"process {pid} cannot be followed: {error}"
        except KeeperLost:  # the search goes on, with the next keeper
            self.close(pidfd)
            return f"process {pid} cannot be followed: the keeper was lost"
        self.close(self._pidfd)
        self._pidfd, self.pid, self.process = pidfd, pid, process
        return ""

    async def _give_to_keeper(self, id_: str, process: ProcessRef, pidfd: int, cgroup: Cgroup) -> None:
        """Let the keeper monitor a process that it does not know. Raises RefusedError and KeeperLost."""
        members, kernel = cgroup.pids(), self.context.kernel.processes
        pipes = [kernel.open_pipe(inode, members) if inode else -1 for inode in process.pipes]
        pipes = [fd if fd >= 0 else kernel.open_ended_pipe() for fd in pipes]
        own = [fd for fd in (self._notify_fd, self._readiness_fd) if fd >= 0]
        first, has_readiness = (process.first.pid, process.first.start_ticks), self._readiness_fd >= 0
        try:
            await self.context.keeper.direct.adopt(
                id_, first, process.program.pid, [pidfd, *pipes, *own], has_readiness
            )
        finally:
            self.close(*pipes)

    async def remove_directories(self, workload: WorkloadConfig) -> None:
        """Remove its runtime directories, when none of its processes is left. Raises OSError.

        `workload`: says which they are, if an earlier supervisor has made them.
        """
        if workload.root.image is not None:
            forget = self.context.kernel.forget_image_use
            await call_in_thread(forget, self.context.state_directory, self.name)
        directories, self._directories = self._directories, ()
        if not directories and workload.runtime_directory:
            directories = own_directories(workload, self.instance, self.context.state_directory)
        if directories:
            # In a thread: the program decides how many files there are. It is waited for, as the next start makes the
            # directories again.
            await call_in_thread(self.context.kernel.remove_directories, directories)

    def forget_process(self) -> None:
        """Forget the processes of a program that has exited, or that another generation has replaced."""
        self.process = None
        self.close(self._pidfd)
        self._pidfd = -1

    def _inodes(self, stdout: int, stderr: int) -> tuple[int, int]:
        return self.context.kernel.processes.pipe_inode(stdout), self.context.kernel.processes.pipe_inode(stderr)

    # ---- sd_notify(3)

    def close_notify_socket(self) -> None:
        """Close the notify socket, and the pipe of the readiness, if there are any."""
        self._notify_resources.close()
        self.close(self._readiness_fd)
        self._notify_fd, self._readiness_fd, self._notifications = -1, -1, None

    def open_readiness_pipe(self) -> int:
        """Return a duplicate of the pipe on which the program says that it is ready, or -1; the caller closes it."""
        return -1 if self._readiness_fd < 0 else self.context.kernel.processes.duplicate(self._readiness_fd)

    def read_notifications(self) -> bool:
        """Handle the notify messages that have arrived; return whether the program has ever reported that it is ready.

        For the time of its exit, which may be reported before the task that reads the socket has run.
        """
        if self._notifications is None:
            return False
        self._notifications.read_waiting()
        return self._notifications.is_ready

    def set_watchdog(self, is_active: bool) -> None:
        """Begin to require keep-alives, the first one within a full period, or stop requiring them."""
        self._is_watchdog_active = is_active
        if self._notifications is not None:
            self._notifications.set_watchdog(is_active)

    def _open_notify_socket(
        self,
        generation: int,
        watchdog_sec: float,
        owner: tuple[int, int] | None = None,
        fd: int = -1,
        again: bool = False,
        is_ready: bool = False,
    ) -> dict[str, str]:
        """Open this generation's notify socket, or continue with that of an earlier supervisor; `again`: it was lost.

        `is_ready`: the program has reported over an earlier socket that it is ready.

        Returns the environment variables that name it to the program.
        """
        id_, digest = f"{self.name}#{generation}", self.context.digest
        path = socket_path(self.context.runtime_directory, id_, digest.token(id_), again)
        ours = self._notify_resources.enter_context(self.context.kernel.open_notify_socket(path, owner, fd))
        scope = trio.CancelScope()
        self._notify_resources.callback(scope.cancel)
        on_notification, on_status = partial(self.on_notification, generation), partial(self.on_status, generation)
        tree, is_part_of = self.context.keeper.tree, self.context.kernel.is_part_of
        self._notifications = NotificationReader(
            ours,
            watchdog_sec,
            on_notification,
            on_status,
            lambda pid: is_part_of(pid, self.name, tree) and self._may_notify(pid),
            self.on_barrier,
            is_ready,
            self.max_stored(),
            self.on_store,
            self.context.kernel.descriptors.discard,
            self._may_notify,
        )
        self._notifications.set_watchdog(self._is_watchdog_active)
        self.context.nursery.start_soon(self._notifications.run, scope)
        variables = {"NOTIFY_SOCKET": str(ours.path)}
        if watchdog_sec:
            variables["WATCHDOG_USEC"] = str(round(watchdog_sec * 1e6))
        self._notify_fd, self._notify_path = ours.socket.fileno(), ours.path
        return variables

    def _may_notify(self, pid: int) -> bool:
        """Return whether a process of the workload may send notifications.

        Until the report of its execution has come, the pid of the program is not known, and it may send some already:
        these wait until then (`NotificationReader.hold`).
        """
        return not self.notifies_alone() or self.is_being_set_up or self.process is None or pid == self.pid

    def _hold_notifications(self) -> None:
        if self._notifications is not None and self.notifies_alone():
            self._notifications.hold()

    def _hear(self) -> None:
        """Read notifications, also those that waited: it is known who may send them."""
        if self._notifications is not None:
            self._notifications.may_read.set()

    @property
    def notify_path(self) -> str | None:
        """The path of the notify socket; None if there is none."""
        return None if self._notifications is None else str(self._notify_path)

    def make_notify_socket_again(self, workload: WorkloadConfig, generation: int) -> bool:
        """Make the notify socket again if it was removed; return whether it was. Raises OSError."""
        if self._notifications is None or self._notify_path is None or self._notify_path.exists():
            return False
        self._notifications.read_waiting()
        is_ready, removed = self._notifications.is_ready, os.dup(self._notify_fd)
        self.close_notify_socket()
        self._open_notify_socket(generation, self._watchdog_in_force(workload), fd=removed, is_ready=is_ready)
        return True

    # ---- takeover

    def restore(self, checkpoint: InstanceCheckpoint) -> None:
        """Restore what an earlier supervisor saved about the program."""
        self.spawn_digest, self.environment_digest = checkpoint.spawn_digest, checkpoint.environment_digest
        self.watchdog_sec, self.start_revision = checkpoint.watchdog_sec, checkpoint.start_revision
        if checkpoint.process is not None and checkpoint.lifecycle.is_alive:
            if checkpoint.lifecycle.exit is None:
                self._attach(checkpoint.process)
            else:  # it has left a daemon that is not known yet
                self.process, self._pipe_inodes = checkpoint.process, checkpoint.process.pipes

    def _attach(self, process: ProcessRef) -> None:
        self.process, self.pid, self._pipe_inodes = process, process.program.pid, process.pipes
        self._pidfd = self.context.kernel.processes.open_pidfd(process.program.pid, process.program.start_ticks)

    def attach_child(self, child: Child, workload: WorkloadConfig, generation: int, is_starting: bool) -> bool:
        """Continue with a child of the keeper, the current generation; return whether its program is known to run.

        Otherwise the report that it was executed is still to come, or to be repeated. `is_starting`: that report has
        not been handled yet.
        """
        self.pid, self.is_being_set_up = child.program_pid or child.pid, False
        self._pipe_inodes = self._inodes(child.stdout, child.stderr)
        if child.notify >= 0:  # also of a program that has ended: it may have reported before that it was ready
            self._open_notify_socket(generation, self._watchdog_in_force(workload), fd=child.notify)
        self._readiness_fd = child.readiness
        if child.program_pid is None:
            self.is_being_set_up = child.status is None
            self._hold_notifications()
            self.forget_process()
            return False
        if child.status is None and (is_starting or self.process is None):
            self.pid = child.pid
            self._hold_notifications()
            self.forget_process()
            return False
        return True

    def find(self, cgroup: Cgroup) -> ProcessRef | None:
        """Find the program of a generation that the keeper does not have: the saved one, or that in the cgroup."""
        return self.process or find_program(cgroup, self.context, self._pipe_inodes)

    def expect_pipes(self, inodes: tuple[int, int]) -> None:
        """Look for a program with these pipes in `find`."""
        self._pipe_inodes = inodes

    def attach_found(self, process: ProcessRef, is_starting: bool) -> None:
        """Continue with a program that `find` returned. `is_starting`: until it is reported as executed."""
        if self.process is None:
            self._attach(process)
            self.pid = process.first.pid
            if is_starting:
                self.process = None

    def open_descriptors(self, process: ProcessRef, cgroup: Cgroup) -> list[int]:
        """Open a pidfd (-1 if there is none) and the ends to read of its two pipes; the caller closes them."""
        members, kernel = [process.program.pid, *cgroup.pids()], self.context.kernel.processes
        pipes = [kernel.open_pipe(inode, members) if inode else -1 for inode in process.pipes]
        program = kernel.duplicate(self._pidfd) if self._pidfd >= 0 else -1
        return [program, *(fd if fd >= 0 else kernel.open_ended_pipe() for fd in pipes)]

    def close(self, *fds: int) -> None:
        """Close descriptors; -1 stands for none."""
        for fd in fds:
            if fd >= 0:
                self.context.kernel.processes.close(fd)

    def notify_fd(self, workload: WorkloadConfig, lifecycle: Lifecycle, cgroup: Cgroup, is_lost: bool) -> int:
        """Return the notify socket for the keeper, or -1. `is_lost`: an earlier supervisor and its keeper had it."""
        watchdog_sec, generation = self._watchdog_in_force(workload), lifecycle.generation
        is_used = watchdog_sec or reports_readiness(lifecycle, workload) or workload.file_descriptor_store_max
        if is_lost and is_used:
            owner = host_owner(self._spec(workload, generation, cgroup))
            self._open_notify_socket(generation, watchdog_sec, owner, again=True)
        return self._notify_fd

    def _watchdog_in_force(self, workload: WorkloadConfig) -> float:
        return workload.watchdog_sec if self.watchdog_sec is None else self.watchdog_sec

    def check_outdated(self, workload: WorkloadConfig, lifecycle: Lifecycle, cgroup: Cgroup) -> bool:
        """Note, and return, whether it was started with other settings than these."""
        self.is_outdated = not self.matches(workload, lifecycle, cgroup)
        return self.is_outdated

    def matches(self, workload: WorkloadConfig, lifecycle: Lifecycle, cgroup: Cgroup) -> bool:
        """Return whether it was started as `workload` says, as far as this can be known."""
        # A probe is no part of what a program is started with.
        type_ = "simple" if lifecycle.started_type == PROBED else lifecycle.started_type or workload.type
        if (type_, self._watchdog_in_force(workload)) != (workload.type, workload.watchdog_sec):
            return False
        try:
            spec = self._spec(workload, lifecycle.generation, cgroup)
        except (IdentityError, ConfigError, OSError):
            return True
        return not self.context.digest.differs(self.spawn_digest, spawn_inputs(spec, workload.security))

    def exec_spec(
        self, workload: WorkloadConfig, lifecycle: Lifecycle, cgroup: Cgroup, terms: ExecTerms
    ) -> dict[str, Any]:
        """Return the specification of a command that is confined as this program is.

        Raises ExecRefused if the program was started with other settings than `workload` has, or this is not known: the
        command must not have more than the program. Raises IdentityError, ConfigError and OSError as a start does.
        """
        spec = self._spec(workload, lifecycle.generation, cgroup)
        expected = self.context.digest.digest(spawn_inputs(spec, workload.security))
        if self.spawn_digest != expected:
            raise ExecRefused(
                "it was started with other settings than it has now, or nothing is known of them; restart it"
            )
        if find_start_changes(workload, self.start_revision):
            raise ExecRefused("an earlier version started it, with other settings than this version; restart it")
        if "process_tree" in spec and not workload.namespaces.pid:
            raise ExecRefused("without cgroups and a PID namespace nothing would end what the command leaves")
        if terms.user is not None:
            workload = attrs.evolve(workload, user=terms.user, supplementary_groups=(), dynamic_user=False)
            spec = self._spec(workload, lifecycle.generation, cgroup)
        if terms.directory is not None:
            spec["cwd"] = terms.directory
        environment = {name: value for name, value in spec["env"].items() if name != "FDSTORE"}
        own = {"argv": list(terms.argv), "env": {**environment, **terms.environment}}
        return {**{key: value for key, value in spec.items() if key not in _OF_NAMESPACES}, **own}

    def debug_spec(
        self, workload: WorkloadConfig, lifecycle: Lifecycle, cgroup: Cgroup, terms: ExecTerms
    ) -> tuple[dict[str, Any], Sequence[Mapping[str, Any]]]:
        """Return the specification of a command in a sandbox as the next program's, and the directories to make.

        Raises ExecRefused, and IdentityError, ConfigError and OSError as a start does.
        """
        if not workload.namespaces.pid:
            raise ExecRefused("without a PID namespace nothing would end what the command leaves")
        spec = self._spec(workload, lifecycle.generation, cgroup)
        if "joins" in spec:
            kinds = ", ".join(sorted(workload.namespaces.joined))
            raise ExecRefused(f"it joins namespaces ({kinds}); a command without its program cannot")
        if "process_tree" in spec:
            raise ExecRefused("it has no cgroup, in which the command would be")
        if terms.user is not None:
            workload = attrs.evolve(workload, user=terms.user, supplementary_groups=(), dynamic_user=False)
            spec = self._spec(workload, lifecycle.generation, cgroup)
        spec["env"] |= terms.environment
        spec |= {"argv": list(terms.argv), "init": False, "cwd": terms.directory or spec["cwd"]}
        if workload.namespaces.mount:
            spec["cover"] = cover(workload, self.context.runtime_directory, None)
        del spec["requires_security"]
        return spec, spec.pop("directories", ())

    def hook_spec(
        self, workload: WorkloadConfig, lifecycle: Lifecycle, cgroup: Cgroup, terms: ExecTerms
    ) -> dict[str, Any]:
        """Return the specification of a command that runs before the program or after its end; make its directories.

        It is confined as the program is, in namespaces of its own. Raises as `debug_spec`.
        """
        if workload.root.image is not None and workload.root.path is None:
            from nsupervisor.images.errors import ImageUnavailableError

            raise ImageUnavailableError(_missing_image(workload))
        spec, directories = self.debug_spec(workload, lifecycle, cgroup, terms)
        spec.pop("descriptors", None)  # the program gets the sockets
        owner = host_owner(spec)
        if directories:
            self._directories = directories
            self.context.kernel.make_directories(directories, owner)
        if spec.get("root", {}).get("overlay"):
            self.context.kernel.make_overlay_directory(spec)
        return spec

    async def find_start_obstacle(
        self, workload: WorkloadConfig, generation: int, cgroup: Cgroup
    ) -> StartObstacle | None:
        """Return what would make the start of a generation fail, as far as it can be known before; None: nothing.

        Users and environment files are read as for a start; of files, only their presence and permissions. If a file
        system does not answer, that is left to the start.
        """
        if workload.root.image is not None and workload.root.path is None:
            return StartObstacle(("root", "image"), _missing_image(workload))
        try:
            spec = self._spec(workload, generation, cgroup)
        except IdentityError as error:
            return StartObstacle(("user",), str(error))
        except (ConfigError, OSError) as error:
            return StartObstacle(("environment_file",), str(error))
        with trio.move_on_after(OBSTACLE_TIMEOUT_S):
            return await call_in_thread(self.context.kernel.find_start_obstacle, spec, abandon_on_cancel=True)
        return None

    def _spec(
        self, workload: WorkloadConfig, generation: int, cgroup: Cgroup, variables: dict[str, str] | None = None
    ) -> dict[str, Any]:
        context = self.context
        return spawn_spec(
            workload,
            self.name,
            self.instance,
            generation,
            cgroup,
            context.runtime_directory,
            variables,
            context.uid_ranges,
            context.state_directory,
            context.dynamic_users,
        )


def _missing_image(workload: WorkloadConfig) -> str:
    """Return why a workload whose image could not be used when the configuration was loaded cannot be started."""
    load = f"nsupervisor image load {workload.root.image}"
    return f"its image is not loaded, or has changed; {load} loads it or says why not, and nsupervisor reload uses it"


def find_program(cgroup: Cgroup, context: ServiceContext, pipes: tuple[int, int] = (0, 0)) -> ProcessRef | None:
    """Find the program in a cgroup: the oldest process whose parent is outside.

    None if the cgroup is empty, or if the set-up is not complete, so that the process is still one of the service.
    """
    members, processes = cgroup.pids(), context.kernel.processes
    roots = []
    for pid in members:
        started, parent = processes.start_time(pid), processes.parent_pid(pid)
        if started is not None and parent is not None and parent not in members:
            roots.append((started, pid, parent))
    if not roots:
        return None
    started, pid, parent = min(roots)
    if processes.command_name(pid).startswith(_OWN_PROCESS_PREFIX):
        return None
    program = first = Process(pid, started)
    if (
        processes.command_name(parent).startswith(f"{_OWN_PROCESS_PREFIX}ini")
        and (begun := processes.start_time(parent)) is not None
    ):
        first = Process(parent, begun)
    if not any(pipes):
        pipes = processes.read_write_pipe_inode(pid, 1), processes.read_write_pipe_inode(pid, 2)
    return ProcessRef(first, program, pipes)
