"""An upgrade gives nothing up before the other version has shown that it can load."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import nsupervisor
from nsupervisor.config.load import parse
from nsupervisor.keeper.messages import RefusedError
from nsupervisor.service.recovery import upgrade_guard
from nsupervisor.service.recovery.upgrade import Upgrade, UpgradeError, report_outcome, run_trial
from nsupervisor.service.recovery.upgrade_guard import GuardOrder, guard
from tests.descriptors import open_descriptors

CONFIG = parse('[workload.web]\ncommand = ["true"]', "/site.toml")


class Log:
    """Keeps the records."""

    def __init__(self) -> None:
        self.log = self
        self.records: list[tuple[str, str]] = []

    def error(self, event: str, message: str, **_: Any) -> None:
        self.records.append((event, message))

    warning = error

    async def flush(self) -> None:
        """Do nothing."""


class Keeper:
    """A keeper that becomes the other version, or does not."""

    def __init__(self, outcome: bool | Exception) -> None:
        self.outcome = outcome

    async def execute(self, python: str, package: str) -> bool:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def context(outcome: bool | Exception = True, directory: Path = Path("/nowhere")) -> Any:
    return SimpleNamespace(keeper=Keeper(outcome), journal=Log(), runtime_directory=directory)


def other_version(directory: Path, code: str) -> Upgrade:
    """Return an upgrade to a version whose command runs this code."""
    package = directory / "nsupervisor" / "cli"
    package.mkdir(parents=True)
    (package / "main.py").write_text(f"import sys, time\ndef main():\n    {code}\n")
    return Upgrade(CONFIG, sys.executable, str(directory), 30.0)


async def failure(upgrade: Upgrade, outcome: bool | Exception = True) -> str:
    with pytest.raises(UpgradeError) as caught:
        await upgrade.prepare(context(outcome))
    return str(caught.value)


async def test_the_trial_gets_the_configuration_and_gives_its_version(tmp_path: Path) -> None:
    code = "assert sys.argv[1:] == ['run', '--trial', '--', '/site.toml'], sys.argv; print('nsupervisor', '9.9')"
    assert await other_version(tmp_path, code).prepare(context()) == "9.9"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("sys.exit('no such key')", "it failed in a trial, with exit status 1: no such key"),
        ("print('another program')", "it failed in a trial, with exit status 0: it said nothing"),
    ],
)
async def test_a_version_that_fails_in_its_trial_is_refused(tmp_path: Path, code: str, message: str) -> None:
    assert await failure(other_version(tmp_path, code)) == message


async def test_what_cannot_be_executed_is_refused() -> None:
    message = await failure(Upgrade(CONFIG, "/no/such/python", "/", 5.0))
    assert message == "cannot execute /no/such/python: No such file or directory"


async def test_a_version_that_does_not_come_up_in_time_is_refused(tmp_path: Path) -> None:
    upgrade = other_version(tmp_path, "time.sleep(1000)")
    upgrade.timeout = 0.0
    assert await failure(upgrade) == "it was not up within 0 s in a trial"


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (RefusedError("it is busy"), "it is busy"),
        (
            False,
            f"the keeper of version 9.9 did not come up, so one of version {nsupervisor.__version__} has taken over",
        ),
    ],
)
async def test_without_a_new_keeper_the_supervisor_stays(tmp_path: Path, outcome: Any, message: str) -> None:
    assert await failure(other_version(tmp_path, "print('nsupervisor 9.9')"), outcome) == message


# ---- the execution


async def test_a_version_that_cannot_be_executed_leaves_this_one_as_it_was(tmp_path: Path) -> None:
    used = context(directory=tmp_path)
    before = open_descriptors()
    await Upgrade(CONFIG, "/no/such/python", "/", 30.0).execute(used)
    assert used.journal.records[-1] == ("not upgraded", "cannot execute /no/such/python: No such file or directory")
    assert open_descriptors() == before
    assert not (tmp_path / "rollback.json").exists()


async def test_a_guard_that_cannot_be_started_ends_no_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error ended the whole service."""
    used = context(directory=tmp_path)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    before = open_descriptors()
    await Upgrade(CONFIG, "/no/such/python", "/", 30.0).execute(used)
    assert used.journal.records[-1][0] == "not upgraded"
    assert "cannot start the guard of the upgrade: " in used.journal.records[-1][1]
    assert open_descriptors() == before


# ---- the report


def test_a_supervisor_that_is_up_reports_to_the_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", ""])
    monkeypatch.setenv("NSUPERVISOR_UPGRADE", json.dumps({"pipe": write, "guard": process.pid, "from": "0.0"}))
    journal: Any = Log()
    report_outcome(journal, tmp_path)
    assert os.read(read, 10) == b"up"
    os.close(read)
    process.returncode = 0
    assert journal.records == [("supervisor upgraded", f"from version 0.0 to {nsupervisor.__version__}")]
    assert "NSUPERVISOR_UPGRADE" not in os.environ


@pytest.mark.parametrize("text", ['{"why": "it was not up"}', "", "[]"])
def test_a_rollback_is_reported_once_also_with_a_damaged_reason(tmp_path: Path, text: str) -> None:
    """A guard that was killed while it wrote left an empty file, with which no supervisor started again."""
    (tmp_path / "rollback.json").write_text(text)
    journal: Any = Log()
    report_outcome(journal, tmp_path)
    ((event, message),) = journal.records
    assert event == "upgrade rolled back"
    assert message.startswith(f"the other version was given up: {'it was not up' if 'why' in text else 'its reason'}")
    report_outcome(journal, tmp_path)
    assert len(journal.records) == 1


# ---- the guard


def order(pipe: int, directory: Path, *, reason: str = "rollback.json") -> tuple[GuardOrder, subprocess.Popen]:
    supervisor = subprocess.Popen(["sleep", "1000"])
    return GuardOrder(pipe, supervisor.pid, 0.01, str(directory / reason), []), supervisor


def test_the_guard_kills_a_supervisor_that_does_not_come_up(tmp_path: Path) -> None:
    read, write = os.pipe()
    command, supervisor = order(read, tmp_path)
    guard(command)
    assert supervisor.wait() == -9
    assert json.loads((tmp_path / "rollback.json").read_text()) == {"why": "it was not up within 0.01 s"}
    os.close(write)
    guard(GuardOrder(read, supervisor.pid, 5.0, str(tmp_path / "rollback.json"), []))
    assert json.loads((tmp_path / "rollback.json").read_text()) == {"why": "it ended before it was up"}
    os.close(read)


def test_the_guard_ends_after_the_report(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, b"up")
    command, supervisor = order(read, tmp_path)
    guard(command)
    assert supervisor.poll() is None
    supervisor.kill()
    supervisor.wait()
    assert not (tmp_path / "rollback.json").exists()
    os.close(read)
    os.close(write)


def test_the_guard_rolls_back_without_a_place_for_the_reason(tmp_path: Path) -> None:
    """A full disk kept the guard from killing the supervisor, and from running this version again."""
    read, write = os.pipe()
    command, supervisor = order(read, tmp_path, reason="missing/rollback.json")
    ran = tmp_path / "ran"
    command.rollback_command = [sys.executable, "-c", f"open({str(ran)!r}, 'w')"]
    guard_process = subprocess.run(
        [sys.executable, "-I", "-S", upgrade_guard.__file__, command.encode()], pass_fds=(read,), check=False
    )
    assert (guard_process.returncode, supervisor.wait()) == (0, -9)
    assert ran.exists()
    os.close(read)
    os.close(write)


# ---- run --trial


@pytest.mark.parametrize(
    ("text", "state", "status", "words"),
    [
        ('[workload.web]\ncommand = ["true"]', None, 0, f"nsupervisor {nsupervisor.__version__}"),
        ("[workload.web]\n", None, 2, "workload.web.command: is missing"),
        ('[workload.web]\ncommand = ["true"]', b"junk", 1, "checksum"),
    ],
)
def test_a_trial_reads_the_configuration_and_the_state(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str, state: bytes | None, status: int, words: str
) -> None:
    (tmp_path / "site.toml").write_text(f'[supervisor]\nruntime_directory = "{tmp_path}"\n{text}')
    if state is not None:
        (tmp_path / "state.json").write_bytes(state)
    handler = signal.getsignal(signal.SIGPIPE)
    try:
        assert run_trial(str(tmp_path / "site.toml")) == status
    finally:
        signal.signal(signal.SIGPIPE, handler)  # a trial is a process of its own
    assert words in "".join(capfd.readouterr())
    assert state is None or (tmp_path / "state.json").exists()
