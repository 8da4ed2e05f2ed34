"""The driver: a state machine that does things to the real service, and looks after each whether all still holds.

Hypothesis chooses the steps, from a seed and nothing else: what may be chosen depends on what was chosen before, never
on what the service made of it. So a seed means the same steps on every machine (with the same version of Hypothesis).

Each step leaves the service in peace again: faults are over, and no workload is on its way from one state to another.
Then everything is looked at. A second pair of eyes looks at the processes all the time (`Sentry`).
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, assume, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.chaos import invariants, observe
from tests.chaos.service import (
    BrokenError,
    Run,
    Site,
    answer,
    demand,
    few_descriptors,
    full_disk,
    over,
    stopped,
    until,
)
from tests.chaos.workloads import CHANGES, FATAL, HEALTHY, LASTING, NAMES, TOML, WITHOUT_INIT, changed

verbs = st.sampled_from(("start", "stop", "restart", "kill", "freeze", "thaw"))
names = st.sampled_from(NAMES)
lasting = st.sampled_from(LASTING)
minds = st.sampled_from(("stop", "restart", "start", "stop", "restart", "kill", "freeze", "thaw"))
slow = st.sampled_from((*LASTING, "deaf", "deaf", "deaf"))
"""Where minds are changed half-way, that one is worth most which takes its time."""


class Sentry:
    """Looks at the processes all the time, for two generations that live at once."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._end = threading.Event()
        self.wrong: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        before: list[invariants.Process] = []
        while not self._end.wait(0.02):
            found = [observe.look(pid, self._site.mark) for pid in observe.members(self._site.name)]
            now = [process for process in found if process]
            self.wrong += invariants.one_generation(before, now)
            before = now

    def close(self) -> None:
        self._end.set()
        self._thread.join()


class Chaos(RuleBasedStateMachine):
    """See the page's head. ``log`` gets a line for each step."""

    number: int | None = None
    """The seed."""
    log = staticmethod(print)

    def __init__(self) -> None:
        super().__init__()
        self.site: Site | None = None
        self.run: Run | None = None
        self.sentry: Sentry | None = None
        self.output = ""
        self.wanted: dict[str, bool] = {}
        self.dying: dict[str, int] = {}
        """Generations that are as good as dead: it is not quiet before the service has noticed."""
        self.steps = 0
        self.broken: BaseException | None = None
        self.at_rest: dict[str, dict[str, int]] = {}

    def again(self) -> bool:
        """Whether Hypothesis does it all once more, to see whether it fails again."""
        return False

    @initialize(go=st.booleans(), output=st.sampled_from(("stdout", "fifo", "disk")))
    def begin(self, go: bool, output: str) -> None:
        # Hypothesis always tries the simplest of all runs first: the first rule over and over. It is left out.
        assume(go and not self.again())
        self.output = output
        self.site = Site(TOML, output)
        with self._told(f"run, its stream to {output}"):
            self._boot()
            # What is open when nothing runs is measured after everything has run once.
            self.settle()
            self._rest()
            self.at_rest = self._open()
            self._tell("start", "*")
            self.settle()

    # ---- what people do

    @rule(verb=verbs, name=names)
    def command(self, verb: str, name: str) -> None:
        """One command."""
        with self._step(f"{verb} {name}"):
            self._tell(verb, name)

    @rule(verb=st.sampled_from(("start", "stop", "restart", "kill")))
    def everything(self, verb: str) -> None:
        """One command for all workloads at once."""
        with self._step(f"{verb} everything"):
            self._tell(verb, "*")

    @rule(first=minds, second=minds, third=st.none() | minds, name=slow)
    def overlapping(self, first: str, second: str, third: str | None, name: str) -> None:
        """Commands for one workload, each given as soon as the one before it has been heard."""
        wishes = [verb for verb in (first, second, third) if verb]
        with self._step(f"{' and at once '.join(wishes)} {name}"):
            futures = []
            for verb in wishes:
                mark = len(self.run.records)
                future = self.run.ask(verb, name)
                until(
                    f"{verb} {name} is heard",
                    lambda verb=verb, mark=mark, future=future: (
                        future.done() or self.run.matching(mark, event="action", action=verb, workload=name)
                    ),
                )
                self._wish(verb, name)
                futures.append(future)
            for verb, future in zip(wishes, futures, strict=True):
                answer(future, f"{verb} {name}")

    @rule(name=lasting, key=st.sampled_from(sorted(CHANGES)), value=st.sampled_from(('"0022"', '"0027"')))
    def reload(self, name: str, key: str, value: str) -> None:
        """The file is changed and read again; that is over when what has to restart has."""
        with self._step(f"a reload with {key} = {value} for {name}, {CHANGES[key]}"):
            config = self.site.config
            config.write_text(changed(config.read_text(), name, key, value))
            for _ in self.run.client.reload({}):
                pass

    # ---- what happens to workloads

    @rule(name=lasting, signum=st.sampled_from(FATAL), whom=st.sampled_from(("program", "first process")))
    def hit(self, name: str, signum: int, whom: str) -> None:
        """A signal out of nowhere that ends a program, or its init."""
        with self._step(f"{signal.Signals(signum).name} to {name}'s {whom}"):
            self._hit(name, signum, whom)

    @rule(name=lasting, verb=verbs)
    def stopped_program(self, name: str, verb: str) -> None:
        """SIGSTOP to a program, a command, SIGCONT."""
        with self._step(f"{verb} {name} while its program is stopped"):
            one = self.run.one(name)
            # What is frozen stands still already, and stops only when it is thawed.
            with stopped(one["pid"]) if one["pid"] and one["state"] != "frozen" else nullcontext():
                self._tell(verb, name)
                self.run.status()

    # ---- what happens to the service

    @rule(verb=verbs, name=names, victim=lasting)
    def stopped_supervisor(self, verb: str, name: str, victim: str) -> None:
        """SIGSTOP to the supervisor; a program dies, a command comes; SIGCONT."""
        with self._step(f"{verb} {name} and the death of {victim} while the supervisor is stopped"):
            one, processes = self.run.one(victim), self.run.processes()
            with stopped(self.run.pid):
                self._kill(one, processes, signal.SIGKILL, "program")
                future = self.run.ask(verb, name)
            answer(future, f"{verb} {name}")
            self._wish(verb, name)

    @rule(verb=verbs, name=names)
    def stopped_keeper(self, verb: str, name: str) -> None:
        """SIGSTOP to the keeper, a command; meanwhile the API answers. SIGCONT."""
        with self._step(f"{verb} {name} while the keeper is stopped"):
            with stopped(self.run.keeper_pid):
                future = self.run.ask(verb, name)
                self.run.status()
            answer(future, f"{verb} {name}")
            self._wish(verb, name)

    @rule(verb=verbs, name=names, victim=lasting)
    def unread(self, verb: str, name: str, victim: str) -> None:
        """Nobody reads the stream (a pipe), or its disk is full; everything goes on."""
        fault = "the disk is full" if self.output == "disk" else "nobody reads"
        with (
            self._step(f"{verb} {name} and the death of {victim} while {fault}"),
            full_disk(self.run) if self.output == "disk" else self._unread(),
        ):
            self._tell(verb, name)
            self._hit(victim, signal.SIGKILL, "program")
            self.run.status()

    @contextmanager
    def _unread(self) -> Iterator[None]:
        self.run.stop_reading()
        try:
            yield
        finally:
            self.run.read_on()

    @rule(room=st.integers(0, 6), victim=lasting)
    def starved_keeper(self, room: int, victim: str) -> None:
        """The keeper has no descriptors left (EMFILE) when a program dies."""
        with self._step(f"the death of {victim} while the keeper may open {room} more files"):
            mark = len(self.run.records)
            was = self.run.one(victim)
            with few_descriptors(self.run.keeper_pid, room):
                self._hit(victim, signal.SIGKILL, "first process")
                if was["state"] in ("running", "ready"):
                    self.run.record(mark, event="state", workload=victim, to="starting")
                self.run.status()

    @rule(how=st.sampled_from(("end in order", "kill the supervisor", "kill the keeper")))
    def end(self, how: str) -> None:
        """The service ends, one way or another, and is run again."""
        with self._step(f"{how}, run again"):
            if how == "end in order":
                self.run.stop()
                over(self.run)
            elif how == "kill the supervisor":
                self.run.signal(signal.SIGKILL)
                self.run.wait()
                demand(self.run.stream_problems())
            elif not self._ended_without_keeper():
                return
            self._boot(takes_over=how == "kill the supervisor")

    def _ended_without_keeper(self) -> bool:
        """Kill the keeper. The supervisor may get another one (False); if it ends instead, it leaves nothing."""
        keeper = self.run.keeper_pid
        os.kill(keeper, signal.SIGKILL)
        until("a new keeper, or the end", lambda: self.run.process.poll() is not None or self._keeper() != keeper)
        if self.run.process.poll() is None:
            self.run.keeper_pid = self._keeper()
            return False
        self.run.wait()
        over(self.run, status=1)
        return True

    def _keeper(self) -> int:
        try:
            return int(self.run.client.info()["keeper_pid"])
        except Exception:  # it is just ending
            return self.run.keeper_pid

    # ---- what must hold

    @invariant()
    def all_holds(self) -> None:
        if self.run is not None and self.broken is None:
            with self._told(""):
                self.settle()
                self._look()

    def settle(self) -> None:
        """Wait until no workload is on its way from one state to another, and the records have told of the last."""
        final = frozenset({"stopped", "exited", "failed", "frozen", "running", "ready"})

        def quiet() -> bool:
            if self.run.process.poll() is not None:
                raise BrokenError(
                    f"answers: the service has ended, status {self.run.process.returncode}\n{self._tail()}"
                )
            status = self.run.status()
            for one in status:
                if one["state"] not in final or (one["name"] == "says" and one["state"] == "running"):
                    return False
                if one["generation"] == self.dying.get(one["name"]) and one["state"] in invariants.HAS_PROGRAM:
                    return False
                said = self.run.matching(event="state", workload=one["name"])
                if said and (said[-1]["to"], said[-1]["generation"]) != (one["state"], one["generation"]):
                    return False
            return not invariants.wishes_kept(status, self.wanted, HEALTHY) if hurry() else True

        # A wish may take a moment to come true: a restart that is just being decided on, say. What is false for a
        # second will stay so.
        end = time.monotonic() + 1.0

        def hurry() -> bool:
            return time.monotonic() < end

        try:
            until("all is quiet", quiet)
        except BrokenError as error:
            states = ", ".join(f"{one['name']} {one['state']} ({one['reason']})" for one in self.run.status())
            raise BrokenError(f"{error}; {states}\n{self._tail()}") from None

    def _look(self) -> None:
        run = self.run
        first = run.processes()
        status = run.status()
        second = run.processes()
        demand(
            [
                *invariants.wishes_kept(status, self.wanted, HEALTHY),
                *invariants.none_lost(status, second, NAMES),
                *invariants.one_generation(first, second),
                *invariants.in_their_cgroup(second, observe.tree(run.name)),
                *(self.sentry.wrong if self.sentry else ()),
                *run.stream_problems(),
                *run.complaints(),
            ]
        )
        self._reaped()
        living = {one["name"]: one["generation"] for one in status if one["state"] in invariants.HAS_PROGRAM}
        demand(invariants.all_ended(run.records, living))

    def _reaped(self) -> None:
        """A child that has just died may be there for a moment."""
        try:
            until("reaped", lambda: not self._unreaped(), 2)
        except BrokenError:
            demand(self._unreaped())

    def _unreaped(self) -> list[str]:
        return invariants.reaped(self.run.processes(), (self.run.pid, self.run.keeper_pid))

    def teardown(self) -> None:
        try:
            if self.run is not None and self.broken is None:
                with self._told("all at rest, then the end"):
                    self._rest()
                    self._descriptors()
                    self.run.stop()
                    over(self.run)
        finally:
            if self.sentry is not None:
                self.sentry.close()
            if self.run is not None:
                self.run.end()
            if self.site is not None:
                self.site.sweep()
                self.site.remove()

    def _rest(self) -> None:
        self._tell("stop", "*")
        self.settle()

    def _open(self) -> dict[str, dict[str, int]]:
        return {
            "the supervisor": observe.descriptors(self.run.pid),
            "the keeper": observe.descriptors(self.run.keeper_pid),
        }

    def _descriptors(self) -> None:
        """Those of connections and pipes that have just ended may be open for a moment."""

        def more() -> list[str]:
            now = self._open()
            return [
                text for who, had in self.at_rest.items() for text in invariants.descriptors_return(had, now[who], who)
            ]

        try:
            until("descriptors are closed", lambda: not more(), 2)
        except BrokenError:
            demand(more())

    # ---- how it is done

    def _boot(self, takes_over: bool = False) -> None:
        """A new run. All is started, whatever was wanted before; unless it takes over what runs."""
        if self.sentry is not None:
            self.sentry.close()
            demand(self.sentry.wrong)
        if self.run is not None:
            self.run.close()
        self.run = Run(self.site)
        self.sentry = Sentry(self.site)
        if takes_over:
            # What the run before has said is not in this stream: here the lives begin in their middle.
            missing = {"level": "warning", "event": "dropped", "dropped": 1, "reason": "another stream"}
            self.run.records.insert(0, {"timestamp": self.run.records[0]["timestamp"], **missing})
        else:
            self.wanted = dict.fromkeys(NAMES, True)
            self.dying.clear()

    def _tell(self, verb: str, pattern: str) -> None:
        self.run.tell(verb, pattern)
        self._wish(verb, pattern)

    def _wish(self, verb: str, pattern: str) -> None:
        """What a command means for what shall be up."""
        for name in NAMES if pattern == "*" else (pattern,):
            if verb in ("start", "restart"):
                self.wanted[name] = True
            elif verb == "stop":
                self.wanted[name] = False
        if (verb, pattern) == ("start", "leans"):
            self.wanted["steady"] = True
        if (verb, pattern) == ("stop", "steady"):
            self.wanted["leans"] = False

    def _hit(self, name: str, signum: int, whom: str) -> None:
        self._kill(self.run.one(name), self.run.processes(), signum, whom)

    def _kill(self, one: dict[str, Any], processes: list[invariants.Process], signum: int, whom: str) -> None:
        name, pid, state = one["name"], one["pid"], one["state"]
        if not pid:
            return
        first = whom == "first process" and name not in WITHOUT_INIT
        if first:
            pid = next((process.parent for process in processes if process.pid == pid), pid)
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            return
        if state == "frozen":  # then only some die before they are thawed; and a frozen init reaps nobody
            noticed = (
                signum == signal.SIGKILL
                if first
                else name in WITHOUT_INIT and signum in (signal.SIGKILL, signal.SIGTERM)
            )
        else:
            noticed = (name, signum) != ("deaf", signal.SIGTERM)
        if noticed:
            self.dying[name] = one["generation"]

    @contextmanager
    def _step(self, words: str) -> Iterator[None]:
        self.steps += 1
        with self._told(words):
            yield

    @contextmanager
    def _told(self, words: str) -> Iterator[None]:
        if words:
            self.log(f"  seed {self.number} step {self.steps}: {words}")
        try:
            yield
        except BaseException as error:
            if self.broken is None:
                self.broken = error
                self.log(f"  seed {self.number} step {self.steps}: {type(error).__name__}: {error}")
            raise

    def _tail(self) -> str:
        lines = self.run.raw.decode(errors="replace").splitlines()[-15:]
        return "\n".join([*lines, self.run.stderr.read_text()[-2000:]])


def run(number: int, steps: int, log: Callable[[str], None] = print) -> int:
    """One run with the seed ``number``; returns how many steps it took, raises what went wrong."""
    taken: list[int] = []
    broken: list[BaseException] = []

    class Seeded(Chaos):
        def again(self) -> bool:
            return bool(broken)

        def teardown(self) -> None:
            taken.append(self.steps)
            try:
                super().teardown()
            finally:
                broken.extend([self.broken] if self.broken else [])

    Seeded.number = number
    Seeded.log = staticmethod(log)
    try:
        run_state_machine_as_test(
            seed(number)(Seeded),
            settings=settings(
                max_examples=1,
                stateful_step_count=steps + 1,  # the beginning is one
                phases=[Phase.generate],
                database=None,
                deadline=None,
                derandomize=False,
                verbosity=Verbosity.quiet,
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )
    except Exception as error:
        raise (broken[0] if broken else error) from None
    return max(taken)
