"""Measure how soon the next supervisor answers after a kill, with N programs that keep running."""

import http.client
import time

from benchmarks import control, processes
from benchmarks.checkout import Checkout
from benchmarks.figures import Result, Target
from benchmarks.peers.nsupervisor import Nsupervisor, taken_from
from benchmarks.session import Options, RunError, Session, idle, in_pairs, running, together

ANSWER, CPU, ALL = "s to the first answer", "CPU s until then", "s until all is taken over"
PATIENCE = 60.0


def run(options: Options) -> Result:
    """Send SIGKILL to the supervisor, run the next one, and request `status` until it answers."""
    result = Result("takeover", "after a SIGKILL to the supervisor, with N programs that run on")
    sizes = options.sizes or ([20] if options.quick else [100, 1000])
    rounds = options.number(3, 1)
    for size in sizes:
        print(f"  takeover: N={size}, {rounds} kills", flush=True)
        try:
            with running(Nsupervisor, idle(size)) as session:
                session.up(size)
                time.sleep(1)
                for number in range(rounds):
                    _measure(session, size, number, result)
        except (RunError, OSError) as error:
            result.remarks.append(f"N={size}: failed: {error}")
    case = f"N={sizes[-1]}"
    answer = result.median("nsupervisor", case, ANSWER)
    result.targets = [Target(f"the first status after a take-over, {case}", answer, 2, "s")]
    result.remarks.append("the answer contains every program, with its previous pid")
    return result


def compare(options: Options, sides: list[Checkout]) -> Result:
    """Run both sides at the same time; in each round each is killed and started again."""
    result = Result("takeover", "after a SIGKILL to the supervisor, with N programs that run on")
    rounds = options.number(12, 2)
    for size in options.sizes or ([20] if options.quick else [100, 1000]):
        print(f"  takeover: N={size}, {rounds} rounds", flush=True)
        with together([taken_from(Nsupervisor, side) for side in sides], idle(size)) as sessions:
            for session in sessions:
                session.up(size)
            time.sleep(1)
            for number, order in in_pairs(sessions, rounds):
                for session in order:
                    _measure(session, size, number, result)
    return result


def _measure(session: Session, size: int, number: int, result: Result) -> None:
    """Kill the supervisor once, and measure the first answer of the next one."""
    peer = session.peer
    assert isinstance(peer, Nsupervisor)
    before = {one["name"]: one["pid"] for one in control.status(peer.socket)}
    assert peer.process is not None
    peer.process.kill()
    peer.process.wait()
    began = time.monotonic()
    peer.start()
    status = None
    while status is None:
        try:
            status = control.status(peer.socket)
        except (OSError, http.client.HTTPException, RunError):
            if time.monotonic() - began > PATIENCE or peer.process.poll() is not None:
                raise RunError(f"no answer within {PATIENCE:g} s{session.said()}") from None
            time.sleep(0.01)
    answered, used = time.monotonic() - began, processes.cpu_seconds([peer.pid])
    if {one["name"]: one["pid"] for one in status if one["state"] == "running"} != before or len(before) != size:
        raise RunError(f"they do not run as before{session.said()}")
    said = peer.directory / "said"
    while b'"taken over"' not in said.read_bytes():
        if time.monotonic() - began > PATIENCE:
            raise RunError(f"not taken over within {PATIENCE:g} s{session.said()}")
        time.sleep(0.01)
    case = f"N={size}"
    result.add(peer.name, case, ANSWER, number, [answered])
    result.add(peer.name, case, CPU, number, [used])
    result.add(peer.name, case, ALL, number, [time.monotonic() - began])
