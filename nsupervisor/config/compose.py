"""Compose one configuration of several files, of defaults and of templates.

A workload is what its own table says, on top of the templates that it extends, on top of `[defaults.workload]`. A table
of a later file changes one of an earlier file if it says `override = true`. Everywhere the same rule merges two tables:
tables in them are merged key by key, and any other value, lists included, replaces the one below it.

The result is one table, as if one file had it, and the origin of each value, so that a problem names the file and the
line where the value is written. Pure, apart from the function that finds included files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from nsupervisor.config.documents import Document, parse_document
from nsupervisor.config.expansion import Expanded, Expander, Instance, Scope
from nsupervisor.config.files import MAX_FILE_SIZE, MAX_INCLUDED_FILES, IncludedFile, SourceFile, find_included
from nsupervisor.config.kinds import INSTANCES, VARIABLE_NAME, VARIABLE_VALUE, WORKLOAD_NAME
from nsupervisor.config.positions import ComposedPositions, KeyPath, Origin, Origins, Positions, find_origin
from nsupervisor.config.problems import ConfigError, Problem
from nsupervisor.config.quoting import did_you_mean, format_path, quoted

Find = Callable[[str], Sequence[SourceFile]]
"""Returns the files that a pattern names; ConfigError if one cannot be read."""

MAX_INCLUDE_DEPTH = 8
"""Most files between the main file and one that is included, itself counted."""
MAX_EXTENDS_DEPTH = 16
"""Most templates that a workload may inherit from, one through the other."""
MAX_DIFFERING_INSTANCES = 20_000
"""Most instances, of all workloads together, that have tables of their own."""
MAX_VALUES = 1_000_000
"""Most values of the composed workloads: a few lines can give a large table to thousands of workloads or instances."""

_FILE_KEYS = ("include", "defaults", "template", "var")
_TABLE_KEYS = ("extends", "override", "expand")
_NAMED = ("workload", "group", "template")
"""Top-level tables of tables that have names."""


class CompositionProblem(NamedTuple):
    """A problem, and the key path in the composed configuration that it concerns."""

    problem: Problem
    path: KeyPath


class Composed(NamedTuple):
    """A configuration after composition: a table as of a single file without any of the keys for composition."""

    table: dict[str, Any]
    positions: Positions
    problems: list[CompositionProblem]
    unused_templates: dict[str, dict[str, Any]]
    """By name: what the templates say that no workload extends."""
    variants: dict[str, dict[Instance, dict[str, Any]]]
    """By workload whose instances differ: the table of each instance."""
    expanders: dict[str, Callable[[Instance], dict[str, Any]]]
    """By workload whose instances differ, or would: returns the table of any instance."""


class Section(NamedTuple):
    """A table and where its values come from."""

    table: Any
    """The value of the key; not a dict only if the file is wrong, which the loader reports."""
    origins: Origins


# ---- files


def read_documents(main: Document, find: Find) -> list[Document]:
    """Return the main file and all that it includes, each after the one that includes it.

    Raises ConfigError with the problems of all includes, and of all files that are not TOML.
    """
    if "include" not in main.table:
        return [main]
    reader = _Reader(find)
    reader.add(main, (main.path,))
    if reader.problems:
        raise ConfigError(reader.problems)
    return reader.documents


class _Reader:
    def __init__(self, find: Find) -> None:
        self.find = find
        self.documents: list[Document] = []
        self.problems: list[Problem] = []
        self.size = 0
        self.included_by: dict[str, str] = {}

    def add(self, document: Document, chain: tuple[str, ...]) -> None:
        """Add a file and those that it includes. `chain`: the files from the main one to this one."""
        self.documents.append(document)
        patterns = document.table.get("include", [])
        if not isinstance(patterns, list):
            message = f'{quoted(patterns)} is not a list; write for example include = ["conf.d/*.toml"]'
            self.problems.append(document.positions.problem(("include",), message))
            return
        for number, pattern in enumerate(patterns):
            key: KeyPath = ("include", number)
            if not isinstance(pattern, str) or not pattern or "\0" in pattern:
                message = f'{quoted(pattern)} is not the path of a file; write for example "conf.d/*.toml"'
                self.problems.append(document.positions.problem(key, message))
                continue
            self.add_matching(os.path.join(os.path.dirname(document.path), pattern), document.positions, key, chain)

    def add_matching(self, pattern: str, positions: Positions, key: KeyPath, chain: tuple[str, ...]) -> None:
        try:
            files = self.find(pattern)
        except ConfigError as error:
            for problem in error.problems:
                message = f"{problem.path}: {problem.message}"
                self.problems.append(problem if problem.line else positions.problem(key, message))
            return
        for file in files:
            if (reason := self.refusal(file, chain)) is not None:
                self.problems.append(positions.problem(key, f"{file.path}: {reason}"))
                continue
            self.included_by[file.path] = positions.path
            self.size += len(file.text)
            try:
                document = parse_document(file.text, file.path)
            except ConfigError as error:
                self.problems += error.problems
                continue
            self.add(document, (*chain, file.path))

    def refusal(self, file: SourceFile, chain: tuple[str, ...]) -> str | None:
        """Return why a file may not be included here, or None."""
        if file.path in chain:
            return "would include itself; write a pattern that does not match it"
        if (by := self.included_by.get(file.path)) is not None:
            return f"is included already, by {by}; include it once"
        if len(chain) > MAX_INCLUDE_DEPTH:
            return f"is included through more than {MAX_INCLUDE_DEPTH} files; include it from the main file"
        if len(self.included_by) >= MAX_INCLUDED_FILES:
            return f"is one of more than {MAX_INCLUDED_FILES} files; include fewer"
        if self.size + len(file.text) > MAX_FILE_SIZE:
            return (
                f"all included files are larger than {MAX_FILE_SIZE // 2**20} MiB; divide them among several services"
            )
        return None


def read_included(text: str, path: str) -> list[IncludedFile]:
    """Read all files that a configuration includes, to send them. Raises ConfigError.

    What is wrong with the text itself is left to the receiver.
    """
    if "include" not in text:
        return []
    try:
        main = parse_document(text, path)
    except ConfigError:
        return []
    found: list[IncludedFile] = []

    def find(pattern: str) -> list[SourceFile]:
        files = find_included(pattern)
        found.extend(IncludedFile(pattern, *file) for file in files)
        return files

    read_documents(main, find)
    return found


# ---- composition


def compose(documents: Sequence[Document], environment: Mapping[str, str] = os.environ) -> Composed:
    """Compose the configuration of these files, of which the first is the main one.

    `environment`: the values of `{env.NAME}`.
    """
    main = documents[0]
    if len(documents) == 1 and not _needs_composition(main.table):
        return Composed(main.table, main.positions, [], {}, {}, {})
    composer = _Composer(main, environment)
    for document in documents:
        composer.add(document)
    return composer.compose()


def _needs_composition(table: dict[str, Any]) -> bool:
    if any(key in table for key in _FILE_KEYS):
        return True
    named = (value for kind in _NAMED if isinstance(tables := table.get(kind), dict) for value in tables.values())
    return any(isinstance(value, dict) and any(key in value for key in _TABLE_KEYS) for value in named)


def merge(base: Section, over: Section) -> Section:
    """Merge two tables: the values of `over` win, and tables in both are merged in turn."""
    if not isinstance(base.table, dict) or not isinstance(over.table, dict):
        return over
    origins = dict(over.origins)
    return Section(_merge_tables(base, base.table, over.table, (), origins), origins)


def _merge_tables(
    base: Section, below: dict[str, Any], above: dict[str, Any], path: KeyPath, origins: Origins
) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for key, value in below.items():
        place = (*path, key)
        if key not in above:
            merged[key] = value
            origins[place] = find_origin(base.origins, place)
            if len(base.origins) > 1:
                origins.update(
                    (inner, origin) for inner, origin in base.origins.items() if inner[: len(place)] == place
                )
        elif isinstance(value, dict) and isinstance(above[key], dict):
            merged[key] = _merge_tables(base, value, above[key], place, origins)
        else:
            merged[key] = above[key]
    return merged | {key: value for key, value in above.items() if key not in below}


class _Composer:
    def __init__(self, main: Document, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.variables: dict[str, str] = {}
        self.variants: dict[str, dict[Instance, dict[str, Any]]] = {}
        self.expanders: dict[str, Callable[[Instance], dict[str, Any]]] = {}
        self.differing_instances = 0
        self.values = 0
        """Number of values in the workloads composed so far."""
        self.origins: Origins = {(): Origin(main.positions, ())}
        self.table: dict[str, Any] = {}
        self.named: dict[str, dict[str, Section]] = {}
        """The sections by the kind and the name of the table."""
        self.single: dict[str, Section] = {}
        """[supervisor], [host] and other top-level keys."""
        self.defaults: Section | None = None
        self.problems: list[CompositionProblem] = []

    def report(self, origin: Origin, message: str, path: KeyPath) -> None:
        """Report a problem at its origin, which concerns `path` of the composed configuration."""
        self.problems.append(CompositionProblem(origin.positions.problem(origin.key, message), path))

    # ---- from files to sections

    def add(self, document: Document) -> None:
        """Add the tables of a file to those of the files before it."""
        for key, value in document.table.items():
            section = Section(value, {(): Origin(document.positions, (key,))})
            if key == "include":
                continue
            if key in _NAMED and isinstance(value, dict):
                self.origins.setdefault((key,), section.origins[()])
                for name, table in value.items():
                    self.add_named(key, name, Section(table, {(): Origin(document.positions, (key, name))}))
            elif key == "defaults":
                self.add_defaults(section)
            else:
                self.single[key] = self.combine(self.single.get(key), section, (key,))

    def add_named(self, kind: str, name: str, section: Section) -> None:
        sections, path = self.named.setdefault(kind, {}), (kind, name)
        overrides = section.table.pop("override", None) if isinstance(section.table, dict) else None
        if overrides is not None and not isinstance(overrides, bool):
            message = f"{quoted(overrides)} is neither true nor false; write one of them, without quotes"
            self.report(find_origin(section.origins, ("override",)), message, path)
            overrides = True
        earlier = sections.get(name)
        if overrides and earlier is None:
            message = f"overrides nothing: no earlier file has [{format_path(path)}]; remove it, or include that first"
            self.report(find_origin(section.origins, ("override",)), message, path)
        if earlier is None:
            sections[name] = section
        elif overrides:
            sections[name] = merge(earlier, section)
        else:
            place = _shown(earlier.origins[()])
            message = f"is declared already at {place}; to change it, write override = true, or else another name"
            self.report(section.origins[()], message, path)

    def add_defaults(self, section: Section) -> None:
        if not isinstance(section.table, dict):
            self.report(section.origins[()], f"{quoted(section.table)} is not a table; write [defaults.workload]", ())
            return
        for key, table in section.table.items():
            origin = find_origin(section.origins, (key,))
            if key != "workload":
                self.report(origin, "has no defaults; write [defaults.workload]", ())
            elif not isinstance(table, dict):
                self.report(origin, f"{quoted(table)} is not a table; write [defaults.workload]", ())
            else:
                self.defaults = self.combine(self.defaults, Section(table, {(): origin}), ())

    def combine(self, earlier: Section | None, section: Section, path: KeyPath) -> Section:
        """Combine what two files say about one table: each key may be in one of them."""
        if earlier is None:
            return section
        if not isinstance(earlier.table, dict) or not isinstance(section.table, dict):
            self.report(section.origins[()], f"is set already at {_shown(earlier.origins[()])}; keep one", path)
            return earlier
        for key in section.table:
            if key in earlier.table:
                place = _shown(find_origin(earlier.origins, (key,)))
                message = f"is set already at {place}; keep one of the two"
                self.report(find_origin(section.origins, (key,)), message, (*path, key))
        return merge(earlier, section)

    # ---- from sections to one table

    def compose(self) -> Composed:
        """Compose the sections that were added."""
        templates = self.named.pop("template", {})
        self.take_variables()
        used: set[str] = set()
        for kind, sections in self.named.items():
            self.table[kind] = {}
            for name, section in sections.items():
                final: Section | None = section
                if kind == "workload" and (final := self.inherit(section, templates, used, (kind, name))) is not None:
                    self.add_values(final)
                    final = self.expand(final, name)
                if final is not None:
                    self.put(final, (kind, name))
                    self.table[kind][name] = final.table
        for key, section in self.single.items():
            self.put(section, (key,))
            self.table[key] = section.table
        unused = dict(self.unused(templates, used))
        positions = ComposedPositions(self.origins)
        return Composed(self.table, positions, self.problems, unused, self.variants, self.expanders)

    def add_values(self, section: Section, copies: int = 1) -> None:
        """Count the values of a workload, or of that many instances of it. Raises ConfigError if there are too many."""
        self.values += copies * _count_values(section.table)
        if self.values > MAX_VALUES:
            message = f"all workloads together have more than {MAX_VALUES:,} values; divide them among several services"
            origin = section.origins[()]
            raise ConfigError([origin.positions.problem(origin.key, message)])

    def take_variables(self) -> None:
        """Take the variables out of the top-level keys."""
        section = self.single.pop("var", None)
        if section is None:
            return
        if not isinstance(section.table, dict):
            self.report(section.origins[()], f"{quoted(section.table)} is not a table; write [var]", ("var",))
            return
        for name, value in section.table.items():
            try:
                self.variables[VARIABLE_NAME.load(name)] = VARIABLE_VALUE.load(value)
            except ValueError as error:
                self.report(find_origin(section.origins, (name,)), f"{quoted(value)} {error}", ("var", name))

    def expand(self, section: Section, name: str) -> Section:
        """Return a workload without placeholders; if its instances differ, that of the first one."""
        if not isinstance(section.table, dict):
            return section
        table = {key: value for key, value in section.table.items() if key != "expand"}
        expand = section.table.get("expand", False)
        if not isinstance(expand, bool):
            message = f"{quoted(expand)} is neither true nor false; write one of them, without quotes"
            self.report(find_origin(section.origins, ("expand",)), message, ("workload", name))
        if expand is not True:
            return Section(table, section.origins)
        reported: set[tuple[KeyPath, str]] = set()

        def report(path: KeyPath, message: str) -> None:
            if (path, message) not in reported:
                reported.add((path, message))
                self.report(find_origin(section.origins, path), message, ("workload", name, *path))

        expander = Expander(Scope(name, self.variables, self.environment), report)
        instances = _instance_ids(expander.expand_shared("instances", table.get("instances", 1)))
        first = expander.expand(table, instances[0])
        if expander.has_instance:
            self.expanders[name] = partial(expander.expand, table)
        if expander.has_instance and len(instances) > 1:
            self.differing_instances += len(instances)
            if self.differing_instances > MAX_DIFFERING_INSTANCES:
                message = f"more than {MAX_DIFFERING_INSTANCES:,} instances differ; leave {{instance}} out of some"
                self.report(section.origins[()], message, ("workload", name))
            else:
                self.add_values(section, len(instances))
                self.variants[name] = {instance: expander.expand(table, instance) for instance in instances}
        return Section(first, section.origins)

    def put(self, section: Section, path: KeyPath) -> None:
        self.origins.update(((*path, *inner), origin) for inner, origin in section.origins.items())

    def inherit(self, section: Section, templates: dict[str, Section], used: set[str], path: KeyPath) -> Section | None:
        """Return a workload with all that it inherits; None if that was reported."""
        if not isinstance(section.table, dict):
            return section
        chain: dict[str, Section] = {}
        current = section
        while (parent := current.table.get("extends")) is not None:
            origin = find_origin(current.origins, ("extends",))
            message = self.template_refusal(parent, templates, chain)
            if message:
                self.report(origin, message, path)
                return None
            used.add(parent)
            current = chain[parent] = templates[parent]
        sections = [*([self.defaults] if self.defaults else []), *reversed(chain.values()), section]
        merged = sections[0]
        for above in sections[1:]:
            merged = merge(merged, above)
        table = {key: value for key, value in merged.table.items() if key != "extends"}
        return Section(table, merged.origins)

    def template_refusal(self, parent: Any, templates: dict[str, Section], chain: dict[str, Section]) -> str:
        if not isinstance(parent, str):
            return f'{quoted(parent)} is not the name of a template; write for example "base" for [template.base]'
        if parent in chain:
            circle = [*list(chain)[list(chain).index(parent) :], parent]
            return f"the templates extend each other in a circle, {' → '.join(circle)}; remove one of these"
        if parent not in templates:
            instead = did_you_mean(parent, templates).removeprefix(", ") or f"write [template.{format_path([parent])}]"
            return f"there is no template {quoted(parent)}; {instead}"
        if len(chain) >= MAX_EXTENDS_DEPTH:
            return f"inherits from more than {MAX_EXTENDS_DEPTH} templates; extend fewer"
        if not isinstance(templates[parent].table, dict):
            return f"the template {quoted(parent)} is not a table; write [template.{format_path([parent])}]"
        return ""

    def unused(self, templates: dict[str, Section], used: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Report what is wrong with the templates themselves; yield those that no workload shows."""
        for name, section in templates.items():
            path: KeyPath = ("template", name)
            try:
                WORKLOAD_NAME.load(name)
            except ValueError as error:
                self.report(section.origins[()], f"{quoted(name)} {error}", path)
                continue
            if not isinstance(section.table, dict):
                message = f"{quoted(section.table)} is not a table; write [{format_path(path)}]"
                self.report(section.origins[()], message, path)
            elif name not in used and (whole := self.inherit(section, templates, set(), path)) is not None:
                self.put(whole, path)
                if whole.table.pop("expand", False) is not True:  # else its values depend on the workload
                    yield name, whole.table
        if self.defaults is not None and not self.named.get("workload") and not templates:
            path = ("defaults", "workload")
            whole = self.inherit(Section({}, self.defaults.origins), templates, set(), path)
            if whole is not None:
                self.put(whole, ("template", "defaults"))
                if whole.table.pop("expand", False) is not True:
                    yield "defaults", whole.table


def _instance_ids(value: Any) -> Sequence[Instance]:
    """Return the instances that the value of `instances` says; if it is wrong, which the loader reports, a single one.

    The first one of several that have numbers is 1, and so is one without a number in its name.
    """
    try:
        count = INSTANCES.load(value.literal if isinstance(value, Expanded) else value)
    except ValueError:
        return (1,)
    return count if isinstance(count, tuple) else range(1, count + 1)


def _count_values(value: Any) -> int:
    """Return how many keys and list elements a value has, at any depth."""
    count, left = 0, [value]
    while left:
        inner = left.pop()
        if isinstance(inner, (dict, list)):
            count += len(inner)
            left.extend(inner.values() if isinstance(inner, dict) else inner)
    return count


def _shown(origin: Origin) -> str:
    path, line, _ = origin.positions.locate(origin.key)
    return f"{path}:{line}"
