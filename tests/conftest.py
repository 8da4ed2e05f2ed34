"""Needs, tiers, leak guard and the count of skips for all tests. See needs.py, isolation.py, leaks.py, timing.py."""

import gc
import json
import os
import re
import secrets
import signal
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from hypothesis import settings

from nsupervisor.keeper.native import build as native
from tests import isolation, leaks
from tests.isolation import Isolation
from tests.needs import CONTROLLERS, in_guest, missing

settings.register_profile("host", deadline=None, derandomize="CI" in os.environ)
settings.register_profile("guest", deadline=None, derandomize=True, max_examples=10)
settings.load_profile("guest" if in_guest() else "host")

SELECTED = pytest.StashKey[int]()
ISOLATION = pytest.StashKey[Isolation]()
# A test that needs one of these runs in the virtual machine, too: there the hierarchy is another than on many hosts.
# "cgroup" alone is no reason: what a test of the service shows in any cgroup, it shows on the host, and much quicker.
GUEST_NEEDS = {"cgroup_v2", "psi_short_windows", "sys_resource", "scratch_disk", *CONTROLLERS}
HOST_NEEDS = {"hybrid", "vm"}
# Folders whose tests start services, containers and commands, and mostly wait for them. The tests of all others mostly
# compute. The runner gives each half a process of its own.
SERVICE_FOLDERS = frozenset(
    {
        *("attack", "chaos", "cli", "compatibility", "deployment", "documentation", "escape", "experiments"),
        *("system", "vm"),
    }
)
HALVES = ("services", "code")

_skips: Counter[str] = Counter()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("nsupervisor")
    group.addoption(
        "--strict-needs",
        default="",
        metavar="NAMES",
        help="needs that must be met here, comma-separated, with *: a test that misses one fails instead of being "
        "skipped, and so does a test that skips without naming a need",
    )
    group.addoption(
        "--leaks-each-test", action="store_true", help="look for left-overs after each test, not only at the end"
    )
    group.addoption("--tier", choices=("host", "guest"), help="only the tests for the host, or for the virtual machine")
    group.addoption(
        "--boots", choices=("none", "only"), help="leave out the tests that boot virtual machines, or all others"
    )
    group.addoption("--half", choices=HALVES, help="only the tests that start services, or only all others")
    group.addoption("--counts", metavar="FILE", help="write the numbers of this run to FILE as JSON")


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        "needs(*names): skip where the machine lacks one of them (tests/needs.py)",
        "system: works with the kernel end to end; runs on the host and in the virtual machine, as what needs a cgroup",
        "vm_only: runs in the virtual machine only",
        "host_only: runs on the host only",
        "slow: takes more than about five seconds",
        "fault(*rows): shows that a fault of tests/faults.toml is fixed (scripts/faults)",
    ):
        config.addinivalue_line("markers", line)
    native.build()  # what an editable install had built may be older than its sources
    _accept_keyboard_signals()


def _accept_keyboard_signals() -> None:
    """Have SIGINT and SIGQUIT act as usual, also in the programs of the tests.

    A shell without job control starts a command in the background with both ignored (POSIX, 2.11), and each program
    inherits that: a test that sends one of them to a `sleep` would wait forever.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Enter the run's own cgroups and mount namespace, before a probe of a need looks at them."""
    collects_only = session.config.getoption("collectonly")
    session.config.stash[ISOLATION] = Isolation() if collects_only else isolation.enter()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove the run's cgroups, after the last test has been torn down."""
    for problem in isolation.leave(session.config.stash.get(ISOLATION, Isolation())):
        print(f"tests: {problem}", file=sys.stderr)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import what has nothing for the virtual machine: it takes its emulated processor a second per module.

    Nor what is in the other half; but what the command line names is deselected instead, as pytest would not find it.
    """
    if not fnmatch(collection_path.name, "test_*.py"):
        return None
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS and not _is_in_half(collection_path, config):
        return True
    if config.getoption("tier") != "guest":
        return None
    text = collection_path.read_text()
    here = re.search(r"\bmark\.(system|vm_only)\b", text) or any(f'"{name}"' in text for name in GUEST_NEEDS)
    return None if here else True


def _is_in_half(path: Path, config: pytest.Config) -> bool:
    half = config.getoption("half")
    return not half or half == HALVES[path.relative_to(Path(__file__).parent).parts[0] not in SERVICE_FOLDERS]


def _needed(item: pytest.Item) -> set[str]:
    return {name for mark in item.iter_markers("needs") for name in mark.args}


def _is_for(item: pytest.Item, tier: str) -> bool:
    """Whether a tier has this test: the guest what works with the kernel, the host all but what only the guest can."""
    marks = {mark.name for mark in item.iter_markers()}
    needed = _needed(item)
    by_need = "slow" not in marks and bool(needed & GUEST_NEEDS)  # seconds here are minutes there
    guest = bool(marks & {"system", "vm_only"}) or by_need
    guest = guest and "host_only" not in marks and not needed & HOST_NEEDS
    if tier == "guest":
        return guest
    return "vm_only" not in marks and not (guest and any(missing(name) for name in needed & GUEST_NEEDS))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is for the other tier; unlike a skip it is not counted, because it runs there."""
    tier = config.getoption("tier")
    out = {item for item in items if (tier and not _is_for(item, tier)) or not _is_in_half(item.path, config)}
    if boots := config.getoption("boots"):
        out |= {item for item in items if ("vm" in _needed(item)) != (boots == "only")}
    config.hook.pytest_deselected(items=[item for item in items if item in out])
    items[:] = [item for item in items if item not in out]


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[SELECTED] = len(session.items)
    # Modules and tests are some 300,000 objects that stay. Each full collection would traverse them, which takes 0.2 s;
    # tests that look for leaks collect thousands of times (descriptors.py).
    gc.collect()
    gc.freeze()


def _unmet(item: pytest.Item) -> tuple[str, str]:
    """The first need that this machine does not meet, and why; two empty strings when all are met."""
    if item.get_closest_marker("vm_only") and not in_guest():
        return "guest", "runs in the virtual machine only: scripts/test --vm"
    if item.get_closest_marker("host_only") and in_guest():
        return "host", "runs on the host only"
    for name in sorted(_needed(item)):
        if reason := missing(name):
            return name, reason
    return "", ""


def _is_strict(config: pytest.Config, name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in config.getoption("strict_needs").split(",") if pattern)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    name, reason = _unmet(item)
    if name and _is_strict(item.config, name):
        pytest.fail(f"needs {name}, which must be here: {reason}", pytrace=False)
    if name:
        pytest.skip(f"needs {name}: {reason}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and hasattr(report, "wasxfail"):
        _skips[f"expected to fail: {report.wasxfail}"] += 1
    elif report.skipped:
        reason = (
            report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else str(report.longrepr)
        )
        if item.config.getoption("strict_needs") and not reason.startswith("needs "):
            report.outcome, report.longrepr = "failed", f"skipped without naming a need (use @needs): {reason}"
        else:
            _skips[reason] += 1
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if _skips:
        terminalreporter.section("skipped, by reason")
        for reason, number in _skips.most_common():
            terminalreporter.line(f"{number:5}  {reason}")
    if path := config.getoption("counts"):
        stats = terminalreporter.stats
        counts: dict[str, object] = {
            key: len(stats.get(key, [])) for key in ("passed", "failed", "error", "skipped", "xfailed")
        }
        counts["selected"] = config.stash.get(SELECTED, 0)
        Path(path).write_text(json.dumps({**counts, "reasons": dict(_skips)}))


@pytest.fixture(scope="session")
def run_isolation(request: pytest.FixtureRequest) -> Isolation:
    """The cgroups and the mount namespace of this run."""
    return request.config.stash[ISOLATION]


@pytest.fixture
def strict_umask() -> Iterator[None]:
    """Start the processes of this test with a umask that gives other users no access."""
    umask = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(umask)


@pytest.fixture
def no_leaks(run_isolation: Isolation) -> Iterator[None]:
    """Fail this test when it leaves a process, a cgroup or a mount behind."""
    before = leaks.snapshot(run_isolation)
    yield
    if found := leaks.left_over(run_isolation, before):
        pytest.fail("left behind by this test:\n  " + "\n  ".join(found), pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def _leak_guard(run_isolation: Isolation) -> Iterator[None]:
    """Fail the run when it leaves a process, a cgroup or a mount behind (an error of the last test)."""
    os.environ[leaks.MARK] = secrets.token_hex(8)
    before = leaks.snapshot(run_isolation)
    yield
    if found := leaks.left_over(run_isolation, before):
        pytest.fail(
            "left behind by this test run (find the test with --leaks-each-test):\n  " + "\n  ".join(found),
            pytrace=False,
        )


@pytest.fixture(autouse=True)
def _leak_guard_each_test(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("leaks_each_test"):
        request.getfixturevalue("no_leaks")
