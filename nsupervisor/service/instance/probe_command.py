"""Run commands of probes and hooks in their workload, confined as its program (`exec_session` does so for clients)."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from typing import Any

import trio

from nsupervisor.api.control import ExecRefused, ExecTerms
from nsupervisor.config.probes import ProbeConfig
from nsupervisor.core.probes import ProbeResult
from nsupervisor.keeper.entry import Entry
from nsupervisor.keeper.messages import KeeperLost, SpawnError
from nsupervisor.service.context import ServiceContext
from nsupervisor.service.instance.exec_session import describe_end
from nsupervisor.service.instance.readiness import host_owner
from nsupervisor.service.platform.exec_streams import ExecStreams

MAX_OUTPUT_BYTES = 256
"""The first bytes of the command's output, which are in the result if it fails."""
_LONGEST_READ_S = 0.05
"""Seconds after the end of the command in which its last output is read; what it has left may keep the pipe open."""
_READ_DELAY_S = 0.01
"""Seconds between reads of output that is dropped."""

MakeSpec = Callable[[ExecTerms], dict[str, Any]]
"""Returns the specification of a command, with an id. Raises ExecRefused if it cannot be run now."""


async def run_probe_command(
    context: ServiceContext, into: str, make_spec: MakeSpec, config: ProbeConfig
) -> ProbeResult:
    """Run the command of a probe in the generation `into`, as `run_command` does."""
    return await run_command(context, into, make_spec, ExecTerms(config.exec_), config.timeout_sec)


async def run_command(
    context: ServiceContext, into: str, make_spec: MakeSpec, terms: ExecTerms, timeout_s: float
) -> ProbeResult:
    """Run a command in the generation `into`. Exit status 0 is a success; a time-out ends it with SIGKILL.

    If it could not be run for a reason that is not its own, the result is unknown (`is_success` is None). If this is
    cancelled, the command gets SIGKILL.
    """
    try:
        spec = make_spec(terms)
        streams = context.kernel.open_exec_streams(False, None, host_owner(spec))
    except (ExecRefused, OSError) as error:
        return ProbeResult(None, str(error))
    try:
        return await _run(context, into, spec, streams, timeout_s)
    finally:
        streams.close()


async def _run(
    context: ServiceContext, into: str, spec: Mapping[str, Any], streams: ExecStreams, timeout_s: float
) -> ProbeResult:
    try:
        entry = await context.keeper.enter(into, spec, streams.child_fds, False)
    except (SpawnError, KeeperLost) as error:
        return ProbeResult(None, str(error))
    finally:
        streams.close_child_ends()
    try:
        return await wait_for_end(entry, streams, timeout_s)
    finally:
        if not entry.has_ended:  # it took too long, or its program is not probed any more
            with trio.CancelScope(shield=True):
                await context.keeper.signal(entry.id, signal.SIGKILL)


async def wait_for_end(entry: Entry, streams: ExecStreams, timeout_s: float) -> ProbeResult:
    """Wait for the end of a command, and read its output meanwhile; the caller ends one that has taken too long."""
    output, is_in_time = bytearray(), False
    are_read = trio.Event()

    async def read(number: int) -> None:
        while data := await streams.read(number):
            output.extend(data[: MAX_OUTPUT_BYTES - len(output)])
            if len(output) == MAX_OUTPUT_BYTES:  # the rest is dropped; one that writes without end must cost little
                await trio.sleep(_READ_DELAY_S)

    async def read_all() -> None:
        async with trio.open_nursery() as reading:
            for number in range(streams.outputs):
                reading.start_soon(read, number)
        are_read.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_all)
        with trio.move_on_after(timeout_s):
            await entry.wait_ended()
            is_in_time = True
        with trio.move_on_after(_LONGEST_READ_S * is_in_time):
            await are_read.wait()
        nursery.cancel_scope.cancel()
    if not is_in_time:
        return ProbeResult(False, f"no end within {timeout_s:g} s")
    return _result(describe_end(entry), output.decode(errors="replace"))


def _result(end: Mapping[str, Any], output: str) -> ProbeResult:
    if end["code"] == 0:
        return ProbeResult(True, "exit code 0")
    how = end["failure"] or (f"killed by {end['signal']}" if end["signal"] else f"exit code {end['code']}")
    words = " ".join(output.split())
    return ProbeResult(False, f"{how}: {words}" if words else how)
