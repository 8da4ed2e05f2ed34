"""kill -9 to the supervisor, the keeper, or both, at random moments, over workloads that log numbered lines.

What must hold after each kill: those that nobody has touched have the same process and generation, and nothing runs
twice. In the end: every end of a program is recorded, nothing is left, and no number is missing.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from threading import Thread
from typing import Any

from nsupervisor.api.client import Client, ClientError
from tests.chaos import observe
from tests.chaos.service import BrokenError, Site, demand, until
from tests.needs import ROOT, cgroup_directories
from tests.timing import deadline

COUNT = "import itertools, time\\nfor i in itertools.count(1): print('count', i, flush=True); time.sleep({pause})"
MORTAL = "import sys, time\\nfor i in range(1, 31): print('count', i, flush=True); time.sleep({pause})\\nsys.exit(7)"
WORKLOAD = """
[workload.{name}]
command = ["{python}", "-S", "-c", "{script}"]
restart = "always"
restart_sec = "50ms"
restart_max_delay_sec = "100ms"
start_limit_burst = 100000
"""
WHOM = ("supervisor", "keeper", "both")
MOMENTS = ("quiet", "stop", "start", "restart", "kill", "kill")
"""What is under way at the moment of the kill."""


class Kills:
    """A service that is killed again and again."""

    def __init__(self, seed: int, workloads: int = 50, pause: float = 0.2) -> None:
        self.random = random.Random(seed)
        self.moody = [f"moody{i}" for i in range(max(1, workloads // 10))]
        self.mortal = [f"mortal{i}" for i in range(max(1, workloads // 10))]
        self.steady = [f"steady{i}" for i in range(workloads - len(self.moody) - len(self.mortal))]
        names = [*self.moody, *self.mortal, *self.steady]
        scripts = {name: MORTAL if name in self.mortal else COUNT for name in names}
        texts = [
            WORKLOAD.format(name=name, python=sys.executable, script=script.format(pause=pause))
            for name, script in scripts.items()
        ]
        # Every second one without an init, so that both ways of being a child are there.
        plain = [f"[workload.{name}.namespaces]\npid = false\n" for name in names[::2]]
        self.site = Site("\n".join([*texts, *plain]))
        self.stream = self.site.directory / "records"
        text = self.site.config.read_text().replace('log_output = "stdout"', f'log_output = "{self.stream}"')
        self.site.config.write_text(text)
        self.stderr = self.site.directory / "stderr"
        self.client = Client(str(self.site.runtime / "api.sock"))
        self.process: subprocess.Popen[bytes] | None = None
        self.kills: Counter[str] = Counter()
        self.back: list[float] = []
        """Seconds from the start of each next supervisor to its first answer."""
        self.before: dict[str, tuple[int, int, int]] = {}

    def run(self, kills: int) -> str:
        """Kill so often; a line about what was seen. Raises BrokenError when something does not hold."""
        try:
            self._start()
            until("all run", lambda: self._all_up(), 120)
            self.before = self._lives(self.steady)
            for number in range(kills):
                self._kill()
                self._look(number)
            self._end()
            return self._judge()
        finally:
            if self.process is not None and self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.site.sweep()
            self.site.remove()

    # ---- what is done

    def _start(self) -> None:
        command = [sys.executable, "-m", "nsupervisor", "run", str(self.site.config)]
        environment = {**os.environ, observe.MARK: self.site.mark}
        with self.stderr.open("ab") as stderr:
            began = time.monotonic()
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stderr, stderr=stderr)
        until("the supervisor answers", self._pid, 60)
        self.back.append(time.monotonic() - began)

    def _pid(self) -> int | None:
        assert self.process is not None
        if self.process.poll() is not None:
            raise BrokenError(
                f"the supervisor ended with {self.process.returncode}:\n{self.stderr.read_text()[-3000:]}"
            )
        try:
            pid: int = self.client.info()["pid"]
        except ClientError:
            return None
        return pid if pid == self.process.pid else None

    def _kill(self) -> None:
        assert self.process is not None
        moment, whom = self.random.choice(MOMENTS), self.random.choice(WHOM)
        keeper = self.client.info()["keeper_pid"]
        if moment != "quiet":
            self._command(moment, self.random.choice(self.moody))
        time.sleep(self.random.choice((0, self.random.uniform(0, 0.01), self.random.uniform(0, 0.3))))
        self.kills[whom] += 1
        if whom in ("keeper", "both"):
            os.kill(keeper, signal.SIGKILL)
        if whom in ("supervisor", "both"):
            self.process.kill()
            self.process.wait()
            self._start()
        else:
            until("a new keeper", lambda: self.client.info()["keeper_pid"] != keeper, 60)

    def _command(self, verb: str, name: str) -> None:
        """Have it on its way when the kill comes; nobody waits for the answer."""

        def ask() -> None:
            try:
                self.client.command(verb, [name])
            except (ClientError, OSError, ValueError):  # the kill
                pass

        Thread(target=ask, daemon=True).start()

    def _end(self) -> None:
        assert self.process is not None
        self.process.terminate()
        if status := self.process.wait(deadline(60)):
            raise BrokenError(f"exit status {status}:\n{self.stderr.read_text()[-3000:]}")
        self.site.demand_nothing_left()
        if text := self.stderr.read_text():
            raise BrokenError(f"standard error says:\n{text[-3000:]}")

    # ---- what must hold

    def _lives(self, names: list[str]) -> dict[str, tuple[int, int, int]]:
        status = {one["name"]: one for one in self.client.status()}
        return {n: (status[n]["pid"], status[n]["generation"], status[n]["restarts"]) for n in names}

    def _all_up(self) -> bool:
        try:
            return {one["state"] for one in self.client.status() if one["name"] in self.steady} == {"running"}
        except ClientError:
            return False

    def _look(self, number: int) -> None:
        after = self._lives(self.steady)
        wrong = [f"{n} was {self.before[n]}, is {now}" for n, now in after.items() if now != self.before[n]]
        demand([f"after kill {number} ({dict(self.kills)}): {text}" for text in wrong])
        demand([f"after kill {number}: {text}" for text in self._copies()])

    def _copies(self) -> list[str]:
        """Workloads with more than one program: processes in its cgroup whose parent is outside."""
        tree = cgroup_directories()[""] / self.site.name
        wrong = []
        for name in (*self.steady, *self.moody, *self.mortal):
            try:
                pids = [int(line) for line in (tree / name / "cgroup.procs").read_text().split()]
            except FileNotFoundError:  # made anew at this moment
                continue
            found = [process for pid in pids if (process := observe.look(pid, self.site.mark)) and not process.dead]
            programs = [process for process in found if process.workload and process.parent not in pids]
            if len(programs) > 1:
                wrong.append(f"{name} runs {len(programs)} times: {[str(process) for process in programs]}")
        return wrong

    def _judge(self) -> str:
        records: list[dict[str, Any]] = [json.loads(line) for line in self.stream.read_bytes().splitlines()]
        ended: dict[str, Counter[int]] = defaultdict(Counter)
        begun: dict[str, set[int]] = defaultdict(set)
        numbers: dict[tuple[str, int], list[int]] = defaultdict(list)
        for record in records:
            name, generation = record.get("workload", ""), record.get("generation", 0)
            if record["event"] in ("exited", "not started"):
                ended[name][generation] += 1
            elif record["event"] == "started":
                begun[name].add(generation)
            elif record["event"] == "output" and record["message"].startswith("count "):
                numbers[name, generation].append(int(record["message"].split()[1]))
        lost = [f"{name}#{g} has no end" for name, all_ in begun.items() for g in sorted(all_) if not ended[name][g]]
        demand(lost)
        missing, again = gaps(numbers)
        doubled = sum(count - 1 for all_ in ended.values() for count in all_.values())
        unknown = sum(record["event"] == "exited" and record.get("unknown", False) for record in records)
        exits, lines = sum(map(len, ended.values())), sum(map(len, numbers.values()))
        self.back.sort()
        return (
            f"{sum(self.kills.values())} kills {dict(self.kills)}; {exits} ends, none lost, {doubled} told twice, "
            f"{unknown} of unknown status; {lines} lines, {missing} missing, {again} twice; first answer after "
            f"{self.back[len(self.back) // 2]:.2f} s (median), {self.back[-1]:.2f} s (most)"
        )


def gaps(numbers: Mapping[tuple[str, int], list[int]]) -> tuple[int, int]:
    """How many numbers are missing, before the last that was seen of each, and how many are there once too often."""
    missing = sum(max(seen) - len(set(seen)) for seen in numbers.values())
    return missing, sum(len(seen) - len(set(seen)) for seen in numbers.values())
