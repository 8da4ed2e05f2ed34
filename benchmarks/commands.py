"""Measure the duration of commands; load ten thousand broken files, each of which must be accepted or refused."""

import random
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.checkout import Checkout
from benchmarks.figures import OURS, Result, Target
from benchmarks.peers.nsupervisor import Nsupervisor, taken_from
from benchmarks.session import Options, RunError, Session, idle, in_pairs, running, together
from nsupervisor.config.load import load
from nsupervisor.config.problems import ConfigError
from tests.config.broken import broken_file

FILES = "broken files"
PROGRAMS = 10


def run(options: Options) -> Result:
    """Run each command in turn as a process of its own, while a service with some programs runs."""
    result = Result("commands", "what a person waits for, with Python's own start in it; and broken files")
    rounds = options.number(20, 3)
    try:
        with running(Nsupervisor, idle(PROGRAMS)) as session:
            session.up(PROGRAMS)
            time.sleep(1)
            for number in range(rounds):
                _measure([session], number, result)
    except (RunError, OSError) as error:
        result.remarks.append(f"failed: {error}")
    slowest = max((series for series in result.series), key=lambda series: series.median or 0, default=None)
    if slowest is not None:
        result.targets.append(Target(f"the slowest command ({slowest.case})", slowest.median, 100, "ms"))
    _files(1000 if options.quick else 10_000, result)
    result.remarks.append("run from an editable installation; another starts some milliseconds earlier")
    return result


def compare(options: Options, sides: list[Checkout]) -> Result:
    """Both run at the same time; each command is measured on both sides before the next."""
    result = Result("commands", "what a person waits for, with Python's own start in it")
    rounds = options.number(30, 3)
    with together([taken_from(Nsupervisor, side) for side in sides], idle(PROGRAMS)) as sessions:
        for session in sessions:
            session.up(PROGRAMS)
        time.sleep(1)
        print(f"  commands: {rounds} rounds", flush=True)
        for number, order in in_pairs(sessions, rounds):
            _measure(order, number, result)
    return result


def _commands(file: str, socket: str) -> list[list[str]]:
    return [
        *(["--version"], ["schema", "config"], ["doctor"], ["check", file], ["plan", file, "--socket", socket]),
        ["status", "--socket", socket],
        *([name, "--socket", socket, "w1"] for name in ("why", "stop", "start", "restart", "kill")),
    ]


def _measure(sessions: Sequence[Session], number: int, result: Result) -> None:
    """Run each command once on each side; every round begins with another side."""
    count = len(_commands("", ""))
    for index in range(count):
        for session in sessions:
            peer = session.peer
            assert isinstance(peer, Nsupervisor)
            words = _commands(str(peer.directory / "site.toml"), peer.socket)[(index + number) % count]
            begin = time.monotonic()
            done = subprocess.run(
                [peer.checkout.program, *words],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                env=peer.environment(),
            )
            took = (time.monotonic() - begin) * 1000
            if done.returncode not in (0, 1):
                raise RunError(f"nsupervisor {' '.join(words)} ended with {done.returncode}: {done.stderr[-300:]}")
            case = " ".join(words[:2] if words[0] == "schema" else words[:1])
            result.add(peer.name, case, "ms", number, [took])


def _files(count: int, result: Result) -> None:
    """Load this number of broken files."""
    accepted = refused = failed = 0
    began = time.process_time()
    with tempfile.TemporaryDirectory(prefix="nsb-") as directory:
        file = Path(directory) / "broken.toml"
        for seed in range(count):
            file.write_bytes(broken_file(random.Random(seed)))  # noqa: S311 - to be had again
            try:
                load(file)
                accepted += 1
            except ConfigError as error:
                # A refusal must name a place in the file.
                refused += bool(error.problems) and all(problem.line >= 1 for problem in error.problems)
            except Exception as error:
                failed += 1
                result.remarks.append(f"seed {seed}: {error!r}")
    result.add(OURS, FILES, "ms of CPU a file", 0, [(time.process_time() - began) * 1000 / count])
    result.remarks.append(f"of {count} broken files {accepted} were accepted, {refused} refused with their places")
    text = f"of {count} broken files, ended otherwise than accepted or refused with a place"
    result.targets.append(Target(text, float(count - accepted - refused), 1, "files"))
