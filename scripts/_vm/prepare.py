"""Prepare the host once: install QEMU, and unpack a kernel package into the cache, not onto the host."""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

from .common import CACHE, MachineError, run, say
from .cpio import Entry, archive

# The newest kernel of Debian 12; the second package exists in any release.
KERNELS = ("linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64")

# Modules that the guest needs to access the host's files, in the order of loading; a kernel may have some built in.
MODULES = (
    *("virtio", "virtio_ring", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci"),
    *("virtio_console", "fuse", "virtiofs", "overlay", "virtio_blk"),
)

# A compressed kernel contains its vmlinux: magic number → the program that unpacks it.
COMPRESSIONS = {
    b"\x28\xb5\x2f\xfd": ("zstd", "-dcq"),
    b"\x02\x21\x4c\x18": ("lz4", "-dcq"),
    b"\xfd7zXZ\0": ("xz", "-dcq"),
    b"\x1f\x8b\x08": ("gzip", "-dcq"),
}
APT = ("apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300", "-o", "APT::Sandbox::User=root")
PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


def virtiofsd() -> Path | None:
    """Return the daemon that shares the host's files: part of Debian 12's QEMU, later a package of its own."""
    for path in ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"):
        if os.access(path, os.X_OK):
            return Path(path)
    return None


def missing_packages() -> list[str]:
    """Return the Debian packages that the machine needs and this host lacks."""
    programs = {
        "qemu-system-x86_64": "qemu-system-x86",
        "busybox": "busybox-static",
        "depmod": "kmod",
        "zstd": "zstd",
        "lz4": "lz4",
        "xz": "xz-utils",
        "unshare": "util-linux",
        "ip": "iproute2",
    }
    return [package for program, package in programs.items() if not shutil.which(program, path=PATH)]


def problem() -> str:
    """Return why no machine can be started here, or "" if one can (perhaps after a preparation)."""
    if os.geteuid():
        return "the virtual machine needs root (for the read-only view of / that it boots from)"
    if os.uname().machine != "x86_64":
        return f"the virtual machine is made for x86_64, not {os.uname().machine}"
    if (missing_packages() or not virtiofsd() or not is_prepared()) and not shutil.which("apt-get"):
        return "no apt-get here, with which QEMU and a kernel are fetched"
    return ""


def is_prepared() -> bool:
    """Return whether an unpacked kernel is in the cache."""
    return (CACHE / "kernel" / "complete").exists()


def prepare() -> Path:
    """Install what is missing; return the kernel's directory (vmlinux, initrd, release, lib/modules)."""
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / "run").mkdir(exist_ok=True)
    with (CACHE / "prepare.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        packages = missing_packages()
        if packages or not virtiofsd() or not is_prepared():
            say("preparing (once): apt-get update")
            subprocess.run([*APT, "update"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        if packages:
            say("installing " + " ".join(packages))
            run(*APT, "install", "-y", "--no-install-recommends", *packages)
        if not virtiofsd():
            run(*APT, "install", "-y", "--no-install-recommends", "virtiofsd")
        if not is_prepared():
            _unpack_kernel(CACHE / "kernel")
    return CACHE / "kernel"


def download(package: str, into: Path) -> None:
    """Unpack a Debian package into a directory, without installing it and without its scripts."""
    into.mkdir(parents=True, exist_ok=True)
    before = set(into.glob("*.deb"))
    run(*APT, "download", package, cwd=into)
    (deb,) = set(into.glob("*.deb")) - before
    run("dpkg-deb", "-x", deb, into)
    deb.unlink()


def _kernel_package() -> str:
    for meta in KERNELS:
        depends = subprocess.run(["apt-cache", "depends", meta], capture_output=True, text=True).stdout
        for line in depends.splitlines():
            if line.strip().startswith("Depends: linux-image-"):
                return line.split()[1]
    raise MachineError(f"apt knows none of the kernel packages {', '.join(KERNELS)}")


def _unpack_kernel(target: Path) -> None:
    package = _kernel_package()
    say(f"unpacking {package}")
    shutil.rmtree(target, ignore_errors=True)
    unpacked = target / "package"
    download(package, unpacked)
    (target / "vmlinux").write_bytes(_vmlinux(next(unpacked.glob("boot/vmlinuz-*"))))
    modules = next(path for pattern in ("usr/lib/modules/*", "lib/modules/*") for path in unpacked.glob(pattern))
    release = modules.name
    # Moved, not left in usr/lib: depmod looks for lib/modules below its base directory.
    ours = target / "lib" / "modules" / release
    ours.parent.mkdir(parents=True)
    modules.rename(ours)
    # Unpacked on the host, because the emulated processor is slow.
    if compressed := list(ours.rglob("*.ko.xz")):
        run("xz", "-d", "-T0", *compressed)
    run("depmod", "-b", target, release)
    (target / "release").write_text(release)
    (target / "initrd").write_bytes(_base_initrd(ours))
    shutil.rmtree(unpacked)
    (target / "complete").touch()


def _vmlinux(compressed: Path) -> bytes:
    """Return the ELF kernel inside a vmlinuz, which microvm starts without a boot loader in real mode."""
    data = compressed.read_bytes()
    for magic, command in COMPRESSIONS.items():
        start = data.find(magic, 0x4000)
        while start >= 0:
            # The exit status says "trailing garbage" even when it worked.
            found = subprocess.run(command, input=data[start:], capture_output=True).stdout
            if found.startswith(b"\x7fELF"):
                return found
            start = data.find(magic, start + 1)
    raise MachineError(f"no vmlinux found in {compressed}")


def _base_initrd(modules: Path) -> bytes:
    """Return the constant part of the initrd: busybox, device nodes, modules."""
    files = {path.name: path for path in modules.rglob("*.ko")}
    entries = [Entry(name, 0o040755) for name in ("bin", "dev", "proc", "sys", "modules", "lower", "upper", "new")]
    entries += [Entry("dev/console", 0o020600, device=(5, 1)), Entry("dev/null", 0o020666, device=(1, 3))]
    busybox = shutil.which("busybox", path=PATH)
    assert busybox
    entries.append(Entry("bin/busybox", 0o100755, Path(busybox).read_bytes()))
    for number, module in enumerate(MODULES):
        if path := files.get(module + ".ko"):
            entries.append(Entry(f"modules/{number:02}.ko", 0o100644, path.read_bytes()))
    return archive(entries)
