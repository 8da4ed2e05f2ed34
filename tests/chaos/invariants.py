"""What must hold whatever happens to the service: pure functions over what was seen of it.

Each takes observations (records, processes, cgroups, the API's status) and returns what is wrong with them, a sentence
each that begins with the invariant's name; nothing wrong is an empty list. Nothing here looks at the machine:
`tests.chaos.observe` does that.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]
Status = Sequence[Mapping[str, Any]]

AT_REST = frozenset({"stopped", "exited", "failed", "backoff"})
"""States in which no process may live."""
HAS_PROGRAM = frozenset({"running", "ready", "frozen"})
"""States in which the program runs."""
STATES = AT_REST | HAS_PROGRAM | {"starting", "stopping"}


@dataclass(frozen=True)
class Process:
    """A process as /proc shows it. `started` (clock ticks since boot) tells it from a later one of the same number."""

    pid: int
    started: int
    parent: int
    session: int
    """A program leads a session, and its children stay in it: so one session is one generation."""
    state: str
    workload: str
    """The instance that it belongs to; "" for the supervisor, the keeper, and inits."""
    cgroup: str
    """Its cgroup's path in the version 2 hierarchy."""
    command: str

    @property
    def key(self) -> tuple[int, int]:
        return self.pid, self.started

    @property
    def dead(self) -> bool:
        """Only its exit status is left."""
        return self.state in "ZX"

    def __str__(self) -> str:
        return f"{self.pid} ({self.state}, session {self.session}): {self.command}"


# ---- records


def whole_lines(data: bytes) -> list[str]:
    """The stream consists of lines, each one JSON object with the keys that every record has."""
    wrong = []
    *lines, rest = data.split(b"\n")
    if rest:
        wrong.append(f"whole lines: the stream ends within a line: {rest[-80:]!r}")
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            wrong.append(f"whole lines: line {number} is no JSON ({error}): {line[:200]!r}")
            continue
        if not isinstance(record, dict) or not {"timestamp", "level", "event"} <= record.keys():
            wrong.append(f"whole lines: line {number} is no record: {line[:200]!r}")
    return wrong


def valid_records(records: Iterable[Record], problem: Callable[[Record], str | None]) -> list[str]:
    """Each record conforms to the schema; ``problem`` says how one does not."""
    return [f"valid records: {text}: {json.dumps(record)}" for record in records if (text := problem(record))]


def exits_once(records: Iterable[Record]) -> list[str]:
    """Generations are numbered one by one; each starts after the one before has ended, and ends once in the records.

    Where records were dropped, which a record says, nothing is known until a generation's next beginning.
    """
    wrong: list[str] = []
    open_: dict[str, int | None] = {}  # the generation that has begun and not ended; None: none
    latest: dict[str, int] = {}
    begun: set[tuple[str, int]] = set()

    def complain(record: Record, text: str) -> None:
        wrong.append(f"exits once: {record['workload']}#{record.get('generation')}: {text}")

    for record in records:
        event, name, generation = record["event"], record.get("workload"), record.get("generation")
        if event == "dropped":
            open_.clear()
            latest.clear()
        if name is None or generation is None:
            continue
        begins = event == "state" and record["to"] == "starting"
        # One that is started as soon as the one before has failed to start does not change its state: still "starting".
        tacitly = event in ("started", "not started") and open_.get(name, 0) is None and generation == latest[name] + 1
        if begins or tacitly:
            if open_.get(name) is not None:
                complain(record, f"starts although the end of #{open_[name]} has not been recorded")
            if name in latest and generation != latest[name] + 1:
                complain(record, f"starts after #{latest[name]}")
            open_[name] = latest[name] = generation
        if event == "started":
            if name in open_ and open_[name] != generation:
                complain(record, f"runs although it has not been started; #{open_[name]} is the open one")
            if (name, generation) in begun:
                complain(record, "began to run twice")
            begun.add((name, generation))
        elif event in ("exited", "not started"):
            if name in open_ and open_[name] != generation:
                complain(record, f'"{event}" is recorded, but it has ended before or never begun')
            if name in open_:
                open_[name] = None
    return wrong


def all_ended(records: Iterable[Record], alive: Mapping[str, int]) -> list[str]:
    """Each generation that was started has its end in the records, but for those alive: {workload: generation}."""
    started: dict[tuple[str, int], None] = {}
    ended: Counter[tuple[str, int]] = Counter()
    for record in records:
        if record["event"] == "dropped":
            return []
        key = record.get("workload", ""), record.get("generation") or 0
        if record["event"] == "started" or (record["event"] == "state" and record["to"] == "starting"):
            started[key] = None
        elif record["event"] in ("exited", "not started"):
            ended[key] += 1
    missing = [key for key in started if not ended[key] and alive.get(key[0]) != key[1]]
    wrong = [f"all ended: the end of {name}#{generation} is not recorded" for name, generation in missing]
    return wrong + [
        f"all ended: {name}#{generation} lives, and its end is recorded"
        for name, generation in alive.items()
        if ended[name, generation]
    ]


def states_chain(records: Iterable[Record]) -> list[str]:
    """Each change of state begins where the one before it ended."""
    wrong = []
    last: dict[str, str] = {}
    for record in records:
        if record["event"] == "dropped":
            last.clear()
        elif record["event"] == "state":
            name = record["workload"]
            if last.get(name, record["from"]) != record["from"]:
                wrong.append(f"states chain: {name} goes from {record['from']}, but was {last[name]}")
            last[name] = record["to"]
    return wrong


def output_gapless(records: Iterable[Record]) -> list[str]:
    """Programs that print "count 1", "count 2", … are recorded line by line, each once and in order."""
    wrong = []
    last: dict[tuple[str, int], int] = {}
    dropped = False  # since then a gap is fine, for all that have not been heard of since
    excused: set[tuple[str, int]] = set()
    for record in records:
        if record["event"] == "dropped":
            dropped, excused = True, set()
        elif record["event"] == "output" and record["message"].startswith("count "):
            key = record["workload"], record["generation"]
            before, said = last.get(key, 0), record["message"].partition(" ")[2]
            if not said.isdecimal():
                wrong.append(f"output gapless: {key[0]}#{key[1]} says {record['message']!r} after {before}")
                continue
            number = int(said)
            late = dropped and key not in excused and number > before
            if number != before + 1 and not late:
                wrong.append(f"output gapless: {key[0]}#{key[1]} says {number} after {before}")
            last[key] = number
            excused.add(key)
    return wrong


# ---- processes


def one_generation(earlier: Iterable[Process], later: Iterable[Process]) -> list[str]:
    """At most one generation of a workload lives. Those seen in two looks, one after the other, lived in between, at
    the same time."""
    before = {process.key for process in earlier if not process.dead}
    sessions: dict[str, dict[int, list[Process]]] = defaultdict(lambda: defaultdict(list))
    for process in later:
        if process.workload and process.key in before and not process.dead:
            sessions[process.workload][process.session].append(process)
    return [
        f"one generation: {name} lives {len(of)} times: {'; '.join(str(p[0]) for p in of.values())}"
        for name, of in sessions.items()
        if len(of) > 1
    ]


def in_their_cgroup(processes: Iterable[Process], tree: str) -> list[str]:
    """A workload's processes are in its cgroup or below it. ``tree`` is the cgroup of all workloads."""
    return [
        f"in their cgroup: {process.workload}'s {process} is in {process.cgroup}"
        for process in processes
        if process.workload and not process.dead and not f"{process.cgroup}/".startswith(f"{tree}/{process.workload}/")
    ]


def none_lost(status: Status, processes: Iterable[Process], names: Iterable[str]) -> list[str]:
    """All workloads are there; what is said to run does, with the process that is said; at rest there is none.

    Of a frozen workload the program may be dead: its init, frozen too, has not said so yet.
    """
    by_pid = {process.pid: process for process in processes}
    living: dict[str, list[Process]] = defaultdict(list)
    for process in by_pid.values():
        if not process.dead:
            living[process.workload].append(process)
    shown = [one["name"] for one in status]
    wrong = [f"none lost: {name} is shown {shown.count(name)} times" for name in names if shown.count(name) != 1]
    for one in status:
        name, state, pid = one["name"], one["state"], one["pid"]
        if state in HAS_PROGRAM:
            found = by_pid.get(pid)
            there = found is not None and (state == "frozen" or not found.dead)
            if not there or (found is not None and not found.dead and found.workload != name):
                wrong.append(f"none lost: {name} is {state} as {pid}, which is {found or 'not there'}")
        elif state in AT_REST and living[name]:
            wrong.append(f"none lost: {name} is {state}, but there lives {'; '.join(map(str, living[name]))}")
        if state in AT_REST and pid is not None:
            wrong.append(f"none lost: {name} is {state} and has a pid, {pid}")
    return wrong


def reaped(processes: Iterable[Process], parents: Iterable[int]) -> list[str]:
    """None of our own two processes leaves a dead child lying."""
    ours = set(parents)
    return [
        f"reaped: {process} of {process.parent}" for process in processes if process.dead and process.parent in ours
    ]


# ---- the API


def answers(status: object) -> list[str]:
    """The status is a list of objects, each with a name, a state that there is, and a generation."""
    if not isinstance(status, list):
        return [f"answers: the status is {type(status).__name__}: {status!r:.200}"]
    wrong = []
    for one in status:
        if not isinstance(one, dict) or not {"name", "state", "pid", "generation", "reason"} <= one.keys():
            wrong.append(f"answers: not a status: {one!r:.200}")
        elif one["state"] not in STATES:
            wrong.append(f"answers: {one['name']} is in a state {one['state']!r}")
    return wrong


def wishes_kept(status: Status, wanted: Mapping[str, bool], healthy: Mapping[str, frozenset[str]]) -> list[str]:
    """The last wish counts, once all is quiet: what shall not run is stopped; what shall is in one of its `healthy`
    states."""
    wrong = []
    for one in status:
        name, state = one["name"], one["state"]
        allowed = healthy[name] if wanted[name] else frozenset({"stopped"})
        if state not in allowed:
            wish = "be up" if wanted[name] else "rest"
            wrong.append(f"wishes kept: {name} shall {wish}, and is {state} ({one['reason']})")
    return wrong


# ---- what stays behind


def nothing_left(kinds: Mapping[str, Iterable[object]]) -> list[str]:
    """After its end the service has left nothing behind: {kind: what was found}."""
    return [f"nothing left: {kind} {thing}" for kind, things in kinds.items() for thing in things]


def descriptors_return(before: Mapping[str, int], now: Mapping[str, int], whose: str) -> list[str]:
    """In the same situation a process has no more open files than it had before: {kind: number}."""
    more = {kind: (before.get(kind, 0), number) for kind, number in now.items() if number > before.get(kind, 0)}
    return [f"descriptors return: {whose} has {is_} {kind}, and had {was}" for kind, (was, is_) in sorted(more.items())]
