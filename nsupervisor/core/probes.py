"""Decide about probes: which verdict follows from their results, and when the next one is due. Pure.

The rules are those of the kubelet (Kubernetes documentation, "Configure Liveness, Readiness and Startup Probes"):

* Only results in a row count. A verdict changes after `failure_threshold` failures or `success_threshold` successes.
* Before the first result, readiness is a failure, liveness a success, and startup is open.

Until the first success a probe runs each `start_interval_sec`, so that a start is noticed soon (Docker's
`--health-start-interval`). The failures in between do not count: `failure_threshold` is a number of periods.
"""

from __future__ import annotations

from typing import NamedTuple

from nsupervisor.config.probes import ProbeConfig, ProbeKind

INITIAL_VERDICTS: dict[ProbeKind, bool | None] = {"startup": None, "readiness": False, "liveness": True}


class ProbeResult(NamedTuple):
    """The result of one probe: whether it has succeeded (None: unknown, so it does not count), and what it found."""

    is_success: bool | None
    detail: str


class ProbeState(NamedTuple):
    """The state of one probe of a generation. Times are seconds of the monotonic clock.

    `verdict`: whether it passes; None: open. `run`: how many results in a row were equal to `latest`. `counts_at`: from
    when on a failure counts.
    """

    verdict: bool | None
    counts_at: float
    due_at: float
    latest: bool | None = None
    run: int = 0
    has_succeeded: bool = False


def begin(
    kind: ProbeKind, config: ProbeConfig, now: float, *, is_passed: bool = False, share: float = 0.0
) -> ProbeState:
    """Return the state at the start of a program, or at a takeover.

    `is_passed`: the verdict before the takeover was a success. `share`, from [0, 1): which part of the period the first
    probe waits, so that a thousand probes after a takeover are not at once.
    """
    first = now + (share * config.period_sec if is_passed else config.initial_delay_sec)
    verdict = True if is_passed else INITIAL_VERDICTS[kind]
    return ProbeState(verdict, first, first, has_succeeded=is_passed)


def handle_result(state: ProbeState, result: ProbeResult, config: ProbeConfig, now: float) -> ProbeState:
    """Return the state after a probe that was due at `state.due_at` and has ended `now`."""
    is_success = result.is_success
    state = state._replace(has_succeeded=state.has_succeeded or bool(is_success))
    if is_success is not None and (is_success or state.due_at >= state.counts_at):
        run = state.run + 1 if is_success is state.latest else 1
        threshold = config.success_threshold if is_success else config.failure_threshold
        verdict = is_success if run >= threshold else state.verdict
        state = state._replace(verdict=verdict, latest=is_success, run=run, counts_at=state.due_at + config.period_sec)
    interval = config.period_sec if state.has_succeeded else min(config.start_interval_sec, config.period_sec)
    # As with the kubelet's ticker, those that were due while this one ran are left out.
    missed = max(0.0, now - state.due_at) // interval
    return state._replace(due_at=state.due_at + interval * (missed + 1))
