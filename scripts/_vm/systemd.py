"""systemd as the guest's process 1 (`scripts/vm --systemd`): the host's own, or else Debian's, unpacked into the cache.

`systemd.sh` sets it up in the guest: the bare minimum is started, then the command, as vm.service.
"""

import fcntl
import os
import re
import shutil
import subprocess

from .common import CACHE, run, say
from .prepare import APT

INIT = "/lib/systemd/systemd"
DIRECTORY = CACHE / "systemd"
"""The unpacked packages, an upper layer for the guest's root; absent if the host has systemd."""

KERNEL_PARAMETERS = ("systemd.unified_cgroup_hierarchy=1",)
PACKAGES = ("systemd", "dbus")


def lower_directories() -> str:
    """Return the overlay's lower directories in the guest, the topmost first."""
    return "/lower/systemd:/lower/root" if DIRECTORY.exists() else "/lower/root"


def prepare() -> None:
    """Unpack systemd for the guest if needed, without installing it on the host."""
    if os.access(INIT, os.X_OK) and shutil.which("dbus-daemon"):
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "prepare.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not DIRECTORY.exists():
            _unpack()


def _unpack() -> None:
    subprocess.run([*APT, "update"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    packages = _missing(PACKAGES)
    say("unpacking " + " ".join(packages))
    new = CACHE / "systemd.new"
    shutil.rmtree(new, ignore_errors=True)
    (new / "packages").mkdir(parents=True)
    run(*APT, "download", *packages, cwd=new / "packages")
    for package in (new / "packages").iterdir():
        run("dpkg-deb", "-x", package, new)
    shutil.rmtree(new / "packages")
    # On the host /lib is a link to usr/lib; a folder of that name in an upper layer would hide the link.
    for name in ("bin", "sbin", "lib", "lib64"):
        if (new / name).is_dir():
            shutil.copytree(new / name, new / "usr" / name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(new / name)
    new.rename(DIRECTORY)


def _missing(wanted: tuple[str, ...]) -> list[str]:
    """Return the packages that apt would install for these packages."""
    plan = run(*APT, "--simulate", "install", "--no-install-recommends", *wanted)
    return sorted(set(re.findall(r"^Inst (\S+)", plan, re.MULTILINE)))
