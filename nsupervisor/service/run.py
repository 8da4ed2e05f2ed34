"""``nsupervisor run CONFIG``: the service from its first line to its last process.

The nurseries are nested in the order in which things may end: the API first, then the workloads, then the log captures,
then the watcher and the keeper, last the journal, so that whatever an inner part says on its way out is still written.
"""

import contextlib
import fcntl
import gc
import os
import resource
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

import attrs
import trio

from nsupervisor.api import app, serve
from nsupervisor.cgroups import CgroupError, Host, Tree, Watcher, open_watcher
from nsupervisor.config.facts import NOT_FILES
from nsupervisor.config.files import read_text
from nsupervisor.config.load import ConfigError, parse
from nsupervisor.config.model import Config, Workload
from nsupervisor.config.positions import scan
from nsupervisor.keeper.client import Ended, Keeper, KeeperLost, open_keeper
from nsupervisor.logs import Journal, open_journal
from nsupervisor.metrics.exposition import Exposition
from nsupervisor.metrics.server import serve_metrics
from nsupervisor.service.actor import Actor
from nsupervisor.service.announce import announce
from nsupervisor.service.history import History
from nsupervisor.service.privileges import explain
from nsupervisor.service.reaper import reap_strangers
from nsupervisor.service.requirements import unmet
from nsupervisor.service.supervisor import Supervisor, instances
from nsupervisor.service.world import World

DONE, FAILED, BAD_CONFIGURATION, NOT_PERMITTED = 0, 1, 2, 4
SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What stops the service."""
Shared = tuple[Keeper, Watcher, Journal, Path, History]
"""What is shared by those that belong to different nurseries; the path is the runtime directory."""
LAST_WORDS = 5.0
"""Seconds that output still in the pipes may take at the end, when somebody who is not ours holds a pipe open."""


def main(path: str) -> int:
    """Run the service in the foreground until SIGTERM or SIGINT; returns the exit status."""
    try:
        text = read_text(path)
        config = parse(text, path)
    except ConfigError as error:
        return _refuse(BAD_CONFIGURATION, *map(str, error.problems))
    try:
        host = Host.discover()
    except CgroupError as error:
        return _refuse(FAILED, str(error))
    problems = list(unmet(config, scan(text), host))
    refused = [str(problem) for problem, warning in problems if not warning]
    if refused:
        return _refuse(BAD_CONFIGURATION, *refused)
    warnings = [(problem.key.split(".")[1], str(problem)) for problem, _ in problems]
    # From here to the end of the process a signal waits until somebody listens: its default action would end the
    # service between two steps, and leave behind what the first of them has made.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        with _runtime_directory(config) as directory:
            return trio.run(_service, config, host, directory, warnings)
    except (OSError, CgroupError, KeeperLost, ExceptionGroup) as error:
        return _explain(error, config)


def _explain(error: BaseException, config: Config) -> int:
    """What kept the service from starting or going on, in words; the rest is bugs, and raised."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    match error:
        case PermissionError():
            return _refuse(NOT_PERMITTED, explain(error, config))
        case OSError() | CgroupError() | KeeperLost():
            return _refuse(FAILED, str(error))
        case _:
            raise error


def _refuse(status: int, *lines: str) -> int:
    for line in lines:
        print(line, file=sys.stderr)
    return status


@contextlib.contextmanager
def _runtime_directory(config: Config) -> Iterator[Path]:
    """Make the runtime directory, and hold it: two supervisors on one would fight over the same sockets."""
    directory = Path(config.supervisor.runtime_directory)
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
            raise OSError(
                f"{directory} is in use by another supervisor (pid {holder}); stop that one, "
                "or give this one its own supervisor.runtime_directory and supervisor.name"
            ) from None
        os.truncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        yield directory
        shutil.rmtree(directory / "notify", ignore_errors=True)  # sockets of those whose end we have not seen
        (directory / "lock").unlink(missing_ok=True)
    finally:
        os.close(lock)


async def _service(config: Config, host: Host, directory: Path, warnings: list[tuple[str, str]]) -> int:
    settings = config.supervisor
    async with open_journal(settings.log_output, level=settings.log_level, format=settings.log_format) as journal:
        history = History()
        journal.listener = history.add
        for name, text in warnings:
            journal.log.warning("limit not enforced", workload=name, message=text)
        status = DONE
        with _listening() as signals:
            async with open_keeper(directory) as keeper:
                # After the keeper has started: it hands the limit that it was born with on to the workloads.
                _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
                await _end_leftovers(keeper, journal, Path(host.base, settings.name))
                tree = Tree.create(host, settings.name)
                try:
                    _refuse_unenforceable(config, host)
                    tree.supervisor_join(keeper.pid)
                    async with open_watcher() as watcher:
                        shared = keeper, watcher, journal, directory, history
                        lost = await _supervise(config, host, tree, shared, signals)
                    if lost:
                        text = "the keeper has ended; so were its workloads, after it"
                        journal.log.critical("keeper lost", message=text)
                        status = FAILED
                    else:
                        await keeper.shutdown()
                finally:
                    try:
                        tree.close()
                    except CgroupError as error:  # somebody has put a process of theirs there
                        journal.log.error("left behind", message=str(error))
                        status = FAILED
            journal.log.info("supervisor stopped")
    return status


@contextlib.contextmanager
def _listening() -> Iterator[AsyncIterator[int]]:
    """Hear `SIGNALS`, those too that came earlier. What comes later finds the process on its way out."""
    with trio.open_signal_receiver(*SIGNALS) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            yield signals
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _refuse_unenforceable(config: Config, host: Host) -> None:
    """What the kernel did not let us have shows only once the tree has been made. Raises CgroupError."""
    for workload in config.workloads.values():
        problems = host.problems(workload.resources) if workload.resources.required else []
        if problems:
            raise CgroupError("\n".join(f"workload.{workload.name}.resources.{problem}" for problem in problems))


async def _end_leftovers(keeper: Keeper, journal: Journal, tree: Path) -> None:
    """A supervisor before us died and its keeper lived on. End what it still runs, so that nothing runs twice."""
    children = {}
    for child in await keeper.list():
        for fd in (child.pidfd, child.stdout, child.stderr):
            os.close(fd)
        children[child.id] = child
    for id_, child in children.items():
        if child.status is None:
            journal.log.warning("left over", message=f"{id_} of a supervisor that died: ended", pid=child.pid)
            await keeper.signal(id_, signal.SIGKILL)
    left = bool(children)
    while children:
        report = await keeper.events.receive()
        if isinstance(report, Ended):
            await keeper.acknowledge(report.id)
            children.pop(report.id, None)
    # Without a PID namespace a program's own children outlive it.
    if left and (tree / "cgroup.kill").exists():
        (tree / "cgroup.kill").write_text("1")
        while "populated 1" in (tree / "cgroup.events").read_text():  # noqa: ASYNC110 - nobody watches it yet
            await trio.sleep(0.01)


async def _supervise(config: Config, host: Host, tree: Tree, shared: Shared, signals: AsyncIterator[int]) -> bool:
    """Run everything until a signal has stopped it (False), or the keeper is lost (True)."""
    lost = False
    keeper, watcher, journal, directory, history = shared
    async with trio.open_nursery() as captures:
        world = World(keeper, watcher, journal, captures, directory)
        world.measures.begin(keeper)
        captures.start_soon(reap_strangers, keeper.pid)
        actors = {name: _actor(name, workload, instance, tree, world) for name, workload, instance in _each(config)}
        try:
            async with trio.open_nursery() as nursery:
                exposition = Exposition(journal, world.measures, keeper.pid)
                supervisor = Supervisor(config, actors, nursery, keeper.pid, host.mode, tree.path, exposition, history)
                for actor in actors.values():
                    nursery.start_soon(actor.run)
                await nursery.start(serve, app(supervisor), directory / "api.sock")
                if config.supervisor.metrics is not None:
                    await nursery.start(serve_metrics, supervisor, config.supervisor.metrics)
                # What is here stays, and there is much of it: a full collection that walks all of it would hold up
                # every reaction, for 50 ms at 1,000 workloads.
                gc.collect()
                gc.freeze()
                journal.log.info("supervisor started", **supervisor.info())
                supervisor.start([name for name, w in config.workloads.items() if w.autostart], by="boot")
                announce(journal, "READY=1")
                nursery.start_soon(_until_signalled, signals, supervisor, journal, nursery.cancel_scope)
                await _route(keeper, actors)
                lost = True
                nursery.cancel_scope.cancel()
        finally:
            await _end_all(actors.values())
        with trio.move_on_after(LAST_WORDS):
            await supervisor.drained()
        captures.cancel_scope.cancel()
    return lost


def _actor(name: str, workload: Workload, instance: int | None, tree: Tree, world: World) -> Actor:
    """The actor, with its cgroup. A rule on what this host does not count is refused, or left out with a warning."""
    cgroup = tree.make(name, workload.resources)
    rules = []
    for rule in workload.policy:
        try:
            for atom in rule.when.atoms:
                if atom.file not in NOT_FILES and not atom.told_by(cgroup.read(atom.file)):
                    raise CgroupError(f"this host does not count {atom.key} in {atom.file}; it may need pure cgroup v2")
            rules.append(rule)
        except CgroupError as error:
            if workload.resources.required:
                raise CgroupError(f"workload.{workload.name}.{rule.name} (line {rule.line}): {error}") from None
            world.journal.log.warning("rule left out", workload=name, message=f"{rule.name}: {error}")
    told = {problem.key for problem in cgroup.host.problems(workload.resources)}
    for problem in cgroup.problems:
        if problem.key in told:
            continue
        world.journal.log.warning("limit not enforced", workload=name, message=str(problem))
    return Actor(name, attrs.evolve(workload, policy=tuple(rules)), instance, cgroup, world)


async def _end_all(actors: Iterable[Actor]) -> None:
    """After an orderly stop there is nothing to do; after anything else no process may stay behind."""
    with trio.move_on_after(LAST_WORDS, shield=True):
        for actor in actors:
            if actor.cgroup.populated():
                actor.cgroup.kill()
        for actor in actors:
            while actor.cgroup.populated():  # noqa: ASYNC110 - the watcher may be what has failed
                await trio.sleep(0.01)
            actor.cgroup.close()


def _each(config: Config) -> Iterator[tuple[str, Workload, int | None]]:
    for name, (workload, instance) in instances(config).items():
        yield name, config.workloads[workload], instance


async def _until_signalled(
    signals: AsyncIterator[int], supervisor: Supervisor, journal: Journal, scope: trio.CancelScope
) -> None:
    """The first signal stops everything in order; a second one kills what is left."""
    async with trio.open_nursery() as nursery:

        async def stop() -> None:
            announce(journal, "STOPPING=1")
            await supervisor.stop_all()
            await supervisor.past.end()
            scope.cancel()

        stopping = False
        async for signum in signals:
            journal.log.info("supervisor stopping", signal=signal.Signals(signum).name, hurry=stopping)
            if stopping:
                supervisor.kill_all()
            else:
                stopping = True
                nursery.start_soon(stop)


async def _route(keeper: Keeper, actors: dict[str, Actor]) -> None:
    """Hand each of the keeper's reports to the actor that it is about; returns when the keeper is lost."""
    async for report in keeper.events:
        actor = actors.get(report.id.rpartition("#")[0])
        if actor is not None:
            actor.post(report)
        elif isinstance(report, Ended):
            await keeper.acknowledge(report.id)
