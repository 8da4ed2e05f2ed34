"""Load TOML text into the model, and report every problem of a file at once, each with its line.

The loader walks the model's declarations (`key_slots`) and the file's tables side by side. It reports a wrong value and
goes on with its default; if anything was reported, it returns no Config.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from attrs import NOTHING, Attribute, evolve, fields

from nsupervisor.config import model
from nsupervisor.config.checks import find_conflicts
from nsupervisor.config.compose import Composed, CompositionProblem, Find, compose, read_documents
from nsupervisor.config.documents import parse_document
from nsupervisor.config.expansion import Expanded, Instance
from nsupervisor.config.files import find_included, read_text
from nsupervisor.config.kinds import (
    WORKLOAD_NAME,
    Choice,
    Key,
    Kind,
    ListOf,
    MapOf,
    PrefixedKeys,
    Scalar,
    TableOf,
    TablesOf,
)
from nsupervisor.config.positions import KeyPath, Positions, scan_positions
from nsupervisor.config.problems import ConfigError, Problem
from nsupervisor.config.quoting import did_you_mean, format_path, quoted
from nsupervisor.config.security import DYNAMIC_USER_KEYS, PROFILE_LIMITS
from nsupervisor.config.variants import Differences, find_differences

__all__ = ["ConfigError", "Problem", "Slot", "key_slots", "load", "parse"]

_FAILED = object()
PROBLEMS_LIMIT = 1000
"""Problems that are reported of one file; finding a similar key for each takes time."""

MAX_NAMES = 50
"""Keys of a table that a message lists."""


class Parsed(NamedTuple):
    """The result of parsing a configuration with problems."""

    config: model.Config
    """The whole configuration, or its sound parts: those without a problem."""
    problems: list[Problem]
    positions: Positions


def load(path: str | os.PathLike[str]) -> model.Config:
    """Load the configuration of a file; ConfigError lists every problem."""
    return parse(read_text(path), os.fspath(path))


def parse(text: str, path: str, find: Find = find_included) -> model.Config:
    """Parse a configuration; ConfigError lists every problem.

    path: the file name for messages and `Config.path`. find: returns the files that it includes.
    """
    config, problems, _ = parse_sound_parts(text, path, find)
    if problems:
        raise ConfigError(problems)
    return config


def parse_sound_parts(
    text: str,
    path: str,
    find: Find = find_included,
    positions: Positions | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Parsed:
    """Parse a configuration; return its sound parts, and every problem.

    The sound parts lack each workload, group and table that has a problem, so that more can be checked of the others.
    Raises ConfigError if no part is usable: a text is not TOML, or has too many problems. positions: those of `text`,
    if known already; environment: the values of `{env.NAME}`; for the other arguments see `parse`.
    """
    composed = compose(read_documents(parse_document(text, path, positions), find), environment)
    loader = _Loader(path, composed.positions, composed.problems, composed)
    config = loader.load_object(model.Config, composed.table, (), path=path)
    loader.check_templates(composed.unused_templates)
    loader.check(config)
    assert isinstance(config, model.Config)
    return Parsed(loader.sound_parts(config) if loader.problems else config, loader.problems, composed.positions)


def load_table(cls: type, table: dict[str, Any]) -> Any:
    """Load an object of a model class from a table without a file; ConfigError lists every problem by key."""
    loader = _Loader("", scan_positions(""))
    result = loader.load_object(cls, table, ())
    if loader.problems:
        raise ConfigError(problem._replace(line=0) for problem in loader.problems)
    return result


def load_scalar(kind: Scalar | Choice, value: Any) -> Any:
    """Load a single value. A text that had a placeholder may stand for a number, true or false. Raises ValueError."""
    try:
        return kind.load(value)
    except ValueError:
        if isinstance(value, Expanded) and (literal := value.literal) is not None:
            return kind.load(literal)
        raise


class Slot(NamedTuple):
    """The destination of a TOML key's value: an attribute, or a member of an attribute's dict."""

    attribute: str
    kind: Kind
    doc: str
    member: str | None
    is_required: bool
    default: Any
    is_live: bool = False
    is_secret: bool = False

    def value_in(self, owner: Any) -> Any:
        """Return the value from an object of the class; None for a member that is missing."""
        value = getattr(owner, self.attribute)
        return value if self.member is None else value.get(self.member)


@cache
def key_slots(cls: type) -> dict[str, Slot]:
    """Return the TOML keys of a model class, with their slots."""
    slots: dict[str, Slot] = {}
    attribute: Attribute[Any]
    for attribute in fields(cls):
        declared: Key | None = attribute.metadata.get("key")
        if declared is None:
            continue
        default = attribute.default
        if isinstance(declared.kind, PrefixedKeys):
            for member, kind in declared.kind.items.items():
                name = declared.kind.prefix + member
                slots[name] = Slot(
                    attribute.name, kind, declared.doc, member, False, NOTHING, declared.is_live, declared.is_secret
                )
            continue
        name = declared.toml or attribute.name.rstrip("_")
        required = default is NOTHING
        slots[name] = Slot(
            attribute.name, declared.kind, declared.doc, None, required, default, declared.is_live, declared.is_secret
        )
    return slots


class _Loader:
    def __init__(
        self,
        path: str,
        positions: Positions,
        found: Iterable[CompositionProblem] = (),
        composed: Composed | None = None,
    ) -> None:
        self.path = path
        self.composed = composed
        self.positions = positions
        self.problems: list[Problem] = []
        self.failed: set[KeyPath] = set()
        self._reported: set[Problem] = set()
        for problem, concerned in found:
            self.add(problem, concerned)

    def report(self, path: KeyPath, message: str) -> Any:
        """Report a problem, unless one of the value is known; returns the marker of a missing value."""
        if path in self.failed:
            return _FAILED
        return self.add(self.positions.problem(path, message), path)

    def add(self, problem: Problem, path: KeyPath) -> Any:
        """Add a problem that concerns `path`, unless it is known: several workloads may inherit one value."""
        self.failed.add(path)
        if problem in self._reported:
            return _FAILED
        self._reported.add(problem)
        self.problems.append(problem)
        if len(self.problems) >= PROBLEMS_LIMIT:
            file = self.problems[-1].path
            last = max(problem.line for problem in self.problems if problem.path == file)
            self.problems.append(Problem(file, last, "", "there may be more problems; correct these first"))
            raise ConfigError(self.problems)
        return _FAILED

    def check_templates(self, templates: Mapping[str, dict[str, Any]]) -> None:
        """Report the problems of templates that no workload uses."""
        for name, table in templates.items():
            self.load_object(model.WorkloadConfig, {"command": ["true"], **table}, ("template", name), name=name)

    def check(self, config: Any) -> None:
        """Report all conflicts, except those that involve a value already reported."""
        for conflict in find_conflicts(config):
            if not any(self.involves_failure(path) for path in (conflict.path, *conflict.involved)):
                self.report(conflict.path, conflict.message + self._lines(conflict.shown))

    def _lines(self, paths: Sequence[KeyPath]) -> str:
        """Return the lines of keys, "lines 3, 9", with the names of files that are not that of the last key."""
        if not paths:
            return ""
        *_, (own, _, _) = places = [self.positions.locate(path) for path in paths]
        return "lines " + ", ".join(f"{line}" if file == own else f"{file}:{line}" for file, line, _ in places)

    def sound_parts(self, config: model.Config) -> model.Config:
        """Return the configuration without the workloads, groups and tables that have a problem."""

        def is_sound(*path: str) -> bool:
            return not self.involves_failure(path)

        return model.Config(
            path=config.path,
            supervisor=config.supervisor if is_sound("supervisor") else model.SupervisorConfig(),
            workloads={name: table for name, table in config.workloads.items() if is_sound("workload", name)},
            groups={name: table for name, table in config.groups.items() if is_sound("group", name)},
            host=config.host if is_sound("host") else model.HostConfig(),
            network=config.network if is_sound("network") else model.NetworksConfig(),
        )

    def involves_failure(self, path: KeyPath) -> bool:
        """Check whether the value at `path`, one around it, or one in it was reported."""
        return any(path[: len(failed)] == failed or failed[: len(path)] == path for failed in self.failed)

    def load_object(self, cls: type, table: dict[str, Any], path: KeyPath, /, **filled: Any) -> Any:
        """Load an instance of a model class; a required key that is missing or wrong becomes None."""
        slots = key_slots(cls)
        values = dict(filled)
        for name, value in table.items():
            slot = slots.get(name)
            if slot is None:
                self.report_unknown(cls, name, path)
                continue
            result = self.load_value(slot.kind, value, (*path, name), slot.is_secret)
            if result is _FAILED:
                continue
            if slot.member is None:
                values[slot.attribute] = result
            else:
                values.setdefault(slot.attribute, {})[slot.member] = result
        for name, slot in slots.items():
            if slot.is_required and slot.attribute not in values:
                if cls is model.WorkloadConfig and name == "command" and _has_image(table):
                    values[slot.attribute] = ()  # the image's
                    continue
                if name not in table:
                    self.report((*path, name), f"is missing; write {name} = … ({slot.doc})")
                values[slot.attribute] = None
        return cls(**values)

    def report_unknown(self, cls: type, name: str, path: KeyPath) -> None:
        """Report a key that the model does not have, with the most likely reason."""
        slots = key_slots(cls)
        table = f"[{format_path(path)}]" if path else "the file"
        if any(name in model.PLANNED_KEYS.get(base, ()) for base in cls.__mro__):
            message = "is not available yet in this version; remove it"
        elif elsewhere := [keys[name] for base in cls.__mro__ if name in (keys := model.KEYS_ELSEWHERE.get(base, {}))]:
            message = elsewhere[0]
        elif nearest := did_you_mean(name, slots):
            message = f"is not a key of {table}{nearest}".replace(", did", "; did")
        elif owner := _subtable_with(slots, name):
            message = f"is not a key of {table}; move it into [{format_path((*path, *owner))}]"
        else:
            known = (
                [*slots] if len(slots) <= MAX_NAMES else [*list(slots)[:MAX_NAMES], "… (nsupervisor schema lists all)"]
            )
            message = f"is not a key of {table}; remove it, or write one of {', '.join(known)}"
        self.report((*path, name), message)

    def load_value(self, kind: Kind, value: Any, path: KeyPath, is_secret: bool = False) -> Any:
        """Load a value of any kind; return _FAILED if it was reported. A secret is not quoted in the report."""
        match kind:
            case Scalar() | Choice():
                try:
                    return load_scalar(kind, value)
                except ValueError as error:
                    is_secret = is_secret or (isinstance(kind, Scalar) and kind.is_secret)
                    return self.report(path, f"{_shown(value, is_secret)} {error}")
            case ListOf():
                return self.load_list(kind, value, path)
            case MapOf():
                return self.load_map(kind, value, path, is_secret)
            case TableOf(cls, named):
                if not isinstance(value, dict):
                    instead = f"[{format_path(path)}{'.NAME' if named else ''}]"
                    return self.report(path, f"{quoted(value)} is not a table; write {instead} and its keys below it")
                return self.load_named(cls, value, path) if named else self.load_object(cls, value, path)
            case TablesOf():
                return self.load_tables(kind, value, path)
            case PrefixedKeys():  # key_slots expands these keys
                raise AssertionError(path)

    def load_list(self, kind: ListOf, value: Any, path: KeyPath) -> Any:
        if not isinstance(value, list):
            instead = "write it in brackets"
            if isinstance(value, str):
                instead = f"write {kind.string_hint(value) if kind.string_hint else f'[{quoted(value)}]'}"
            return self.report(path, f"{quoted(value)} is not a list; {instead}")
        if len(value) < kind.minimum:
            return self.report(path, f"the list is empty; {kind.empty_hint}")
        items = [self.load_value(kind.item, item, (*path, number)) for number, item in enumerate(value)]
        return _FAILED if any(item is _FAILED for item in items) else tuple(items)

    def load_map(self, kind: MapOf, value: Any, path: KeyPath, is_secret: bool = False) -> Any:
        if not isinstance(value, dict):
            return self.report(path, f"{_shown(value, is_secret)} is not a table; write {{ NAME = VALUE, … }}")
        result: dict[str, Any] = {}
        for name, item in value.items():
            if kind.names and name not in kind.names:
                nearest = did_you_mean(name, kind.names)
                self.report((*path, name), f"is not a key here{nearest}; write one of {', '.join(kind.names)}")
            elif kind.key is None or self.load_value(kind.key, name, (*path, name)) is not _FAILED:
                result[name] = self.load_value(kind.kind_of(name), item, (*path, name), is_secret)
        return result

    def load_tables(self, kind: TablesOf, value: Any, path: KeyPath) -> Any:
        if isinstance(value, dict):
            return self.report(path, f"is a single table; write [[{format_path(path)}]], with two brackets")
        if not isinstance(value, list):
            return self.report(path, f"{quoted(value)} is not a list of tables; write [[{format_path(path)}]]")
        items = []
        for number, item in enumerate(value):
            item_path = (*path, number)
            if not isinstance(item, dict):
                self.report(item_path, f"{quoted(item)} is not a table; write {{ KEY = VALUE, … }}")
                continue
            filled = {}
            if issubclass(kind.cls, model.Rule):
                is_workload_rule = kind.cls is model.Rule
                filled = {
                    "name": format_path(item_path[-2:] if is_workload_rule else item_path),
                    "line": self.line_of_rule(item_path),
                }
            items.append(self.load_object(kind.cls, item, item_path, **filled))
        return tuple(items)

    def line_of_rule(self, path: KeyPath) -> int:
        """Return the line of a rule in the main file; 0 if another file has it, as records name only the main one."""
        location = self.positions.locate(path)
        return location.line if location.path == self.positions.path else 0

    def load_named(self, cls: type, value: dict[str, Any], path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, table in value.items():
            table_path = (*path, name)
            if self.load_value(WORKLOAD_NAME, name, table_path) is _FAILED:
                continue
            if not isinstance(table, dict):
                self.report(
                    table_path,
                    f"{quoted(table)} is not a table; write [{format_path(table_path)}] and its keys below it",
                )
                continue
            result[name] = self.load_object(cls, table, table_path, name=name)
            if cls is model.WorkloadConfig:
                result[name] = self.with_variants(_with_profile(result[name], table), table_path)
        return result

    def with_variants(self, workload: model.WorkloadConfig, path: KeyPath) -> model.WorkloadConfig:
        """Return the workload with what distinguishes its instances."""
        if self.composed is None or (expand := self.composed.expanders.get(workload.name)) is None:
            return workload
        variants = {}
        for instance, table in self.composed.variants.get(workload.name, {}).items():
            loaded = self.load_object(model.WorkloadConfig, table, path, name=workload.name)
            if differences := find_differences(workload, _with_profile(loaded, table)):
                variants[instance] = differences
        file, positions = self.path, self.positions

        def differ(instance: Instance) -> Differences:
            loader = _Loader(file, positions)
            loaded = loader.load_object(model.WorkloadConfig, table := expand(instance), path, name=workload.name)
            if loader.problems:
                raise ConfigError(loader.problems)
            return find_differences(workload, _with_profile(loaded, table))

        return evolve(workload, variants=variants, differ=differ)


def _with_profile(workload: model.WorkloadConfig, table: dict[str, Any]) -> model.WorkloadConfig:
    """Return a workload with what its profile sets in other tables than `security`, unless the file has these keys."""
    workload = _with_dynamic_user(_with_strict_namespaces(workload, table))
    written = table.get("resources", {})
    if workload.security.profile == "none" or not isinstance(written, dict):
        return workload
    limits: dict[str, Any] = {key: value for key, value in PROFILE_LIMITS.items() if key not in written}
    return evolve(workload, resources=evolve(workload.resources, **limits, of_profile=frozenset(limits)))


def _with_strict_namespaces(workload: model.WorkloadConfig, table: dict[str, Any]) -> model.WorkloadConfig:
    """Return a workload with the namespaces that the profile "strict" makes unless the file has their keys."""
    written = table.get("namespaces", {})
    if workload.security.profile != "strict" or not isinstance(written, dict):
        return workload
    kinds_ = ("network",) if workload.dynamic_user else ("user", "network")
    wanted: dict[str, Any] = {kind: True for kind in kinds_ if kind not in written}
    return evolve(workload, namespaces=evolve(workload.namespaces, **wanted))


def _with_dynamic_user(workload: model.WorkloadConfig) -> model.WorkloadConfig:
    """Return a workload with what `dynamic_user` sets of its security, unless the file or its profile has as much."""
    if not workload.dynamic_user:
        return workload
    security = workload.security
    wanted = {key: value for key, value in DYNAMIC_USER_KEYS.items() if getattr(security, key) is None}
    if security.profile == "strict":
        wanted.pop("protect_home", None)  # it hides them
    return evolve(workload, security=evolve(security, **wanted))


def _shown(value: Any, is_secret: bool) -> str:
    return "the value" if is_secret else quoted(value)


def _subtable_with(slots: dict[str, Slot], name: str) -> tuple[str, ...]:
    """Find the sub-table that has such a key."""
    for key, slot in slots.items():
        if isinstance(slot.kind, TableOf) and name in key_slots(slot.kind.cls):
            return (key, "NAME") if slot.kind.is_named else (key,)
    return ()


def with_literals(kind: Kind, value: Any) -> Any:
    """Return a value with numbers, true and false in place of the texts that had placeholders and stand for them."""
    match kind, value:
        case TableOf(cls, is_named), dict():
            if is_named:
                return {name: with_literals(TableOf(cls), table) for name, table in value.items()}
            slots = key_slots(cls)
            return {key: with_literals(slots[key].kind, item) if key in slots else item for key, item in value.items()}
        case TablesOf(cls), list():
            return [with_literals(TableOf(cls), item) for item in value]
        case ListOf(item=item), list():
            return [with_literals(item, element) for element in value]
        case MapOf(), dict():
            return {name: with_literals(kind.kind_of(name), item) for name, item in value.items()}
        case ((Scalar() | Choice()), Expanded()):
            try:
                kind.load(value)
            except ValueError:
                return value.literal
            return str(value)
    return value


def equal_settings(cls: type, table: Any, other_table: Any) -> bool:
    """Check whether two tables have equal values for all keys; their positions in the file may differ."""
    return all(slot.value_in(table) == slot.value_in(other_table) for slot in key_slots(cls).values())


def _has_image(table: Mapping[str, Any]) -> bool:
    root = table.get("root")
    return "command" not in table and isinstance(root, dict) and "image" in root
