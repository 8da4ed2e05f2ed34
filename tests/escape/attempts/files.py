"""Files of the host. The inode tells whether a file is the host's or one of the same name. None is changed."""

import os
import stat

from harness import UNIQUE, RefusedError, attempt, first, is_host_file, opens, targets, variant, writable_directories


def host_file(name: str, flags: int) -> str:
    """Open a file of the host; RefusedError if there is another in its place."""
    path, device, inode = targets["files"][name]  # type: ignore[index]
    if not is_host_file(path, device, inode):
        raise RefusedError("not the host's")
    if flags & os.O_DIRECTORY and flags & os.O_RDWR:
        probe = f"{path}/.escape-{UNIQUE}"
        os.mkdir(probe, 0o700)
        os.rmdir(probe)
        return f"made a directory in {path}"
    return opens(path, flags)


MAKE = os.O_DIRECTORY | os.O_RDWR
for _name, _file, _flags, _title in (
    ("usr-write", "usr", os.O_WRONLY, "open a file below /usr for writing"),
    ("usr-make", "usr directory", MAKE, "make a file below /usr"),
    ("boot-make", "boot", MAKE, "make a file in /boot"),
    ("etc-write", "etc", os.O_WRONLY, "open a file of /etc for writing"),
    ("etc-make", "etc directory", MAKE, "make a file in /etc"),
    ("root-make", "root", MAKE, "make a file in the host's root directory"),
    ("shadow-read", "shadow", os.O_RDONLY, "read the passwords of the host (/etc/shadow)"),
    ("home-read", "home", os.O_RDONLY | os.O_DIRECTORY, "list the home directory of root"),
    ("home-make", "home", MAKE, "make a file in the home directory of root"),
    ("var-make", "var", MAKE, "make a file in /var/lib"),
    ("tmp-make", "tmp", MAKE, "make a file in the host's /tmp"),
    ("run-make", "run", MAKE, "make a file in the host's /run"),
):
    variant(host_file, _name, f"{_title[0].upper()}{_title[1:]}", _file, _flags, shares="root")


@attempt("root")
def host_secret() -> str:
    """Read a file of root with mode 600 that the test has made."""
    with open(str(targets["secret"])) as file:
        if file.read() != targets["secret_text"]:
            raise RefusedError("not the host's")
    return "read"


@attempt("root")
def host_tmp_files() -> str:
    """See the files in the host's /tmp."""
    path, device, inode = targets["files"]["tmp file"]  # type: ignore[index]
    if not is_host_file(path, device, inode):
        raise RefusedError("not the host's")
    return "saw one"


@attempt("root")
def host_setuid_programs() -> str:
    """See setuid programs of the host."""
    found = []
    for directory in ("/usr/bin", "/usr/sbin", "/usr/lib/dbus-1.0"):
        if not os.path.isdir(directory):
            continue
        for entry in os.scandir(directory):
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISREG(mode) and mode & stat.S_ISUID:
                found.append(entry.path)
    if not found:
        raise RefusedError("none")
    return f"{len(found)}, such as {sorted(found)[0]}"


@attempt("root")
def hard_link_protected() -> str:
    """Make a hard link to a file of another user."""

    def one(directory: str) -> str:
        path = f"{directory}/.escape-link-{UNIQUE}"
        os.link(str(targets["secret"]), path)
        os.unlink(path)
        return "made"

    return first([lambda d=d: one(d) for d in writable_directories()])
