"""Things of the host that the attempts aim at: processes, sockets, files, keys, memory. `prepared` makes them."""

import contextlib
import ctypes
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.needs import NOBODY

ATTEMPTS = Path(__file__).with_name("attempts")
HOST_FILES = {
    "usr": "/usr/share/misc",
    "usr directory": "/usr/share",
    "boot": "/boot",
    "etc": "/etc/profile",
    "etc directory": "/etc",
    "root": "/",
    "shadow": "/etc/shadow",
    "home": "/root",
    "var": "/var/lib",
    "tmp": "/tmp",
    "run": "/run",
}
USR_FILE = ("/usr/lib/os-release", "/usr/bin/env", "/usr/bin/python3")
CAP_NET_BIND_SERVICE, CAP_SYS_TIME = 10, 25
KEYCTL_UNLINK, USER_KEYRING, SESSION_KEYRING = 9, -4, -3
LISTEN_BACKLOG = 64

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


@dataclass
class Targets:
    """Made by `prepared`.

    directory: world-readable, with the attempts' program and the programs that raise privileges. values: for the
    program. environment: with a variable that no sandbox may pass on. leaked: a descriptor to start each sandbox with.
    """

    directory: Path
    values: dict[str, object]
    environment: dict[str, str]
    leaked: int

    @property
    def program(self) -> Path:
        """Return the directory that Python executes."""
        return self.directory / "attempts"


def _keyring(number: int, *arguments: object) -> int:
    return int(libc.syscall(ctypes.c_long(number), *arguments))


def _add_key(name: str, keyring: int) -> int:
    number = 248 if os.uname().machine == "x86_64" else 217
    return _keyring(number, b"user", name.encode(), b"x", ctypes.c_size_t(1), ctypes.c_int(keyring))


def _unlink(key: int, keyring: int) -> None:
    """Remove a key. Revoking would need its possession, which the user keyring alone does not give."""
    number = 250 if os.uname().machine == "x86_64" else 219
    assert _keyring(number, ctypes.c_int(KEYCTL_UNLINK), ctypes.c_int(key), ctypes.c_int(keyring)) == 0


def _capability(number: int) -> bytes:
    """Return the attribute `security.capability` with one effective capability (linux/capability.h)."""
    masks = (1 << number, 1 << number, 0, 0)
    return b"".join(value.to_bytes(4, "little") for value in (0x02000001, *masks))


def copy_programs(directory: Path) -> None:
    """Copy the attempts and the programs that raise privileges to `directory`, which is below the sandbox's root."""
    shutil.copytree(ATTEMPTS, directory / "attempts", ignore=shutil.ignore_patterns("__pycache__"))
    for name, source in (("setuid-id", "id"), ("cap-cat", "cat"), ("cap-time-cat", "cat")):
        found = shutil.which(source)
        assert found, source
        shutil.copyfile(os.path.realpath(found), directory / name)
        (directory / name).chmod(0o4755 if source == "id" else 0o755)
    os.setxattr(directory / "cap-cat", "security.capability", _capability(CAP_NET_BIND_SERVICE))
    os.setxattr(directory / "cap-time-cat", "security.capability", _capability(CAP_SYS_TIME))


def _answer(*listeners: socket.socket) -> None:
    """Accept and close connections until the listener is closed."""

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                listener.accept()[0].close()

    for listener in listeners:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()


@contextlib.contextmanager
def prepared(directory: Path) -> Iterator[Targets]:
    """Make everything in a new directory that all users can enter; end and remove what is not in it."""
    token = f"escape-{secrets.token_hex(6)}"
    copy_programs(directory)
    secret = directory / "secret"
    secret.write_text(token)
    secret.chmod(0o600)
    leaked_directory = directory / "outside"
    leaked_directory.mkdir()
    (leaked_directory / "escape-leaked").touch()
    with contextlib.ExitStack() as stack:
        path = f"{directory}/socket"
        unix, abstract, tcp = (
            stack.enter_context(socket.socket(family)) for family in (socket.AF_UNIX, socket.AF_UNIX, socket.AF_INET)
        )
        unix.bind(path)
        os.chmod(path, 0o777)
        abstract.bind(f"\0{token}")
        tcp.bind(("127.0.0.1", 0))
        for listener in (unix, abstract, tcp):
            listener.listen(LISTEN_BACKLOG)
            stack.callback(listener.shutdown, socket.SHUT_RDWR)
        _answer(unix, abstract, tcp)

        processes = []
        for user in (None, NOBODY):
            groups: list[int] | None = None if user is None else []
            victim = subprocess.Popen(
                [token, "100000"],
                executable=shutil.which("sleep"),
                stdin=subprocess.DEVNULL,
                user=user,
                group=user,
                extra_groups=groups,
            )
            processes.append(victim.pid)
            stack.callback(victim.wait)
            stack.callback(victim.kill)

        shm = Path("/dev/shm") / token
        shm.touch()
        stack.callback(shm.unlink)
        key = int.from_bytes(secrets.token_bytes(3), "little")
        segment = libc.shmget(ctypes.c_int(key), ctypes.c_size_t(4096), ctypes.c_int(0o1000 | 0o666))
        stack.callback(libc.shmctl, ctypes.c_int(segment), ctypes.c_int(0), None)
        rt = ctypes.CDLL("librt.so.1", use_errno=True)
        queue = rt.mq_open(f"/{token}".encode(), ctypes.c_int(os.O_CREAT | os.O_RDWR), ctypes.c_int(0o666), None)
        stack.callback(rt.mq_unlink, f"/{token}".encode())
        stack.callback(os.close, queue)
        for name, keyring in ((f"{token}-user", USER_KEYRING), (f"{token}-session", SESSION_KEYRING)):
            stack.callback(_unlink, _add_key(name, keyring), keyring)

        master, slave = os.openpty()
        stack.callback(os.close, master)
        stack.callback(os.close, slave)
        terminal = os.fstat(slave)
        leaked = os.open(leaked_directory, os.O_RDONLY | os.O_DIRECTORY)
        os.set_inheritable(leaked, True)
        stack.callback(os.close, leaked)

        files = {name: Path(place) for name, place in HOST_FILES.items()}
        files["usr"] = next(Path(name) for name in USR_FILE if Path(name).exists())
        files["tmp file"] = Path(stack.enter_context(tempfile.NamedTemporaryFile(prefix="escape-")).name)
        files["tmp file"].chmod(0o644)
        kinds = ("pid", "mnt", "ipc", "uts", "cgroup", "user", "net")
        values: dict[str, object] = {
            "here": str(directory),
            "token": token,
            "secret": str(secret),
            "secret_text": token,
            "socket": path,
            "abstract": token,
            "port": tcp.getsockname()[1],
            "processes": processes,
            "shm": token,
            "shm_key": key,
            "mqueue": token,
            "key": f"{token}-user",
            "session_key": f"{token}-session",
            "terminal": os.ttyname(slave).removeprefix("/dev/pts/"),
            "terminal_inode": [terminal.st_dev, terminal.st_ino],
            "devices": [name for _, name in socket.if_nameindex() if name != "lo"],
            "namespaces": {kind: os.stat(f"/proc/self/ns/{kind}").st_ino for kind in kinds},
            "files": {
                name: [str(file), file.stat().st_dev, file.stat().st_ino]
                for name, file in files.items()
                if file.exists()
            },
            "environment": "ESCAPE_OUTSIDE",
            "runtime": str(directory / "run"),
        }
        yield Targets(directory, values, {**os.environ, "ESCAPE_OUTSIDE": "1"}, leaked)
