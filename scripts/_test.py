"""The tiers of tests and their sum; `scripts/test` calls this inside the venv.

Both tiers run at the same time: the virtual machine emulates its processors in one thread, and the host's tests mostly
wait, or take one thread as well where they boot machines of their own. What the machine's tier says is shown when the
host's is done.

Strict (``--strict``, or CI=true in the environment): a test that is skipped for something that this machine can have
fails. What that is, is said per tier in `TIERS`.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from _vm.common import die_with_parent

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "tests" / "programs.txt"
NO_TESTS = 5  # pytest's exit status when it selected none
MOST_AGAIN = 4  # failures of a tier that are run once more

# For the machine to end after the last test's own limit. Beside the host's tests, on two cores with nothing else to do,
# it needs about half.
GUEST_LIMIT = 2400
GUEST_TEST_LIMIT = 300

# What must be there. The host's controllers are not among it, because they differ; the guest has all of them.
EVERYWHERE = "root,cgroup,userns,netns,time_namespace,module:*"
TIERS = {
    "host": f"{EVERYWHERE},vm,version:*",
    "guest": f"{EVERYWHERE},memory,pids,cpu,cpuset,io,cgroup_v2,unprivileged_userns,psi*,sys_resource,scratch_disk,"
    "core_files",
}
TITLES = {"host": "host", "guest": "virtual machine"}


@dataclass
class Result:
    """How a tier went."""

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
        """Further pytest arguments; a directory of its own, that the virtual machine may write to; where to write."""
        self.arguments, self.strict, self.counts = arguments, strict, directory / "counts.json"
        self.output = output
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False
        directory.mkdir()

    def pytest(self, tier: str, *more: str) -> list[str]:
        """The command line."""
        return [sys.executable, "-m", "pytest", f"--tier={tier}", f"--counts={self.counts}", *self.arguments, *more]

    def host(self) -> Result:
        """The tier on this host."""
        return self._run("host", self.pytest("host", *self._strict("host")))

    def guest(self) -> Result:
        """The tier in the virtual machine, in one boot; nothing is booted when no test is for it."""
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
        # The cache would be the host's, too.
        command = self.pytest("guest", *limits, "-p", "no:cacheprovider", *self._strict("guest"))
        return self._run(
            "guest", [*machine, f"--time-limit={GUEST_LIMIT}", f"--share={self.counts.parent}", "--", *command]
        )

    def _strict(self, tier: str) -> list[str]:
        lines = [line.split() for line in PROGRAMS.read_text().splitlines() if not line.startswith("#")]
        programs = [f"program:{words[0]}" for words in lines if "optional" not in words]
        return [f"--strict-needs={','.join([TIERS[tier], *programs])}"] if self.strict else []

    def _selected(self) -> int:
        """How many tests are for the guest; also 1 when that cannot be said (the guest's own run will tell why)."""
        command = self.pytest("guest", "--collect-only", "-qq", "-p", "no:cacheprovider")
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
        if result.status and not result.failed:  # it broke off, or could not even collect
            result.failed = 1
            result.reasons[f"the {result.title} tier ended with exit status {status}"] = 1
        failures = counts.get("failures", [])
        if not self._ended and 0 < len(failures) <= MOST_AGAIN and len(failures) >= result.failed:
            self._again(result, command, failures)
        return result

    def _again(self, result: Result, command: list[str], failures: list[str]) -> None:
        """Run a few failures once more, alone. What passes now is no failure of the change; it is told all the same,
        because a test that fails for no reason, or a rare race of the product, is a defect to be found."""
        self._say(f"\n=== once more: {', '.join(failures)}")
        status = self._wait([*command, *failures])
        counts = self._read()
        if status == 0 and counts.get("passed", 0) >= len(failures):
            result.passed += result.failed
            result.failed = result.status = 0
            result.reasons.update(f"failed once, and passed when run again: {name}" for name in failures)

    def _say(self, text: str) -> None:
        print(text, file=self.output, flush=True)

    def _wait(self, command: list[str]) -> int:
        # So that tests and machine are taken down in order when this process is killed.
        tied = die_with_parent(signal.SIGINT)

        def begin() -> None:
            tied()
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs are born with it ignored

        process = subprocess.Popen(command, cwd=ROOT, stdout=self.output, stderr=self.output, preexec_fn=begin)
        self._process = process
        if self._ended:  # just before
            self.end()
        try:
            return process.wait()
        finally:
            process.send_signal(signal.SIGINT)  # pytest then still tidies up after its tests
            process.wait()

    def end(self) -> None:
        """From another thread: what runs ends in order, and nothing more is begun."""
        self._ended = True
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)


def both(arguments: list[str], strict: bool, directory: Path) -> list[Result]:
    """Both tiers, at the same time."""
    host = Runner(arguments, strict, directory / "host")
    os.environ.setdefault("NSUPERVISOR_TEST_SLOWDOWN", "3")  # of the host's time limits; the guest has its own factor
    with open(directory / "guest.log", "w+") as said:
        guest = Runner(arguments, strict, directory / "guest", said)
        found: list[Result] = []
        other = threading.Thread(target=lambda: found.append(guest.guest()), name="guest")
        other.start()
        try:
            here = host.host()
        except BaseException:
            guest.end()
            raise
        finally:
            follow(Path(said.name), other)
    return [here, *(found or [Result(TITLES["guest"], failed=1, status=1)])]


def follow(path: Path, thread: threading.Thread) -> None:
    """Show what a file holds, and what is still written to it until the thread has ended."""
    with path.open() as stream:
        while True:
            ended = not thread.is_alive()
            sys.stdout.write(stream.read())
            sys.stdout.flush()
            if ended:
                return
            thread.join(0.5)


def summary(results: list[Result]) -> str:
    """What was run, what was skipped and why; the last line is the sum."""
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
    parser = argparse.ArgumentParser(prog="scripts/test", description=__doc__, epilog="All else goes to pytest.")
    tier = parser.add_mutually_exclusive_group()
    tier.add_argument("--host", action="store_true", help="only on this host")
    tier.add_argument("--vm", action="store_true", help="only in the virtual machine")
    parser.add_argument("--strict", action="store_true", default=os.environ.get("CI") == "true")
    args, arguments = parser.parse_known_args()
    # Byte code is kept beside the sources: else each program that a test starts would compile all of it anew, which
    # takes longer than most tests. What the host has compiled, the virtual machine need not.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("scripts/test: ended by SIGTERM; there is no sum"))
    with tempfile.TemporaryDirectory(prefix="nsupervisor-test.") as text:
        directory = Path(text)
        if args.host:
            results = [Runner(arguments, args.strict, directory / "host").host()]
        elif args.vm:
            results = [Runner(arguments, args.strict, directory / "guest").guest()]
        else:
            results = both(arguments, args.strict, directory)
    print(summary(results), flush=True)
    if not any(result.passed + result.failed + result.skipped for result in results):
        return NO_TESTS
    return 1 if any(result.status for result in results) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
