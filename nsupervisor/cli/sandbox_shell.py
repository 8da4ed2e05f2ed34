"""`nsupervisor shell` with options of a sandbox: one program on this terminal, confined as a workload is.

The options are keys of a configuration, which is checked, and turned into a specification, as that of a service. The
program is in a cgroup of its own, which is removed afterwards.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from nsupervisor.cgroups import Cgroup, CgroupError, Host, Tree
from nsupervisor.cli.namespace_shell import FAILED, NOT_PERMITTED, USAGE, print_error, run_spec
from nsupervisor.config.model import WorkloadConfig
from nsupervisor.config.problems import ConfigError
from nsupervisor.core.isolation import CGROUPS
from nsupervisor.core.seccomp import TERMINAL_FILTER
from nsupervisor.core.security import settings, values
from nsupervisor.keeper.server.children import SpawnError
from nsupervisor.keeper.setup.spec import Spec, SpecError
from nsupervisor.linux.privileges import own_privileges
from nsupervisor.service.instance import seccomp_filters
from nsupervisor.service.instance.devices import device_rules
from nsupervisor.service.instance.spawn_spec import spawn_spec
from nsupervisor.service.instance.users import IdentityError
from nsupervisor.service.platform.program_directories import make_directories
from nsupervisor.service.preflight.privileges import has_uid_ranges
from nsupervisor.service.preflight.requirements import NOT_YET_PRESENT, check_text
from nsupervisor.service.state.uid_ranges import UidRanges, default_state_directory

NAME = "shell"
"""The name of the workload."""


class Options(NamedTuple):
    """The options of a sandbox; None or empty: not given."""

    root: str | None = None
    is_read_only: bool = False
    is_overlay: bool = False
    profile: str | None = None
    volumes: tuple[str, ...] = ()
    """`SRC:DST` or `SRC:DST:ro`: a path of the host, or the name of a volume; and where the program sees it."""
    run_user: str | None = None
    """The key `user`."""
    directory: str | None = None
    variables: tuple[str, ...] = ()
    """`NAME=VALUE`."""
    memory_max: str | None = None
    pids_max: str | None = None
    cpu_max: str | None = None


def workload_table(options: Options, namespaces: list[str], argv: list[str], hostname: str | None) -> dict[str, Any]:
    """Return the keys of the workload. Raises ValueError for a volume or a variable that is none."""
    spaces: dict[str, Any] = dict.fromkeys(namespaces, True)
    table: dict[str, Any] = {"command": argv, "namespaces": spaces, "security": {}, "resources": {}, "mounts": []}
    if hostname is not None:
        spaces["hostname"] = hostname
    if options.root is not None:
        table["root"] = {"path": os.path.abspath(options.root)}
        table["root"] |= {"readonly": True} if options.is_read_only else {}
        table["root"] |= {"overlay": True} if options.is_overlay else {}
    elif options.is_read_only:
        table["security"]["protect_system"] = "strict"
    if options.profile is not None:
        table["security"]["profile"] = options.profile
    for volume in options.volumes:
        table["mounts"].append(_mount(volume))
    own = {"user": options.run_user, "working_directory": options.directory}
    table |= {key: value for key, value in own.items() if value is not None}
    environment = {"TERM": os.environ["TERM"]} if "TERM" in os.environ else {}
    for variable in options.variables:
        name, equals, value = variable.partition("=")
        if not name or not equals:
            raise ValueError(f'--env: "{variable}" is not NAME=VALUE')
        environment[name] = value
    table["environment"] = environment
    for key in ("memory_max", "pids_max", "cpu_max"):
        if (text := getattr(options, key)) is not None:
            table["resources"][key] = int(text) if text.isdecimal() else text
    return table


def _mount(volume: str) -> dict[str, Any]:
    source, _, rest = volume.partition(":")
    destination, _, mode = rest.partition(":")
    if not source or not destination.startswith("/") or mode not in ("", "ro", "rw"):
        raise ValueError(f'--volume: "{volume}" is not SRC:DST or SRC:DST:ro, with an absolute path DST')
    is_path = "/" in source or source in (".", "..")
    return {
        "type": "bind" if is_path else "volume",
        "source": os.path.abspath(source) if is_path else source,
        "destination": destination,
        "options": (["rbind"] if is_path else []) + (["ro"] if mode == "ro" else []),
    }


def run_in_sandbox(options: Options, namespaces: list[str], argv: list[str], hostname: str | None = None) -> int:
    """Run `argv`, or /bin/sh, in a sandbox; return the exit status for this command, as `run_in_namespaces` does."""
    try:
        table = workload_table(options, namespaces, argv or ["/bin/sh"], hostname)
    except ValueError as error:
        return print_error(str(error), USAGE)
    has_limits = bool(table["resources"])
    if os.geteuid() != 0:
        table["namespaces"]["user"] = True
    # Without limits a missing cgroup is only reported: nothing that was asked for is left out.
    head = {"isolation": "full" if has_limits else "auto"}
    try:
        checked = check_text(_to_toml(head, table), "nsupervisor shell", Host.discover())
    except ConfigError as error:
        return _refuse([str(problem.message) for problem in error.problems], USAGE)
    if checked.problems:
        problems = [f"{_option(problem.key)}{problem.message}" for problem in checked.problems]
        return _refuse(problems, USAGE)
    assert checked.isolation is not None
    for warning, reason in checked.warnings:
        if reason == NOT_YET_PRESENT:  # it would have to be there now
            continue
        print_error(f"{_option(warning.key)}{warning.message} (a warning only: {reason})", USAGE)
    workload = checked.config.workloads[NAME]
    host = None if CGROUPS in checked.isolation.missing else checked.isolation.host
    try:
        with _cgroup(host, workload) as cgroup:
            return run_spec(_spec(workload, cgroup), is_confined=True)
    except CgroupError as error:
        return print_error(str(error), FAILED)
    except (IdentityError, SpecError, ConfigError, OSError) as error:
        return print_error(str(error), USAGE)
    except SpawnError as error:
        return print_error(str(error), NOT_PERMITTED if error.number in (errno.EPERM, errno.EACCES) else FAILED)


def _to_toml(head: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    return f"[supervisor]\n{_lines(head)}\n[workload.{NAME}]\n{_lines(table)}"


def _lines(table: Mapping[str, Any]) -> str:
    return "".join(f"{key} = {_value(value)}\n" for key, value in table.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


_OPTIONS = {
    "root": "--root: ",
    "root.path": "--root: ",
    "security.profile": "--profile: ",
    "mounts": "--volume: ",
    "user": "--uid: ",
    "working_directory": "--workdir: ",
    "environment": "--env: ",
    "resources.memory_max": "--memory-max: ",
    "resources.pids_max": "--pids-max: ",
    "resources.cpu_max": "--cpu-max: ",
}
"""By key of the workload, the option that has set it."""


def _option(key: str) -> str:
    own = key.removeprefix(f"workload.{NAME}.")
    return _OPTIONS.get(own) or _OPTIONS.get(own.partition("[")[0].partition(".")[0]) or (f"{own}: " if own else "")


def _refuse(problems: list[str], code: int) -> int:
    for problem in problems:
        print_error(problem, code)
    return code


@contextmanager
def _cgroup(host: Host | None, workload: WorkloadConfig) -> Iterator[Cgroup | None]:
    """Make the cgroup of the program, and remove it, with what the program has left in it. Raises CgroupError."""
    if host is None:
        yield None
        return
    tree = Tree.create(host, f"nsupervisor-shell-{os.getpid()}")
    try:
        cgroup = tree.make(NAME, workload.resources)
        try:
            cgroup.restrict_devices(device_rules(values(workload.security)))
        except CgroupError:
            if settings(workload.security)["device_policy"].is_explicit:
                raise
        try:
            yield cgroup
        finally:
            cgroup.kill()
            while cgroup.is_populated():
                time.sleep(0.005)  # the kernel reports no end of a cgroup's processes to a program without a loop
            cgroup.remove()
    finally:
        tree.close()


def _spec(workload: WorkloadConfig, cgroup: Cgroup | None) -> Spec:
    """Return the specification of the program. Raises IdentityError, ConfigError, SpecError and OSError."""
    state_directory = default_state_directory()
    ranges = UidRanges(state_directory, NAME) if has_uid_ranges(own_privileges()) else None
    place: Any = cgroup or SimpleNamespace(place={})
    document = spawn_spec(workload, NAME, None, 1, place, Path("/"), uid_ranges=ranges, state_directory=state_directory)
    document.pop("requires_security")
    if directories := document.pop("directories", ()):
        make_directories(directories, Spec(document | {"filters": []}).host_owner())
    if workload.security.profile != "none":
        # The terminal is shared with the shell that has started this command: the program must not type into it.
        name = seccomp_filters.filter_name(TERMINAL_FILTER)
        document["filters"] = [name, *document.get("filters", ())]
    programs = {name: seccomp_filters.program(name) for name in document.get("filters", ())}
    return Spec(document, programs)
