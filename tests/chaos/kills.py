"""kill -9 to the supervisor, the keeper, or both, at random moments, over workloads that log numbered lines.

What must hold after each kill: those that nobody has touched have the same process and generation, the limits of the
configuration are in force, and nothing runs twice. In the end: every end of a program is recorded, nothing is left, no
start limit has begun anew, no cooldown either, and no number is missing, neither in the stream nor in files that are
put aside all the time.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from threading import Thread
from typing import Any

from nsupervisor.api.client import Client, ClientError
from tests.chaos import observe
from tests.chaos.service import BrokenError, Site, demand, until
from tests.needs import ROOT, cgroup_directories
from tests.timing import deadline

COUNT = "import itertools, time\\nfor i in itertools.count(1): print('count', i, flush=True); time.sleep({pause})"
LINES = 30
"""What a mortal one says before it ends."""
MORTAL = (
    f"import sys, time\\nfor i in range(1, {LINES + 1}): print('count', i, flush=True); "
    "time.sleep({pause})\\nsys.exit(7)"
)
WORKLOAD = """
[workload.{name}]
command = ["{python}", "-S", "-c", "{script}"]
restart = "always"
restart_sec = "50ms"
restart_max_delay_sec = "100ms"
start_limit_burst = 100000
"""
CHATTY = """import itertools, time
i = itertools.count(1)
while True: print(*(f'count {next(i)}' for _ in range(20)), sep='\\n', flush=True); time.sleep(0.1)"""
CHAT = """
[workload.{name}]
command = ["{python}", "-S", "-c", '''{script}''']
log = {{ stdout = "file", max_size = 4096, max_files = 20 }}
"""
DOOMED = """
[workload.{name}]
command = ["false"]
restart = "always"
restart_sec = "{delay}s"
restart_max_delay_sec = "{delay}s"
start_limit_burst = {starts}
start_limit_interval_sec = "10h"
"""
TELL = 50
"""After how many kills to say how many there were."""
STARTS = 6
"""How often a doomed one may be started."""
COOLDOWN = """
[[workload.{name}.policy]]
when = "pids.current >= 1"
action = "log"
cooldown = "10h"
"""
KEEPER = "nsupervisor-kee"
LIMIT = re.compile(r"(?<=^pids_max = )\d+$", re.MULTILINE)
WHOM = ("supervisor", "keeper", "both")
MOMENTS = ("quiet", "stop", "start", "restart", "kill", "kill", "reload", "reload")
"""What is under way at the moment of the kill; and often a file is just being put aside, or the next supervisor is
coming up."""


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
        self.limited, self.chatty = self.steady[:4], ["chatty0", "chatty1"]
        limits = [f"[workload.{name}.resources]\npids_max = 100\n" for name in self.limited]
        chats = [CHAT.format(name=name, python=sys.executable, script=CHATTY) for name in self.chatty]
        self.doomed = [f"doomed{i}" for i in range(3)]
        doomed = [DOOMED.format(name=name, delay=i + 1, starts=STARTS) for i, name in enumerate(self.doomed)]
        rules = [COOLDOWN.format(name=name) for name in self.limited]
        self.site = Site("\n".join([*texts, *plain, *limits, *chats, *doomed, *rules]))
        self.stream, self.logs = self.site.directory / "records", self.site.directory / "logs"
        places = f'log_output = "{self.stream}"\nlog_directory = "{self.logs}"'
        self.site.config.write_text(self.site.config.read_text().replace('log_output = "stdout"', places))
        self.stderr = self.site.directory / "stderr"
        self.client = Client(str(self.site.runtime / "api.sock"))
        self.process: subprocess.Popen[bytes] | None = None
        self.kills: Counter[str] = Counter()
        self.moments: Counter[str] = Counter()
        self.minutes = 0.0
        self.back: list[float] = []
        """Seconds from the start of each next supervisor to its first answer."""
        self.before: dict[str, tuple[int, int, int]] = {}
        self.orphaned: list[tuple[int, int]] = []
        """From which byte of the stream to which nobody may have held the pipes of what has ended: both were dead."""

    def run(self, kills: int) -> str:
        """Kill so often; a line about what was seen. Raises BrokenError when something does not hold."""
        try:
            self._start()
            until("all run", lambda: self._all_up(), 120)
            self.before = self._lives([*self.steady, *self.chatty])
            begin, number = time.monotonic(), 0
            while (number := sum(self.kills.values())) < kills:
                self._kill()
                self._look(number)
                if sum(self.kills.values()) // TELL > number // TELL:
                    seconds = time.monotonic() - begin
                    print(f"chaos: {sum(self.kills.values())} kills in {seconds:.0f} s, all held so far", flush=True)
            self.minutes = (time.monotonic() - begin) / 60
            self._see_doom()
            self._end()
            return self._judge()
        except (ClientError, BrokenError) as error:
            assert self.process is not None
            try:  # one that is ending may need a moment
                status: int | str = self.process.wait(1)
            except subprocess.TimeoutExpired:
                status = "none, it lives"
            said = self.stderr.read_text()[-3000:]
            raise BrokenError(f"{error}\nexit status of the supervisor: {status}; standard error:\n{said}") from error
        finally:
            if self.process is not None and self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.site.sweep()
            self.site.remove()

    # ---- what is done

    def _start(self) -> None:
        while self.before and self.random.random() < 0.3:
            self._begin()
            assert self.process is not None
            time.sleep(self.random.uniform(0, 1))
            self.process.kill()
            self.process.wait()
            self.kills["one that came up"] += 1
        began = time.monotonic()
        self._begin()
        if self.before and self.random.random() < 0.3 and (keeper := self._wait_for_keeper()):
            time.sleep(self.random.uniform(0, 0.3))
            with suppress(ProcessLookupError):
                os.kill(keeper, signal.SIGKILL)
            self.kills["a keeper while one came up"] += 1
        else:
            keeper = 0
        until("the supervisor answers", self._pid, 60)
        self.back.append(time.monotonic() - began)
        until("a new keeper", lambda: self.client.info()["keeper_pid"] != keeper, 60)

    def _wait_for_keeper(self) -> int:
        """The pid of the keeper that lives, or will live in a moment; 0 where there is none for long."""
        end = time.monotonic() + 10
        while time.monotonic() < end:
            for process in observe.processes(self.site.mark):
                if not process.workload and not process.dead and observe.name(process.pid) == KEEPER:
                    return process.pid
        return 0

    def _begin(self) -> None:
        command = [sys.executable, "-m", "nsupervisor", "run", str(self.site.config)]
        environment = {**os.environ, observe.MARK: self.site.mark}
        with self.stderr.open("ab") as stderr:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stderr, stderr=stderr)

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
        self.moments[moment] += 1
        if moment == "reload":
            self._reload()
        elif moment != "quiet":
            self._command(moment, self.random.choice(self.moody))
        time.sleep(self.random.choice((0, self.random.uniform(0, 0.01), self.random.uniform(0, 0.1))))
        self.kills[whom] += 1
        size, orphaned = self.stream.stat().st_size, self.kills["a keeper while one came up"]
        if whom in ("keeper", "both"):
            os.kill(keeper, signal.SIGKILL)
        if whom in ("supervisor", "both"):
            self.process.kill()
            self.process.wait()
            self._start()
        else:
            until("a new keeper", lambda: self.client.info()["keeper_pid"] != keeper, 60)
        if whom == "both" or self.kills["a keeper while one came up"] > orphaned:
            self.orphaned.append((size, sys.maxsize))
        if len(self.orphaned) > 1 and self.orphaned[-2][1] == sys.maxsize:
            self.orphaned[-2] = self.orphaned[-2][0], size

    def _reload(self) -> None:
        """Other limits for some, and no other command for anybody, so that no process changes."""
        assert self.process is not None
        new = self.site.config.with_suffix(".new")
        new.write_text(LIMIT.sub(lambda _: str(self.random.randrange(50, 500)), self.site.config.read_text()))
        new.rename(self.site.config)
        self.process.send_signal(signal.SIGHUP)

    def _command(self, verb: str, name: str) -> None:
        """Have it on its way when the kill comes; nobody waits for the answer."""

        def ask() -> None:
            try:
                self.client.command(verb, [name])
            except (ClientError, OSError, ValueError):  # the kill
                pass

        Thread(target=ask, daemon=True).start()

    def _see_doom(self) -> None:
        """Those that fail at once are given up after as many starts as they may have, however often we were killed."""

        def given_up() -> bool:
            status = [one for one in self.client.status() if one["name"] in self.doomed]
            demand(
                [
                    f"{one['name']} has been started {one['generation']} times"
                    for one in status
                    if one["generation"] > STARTS
                ]
            )
            return all(one["state"] == "failed" and one["generation"] == STARTS for one in status)

        until(f"the doomed have been started {STARTS} times", given_up, 60)

    def _end(self) -> None:
        assert self.process is not None
        self.process.terminate()
        if status := self.process.wait(deadline(60)):
            raise BrokenError(f"exit status {status}:\n{self.stderr.read_text()[-3000:]}")
        self.site.demand_nothing_left()
        if lines := [line for line in self.stderr.read_text().splitlines() if not is_killed_peer(line)]:
            raise BrokenError("standard error says:\n" + "\n".join(lines)[-3000:])

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
        after = self._lives([*self.before])
        wrong = [f"{n} was {self.before[n]}, is {now}" for n, now in after.items() if now != self.before[n]]
        demand([f"after kill {number} ({dict(self.kills)}): {text}" for text in wrong])
        demand([f"after kill {number}: {text}" for text in self._copies()])
        wanted = [int(limit) for limit in LIMIT.findall(self.site.config.read_text())]

        def in_force() -> bool:
            status = {one["name"]: one["pids_max"] for one in self.client.status()}
            return [status[name] for name in self.limited] == wanted

        until(f"after kill {number}: the limits are {wanted}", in_force)

    def _copies(self) -> list[str]:
        """Workloads with more than one program: processes in its cgroup whose parent is outside."""
        tree = cgroup_directories()[""] / self.site.name
        wrong = []
        for name in (*self.steady, *self.chatty, *self.moody, *self.mortal):
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
        acts = Counter(
            record["workload"] for record in records if record["event"] == "action" and "rule" in record["cause"]
        )
        demand([f"{name}: its cooldown has begun anew: {acts[name]} acts" for name in self.limited if acts[name] != 1])
        files, put_aside, twice = self._read_files()
        missing, again = gaps(numbers)
        wrong = [f"{name}#{generation}: lines are missing: {text}" for (name, generation), text in missing.items()]
        # Who has ended with this code had written all lines.
        complete = {(r["workload"], r["generation"]) for r in self._held(records) if r.get("code") == 7}
        last = {of: max(numbers[of], default=0) for of in sorted(complete)}
        wrong += [
            f"{of[0]}#{of[1]}: its last line is {number}, not {LINES}" for of, number in last.items() if number < LINES
        ]
        demand(wrong)
        doubled = sum(count - 1 for all_ in ended.values() for count in all_.values())
        unknown = sum(record["event"] == "exited" and record.get("unknown", False) for record in records)
        exits, lines = sum(map(len, ended.values())), sum(map(len, numbers.values()))
        self.back.sort()
        return (
            f"{sum(self.kills.values())} kills {dict(self.kills)} during {dict(self.moments)}, "
            f"{sum(self.kills.values()) / self.minutes:.0f} a minute; {exits} ends, none lost, {doubled} told twice, "
            f"{unknown} of unknown status; {lines} lines, none missing, {again} twice; in {files} files "
            f"{put_aside} more, none missing, {twice} twice; first answer after "
            f"{self.back[len(self.back) // 2]:.2f} s (median), {self.back[-1]:.2f} s (most)"
        )

    def _held(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The ends of those whose pipes somebody held until then: those that were told while both were dead, or just
        after, may have been without, and then the pipe went with its last lines."""
        ends, begin = [], 0
        for record, line in zip(records, self.stream.read_bytes().splitlines(keepends=True), strict=True):
            if record["event"] == "exited" and not any(first <= begin < last for first, last in self.orphaned):
                ends.append(record)
            begin += len(line)
        return ends

    def _read_files(self) -> tuple[int, int, int]:
        """The files of those who have their own: how many there are, and lines in them, and how many are there again.
        Only the oldest have been removed, so that from the first on none may be missing."""
        files = lines = twice = 0
        for name in self.chatty:
            paths = [*self.logs.glob(f"{name}.log*")]
            records = [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]
            seen = [int(record["message"].split()[1]) for record in records]
            missing = max(seen) - min(seen) + 1 - len(set(seen))
            demand([f"{missing} lines are missing in the files of {name}"] if missing else [])
            files, lines, twice = files + len(paths), lines + len(seen), twice + len(seen) - len(set(seen))
        return files, lines, twice


def gaps(numbers: Mapping[tuple[str, int], list[int]]) -> tuple[dict[tuple[str, int], str], int]:
    """The numbers that are missing before the last that was seen of each, and how many are there once too often."""
    missing = {}
    for of, seen in numbers.items():
        if absent := sorted(set(range(1, max(seen))) - set(seen)):
            missing[of] = f"{len(absent)} of {max(seen)}, {', '.join(map(str, absent[:5]))}"
    return missing, sum(len(seen) - len(set(seen)) for seen in numbers.values())


def is_killed_peer(line: str) -> bool:
    """Whether the keeper refused a supervisor that was killed between its connect(2) and the keeper's look at it."""
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return record.get("event") == "keeper refused a connection" and "has ended, so it cannot" in record["message"]
