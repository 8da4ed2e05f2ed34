"""Build the keeper's spawn specification from a workload's configuration. Reads environment files, changes nothing."""

import fnmatch
import functools
import os
from typing import TYPE_CHECKING, Any, get_args

from nsupervisor import capability_names
from nsupervisor.config.environment import load_environment
from nsupervisor.config.expansion import Instance
from nsupervisor.config.kinds import MAX_HOSTNAME
from nsupervisor.config.model import IoClass, SecurityConfig, WorkloadConfig
from nsupervisor.config.problems import ConfigError, Problem
from nsupervisor.config.security_kinds import SECURE_BITS
from nsupervisor.config.sockets import passed_sockets
from nsupervisor.core.landlock import ruleset
from nsupervisor.core.name_files import wanted_files
from nsupervisor.core.sandbox import for_own_root, sandbox
from nsupervisor.core.seccomp import Filter, OciError, parse_oci
from nsupervisor.core.seccomp import filters as find_filters
from nsupervisor.core.security import is_required, settings, values, written_keys
from nsupervisor.linux.namespaces import NAMESPACES
from nsupervisor.linux.trusted_paths import open_for_reading
from nsupervisor.mount_data import READ_ONLY, READ_WRITE, VOLUME
from nsupervisor.service.instance.directories import (
    bases,
    directory_mounts,
    directory_variables,
    path_of,
    program_directories,
)
from nsupervisor.service.instance.root import resolve_in_root, root_key
from nsupervisor.service.instance.seccomp_filters import filter_name
from nsupervisor.service.instance.users import IdentityError, UserIdentity, resolve_user, without_own
from nsupervisor.service.state.dynamic_users import DynamicUserError, DynamicUsers
from nsupervisor.service.state.uid_ranges import STATE_DIRECTORY, UidRangeError, UidRanges

if TYPE_CHECKING:  # `check` imports this module, and must be quick
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from nsupervisor.cgroups import Cgroup

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""A workload's default PATH; that of systemd, and of Debian for root."""

WORKLOADS_API = "notify/control/api"
"""The directory, in the runtime directory, of the API's socket for workloads with `may_control`. The one above it is
closed to other users, so that the socket itself need not be: its peers are identified by their cgroups. It is below
`notify` because each version removes that at its end, also one that an upgrade has been taken back to."""


def spawn_spec(
    workload: WorkloadConfig,
    name: str,
    instance: Instance | None,
    generation: int,
    cgroup: "Cgroup",
    directory: "Path",
    variables: dict[str, str] | None = None,
    uid_ranges: UidRanges | None = None,
    state_directory: str = STATE_DIRECTORY,
    dynamic_users: DynamicUsers | None = None,
) -> dict[str, Any]:
    """Return the specification for one generation, in the form that `nsupervisor.keeper` takes.

    `directory` is the runtime directory, `variables` what `environment_file_variables` returned just now, `uid_ranges`
    where a user namespace without mappings has its ids from; None: it has the supervisor's own alone. `dynamic_users`:
    where a dynamic user has its number from; None: there are none here. Users and
    environment files are read again for each generation, so that a restart sees changes. What is kept of the program
    is below `state_directory`. The key `directories` is what has to be made before, and not for the keeper.

    Raises IdentityError for an unknown user, ConfigError for a bad environment file, OSError for an unreadable one.
    """
    spaces = workload.namespaces
    user = _dynamic_user(name, dynamic_users) if workload.dynamic_user else workload.user
    root = None if workload.root.path is None else root_key(workload.root, instance, state_directory)
    if root is not None:
        identity = resolve_in_root(root, user, workload.supplementary_groups)
    else:
        # In a user namespace the numbers of the supervisor's groups are those of other groups.
        identity = resolve_user(user, workload.supplementary_groups, keeps_own_groups=not spaces.user)
    if not spaces.user:
        identity = without_own(identity)
    uid_mappings, gid_mappings = _mappings(workload, name, uid_ranges) if spaces.user else ([], [])
    directories = own_directories(workload, instance, state_directory)
    security = values(workload.security)
    view = _view(workload.security, root is not None) if spaces.mount else None
    if view is not None and root is None and directories:
        view = _with_writable(view, directories)
    privileges = _privileges(workload.security, _oci_filter(security))
    return {
        "id": f"{name}#{generation}",
        "name": name,
        "argv": list(workload.command),
        "env": environment(
            workload,
            identity,
            name,
            instance,
            variables,
            directory,
            {**workload.image_environment, **directory_variables(directories)},
        ),
        "cwd": workload.working_directory,
        "namespaces": [name for name in NAMESPACES if getattr(spaces, name) is True],
        **({"joins": joins} if (joins := _joins(workload)) else {}),
        **({"name_files": files} if (files := _name_files(workload)) else {}),
        "hostname": spaces.hostname if spaces.hostname is not None or spaces.uts is not True else host_name(name),
        "uid_mappings": uid_mappings,
        "gid_mappings": gid_mappings,
        "time_offsets": dict(spaces.time_offsets),
        "mounts": directory_mounts(workload, directories, state_directory),
        "uid": identity.uid,
        "gid": identity.gid,
        "groups": None if identity.groups is None else list(identity.groups),
        "umask": workload.umask,
        "nice": workload.nice,
        "rlimits": {key: list(pair) for key, pair in workload.security.rlimits.items()},
        "no_new_privileges": security["no_new_privileges"],
        **privileges,
        **(scheduling := _scheduling(workload)),
        "requires_security": is_required(workload.security) or bool(scheduling),
        "init": workload.init and spaces.pid,
        **cgroup.place,
        "stdin": "null",
        **({} if view is None else {"sandbox": view}),
        **({} if root is None else {"root": root}),
        **({"directories": directories} if directories else {}),
        **({"credentials": dict(workload.credentials)} if workload.credentials else {}),
        **({"descriptors": passed_sockets(workload.name, workload.sockets)} if workload.sockets else {}),
    }


def _joins(workload: WorkloadConfig) -> dict[str, str]:
    """Return the namespaces to join: by kind, whose they are, and what a restart is needed for if it changes."""
    joins = workload.namespaces.joined
    if workload.network.publish:
        joins["network"] = " ".join([joins["network"], *map(str, workload.network.publish)])
    if workload.network.bandwidth_max is not None:
        joins["network"] += f" {workload.network.bandwidth_max}"
    return joins


def _name_files(workload: WorkloadConfig) -> dict[str, Any]:
    """Return the files for names that it gets, without their sources, which are made when it starts."""
    return {place: {"settings": list(file.settings)} for place, file in wanted_files(workload).items()}


_CPU_POLICIES = {"other": 0, "fifo": 1, "rr": 2, "batch": 3, "idle": 5}
"""Numbers of the policies, sched(7)."""
_IO_CLASSES = ("", *get_args(IoClass))
_IO_CLASS_SHIFT, _IO_DEFAULT_PRIORITY = 13, 4


def _scheduling(workload: WorkloadConfig) -> dict[str, Any]:
    """Return the keys about the schedulers that are set, as system calls take them."""
    found: dict[str, Any] = {}
    if workload.oom_score_adjust is not None:
        found["oom_score_adjust"] = workload.oom_score_adjust
    if workload.io_scheduling_class is not None:
        number = _IO_CLASSES.index(workload.io_scheduling_class)
        priority = workload.io_scheduling_priority
        if priority is None:
            priority = 0 if workload.io_scheduling_class == "idle" else _IO_DEFAULT_PRIORITY
        found["io_priority"] = number << _IO_CLASS_SHIFT | priority
    if workload.cpu_scheduling_policy is not None:
        is_realtime = workload.cpu_scheduling_policy in ("fifo", "rr")
        priority = (workload.cpu_scheduling_priority or 1) if is_realtime else 0
        found["cpu_scheduling"] = [_CPU_POLICIES[workload.cpu_scheduling_policy], priority]
    if workload.timer_slack is not None:
        found["timer_slack"] = max(round(workload.timer_slack * 1e9), 1)  # 0 would mean the default, PR_SET_TIMERSLACK
    return found


_PRIVILEGE_KEYS = ("capability_bounding_set", "ambient_capabilities", "secure_bits", "filters", "landlock")


# What follows from the keys of `security` alone is found once for each value of them: it would be a third of what a
# start costs the service. A specification is never changed.


def own_directories(workload: WorkloadConfig, instance: Instance | None, state_directory: str) -> list[dict[str, Any]]:
    """Return the directories that are made for a program of this service, as `program_directories` does."""
    return program_directories(workload, instance, state_directory, _bases())


@functools.cache
def _bases() -> dict[str, str]:
    return bases(os.geteuid(), os.environ)


def _with_writable(view: dict[str, Any], directories: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a view in which a program may write to its own directories, also if the rest is read-only."""
    paths = view.get("paths", [])
    if not any(path == "/" and action == READ_ONLY for path, action in paths):
        return view
    own = [path_of(one) for one in directories if one["kind"] not in ("configuration", VOLUME)]
    return {**view, "paths": [*paths, *([path, READ_WRITE] for path in own)]}


@functools.lru_cache(256)
def _view(security: SecurityConfig, has_own_root: bool) -> dict[str, Any] | None:
    return sandbox(for_own_root(settings(security)) if has_own_root else values(security))


@functools.lru_cache(256)
def _privileges(security: SecurityConfig, oci: Filter | None) -> dict[str, Any]:
    """Return the capabilities and filters, as far as they are not those that a program has anyway.

    `oci`: the filter of the file that `seccomp` names.
    """
    found = values(security)
    bounding, ambient = found["capability_bounding_set"], found["ambient_capabilities"]
    privileges = {
        "capability_bounding_set": None if bounding == capability_names.NAMES else capability_names.mask(bounding),
        "ambient_capabilities": capability_names.mask(ambient),
        "secure_bits": sum(SECURE_BITS[word] for word in dict.fromkeys(found["secure_bits"])),
        "filters": [filter_name(one) for one in find_filters(found, oci)],
        "landlock": ruleset(found["landlock"]),
    }
    neutral: dict[str, Any] = {
        "capability_bounding_set": None,
        "ambient_capabilities": 0,
        "secure_bits": 0,
        "filters": [],
        "landlock": None,
    }
    return {key: value for key, value in privileges.items() if value != neutral[key]}


def _oci_filter(security: "Mapping[str, Any]") -> Filter | None:
    """Return the filter of the file that `seccomp` names; None if it names none. Raises ConfigError and OSError."""
    path = security["seccomp"]
    if path[:1] != "/":
        return None
    with os.fdopen(open_for_reading(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        text = file.read(MAX_OCI_BYTES + 1)
    if len(text) > MAX_OCI_BYTES:
        raise ConfigError([Problem(path, 0, "", f"is larger than {MAX_OCI_BYTES} bytes; write a smaller filter")])
    try:
        return parse_oci(text.decode(errors="replace"), security["capability_bounding_set"], os.uname().machine)
    except OciError as error:
        raise ConfigError([Problem(path, 0, "", str(error))]) from None


MAX_OCI_BYTES = 1 << 20
"""The most bytes of a filter's file."""


def host_name(name: str) -> str:
    """Return the default host name of an instance: its name, cut to what the kernel takes; "web@2" → "web-2"."""
    workload, at, number = name.partition("@")
    suffix = f"-{number}" if at else ""
    longest = MAX_HOSTNAME - len(suffix)
    return (workload if len(workload) <= longest else workload[:longest].rstrip("-_")) + suffix


def cover(workload: WorkloadConfig, directory: "Path", notify: str | None) -> dict[str, Any]:
    """Return the key `cover` of a specification, which hides the runtime directory from the program.

    Some directories in it stay visible: that of the notify socket, and with `may_control` that of the API's socket for
    workloads.
    """
    show = {} if notify is None else dict.fromkeys([os.path.relpath(os.path.dirname(notify), directory)])
    found = {name: name for name in show}
    links = {}
    if workload.may_control:
        found[WORKLOADS_API] = "api"
        links["api.sock"] = "api/api.sock"
    return {"directory": _real_path(directory), "show": found, "links": links}


@functools.cache
def _real_path(directory: "Path") -> str:
    """Return the path of the runtime directory without symbolic links, looked up once: the service never changes it."""
    return os.path.realpath(directory)


def environment(
    workload: WorkloadConfig,
    identity: UserIdentity,
    name: str,
    instance: Instance | None,
    variables: dict[str, str] | None = None,
    directory: "Path | None" = None,
    further: dict[str, str] | None = None,
) -> dict[str, str]:
    """Return a clean environment; later values win.

    The variables that a login sets come first, with `further` ones, then those that are passed, those of the files in
    order, and those of `environment`.
    """
    values = {"PATH": PATH, "NSUPERVISOR_WORKLOAD": name}
    if identity.home:
        values["HOME"] = identity.home
    if identity.name:
        values |= {"USER": identity.name, "LOGNAME": identity.name, "SHELL": identity.shell or "/bin/sh"}
    if directory is not None and workload.may_control:
        values["NSUPERVISOR_SOCKET"] = f"{directory}/api.sock"
    if instance is not None:
        values["NSUPERVISOR_INSTANCE"] = str(instance)
    values |= further or {}
    if workload.file_descriptor_store_max:
        values["FDSTORE"] = str(workload.file_descriptor_store_max)
    if directory is not None and workload.credentials:
        values["CREDENTIALS_DIRECTORY"] = f"{_real_path(directory)}/credentials"
    values |= passed_variables(workload, os.environ, values)
    return (
        values | (environment_file_variables(workload) if variables is None else variables) | dict(workload.environment)
    )


_OWN_PREFIXES = ("NSUPERVISOR_", "LISTEN_", "NOTIFY_", "WATCHDOG_", "FDSTORE")
"""Beginnings of the names of variables that are about the service itself, and wrong in a program; sd_notify(3)."""


def passed_variables(
    workload: WorkloadConfig, outer: "Mapping[str, str]", given: "Collection[str]" = ()
) -> dict[str, str]:
    """Return the variables of the environment `outer` that a workload gets by `pass_environment`.

    A wildcard matches none of the variables that it has been `given` already. Variables about the service itself, and
    values that are not UTF-8, are left out.
    """
    if not workload.pass_environment:  # the environment of the service need not be looked through at each start
        return {}
    names = [name for name in workload.pass_environment if "*" not in name]
    patterns = [name for name in workload.pass_environment if "*" in name]
    passed = {
        name: value
        for name, value in outer.items()
        if name in names or (name not in given and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))
    }
    return {name: value for name, value in passed.items() if not name.startswith(_OWN_PREFIXES) and _is_utf8(value)}


def _is_utf8(text: str) -> bool:
    return text.isascii() or not any("\udc80" <= character <= "\udcff" for character in text)  # surrogateescape


def environment_file_variables(workload: WorkloadConfig) -> dict[str, str]:
    """Return the variables that the program gets from its environment files. Raises ConfigError and OSError."""
    values: dict[str, str] = {}
    for path in workload.environment_file:
        values |= load_environment(path, open_for_reading)
    return {name: value for name, value in values.items() if name not in workload.environment}


def spawn_inputs(spec: "Mapping[str, Any]", security: SecurityConfig) -> Any:
    """Return what a generation is started with: if it is equal, a restart would change nothing.

    Of `security` only the keys that are written: a profile has other items in another version, which `START_CHANGES` of
    `nsupervisor.core.reload.start_changes` lists, and which are no reason for a restart.
    """
    # The cover has nothing of the configuration but may_control, which shows in the environment.
    derived = ("id", "env", "cover", "sandbox", "directories", "name_files", "requires_security", *_PRIVILEGE_KEYS)
    inputs = {key: value for key, value in spec.items() if key not in derived}
    files = {place: file["settings"] for place, file in spec.get("name_files", {}).items() if file["settings"]}
    if files:
        inputs["name_files"] = files
    if written := written_keys(security):
        inputs["security"] = written
    environment = {key: value for key, value in spec["env"].items() if key not in ("NOTIFY_SOCKET", "WATCHDOG_USEC")}
    return [inputs, environment]


def _dynamic_user(name: str, dynamic_users: DynamicUsers | None) -> str:
    """Return the user and group of an instance with `dynamic_user`, as a `user` names them. Raises IdentityError."""
    if dynamic_users is None:
        raise IdentityError("dynamic_user needs a service that is root and may use these ids; write a user")
    try:
        number = dynamic_users.number(name)
    except DynamicUserError as error:
        raise IdentityError(str(error)) from error
    return f"{number}:{number}"


def _mappings(
    workload: WorkloadConfig, name: str, uid_ranges: UidRanges | None
) -> tuple[list[list[int]], list[list[int]]]:
    """Return the mappings of users and of groups; by default a range of the instance's own.

    Without ranges, root inside is the supervisor's own id, as with `unshare --map-root-user`.
    """
    given = workload.user_namespace.uid_mappings, workload.user_namespace.gid_mappings
    defaults = [[0, os.getuid(), 1]], [[0, os.getgid(), 1]]
    if uid_ranges is not None and not all(given):
        try:
            defaults = uid_ranges.mapping(name), uid_ranges.mapping(name)
        except UidRangeError as error:
            raise IdentityError(str(error)) from error
    uids, gids = ([[m.container_id, m.host_id, m.size] for m in mappings] for mappings in given)
    return uids or defaults[0], gids or defaults[1]
