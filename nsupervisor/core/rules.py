"""Policy: which rules a reading of a cgroup's file sets off, and why.

Two kinds of condition, for the two ways in which the kernel tells things:

* A **counter** (``memory.events oom_kill``) only ever goes up, and the kernel says when it did. Its rule fires each
  time that it is seen higher than before.
* A **level** (``pids.current >= 90%``) goes up and down, and has to be sampled. Its rule fires once the condition has
  held, in every sample, for the time that ``for`` asks; and again only after it has not held in between.

``cooldown`` keeps a rule silent for so long after it fired: what a counter counts meanwhile is passed over, while a
level that still holds when the cooldown is over fires again. Without one a level that goes on holding fires once.

`observe` is a function of what was remembered, a reading, and the time. The engine knows no action: it says which rules
fired, and the cause of each; what is done about it is for others.
"""

from collections.abc import Mapping, Sequence

import attrs

from nsupervisor.config.model import Condition, Rule


@attrs.frozen
class Memory:
    """What is remembered of one rule between readings. Times are seconds of the monotonic clock."""

    last: float | None = None
    """A counter's value when it was read last: what the next one is compared with."""
    since: float | None = None
    """Since when a level has held; None while it does not."""
    first: float = 0.0
    """The value with which it began to hold."""
    spent: bool = False
    """This stretch of holding has set the rule off already."""
    fired_at: float | None = None


@attrs.frozen
class Cause:
    """Why a rule fired: enough for a person to check it by hand.

    ``before`` and ``after`` are two successive values of a counter; for a level, the value with which the stretch of
    holding began, and the latest. ``threshold`` is in the file's own unit (processes, bytes), None for a counter.
    """

    rule: str
    line: int
    when: str
    file: str
    key: str
    before: float
    after: float
    threshold: float | None = None
    held: float | None = None
    """For how many seconds the level had held."""


@attrs.frozen
class Fired:
    """A rule that goes off now."""

    rule: Rule
    cause: Cause


@attrs.frozen
class Engine:
    """The rules of one workload, with what is remembered of each."""

    rules: tuple[Rule, ...]
    memories: tuple[Memory, ...]

    @classmethod
    def of(cls, rules: Sequence[Rule]) -> "Engine":
        """An engine that has seen nothing yet: each counter's first reading is its base line and fires nothing."""
        return cls(tuple(rules), (Memory(),) * len(rules))

    def reborn(self) -> "Engine":
        """A new generation begins: a level has to hold anew. Counters and cooldowns go on, as the cgroup does."""
        return attrs.evolve(self, memories=tuple(attrs.evolve(m, since=None, spent=False) for m in self.memories))

    def observe(
        self, file: str, values: Mapping[str, float], limits: Mapping[str, float | None], now: float
    ) -> tuple["Engine", tuple[Fired, ...]]:
        """Take in a reading of ``file`` (key → value; key "" for a file of one value).

        ``limits`` has the present limits by their file ("pids.max" → 64), for thresholds in per cent. A rule whose
        limit is not set cannot fire.
        """
        memories, fired = list(self.memories), []
        for i, rule in enumerate(self.rules):
            condition = rule.when
            key = condition.key or ""
            if condition.file != file or key not in values:
                continue
            value = values[key]
            if condition.kind == "counter":
                memories[i], cause = _counter(memories[i], rule, value, now)
            else:
                limit = threshold(condition, limits)
                if limit is None:
                    continue
                memories[i], cause = _level(memories[i], rule, value, limit, now)
            if cause is not None:
                fired.append(Fired(rule, cause))
        return attrs.evolve(self, memories=tuple(memories)), tuple(fired)


LIMIT_OF = {"pids.current": "pids.max", "memory.current": "memory.max"}
"""What a threshold in per cent is a percentage of."""


def threshold(condition: Condition, limits: Mapping[str, float | None]) -> float | None:
    """A level's threshold in the file's own unit; None when it is a percentage of a limit that is not set."""
    assert condition.threshold is not None
    if not condition.percent:
        return condition.threshold
    limit = limits.get(LIMIT_OF[condition.file])
    return None if limit is None else limit * condition.threshold / 100


def _cool(memory: Memory, rule: Rule, now: float) -> bool:
    return memory.fired_at is None or now - memory.fired_at >= rule.cooldown


def _counter(memory: Memory, rule: Rule, value: float, now: float) -> tuple[Memory, Cause | None]:
    # Lower than before: the cgroup was made anew and counts from 0, so all that it shows has happened since.
    before = memory.last if memory.last is None or value >= memory.last else 0.0
    memory = attrs.evolve(memory, last=value)
    if before is None or value <= before or not _cool(memory, rule, now):
        return memory, None
    return attrs.evolve(memory, fired_at=now), _cause(rule, before, value, None, None)


def _level(memory: Memory, rule: Rule, value: float, limit: float, now: float) -> tuple[Memory, Cause | None]:
    if not _HOLDS[rule.when.op or ">="](value, limit):
        return attrs.evolve(memory, since=None, spent=False), None
    if memory.since is None:
        memory = attrs.evolve(memory, since=now, first=value)
    held = now - (now if memory.since is None else memory.since)
    may_repeat = not memory.spent or rule.cooldown > 0
    if held < rule.for_ or not may_repeat or not _cool(memory, rule, now):
        return memory, None
    return attrs.evolve(memory, spent=True, fired_at=now), _cause(rule, memory.first, value, limit, held)


_HOLDS = {
    ">": lambda value, limit: value > limit,
    ">=": lambda value, limit: value >= limit,
    "<": lambda value, limit: value < limit,
    "<=": lambda value, limit: value <= limit,
}


def _cause(rule: Rule, before: float, after: float, limit: float | None, held: float | None) -> Cause:
    when = rule.when
    return Cause(rule.name, rule.line, when.text, when.file, when.key or "", before, after, limit, held)
