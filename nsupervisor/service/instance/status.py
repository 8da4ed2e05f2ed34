"""The status of one instance, as `nsupervisor status` shows it."""

from typing import TYPE_CHECKING, Any

import trio

from nsupervisor.core.exits import Exit, signal_name

if TYPE_CHECKING:
    from nsupervisor.service.instance.actor import Actor


def status(actor: "Actor") -> dict[str, Any]:
    """Return the object `Status` of `nsupervisor schema api`."""
    lifecycle, now = actor.lifecycle, trio.current_time()
    limits = actor.limits
    return {
        "name": actor.name,
        "instance": actor.instance,
        "state": lifecycle.state.value,
        "reason": actor.start_status.waits_for or lifecycle.reason,
        "pid": actor.pid if lifecycle.is_alive else None,
        "generation": lifecycle.generation,
        "restarts": lifecycle.restarts,
        "uptime_sec": round(now - lifecycle.started_at, 3) if lifecycle.is_alive else None,
        "ready": actor.is_up and lifecycle.is_alive,
        "cgroup": actor.cgroup.path,
        "memory_current": _whole(actor.read("memory.current").get("")),
        "memory_max": _whole(limits.get("memory.max")),
        "pids_current": _whole(actor.read("pids.current").get("")),
        "pids_max": _whole(limits.get("pids.max")),
        "cpu_usage_usec": _whole(actor.read("cpu.stat").get("usage_usec")),
        "last_exit": exit_record(actor.last_exit) if actor.last_exit else None,
        "last_event": actor.log.last_event,
    }


def exit_record(exit_: Exit) -> dict[str, Any]:
    """Convert an `Exit` to the object that records and `status` show."""
    return {
        "code": exit_.code,
        "signal": None if exit_.signal is None else signal_name(exit_.signal),
        "core_dumped": exit_.core_dumped,
        "oom_killed": exit_.oom_killed,
        **({"failure": exit_.setup_failure} if exit_.setup_failure else {}),
        **({"unknown": True} if exit_.is_unknown else {}),
    }


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
