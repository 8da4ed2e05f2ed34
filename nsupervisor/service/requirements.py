"""What a configuration asks of its host that the host cannot give: told by ``check``, and before anything starts.

Imports no trio, because ``check`` has to be quick.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from nsupervisor.cgroups.errors import CgroupError
from nsupervisor.cgroups.errors import Problem as HostProblem
from nsupervisor.cgroups.host import Around, Host
from nsupervisor.config.facts import NOT_FILES
from nsupervisor.config.model import Config, Resources, Rule, Workload
from nsupervisor.config.positions import Positions
from nsupervisor.config.problems import Problem
from nsupervisor.config.shown import shown_path
from nsupervisor.service.capacity import shortage
from nsupervisor.service.identity import IdentityError, resolve
from nsupervisor.service.privileges import missing

if TYPE_CHECKING:
    from nsupervisor.cgroups.cgroup import Cgroup

OPTIONAL = "required = false"
ELSEWHERE = "it depends on where this was run: the service has a cgroup, and limits, of its own"


def unmet(config: Config, positions: Positions, host: Host, *, here: bool = True) -> Iterator[tuple[Problem, str]]:
    """Every problem with its line, and why it is a warning only; "" where it is not.

    ``here``: the service is to run in the cgroup that this process is in. Otherwise what is wrong with this cgroup (of
    a login session, say) is a warning.
    """
    if too_many := shortage(config, host):
        yield _problem(config, positions, ("workload",), too_many), "" if here else ELSEWHERE
    for workload in config.workloads.values():
        around = host.around(group.resources for group in config.around(workload))
        place = ("workload", workload.name)
        for keys, message, warning in (
            *_limits(workload.resources, ("resources",), around, host, here),
            *_rules(workload.policy, host, "" if workload.resources.required else OPTIONAL),
            *_people(workload, here),
        ):
            yield _problem(config, positions, (*place, *keys), message), warning
    for group in config.groups.values():
        around = host.around(one.resources for one in config.around(group))
        for keys, message, warning in (
            *_limits(group.resources, (), around, host, here),
            *_rules(group.policy, host, "" if group.required else OPTIONAL),
        ):
            yield _problem(config, positions, ("group", group.name, *keys), message), warning
    for keys, message, warning in _rules(config.host.policy, host, ""):
        yield _problem(config, positions, ("host", *keys), message), warning


def about(problem: Problem) -> dict[str, str]:
    """Whom a problem is about, as records have it."""
    kind, name, *_ = [*problem.key.split("."), ""]
    return {"workload": name} if kind == "workload" else {"group": f"group/{name}" if kind == "group" else kind}


def uncounted(rule: Rule, cgroup: Cgroup) -> str:
    """Why the rule cannot be followed in this cgroup: what it looks at is not counted here. "" where it is."""
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
    for found in host.problems(resources, around):
        elsewhere = "" if here or not _is_about_this_cgroup(found.key, host) else ELSEWHERE
        yield (*place, found.key), f"{found.why}; {found.instead}", optional or elsewhere


def _rules(rules: Sequence[Rule], host: Host, optional: str) -> Iterator[_Found]:
    for i, rule in enumerate(rules):
        for file in dict.fromkeys(atom.file for atom in rule.when.atoms):
            if file in NOT_FILES:
                continue
            place = host.place(file)
            if isinstance(place, HostProblem):
                yield ("policy", i, "when"), f"no {file} here: {place.why}; {place.instead}", optional


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


def _is_about_this_cgroup(key: str, host: Host) -> bool:
    """The host has the controller on v2; it is only that it cannot be had from here."""
    controller = host.controllers.get(key.partition("_")[0])
    return controller is not None and controller.hierarchy.version == 2 and controller.obstacle is not None
