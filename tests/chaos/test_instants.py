"""kill -9 at each instant between the keeper's word of an end and the end's record in the stream: it is told.
And while everything is being stopped; and to the keeper while the next supervisor takes over.

Exactly one record is without the mark `duplicate`, or one with it is there; and the exit status is the true one.
"""

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from nsupervisor.api.client import Client, ClientError
from tests.chaos import observe
from tests.chaos.service import Site, over, running, site, until
from tests.needs import ROOT, needs
from tests.timing import deadline

pytestmark = [pytest.mark.slow, needs("root", "cgroup")]

TOML = """
[workload.ends]
command = ["sh", "-c", "read code < FIFO; exit $code"]
restart = "{restart}"
restart_sec = "{delay}"
restart_max_delay_sec = "{delay}"
start_limit_burst = 1000
"""
INSTANTS = 12
"""More than there are before the end is told and all has been written down."""
SURE_INSTANTS = 2
"""The instants that each end has: the word of the keeper, and the first thing that is written."""
CODE = 7


class Life:
    """The service, in one supervisor after the other."""

    def __init__(self, where: Site) -> None:
        self.site = where
        self.arm, self.stream, self.stderr = (where.directory / name for name in ("arm", "records", "stderr"))
        self.fifo = where.directory / "fifo"
        os.mkfifo(self.fifo)
        text = where.config.read_text().replace("FIFO", str(self.fifo))
        where.config.write_text(text.replace('log_output = "stdout"', f'log_output = "{self.stream}"'))
        self.client = Client(str(where.runtime / "api.sock"))
        self.process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        command = [sys.executable, "-m", "tests.chaos.dying", str(self.arm), "run", str(self.site.config)]
        environment = {**os.environ, observe.MARK: self.site.mark}
        with self.stderr.open("ab") as stderr:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=stderr)

    @property
    def dead(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def one(self) -> dict[str, Any]:
        """What it says of the workload; nothing while it does not answer."""
        try:
            return self.client.status()[0]
        except (ClientError, IndexError):
            return {}

    def ends(self) -> dict[int, list[dict[str, Any]]]:
        found = defaultdict(list)
        for line in self.stream.read_bytes().splitlines():
            record = json.loads(line)
            if record["event"] == "exited":
                found[record["generation"]].append(record)
        return found


@pytest.mark.parametrize(
    ("restart", "delay", "how"),
    [("always", "0s", "once"), ("always", "10ms", "both"), ("no", "0s", "once"), ("always", "0s", "twice")],
)
def test_an_end_is_told_at_whatever_instant_the_supervisor_is_killed(restart: str, delay: str, how: str):
    with site(TOML.format(restart=restart, delay=delay)) as where:
        life = Life(where)
        fifo = os.open(life.fifo, os.O_RDWR)
        try:
            for number in range(1, INSTANTS + 1):
                _round(life, fifo, number, restart, how)
            life.begin()
            until("the last one answers", life.one)
            _started(life, restart)
            life.process.send_signal(signal.SIGTERM)
            assert life.process.wait(deadline(20)) == 0, life.stderr.read_text()
        finally:
            os.close(fifo)
            life.kill()
        ends = life.ends()
        assert sorted(ends) == [*range(1, max(ends) + 1)], "no end is missing"
        for generation, records in ends.items():
            assert sum("duplicate" not in record for record in records) <= 1, (generation, records)
            unknown = [record for record in records if record.get("unknown")]
            assert how == "both" or not unknown, (generation, records)
            codes = {record["code"] for record in records if record not in unknown}
            assert codes <= {None if generation == max(ends) else CODE}, (generation, records)
        assert life.stderr.read_text() == ""


def _started(life: Life, restart: str) -> int:
    """The generation that runs, once one does. Its end may be heard only after the first answer, so look each time."""

    def runs() -> bool:
        state = life.one().get("state")
        if restart == "no" and state in ("failed", "exited"):
            life.client.command("start", ["ends"])
        return state == "running"

    until("it runs", runs)
    return int(life.one()["generation"])


def _round(life: Life, fifo: int, number: int, restart: str, how: str) -> None:
    """Let the supervisor die at that instant of an end, if the end has so many; otherwise kill it when all is done."""
    life.begin()
    generation = _started(life, restart)
    life.arm.write_text(f"{number} both" if how == "both" else str(number))
    os.write(fifo, b"%d\n" % CODE)

    def over() -> bool:
        if life.dead or number <= SURE_INSTANTS:  # the end may be told before the last of them
            return life.dead
        told = generation in life.ends() and life.one().get("state") != "stopping"
        return bool(told and life.one().get("generation") == generation + (restart == "always"))

    until("it has died, or all is done", over)
    life.kill()
    if how == "twice":
        life.arm.write_text(f"{number} start")
        life.begin()
        until("it has died, or answers", lambda: life.dead or life.one())
        life.kill()
    life.arm.unlink()


TWO = """
[workload.web]
command = ["sleep", "100000"]
[workload.plain]
command = ["sleep", "100000"]
[workload.plain.namespaces]
pid = false
"""


@pytest.mark.parametrize("fresh", [False, True], ids=["the old keeper", "a new keeper"])
def test_a_keeper_killed_at_whatever_instant_of_a_take_over_is_replaced_and_nothing_else_happens(fresh: bool):
    """The supervisor ended, and took all workloads with it."""
    with site(TWO) as where:
        life = Life(where)

        def lives() -> list[tuple[str, int, int]] | None:
            try:
                found = life.client.status()
            except ClientError:
                assert not life.dead, life.stderr.read_text()
                return None
            all_ = len(found) == 2 and all(one["state"] == "running" and one["pid"] for one in found)
            return [(one["name"], one["pid"], one["generation"]) for one in found] if all_ else None

        try:
            life.begin()
            before = until("both run", lives)
            for number in range(1, 20):
                keeper = until("there is a keeper", lambda: _keeper(life))
                life.kill()
                if fresh:
                    os.kill(keeper, signal.SIGKILL)
                life.arm.write_text(f"{number} keeper")
                life.begin()
                until("it is up", lambda: life.dead or _is_up(life))
                assert until("both run", lives) == before, f"instant {number}"
                if life.arm.exists():  # there are no more of them
                    break
            assert number > 4
            life.process.send_signal(signal.SIGTERM)
            assert life.process.wait(deadline(20)) == 0
            assert "Traceback" not in life.stderr.read_text()
        finally:
            life.kill()


def _keeper(life: Life) -> int | None:
    """The keeper's pid, once one lives."""
    pid: int = life.client.info()["keeper_pid"]
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return None
    return pid if state not in "ZX" else None


def _is_up(life: Life) -> bool:
    assert life.process is not None
    said = (json.loads(line) for line in life.stream.read_bytes().splitlines())
    return any(one["event"] == "supervisor started" and one["pid"] == life.process.pid for one in said)


STOPPING = """
[workload.stubborn]
command = ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"]
timeout_stop_sec = 2
[workload.quick]
command = ["sleep", "100000"]
[workload.unwanted]
command = ["sleep", "100000"]
"""


def test_a_supervisor_killed_while_it_stops_all_has_all_started_by_the_next_one_but_what_an_operator_has_stopped():
    with site(STOPPING) as where, running(where) as first:
        first.record(event="output", workload="stubborn")
        until("all run", lambda: {one["state"] for one in first.status()} == {"running"})
        first.tell("stop", "unwanted")
        first.signal(signal.SIGTERM)
        first.record(event="state", workload="quick", to="stopped")
        first.signal(signal.SIGKILL)
        first.wait()
        first.close()
        with running(where) as second:
            until(
                "both run anew",
                lambda: (
                    [(one["name"], one["state"], one["generation"]) for one in second.status()]
                    == [("stubborn", "running", 2), ("quick", "running", 2), ("unwanted", "stopped", 1)]
                ),
            )
            assert second.one("unwanted")["reason"] == "stopped by operator"
            assert second.record(event="exited", workload="stubborn")["signal"] == "SIGKILL"
            second.stop()
            over(second)
