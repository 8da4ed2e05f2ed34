"""Requirements of a configuration that the host cannot meet: for `check`, and before anything starts.

This module does not import trio, because `check` has to be quick.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from nsupervisor.cgroups.errors import CgroupError
from nsupervisor.cgroups.errors import Problem as HostProblem
from nsupervisor.cgroups.host import Around, Host
from nsupervisor.config.facts import NOT_FILES
from nsupervisor.config.model import Config, Resources, Rule, Workload
from nsupervisor.config.positions import Positions
from nsupervisor.config.problems import Problem
from nsupervisor.config.shown import shown, shown_path
from nsupervisor.service.capacity import shortage
from nsupervisor.service.identity import IdentityError, resolve
from nsupervisor.service.privileges import explain, missing

if TYPE_CHECKING:
    from nsupervisor.cgroups.cgroup import Cgroup

OPTIONAL = "required = false"
ELSEWHERE = "it depends on who runs it, and where: the service has a cgroup, and rights, of its own"

NOT_YET = "it may be there when it is started"


def unmet(config: Config, positions: Positions, host: Host, *, here: bool = True) -> Iterator[tuple[Problem, str]]:
    """Yield every problem with its line, and why it is only a warning; "" if it is an error.

    `here`: the service will run in the cgroup of this process. Otherwise a problem of this cgroup (of a login session,
    for example) or of this user is a warning; if no cgroup can be made at all, there is one warning for the whole file.
    """
    if not here:
        for obstacle in _hindrances(config, host):
            yield Problem(config.path, 0, "", f"could not be run from here: {obstacle}"), ELSEWHERE
    if too_many := shortage(config, host):
        yield _problem(config, positions, ("workload",), too_many), "" if here else ELSEWHERE
    for workload in config.workloads.values():
        around = host.around(group.resources for group in config.around(workload))
        path = ("workload", workload.name)
        for keys, message, warning in (
            *_limits(workload.resources, ("resources",), around, host, here),
            *_rules(workload.policy, host, "" if workload.resources.required else OPTIONAL, here),
            *_people(workload, here),
            *([] if here else _absent(workload)),
        ):
            yield _problem(config, positions, (*path, *keys), message), warning
    for group in config.groups.values():
        around = host.around(outer.resources for outer in config.around(group))
        for keys, message, warning in (
            *_limits(group.resources, (), around, host, here),
            *_rules(group.policy, host, "" if group.required else OPTIONAL, here),
        ):
            yield _problem(config, positions, ("group", group.name, *keys), message), warning
    for keys, message, warning in _rules(config.host.policy, host, "", here):
        yield _problem(config, positions, ("host", *keys), message), warning


def about(problem: Problem) -> dict[str, str]:
    """Return the record fields that name the workload or group of a problem."""
    kind, name, *_ = [*problem.key.split("."), ""]
    if not kind:  # about the file
        return {}
    return {"workload": name} if kind == "workload" else {"group": f"group/{name}" if kind == "group" else kind}


def uncounted(rule: Rule, cgroup: Cgroup) -> str:
    """Return why a rule cannot be evaluated in this cgroup: the file or key that it reads is missing; or ""."""
    try:
        for atom in rule.when.atoms:
            if atom.file not in NOT_FILES and not atom.told_by(cgroup.read(atom.file)):
                return f"this host does not count {atom.key} in {atom.file}; it may need pure cgroup v2"
    except CgroupError as error:
        return str(error)
    return ""


_Found = tuple[tuple[str | int, ...], str, str]


def _problem(config: Config, positions: Positions, path: tuple[str | int, ...], message: str) -> Problem:
    return Problem(config.path, positions.line(path), shown_path(path), message)


def _limits(resources: Resources, place: tuple[str, ...], around: Around, host: Host, here: bool) -> Iterator[_Found]:
    optional = "" if resources.required else OPTIONAL
    for problem in host.problems(resources, around):
        elsewhere = not here and _is_about_this_cgroup(problem, host)
        if not (elsewhere and host.closed):  # which is reported once for the whole file
            yield (
                (*place, problem.key),
                f"{problem.why}; {problem.instead}",
                optional or (ELSEWHERE if elsewhere else ""),
            )


def _rules(rules: Sequence[Rule], host: Host, optional: str, here: bool) -> Iterator[_Found]:
    for i, rule in enumerate(rules):
        for file in dict.fromkeys(atom.file for atom in rule.when.atoms):
            if file in NOT_FILES:
                continue
            location = host.place(file)
            if not isinstance(location, HostProblem):
                continue
            elsewhere = not here and _is_about_this_cgroup(location, host)
            if not (elsewhere and host.closed):
                warning = optional or (ELSEWHERE if elsewhere else "")
                yield ("policy", i, "when"), f"no {file} here: {location.why}; {location.instead}", warning


def _people(workload: Workload, here: bool) -> Iterator[_Found]:
    for key, message in missing(workload):
        yield (key,), message, "" if here else ELSEWHERE
    for key, user, groups in (
        ("user", workload.user, ()),
        ("supplementary_groups", None, workload.supplementary_groups),
    ):
        try:
            resolve(user, groups)
        except IdentityError as error:
            yield (key,), str(error), ""


def _absent(workload: Workload) -> Iterator[_Found]:
    """Yield a problem for each file that the workload names and this host does not have."""
    named = [("environment_file", path) for path in workload.environment_file if not path.startswith("-")]
    if not workload.mounts:  # mounts may provide the other files
        named += [("command", workload.command[0]), ("working_directory", workload.working_directory)]
    for key, path in named:
        try:
            if path.startswith("/"):
                os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            yield (key,), f"there is no {shown(path)} on this host; install it, or write another path", NOT_YET
        except OSError:  # this user may not see the file
            pass


def _is_about_this_cgroup(problem: HostProblem, host: Host) -> bool:
    """Return whether the host has the controller, but this cgroup cannot use it."""
    controller = host.controllers.get(problem.key.replace(".", "_").partition("_")[0])
    return controller is not None and controller.obstacle == (problem.why, problem.instead)


def _hindrances(config: Config, host: Host) -> Iterator[str]:
    """Yield what prevents this user from running any configuration here."""
    if host.closed:
        yield "; ".join(host.closed)
    directory = config.supervisor.runtime_directory
    while not os.path.exists(directory):
        directory = os.path.dirname(directory)
    if not os.access(directory, os.W_OK | os.X_OK):
        yield explain(PermissionError(errno.EACCES, os.strerror(errno.EACCES), directory), config)
