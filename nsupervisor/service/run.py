"""The service, `nsupervisor run CONFIG`, from start to end.

The nurseries are nested in the order in which they may end: first the API, then the workloads, then the log captures,
then the watcher and the keeper, and last the journal. So the last records of an inner part are still written.
"""

import contextlib
import gc
import itertools
import os
import resource
import signal
import stat
import sys
import traceback
from collections import ChainMap
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import attrs
import trio

from nsupervisor import __version__
from nsupervisor.api import app, serve
from nsupervisor.api.http.errors import ConnectionErrors
from nsupervisor.cgroups import Cgroup, CgroupError, Host, Tree, Watcher, open_watcher
from nsupervisor.cgroups.directories import list_processes
from nsupervisor.cgroups.host import respawner_pid
from nsupervisor.cgroups.membership import tree_cgroups
from nsupervisor.cgroups.process_tree import ProcessTreeFiles, ProcessTreeNotifications
from nsupervisor.config.expansion import Instance
from nsupervisor.config.files import read_text
from nsupervisor.config.lint import lint_warnings
from nsupervisor.config.load import ConfigError
from nsupervisor.config.model import Config, GroupConfig, WorkloadConfig
from nsupervisor.config.model import SupervisorConfig as Settings
from nsupervisor.config.problems import Problem
from nsupervisor.config.scaling import Scale, keep_scales
from nsupervisor.core.descriptor_store import is_store_key
from nsupervisor.core.instances import expand_instances
from nsupervisor.core.isolation import AUTO_REASON
from nsupervisor.core.pauses import pause_after
from nsupervisor.core.reload.differences import merge_limits
from nsupervisor.core.reload.start_changes import limits_at_start
from nsupervisor.core.service_end import InstanceView, ServiceEnd, find_end
from nsupervisor.core.service_signals import SignalResponse, respond_to_signal
from nsupervisor.keeper.connection import KeeperConnection
from nsupervisor.keeper.messages import Child, KeeperLost
from nsupervisor.keeper.reconnecting import ReconnectingKeeper, open_reconnecting_keeper
from nsupervisor.linux.controlling_terminal import ControllingTerminal
from nsupervisor.linux.ignored_signals import ignore_for_this_process_alone
from nsupervisor.logs import Journal, OwnStreams, Tails, open_journal, open_own_streams
from nsupervisor.logs.tails import TAILS_DIRECTORY
from nsupervisor.metrics.exposition import Exposition
from nsupervisor.metrics.server import serve_metrics
from nsupervisor.service.activation.optional import OptionalPathTriggers
from nsupervisor.service.activation.sockets import Activation
from nsupervisor.service.admission import Admission, serve_workloads
from nsupervisor.service.context import ServiceContext
from nsupervisor.service.control import Supervisor
from nsupervisor.service.group.groups import Groups
from nsupervisor.service.group.placement import make_instance
from nsupervisor.service.instance import seccomp_filters
from nsupervisor.service.instance.actor import Actor
from nsupervisor.service.instance.output import offset_files_left
from nsupervisor.service.instance.spawn_spec import WORKLOADS_API
from nsupervisor.service.jobs.jobs import Jobs
from nsupervisor.service.jobs.registry import Registry
from nsupervisor.service.jobs.relations import Relations
from nsupervisor.service.observe.history import History
from nsupervisor.service.observe.log_reopen import REOPEN, reopen_on_signal
from nsupervisor.service.observe.log_rotation import log_rotation
from nsupervisor.service.observe.output_follower import OutputFollowers
from nsupervisor.service.platform.clock import MonotonicClock
from nsupervisor.service.platform.isolation import Isolation
from nsupervisor.service.platform.kernel import LINUX, Kernel
from nsupervisor.service.platform.name_files import NameFiles
from nsupervisor.service.platform.networks import Networks
from nsupervisor.service.platform.plugin_cgroup import PluginCgroup
from nsupervisor.service.platform.reaper import reap_orphans
from nsupervisor.service.platform.runtime_directory import KeptDirectory, runtime_directory
from nsupervisor.service.platform.service_manager import notify_service_manager
from nsupervisor.service.preflight.capacity import connections_allowed, raise_descriptor_limit
from nsupervisor.service.preflight.privileges import explain_permission_error, has_dynamic_users, has_uid_ranges
from nsupervisor.service.preflight.requirements import IMAGE_REASON, check_text, record_fields
from nsupervisor.service.preflight.security import PROFILE_REASON
from nsupervisor.service.recovery.resume import begin_first_jobs
from nsupervisor.service.recovery.takeover import (
    follow_keeper,
    group_by_instance,
    placeholder_workload,
    take_over,
)
from nsupervisor.service.recovery.upgrade import report_outcome
from nsupervisor.service.reload.reload import Reloader
from nsupervisor.service.state.checkpoint import limits_digest, limits_in_force
from nsupervisor.service.state.digest import KEY_FILE, open_keyed_digest
from nsupervisor.service.state.dynamic_users import DynamicUsers
from nsupervisor.service.state.file import InstanceCheckpoint, SavedState, StateFile, read_state
from nsupervisor.service.state.uid_ranges import UidRanges, default_state_directory
from nsupervisor.service.timers.optional import OptionalTimers
from nsupervisor.terminal.numbers import format_count

EXIT_OK, EXIT_FAILED, EXIT_BAD_CONFIGURATION, EXIT_NOT_PERMITTED = 0, 1, 2, 4
EXIT_DEFECT = 70
"""Exit status after a defect (EX_SOFTWARE of sysexits.h), after which a respawner starts a supervisor again."""
SERVICE_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that the service handles: the first two stop it, the last one reads its configuration again, or stops it if
the terminal was closed."""
NO_CHECKPOINT = InstanceCheckpoint()
"""The checkpoint of an instance that the state file does not have."""
STARTED_PER_CHECKPOINT = 25
"""Number of actors that are started between two checkpoints of the scheduler."""
COLLECTION_THRESHOLD = 5000
"""The number of new objects after which Python looks for unreachable ones; its own is 700."""
DRAIN_TIMEOUT_S = 5.0
"""Seconds to wait at the end for output in the pipes, if a foreign process holds a pipe open."""


def main(path: str, closed: Collection[int] = ()) -> int:
    """Run the service in the foreground until SIGTERM or SIGINT; return the exit status.

    `closed`: the standard descriptors that were closed when the process began.
    """
    try:
        host = Host.discover()
        text = read_text(path)
        config, problems, unmet, positions, isolation = check_text(text, path, host, loads=True)
    except ConfigError as error:
        return _print_errors(EXIT_BAD_CONFIGURATION, *map(str, error.problems))
    except CgroupError as error:
        return _print_errors(EXIT_FAILED, str(error))
    if problems:
        return _print_errors(EXIT_BAD_CONFIGURATION, *map(str, problems))
    assert isolation is not None
    warnings = [
        (
            "feature unavailable" if reason in (AUTO_REASON, PROFILE_REASON, IMAGE_REASON) else "limit not enforced",
            problem,
        )
        for problem, reason in unmet
    ]
    warnings += [("doubtful", doubt) for doubt in lint_warnings(config, positions)]
    # From here to the end of the process a signal stays blocked until a receiver is open: its default action would end
    # the service between two steps, and leave behind what the first step has made.
    signal.pthread_sigmask(signal.SIG_BLOCK, (*SERVICE_SIGNALS, REOPEN))
    ignore_for_this_process_alone()
    terminal = ControllingTerminal()
    os.umask(0o022)  # the modes of files and directories do not depend on how the service was started
    gc.disable()  # until the lasting objects exist: collections before would traverse more and more, and free nothing
    try:
        with runtime_directory(config) as directory:
            return trio.run(_service, config, isolation, directory, warnings, terminal, closed, clock=MonotonicClock())
    except Exception as error:
        return _report_failure(error, config)
    finally:
        # The interpreter restores the default action of each signal that has a handler when it ends. A signal that came
        # then would end the process in a thread that does not block it, and replace its exit status.
        for signum in SERVICE_SIGNALS:
            signal.signal(signum, signal.SIG_IGN)


def _report_failure(error: BaseException, config: Config) -> int:
    """Report why the service could not start or continue, in words; for a defect, print the traceback."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    match error:
        case PermissionError():
            return _print_errors(EXIT_NOT_PERMITTED, explain_permission_error(error, config))
        case OSError(filename=str(place)):
            return _print_errors(EXIT_FAILED, f"{place}: {error.strerror}")
        case OSError() | CgroupError() | KeeperLost():
            return _print_errors(EXIT_FAILED, str(error))
        case _:
            traceback.print_exception(error)
            return EXIT_DEFECT


def _print_errors(status: int, *lines: str) -> int:
    for line in lines:
        print(line, file=sys.stderr)
    return status


async def _service(
    config: Config,
    isolation: Isolation,
    directory: Path,
    warnings: list[tuple[str, Problem]],
    terminal: ControllingTerminal,
    closed: Collection[int],
) -> int:
    """Open the journal, the signals and the keeper of this host, and run the service on them."""
    settings = config.supervisor
    host, kernel = open_isolation(isolation)
    async with (
        open_journal(
            settings.log_output,
            level=settings.log_level,
            format=settings.log_format,
            rotation=log_rotation(settings),
        ) as journal,
        open_own_streams(journal, closed) as own_streams,
    ):
        history = History()
        journal.listener = history.add
        if isolation.mode == "auto":
            for feature, absence in isolation.missing.items():
                journal.log.warning("feature unavailable", feature=feature, message=str(absence))
        for event, problem in warnings:
            fields = record_fields(problem) or ({"feature": "security"} if event == "feature unavailable" else {})
            journal.log.warning(event, message=str(problem), **fields)
        with _receive_signals() as signals:
            protected = () if host.absence is not None else tree_cgroups(host, settings.name)
            async with open_reconnecting_keeper(directory, protected, filter_program=seccomp_filters.program) as keeper:
                # After the start of the keeper, which passes the limit that it inherited on to the workloads.
                _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
                raise_descriptor_limit(config, host)
                opened = host, kernel, keeper, journal, directory, history, signals
                file = _records_file(settings)
                platform = Platform(
                    *opened,
                    _LinuxEndpoints(),
                    _exempt_from_collection,
                    terminal,
                    file,
                    missing={feature: str(absence) for feature, absence in isolation.missing.items()},
                    tails=Tails(directory / TAILS_DIRECTORY, partial(_warn, journal)),
                    own_streams=own_streams,
                    announce_end=_announce_end,
                )
                status = await run_service(config, platform)
            journal.log.info("supervisor stopped")
    return status


def open_isolation(isolation: Isolation) -> tuple[Host, Kernel]:
    """Return the cgroups, or the process trees in their place, and the operating system with this isolation."""
    host, kernel = isolation.host, attrs.evolve(LINUX, isolate=lambda _settings, _host: isolation)
    if host.absence is None:
        return host, kernel
    trees = ProcessTreeFiles(host.base)
    return host._replace(files=trees), attrs.evolve(
        kernel,
        open_notifications=partial(ProcessTreeNotifications, trees),
        is_part_of=trees.is_part_of,
        instance_of=trees.instance_of,
    )


class Terminal(Protocol):
    """The controlling terminal of the service, as `ControllingTerminal`."""

    is_outlived: bool

    def is_gone(self) -> bool: ...
    def forget(self) -> None: ...


def _records_file(settings: Settings) -> str | None:
    """Return the path of the file that has the stream's records as JSON lines; None: the stream goes elsewhere."""
    output = settings.log_output
    if not isinstance(output, str) or not output.startswith("/") or settings.log_format == "console":
        return None
    # It is open; a named pipe or a device is nothing to read from.
    return output if stat.S_ISREG(os.stat(output).st_mode) else None


def _warn(journal: Journal, message: str) -> None:
    journal.log.warning("warning", message=message)


class Endpoints(Protocol):
    """The listeners for clients while the service runs."""

    async def open_api(self, supervisor: Supervisor, keeper: ReconnectingKeeper) -> None:
        """Accept requests to the API, in tasks of `Supervisor.nursery`."""

    async def open_metrics(self, supervisor: Supervisor) -> None:
        """Accept requests for metrics over TCP, if the configuration wants them."""


@attrs.frozen
class Platform:
    """The objects that the service runs on: `main` opens those of this host, and a simulation its own."""

    host: Host
    kernel: Kernel
    keeper: ReconnectingKeeper
    journal: Journal
    directory: Path
    """The runtime directory."""
    history: History
    """The records of the journal."""
    signals: AsyncIterator[int]
    """`SERVICE_SIGNALS` that have been received."""
    endpoints: Endpoints
    keep_objects: Callable[[], None]
    """Called when all objects exist that the service keeps until its end."""
    terminal: Terminal | None = None
    records_file: str | None = None
    """The path of the file that has the journal's records as JSON lines; None: the journal is elsewhere."""
    missing: Mapping[str, str] = attrs.field(factory=dict)
    """The features of isolation that are not used, by name, with the reason."""
    tails: Tails | None = None
    """The latest output that no file has; None: it is not kept."""
    own_streams: OwnStreams | None = None
    """The standard output and standard error of the service; None: they are discarded."""
    announce_end: Callable[[], None] = lambda: None
    """Called when the service ends because its workloads have, so that nothing starts it again."""


def _announce_end() -> None:
    """Tell the parent of `run --supervise-self` that this exit is final, whatever its status: ask it to stop.

    It passes the signal on, which changes nothing any more.
    """
    if parent := respawner_pid():
        with contextlib.suppress(ProcessLookupError):
            os.kill(parent, signal.SIGTERM)


def _exempt_from_collection() -> None:
    """Exempt all present objects from garbage collection, and begin to collect others.

    The objects of the service are permanent and many: a full collection that traverses them would delay every reaction,
    by 50 ms at 1,000 workloads. Nearly all of the others end without the collector, so it runs more rarely than Python
    has it: a seventh of the time of a thousand stops was spent in it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECTION_THRESHOLD)
    gc.enable()


@attrs.define(eq=False)
class _LinuxEndpoints:
    """The Unix sockets and the TCP port of this host, and SIGUSR1, which reopens log files."""

    _errors: ConnectionErrors = attrs.field(init=False)
    _tcp_connections: int = attrs.field(init=False)

    async def open_api(self, supervisor: Supervisor, keeper: ReconnectingKeeper) -> None:
        context, nursery = supervisor.context, supervisor.nursery
        nursery.start_soon(reopen_on_signal, supervisor.actors.values(), context.journal)
        self._errors = supervisor.exposition.connection_errors
        unix, self._tcp_connections = connections_allowed()
        identify, directory = context.kernel.instance_of, context.runtime_directory
        admission = Admission(keeper.protected, supervisor.actors, identify)
        serve_api = partial(serve, admit=admission.admit, errors=self._errors, connections=unix)
        api, workloads_api = directory / "api.sock", directory / WORKLOADS_API / "api.sock"

        async def open_sockets() -> bool:
            """Listen on those sockets that do not exist. Connections of one that was removed remain."""
            made = not api.exists()
            if made:
                await nursery.start(serve_api, app(supervisor), api)
            return made

        async def write_files() -> bool:
            made = not (directory / KEY_FILE).exists()
            if made:
                context.digest.write_key(directory)
            for actor in supervisor.actors.values():
                actor.output.make_offset_files_again()
            return context.state.write_again() or made

        async def open_workloads_sockets() -> bool:
            """Open the sockets for programs that run; each also needs its directory in its own mount namespace."""
            made_api = not workloads_api.exists()
            if made_api:
                await serve_workloads(app(supervisor), directory, admission, self._errors, nursery)
            made = [actor for actor in supervisor.actors.values() if actor.restore_sockets(made_api)]
            return bool(made)

        await nursery.start(serve_api, app(supervisor), api)
        await serve_workloads(app(supervisor), directory, admission, self._errors, nursery)
        parts = {
            "state": write_files,
            "the keeper's socket": keeper.listen_again,
            "sockets of programs": open_workloads_sockets,
            "api.sock": open_sockets,
        }
        kept = KeptDirectory(directory, parts, partial(_report_directory, context.journal))
        nursery.start_soon(kept.run)

    async def open_metrics(self, supervisor: Supervisor) -> None:
        if supervisor.config.supervisor.metrics is not None:
            serve_tcp = partial(serve_metrics, errors=self._errors, connections=self._tcp_connections)
            await supervisor.nursery.start(serve_tcp, supervisor, supervisor.config.supervisor.metrics)


async def run_service(config: Config, platform: Platform) -> int:
    """Run the service on an opened platform until a signal has stopped it; return the exit status."""
    settings, host, keeper, journal = config.supervisor, platform.host, platform.keeper, platform.journal
    saved = read_state(platform.directory, files=platform.kernel.files)
    if saved.problem:
        journal.log.error("state file set aside", message=saved.problem)
    children = await keeper.first_children()
    tree, tree_lock = _make_tree(host, settings, saved, children=bool(children))
    try:
        _refuse_unenforceable(config, host)
        tree.move_to_leaf(keeper.pid)
        async with open_watcher(open_notifications=platform.kernel.open_notifications) as watcher:
            end = await _supervise(config, platform, tree, watcher, saved, group_by_instance(children))
        await keeper.shutdown()
    except BaseException:
        if _is_populated(host, tree.path):
            remedy = f"start the supervisor again, and it takes them over: nsupervisor run {config.path}"
            journal.log.critical("supervisor failed", message=f"the programs run on; {remedy}")
        else:
            _close(tree, journal)
        raise
    else:
        is_closed = _close(tree, journal)
        if end is not None:
            platform.announce_end()
            return end.status
        return EXIT_OK if is_closed else EXIT_FAILED
    finally:
        host.files.close(tree_lock)


def _close(tree: Tree, journal: Journal) -> bool:
    """Remove the tree; log a failure and return False if that is not possible."""
    try:
        tree.close()
    except CgroupError as error:  # another program has put a process there
        journal.log.error("left behind", message=str(error))
        return False
    return True


def _ignore_signal(_signum: int, _frame: object) -> None:
    """Do nothing."""


@contextlib.contextmanager
def _receive_signals() -> Iterator[AsyncIterator[int]]:
    """Receive `SERVICE_SIGNALS`, including earlier ones; later ones have no effect until the process ends.

    They are blocked then, but not in the threads that were started before: a signal would end the process in one of
    them, and replace its exit status.
    """
    for signum in SERVICE_SIGNALS:
        signal.signal(signum, _ignore_signal)  # restored by the receiver; a handler, so that it does not outlive exec
    with trio.open_signal_receiver(*SERVICE_SIGNALS) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SERVICE_SIGNALS)
        try:
            yield signals
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, SERVICE_SIGNALS)


def _refuse_unenforceable(config: Config, host: Host) -> None:
    """Refuse required limits that the kernel turns out not to support once the tree exists. Raises CgroupError."""
    members: dict[str, WorkloadConfig | GroupConfig] = {
        **{f"workload.{name}.resources": workload for name, workload in config.workloads.items()},
        **{f"group.{name}": group for name, group in config.groups.items()},
    }
    for place, member in members.items():
        around = host.group_limits(group.resources for group in config.enclosing_groups(member))
        problems = host.check_resources(member.resources, around) if member.resources.required else []
        if problems:
            raise CgroupError("\n".join(f"{place}.{problem}" for problem in problems))


def _lock_tree(host: Host, path: str) -> int:
    """Lock the tree's directory: a supervisor with another runtime directory must not kill its processes as orphans."""
    try:
        return host.files.lock(path)
    except BlockingIOError:
        pids = ", ".join(map(str, list_processes(path, host.files)[:5])) or "none yet"
        raise CgroupError(
            f"the cgroup {path} is in use by another supervisor (processes {pids}); stop that one, or give this "
            "one another name ([supervisor] name)"
        ) from None


def _make_tree(host: Host, settings: Settings, saved: SavedState, children: bool) -> tuple[Tree, int]:
    """Make the tree, or adopt that of an earlier supervisor; return it and its lock. Raises CgroupError."""
    path = f"{host.base}/{settings.name}"
    exists = host.files.exists(path)
    old_path = saved.header.get("cgroup", path)
    if old_path != path and host.files.exists(old_path) and (children or Cgroup(host, "", old_path).is_populated()):
        raise CgroupError(
            f"the last supervisor of {settings.runtime_directory} has left workloads running in {old_path}, and this "
            f"one would have {path}; start it where that one was started, or end them"
        )
    if exists:
        host.files.close(_lock_tree(host, path))
    adopt = exists and bool(children or saved.instances or _is_populated(host, path))
    tree = Tree.create(host, settings.name, adopt=adopt, own_leaf=old_path == path and bool(saved.header.get("leaf")))
    return tree, _lock_tree(host, path)


def _is_populated(host: Host, path: str) -> bool:
    return "populated 1" in host.files.read_text(f"{path}/cgroup.events")


def _may_be_populated(host: Host, path: str) -> bool:
    try:
        return _is_populated(host, path)
    except OSError:  # the cgroup of each workload tells
        return True


def _saved_scales(saved: SavedState) -> dict[str, Scale]:
    return {
        name.partition("@")[0]: Scale(checkpoint.scaled_to, checkpoint.scaled_from)
        for name, checkpoint in saved.instances.items()
        if checkpoint.scaled_from
    }


async def _supervise(
    config: Config,
    platform: Platform,
    tree: Tree,
    watcher: Watcher,
    saved: SavedState,
    children: Mapping[str, list[Child]],
) -> ServiceEnd | None:
    """Run everything until a signal, or the end of a workload, has stopped it; return that end."""
    config = keep_scales(config, _saved_scales(saved))
    ending = Ending()
    host, kernel, keeper, journal = platform.host, platform.kernel, platform.keeper, platform.journal
    directory, endpoints = platform.directory, platform.endpoints
    header = {
        "version": __version__,
        "name": config.supervisor.name,
        "pid": os.getpid(),
        "cgroup": tree.path,
        "leaf": tree.owns_leaf,
    }
    state_file = StateFile(directory, header, partial(_log_state_problem, journal), saved.lines, kernel.files)
    async with trio.open_nursery() as captures:
        logs = Path(config.supervisor.log_directory)
        state_directory = config.supervisor.state_directory or default_state_directory()
        name, warn = config.supervisor.name, partial(_log_network_problem, journal)
        name_files = NameFiles(state_directory, name, lambda: networks.attachments(), warn)
        networks = Networks(
            state_directory, name, warn, config.network, name_files.notify, PluginCgroup(tree.make_helper, warn)
        )
        context = ServiceContext(
            keeper,
            watcher,
            journal,
            captures,
            directory,
            state_file,
            open_keyed_digest(directory, kernel.files),
            kernel,
            logs,
            uid_ranges=_uid_ranges(config.supervisor, kernel),
            dynamic_users=_dynamic_users(config.supervisor, kernel),
            state_directory=state_directory,
            networks=networks,
            name_files=name_files,
            find_network_owner=lambda name: _network_owner(actors, name),
            offset_files=offset_files_left(directory),
            tails=platform.tails,
            has_records_file=platform.records_file is not None,
            own_streams=platform.own_streams,
            find_pidfd=lambda name: actors[name].program.pidfd if name in actors else -1,
        )
        context.measures.start(keeper)
        held = await _read_held(keeper.direct)
        await context.stores.begin(keeper.direct, held)  # first, as programs that run may store more at any time
        captures.start_soon(reap_orphans, lambda: keeper.pid)
        groups, placed = Groups.make(config, tree, context, saved.groups), tree.list_instances()

        def actor(name: str, workload: WorkloadConfig, instance: Instance | None) -> Actor:
            record = saved.instances.get(name, NO_CHECKPOINT)
            at_start = workload.resources
            if name in saved.instances:  # until its next start it keeps the limits that it has
                at_start = limits_at_start(at_start, record.start_revision)
            in_force = limits_in_force(at_start, record.changed_limits)
            limits_applied = record.limits_digest != "" and record.limits_digest == limits_digest(in_force)
            made = make_instance(
                name,
                workload,
                instance,
                (tree, groups),
                context,
                in_force,
                placed.get(name),
                limits_applied,
                saved.instances.get(name),
                children.get(name, ()),
            )
            if at_start is not workload.resources:
                made.limit_writer.defer(partial(merge_limits, at_start, workload.resources))
            return made

        actors = Registry(
            (name, actor(name, config.workloads[workload].for_instance(instance), instance))
            for name, (workload, instance) in expand_instances(config).items()
        )
        leftovers = {
            name: actor(name, placeholder_workload(name, saved.instances.get(name)), None)
            for name in dict.fromkeys([*saved.instances, *children, *placed])
            if name not in actors
        }
        try:
            async with trio.open_nursery() as nursery:
                all_actors = {**actors, **leftovers}
                if context.tails is not None:
                    context.tails.remove_others()
                alive_count = await take_over(all_actors, saved, children, context, config.supervisor.orphans)
                if kernel.keeps_networks:
                    await networks.begin(lambda name: _network_namespace(all_actors.get(name), kernel))
                    await name_files.begin(lambda name: name in all_actors and all_actors[name].lifecycle.is_alive)
                    nursery.start_soon(networks.run)
                    nursery.start_soon(name_files.run)
                context.stores.release_others(all_actors)
                await context.sockets.begin(config, held, partial(_find_pids, actors))
                errors = ConnectionErrors(partial(_report_connection, journal))
                jobs = Jobs(actors, groups, context, nursery, leftovers)
                relations = Relations(jobs)
                context.listeners.add(relations)
                activation = Activation(jobs, context, nursery)
                paths = OptionalPathTriggers(jobs, context, nursery)
                timers = OptionalTimers(jobs, context, nursery, config.supervisor.name)

                def configure(config: Config) -> None:
                    context.sockets.configure(config)
                    activation.configure(config)
                    paths.configure(config)
                    timers.configure(config)

                exposition = Exposition(journal, context.measures, keeper.pid, errors, timers.metrics)
                reloader = Reloader(config, jobs, host, (tree, groups), context, nursery, relations, configure)
                followers = OutputFollowers(context.tails or Tails(directory / TAILS_DIRECTORY))
                shown = host.mode, tree.shown_path, platform.missing, exposition, followers, platform.records_file
                supervisor = Supervisor(
                    jobs, reloader, timers, paths, actors, groups, context, nursery, *shown, event_log=platform.history
                )
                async with jobs.membership_lock:  # a reload needs running actors
                    await endpoints.open_api(supervisor, keeper)
                    await _start_actors(all_actors.values(), nursery)
                groups.watch()
                await endpoints.open_metrics(supervisor)
                platform.keep_objects()
                info = supervisor.info()
                facts = {key: value for key, value in info.items() if key != "missing" and value is not None}
                journal.log.info("supervisor started", **facts)
                if alive_count:
                    text = f"{format_count(alive_count, 'workload')} of the supervisor before this one"
                    journal.log.warning("taken over", message=text, workloads=alive_count)
                begin_first_jobs(jobs, saved, nursery)
                relations.resume()
                activation.begin(config)
                paths.begin(config, saved.paths)
                timers.begin(config, saved.timers)
                notify_service_manager(journal, "READY=1")
                report_outcome(journal, directory)
                scope = nursery.cancel_scope
                nursery.start_soon(_until_signalled, platform, supervisor, scope, ending)
                if alive_count:
                    nursery.start_soon(_verify_limits, list(actors.values()))

                def keeper_replaced(pid: int) -> None:
                    exposition.keeper_replaced(pid)
                    tree.move_to_leaf(pid)

                everyone = ChainMap(actors, leftovers)
                await follow_keeper(keeper, everyone, journal, keeper_replaced, partial(_hand_over_held, context))
        except BaseException:  # programs run on, as after kill -9, and the next supervisor takes them over
            context.later_saves.save_all()
            for running_actor in (*actors.values(), *leftovers.values()):
                running_actor.close_cgroup()
            context.sockets.close(is_final=False)
            context.stores.close()
            raise
        else:
            await _kill_remaining([*actors.values(), *leftovers.values()], _may_be_populated(host, tree.path))
            context.sockets.close(is_final=True)
            context.stores.close()
        finally:
            groups.close()
            networks.close()
        with trio.move_on_after(DRAIN_TIMEOUT_S):
            await jobs.wait_drained()
        captures.cancel_scope.cancel()
    state_file.remove()
    return ending.end


def _network_namespace(actor: Actor | None, kernel: Kernel) -> int:
    """Return a new descriptor of the network namespace of the program that an instance runs; -1 if it runs none."""
    if actor is None or actor.program.pidfd < 0:
        return -1
    try:
        return kernel.open_namespace_of(actor.program.pidfd, "network")
    except OSError:
        return -1


def _network_owner(actors: Registry, name: str) -> str:
    """Return the workload whose network namespace an instance is in: the last one of those that join each other's."""
    seen = {name}
    while (actor := actors.get(name)) is not None:
        joined = actor.workload.namespaces.joined_workloads.get("network", name)
        if joined in seen:
            break
        seen.add(joined)
        name = joined
    return name


def _log_network_problem(journal: Journal, instance: str, message: str) -> None:
    fields = {"workload": instance} if instance else {}
    journal.log.warning("warning", message=message, **fields)


async def _read_held(keeper: KeeperConnection) -> dict[str, int]:
    """Return duplicates of what the keeper holds from an earlier supervisor; nothing if the keeper is lost."""
    try:
        return await keeper.held() if keeper.held_at_start else {}
    except KeeperLost:
        return {}


async def _hand_over_held(context: ServiceContext, keeper: KeeperConnection) -> None:
    """Give a keeper that replaces another one the descriptors that it is to hold. Raises KeeperLost."""
    held = await keeper.held() if keeper.held_at_start else {}
    sockets = [key for key in held if not is_store_key(key)]
    for key, fd in held.items():
        if key in sockets:
            context.kernel.listeners.close(fd)
        else:
            context.kernel.descriptors.discard([fd])
    await context.sockets.hand_over(keeper, sockets)
    await context.stores.hand_over(keeper, [key for key in held if key not in sockets])


def _find_pids(actors: Registry, workload: str) -> list[int]:
    """Return the processes of all instances of a workload."""
    return [pid for actor in actors.instances(workload) for pid in actor.cgroup.pids()]


def _uid_ranges(settings: Settings, kernel: Kernel) -> UidRanges | None:
    """Return the ranges of ids for user namespaces; None if this process may not use them."""
    if not has_uid_ranges(kernel.privileges()):
        return None
    return UidRanges(settings.state_directory or default_state_directory(), settings.name)


def _dynamic_users(settings: Settings, kernel: Kernel) -> DynamicUsers | None:
    """Return the users of programs with `dynamic_user`; None if this process may not use their ids."""
    if not has_dynamic_users(kernel.privileges()):
        return None
    return DynamicUsers(settings.state_directory or default_state_directory(), settings.name)


async def _start_actors(actors: Iterable[Actor], nursery: trio.Nursery) -> None:
    """Start the actors in batches, so that requests are answered in between; the state of each is known already."""
    waiting = iter(actors)
    while batch := list(itertools.islice(waiting, STARTED_PER_CHECKPOINT)):
        for actor in batch:
            nursery.start_soon(actor.run)
        await trio.lowlevel.checkpoint()


async def _verify_limits(actors: Iterable[Actor]) -> None:
    """Check slowly, since there may be thousands, whether the limits that were assumed to be applied still are."""
    for actor in actors:
        began_at = trio.current_time()
        await actor.limit_writer.verify()
        await trio.sleep(pause_after(trio.current_time() - began_at))


def _report_directory(journal: Journal, level: str, text: str) -> None:
    getattr(journal.log, level)("runtime directory", message=text)


def _report_connection(journal: Journal, level: str, fields: Mapping[str, Any]) -> None:
    """Write the record of a connection error."""
    getattr(journal.log, level)("connection error", **fields)


def _log_state_problem(journal: Journal, problem: str) -> None:
    """Log a problem of the state file, or that it is over ("")."""
    if problem:
        text = f"{problem}; a supervisor that is killed from now on leaves less to the next one"
        journal.log.error("state file not written", message=text)
    else:
        journal.log.info("state file written", message="it is up to date again")


async def _kill_remaining(actors: Iterable[Actor], is_tree_populated: bool) -> None:
    """After an orderly stop, kill processes that other programs have put into the cgroups, and close these.

    `is_tree_populated`: whether there may be such a process in any of them. One reading instead of two for each.
    """
    if is_tree_populated:
        with trio.move_on_after(DRAIN_TIMEOUT_S, shield=True):
            for actor in actors:
                with actor.contain_errors("cannot kill what is left"):
                    if actor.cgroup.is_populated():
                        actor.cgroup.kill()
            for actor in actors:
                with actor.contain_errors("cannot wait for what is left"):
                    while actor.cgroup.is_populated():  # noqa: ASYNC110 - the watcher may have failed
                        await trio.sleep(0.01)
    for actor in actors:
        actor.close_cgroup()


@attrs.define(eq=False)
class Ending:
    """Why the service ends, if its workloads decide it (`supervisor.exit_on`)."""

    end: ServiceEnd | None = None

    def decide(self, end: ServiceEnd) -> None:
        """Note the end that the workloads have decided."""
        self.end = end


async def _wait_for_own_end(supervisor: Supervisor) -> ServiceEnd:
    """Wait until an element of `supervisor.exit_on` is met."""
    jobs = supervisor.jobs

    def find() -> ServiceEnd | None:
        views = (
            InstanceView(actor.workload.name, actor.lifecycle, jobs.is_starting(actor))
            for actor in jobs.actors.values()
        )
        return find_end(exit_on, views)

    def notify(*_: object) -> None:
        jobs.changed.notify()

    exit_on = supervisor.config.supervisor.exit_on
    supervisor.context.listeners.add(notify)
    try:
        await jobs.changed.wait_for(find)
    finally:
        supervisor.context.listeners.discard(notify)
    end = find()
    assert end is not None
    return end


async def _until_signalled(platform: Platform, supervisor: Supervisor, scope: trio.CancelScope, ending: Ending) -> None:
    """Handle signals until cancelled, as `respond_to_signal` decides; stop when the workloads decide it."""
    journal, terminal = platform.journal, platform.terminal
    async with trio.open_nursery() as nursery:

        async def stop() -> None:
            notify_service_manager(journal, "STOPPING=1")
            await supervisor.jobs.stop_all()
            await supervisor.recorder.close(DRAIN_TIMEOUT_S)
            await supervisor.event_log.close()
            await supervisor.output_followers.close()
            scope.cancel()

        stopping = False

        async def stop_at_own_end() -> None:
            nonlocal stopping
            end = await _wait_for_own_end(supervisor)
            if not stopping:
                stopping = True
                ending.decide(end)
                text = f"{end.condition} (supervisor.exit_on); exit status {end.status}"
                journal.log.info("supervisor stopping", message=text)
                supervisor.jobs.begin_stop()
                await stop()

        if supervisor.config.supervisor.exit_on:
            nursery.start_soon(stop_at_own_end)
        async for signum in platform.signals:
            gone, outlives = (terminal.is_gone(), terminal.is_outlived) if terminal is not None else (False, False)
            response = respond_to_signal(
                signum, is_stopping=stopping, is_terminal_gone=gone, outlives_terminal=outlives
            )
            match response:
                case SignalResponse.RELOAD:
                    nursery.start_soon(supervisor.reload_on_signal)
                case SignalResponse.OUTLIVE:
                    assert terminal is not None
                    terminal.forget()
                    text = "the service runs on, as SIGHUP was ignored when it was started; the next SIGHUP reloads"
                    journal.log.info("terminal closed", message=text)
                case SignalResponse.STOP | SignalResponse.KILL:
                    why = {"message": "its terminal was closed"} if signum == signal.SIGHUP else {}
                    name = signal.Signals(signum).name
                    journal.log.info("supervisor stopping", signal=name, hurry=stopping, **why)
                    if response is SignalResponse.KILL:
                        supervisor.jobs.kill_all()
                    else:
                        stopping = True
                        supervisor.jobs.begin_stop()
                        nursery.start_soon(stop)
