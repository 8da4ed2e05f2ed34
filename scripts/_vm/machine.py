"""One machine: a view of the host's files, the daemon that serves it, and QEMU."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from . import systemd
from .clock import counter_khz
from .common import CACHE, MachineError, die_with_parent, has_ended
from .cpio import Entry, archive
from .prepare import virtiofsd

HERE = Path(__file__).resolve().parent
PORTS = ("control", "stdout", "stderr", "last")

# File systems that hold files (a separate /usr or /home belongs to the guest's root; /proc and the like do not).
DISKS = {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "overlay", "9p", "virtiofs", "erofs", "squashfs"}

KERNEL_PARAMETERS = (
    *("console=ttyS0", "quiet", "panic=-1", "oops=panic", "reboot=t"),
    # Cheaper and steadier under emulation.
    *(
        "nokaslr",
        "mitigations=off",
        "no_timer_check",
        "cryptomgr.notests",
        "audit=0",
        "random.trust_cpu=1",
        "tsc=reliable",
    ),
    # The purpose of the machine.
    *("cgroup_no_v1=all", "psi=1"),
)


@dataclass(frozen=True)
class Options:
    """The options of a machine. Sizes are in MiB, times in seconds."""

    command: tuple[str, ...]
    time_limit: float = 300
    boot_limit: float = 60
    memory: int = 1536
    cpus: int = 2
    shares: tuple[Path, ...] = ()
    disk: int = 512
    kernel_arguments: tuple[str, ...] = ()
    systemd: bool = False
    stdin: bytes = b""
    verbose: bool = False


@dataclass
class Machine:
    """A running machine; `stop` ends all of it."""

    directory: Path
    kernel: Path
    options: Options
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ports: list[socket.socket] = field(default_factory=list)

    @classmethod
    def make(cls, kernel: Path, options: Options) -> "Machine":
        """Create a directory for a new machine; also remove those of scripts that were killed."""
        for left in (CACHE / "run").iterdir():
            if not Path(f"/proc/{left.name.split('.')[0]}").exists():
                _discard(left)
        return cls(Path(tempfile.mkdtemp(prefix=f"{os.getpid()}.", dir=CACHE / "run")), kernel, options)

    @property
    def qemu(self) -> subprocess.Popen[bytes]:
        """Return the process of the emulator."""
        return self.processes[-1]

    def start(self) -> None:
        """Start the daemon and QEMU, and return while the machine boots."""
        self._write_initrd()
        with (self.directory / "disk").open("wb") as disk:
            disk.truncate(max(self.options.disk, 1) << 20)
        self._start_files()
        self._start_qemu()

    def stop(self) -> None:
        """End every process and remove the directory; mounts vanish with the daemon's mount namespace."""
        for process in reversed(self.processes):
            process.kill()
            process.wait()
        for port in self.ports:
            port.close()
        _discard(self.directory)

    def logs(self, lines: int = 40) -> str:
        """Return the last output of QEMU, the daemon and the guest's console."""
        out = []
        for name in ("qemu.log", "files.log", "console"):
            path = self.directory / name
            if path.exists() and (text := path.read_text(errors="replace").strip()):
                out.append(f"--- {name}:\n" + "\n".join(text.splitlines()[-lines:]))
        return "\n".join(out)

    def _start(self, command: list[str], log: str, pass_fds: tuple[int, ...] = ()) -> None:
        with (self.directory / log).open("wb") as output:
            self.processes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=pass_fds,
                    preexec_fn=die_with_parent(signal.SIGKILL),
                )
            )

    # ------------------------------------------------------------------------------------------------------- files

    def _write_initrd(self) -> None:
        options = self.options
        settings = {
            "NOW": str(int(time.time()) + 1),
            "RELEASE": (self.kernel / "release").read_text(),
            "SHARES": " ".join(shlex.quote(str(share)) for share in options.shares),
            "SYSTEMD": systemd.INIT if options.systemd else "",
            "LOWER": systemd.lower_directories() if options.systemd else "/lower/root",
        }
        files = {
            "init": (HERE / "init.sh").read_bytes(),
            "systemd.sh": (HERE / "systemd.sh").read_bytes(),
            "second.sh": (HERE / "second.sh").read_bytes(),
            "settings": "".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items()).encode(),
            "command.sh": _command_script(options.command),
            "stdin": options.stdin,
        }
        entries = [Entry(name, 0o100755, data) for name, data in files.items()]
        (self.directory / "initrd").write_bytes((self.kernel / "initrd").read_bytes() + archive(entries))

    def _start_files(self) -> None:
        """Serve `view`: root (the host's /, read-only), shares/N (read-write), kernel, systemd.

        Mounted in a mount namespace of the daemon's own: the host's is not touched, and all goes with the daemon.
        """
        view, steps = self.directory / "view", ["set -e"]

        def bind(source: Path, target: Path, read_only: bool) -> None:
            steps.append(f"mount --bind {shlex.quote(str(source))} {shlex.quote(str(target))}")
            if read_only:
                steps.append(f"mount -o remount,bind,ro {shlex.quote(str(target))}")

        for source, name in ((Path("/"), "root"), (self.kernel, "kernel"), (systemd.DIRECTORY, "systemd")):
            (view / name).mkdir(parents=True)
            if source.exists():
                bind(source, view / name, read_only=True)
        for disk in _further_disks():
            bind(disk, view / "root" / disk.relative_to("/"), read_only=True)
        for number, share in enumerate(self.options.shares):
            target = view / "shares" / str(number)
            target.mkdir(parents=True)
            bind(share, target, read_only=False)
        daemon, endpoint = virtiofsd(), self.directory / "files.socket"
        assert daemon
        if daemon.parent.name == "libexec":  # the Rust version, from Debian 13 on
            command = [
                daemon,
                f"--socket-path={endpoint}",
                f"--shared-dir={view}",
                "--cache=always",
                "--sandbox=chroot",
            ]
        else:
            command = [daemon, "-f", f"--socket-path={endpoint}", "-o", f"source={view}"]
            command += ["-o", "cache=always", "-o", "sandbox=chroot", "--rlimit-nofile=65536"]
        steps.append("exec " + shlex.join(map(str, command)))
        self._start(["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(steps)], "files.log")
        end = time.monotonic() + 10
        while not endpoint.exists():
            if has_ended(self.processes[0]) or time.monotonic() > end:
                raise MachineError("the daemon that serves files did not start\n" + self.logs())
            time.sleep(0.005)

    # -------------------------------------------------------------------------------------------------------- QEMU

    def _start_qemu(self) -> None:
        options, khz = self.options, counter_khz()
        theirs, serial = [], []
        for number, name in enumerate(PORTS, 1):
            mine, other = socket.socketpair()
            self.ports.append(mine)
            theirs.append(other)
            serial += ["-chardev", f"socket,id={name},fd={other.fileno()}"]
            serial += ["-device", f"virtserialport,chardev={name},nr={number}"]
        parameters = [*KERNEL_PARAMETERS, f"tsc_early_khz={khz}", f"lpj={khz * 4}"]
        if options.systemd:
            parameters += systemd.KERNEL_PARAMETERS
        self._start(
            [
                *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
                # One thread for all processors. With one each, a processor may miss that another one has patched the
                # code it runs, and the kernel panics ("Oops: int3"); on two busy cores it is also slower.
                *("-accel", "tcg,thread=single"),
                *("-cpu", "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,+lahf-lm"),
                # pcie=on: the memory-mapped virtio is legacy, which virtiofs does not support.
                *("-M", "microvm,pcie=on,memory-backend=memory", "-smp", str(options.cpus), "-m", str(options.memory)),
                *("-object", f"memory-backend-memfd,id=memory,size={options.memory}M,share=on"),
                *("-kernel", f"{self.kernel}/vmlinux", "-initrd", f"{self.directory}/initrd"),
                *("-append", " ".join([*parameters, *options.kernel_arguments])),
                *("-serial", f"file:{self.directory}/console"),
                *("-chardev", f"socket,id=files,path={self.directory}/files.socket"),
                *("-device", "vhost-user-fs-pci,chardev=files,tag=root"),
                *("-drive", f"if=none,id=scratch,file={self.directory}/disk,format=raw,cache=unsafe"),
                *("-device", "virtio-blk-pci,drive=scratch"),
                *("-object", "rng-random,id=random,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=random"),
                *("-device", "virtio-serial-pci"),
                *serial,
            ],
            "qemu.log",
            tuple(port.fileno() for port in theirs),
        )
        for port in theirs:
            port.close()


def _command_script(command: tuple[str, ...]) -> bytes:
    """Return the script of the guest's shell: the host's environment and folder, then the command."""
    # Without byte code next to the sources, each import is slow here.
    skipped = {"PWD", "OLDPWD", "SHLVL", "_", "TMPDIR", "LD_PRELOAD", "PYTHONDONTWRITEBYTECODE"}
    environment = {name: value for name, value in os.environ.items() if name.isidentifier() and name not in skipped}
    environment["PATH"] = environment.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    environment |= {
        "NSUPERVISOR_GUEST": "1",
        "NSUPERVISOR_TEST_SLOWDOWN": os.environ.get("NSUPERVISOR_GUEST_SLOWDOWN", "20"),
        "NSUPERVISOR_SCRATCH_DISK": "/dev/vda",
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    lines += [f"cd {shlex.quote(os.getcwd())} || exit 126", "exec " + shlex.join(command), ""]
    return os.fsencode("\n".join(lines))


def _further_disks() -> list[Path]:
    """Return the mount points, besides /, whose files the guest's root should also have."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        point = Path(fields.split()[4].encode().decode("unicode_escape"))
        if rest.split()[0] in DISKS and point != Path("/") and point.is_dir():
            found.append(point)
    return found


def _discard(directory: Path) -> None:
    """Remove a machine's directory, but never descend into a mounted view of /."""
    view = directory / "view"
    for path in sorted(view.rglob("*") if not any(view.glob("root/*")) else [], reverse=True):
        path.rmdir()
    if view.exists():
        try:
            view.rmdir()
        except OSError:
            return
    shutil.rmtree(directory, ignore_errors=True)
