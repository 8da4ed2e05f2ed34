"""A root file system of Debian from this host's packages, without a network."""

import os
import re
import shutil
import subprocess
from pathlib import Path

POSTGRESQL = "/usr/lib/postgresql/15/bin"
PACKAGES = (
    *("base-files", "base-passwd", "dash", "coreutils", "sed", "grep", "libc-bin", "debianutils"),
    *("postgresql-15", "postgresql-client-15", "nginx", "nginx-common"),
)
MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
"""Directories that are links to those of the same name in /usr."""
UNUSED = (
    "/usr/share/doc",
    "/usr/share/man",
    "/usr/share/locale",
    "/usr/share/info",
    "/usr/lib/postgresql/15/lib/bitcode",
)
DATABASES = ("passwd", "group")


def make_debian_root(root: Path) -> Path:
    """Copy what the packages have installed, and the libraries of their programs, into a new directory.

    Owners, modes and links are kept, and the users are those of the host, whose numbers own the files.
    """
    for name in MERGED:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    programs = []
    for path in _installed():
        copy = root / path.lstrip("/")
        if os.path.isdir(path) and not os.path.islink(path):
            copy.mkdir(parents=True, exist_ok=True)
            shutil.copystat(path, copy)
        elif os.path.lexists(path) and not os.path.lexists(copy):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy, follow_symlinks=False)
            if not copy.is_symlink() and _is_elf(copy):
                programs.append(path)
    for library in _libraries(programs):
        copy = root / library.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists():
            shutil.copy2(library, copy)
    for name in DATABASES:
        shutil.copy2(f"/etc/{name}", root / "etc" / name)
    return root


def _installed() -> list[str]:
    listed = subprocess.run(["dpkg", "-L", *PACKAGES], capture_output=True, text=True, check=True).stdout
    paths = {path for path in listed.splitlines() if path.startswith("/") and not path.startswith(UNUSED)}
    return sorted(paths - {"/.", *(f"/{name}" for name in MERGED)})


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _libraries(programs: list[str]) -> set[str]:
    """Return the libraries and loaders that programs and libraries need, ldd(1)."""
    listed = subprocess.run(["ldd", *programs], capture_output=True, text=True).stdout
    return set(re.findall(r"(/\S+) \(0x", listed))
