"""Hide the runtime directory from a program: its sockets can command the service, its files describe other programs.

In each new mount namespace an empty read-only tmpfs covers the directory, after all other mounts, and also each place
where a bind mount shows it. Only what is meant for the program is bound into it. These are directories with a socket in
them: a socket that the service creates again after a crash then appears in the same place. They are read-only: a
program that shares such a directory with others must not put a socket of its own there. connect(2) and sendto(2) to a
socket need no writable mount.

A program with CAP_SYS_ADMIN in its user namespace may unmount the cover, and make a mount writable. Then the check of
peers (linux/peers.py) still protects the sockets, and the modes of the files. The cover is for programs that may not
unmount it, and hides the names of other programs from them.
"""

from __future__ import annotations

import errno
import os
import stat

from nsupervisor.keeper.setup.errors import StepError, step_error
from nsupervisor.linux import mounts, syscalls
from nsupervisor.linux.trusted_paths import locate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nsupervisor.linux.mounts import Mount

FLAGS = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
OPTIONS = "mode=755,size=4k,nr_inodes=16"


class Cover:
    """The cover of the runtime directory. Created before the other mounts, and applied after them.

    It holds what the program may see as detached mounts (open_tree(2)), which need neither their path nor /proc later.
    """

    __slots__ = ("_directory", "_has_own_root", "_identity", "_links", "_places", "_sources", "_trees")

    def __init__(self, directory: str, show: dict[str, str], links: dict[str, str], has_own_root: bool = False) -> None:
        """Open what the program may see. Raises StepError.

        `directory`: an absolute path without symbolic links. `show`: what is in the directory, and where in it to bind
        that. `links`: symbolic links in the directory, and their targets. Both contain relative paths. `has_own_root`:
        the program has another root, in which only mounts can show the directory; sources are paths outside of it.
        """
        self._directory = directory
        self._has_own_root = has_own_root
        self._places: dict[str, None] = {} if has_own_root else {directory: None}
        self._sources = {directory: None} if has_own_root else self._places
        self._identity = _file_identity(directory)
        self._trees: dict[str, int] = {}
        self._links = {f"{directory}/{name}": target for name, target in links.items()}
        for name, place in show.items():
            path = f"{directory}/{name}"
            try:
                self._trees[f"{directory}/{place}"] = mounts.open_tree(path)
            except OSError as error:
                raise step_error(f"hold {path}", error) from None

    def add(self, name: str, tree: int) -> None:
        """Show a mount, which is attached nowhere yet, as a directory in the cover; `tree`: its descriptor."""
        self._trees[f"{self._directory}/{name}"] = tree

    def record_mount(self, mount: Mount, source: str, destination: str) -> None:
        """Record each place at which a new bind mount shows the directory.

        `source`, `destination`: of the mount, without symbolic links. Raises StepError for a source within the
        directory.
        """
        source, destination = source.rstrip("/"), destination.rstrip("/")
        for place in list(self._sources):
            if place == source or place.startswith(f"{source}/"):
                self._places[f"{destination}{place[len(source) :]}" or "/"] = None
            elif source.startswith(f"{place}/"):
                raise _shown(mount, f"{mount.source} is in")

    def check_layers(self, mount: Mount, layers: dict[str, str]) -> None:
        """Check a mount of a file system, before it is made: it may be built of other directories, as an overlay is.

        An overlay shows copies of the files in its layers, which no cover can find later. It does not show what is
        mounted below its layers. `layers`: the paths of layers without symbolic links, if they are known. Raises
        StepError for a layer that shows the directory or a part of it.
        """
        for path in mount.layer_paths():
            layer = (layers.get(path) or os.path.realpath(path)).rstrip("/")
            for place in self._sources:
                if layer == place or layer.startswith(f"{place}/"):
                    raise _shown(mount, f"its layer {path} is in")
                if place.startswith(f"{layer}/") and _is_same_device(layer or "/", place):
                    raise _shown(mount, f"its layer {path} contains")

    def apply(self, private: set[int], creator_ids: tuple[int, int] | None = None) -> None:
        """Cover each place that shows the directory, and bind what the program may see. Raises StepError.

        `private`: st_dev of each tmpfs that was mounted for the program; a missing destination is created only there.
        `creator_ids`: the (uid, gid) that creates files, if this process' own ids are not mapped in its user namespace,
        so that it could not create any (EOVERFLOW). exec resets these ids, credentials(7).
        """
        if creator_ids is not None and self._trees:
            syscalls.set_file_system_ids(*creator_ids)
        covered = False
        for place in self._places:
            is_written = place == self._directory and bool(self._trees)
            covered = (self._cover(place, is_written) and is_written) or covered
        if self._has_own_root and not covered and (self._trees or self._is_shown()):
            self._make()
            covered = True
        if not self._trees:
            return
        for path, tree in self._trees.items():
            self._bind(path, tree, covered, private)
        for path, target in self._links.items():
            self._link(path, target)
        if covered:
            try:
                _make_read_only(self._directory)
            except OSError as error:
                raise step_error(f"make the cover of {self._directory} read-only", error) from None

    def _cover(self, place: str, is_written: bool) -> bool:
        """Cover the directory at `place`; return False if something else is there.

        A place that this process cannot reach, or that a later mount hides, is not visible to the program either.
        """
        try:
            fd, _ = locate(place, users=())
        except OSError:
            return False
        try:
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) != self._identity:
                return False
            os.fchdir(fd)  # by the descriptor: a copy may be in a directory that another user can rename
            mounts.mount("tmpfs", ".", "tmpfs", FLAGS if is_written else FLAGS | mounts.MS_RDONLY, OPTIONS)
            os.chdir("/")
        except OSError as error:
            raise step_error(f"cover the runtime directory {place}", error) from None
        finally:
            os.close(fd)
        return True

    @property
    def mount_point(self) -> str:
        """The directory that a root of the program's own needs for what the program may see; "" for none."""
        return self._directory if self._has_own_root and self._trees else ""

    def _is_shown(self) -> bool:
        return self._identity is not None and _file_identity(self._directory) == self._identity

    def _make(self) -> None:
        """Mount an empty directory in the program's own root."""
        try:
            fd, _ = locate(self._directory, users=())
            try:
                os.fchdir(fd)
                mounts.mount("tmpfs", ".", "tmpfs", FLAGS, OPTIONS)
            finally:
                os.close(fd)
                os.chdir("/")
        except OSError as error:
            hint = "make it in the root" if error.errno == errno.ENOENT else ""
            raise step_error(f"show the notify socket in {self._directory}", error, hint) from None

    def _bind(self, path: str, tree: int, covered: bool, private: set[int]) -> None:
        try:
            if not os.path.lexists(path):
                if not covered and not _is_private(path, private):
                    hint = "another mount hides it; remove that, or mount a tmpfs over a directory above it"
                    raise StepError(f"cannot bind {path}: its directory is missing ({hint})", errno.ENOENT)
                if stat.S_ISDIR(os.fstat(tree).st_mode):
                    os.makedirs(path)
                else:
                    os.makedirs(os.path.dirname(path), exist_ok=True)
                    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))
            is_directory = stat.S_ISDIR(os.fstat(tree).st_mode)
            mounts.move_mount(tree, path)
            os.close(tree)
            if is_directory:
                _make_read_only(path)
        except OSError as error:
            raise step_error(f"bind {path}", error) from None

    def _link(self, path: str, target: str) -> None:
        try:
            os.symlink(target, path)
        except FileExistsError:  # another file is there, in a tmpfs of the program
            pass
        except OSError as error:
            raise step_error(f"make the link {path}", error) from None


def warm_up() -> None:
    """Run the code with paths that do not exist, to warm up a standby: its memory pages are then copied in advance."""
    nowhere = "/proc/self/no/such"
    cover = Cover(nowhere, {}, {"link": "target"})
    directory = os.open("/", os.O_PATH | os.O_CLOEXEC)
    for step in (
        lambda: cover._cover("/", True),
        lambda: mounts.mount("tmpfs", "", "tmpfs", FLAGS, OPTIONS),
        lambda: cover._bind(nowhere, directory, True, set()),
        lambda: cover._bind(nowhere, 0, True, set()),
        lambda: cover._link(nowhere, nowhere),
    ):
        _attempt(step)
    _attempt(lambda: mounts.open_tree(nowhere))
    _attempt(lambda: mounts.move_mount(-1, nowhere))
    _attempt(lambda: _make_read_only(""))
    os.close(directory)


def _attempt(step: Callable[[], object]) -> None:
    try:
        step()
    except (OSError, StepError):
        pass


def _make_read_only(path: str) -> None:
    mounts.mount(None, path, None, mounts.MS_REMOUNT | mounts.MS_BIND | mounts.MS_RDONLY | FLAGS)


def _shown(mount: Mount, what: str) -> StepError:
    reason = f"{what} the supervisor's runtime directory, which programs may not see"
    return StepError(f"cannot mount {mount.source} on {mount.destination}: {reason}", errno.EACCES)


def _is_same_device(first: str, second: str) -> bool:
    try:
        return os.stat(first).st_dev == os.stat(second).st_dev
    except OSError:  # what this process cannot look at, it cannot mount
        return False


def _file_identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_private(path: str, private: set[int]) -> bool:
    parent = os.path.dirname(path)
    while not os.path.exists(parent):
        parent = os.path.dirname(parent)
    return os.stat(parent).st_dev in private
