"""The effects of a rule's action besides those on the lifecycle: its record, limits, counters and notifications."""

import signal
from collections.abc import Callable
from typing import Any

import attrs
import trio

from nsupervisor.config.model import Rule
from nsupervisor.core.decider import PendingAction
from nsupervisor.core.exits import signal_name
from nsupervisor.core.rules.limit_steps import LimitValues
from nsupervisor.metrics.counters import Counters
from nsupervisor.metrics.measures import Measures
from nsupervisor.service.instance.hooks import run_notification
from nsupervisor.service.instance.limits import LimitWriter


@attrs.define(eq=False)
class RuleActions:
    """Begins the actions of one instance's rules."""

    log_event: Callable[..., dict[str, Any]]
    """Write a record about the current generation: `InstanceLog.write` without its first argument."""
    limit_writer: LimitWriter
    counters: Counters
    measures: Measures
    nursery: trio.Nursery

    def begin(self, pending: PendingAction) -> None:
        """Record an action that runs now, and begin its effects; `set` is recorded once the limits have changed."""
        rule, action = pending.firing.rule, pending.firing.action
        cause = pending.firing.cause.to_record()
        more: dict[str, Any] = {"dry_run": True} if rule.dry_run else {}
        if not rule.dry_run:
            self.counters.count_firing(rule.name, action)
            if pending.reported_at is not None:
                self.measures.record_reaction(pending.reported_at)
        if action == "signal":
            more["signal"] = signal_name(rule.signal or signal.SIGTERM)
        if action == "set":
            if pending.firing.limits and not rule.dry_run:
                self.limit_writer.set_by_rule(pending.firing.limits, cause)
                return
            more["message"] = _describe_settings(rule, pending.firing.limits)
        record = self.log_event("action", "warning", action=action, cause=cause, **more)
        if action in ("exec", "webhook", "notify") and not rule.dry_run:
            self.nursery.start_soon(self._notify, action, rule, record)

    async def _notify(self, action: str, rule: Rule, record: dict[str, Any]) -> None:
        """Notify a receiver outside the service; nothing waits for it, and a failure is logged as a warning."""
        if problem := await run_notification(action, rule, record):
            self.log_event("warning", "warning", message=f"{rule.name}: {problem}")


def _describe_settings(rule: Rule, settings: LimitValues) -> str:
    """Describe a `set` action that changes nothing, for its record."""
    if not settings:
        return f"nothing is left to set: {', '.join(rule.set_)} at its bound, or without a limit"
    return ", ".join(f"{key} would be {'max' if value is None else f'{value:g}'}" for key, value in settings.items())
