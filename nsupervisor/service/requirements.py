"""What a configuration asks of its host that the host cannot give: told by ``check``, and before anything starts.

Imports no trio, because ``check`` has to be quick.
"""

from collections.abc import Iterator

from nsupervisor.cgroups.errors import Problem as HostProblem
from nsupervisor.cgroups.host import Host
from nsupervisor.config.facts import NOT_FILES
from nsupervisor.config.model import Config, Workload
from nsupervisor.config.positions import Positions
from nsupervisor.config.problems import Problem
from nsupervisor.service.identity import IdentityError, resolve
from nsupervisor.service.privileges import missing

OPTIONAL = "required = false"
ELSEWHERE = "it depends on where this was run: the service has a cgroup of its own"


def unmet(config: Config, positions: Positions, host: Host, *, here: bool = True) -> Iterator[tuple[Problem, str]]:
    """Every problem with its line, and why it is a warning only; "" where it is not.

    ``here``: the service is to run in the cgroup that this process is in. Otherwise what is wrong with this cgroup (of
    a login session, say) is a warning.
    """
    for workload in config.workloads.values():
        for keys, message, warning in _of(workload, host, here):
            path = ("workload", workload.name, *keys)
            shown = ".".join(map(str, path))
            yield Problem(config.path, positions.line(path), shown, message), warning


def _of(workload: Workload, host: Host, here: bool) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
    optional = "" if workload.resources.required else OPTIONAL
    for found in host.problems(workload.resources):
        elsewhere = "" if here or not _is_about_this_cgroup(found.key, host) else ELSEWHERE
        yield ("resources", found.key), f"{found.why}; {found.instead}", optional or elsewhere
    for i, rule in enumerate(workload.policy):
        for file in dict.fromkeys(atom.file for atom in rule.when.atoms):
            if file in NOT_FILES:
                continue
            place = host.place(file)
            if isinstance(place, HostProblem):
                yield ("policy", i, "when"), f"no {file} here: {place.why}; {place.instead}", optional
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
