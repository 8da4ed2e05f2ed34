"""`nsupervisor upgrade`: the keeper and the supervisor become another version by execve(2), each in its own process.

Only what survives a kill of both is handed over: the keeper's table, in a memfd, and `state.json`. So there is a single
way to continue, and it is in use all the time.

Before anything is given up, the other version has to show that it can load, read the configuration and read the state
(`run --trial`). Then the keeper goes first: if it does not come up, a keeper of this version takes over, as after
any death of a keeper. Then the supervisor follows. A *guard*, a small process of this version, waits for its report
that it is up. If the report does not come in time, the guard kills the supervisor and runs this version again, which
logs why.
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
from nsupervisor.keeper.client import INITIAL_NOFILE
from nsupervisor.keeper.messages import RefusedError
from nsupervisor.linux.children import expect_child
from nsupervisor.linux.controlling_terminal import IGNORES_HANGUP
from nsupervisor.linux.ignored_signals import ignore_again, ignore_for_this_process_alone
from nsupervisor.logs import Journal
from nsupervisor.service.context import ServiceContext
from nsupervisor.service.recovery import upgrade_guard
from nsupervisor.service.recovery.upgrade_guard import GuardOrder

ENTRY_POINT = "import sys; sys.path.insert(0, sys.argv.pop(1)); from nsupervisor.cli.main import main; main()"
PACKAGE_DIRECTORY = str(Path(__file__).parents[2])
"""The folder that contains the package of this version."""
_VARIABLE = "NSUPERVISOR_UPGRADE"
_ROLLBACK = "rollback.json"
_UPGRADE_SIGNAL = signal.SIGURG
"""Notifies the respawner: however this process ends from now on, it has to start a supervisor
(`cli.supervise_self`)."""
_ANSWER_DELAY_S = 0.2
"""Seconds to deliver the answer to the client before everything changes."""


class UpgradeError(Exception):
    """The upgrade failed, and this version continues; the message says why."""


def arguments(python: str, package: str, *rest: str) -> list[str]:
    """Return the command line of `nsupervisor` in the version that is in `package`."""
    return [python, "-P", "-c", ENTRY_POINT, package, *rest]


@attrs.define(eq=False)
class Upgrade:
    """One attempt to upgrade. `timeout`: seconds for the other version to come up, in each of the three steps."""

    config: Config
    python: str
    package: str
    timeout: float

    async def prepare(self, context: ServiceContext) -> str:
        """Run the trial and upgrade the keeper; return the other version's number. Raises UpgradeError."""
        version = await self._run_trial()
        try:
            with trio.fail_after(self.timeout + 15):
                has_come_up = await context.keeper.execute(self.python, self.package)
        except RefusedError as error:
            raise UpgradeError(str(error)) from None
        except trio.TooSlowError:
            raise UpgradeError(f"the keeper of version {version} has not come up") from None
        if not has_come_up:
            text = f"the keeper of version {version} did not come up, so one of version {__version__} has taken over"
            raise UpgradeError(text)
        return version

    async def _run_trial(self) -> str:
        command = arguments(self.python, self.package, "run", "--trial", "--", self.config.path)
        try:
            with trio.fail_after(self.timeout), expect_child() as child:
                result = await trio.run_process(
                    command, capture_stdout=True, capture_stderr=True, check=False, task_status=child
                )
        except OSError as error:
            raise UpgradeError(f"cannot execute {self.python}: {error.strerror}") from None
        except trio.TooSlowError:
            raise UpgradeError(f"it was not up within {self.timeout:g} s in a trial") from None
        words = result.stdout.decode(errors="replace").split()
        if result.returncode or len(words) != 2 or words[0] != "nsupervisor":
            last = result.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise UpgradeError(f"it failed in a trial, with exit status {result.returncode}: {last[0]}")
        return words[1]

    async def execute(self, context: ServiceContext) -> None:
        """Execute the other version of the supervisor. Returns only if that is not possible."""
        await trio.sleep(_ANSWER_DELAY_S)
        context.journal.log.warning("supervisor upgrading", message=f"from version {__version__}", pid=os.getpid())
        with trio.move_on_after(1):
            await context.journal.flush()
        from nsupervisor.cgroups.host import respawner_pid

        parent = respawner_pid()
        rollback_command = [] if parent else arguments(sys.executable, PACKAGE_DIRECTORY, "run", "--", self.config.path)
        try:
            write, guard = self._start_guard(context.runtime_directory, rollback_command)
        except OSError as error:  # for example without a free descriptor; the service must not end with it
            text = f"cannot start the guard of the upgrade: {error}; the keeper is of the other version already"
            context.journal.log.error("not upgraded", message=text)
            return
        if parent:
            with contextlib.suppress(ProcessLookupError):
                os.kill(parent, _UPGRADE_SIGNAL)
        os.set_inheritable(write, True)
        handover = json.dumps({"pipe": write, "guard": guard.pid, "from": __version__})
        handler = signal.getsignal(signal.SIGHUP)
        ignore_again()
        if IGNORES_HANGUP:  # the other version must know that, too
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        soft, hard = INITIAL_NOFILE
        limits_before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, max(hard, soft)))
        try:
            command = arguments(self.python, self.package, "run", "--", self.config.path)
            os.execve(self.python, command, {**os.environ, _VARIABLE: handover})  # noqa: S606
        except OSError as error:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits_before)
            signal.signal(signal.SIGHUP, handler)
            ignore_for_this_process_alone()
            os.write(write, b"up")
            os.close(write)
            context.journal.log.error("not upgraded", message=f"cannot execute {self.python}: {error.strerror}")
            await trio.to_thread.run_sync(guard.wait)

    def _start_guard(self, directory: Path, rollback_command: list[str]) -> tuple[int, subprocess.Popen[bytes]]:
        """Start the guard; return the end to write of the pipe for the report, and its process. Raises OSError."""
        read, write = os.pipe()
        order = GuardOrder(read, os.getpid(), self.timeout, str(directory / _ROLLBACK), rollback_command)
        try:
            guard = subprocess.Popen(
                [sys.executable, "-I", "-S", upgrade_guard.__file__, order.encode()],
                pass_fds=(read,),
                stdin=subprocess.DEVNULL,
            )
        except BaseException:
            os.close(write)
            raise
        finally:
            os.close(read)
        return write, guard


def report_outcome(journal: Journal, directory: Path) -> None:
    """Report to the guard, if there is one, that this supervisor is up; or log why the other version was given up."""
    handover = os.environ.pop(_VARIABLE, "")
    if handover:
        details = json.loads(handover)
        with contextlib.suppress(OSError):
            os.write(details["pipe"], b"up")
            os.close(details["pipe"])
        with contextlib.suppress(ChildProcessError):
            os.waitpid(details["guard"], 0)  # the guard ends after the report
        journal.log.warning("supervisor upgraded", message=f"from version {details['from']} to {__version__}")
    try:
        text = (directory / _ROLLBACK).read_text()
        (directory / _ROLLBACK).unlink()
    except FileNotFoundError:
        return
    try:
        reason = json.loads(text)["why"]
    except (ValueError, KeyError, TypeError):  # the guard was killed, or the disk was full, while it wrote
        reason = "its reason could not be written"
    text = f"the other version was given up: {reason}; this is version {__version__} again"
    journal.log.error("upgrade rolled back", message=text)


def run_trial(path: str) -> int:
    """Return 0 if this version can read the configuration and the state, without changing anything: `run
    --trial`."""
    from nsupervisor.config.files import read_text
    from nsupervisor.config.load import ConfigError, parse
    from nsupervisor.service.state import file

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        config = parse(read_text(path), path)
    except ConfigError as error:
        print(*map(str, error.problems), sep="\n", file=sys.stderr)
        return 2
    problem = file.read_state(Path(config.supervisor.runtime_directory), move_aside=False).problem
    if problem:
        print(problem, file=sys.stderr)
        return 1
    print("nsupervisor", __version__)
    return 0
