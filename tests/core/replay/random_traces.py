"""Random services: the inputs of their decisions, the invariants, and the trace that would be written.

A seed determines a configuration and a history that a kernel and operators could produce: programs that run, crash,
hang or leave processes behind, counters that increase, levels that swing, commands at any time, events that arrive
late, groups whose rules choose victims (`tests.core.replay.random_groups`). The invariants are checked during the
history. `python -m tests.core.replay.random_traces 100000` checks that number of histories.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import attrs

from nsupervisor.config.conditions import parse_condition
from nsupervisor.config.model import Config, GroupConfig, HostConfig, Rule, WorkloadConfig
from nsupervisor.config.probes import LivenessConfig, ReadinessConfig, StartupConfig, TcpSocket
from nsupervisor.config.units import RelativeChange
from nsupervisor.core import backoff, events
from nsupervisor.core.actions import KillAll, ReportLeft, Spawn
from nsupervisor.core.decider import Observation, RunPending, WorkloadState, handle
from nsupervisor.core.exits import Exit
from nsupervisor.core.lifecycle import Instant, Lifecycle, State
from nsupervisor.core.replay.simulate import SimulationResult, simulate
from nsupervisor.core.replay.trace import TraceWriter, encode_line, parse_trace
from nsupervisor.core.rules.limit_steps import cgroup_file
from nsupervisor.core.rules.rules import Engine
from tests.core.replay import random_groups

CONDITIONS = (
    "memory.events oom_kill",
    "memory.events max increases by 3",
    "pids.events max",
    "pids.current >= 80%",
    "pids.current > 6",
    "memory.current > 70%",
    "memory.pressure some avg10 > 25%",
    "cpu.stat nr_throttled rate > 5/s",
    "memory.events oom_kill and memory.current > 10M",
    "pids.current >= 4 or memory.pressure full avg10 > 50%",
    "not pids.current < 8",
    "not (memory.current < 50% and pids.current < 4)",
    "memory.pressure some stall > 100ms/1s",
    "exit code == 1",
    "exit oom_killed or pids.current >= 9",
    "uptime < 2s and memory.current > 30%",
)
ACTIONS = ("log", "restart", "stop", "kill", "signal", "freeze", "thaw", "exec", "set")
LIMITS = {"pids.max": 10.0, "memory.max": 100.0 * 2**20, "memory.high": 80.0 * 2**20}
STALL = parse_condition("memory.pressure some stall > 100ms/1s").atoms[0].key or ""


def a_rule(rnd: random.Random, number: int) -> Rule:
    """Draw a rule of a workload."""
    action = rnd.choice(ACTIONS)
    worn = rnd.random() < 0.3
    return Rule(
        when=parse_condition(rnd.choice(CONDITIONS)),
        for_=rnd.choice((0.0, 0.0, 0.5, 2.0)),
        action=action,
        exec_=("true",) if action == "exec" else (),
        cooldown=rnd.choice((0.0, 0.0, 1.0, 10.0)),
        signal=1 if action == "signal" else None,
        at_most=rnd.randint(1, 3) if worn else None,
        within=rnd.choice((5.0, 60.0)) if worn else 0.0,
        then=tuple(
            rnd.sample([word for word in ("log", "restart", "stop", "kill") if word != action], rnd.randint(1, 2))
        )
        if worn
        else (),
        set_=rnd.choice(({"memory_high": RelativeChange(percent=25)}, {"memory_high": 2**26}))
        if action == "set"
        else {},
        limit={"memory_high": 2**27} if action == "set" else {},
        dry_run=rnd.random() < 0.1,
        name=f"policy[{number}]",
        line=number + 1,
    )


def a_workload(rnd: random.Random, name: str) -> WorkloadConfig:
    """Draw a workload with the keys that decisions use."""
    return WorkloadConfig(
        name,
        command=("true",),
        type=rnd.choice(("simple", "simple", "notify", "oneshot")),
        restart=rnd.choice(("no", "always", "on-success", "on-failure", "on-abnormal", "on-watchdog")),
        restart_sec=rnd.choice((0.0, 0.1, 1.0)),
        restart_max_delay_sec=rnd.choice((0.5, 5.0, 30.0)),
        restart_reset_sec=rnd.choice((1.0, 60.0)),
        start_limit_burst=rnd.randint(1, 5),
        start_limit_interval_sec=rnd.choice((5.0, 60.0)),
        timeout_start_sec=rnd.choice((1.0, 30.0, float("inf"))),
        timeout_stop_sec=rnd.choice((0.5, 10.0)),
        policy=tuple(a_rule(rnd, i) for i in range(rnd.randint(0, 4))),
    )


HOOKS = ("condition", "start_pre", "start_post", "stop", "stop_post")


def with_later_keys(rnd: random.Random, workload: WorkloadConfig) -> WorkloadConfig:
    """Draw the keys that version 0.1.0 did not have."""
    port = TcpSocket(port=80)
    return attrs.evolve(
        workload,
        runtime_max_sec=rnd.choice((0.7, 20.0, float("inf"), float("inf"))),
        runtime_randomized_extra_sec=rnd.choice((0.0, 0.0, 3.0)),
        restart_prevent_exit_status=rnd.choice(((), (), (1, "SIGKILL"))),
        restart_force_exit_status=rnd.choice(((), (), (0, "SIGSEGV"))),
        exec_reload=rnd.choice(((), (), (("true",), ("-false",)))),
        **{f"exec_{hook}": rnd.choice(((), (), (), (("true",), ("-false",)))) for hook in HOOKS},
        reload_signal=rnd.choice((None, None, 1)),
        startup=rnd.choice((None, None, StartupConfig(tcp_socket=port, termination_grace_period_sec=0.3))),
        readiness=rnd.choice((None, None, ReadinessConfig(tcp_socket=port))),
        liveness=rnd.choice((None, None, LivenessConfig(tcp_socket=port, termination_grace_period_sec=20.0))),
        restart_mode=rnd.choice(("normal", "debug")),
        min_ready_sec=rnd.choice((0.0, 0.0, 0.5, 5.0)) if workload.type != "oneshot" else 0.0,
        kill_mode=rnd.choice(("main", "all", "process")),
        send_sighup=rnd.random() < 0.3,
        final_kill_signal=rnd.choice((9, 9, 3)),
        exit_type=rnd.choice(("main", "main", "cgroup")) if workload.type != "oneshot" else "main",
    )


def a_config(rnd: random.Random) -> Config:
    """Draw a configuration of one or two workloads; half of them have a group around them, and a policy of the host."""
    names = ("web", "db")[: rnd.randint(1, 2)]
    workloads = {name: a_workload(rnd, name) for name in names}
    if rnd.random() < 0.5:
        return Config("/etc/site.toml", workloads=workloads)
    batch = GroupConfig(name="batch", policy=random_groups.a_policy(rnd, "group.batch"))
    workloads = {
        name: attrs.evolve(random_groups.preferences(rnd, workload), group=rnd.choice(("batch", "batch", None)))
        for name, workload in workloads.items()
    }
    host = HostConfig(policy=random_groups.a_policy(rnd, "host"))
    return Config("/etc/site.toml", workloads=workloads, groups={"batch": batch}, host=host)


@attrs.define
class WorkloadHistory:
    """Generator of one workload's history; it checks each transition."""

    rnd: random.Random
    name: str
    workload: WorkloadConfig
    writer: TraceWriter
    state: WorkloadState = attrs.field(init=False)
    files: dict[str, dict[str, float]] = attrs.field(factory=dict)
    program: bool = False
    """Whether the program of the present generation lives."""
    others: bool = False
    """Whether the program has left processes behind."""
    limits: dict[str, float] = attrs.field(factory=lambda: dict(LIMITS))
    began: float = 0.0
    stalled: float = 0.0
    fired_at: dict[str, list[tuple[float, int]]] = attrs.field(factory=dict)
    spawned_at: list[float] = attrs.field(factory=list)
    on_started: Callable[[object], None] = lambda history: None
    """Called with itself when the program has been executed."""

    def __attrs_post_init__(self) -> None:
        self.state = WorkloadState(Lifecycle(), Engine.for_rules(self.workload.policy))
        self.files = {
            "memory.events": {"oom_kill": 0, "max": 0},
            "pids.events": {"max": 0},
            "cpu.stat": {"nr_throttled": 0},
            "pids.current": {"": 1},
            "memory.current": {"": 2**20},
            "memory.pressure": {"some avg10": 0.0, "full avg10": 0.0},
        }

    def apply(self, what, now):
        """Apply one input, check the transition, and return its lines."""
        before, instant = self.state, Instant(now, self.rnd.random())
        transition = handle(before, what, instant, self.workload)
        self.state = transition.state
        if isinstance(what, Observation):
            for pending_action in transition.state.pending[len(before.pending) :]:
                self.check_rule(pending_action.firing, now)
        elif transition.executed is not None:
            assert transition.executed.generation == before.lifecycle.generation, "about a generation that is gone"
            assert before.lifecycle.is_alive, "about a program that does not run"
            self.limits |= {cgroup_file(key): value for key, value in transition.executed.firing.limits.items()}
        if isinstance(what, events.Start | events.Restart):
            self.spawned_at = []
        for action in transition.actions:
            if isinstance(action, Spawn):
                self.check_spawn(action, now)
                self.program, self.others, self.began = True, False, now
            elif isinstance(action, ReportLeft):
                self.others = False  # they run on, and no event is about them any more
            elif isinstance(action, KillAll):
                assert before.lifecycle.is_alive, "there is nothing to kill"
        lifecycle = transition.state.lifecycle
        if before.lifecycle.complete_at is not None and lifecycle.is_alive and lifecycle.complete_at is None:
            self.spawned_at = []  # the start counts as good
        if lifecycle.state is State.BACKOFF and before.lifecycle.state is not State.BACKOFF:
            self.check_backoff(before.lifecycle, lifecycle, now)
        return list(self.writer.transition(self.name, self.workload, before, what, instant, transition))

    def check_rule(self, fired, now):
        rule = fired.rule
        times = self.fired_at.setdefault(rule.name, [])
        if times:
            assert now - times[-1][0] >= rule.cooldown, "within its cooldown"
        step = (rule.action, *rule.then).index(fired.action)
        if rule.at_most is not None:
            lately = [s for t, s in times if t > now - rule.within]
            assert step >= max(lately, default=0), "back to a milder step without having been quiet"
            assert lately.count(step) < rule.at_most or step == len(rule.then), "more often than at_most in its time"
        times.append((now, step))

    def check_spawn(self, action, now):
        assert not self.program, "two generations at once"
        assert not self.others, "the one before has not gone"
        assert action.generation == self.state.lifecycle.generation
        burst, interval = self.workload.start_limit_burst, self.workload.start_limit_interval_sec
        lately = [t for t in self.spawned_at if t > now - interval]
        assert len(lately) < burst, "more starts than the start limit has"
        self.spawned_at.append(now)

    def check_backoff(self, old, lifecycle, now):
        wait = lifecycle.deadline - now
        full = self.workload.restart_max_delay_sec
        assert (
            -1e-9 <= wait <= min(full, self.workload.restart_sec * 2.0 ** (lifecycle.consecutive_failures - 1)) + 1e-9
        )
        assert wait >= (1 - backoff.JITTER_FRACTION) * min(full, self.workload.restart_sec) - 1e-9

    def see(self, file, now):
        if file == STALL:
            self.stalled += 1e5
            return self.apply(
                Observation({"memory.pressure": {**self.files["memory.pressure"], STALL: self.stalled}}, self.limits),
                now,
            )
        files = [joint_file for joint_file in self.state.engine.files_read_with(file) if joint_file in self.files]
        snapshot = {joint_file: dict(self.files[joint_file]) for joint_file in files}
        if self.rnd.random() < 0.5:
            snapshot["uptime"] = {"": now - self.began} if self.program else {}
        return self.apply(Observation(snapshot, self.limits), now)

    def all_files(self, now):
        return {**self.files, "uptime": {"": now - self.began} if self.program else {}}

    def move(self):
        """Increase a counter, or change a level."""
        rnd, files = self.rnd, self.files
        file = rnd.choice([*files, STALL])
        if file == STALL:
            return file
        if file.endswith((".events", ".stat")):
            key = rnd.choice(list(files[file]))
            files[file][key] = 0 if rnd.random() < 0.02 else files[file][key] + rnd.choice((0, 1, 1, 4))
        elif file == "pids.current":
            files[file][""] = rnd.randint(0, 10)
        elif file == "memory.current":
            files[file][""] = rnd.randint(0, 100) * 2**20
        else:
            files[file] = {key: rnd.choice((0.0, 10.0, 30.0, 60.0)) for key in files[file]}
        return file

    def next(self, now):
        """Advance the history by a random step; return its lines."""
        rnd, lifecycle = self.rnd, self.state.lifecycle
        if lifecycle.deadline is not None and (lifecycle.deadline <= now or rnd.random() < 0.3):
            return self.apply(events.Timeout(), now)
        draw = rnd.random()
        if self.state.pending and draw < 0.8:
            return self.apply(RunPending(), now)
        if self.program and lifecycle.state in (State.STARTING, State.STOPPING) and draw < 0.6:
            return self.fact(now, "execed" if lifecycle.state is State.STARTING else "exited")
        if not lifecycle.is_alive and draw < 0.4:
            return self.apply(events.Start(rnd.choice(("operator", "boot"))), now)
        if draw < 0.85:
            return self.see(self.move(), now)
        if draw < 0.91:
            command = rnd.choice((events.Start, events.Stop, events.Restart, events.Kill, events.Freeze, events.Thaw))
            return self.apply(command(rnd.choice(("operator", "group.batch.policy[0] (…)"))), now)
        return self.fact(now, rnd.choice(("execed", "ready", "exited", "exited", "emptied", "unhealthy")))

    def fact(self, now, kind):
        rnd, lifecycle = self.rnd, self.state.lifecycle
        generation = lifecycle.generation if rnd.random() < 0.9 else max(lifecycle.generation - 1, 0)
        current = generation == lifecycle.generation
        if kind == "execed":
            if current:
                self.on_started(self)
            return self.apply(events.Execed(generation), now)
        if kind == "ready":
            return self.apply(events.Ready(generation), now)
        if kind == "unhealthy":
            return self.apply(events.Unhealthy(generation, "no sign of life"), now)
        if kind == "exited":
            if not current or not self.program:
                return []
            how = rnd.choice(
                (Exit(code=0), Exit(code=1), Exit(signal=9, oom_killed=True), Exit(setup_failure="no such file"))
            )
            self.program, self.others = False, rnd.random() < 0.3
            lines = []
            if facts := how.condition_values():
                lines += self.apply(Observation({"exit": facts}, self.limits), now)
            while self.state.pending:  # as the service does: the rules run before the lifecycle handles the exit
                lines += self.apply(RunPending(), now)
            return lines + self.apply(events.Exited(generation, how, self.others), now)
        if current and (self.program or not self.others):
            return []
        if current:
            self.others = False
        return self.apply(events.Emptied(generation), now)


def a_trace(seed: int, steps: int = 40, *, has_later_keys: bool = True) -> tuple[Config, bytes]:
    """Generate a history of a service; return its trace. `has_later_keys`: keys that version 0.1.0 did not have."""
    rnd = random.Random(seed)
    config, writer, now = a_config(rnd), TraceWriter(), 1000.0 + rnd.random()
    if has_later_keys:
        drawn = {name: with_later_keys(rnd, workload) for name, workload in config.workloads.items()}
        config = attrs.evolve(config, workloads=drawn)
    writer.head(config.workloads)
    lines: list[dict] = []
    histories = [WorkloadHistory(rnd, name, workload, writer) for name, workload in config.workloads.items()]
    group_histories = make_group_histories(rnd, config, histories, writer)
    for history in histories:
        history.on_started = group_histories.member_started
    before = rnd.randrange(steps)  # the recording begins in the middle of the history
    for i in range(steps):
        now += rnd.choice((0.0, 0.001, 0.01, 0.05, 0.25, 1.0, 7.0)) * rnd.random()
        if i == before:
            for history in histories:
                while history.state.pending:
                    history.apply(RunPending(), now)
            group_histories.drain(now)
            for history in histories:  # the workload that was hit
                while history.state.pending:
                    history.apply(RunPending(), now)
            group_histories.writer = writer = TraceWriter()
            groups = {
                group.name: (group.config, [member.name for member in group.members])
                for group in group_histories.groups
            }
            lines = [writer.head(config.workloads, groups, clock={"monotonic": now})]
            lines += [
                writer.group_start(group.name, group.engine, group.quiet_since, now) for group in group_histories.groups
            ]
            for history in histories:
                history.writer = writer
                lines.append(writer.workload_start(history.name, history.state, now))
        if i % 5 == 0:
            lines.append(writer.sample(now, {history.name: history.all_files(now) for history in histories}))
            lines.append(writer.sample(now, group_histories.all_files()))
        if group_histories.groups and rnd.random() < 0.4:
            lines += group_histories.next(now)
            continue
        history = rnd.choice(histories)
        lines += history.next(now)
    lines.append({"t": now, "end": "told"})
    return config, b"".join(map(encode_line, lines))


def make_group_histories(
    rnd: random.Random, config: Config, histories: list[WorkloadHistory], writer: TraceWriter
) -> random_groups.GroupHistories:
    """Return the groups, and the host, that have members."""
    if not config.groups:
        return random_groups.GroupHistories(rnd, [], writer)
    batch = [history for history in histories if history.workload.group == "batch"]
    host = GroupConfig(name="host", policy=config.host.policy)
    groups = [("group/batch", config.groups["batch"], batch), ("host", host, histories)]
    return random_groups.GroupHistories(
        rnd, [random_groups.GroupHistory(*entry) for entry in groups if entry[2]], writer
    )


def as_bytes(result: SimulationResult) -> bytes:
    return json.dumps(attrs.asdict(result), default=sorted).encode()


def check(seed: int) -> None:
    """Check the invariants for a seed's history; raise AssertionError if one is violated."""
    config, data = a_trace(seed)
    trace = parse_trace(data, "trace")
    same = simulate(config, trace)
    assert [row for row in same.rows if row.recorded != row.simulated or row.time_s != row.simulated_time_s] == []
    assert same.diverged_at == {}
    other = a_config(random.Random(~seed))
    tried = simulate(other, trace, seed)
    assert as_bytes(simulate(other, trace, seed)) == as_bytes(tried)
    check_deeds(other, tried)


def check_deeds(config: Config, result: SimulationResult) -> None:
    """Check the invariants of the simulation of another configuration."""
    told: dict[tuple[str, str], list[tuple[float, dict]]] = {}
    for row in result.rows:
        if row.simulated is not None:
            at = row.time_s if row.simulated_time_s is None else row.simulated_time_s
            told.setdefault((row.workload, row.simulated["action"]), []).append((at, row.simulated))
    for (name, action), done in told.items():
        workload = config.workloads.get(name)
        if workload is None:
            assert action == "log", "an action without a victim"  # actions that affect no member
        elif action == "start":
            starts = sorted((record["generation"], at) for at, record in done)
            assert len({generation for generation, _ in starts}) == len(starts), "a generation that started twice"
            assert [at for _, at in starts] == sorted(at for _, at in starts), "a generation before the one before it"
        elif action == "wait":
            assert all(0 <= record["delay_sec"] <= workload.restart_max_delay_sec + 1e-6 for _, record in done)


def _some(seeds: range) -> int:
    for seed in seeds:
        try:
            check(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
    return len(seeds)


def main() -> None:
    """Check as many histories as the first argument says, in as many processes as the second one says."""
    count, began, done = int(sys.argv[1]), time.monotonic(), 0
    processes = int(sys.argv[2]) if len(sys.argv) > 2 else os.cpu_count()
    parts = [range(first, min(first + 500, count)) for first in range(0, count, 500)]
    with ProcessPoolExecutor(processes) as pool:
        for part in pool.map(_some, parts):
            done += part
    print(
        f"{done} random traces, each simulated with its own configuration, and twice with another: "
        f"all promises held, {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
