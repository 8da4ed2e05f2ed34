"""How long a person waits for a command; and ten thousand broken files, each of which has to be accepted or refused."""

import random
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.figures import OURS, Result, Target
from benchmarks.peers.nsupervisor import Nsupervisor
from benchmarks.products import ROOT
from benchmarks.session import Options, RunError, Session, idle, running
from nsupervisor.config.load import load
from nsupervisor.config.problems import ConfigError
from tests.config.broken import broken_file

FILES = "broken files"
PROGRAMS = 10


def run(options: Options) -> Result:
    """Each command as a process of its own, with its work, in turn; beside a service with some programs."""
    result = Result("commands", "what a person waits for, with Python's own start in it; and broken files")
    rounds = options.number(20, 3)
    try:
        with running(Nsupervisor, idle(PROGRAMS)) as session:
            session.up(PROGRAMS)
            time.sleep(1)
            for number in range(rounds):
                _measure(session, number, result)
    except (RunError, OSError) as error:
        result.remarks.append(f"failed: {error}")
    slowest = max((series for series in result.series), key=lambda series: series.median or 0, default=None)
    if slowest is not None:
        result.targets.append(Target(f"the slowest command ({slowest.case})", slowest.median, 100, "ms"))
    _files(1000 if options.quick else 10_000, result)
    result.remarks.append("run from an editable installation; another starts some milliseconds earlier")
    return result


def _measure(session: Session, number: int, result: Result) -> None:
    directory = session.peer.directory
    file, socket = str(directory / "site.toml"), str(directory / "run" / "api.sock")
    commands = [
        *(["--version"], ["schema", "config"], ["doctor"], ["check", file], ["plan", file, "--socket", socket]),
        ["status", "--socket", socket],
        *([name, "--socket", socket, "w1"] for name in ("why", "stop", "start", "restart", "kill")),
    ]
    for words in commands[number % len(commands) :] + commands[: number % len(commands)]:
        begin = time.monotonic()
        done = subprocess.run(
            [ROOT / ".venv" / "bin" / "nsupervisor", *words], capture_output=True, text=True, timeout=60, check=False
        )
        took = (time.monotonic() - begin) * 1000
        if done.returncode not in (0, 1):
            raise RunError(f"nsupervisor {' '.join(words)} ended with {done.returncode}: {done.stderr[-300:]}")
        series = result.at(OURS, " ".join(words[:2] if words[0] == "schema" else words[:1]), "ms")
        result.add(OURS, series.case, "ms", number, [took])


def _files(count: int, result: Result) -> None:
    """Load so many broken files."""
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
                # A refusal without a place is none.
                refused += bool(error.problems) and all(problem.line >= 1 for problem in error.problems)
            except Exception as error:
                failed += 1
                result.remarks.append(f"seed {seed}: {error!r}")
    result.add(OURS, FILES, "ms of CPU a file", 0, [(time.process_time() - began) * 1000 / count])
    result.remarks.append(f"of {count} broken files {accepted} were accepted, {refused} refused with their places")
    text = f"of {count} broken files, ended otherwise than accepted or refused with a place"
    result.targets.append(Target(text, float(count - accepted - refused), 1, "files"))
