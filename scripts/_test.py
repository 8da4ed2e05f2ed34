"""Run the tiers of tests and print the total; `scripts/test` calls this inside the venv.

Three sequences run at the same time: the virtual machine's tier, which emulates its processors in one thread; the
host's tests that start services, which mostly wait; and the host's other tests, which mostly compute. Those that boot
machines of their own follow the last ones. So all sequences take about the same time, and no processor is idle. The
output of the second and third sequence is shown after that of the first. With `--host` the sequences of the host run,
with `--vm` that of the machine.

With `--strict`, or CI=true in the environment, a test fails if it is skipped although this machine can have what it
needs; `TIERS` lists that per tier.
"""

import argparse
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from _vm.common import die_with_parent

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "tests" / "programs.txt"
NO_TESTS = 5  # pytest's exit status when it selected none
NO_CACHE = ("-p", "no:cacheprovider")  # runs at the same time would share it

# Time limit of the whole guest tier, in seconds. Next to the host's tests, on two otherwise idle cores, it needs about
# half.
GUEST_LIMIT = 2400
GUEST_TEST_LIMIT = 300

# Needs that must be met. The host's controllers are excluded, because they differ; the guest has all of them.
EVERYWHERE = "root,cgroup,userns,netns,time_namespace,module:*"
TIERS = {
    "host": f"{EVERYWHERE},vm,version:*",
    "guest": f"{EVERYWHERE},memory,pids,cpu,cpuset,io,hugetlb,cgroup_v2,unprivileged_userns,psi*,sys_resource,"
    "scratch_disk,core_files",
}
TITLES = {
    "services": "host, with services",
    "code": "host",
    "guest": "virtual machine",
    "boots": "host, with virtual machines",
}
SLOWDOWN = "4"
"""For the time limits of the host's tests: two processors run three sequences. The guest has its own factor."""
CPU_SHARES = "512"
"""The CPU weight of each sequence of the host, on version 1 hierarchies.

The machine's one thread has 1,024, like any process: it needs one processor for as long as both of them need the other
one."""


@dataclass
class Result:
    """The result of one tier."""

    title: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0
    status: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


class Runner:
    """Runs pytest for a tier, on the host or in the virtual machine."""

    def __init__(self, arguments: list[str], strict: bool, directory: Path, output: IO[str] | None = None) -> None:
        """Create `directory`, which the virtual machine may write to; `arguments` go to pytest, output to `output`."""
        self.arguments, self.strict, self.counts = arguments, strict, directory / "counts.json"
        self.output = output
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False
        directory.mkdir()

    def pytest(self, tier: str, *more: str) -> list[str]:
        """Return the pytest command of a tier."""
        return [sys.executable, "-m", "pytest", f"--tier={tier}", f"--counts={self.counts}", *self.arguments, *more]

    def services(self) -> Result:
        """Run the tests of this host that start services, but for those that boot virtual machines."""
        return self._on_host("services", "--half=services", "--boots=none")

    def code(self) -> Result:
        """Run the other tests of this host."""
        return self._on_host("code", "--half=code", "--boots=none", *NO_CACHE)

    def boots(self) -> Result:
        """Run the tests of this host that boot virtual machines."""
        return self._on_host("boots", "--boots=only", *NO_CACHE)

    def _on_host(self, tier: str, *more: str) -> Result:
        """Run tests of this host, with temporary files in a directory of their own.

        By default pytest takes the permissions of other users from a directory that all runs share, whenever one
        begins. The tests give them these, as programs of other users need them.
        """
        place = tempfile.mkdtemp(prefix="nst.")  # short, as paths of sockets are limited
        try:
            os.chmod(place, 0o755)
            return self._run(tier, self.pytest("host", f"--basetemp={place}/t", *more, *self._strict("host")))
        finally:
            subprocess.run(["rm", "-rf", place])  # also directories too deep for shutil.rmtree

    def guest(self) -> Result:
        """Run the tier of the virtual machine in one boot; boot nothing if no test is selected for it."""
        result, number = Result(TITLES["guest"]), self._selected()
        if not number:
            return result
        machine = [sys.executable, str(ROOT / "scripts" / "vm")]
        check = subprocess.run([*machine, "--check"], capture_output=True, text=True)
        if check.returncode:
            reason = check.stderr.strip().removeprefix("vm: ")
            self._say(f"\nno virtual machine here: {reason}")
            result.reasons[reason] = number
            if self.strict:
                result.failed, result.status = number, 1
            else:
                result.skipped = number
            return result
        limits = ["-o", f"timeout={GUEST_TEST_LIMIT}", "-o", f"faulthandler_timeout={GUEST_TEST_LIMIT - 10}"]
        command = self.pytest("guest", *limits, *NO_CACHE, *self._strict("guest"))
        return self._run(
            "guest", [*machine, f"--time-limit={GUEST_LIMIT}", f"--share={self.counts.parent}", "--", *command]
        )

    def _strict(self, tier: str) -> list[str]:
        lines = [line.split() for line in PROGRAMS.read_text().splitlines() if not line.startswith("#")]
        programs = [f"program:{words[0]}" for words in lines if "optional" not in words]
        return [f"--strict-needs={','.join([TIERS[tier], *programs])}"] if self.strict else []

    def _selected(self) -> int:
        """Return the number of tests for the guest; 1 if it is unknown (the guest's run will show the reason)."""
        command = self.pytest("guest", "--collect-only", "-qq", *NO_CACHE)
        status = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode
        counts = self._read()
        return counts.get("selected", 0) if status in (0, NO_TESTS) else 1

    def _read(self) -> dict[str, Any]:
        if not self.counts.exists():
            return {}
        counts: dict[str, Any] = json.loads(self.counts.read_text())
        self.counts.unlink()
        return counts

    def _run(self, tier: str, command: list[str]) -> Result:
        self._say(f"\n=== tests: {TITLES[tier]}")
        start = time.monotonic()
        status = self._wait(command)
        result, counts = Result(TITLES[tier], seconds=time.monotonic() - start), self._read()
        result.status = 0 if status == NO_TESTS else status
        result.passed = counts.get("passed", 0)
        result.failed = counts.get("failed", 0) + counts.get("error", 0)
        result.skipped = counts.get("skipped", 0) + counts.get("xfailed", 0)
        result.reasons.update(counts.get("reasons", {}))
        if result.status and not result.failed:  # it was interrupted, or could not collect
            result.failed = 1
            result.reasons[f"the {result.title} tier ended with exit status {status}"] = 1
        return result

    def _say(self, text: str) -> None:
        print(text, file=self.output, flush=True)

    def _wait(self, command: list[str]) -> int:
        # If this process is killed, tests and machine are shut down in order.
        tied = die_with_parent(signal.SIGINT)

        def begin() -> None:
            tied()
            for signum in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):  # a shell's background jobs, and nohup
                signal.signal(signum, signal.SIG_DFL)

        process = subprocess.Popen(command, cwd=ROOT, stdout=self.output, stderr=self.output, preexec_fn=begin)
        self._process = process
        if self._ended:  # `end` was called before the process existed
            self.end()
        try:
            return process.wait()
        finally:
            process.send_signal(signal.SIGINT)  # lets pytest clean up after its tests
            process.wait()

    def end(self) -> None:
        """End the running tests in order and start no more; may be called from another thread."""
        self._ended = True
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)


def run_at_once(sequences: Sequence[Sequence[Callable[[Runner], Result]]], make: Callable[..., Runner]) -> list[Result]:
    """Run sequences of tiers at the same time; return the results in the order of the sequences.

    The first one writes to standard output, and is followed by what the others have written. `make`: makes the runner
    of a tier, from its name and its output.
    """
    results: list[list[Result]] = [[] for _ in sequences]
    with contextlib.ExitStack() as stack:
        outputs = [None, *(stack.enter_context(tempfile.NamedTemporaryFile("w")) for _ in sequences[1:])]
        runners = [
            [make(tier.__name__, output) for tier in sequence]
            for sequence, output in zip(sequences, outputs, strict=True)
        ]

        def run(number: int) -> None:
            for tier, runner in zip(sequences[number], runners[number], strict=True):
                results[number].append(tier(runner))

        threads = [threading.Thread(target=run, args=(number,)) for number in range(1, len(sequences))]
        for thread in threads:
            thread.start()
        try:
            run(0)
        except BaseException:
            for runner in itertools.chain(*runners):
                runner.end()
            raise
        finally:
            for thread, output in zip(threads, outputs[1:], strict=True):
                assert output is not None
                follow(Path(output.name), thread)
    for sequence, found in zip(sequences, results, strict=True):  # a thread that failed has said why
        found += [Result(TITLES[tier.__name__], failed=1, status=1) for tier in sequence[len(found) :]]
    return list(itertools.chain(*results))


def follow(path: Path, thread: threading.Thread) -> None:
    """Print the contents of a file, and what is appended to it until the thread has ended."""
    with path.open() as stream:
        while True:
            ended = not thread.is_alive()
            sys.stdout.write(stream.read())
            sys.stdout.flush()
            if ended:
                return
            thread.join(0.5)


def summary(results: list[Result]) -> str:
    """Return the results of all tiers with the reasons of skips; the last line is the total."""
    lines = [""]
    for result in results:
        lines.append(f"{result.title}: {result} in {result.seconds:.0f} s")
        lines += [f"{number:7}  {reason}" for reason, number in result.reasons.most_common()]
    total = Result(
        "all",
        passed=sum(result.passed for result in results),
        failed=sum(result.failed for result in results),
        skipped=sum(result.skipped for result in results),
    )
    return "\n".join([*lines, str(total)])


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/test", description=__doc__, epilog="Other arguments go to pytest.")
    tier = parser.add_mutually_exclusive_group()
    tier.add_argument("--host", action="store_true", help="only on this host")
    tier.add_argument("--vm", action="store_true", help="only in the virtual machine")
    parser.add_argument("--strict", action="store_true", default=os.environ.get("CI") == "true")
    args, arguments = parser.parse_known_args()
    # Keep byte code next to the sources: otherwise each program that a test starts would compile all modules again,
    # which takes longer than most tests. The virtual machine uses the byte code of the host.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("scripts/test: ended by SIGTERM; there is no total"))
    with tempfile.TemporaryDirectory(prefix="nsupervisor-test.") as text:

        def make(tier: str, output: IO[str] | None) -> Runner:
            return Runner(arguments, args.strict, Path(text) / tier, output)

        here, machine = [[Runner.services], [Runner.code, Runner.boots]], [[Runner.guest]]
        if not args.vm:
            os.environ.setdefault("NSUPERVISOR_TEST_SLOWDOWN", SLOWDOWN)
            os.environ.setdefault("NSUPERVISOR_TEST_CPU_SHARES", CPU_SHARES)
        results = run_at_once(here if args.host else machine if args.vm else [*here, *machine], make)
    print(summary(results), flush=True)
    if not any(result.passed + result.failed + result.skipped for result in results):
        return NO_TESTS
    return 1 if any(result.status for result in results) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
