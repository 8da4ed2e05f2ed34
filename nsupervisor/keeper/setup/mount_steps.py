"""The set-up steps that mount: the mounts of new namespaces, and those of the specification.

A directory of the host on the way to a source or a destination may belong to another user, who may replace it by a link
at any moment. So each is looked up once, without links of other users (linux/trusted_paths.py), and mounted by its
descriptor.
"""

from __future__ import annotations

import errno
import os
import stat

from nsupervisor.keeper.setup import credentials, name_files, sandbox
from nsupervisor.keeper.setup.cover import Cover
from nsupervisor.keeper.setup.errors import StepError, step_error
from nsupervisor.keeper.setup.spec import is_zero_mapped
from nsupervisor.linux import mounts, syscalls
from nsupervisor.linux.trusted_paths import UntrustedPathError, locate, make_below
from nsupervisor.mount_data import replace_layers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsupervisor.keeper.setup.sandbox import Operation
    from nsupervisor.keeper.setup.spec import Spec
    from nsupervisor.linux.mounts import Mount


def separate_mounts(spec: Spec) -> None:
    """Make all mounts slaves of the host's: its later mounts and unmounts arrive here, mounts made here stay here.

    If they were private, a file system that the host unmounts would stay busy for as long as the program runs.
    """
    if "mount" in spec.namespaces:
        try:
            mounts.mount(None, "/", None, mounts.MS_REC | mounts.MS_SLAVE)
        except OSError as error:
            raise step_error("separate the mounts from the host's", error) from None


RESTRICTED = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC


def mount_proc(spec: Spec) -> None:
    """Mount a /proc that shows the new PID namespace over the old one.

    Only in a new mount namespace, as the host's /proc would change otherwise.
    """
    if "pid" in spec.namespaces and "mount" in spec.namespaces:
        try:
            mounts.mount("proc", "/proc", "proc", RESTRICTED)
        except OSError as error:
            raise step_error("mount a new /proc", error) from None


def mount_ipc(spec: Spec) -> None:
    """Mount the file systems of a new IPC namespace: shared memory (shm_overview(7)) and queues (mq_overview(7)).

    Shared memory is a tmpfs, so the kernel itself does not separate it. It ends with the last process here, so that
    nothing of a killed program stays. A directory that the host lacks is not needed here either.
    """
    if {"ipc", "mount"} <= spec.namespaces:
        _mount_ipc(spec)


def _mount_ipc(spec: Spec) -> None:
    if spec.sandbox is not None and spec.sandbox[0] is not None:  # its devices have these
        return
    for path, fstype, flags, data in ipc_mounts(file_creator_ids(spec)):
        try:
            mounts.mount(fstype, path, fstype, flags, data)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            if error.errno != errno.ENODEV:  # a kernel without such queues
                raise step_error(f"mount a new {path}", error) from None


def ipc_mounts(ids: tuple[int, int] | None = None) -> tuple[tuple[str, str, int, str], ...]:
    """Return path, type, flags and data of each file system of an IPC namespace; (uid, gid) `ids` own the first."""
    owner = "" if ids is None else f",uid={ids[0]},gid={ids[1]}"
    return (
        ("/dev/shm", "tmpfs", mounts.MS_NOSUID | mounts.MS_NODEV, f"mode=1777{owner}"),  # noqa: S108
        ("/dev/mqueue", "mqueue", RESTRICTED, ""),
    )


def mount_sys(spec: Spec) -> None:
    """Mount a read-only /sys that shows the devices of the new network namespace over the old one.

    The cgroup file systems stay where they are: runtimes look up their limits there. Other file systems below /sys are
    not shown.
    """
    if {"network", "mount"} <= spec.namespaces:
        _mount_sys()


def mount_joined(spec: Spec) -> None:
    """Mount the file systems of the namespaces that this process has just joined, as those of new ones.

    POSIX shared memory is a file system of each mount namespace, so that of a joined IPC namespace is empty.
    """
    if "mount" not in spec.namespaces:
        return
    if "network" in spec.joins:
        _mount_sys()
    if "ipc" in spec.joins:
        _mount_ipc(spec)


def _mount_sys() -> None:
    if not os.path.exists("/sys/class/net"):
        return
    try:
        tree = mounts.open_tree(CGROUPS, recursive=True)
    except FileNotFoundError:
        tree = -1
    except OSError as error:
        raise step_error(f"hold {CGROUPS}", error) from None
    try:
        mounts.mount("sysfs", "/sys", "sysfs", RESTRICTED | mounts.MS_RDONLY)
        if tree >= 0:
            mounts.move_mount(tree, CGROUPS)
            os.close(tree)
    except OSError as error:
        hint = "in a user namespace this needs a /sys of which nothing is hidden" if error.errno == errno.EPERM else ""
        raise step_error("mount a new /sys", error, hint) from None


CGROUPS = "/sys/fs/cgroup"


def hold_shown_directories(spec: Spec) -> None:
    """Hold what the cover of the runtime directory shows, and read the credentials, as the keeper's user.

    Before the process becomes root of a user namespace: a directory on the way may be closed to that user. And before
    the directory is hidden by the sandbox.
    """
    if spec.cover and ("user" in spec.namespaces or spec.sandbox is not None or spec.root is not None):
        spec.held_cover = Cover(*spec.cover, has_own_root=spec.root is not None)
    if spec.credentials:
        spec.held_credentials = credentials.read(spec.credentials)
    if spec.name_files:
        name_files.hold(spec)


def protect_paths(spec: Spec) -> None:
    """Give the program the devices of its sandbox, and hide or protect paths.

    With a root of its own only the kernel's file systems are protected, which that root shows; `enter_root` does the
    others.
    """
    if spec.sandbox is None:
        return
    owner = file_creator_ids(spec)
    if owner is not None:
        syscalls.set_file_system_ids(*owner)
    if spec.root is None:
        hold_hidden_sources(spec)
    try:
        sandbox.perform(sandbox_operations(spec, resolve_sandbox(spec)))
    except OSError as error:
        raise step_error(error.filename or "protect paths", error) from None


def hold_hidden_sources(spec: Spec) -> None:
    """Find the sources of bind mounts that the sandbox is about to hide, such as a directory in an empty /home."""
    assert spec.sandbox is not None
    users = frozenset({0, os.geteuid()})
    for mount in spec.mounts:
        if mount.fstype == "bind" and sandbox.hides(spec.sandbox, mount.source):
            try:
                spec.held_sources[mount.source] = locate(mount.source, users)
            except OSError:  # it is looked up again, and reported then
                pass


def resolve_sandbox(spec: Spec) -> tuple[Any, ...]:
    """Look at the paths of a sandbox; return what `sandbox_operations` needs. Raises StepError."""
    cgroups = tuple(spec.cgroup_procs) if spec.cgroup is not None and "cgroup" in spec.namespaces else None
    try:
        wanted = spec.sandbox or (None, "", ())
        if spec.root is not None:
            wanted = sandbox.kernel_part(wanted)
        return sandbox.resolve(wanted, frozenset({0, os.geteuid()}), cgroups)
    except sandbox.MissingPathError as error:
        hint = 'write "-" before a path that may be missing' if error.errno == errno.ENOENT else ""
        raise step_error(f"find {error.filename}", error, hint) from None


def sandbox_operations(spec: Spec, resolved: tuple[Any, ...], has_tree: bool = False) -> tuple[Operation, ...]:
    """Return the system calls of a sandbox. `has_tree`: the process has a tree of `sandbox.clone_tree`."""
    has_user = "user" in spec.namespaces
    return sandbox.operations(
        resolved,
        "ipc" in spec.namespaces or "ipc" in spec.joins,
        "pid" in spec.namespaces,
        not has_user and sandbox.can_make_nodes(),
        file_creator_ids(spec) if has_user else None,
        not has_user or any(first <= sandbox.TTY_GROUP < first + size for first, _, size in spec.gid_mappings),
        has_tree,
        any(mount.destination.startswith("/dev/") for mount in spec.mounts),
    )


def mount_all(spec: Spec) -> None:
    """Mount everything in the given order. A missing destination is created only in a tmpfs mounted before.

    With a root of its own, `enter_root` has done that.

    Creating it there leaves no trace on the host. The cover of the runtime directory comes last, so that no other mount
    shows the directory again.
    """
    if spec.root is not None:
        return
    cover = spec.held_cover or (Cover(*spec.cover) if spec.cover else None)
    private: set[int] = set()
    for path in sandbox.temporary_paths(spec.sandbox) if spec.sandbox is not None else ():
        if os.path.exists(path):
            private.add(os.stat(path).st_dev)
    if cover is not None:
        show_credentials(spec, cover)
    if spec.mounts:
        mounter = Mounter(cover, "user" in spec.namespaces, private, spec.held_sources)
        for mount in spec.mounts:
            mounter.mount(mount)
    if spec.held_name_files:
        name_files.attach(spec, private=private)
    if cover is not None:
        cover.apply(private, file_creator_ids(spec))


def show_credentials(spec: Spec, cover: Cover) -> None:
    """Add the credentials to what the program sees in the runtime directory. Raises StepError."""
    if spec.held_credentials:
        uid, gid = file_creator_ids(spec) or (os.geteuid(), os.getegid())
        owner = uid if spec.uid is None else spec.uid, gid if spec.gid is None else spec.gid
        cover.add(credentials.DIRECTORY, credentials.make(spec.held_credentials, *owner))
        spec.held_credentials = {}


class Mounter:
    """Makes the mounts of a specification. `private`: st_dev of each tmpfs that it has mounted."""

    __slots__ = ("_cover", "_fds", "_held_sources", "_in_user_namespace", "_users", "private")

    def __init__(
        self,
        cover: Cover | None,
        in_user_namespace: bool,
        private: set[int],
        held_sources: dict[str, tuple[int, str]],
    ) -> None:
        self._held_sources = held_sources
        self.private = private
        self._cover = cover
        self._in_user_namespace = in_user_namespace
        # In a user namespace these are the numbers inside. If host's root has none, its links are not followed either.
        self._users = frozenset({0, os.geteuid()})
        self._fds: list[int] = []

    def mount(self, mount: Mount) -> None:
        """Make one mount. Raises StepError."""
        try:
            if mount.fstype == "bind":
                self._bind(mount, describe(mount))
            else:
                self._mount_file_system(mount, describe(mount))
        finally:
            while self._fds:
                os.close(self._fds.pop())

    def hold(self, mount: Mount) -> tuple[int, str]:
        """Make one mount that is attached nowhere; return its descriptor, and the path of what a bind mount shows.

        For a program with a root of its own, which does not see the sources. Raises StepError.
        """
        operation = describe(mount)
        try:
            if mount.fstype == "bind":
                source, source_path = self._find_source(mount, operation)
                try:
                    return mount.copy(source), source_path
                except OSError as error:
                    raise step_error(operation, error, self._bind_hint(mount, error)) from None
            source_path, data = self._find_layers(mount, operation)
            try:
                return mount.make(source_path, data), ""
            except OSError as error:
                raise step_error(operation, error) from None
        finally:
            while self._fds:
                os.close(self._fds.pop())

    def _find_source(self, mount: Mount, operation: str) -> tuple[int, str]:
        try:
            return self._held_sources.get(mount.source) or self._locate(mount.source)
        except OSError as error:
            raise step_error(f"{operation}: {mount.source}", error) from None

    def _bind(self, mount: Mount, operation: str) -> None:
        source, source_path = self._find_source(mount, operation)
        is_file = not stat.S_ISDIR(os.fstat(source).st_mode)
        destination, destination_path = self._find_destination(mount.destination, is_file, operation)
        try:
            mount.bind(destination, source)
        except OSError as error:
            raise step_error(operation, error, self._bind_hint(mount, error)) from None
        if self._cover is not None:
            self._cover.record_mount(mount, source_path, destination_path)

    def _bind_hint(self, mount: Mount, error: OSError) -> str:
        if error.errno == errno.ENOSYS:
            return "options on bind mounts need Linux 5.12"
        if error.errno == errno.EINVAL and self._in_user_namespace and not mount.options.is_recursive:
            return (
                f'a user namespace may not uncover what is below the mounts in {mount.source}: add the option "rbind"'
            )
        return ""

    def _mount_file_system(self, mount: Mount, operation: str) -> None:
        source, data = self._find_layers(mount, operation)
        destination, path = self._find_destination(mount.destination, False, operation)
        try:
            mount.mount_file_system(destination, source, data)
            if mount.fstype == "tmpfs" or mount.options.propagation:
                root = self._open_root(path, destination)
                mount.propagate(root)
                if mount.fstype == "tmpfs":
                    self.private.add(os.fstat(root).st_dev)
        except OSError as error:
            raise step_error(operation, error) from None

    def _find_layers(self, mount: Mount, operation: str) -> tuple[str, str]:
        """Return the source of a file system and its options, in which layers are descriptors."""
        layers: dict[str, str] = {}
        try:
            source = self._locate_device(mount.source)
            data = replace_layers(mount.options.data, lambda path: self._locate_layer(path, layers))
        except OSError as error:
            raise step_error(f"{operation}: {error.filename or mount.source}", error) from None
        if self._cover is not None:
            self._cover.check_layers(mount, layers)
        return source, data

    def _locate(self, path: str) -> tuple[int, str]:
        fd, real = locate(path, self._users)
        self._fds.append(fd)
        return fd, real

    def _locate_device(self, source: str) -> str:
        """Return the path of a source without links; a source may also be a name with a meaning of its own."""
        if not source.startswith("/"):
            return source
        try:
            return self._locate(source)[1]
        except FileNotFoundError:
            return source

    def _locate_layer(self, path: str, layers: dict[str, str]) -> str:
        """Return the name of a descriptor of a layer of an overlay, and add its path without links to `layers`."""
        try:
            fd, layers[path] = self._locate(path)
        except UntrustedPathError:
            raise
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None
        return f"/proc/self/fd/{fd}"

    def _find_destination(self, path: str, is_file: bool, operation: str) -> tuple[int, str]:
        try:
            try:
                return self._locate(path)
            except FileNotFoundError:
                return self._make_destination(path, is_file, operation)
        except OSError as error:
            raise step_error(f"{operation}: {path}", error) from None

    def _make_destination(self, path: str, is_file: bool, operation: str) -> tuple[int, str]:
        missing: list[str] = []
        parent = path.rstrip("/")
        while True:
            parent, _, name = parent.rpartition("/")
            missing.insert(0, name)
            try:
                directory, directory_path = self._locate(parent or "/")
                break
            except FileNotFoundError:
                if not parent:
                    raise
        if os.fstat(directory).st_dev not in self.private:
            hint = "make it, or mount a tmpfs over a directory above it"
            raise StepError(f"cannot {operation}: {path}: {os.strerror(errno.ENOENT)} ({hint})", errno.ENOENT)
        try:
            self._fds.append(make_below(directory, missing, is_file))
        except OSError as error:
            raise step_error(f"{operation}: cannot make {path}", error) from None
        return self._fds[-1], "/".join([directory_path.rstrip("/"), *missing])

    def _open_root(self, path: str, covered: int) -> int:
        """Open the root of the file system that has just been mounted at `path`, over the directory `covered`."""
        root, _ = locate(path, users=())
        self._fds.append(root)
        if os.fstat(root).st_dev == os.fstat(covered).st_dev:
            raise UntrustedPathError(f"{path} was replaced while it was mounted; mount on a directory of root")
        return root


def describe(mount: Mount) -> str:
    return f"mount {mount.source} on {mount.destination}"


def file_creator_ids(spec: Spec) -> tuple[int, int] | None:
    """Return the ids that create files in a user namespace without a user 0 or group 0: the first mapped ones."""
    uids, gids = spec.uid_mappings, spec.gid_mappings
    if is_zero_mapped(uids) and is_zero_mapped(gids):
        return None
    return uids[0][0] if uids else 0, gids[0][0] if gids else 0
