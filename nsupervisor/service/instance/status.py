"""The status of one instance, as `nsupervisor status` shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from nsupervisor.config.expansion import Instance
from nsupervisor.config.probes import ProbeKind
from nsupervisor.core.exits import Exit
from nsupervisor.core.lifecycle import Lifecycle
from nsupervisor.core.phases import describe_phase
from nsupervisor.core.rules.rules import Limits
from nsupervisor.core.states import State
from nsupervisor.logs import Blockage

if TYPE_CHECKING:
    from nsupervisor.service.instance.probes import LatestResult

_LEFT = "; processes that it has left run on (kill_mode)"


@attrs.frozen(kw_only=True)
class InstanceStatus:
    """The values from which the status of an instance is made."""

    name: str
    instance: Instance | None
    description: str
    command: Sequence[str]
    """The program and its arguments, as in the configuration in force."""
    root: str
    """The path of its root file system; "": it has that of the host."""
    lifecycle: Lifecycle
    hook_count: int
    """The number of commands in its phase, if that has some."""
    waits_for: str
    """The workloads that a pending start waits for, in words, or ""."""
    is_up: bool
    edges: list[dict[str, str]]
    """Its relations to other workloads (`dependencies.related`)."""
    pid: int | None
    cgroup: str | None
    limits: Limits
    last_exit: Exit | None
    last_event: Mapping[str, Any] | None
    status_text: str
    """The text that the present program has last reported with STATUS=, sd_notify(3); or ""."""
    error_text: str
    """The error that it has last reported with ERRNO= or BUSERROR=, in words; or ""."""
    probes: Mapping[ProbeKind, LatestResult]
    has_left: bool
    """Whether it does not run, and processes that it has left do."""
    sockets: list[dict[str, Any]]
    """The sockets that the service listens on for it, as `Sockets.status` returns them."""
    stored_descriptors: Sequence[str]
    """The names of the descriptors that its program has stored."""
    max_stored: int
    """How many it may store."""
    awaited_traffic: str
    """The traffic that starts it: "a connection" or "a datagram"; "": none does."""
    traffic: Mapping[str, int | None]
    """The traffic of its network, as `read_traffic` returns it."""
    blockage: Blockage | None
    """The output that has waited longest to be written; None if none is blocked."""

    def to_json(self, read: Callable[[str], Mapping[str, float]], now: float) -> dict[str, Any]:
        """Return the object `Status` of `nsupervisor schema api`; `read` returns the values in a file of the cgroup."""
        lifecycle = self.lifecycle
        return {
            "name": self.name,
            "instance": self.instance,
            "description": self.description,
            "command": list(self.command),
            "root": self.root,
            "state": lifecycle.state.value,
            "phase": describe_phase(lifecycle.phase, lifecycle.step, self.hook_count),
            "reason": self.waits_for or f"{self._reason(now)}{_LEFT if self.has_left else ''}",
            "pid": self.pid if lifecycle.is_alive else None,
            "generation": lifecycle.generation,
            "restarts": lifecycle.restarts,
            "uptime_sec": round(now - lifecycle.started_at, 3) if lifecycle.is_alive else None,
            "next_start_sec": self._next_start(now),
            "ready": self.is_up,
            "edges": self.edges,
            "status_text": self.status_text if lifecycle.is_alive else "",
            "error_text": self.error_text if lifecycle.is_alive else "",
            "probes": {kind: _probe_to_json(latest) for kind, latest in self.probes.items()},
            "sockets": self.sockets,
            "stored_descriptors": list(self.stored_descriptors),
            "stored_descriptors_max": self.max_stored,
            "output_blocked_sec": round(self.blockage.seconds, 3) if self.blockage is not None else None,
            "output_blocked_by": self.blockage.reason if self.blockage is not None else "",
            "cgroup": self.cgroup,
            "memory_current": _whole(read("memory.current").get("")),
            "memory_max": _whole(self.limits.get("memory.max")),
            "pids_current": _whole(read("pids.current").get("")),
            "pids_max": _whole(self.limits.get("pids.max")),
            "cpu_usage_usec": _whole(read("cpu.stat").get("usage_usec")),
            **self.traffic,
            "last_exit": self.last_exit.to_record() if self.last_exit else None,
            "last_event": self.last_event,
        }

    def _reason(self, now: float) -> str:
        lifecycle = self.lifecycle
        if self.awaited_traffic:
            text = f"waits for {self.awaited_traffic}"
            return f"{lifecycle.reason}; {text}" if lifecycle.reason else text
        if lifecycle.complete_at is None or lifecycle.state not in (State.RUNNING, State.READY):
            return lifecycle.reason
        left_s = max(lifecycle.complete_at - now, 0.0)
        return f"{lifecycle.reason}; its start is complete in {left_s:.1f} s (min_ready_sec)"

    def _next_start(self, now: float) -> float | None:
        """Return the seconds until the next start, or None if it is not in back-off."""
        if self.lifecycle.state is not State.BACKOFF or self.lifecycle.deadline is None:
            return None
        return round(max(self.lifecycle.deadline - now, 0.0), 3)


def _probe_to_json(latest: LatestResult) -> dict[str, Any]:
    return {
        "passes": latest.state.verdict,
        "in_a_row": latest.state.run,
        "success": latest.result.is_success,
        "detail": latest.result.detail,
        "took_sec": round(latest.took_s, 6),
    }


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
