"""Process trees in the place of cgroups, on a table of processes in memory."""

import errno
import os
import select
import signal
from collections.abc import Iterator

import attrs
import pytest

from nsupervisor.cgroups import Cgroup, CgroupError, Host, Tree
from nsupervisor.cgroups.errors import HostProblem
from nsupervisor.cgroups.process_tree import ProcessTreeFiles, ProcessTreeNotifications, tree_root
from nsupervisor.config.model import Resources
from nsupervisor.linux.inotify import IN_MODIFY
from nsupervisor.linux.process_titles import INIT_COMMAND, INIT_TITLE, tree_title
from nsupervisor.linux.processes import ProcessEntry

ROOT = "/0123abcd"
WEB = f"{ROOT}/site/web"
ABSENCE = ("there are none here", "start it where there are some")


@attrs.define(eq=False)
class Process:
    pid: int
    parent: int
    started: int
    command: str = "program"
    title: str = "program"
    uid: int = 0
    is_namespace_init: bool = False
    is_zombie: bool = False
    signals: list[int] = attrs.field(factory=list)
    pipe: tuple[int, int] = attrs.field(factory=os.pipe)
    forks_once: bool = False

    def end(self) -> None:
        os.close(self.pipe[1])


class Table:
    """Processes in memory. The pidfd of one is a pipe whose writing end is closed when it ends."""

    def __init__(self) -> None:
        self.processes: dict[int, Process] = {}
        self.pinned: dict[int, Process] = {}
        self.last_pid, self.ticks = 100, 0

    def start(self, parent: int, **more: object) -> Process:
        self.last_pid += 1
        self.ticks += 1
        process = Process(self.last_pid, parent, self.ticks, uid=os.getuid())
        for name, value in more.items():
            setattr(process, name, value)
        self.processes[process.pid] = process
        return process

    def init(self, title: str = "", parent: int = 1, **more: object) -> Process:
        text = f"{INIT_TITLE}{title}" if title else INIT_TITLE.rstrip()
        return self.start(parent, command=INIT_COMMAND, title=text, **more)

    def end(self, process: Process, heir: int = 1) -> None:
        del self.processes[process.pid]
        process.end()
        for child in self.processes.values():
            if child.parent == process.pid:
                child.parent = heir

    # ---- ProcessTable

    def process_table(self) -> dict[int, ProcessEntry]:
        return {pid: ProcessEntry(process.parent, process.is_zombie) for pid, process in self.processes.items()}

    def start_time(self, pid: int) -> int | None:
        return self.processes[pid].started if pid in self.processes else None

    def parent_pid(self, pid: int) -> int | None:
        return self.processes[pid].parent if pid in self.processes else None

    def command_name(self, pid: int) -> str:
        return self.processes[pid].command if pid in self.processes else ""

    def title(self, pid: int) -> str:
        return self.processes[pid].title if pid in self.processes else ""

    def real_uid(self, pid: int) -> int | None:
        return self.processes[pid].uid if pid in self.processes else None

    def is_namespace_init(self, pid: int) -> bool:
        return pid in self.processes and self.processes[pid].is_namespace_init

    def pin(self, pid: int) -> int:
        if pid not in self.processes:
            raise ProcessLookupError(errno.ESRCH, "no such process")
        fd = os.dup(self.processes[pid].pipe[0])
        self.pinned[fd] = self.processes[pid]
        return fd

    def open_pidfd(self, pid: int, start_ticks: int) -> int:
        return self.pin(pid) if self.start_time(pid) == start_ticks else -1

    def has_ended(self, pidfd: int) -> bool:
        return bool(select.select([pidfd], [], [], 0)[0])

    def send_signal(self, pidfd: int, signum: int) -> None:
        process = self.pinned[pidfd]
        if self.processes.get(process.pid) is not process:
            raise ProcessLookupError(errno.ESRCH, "no such process")
        process.signals.append(signum)
        if process.forks_once and signum == signal.SIGSTOP:  # at the very moment
            process.forks_once = False
            self.start(process.pid)

    def close(self, fd: int) -> None:
        del self.pinned[fd]
        os.close(fd)


class Real:
    """No real files."""

    def exists(self, path: str) -> bool:
        return False

    def open(self, path: str) -> int:
        return os.open(os.devnull, os.O_RDONLY)

    def close(self, fd: int) -> None:
        os.close(fd)

    def sleep(self, seconds: float) -> None:
        pass


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def files(table: Table) -> ProcessTreeFiles:
    return ProcessTreeFiles(ROOT, table, Real())  # type: ignore[arg-type]


@pytest.fixture
def web(files: ProcessTreeFiles) -> Iterator[Cgroup]:
    tree = Tree.create(Host.without_cgroups(ROOT, ABSENCE, files), "site")
    yield tree.make("web", Resources())
    tree.close()


def test_it_is_populated_as_long_as_its_init_runs(table: Table, web: Cgroup) -> None:
    assert not web.is_populated()
    init = table.init(WEB)
    program = table.start(init.pid)
    web.track(init.pid)
    assert (web.is_populated(), web.pids()) == (True, [program.pid])
    table.end(program, init.pid)
    assert (web.is_populated(), web.pids()) == (True, [])
    table.end(init)
    assert not web.is_populated()


def test_its_processes_are_all_below_its_init_and_no_others(table: Table, web: Cgroup) -> None:
    init, other = table.init(WEB), table.init(f"{ROOT}/site/other")
    web.track(init.pid)
    program, daemon, stranger = table.start(init.pid), table.start(init.pid), table.start(other.pid)
    child = table.start(daemon.pid)
    table.start(init.pid, is_zombie=True)
    assert sorted(web.pids()) == [program.pid, daemon.pid, child.pid]
    assert web.send_signal(signal.SIGTERM) == 3
    assert (child.signals, stranger.signals, init.signals) == ([signal.SIGTERM], [], [])
    table.end(init)


def test_a_kill_stops_processes_before_it_kills_them_so_that_none_escapes(table: Table, web: Cgroup) -> None:
    init = table.init(WEB)
    web.track(init.pid)
    program = table.start(init.pid, forks_once=True)
    web.kill()
    escaped = table.processes[table.last_pid]
    assert escaped.parent == program.pid
    for process in (program, escaped):
        assert process.signals == [signal.SIGSTOP, signal.SIGKILL]
    assert init.signals == []
    assert not table.pinned or set(table.pinned.values()) == {init}
    table.end(init)


def test_a_kill_stays_in_force_until_the_tree_is_empty(table: Table, web: Cgroup) -> None:
    init = table.init(WEB)
    web.track(init.pid)
    web.kill()
    late = table.start(init.pid)
    assert web.is_populated()
    assert signal.SIGKILL in late.signals
    table.end(init)
    next_init = table.init(WEB)
    web.track(next_init.pid)
    program = table.start(next_init.pid)
    assert web.is_populated()
    assert program.signals == []
    table.end(next_init)


def test_a_kill_of_a_pid_namespace_is_one_signal_to_its_init(table: Table, web: Cgroup) -> None:
    init = table.init(WEB, is_namespace_init=True)
    program = table.start(init.pid)
    web.track(init.pid)
    web.kill()
    assert (init.signals, program.signals) == ([signal.SIGKILL], [])
    table.end(init)


def test_a_reused_pid_is_not_signalled(table: Table, web: Cgroup) -> None:
    """The process ends between the look at /proc and the pidfd, and its pid names another one."""
    init = table.init(WEB)
    web.track(init.pid)
    program = table.start(init.pid)
    before = table.process_table

    def then_reuse() -> dict[int, ProcessEntry]:
        entries = before()
        stranger = table.start(1)
        table.processes[program.pid] = stranger
        table.process_table = before  # type: ignore[method-assign]
        return entries

    table.process_table = then_reuse  # type: ignore[method-assign]
    web.kill()
    assert table.processes[program.pid].signals == []
    table.end(init)


def test_an_init_whose_pid_is_reused_has_ended(table: Table, web: Cgroup) -> None:
    init = table.init(WEB)
    web.track(init.pid)
    table.end(init)
    stranger = table.start(1)
    table.processes[init.pid] = stranger
    table.start(init.pid)
    assert (web.is_populated(), web.pids()) == (False, [])
    table.processes.clear()


def test_the_end_of_an_init_is_notified_for_its_directory_and_those_around_it(table: Table, web: Cgroup, files) -> None:
    notifications = ProcessTreeNotifications(files)
    wd = notifications.add(f"{WEB}/cgroup.events", IN_MODIFY)
    around = notifications.add(f"{ROOT}/site/cgroup.events", IN_MODIFY)
    init = table.init(WEB)
    web.track(init.pid)
    assert notifications.read() == []
    table.end(init)
    assert files.ends.poll(0)
    assert [event.wd for event in notifications.read()] == [wd, around]
    assert notifications.read() == []
    notifications.remove(wd)
    with pytest.raises(FileNotFoundError):
        notifications.add(f"{WEB}/memory.events", IN_MODIFY)


def test_inits_of_an_earlier_supervisor_are_found_by_their_titles(table: Table) -> None:
    init = table.init(WEB)
    program = table.start(init.pid)
    long = f"{ROOT}/site/{'x' * 120}"
    hidden = table.init(tree_title(long))
    table.init("/ffffffff/site/web")  # of another service
    table.init(f"{ROOT}/site/forged", uid=os.getuid() + 1)
    files = ProcessTreeFiles(ROOT, table, Real())  # type: ignore[arg-type]
    assert files.list_directories(f"{ROOT}/site") == ["web"]
    assert files.read_text(f"{WEB}/cgroup.procs") == f"{program.pid}\n"
    files.make_directory(long)
    assert files.read_text(f"{long}/cgroup.events") == "populated 1\nfrozen 0\n"
    assert (files.instance_of(program.pid), files.instance_of(hidden.pid)) == ("web", "x" * 120)
    assert files.instance_of(1) == ""
    assert files.is_part_of(program.pid, "web")
    assert not files.is_part_of(program.pid, "other")
    assert files.is_part_of(99999, "web")  # it has ended


def test_a_search_waits_for_an_init_that_has_lost_its_keeper_in_a_start(table: Table) -> None:
    """It gets its title when the program is executed, or it ends."""
    init = table.init()

    class Sleeps(Real):
        def sleep(self, seconds: float) -> None:
            init.title = f"{INIT_TITLE}{WEB}"

    files = ProcessTreeFiles(ROOT, table, Sleeps())  # type: ignore[arg-type]
    assert files.list_directories(f"{ROOT}/site") == ["web"]


def test_it_cannot_be_frozen_and_says_so(web: Cgroup) -> None:
    with pytest.raises(CgroupError, match="cannot freeze web: there are none here; start it where there are some"):
        web.freeze()
    assert web.freeze_obstacle == "; ".join(ABSENCE)
    assert not web.has_leftovers()


def test_a_removed_directory_and_one_in_use(table: Table, files: ProcessTreeFiles, web: Cgroup) -> None:
    init = table.init(WEB)
    web.track(init.pid)
    with pytest.raises(CgroupError, match="cannot remove"):
        web.remove()
    fd = files.open(f"{WEB}/cgroup.events")
    table.end(init)
    web.remove()
    assert not web.exists()
    with pytest.raises(OSError, match=os.strerror(errno.ENODEV)):
        files.read(fd)
    files.close(fd)
    files.make_directory(WEB)


def test_the_host_says_what_is_missing() -> None:
    host = Host.without_cgroups(ROOT, ABSENCE)
    assert host.locate("memory.current") == HostProblem("memory.current", *ABSENCE)
    assert host.check_key("pids_max") == HostProblem("pids_max", *ABSENCE)
    assert not isinstance(host.locate("cgroup.events"), HostProblem)
    assert not isinstance(host.locate("host.meminfo"), HostProblem)
    assert (host.tree_obstacle, host.cgroup_obstacle) == (None, ABSENCE)


def test_a_runtime_directory_has_a_root_of_its_own() -> None:
    assert tree_root("/run/a") != tree_root("/run/b")
    assert tree_root("/run/a") == tree_root("/run/../run/a")
