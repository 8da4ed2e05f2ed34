"""`nsupervisor upgrade`: the keeper and the supervisor become another version by execve(2), each in its own process.

Nothing is handed over but what is handed over when both are killed: the keeper's table, in a memfd, and `state.json`.
So there is one way of going on, and it is used all the time.

Before anything is given up the other version has to show that it can load, read the configuration and read the state
(`run --trial`). Then the keeper goes first: where it does not come up, a keeper of this version takes over, as after
any death of a keeper. Then the supervisor. A *guard*, a small process of this version, waits for its word that it is
up; where that does not come in time, it kills it and runs this version again, which says why.
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import attrs
import trio

from nsupervisor import __version__
from nsupervisor.config.model import Config
from nsupervisor.keeper.client import _BORN
from nsupervisor.keeper.told import RefusedError
from nsupervisor.linux.children import own_child
from nsupervisor.logs import Journal
from nsupervisor.service.world import World

ENTRY = "import sys; sys.path.insert(0, sys.argv.pop(1)); from nsupervisor.cli.main import main; main()"
PACKAGE = str(Path(__file__).parents[2])
"""The folder that this version is in."""
_VARIABLE = "NSUPERVISOR_UPGRADE"
_ROLLBACK = "rollback.json"
_UPGRADING = signal.SIGURG
"""Tells the small parent that however this process ends from now on, a supervisor is to be started (`cli.respawn`)."""
_ANSWER = 0.2
"""Seconds for the answer to the one who asked, before everything changes."""

_GUARD = """
import json, os, select, signal, sys
pipe, process, timeout, path, argv = json.loads(sys.argv[1])
poll = select.poll(); poll.register(pipe, select.POLLIN)
said = os.read(pipe, 100) if poll.poll(timeout * 1000) else None
if said: sys.exit()
why = "it ended before it was up" if said == b"" else "it was not up within %g s" % timeout
with open(path, "w") as file: file.write(json.dumps({"why": why}))
try:
    pidfd = os.pidfd_open(process); signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    poll = select.poll(); poll.register(pidfd, select.POLLIN); poll.poll(10000)
except ProcessLookupError: pass
signal.pthread_sigmask(signal.SIG_SETMASK, ())
if argv: os.execv(argv[0], argv)
"""


class UpgradeError(Exception):
    """It was not to be, and this version goes on; the text says why."""


def arguments(python: str, package: str, *rest: str) -> list[str]:
    """The command line of `nsupervisor` in the version that is in ``package``."""
    return [python, "-P", "-c", ENTRY, package, *rest]


@attrs.define(eq=False)
class Upgrade:
    """One attempt. ``timeout``: seconds for the other version to come up, each time that it has to."""

    config: Config
    python: str
    package: str
    timeout: float

    async def prepare(self, world: World) -> str:
        """The trial, and the keeper; the other version's number. Raises UpgradeError."""
        version = await self._trial()
        try:
            with trio.fail_after(self.timeout + 15):
                done = await world.keeper.execute(self.python, self.package)
        except RefusedError as error:
            raise UpgradeError(str(error)) from None
        except trio.TooSlowError:
            raise UpgradeError(f"the keeper of version {version} has not come up") from None
        if not done:
            text = f"the keeper of version {version} did not come up, so one of version {__version__} has taken over"
            raise UpgradeError(text)
        return version

    async def _trial(self) -> str:
        command = arguments(self.python, self.package, "run", "--trial", "--", self.config.path)
        try:
            with trio.fail_after(self.timeout), own_child() as child:
                done = await trio.run_process(
                    command, capture_stdout=True, capture_stderr=True, check=False, task_status=child
                )
        except OSError as error:
            raise UpgradeError(f"cannot execute {self.python}: {error.strerror}") from None
        except trio.TooSlowError:
            raise UpgradeError(f"it was not up within {self.timeout:g} s in a trial") from None
        said = done.stdout.decode(errors="replace").split()
        if done.returncode or len(said) != 2 or said[0] != "nsupervisor":
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise UpgradeError(f"it failed in a trial, with exit status {done.returncode}: {last[0]}")
        return said[1]

    async def go(self, world: World) -> None:
        """Become it. Returns only where even that cannot be done."""
        await trio.sleep(_ANSWER)
        world.journal.log.warning("supervisor upgrading", message=f"from version {__version__}", pid=os.getpid())
        with trio.move_on_after(1):
            await world.journal.flush()
        read, write = os.pipe()
        from nsupervisor.cgroups.host import small_parent

        if parent := small_parent():
            os.kill(parent, _UPGRADING)
        again = [] if parent else arguments(sys.executable, PACKAGE, "run", "--", self.config.path)
        order = json.dumps([read, os.getpid(), self.timeout, str(world.directory / _ROLLBACK), again])
        guard = subprocess.Popen(  # noqa: ASYNC220 - it takes a millisecond, and this process is about to end
            [sys.executable, "-I", "-S", "-c", _GUARD, order], pass_fds=(read,), stdin=subprocess.DEVNULL
        )
        os.close(read)
        os.set_inheritable(write, True)
        told = json.dumps({"pipe": write, "guard": guard.pid, "from": __version__})
        soft, hard = _BORN
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, max(hard, soft)))
        try:
            command = arguments(self.python, self.package, "run", "--", self.config.path)
            os.execve(self.python, command, {**os.environ, _VARIABLE: told})  # noqa: S606
        except OSError as error:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            os.write(write, b"up")
            os.close(write)
            world.journal.log.error("not upgraded", message=f"cannot execute {self.python}: {error.strerror}")


def tell_outcome(journal: Journal, directory: Path) -> None:
    """This supervisor is up: tell the guard, if there is one; or say why the version after this one was not."""
    told = os.environ.pop(_VARIABLE, "")
    if told:
        about = json.loads(told)
        with contextlib.suppress(OSError):
            os.write(about["pipe"], b"up")
            os.close(about["pipe"])
        with contextlib.suppress(ChildProcessError):
            os.waitpid(about["guard"], 0)  # it has nothing more to do
        journal.log.warning("supervisor upgraded", message=f"from version {about['from']} to {__version__}")
    try:
        why = json.loads((directory / _ROLLBACK).read_text())["why"]
        (directory / _ROLLBACK).unlink()
    except FileNotFoundError:
        return
    text = f"the other version was given up, as {why}; this is version {__version__} again"
    journal.log.error("upgrade rolled back", message=text)


def trial(path: str) -> int:
    """``run --trial``: whether this version can read the configuration and the state, without touching anything."""
    from nsupervisor.config.files import read_text
    from nsupervisor.config.load import ConfigError, parse
    from nsupervisor.service import state

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        config = parse(read_text(path), path)
    except ConfigError as error:
        print(*map(str, error.problems), sep="\n", file=sys.stderr)
        return 2
    problem = state.read(Path(config.supervisor.runtime_directory), aside=False).problem
    if problem:
        print(problem, file=sys.stderr)
        return 1
    print("nsupervisor", __version__)
    return 0
