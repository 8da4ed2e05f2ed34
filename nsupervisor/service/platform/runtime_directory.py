"""The runtime directory: made, checked and locked before anything is put into it, and left clean."""

import contextlib
import fcntl
import math
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path

import trio

from nsupervisor.config.model import Config
from nsupervisor.linux.inotify import IN_DELETE, IN_DELETE_SELF, IN_MOVE_SELF, IN_MOVED_FROM, Inotify
from nsupervisor.linux.trusted_paths import UntrustedPathError, open_trusted_directory
from nsupervisor.logs.offsets import STREAMS_DIRECTORY
from nsupervisor.logs.tails import TAILS_DIRECTORY
from nsupervisor.service.state.digest import KEY_FILE as KEY

SETTLE_DELAY_S = 0.05
"""Seconds from a removal until what was removed is made again: `rm -r` removes one file after the other."""
RESTORE_INTERVAL_S = 0.5
"""Seconds between two attempts to make again what was removed from the runtime directory."""


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


def _lock(directory: Path) -> int:
    """Lock the directory; return the descriptor that holds the lock. Raises OSError."""
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
    except BaseException:
        os.close(lock)
        raise
    return lock


class KeptDirectory:
    """The runtime directory while the service runs: what others remove from it is made again.

    The directory comes first, with its lock: from then on no other supervisor starts there. `parts` make the files of
    other modules again, and return whether they had to; they raise OSError.
    """

    def __init__(
        self,
        directory: Path,
        parts: Mapping[str, Callable[[], Awaitable[bool]]],
        report: Callable[[str, str], None],
    ) -> None:
        """Begin with a complete directory. `report` gets the level and the text of a record."""
        self._directory = directory
        self._parts = parts
        self._report = report
        self._lock = -1
        self._has_problem = False
        self._is_reported = False

    async def run(self) -> None:
        """Watch the directory (inotify(7)) until cancelled. The lock is held until the process ends."""
        try:
            inotify = Inotify()
        except OSError as error:
            self._report("warning", f"what is removed from {self._directory} is not made again: {error}")
            return
        try:
            while True:
                await self._restore(inotify)
                with trio.move_on_after(RESTORE_INTERVAL_S if self._has_problem else math.inf):
                    await trio.lowlevel.wait_readable(inotify.fd)
                await trio.sleep(SETTLE_DELAY_S)
                inotify.read()
        finally:
            inotify.close()

    async def _restore(self, inotify: Inotify) -> None:
        try:
            made = ["the directory"] if not self._directory.exists() else []
            _make_ours(self._directory)
            # Watched before its files are looked at, so that no later removal is missed. The events of a directory that
            # was replaced tell nothing about this one.
            inotify.add(str(self._directory), IN_DELETE | IN_MOVED_FROM | IN_DELETE_SELF | IN_MOVE_SELF)
            if not (self._directory / "lock").exists():
                lock = _lock(self._directory)
                if self._lock >= 0:
                    os.close(self._lock)
                self._lock = lock
                made.append("lock")
            made += [name for name, restore in self._parts.items() if await restore()]
        except Exception as error:  # whatever it is: the service goes on with the programs that it has
            if self._has_problem and not self._is_reported:  # at first the removal may not have been complete
                self._is_reported = True
                self._report("error", f"cannot make what was removed from {self._directory} again: {error}")
            self._has_problem = True
            return
        self._has_problem = self._is_reported = False
        if made:
            self._report("warning", f"made again what was removed from {self._directory}: {', '.join(made)}")


@contextlib.contextmanager
def runtime_directory(config: Config) -> Iterator[Path]:
    """Make and lock the runtime directory: two supervisors in one directory would compete for the same sockets."""
    directory = Path(config.supervisor.runtime_directory)
    _make_ours(directory)
    lock = _lock(directory)
    try:
        yield directory
        shutil.rmtree(directory / "notify", ignore_errors=True)  # sockets of generations whose exit was not seen
        shutil.rmtree(directory / STREAMS_DIRECTORY, ignore_errors=True)  # all output has been recorded
        shutil.rmtree(directory / TAILS_DIRECTORY, ignore_errors=True)
        for name in (KEY, "lock"):
            (directory / name).unlink(missing_ok=True)
    finally:
        os.close(lock)
