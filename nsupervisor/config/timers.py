"""[workload.NAME.timer]: the times at which a workload is started, or restarted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

from attrs import field, frozen

from nsupervisor.config import kinds
from nsupervisor.config.kinds import Choice, Scalar, key, matching
from nsupervisor.config.table import Table

TimerAction = Literal["start", "restart"]
ConcurrencyPolicy = Literal["forbid", "replace", "queue", "allow"]
"""The first two and the last one are the words of a CronJob of Kubernetes."""
MAX_EXPRESSIONS = 16


def _parse_calendar(text: str) -> object:
    from nsupervisor.config.calendar_expressions import parse_calendar  # few configurations have timers

    return parse_calendar(text)


def _parse_cron(text: str) -> object:
    from nsupervisor.config.cron import parse_cron

    return parse_cron(text)


def _expressions(parse: Callable[[str], object], example: str) -> Scalar:
    """Create a kind for one expression or a list of them; its value is a tuple of texts."""

    def load(value: Any) -> tuple[str, ...]:
        values = value if isinstance(value, list) else [value]
        if not 1 <= len(values) <= MAX_EXPRESSIONS:
            raise ValueError(f"has {len(values)} expressions; write 1 to {MAX_EXPRESSIONS}")
        for text in values:
            if not isinstance(text, str):
                raise ValueError(f"is not an expression; write for example {example}")
            parse(text)
        return tuple(text.strip() for text in values)

    text_schema = {"type": "string", "minLength": 1}
    array = {"type": "array", "items": text_schema, "minItems": 1, "maxItems": MAX_EXPRESSIONS}
    return Scalar(load, {"anyOf": [text_schema, array]})


CALENDAR = _expressions(_parse_calendar, '"Mon..Fri 06:00"')
CRON = _expressions(_parse_cron, '"30 2 * * *"')
TIME_ZONE = matching(
    r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*",
    'is not the name of a time zone; write for example "Europe/Berlin" or "UTC"',
)


@frozen(repr=False)
class TimerConfig(Table):
    """[workload.NAME.timer]: when to start it, or restart it, and what to do if it still runs then."""

    on_calendar: tuple[str, ...] = field(
        default=(), metadata=key(CALENDAR, "local times as in systemd.time(7), one or a list")
    )
    cron: tuple[str, ...] = field(default=(), metadata=key(CRON, "the five time fields of a cron line, one or a list"))
    on_boot_sec: float | None = field(
        default=None, metadata=key(kinds.DURATION, "this long after the boot of the host")
    )
    on_startup_sec: float | None = field(
        default=None, metadata=key(kinds.DURATION, "this long after the start of the service")
    )
    on_unit_active_sec: float | None = field(
        default=None, metadata=key(kinds.DURATION, "this long after its last start")
    )
    on_unit_inactive_sec: float | None = field(
        default=None, metadata=key(kinds.DURATION, "this long after its last end")
    )
    timezone: str | None = field(
        default=None, metadata=key(TIME_ZONE, "the time zone of on_calendar and cron; default: the host's")
    )
    persistent: bool = field(
        default=False,
        metadata=key(kinds.BOOLEAN, "run once at the start if a time was missed while the service was down"),
    )
    randomized_delay_sec: float = field(
        default=0.0, metadata=key(kinds.DURATION, "each run is later by a random part of this")
    )
    randomized_offset_sec: float = field(
        default=0.0,
        metadata=key(kinds.DURATION, "all runs are later by a part of this that depends on host and name"),
    )
    concurrency_policy: ConcurrencyPolicy = field(
        default="forbid",
        metadata=key(
            Choice.of(ConcurrencyPolicy),
            "if it still runs: skip, stop it first, run once afterwards, or use another instance",
        ),
    )
    starting_deadline_sec: float | None = field(
        default=None,
        metadata=key(kinds.DURATION, "a run that is later than this is skipped; default: 1min, or no limit"),
    )
    action: TimerAction = field(
        default="start", metadata=key(Choice.of(TimerAction), "start a oneshot, or restart a program")
    )
    suspend: bool = field(default=False, metadata=key(kinds.BOOLEAN, "skip all runs"))

    @property
    def is_set(self) -> bool:
        """Whether it has a time."""
        return bool(self.has_wall_times or self.monotonic_keys())

    @property
    def has_wall_times(self) -> bool:
        """Whether it has times of the wall clock."""
        return bool(self.on_calendar or self.cron)

    def monotonic_keys(self) -> tuple[str, ...]:
        """Return the keys for times of the monotonic clock that are set."""
        return tuple(name for name in MONOTONIC_KEYS if getattr(self, name) is not None)


MONOTONIC_KEYS = ("on_boot_sec", "on_startup_sec", "on_unit_active_sec", "on_unit_inactive_sec")
_FIRST_RUN_KEYS = ("on_calendar", "cron", "on_boot_sec", "on_startup_sec")


def find_timer_conflicts(timer: TimerConfig, workload_type: str, instances: int) -> Iterator[tuple[str, str]]:
    """Yield the key and the message of everything in a timer that does not fit together, or its workload."""
    if not timer.is_set:
        if timer != TimerConfig():
            yield "", 'has no time; write for example on_calendar = "daily"'
        return
    if timer.action == "start" and workload_type != "oneshot":
        yield "action", 'starts a program that ends by itself; write type = "oneshot", or action = "restart"'
    if timer.action == "restart" and workload_type == "oneshot":
        yield "action", 'restarts a program that runs all the time; write action = "start" for a oneshot'
    if timer.action == "restart" and timer.concurrency_policy != "forbid":
        yield "concurrency_policy", 'is for action = "start"; remove it'
    if timer.action == "start" and not any(getattr(timer, name) not in (None, ()) for name in _FIRST_RUN_KEYS):
        yield timer.monotonic_keys()[0], "needs a first run; add on_startup_sec = 0"
    for name in ("on_unit_active_sec", "on_unit_inactive_sec"):
        if (seconds := getattr(timer, name)) is not None and seconds < 1:
            yield name, "is too short; write at least 1, or let the program itself wait"
    if timer.concurrency_policy == "allow" and instances == 1:
        yield "concurrency_policy", "uses another instance for each run; write instances = 2 or more"
    if not timer.has_wall_times:
        for name in ("persistent", "timezone", "starting_deadline_sec", "randomized_offset_sec"):
            if getattr(timer, name) not in (None, False, 0.0):
                yield name, "is for on_calendar and cron; remove it"
