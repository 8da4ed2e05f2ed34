"""Things that the program has from its first moment: descriptors, keyrings, the terminal, the environment."""

import os

from harness import RefusedError, attempt, targets

FIRST = {}
for _name in os.listdir("/proc/self/fd"):
    if int(_name) > 2:
        try:
            FIRST[int(_name)] = os.readlink(f"/proc/self/fd/{_name}")
        except FileNotFoundError:  # the descriptor of the list itself
            pass
FIRST = {fd: path for fd, path in FIRST.items() if "/attempts" not in path}


@attempt()
def descriptor_of_host() -> str:
    """Have a descriptor of a directory of the host from the process that started the sandbox."""
    for fd in FIRST:
        try:
            if "escape-leaked" in os.listdir(fd):
                return f"descriptor {fd}"
        except OSError:
            continue
    raise RefusedError("none")


@attempt()
def descriptors() -> str:
    """Have other descriptors than 0, 1 and 2."""
    if not FIRST:
        raise RefusedError("none")
    return ", ".join(f"{fd}: {path}" for fd, path in FIRST.items())


@attempt()
def descriptor_parent() -> str:
    """Find directories above by a descriptor of a directory."""
    for fd in FIRST:
        try:
            os.close(os.open("../..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd))
        except OSError:
            continue
        return f"by descriptor {fd}"
    raise RefusedError("none")


@attempt()
def environment_secret() -> str:
    """Find a variable from the environment of the process that started the sandbox."""
    if str(targets["environment"]) not in os.environ:
        raise RefusedError("none")
    return "found"
