"""The step that shows a program files of its own in place of /etc/hosts and /etc/resolv.conf.

Each is a read-only bind mount in the program's mount namespace. It is attached to the directory entry itself, also if
that is a symbolic link: a link leads nowhere, as it is never followed. So whatever a root file system of others has
there, nothing outside is covered, and nothing is written into it. Only in a file system that is the program's own, the
upper layer of its root or a tmpfs, a missing file is made to mount on.
"""

from __future__ import annotations

import errno
import os
import stat

from nsupervisor.keeper.setup.errors import StepError, step_error
from nsupervisor.linux import mounts
from nsupervisor.linux.trusted_paths import locate, open_in_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from nsupervisor.keeper.setup.spec import Spec

_ATTRIBUTES = mounts.ATTR_RDONLY | mounts.ATTR_NOSUID | mounts.ATTR_NODEV | mounts.ATTR_NOEXEC
_ENTRY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def hold(spec: Spec) -> None:
    """Take a copy of the mount of each file, as the keeper's user, who alone enters their directory.

    Raises StepError.
    """
    users = frozenset({0, os.geteuid()})
    for place, (source, _) in spec.name_files.items():
        try:
            fd, _ = locate(source, users)
            tree = mounts.open_tree("", False, fd)
            os.close(fd)
            mounts.set_tree_attributes(tree, _ATTRIBUTES, 0, recursive=False)
            mounts.set_tree_propagation(tree, mounts.MS_PRIVATE)
        except OSError as error:
            raise step_error(f"hold {source} for {place}", error) from None
        spec.held_name_files[place] = tree


def make_places(spec: Spec, root: int) -> None:
    """Make the files to mount on that a root of its own lacks, if its changes are the program's own."""
    if spec.root is None or spec.root[2] is None:
        return
    for place in spec.held_name_files:
        try:
            directory = _open_directory(os.path.dirname(place), root)
        except OSError:  # `attach` reports it
            continue
        _make(directory, os.path.basename(place))
        os.close(directory)


def attach(spec: Spec, root: int = -1, private: Collection[int] = ()) -> None:
    """Attach the files. `root`: that of the program, if it has one of its own. Raises StepError.

    `private`: st_dev of each tmpfs that was mounted for the program.
    """
    for place, tree in spec.held_name_files.items():
        is_required = spec.name_files[place][1]
        try:
            _attach(place, tree, root, private)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            if is_required:
                hint = "make an empty file there, or give the root an overlay"
                raise step_error(f"show a file of its own at {place}", error, hint) from None
        except OSError as error:
            if is_required or error.errno != errno.ELOOP:
                hint = f"a part of {os.path.dirname(place)} is a symbolic link" if error.errno == errno.ELOOP else ""
                raise step_error(f"show a file of its own at {place}", error, hint) from None
        os.close(tree)
    spec.held_name_files = {}


def _attach(place: str, tree: int, root: int, private: Collection[int]) -> None:
    directory = _open_directory(os.path.dirname(place), root)
    try:
        name = os.path.basename(place)
        if os.fstat(directory).st_dev in private:
            _make(directory, name)
        entry = os.open(name, _ENTRY, dir_fd=directory)
    finally:
        os.close(directory)
    try:
        if stat.S_ISDIR(os.fstat(entry).st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        mounts.move_mount(tree, "", entry)
    finally:
        os.close(entry)


def _open_directory(path: str, root: int) -> int:
    if root >= 0:
        return open_in_root(root, path, os.O_PATH | os.O_DIRECTORY, follows=False)
    return locate(path, frozenset({0, os.geteuid()}))[0]


def _make(directory: int, name: str) -> None:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        os.close(os.open(name, flags, 0o644, dir_fd=directory))
    except FileExistsError:
        pass
    except OSError as error:
        raise StepError(f"cannot make {name} to mount on: {error.strerror}", error.errno or 0) from None
