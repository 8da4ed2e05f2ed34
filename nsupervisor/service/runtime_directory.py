"""The runtime directory: made, checked and locked before anything is put into it, and left clean."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from nsupervisor.config.model import Config
from nsupervisor.linux.trusted_paths import UntrustedPathError, open_trusted_directory
from nsupervisor.logs.offsets import STREAMS_DIRECTORY
from nsupervisor.logs.tails import TAILS_DIRECTORY
from nsupervisor.service.state.digest import KEY_FILE as KEY


def _make_ours(directory: Path) -> None:
    """Make the runtime directory, and refuse one of whose path another user controls a part.

    That user could put sockets and state into it, or another directory in its place, and a supervisor that runs as root
    would trust them.
    """
    instead = "set supervisor.runtime_directory to another place"
    try:
        os.close(open_trusted_directory(str(directory), instead, mode=0o755))
    except (UntrustedPathError, PermissionError):
        raise
    except OSError as error:
        raise OSError(f"cannot make the directory {directory}: {error.strerror}; {instead}") from error


@contextlib.contextmanager
def runtime_directory(config: Config) -> Iterator[Path]:
    """Make and lock the runtime directory: two supervisors in one directory would compete for the same sockets."""
    directory = Path(config.supervisor.runtime_directory)
    _make_ours(directory)
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
            raise OSError(
                f"{directory} is in use by another supervisor (pid {holder}); stop that one, "
                "or give this one its own supervisor.runtime_directory and supervisor.name"
            ) from None
        try:
            os.truncate(lock, 0)
            os.write(lock, f"{os.getpid()}\n".encode())
        except OSError as error:
            where = "make room there, or set supervisor.runtime_directory to another place"
            raise OSError(f"cannot write {directory}/lock: {error.strerror}; {where}") from error
        yield directory
        shutil.rmtree(directory / "notify", ignore_errors=True)  # sockets of generations whose exit was not seen
        shutil.rmtree(directory / STREAMS_DIRECTORY, ignore_errors=True)  # all output has been recorded
        shutil.rmtree(directory / TAILS_DIRECTORY, ignore_errors=True)
        for name in (KEY, "lock"):
            (directory / name).unlink(missing_ok=True)
    finally:
        os.close(lock)
