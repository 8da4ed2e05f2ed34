"""Compile the native parts: the programs of init and standby, and the clones that Python cannot make (`clone.so`).

Run as a program, it brings both up to date in its own directory. setup.py uses it for wheels and editable installs.
Standard library only, and nothing of nsupervisor, because it runs before anything is installed.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
MACHINES = ("x86_64", "aarch64")

_COMMON = (
    *("-std=c11", "-Os", "-Wall", "-Wextra", "-Werror"),
    "-Wno-unused-command-line-argument",  # clang warns of -no-pie next to -static
    *("-ffreestanding", "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-nostdlib"),
    *("-Wl,-z,noexecstack", "-Wl,--build-id=none", "-s"),
)
_TARGETS = {
    # One page of text, and no segment for data: the private memory of an init is its stack.
    "init": ("init.c", ("-static", "-no-pie", "-Wl,-z,noseparate-code", "-Wl,-z,norelro")),
    # Parent and child use the same stack, as in clone.so.
    "setup": (
        "setup.c",
        ("-static", "-no-pie", "-Wl,-z,noseparate-code", "-Wl,-z,norelro", "-fno-optimize-sibling-calls"),
    ),
    # Parent and child use the same stack: so the child's calls must not reuse a frame of the parent.
    "clone.so": (
        "clone.c",
        ("-shared", "-fPIC", "-fvisibility=hidden", "-fno-optimize-sibling-calls", "-Wl,-z,noseparate-code"),
    ),
}
_MACHINE_FLAGS = {"x86_64": ("-fcf-protection=none", "-mno-red-zone")}
_HEADERS = ("hand_over.h", "system.h")


class BuildError(Exception):
    """The native parts cannot be compiled; the message says what to install."""


def outputs(directory: Path = HERE) -> list[Path]:
    """Return the paths of what `build` makes in `directory`."""
    return [directory / name for name in _TARGETS]


def sources() -> list[Path]:
    """Return the paths of all source files."""
    return [HERE / name for name in (*(source for source, _ in _TARGETS.values()), *_HEADERS)]


def is_current(directory: Path = HERE) -> bool:
    """Whether all outputs exist and are newer than their sources and than this file."""
    changed = max(path.stat().st_mtime for path in (*sources(), Path(__file__)))
    return all(path.exists() and path.stat().st_mtime >= changed for path in outputs(directory))


def build(directory: Path = HERE) -> None:
    """Compile what is missing or out of date into `directory`.

    Raises:
        BuildError: the processor is not supported, there is no compiler, or the compiler fails.
    """
    if is_current(directory):
        return
    machine = platform.machine()
    if machine not in MACHINES:
        raise BuildError(f"nsupervisor runs on {' and '.join(MACHINES)}, not on {machine}: its init has no other port")
    compiler = _compiler()
    directory.mkdir(parents=True, exist_ok=True)
    for name, (source, flags) in _TARGETS.items():
        # Under another name first: a running zygote may be about to execute the old file.
        output = directory / f".{name}.{os.getpid()}"
        argv = [*compiler, *_COMMON, *_MACHINE_FLAGS.get(machine, ()), *flags, "-o", str(output), str(HERE / source)]
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.returncode:
            output.unlink(missing_ok=True)
            hint = "the kernel's headers are missing" if "No such file or directory" in done.stderr else "see above"
            raise BuildError(f"{done.stderr}\n{shlex.join(argv)} failed ({hint}); {_INSTALL}")
        output.replace(directory / name)


_INSTALL = (
    "building nsupervisor needs a C compiler and the kernel's headers (no C library): "
    "apt install gcc libc6-dev, dnf install gcc kernel-headers, or apk add gcc linux-headers"
)


def _compiler() -> list[str]:
    named = shlex.split(os.environ.get("CC", ""))
    for candidate in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(candidate[0]):
            return candidate
    raise BuildError(f"there is no C compiler{f' {named[0]}' if named else ''}; {_INSTALL}")


if __name__ == "__main__":
    try:
        build()
    except BuildError as error:
        sys.exit(f"build: {error}")
