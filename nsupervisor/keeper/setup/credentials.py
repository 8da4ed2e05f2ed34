"""The credentials of a program: files with secrets, in a file system of its own that nothing else sees.

Only this process reads the files. What is in them is in no message, state file or record. A credential is a file of
mode 0400 of the program's user, in memory that is never written to swap where the kernel can promise that (tmpfs(5),
Linux 6.4). systemd.exec(5), "Credentials", has the same limits.
"""

from __future__ import annotations

import errno
import os
import stat

from nsupervisor.keeper.setup.errors import StepError, step_error
from nsupervisor.linux import mounts
from nsupervisor.linux.trusted_paths import open_for_reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_BYTES = 1 << 20
"""The most bytes of all credentials of a program."""
DIRECTORY = "credentials"
"""The directory that the program sees, in the cover of the runtime directory."""
_BLOCK_BYTES = 4096


def read(paths: Mapping[str, str]) -> dict[str, bytes]:
    """Read the files, with the rights of the keeper; return their contents by name. Raises StepError."""
    found: dict[str, bytes] = {}
    left = MAX_BYTES
    for name, path in paths.items():
        text = f"read the credential {name} from {path}"
        try:
            fd = open_for_reading(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
            with open(fd, "rb") as file:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise OSError(errno.EINVAL, "it is not a regular file")
                found[name] = file.read(left + 1)
        except OSError as error:
            raise step_error(text, error) from None
        left -= len(found[name])
        if left < 0:
            raise StepError(f"cannot {text}: all credentials together have more than {MAX_BYTES:,} bytes", errno.EFBIG)
    return found


def make(contents: Mapping[str, bytes], uid: int, gid: int) -> int:
    """Make the file system; return a descriptor of it, attached nowhere. Raises StepError.

    `uid`, `gid`: of the program, in its user namespace.
    """
    blocks = sum(len(content) // _BLOCK_BYTES + 1 for content in contents.values())
    options = f"mode=0700,size={(blocks + 1) * _BLOCK_BYTES},nr_inodes={len(contents) + 2}"
    try:
        try:
            tree = mounts.new_file_system("tmpfs", f"{options},noswap")
        except OSError:  # an older kernel, or a user namespace
            tree = mounts.new_file_system("tmpfs", options)
        for name, content in contents.items():
            fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o400, dir_fd=tree)
            with open(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(fd, 0o400)
                os.fchown(fd, uid, gid)
        os.chmod(".", 0o500, dir_fd=tree)
        os.chown(".", uid, gid, dir_fd=tree)
        attributes = mounts.ATTR_RDONLY | mounts.ATTR_NOSUID | mounts.ATTR_NODEV | mounts.ATTR_NOEXEC
        mounts.set_tree_attributes(tree, attributes, 0, recursive=False)
    except OSError as error:
        raise step_error("make the directory of the credentials", error) from None
    return tree
