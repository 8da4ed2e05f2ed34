"""Find what would make a start fail, while the program before it still runs.

A restart would end a working program for nothing if the next start must fail. Only what is certain counts: what cannot
be judged from outside of the program's namespaces, or not with this process's rights, is left to the start itself.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from nsupervisor.config.quoting import quoted
from nsupervisor.linux.trusted_paths import open_for_reading
from nsupervisor.service.platform.roots import find_in_root

MAX_STRING_BYTES = 32 * 4096
"""Longest argument or variable with its NUL, execve(2): MAX_ARG_STRLEN."""
MIN_ARGUMENT_BYTES, MAX_ARGUMENT_BYTES = 128 * 1024, 6 * 2**20
"""The kernel lets all of them together have a quarter of the limit of the stack, within these bounds."""
_POINTER_BYTES = 8
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_OWN_FILE_SYSTEMS = {
    "pid": ("/proc",),
    "ipc": ("/dev/shm", "/dev/mqueue"),  # noqa: S108
    "network": ("/sys",),
}
"""By namespace: what a program with a mount namespace has of its own there."""


class StartObstacle(NamedTuple):
    """Why a start would fail: the key of the workload to change, and what is wrong, with what to do instead."""

    key: tuple[str | int, ...]
    message: str


class _Identity(NamedTuple):
    """The numbers on the host that decide what a program may access; None: not known, in a user namespace."""

    uid: int
    gids: frozenset[int]


def find_start_obstacle(spec: Mapping[str, Any]) -> StartObstacle | None:
    """Return what would make a start with this specification fail; None if nothing is known.

    `spec` is that of `nsupervisor.service.instance.spawn_spec`. The host is read with this process's rights; a file
    system that does not answer blocks the call.
    """
    return next(_obstacles(spec), None)


def _obstacles(spec: Mapping[str, Any]) -> Iterator[StartObstacle]:
    yield from _too_long(spec)
    identity = _identity(spec)
    hidden = [path for name in spec["namespaces"] for path in _OWN_FILE_SYSTEMS.get(name, ())]
    if "mount" not in spec["namespaces"]:
        hidden = []
    for name, path in spec.get("credentials", {}).items():
        if _is_missing(path):
            text = f"there is no {quoted(path)} for the credential {name}; make it, or write another path"
            yield StartObstacle(("credentials", name), text)
    if (root := spec.get("root")) is not None:
        yield from _root_obstacles(spec, root)
        return
    hidden += _made(spec)
    for number, mount in enumerate(spec["mounts"]):
        yield from _mount_obstacles(mount, ("mounts", number), hidden)
        hidden.append(mount["destination"])
    directory = spec["cwd"]
    if not _is_hidden(directory, hidden) and (problem := _directory_problem(directory, identity)):
        yield StartObstacle(("working_directory",), f"cannot enter {directory}: {problem}")
    if problem := _program_problem(spec, identity, hidden):
        yield StartObstacle(("command",), f"cannot execute {spec['argv'][0]}: {problem}")


def _made(spec: Mapping[str, Any]) -> list[str]:
    """Return the directories that the service makes before the start."""
    return [f"{one['base']}/{one['name']}" for one in spec.get("directories", ())]


def _root_obstacles(spec: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[StartObstacle]:
    """Yield what would make a start with a root of its own fail; paths inside are looked up in it."""
    if not os.path.isdir(root["path"]):
        yield StartObstacle(("root", "path"), f"there is no directory {root['path']} to be the root; make it")
        return
    made = _made(spec)
    for number, mount in enumerate(spec["mounts"]):
        source = mount["source"]
        if source not in made and mount["type"] == "bind" and source is not None and _is_missing(source):
            key = ("mounts", number, "source")
            text = f"there is no {quoted(source)} to mount on {mount['destination']}; make it, or write another path"
            yield StartObstacle(key, text)
    if spec["mounts"] or root["overlay"]:  # which may provide the other files
        return
    if _is_missing_in_root(root["path"], spec["cwd"]):
        text = f"cannot enter {spec['cwd']}: it is not in the root {root['path']}; make it, or write another path"
        yield StartObstacle(("working_directory",), text)
    name = spec["argv"][0]
    directories = [""] if "/" in name else spec["env"].get("PATH", os.defpath).split(":")
    candidates = [os.path.join(spec["cwd"], directory, name) for directory in directories]
    if all(_is_missing_in_root(root["path"], candidate) for candidate in candidates):
        text = f"cannot execute {name}: it is not in the root {root['path']}; install it there, or write another path"
        yield StartObstacle(("command",), text)


def _is_missing_in_root(root: str, path: str) -> bool:
    try:
        find_in_root(root, path)
    except OSError as error:
        return error.errno in _MISSING
    return False


def _too_long(spec: Mapping[str, Any]) -> Iterator[StartObstacle]:
    """Yield what execve(2) would refuse with E2BIG."""
    variables = {name: f"{name}={value}" for name, value in spec["env"].items()}
    total = 0
    for key, label, text in (
        *(("command", f"argument {number}", text) for number, text in enumerate(spec["argv"])),
        *(("environment", f"the variable {name}", text) for name, text in variables.items()),
    ):
        size = len(os.fsencode(text)) + 1
        total += size + _POINTER_BYTES
        if size > MAX_STRING_BYTES:
            yield StartObstacle(
                (key,), f"{label} has {size:,} bytes, and the kernel takes {MAX_STRING_BYTES:,}; put it into a file"
            )
    soft, _ = spec["rlimits"].get("stack") or resource.getrlimit(resource.RLIMIT_STACK)
    allowed = MAX_ARGUMENT_BYTES if soft < 0 else min(max(soft // 4, MIN_ARGUMENT_BYTES), MAX_ARGUMENT_BYTES)
    if total > allowed:
        yield StartObstacle(
            ("command",),
            f"the arguments and the environment have {total:,} bytes, and the kernel takes {allowed:,} with this "
            "limit_stack; put them into a file",
        )


def _identity(spec: Mapping[str, Any]) -> _Identity | None:
    if "user" in spec["namespaces"]:
        return None
    uid, gid, groups = spec["uid"], spec["gid"], spec["groups"]
    if uid is None and gid is None:
        return _Identity(os.geteuid(), frozenset((os.getegid(), *(os.getgroups() if groups is None else groups))))
    return _Identity(os.geteuid() if uid is None else uid, frozenset((gid, *(groups or ()))))


def _is_hidden(path: str, hidden: Sequence[str]) -> bool:
    """Return whether the program sees something else at this path: it is, or leads to a path, below one of `hidden`."""
    if not hidden:
        return False
    return any(
        shown == place or shown.startswith(f"{place.rstrip('/')}/")
        for shown in (os.path.normpath(path), os.path.realpath(path))
        for name in hidden
        for place in (os.path.normpath(name), os.path.realpath(name))
    )


def _mount_obstacles(
    mount: Mapping[str, Any], key: tuple[str | int, ...], hidden: Sequence[str]
) -> Iterator[StartObstacle]:
    source, destination = mount["source"], mount["destination"]
    if mount["type"] == "bind" and source is not None and not _is_hidden(source, hidden) and _is_missing(source):
        yield StartObstacle(
            (*key, "source"), f"there is no {quoted(source)} to mount on {destination}; make it, or write another path"
        )
    if not _is_hidden(destination, hidden) and _is_missing(destination):
        yield StartObstacle(
            (*key, "destination"),
            f"there is no {quoted(destination)} to mount on; make it, or mount a tmpfs over a directory above it",
        )


def _is_missing(path: str) -> bool:
    try:
        os.stat(path)
    except OSError as error:
        return error.errno in _MISSING
    return False


def _directory_problem(path: str, identity: _Identity | None) -> str:
    try:
        status = os.stat(path)
    except OSError as error:
        return f"{error.strerror}; make it, or write another path" if error.errno in _MISSING else ""
    if not stat.S_ISDIR(status.st_mode):
        return f"{os.strerror(errno.ENOTDIR)}; write the path of a directory"
    if refusing := _closed_directory(path, identity):
        return f"{os.strerror(errno.EACCES)}: user {_uid(identity)} may not enter {refusing}; chmod it"
    return ""


def _program_problem(spec: Mapping[str, Any], identity: _Identity | None, hidden: Sequence[str]) -> str:
    """Return why no file can be executed that execvp(3) would find, or ""."""
    name = spec["argv"][0]
    path = spec["env"].get("PATH", os.defpath)
    directories = [""] if "/" in name else path.split(":")
    refused = ""
    for directory in directories:
        candidate = os.path.join(spec["cwd"], directory, name)
        if _is_hidden(candidate, hidden):
            return ""
        try:
            status = os.stat(candidate)
        except OSError as error:
            if error.errno not in _MISSING:
                return ""
            continue
        problem = _execution_problem(candidate, status, identity, hidden)
        if not problem:
            return ""
        refused = refused or problem
    if refused:
        return refused
    where = "" if "/" in name else f" (searched PATH={path})"
    return f"{os.strerror(errno.ENOENT)}{where}; install it, or write another path"


def _execution_problem(path: str, status: os.stat_result, identity: _Identity | None, hidden: Sequence[str]) -> str:
    denied = os.strerror(errno.EACCES)
    if stat.S_ISDIR(status.st_mode):
        return f"{denied}: it is a directory; name the file in it"
    if not status.st_mode & 0o111 or not _may_execute(path, status, identity):
        return f"{denied}: it is not executable; chmod +x it"
    if refusing := _closed_directory(os.path.dirname(path), identity):
        return f"{denied}: user {_uid(identity)} may not enter {refusing}; chmod it"
    if os.statvfs(path).f_flag & os.ST_NOEXEC:
        return f"{denied}: its file system is mounted noexec; install it elsewhere"
    interpreter = _interpreter(path)
    if interpreter.startswith("/") and not _is_hidden(interpreter, hidden) and _is_missing(interpreter):
        return f"there is no {interpreter}, the interpreter that its first line names; install it"
    return ""


def _interpreter(path: str) -> str:
    """Return the interpreter of a script, or ""."""
    try:
        fd = open_for_reading(path)
    except OSError:
        return ""
    try:
        first_line = os.read(fd, 256).partition(b"\n")[0]
    except OSError:
        return ""
    finally:
        os.close(fd)
    words = first_line[2:].split(maxsplit=1) if first_line.startswith(b"#!") else []
    return os.fsdecode(words[0]) if words else ""


def _uid(identity: _Identity | None) -> int:
    return -1 if identity is None else identity.uid


def _closed_directory(path: str, identity: _Identity | None) -> str:
    """Return the first directory on the way that the user may not search, or ""."""
    for directory in _ancestors(os.path.realpath(path)):
        try:
            status = os.stat(directory)
        except OSError:
            return ""
        if not _may_execute(directory, status, identity):
            return directory
    return ""


def _ancestors(path: str) -> Iterable[str]:
    parts = path.split("/")[1:]
    return ["/", *("/" + "/".join(parts[: number + 1]) for number in range(len(parts)) if parts[number])]


def _may_execute(path: str, status: os.stat_result, identity: _Identity | None) -> bool:
    """Return whether the user may execute a file or search a directory; True if that is not certain."""
    if identity is None or identity.uid == 0:
        return True
    if identity.uid == status.st_uid:
        bit = stat.S_IXUSR
    else:
        bit = stat.S_IXGRP if status.st_gid in identity.gids else stat.S_IXOTH
    return bool(status.st_mode & bit) or _has_access_list(path)


def _has_access_list(path: str) -> bool:
    """Return whether an access control list, acl(5), decides instead of the mode."""
    try:
        os.getxattr(path, "system.posix_acl_access")
    except OSError:
        return False
    return True
