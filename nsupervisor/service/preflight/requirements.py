"""Requirements of a configuration that the host cannot meet: for `check`, and before anything starts.

This module does not import trio, because `check` has to be quick.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import attrs

from nsupervisor.cgroups.errors import CgroupError
from nsupervisor.cgroups.errors import HostProblem as HostProblem
from nsupervisor.cgroups.host import AncestorLimits, Host
from nsupervisor.config.compose import Find
from nsupervisor.config.condition_terms import NOT_FILES
from nsupervisor.config.conditions import Atom
from nsupervisor.config.environment import load_environment
from nsupervisor.config.files import find_included
from nsupervisor.config.load import Parsed, parse_sound_parts
from nsupervisor.config.model import Config, NetworksConfig, Resources, Rule, WorkloadConfig
from nsupervisor.config.positions import Positions
from nsupervisor.config.problems import ConfigError, Problem, sort_problems, sort_warnings
from nsupervisor.config.quoting import quoted
from nsupervisor.config.security import PROFILE_LIMITS
from nsupervisor.core.isolation import (
    AUTO_REASON,
    CGROUPS,
    NAMESPACES,
    cgroup_findings,
    without_namespaces,
    without_requirements,
)
from nsupervisor.core.security import Unsupported, degraded, without_unsupported
from nsupervisor.linux.privileges import Privileges, own_privileges
from nsupervisor.linux.trusted_paths import open_for_reading, untrusted_part
from nsupervisor.service.instance.root import resolve_in_root
from nsupervisor.service.instance.spawn_spec import PATH, environment_file_variables, passed_variables
from nsupervisor.service.instance.users import IdentityError, resolve_user
from nsupervisor.service.platform.images import ResolveImages, resolve_images
from nsupervisor.service.platform.isolation import Isolate, Isolation, isolate
from nsupervisor.service.platform.roots import find_in_root
from nsupervisor.service.preflight.capacity import descriptor_shortage
from nsupervisor.service.preflight.privileges import explain_permission_error, missing_privileges
from nsupervisor.service.preflight.security import (
    CHECKS,
    FOR_PRIVILEGED,
    MOUNT_SETATTR,
    PROFILE_REASON,
    kernel_version,
    needs_mounts,
    security_support,
)

if TYPE_CHECKING:
    from nsupervisor.cgroups.cgroup import Cgroup

OPTIONAL_REASON = "required = false"
OTHER_HIERARCHY = "it depends on who runs it, and where: the service has a cgroup, and rights, of its own"

_RuleT = TypeVar("_RuleT", bound=Rule)

NOT_YET_PRESENT = "it may be there when it is started"
NO_EVENTS_REASON = "changes by processes of this host are noticed"
IMAGE_REASON = "its workload cannot be started before it is loaded"


class CheckedText(NamedTuple):
    """A configuration that was checked together with the host."""

    config: Config
    """The whole configuration, or without problems in it: its sound parts."""
    problems: list[Problem]
    warnings: list[tuple[Problem, str]]
    """Each with the reason why it is only a warning."""
    positions: Positions
    """The positions of the keys in the text."""
    isolation: Isolation | None
    """The isolation of which the configuration is what can be run; None without a host."""


def check_text(
    text: str,
    path: str,
    host: Host | None,
    *,
    runs_here: bool = True,
    privileges: Callable[[], Privileges] = own_privileges,
    isolate: Isolate = isolate,
    find: Find = find_included,
    resolve: ResolveImages = resolve_images,
    loads: bool = False,
) -> CheckedText:
    """Parse a configuration, and check its sound parts against the host, if there is one: everything at once.

    Problems and warnings are in the order of the lines. Raises ConfigError if no part of the text is usable. For
    `runs_here` see `unmet_requirements`; `privileges` returns those of the service, `isolate` the isolation in force,
    `find` the files that the text includes, `resolve` the configuration with its images (`platform.images`).

    `loads`: images that are missing are loaded, and the configuration is checked again with them. That may take
    minutes and much space on the disk, so nothing is loaded for a configuration that has a problem anyway.
    """
    parsed = parse_sound_parts(text, path, find)
    isolation = None if host is None else isolate(parsed.config.supervisor, host)

    def check(resolved: tuple[Config, dict[str, str]]) -> CheckedText:
        return _check_parsed(parsed, *resolved, isolation, privileges, runs_here)

    checked = check(resolve(parsed.config))
    if loads and not checked.problems and any(reason == IMAGE_REASON for _, reason in checked.warnings):
        return check(resolve(parsed.config, loads=True))
    return checked


def _check_parsed(
    parsed: Parsed,
    config: Config,
    without_image: Mapping[str, str],
    isolation: Isolation | None,
    privileges: Callable[[], Privileges],
    runs_here: bool,
) -> CheckedText:
    """Check a configuration whose images are resolved. `without_image`: why workloads have none, by name."""
    problems, positions = [*parsed.problems], parsed.positions
    warnings: list[tuple[Problem, str]] = [
        (positions.problem(("workload", name, "root", "image"), reason), IMAGE_REASON)
        for name, reason in without_image.items()
    ]
    if isolation is not None:
        tolerated = AUTO_REASON if isolation.mode == "auto" else ""
        config, requests = without_namespaces(config, positions, isolation.missing)
        if CGROUPS in isolation.missing:
            requests += cgroup_findings(config, isolation.missing[CGROUPS])
        own = privileges()
        config, unsupported = without_unsupported(config, security_support(own, isolation.missing.get(CGROUPS)))
        config, unlimited = _without_profile_limits(config, isolation, runs_here)
        unsupported += unlimited
        unmet = unmet_requirements(config, positions, isolation.host, own, runs_here=runs_here, tolerated=tolerated)
        for problem, warning in (
            *_unsupported_security(
                config,
                positions,
                unsupported,
                own,
                runs_here=runs_here,
                has_namespaces=NAMESPACES not in isolation.missing,
            ),
            *(
                (positions.problem(finding.path, finding.message), "" if finding.is_refused else tolerated)
                for finding in requests
            ),
            *unmet,
        ):
            if warning:
                warnings.append((problem, warning))
            else:
                problems.append(problem)
        if tolerated:
            config = without_requirements(config, has_cgroups=CGROUPS not in isolation.missing)
    return CheckedText(
        config,
        sort_problems(problems),
        sort_warnings(warnings),
        positions,
        isolation,
    )


def _without_profile_limits(config: Config, isolation: Isolation, runs_here: bool) -> tuple[Config, list[Unsupported]]:
    """Return the configuration without the limits of profiles that the host cannot enforce, and these.

    If there are no cgroups at all, or only the present cgroup is the reason, that is reported by itself.
    """
    reasons: dict[str, str] = {}
    host = isolation.host
    for key in PROFILE_LIMITS:
        problem = host.check_key(key)
        if problem is not None:
            elsewhere = not runs_here and host.tree_obstacle and _is_about_this_cgroup(problem, host)
            is_known = elsewhere or CGROUPS in isolation.missing
            reasons[key] = "" if is_known else f"{problem.reason}; {problem.remedy}"
    if not reasons:
        return config, []
    workloads, unsupported = {}, []
    for name, workload in config.workloads.items():
        missing = workload.resources.of_profile & reasons.keys()
        unsupported += [Unsupported(("workload", name, "resources", key), reasons[key], False) for key in missing]
        lifted: dict[str, Any] = dict.fromkeys(missing)
        resources = attrs.evolve(workload.resources, **lifted, of_profile=workload.resources.of_profile - missing)
        workloads[name] = attrs.evolve(workload, resources=resources)
    return attrs.evolve(config, workloads=workloads), [item for item in unsupported if item.message]


def _unsupported_security(
    config: Config,
    positions: Positions,
    items: list[Unsupported],
    own: Privileges,
    *,
    runs_here: bool,
    has_namespaces: bool,
) -> Iterator[tuple[Problem, str]]:
    """Yield the items of `security` that cannot be provided: each that a key asks for, and the others by reason.

    Not reported are items of a profile that need a mount namespace if the isolation has none, which is reported itself,
    and those that would refuse nothing to a service without capabilities.
    """
    for item in items:
        if item.is_refused:
            yield positions.problem(item.path, item.message), "" if runs_here else OTHER_HIERARCHY
    keys: dict[str, list[str]] = {}
    for key, message in degraded(items).items():
        if (has_namespaces or CHECKS.get(key) is not needs_mounts) and (own.capabilities or key not in FOR_PRIVILEGED):
            keys.setdefault(message, []).append(key)
    for message, same in keys.items():
        verb = "has" if len(same) == 1 else "have"
        yield Problem(config.path, 0, "", f"security: {', '.join(same)} {verb} no effect: {message}"), PROFILE_REASON


def unmet_requirements(
    config: Config,
    positions: Positions,
    host: Host,
    privileges: Privileges,
    *,
    runs_here: bool = True,
    tolerated: str = "",
) -> Iterator[tuple[Problem, str]]:
    """Yield every problem with its line, and why it is only a warning; "" if it is an error.

    `runs_here`: the service will run in the cgroup of this process. Otherwise a problem of this cgroup (of a login
    session, for example) or of this user is a warning; if no cgroup can be made at all, there is one warning for the
    whole file. `tolerated`: why a missing limit, or file of a rule, is a warning; "" if it is an error.
    """
    if not runs_here:
        for obstacle in _obstacles(config, host):
            yield Problem(config.path, 0, "", f"could not be run from here: {obstacle}"), OTHER_HIERARCHY
    if too_many := descriptor_shortage(config, host):
        yield positions.problem(("workload",), too_many), "" if runs_here else OTHER_HIERARCHY
    for keys, message in _untrusted_log_places(config):
        yield positions.problem(keys, message), "" if runs_here else OTHER_HIERARCHY
    for workload in config.workloads.values():
        around = host.group_limits(group.resources for group in config.enclosing_groups(workload))
        path = ("workload", workload.name)
        found: dict[_Finding, None] = {}  # instances that differ may have the same problem
        for _, variant in workload.each_variant():
            found |= dict.fromkeys(
                (
                    *_limit_findings(variant.resources, ("resources",), around, host, runs_here, tolerated),
                    *_rule_findings(variant.policy, host, _optional(variant.resources, tolerated), runs_here),
                    *_missing_privileges(variant, privileges, runs_here),
                    *_unusable_networks(variant, config.network, runs_here),
                    *_unknown_users(variant),
                    *_unknown_time_zones(variant, runs_here),
                    *_paths_without_events(variant),
                    *([] if runs_here else _missing_files(variant)),
                    *([] if runs_here else _wrong_environment_files(variant)),
                )
            )
        for keys, message, warning in found:
            yield positions.problem((*path, *keys), message), warning
    for group in config.groups.values():
        around = host.group_limits(outer.resources for outer in config.enclosing_groups(group))
        for keys, message, warning in (
            *_limit_findings(group.resources, (), around, host, runs_here, tolerated),
            *_rule_findings(group.policy, host, _optional(group, tolerated), runs_here),
        ):
            yield positions.problem(("group", group.name, *keys), message), warning
    for keys, message, warning in _rule_findings(config.host.policy, host, tolerated, runs_here):
        yield positions.problem(("host", *keys), message), warning


def record_fields(problem: Problem) -> dict[str, str]:
    """Return the record fields that name the workload or group of a problem."""
    kind, name, *_ = [*problem.key.split("."), ""]
    if kind in ("", "template", "defaults"):  # about the file, or several workloads
        return {}
    return {"workload": name} if kind == "workload" else {"group": f"group/{name}" if kind == "group" else kind}


def supported_rules(
    rules: Iterable[_RuleT], cgroup: Cgroup, *, owner: str, is_required: bool, report: Callable[[str], None]
) -> tuple[_RuleT, ...]:
    """Return the rules that this host can evaluate in this cgroup; call `report` with a message about each other one.

    Raises CgroupError about the first of the others if `is_required`. `owner` is put before the name of the rule there.
    """
    supported = []
    for rule in rules:
        reason = uncounted_reason(rule, cgroup)
        if not reason:
            supported.append(rule)
        elif is_required:
            raise CgroupError(f"{owner}{rule.name} (line {rule.line}): {reason}")
        else:
            report(f"{rule.name}: {reason}")
    return tuple(supported)


def uncounted_reason(rule: Rule, cgroup: Cgroup) -> str:
    """Return why a rule cannot be evaluated in this cgroup: the file or key that it reads is missing; or ""."""
    try:
        for atom in rule.when.atoms:
            if atom.file not in NOT_FILES and not atom.is_present_in(cgroup.read_cached(atom.file)):
                return _uncounted(atom)
    except CgroupError as error:
        return str(error)
    return ""


def _uncounted(atom: Atom) -> str:
    return (
        f"this host does not count {atom.key} in {atom.file}; write another value, or run it where cgroup v2 has the "
        "controller"
    )


_Finding = tuple[tuple[str | int, ...], str, str]


def _limit_findings(
    resources: Resources,
    path: tuple[str, ...],
    ancestor_limits: AncestorLimits,
    host: Host,
    runs_here: bool,
    tolerated: str,
) -> Iterator[_Finding]:
    optional = _optional(resources, tolerated)
    for problem in host.check_resources(resources, ancestor_limits):
        elsewhere = not runs_here and _is_about_this_cgroup(problem, host)
        if not (elsewhere and host.tree_obstacle):  # which is reported once for the whole file
            yield (
                (*path, problem.key),
                f"{problem.reason}; {problem.remedy}",
                optional or (OTHER_HIERARCHY if elsewhere else ""),
            )


def _optional(resources: Resources, tolerated: str) -> str:
    """Return why what is missing is only a warning; "" if it is an error."""
    return tolerated if resources.required else OPTIONAL_REASON


def _rule_findings(rules: Sequence[Rule], host: Host, optional: str, runs_here: bool) -> Iterator[_Finding]:
    for i, rule in enumerate(rules):
        for file in dict.fromkeys(atom.file for atom in rule.when.atoms):
            if file in NOT_FILES:
                continue
            location = host.locate(file)
            if not isinstance(location, HostProblem):
                continue
            elsewhere = not runs_here and _is_about_this_cgroup(location, host)
            if not (elsewhere and host.tree_obstacle):
                warning = optional or (OTHER_HIERARCHY if elsewhere else "")
                yield ("policy", i, "when"), f"no {file} here: {location.reason}; {location.remedy}", warning
        for atom in rule.when.atoms:
            values = None if atom.file in NOT_FILES else host.sample(atom.file)
            if values is not None and not atom.is_present_in(values):
                yield ("policy", i, "when"), _uncounted(atom), optional


def _missing_privileges(workload: WorkloadConfig, privileges: Privileges, runs_here: bool) -> Iterator[_Finding]:
    for key, message in missing_privileges(workload, privileges):
        yield tuple(key.split(".")), message, "" if runs_here else OTHER_HIERARCHY


def _unusable_networks(workload: WorkloadConfig, settings: NetworksConfig, runs_here: bool) -> Iterator[_Finding]:
    if not (name := workload.namespaces.cni_network):
        return
    from nsupervisor.core.cni import NetworkError  # few configurations have networks
    from nsupervisor.service.platform.cni_files import find_bandwidth_obstacle, find_obstacle, read_network

    elsewhere = "" if runs_here else OTHER_HIERARCHY
    try:
        network = read_network(name, settings.config_directory)
    except NetworkError as error:
        yield ("namespaces", "network"), str(error), elsewhere
        return
    if obstacle := find_obstacle(network, settings.allow_forwarding):
        yield ("namespaces", "network"), obstacle, elsewhere
    if workload.network.publish and not network.has_capability("portMappings"):
        text = f'the network {name} publishes no ports: give a plugin, such as portmap, the capability "portMappings"'
        yield ("network", "publish"), text, ""
    if workload.network.bandwidth_max is not None and (obstacle := find_bandwidth_obstacle(network)):
        yield ("network", "bandwidth_max"), obstacle, elsewhere


def _unknown_time_zones(workload: WorkloadConfig, runs_here: bool) -> Iterator[_Finding]:
    if not workload.timer.has_wall_times:
        return
    from nsupervisor.core.timers.schedule import make_schedule  # few configurations have timers
    from nsupervisor.service.platform.timer_zones import find_zone

    try:
        make_schedule(workload.timer, workload.name, "", lambda name: find_zone(name or "UTC"))
    except LookupError as error:
        yield ("timer",), str(error.args[0]), "" if runs_here else OTHER_HIERARCHY


def _paths_without_events(workload: WorkloadConfig) -> Iterator[_Finding]:
    """Yield a warning for each path on a file system that reports no changes of others."""
    if not workload.paths:
        return
    from nsupervisor.service.platform.file_systems import file_system_without_events  # few workloads have paths

    for number, path in enumerate(workload.paths):
        if kind := file_system_without_events(path.path):
            text = f"{quoted(path.path)} is on {kind}, which does not report changes that others make (inotify(7)): "
            yield ("paths", number, path.condition), f"{text}write a path on a local disk, or a timer", NO_EVENTS_REASON


def _unknown_users(workload: WorkloadConfig) -> Iterator[_Finding]:
    place = workload.root.path
    if place is None and workload.root.image is not None:
        return  # it is not loaded, which is reported for itself
    if place is not None and (isinstance(workload.root.overlay, str) or not os.path.isdir(place)):
        return  # the upper layer may have them, or the root is missing, which is reported for itself
    root = None if place is None else {"path": place, "overlay": None}
    for key, user, groups in (
        ("user", workload.user, ()),
        ("supplementary_groups", None, workload.supplementary_groups),
    ):
        try:
            if root is None:
                resolve_user(user, groups)
            else:
                resolve_in_root(root, user, groups)
        except IdentityError as error:
            # A program that may write to its root may also remove its users: the others start nevertheless.
            yield (key,), str(error), "" if root is None else NOT_YET_PRESENT


def _untrusted_log_places(config: Config) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield each key that names a place for logs of which another user than the service's controls a part."""
    settings = config.supervisor
    places: dict[tuple[tuple[str | int, ...], str], None] = {}
    if isinstance(settings.log_output, str) and settings.log_output.startswith("/"):
        places[("supervisor", "log_output"), os.path.dirname(settings.log_output)] = None
    for _, workload in config.each_variant():
        for key in set(workload.log.file_keys().values()):
            if key is None:
                places[("supervisor", "log_directory"), settings.log_directory] = None
            else:
                path = ("workload", workload.name, "log", key)
                places[path, os.path.dirname(getattr(workload.log, key))] = None
    reasons = {directory: untrusted_part(directory, "write another path") for _, directory in places}
    for keys, directory in places:
        if reasons[directory]:
            yield keys, f"no log can be written there: {reasons[directory]}"


def _missing_files(workload: WorkloadConfig) -> Iterator[_Finding]:
    """Yield a problem for each file that the workload names and this host does not have."""
    named: list[tuple[tuple[str | int, ...], str]] = [
        *((("environment_file", i), path) for i, path in enumerate(workload.environment_file) if path[:1] != "-"),
        *(
            (("policy", i, "webhook_file"), rule.webhook_file)
            for i, rule in enumerate(workload.policy)
            if rule.webhook_file
        ),
    ]
    named += [(("credentials", name), path) for name, path in workload.credentials.items()]
    if workload.root.image is not None:
        yield from _unmapped_image(workload)
    if workload.root.path is not None:
        yield from _missing_in_root(workload, workload.root.path)
    elif not workload.mounts and workload.root.image is None:  # mounts may provide the other files
        named += [(("command",), workload.command[0]), (("working_directory",), workload.working_directory)]
        if "/" not in workload.command[0] and _is_program_missing(workload):
            message = f"there is no program {quoted(workload.command[0])} in PATH; install it, or write its path"
            yield ("command",), message, NOT_YET_PRESENT
    for key, path in named:
        try:
            if path.startswith("/"):
                os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            yield key, f"there is no {quoted(path)} on this host; install it, or write another path", NOT_YET_PRESENT
        except OSError:  # this user may not see the file
            pass


def _unmapped_image(workload: WorkloadConfig) -> Iterator[_Finding]:
    """Yield a problem if the files of an image belong to users that the user namespace does not have."""
    mappings = workload.user_namespace.uid_mappings
    if workload.namespaces.user and os.geteuid() == 0 and not (mappings and mappings[0].host_id == 0):
        message = (
            "is owned by users of the host, which a user namespace with ids of its own does not have; leave out "
            "namespaces.user, or unpack the image into a directory of these ids, and write root.path"
        )
        yield ("root", "image"), message, ""


def _missing_in_root(workload: WorkloadConfig, root: str) -> Iterator[_Finding]:
    """Yield a problem for a root that is missing, or else for what is missing in it."""
    if kernel_version() < MOUNT_SETATTR:
        yield ("root",), "a root file system of its own needs Linux 5.12; leave it out, or use a newer kernel", ""
    elif not os.path.lexists(root):
        message = f"there is no {quoted(root)} on this host; make it, or write another path"
        yield ("root", "path"), message, NOT_YET_PRESENT
    elif not os.path.isdir(root):
        yield ("root", "path"), f"{quoted(root)} is not a directory; write one with a root file system", ""
    elif not workload.mounts and not isinstance(workload.root.overlay, str):  # which may provide the files
        named = [("working_directory", workload.working_directory)]
        if "/" in workload.command[0]:
            named.insert(0, ("command", os.path.join(workload.working_directory, workload.command[0])))
        for key, path in named:
            try:
                find_in_root(root, path)
            except (FileNotFoundError, NotADirectoryError):
                message = f"there is no {quoted(path)} in the root {root}; install it there, or write another path"
                yield (key,), message, NOT_YET_PRESENT
            except OSError:  # this user may not see the file
                pass


def _wrong_environment_files(workload: WorkloadConfig) -> Iterator[_Finding]:
    """Yield each mistake in the environment files that this user may read."""
    for number, path in enumerate(workload.environment_file):
        try:
            if os.access(path.removeprefix("-"), os.R_OK):
                load_environment(path, open_for_reading)
        except ConfigError as error:
            for problem in error.problems:
                yield ("environment_file", number), str(problem), ""


def _is_program_missing(workload: WorkloadConfig) -> bool:
    """Return whether no directory in the program's PATH has it. False if this user may not look into one of them."""
    try:
        passed = passed_variables(workload, os.environ, ("PATH",))
        variables = {"PATH": PATH} | passed | environment_file_variables(workload) | dict(workload.environment)
        for directory in variables["PATH"].split(":"):
            try:
                os.stat(os.path.join(workload.working_directory, directory, workload.command[0]))
                return False
            except (FileNotFoundError, NotADirectoryError):
                continue
    except (OSError, ConfigError):  # an environment file that cannot be read is reported by itself
        return False
    return True


def _is_about_this_cgroup(problem: HostProblem, host: Host) -> bool:
    """Return whether the host has the controller, but this cgroup cannot use it."""
    controller = host.controllers.get(problem.key.replace(".", "_").partition("_")[0])
    return controller is not None and controller.obstacle == (problem.reason, problem.remedy)


def _obstacles(config: Config, host: Host) -> Iterator[str]:
    """Yield what prevents this user from running any configuration here."""
    if host.tree_obstacle:
        yield "; ".join(host.tree_obstacle)
    directory = config.supervisor.runtime_directory
    while not os.path.exists(directory):
        directory = os.path.dirname(directory)
    if not os.access(directory, os.W_OK | os.X_OK):
        yield explain_permission_error(PermissionError(errno.EACCES, os.strerror(errno.EACCES), directory), config)
