"""What a configuration asks of its host that the host cannot give: told by ``check``, and before anything starts.

Imports no trio, because ``check`` has to be quick.
"""

from collections.abc import Iterator

from nsupervisor.cgroups.errors import Problem as HostProblem
from nsupervisor.cgroups.host import Host
from nsupervisor.config.model import Config, Workload
from nsupervisor.config.positions import Positions
from nsupervisor.config.problems import Problem
from nsupervisor.service.identity import IdentityError, resolve
from nsupervisor.service.privileges import missing


def unmet(config: Config, positions: Positions, host: Host) -> Iterator[tuple[Problem, bool]]:
    """Every problem with its line; True beside those that ``resources.required = false`` makes a warning."""
    for workload in config.workloads.values():
        for keys, message, is_warning in _of(workload, host):
            path = ("workload", workload.name, *keys)
            shown = ".".join(map(str, path))
            yield Problem(config.path, positions.line(path), shown, message), is_warning


def _of(workload: Workload, host: Host) -> Iterator[tuple[tuple[str | int, ...], str, bool]]:
    optional = not workload.resources.required
    for found in host.problems(workload.resources):
        yield ("resources", found.key), f"{found.why}; {found.instead}", optional
    for i, rule in enumerate(workload.policy):
        for file in dict.fromkeys(atom.file for atom in rule.when.atoms):
            place = host.place(file)
            if isinstance(place, HostProblem):
                yield ("policy", i, "when"), f"no {file} here: {place.why}; {place.instead}", optional
    for key, message in missing(workload):
        yield (key,), message, False
    for key, user, groups in (
        ("user", workload.user, ()),
        ("supplementary_groups", None, workload.supplementary_groups),
    ):
        try:
            resolve(user, groups)
        except IdentityError as error:
            yield (key,), str(error), False
