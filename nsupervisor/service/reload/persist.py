"""Write changed limits into the configuration file, so that they outlive the service: for `set --persist`.

The file belongs to a person, so everything else in it stays as it is: comments, order, spelling, line ends. The new
text is parsed before it is written, and must mean the same as before except for these limits; otherwise the file is
left unchanged.
"""

from __future__ import annotations

import codecs
import os
import stat
import tempfile
from collections.abc import Mapping
from typing import Any, Literal

import attrs

from nsupervisor.config.changes import apply_changes, parse_changes
from nsupervisor.config.files import SourceFile, find_included, read_text
from nsupervisor.config.load import parse, parse_sound_parts
from nsupervisor.config.model import Config
from nsupervisor.config.problems import ConfigError

Kind = Literal["workload", "group"]


def persist(path: str, kind: Kind, name: str, resources: Mapping[str, Any]) -> None:
    """Write these keys and values of [workload.NAME.resources] or [group.NAME] into the file.

    Raises ConfigError or OSError if that is not possible; then the file is unchanged.
    """
    main = os.path.realpath(path)
    if not stat.S_ISREG(os.stat(main).st_mode):
        raise OSError(f"{path} is no file that can be written")
    main_text = read_text(main)
    before, problems, positions = parse_sound_parts(main_text, path)
    if problems:
        raise ConfigError(problems)
    if name not in (before.workloads if kind == "workload" else before.groups):
        raise OSError(f"{path} has no {kind} {name} any more")
    wanted = with_limits(before, kind, name, parse_changes(resources))
    if wanted == before:
        return
    owner = positions.locate((kind, name)).path  # of several files the last one, whose keys count
    real = main if owner == path else os.path.realpath(owner)
    text = main_text if owner == path else read_text(real)
    has_crlf = text.count("\r\n") == text.count("\n") > 0
    after = edit(text.replace("\r\n", "\n") if has_crlf else text, kind, name, resources)
    if after is None or not _matches(main_text, path, {owner: after}, wanted):
        raise OSError(f"{owner} is written in a way that cannot be changed here; change [{kind}.{name}] by hand")
    if has_crlf:
        after = after.replace("\n", "\r\n")
    with open(real, "rb") as file:
        mark = file.read(len(codecs.BOM_UTF8))
    _replace(real, after.encode("utf-8-sig" if mark == codecs.BOM_UTF8 else "utf-8"))


def with_limits(config: Config, kind: Kind, name: str, changes: Mapping[str, Any]) -> Config:
    """Return the configuration with other limits of one workload or group. Raises ConfigError if they conflict."""
    if kind == "workload":
        workload = config.workloads[name]
        new = attrs.evolve(workload, resources=apply_changes(workload, workload.resources, changes))
        return attrs.evolve(config, workloads={**config.workloads, name: new})
    group = config.groups[name]
    values = {key: getattr(group, key) | value if isinstance(value, dict) else value for key, value in changes.items()}
    return attrs.evolve(config, groups={**config.groups, name: attrs.evolve(group, **values)})


def _matches(text: str, path: str, changed: Mapping[str, str], expected: Config) -> bool:
    """Check what the configuration would be with these texts of files, by their paths."""

    def find(pattern: str) -> list[SourceFile]:
        return [SourceFile(file.path, changed.get(file.path, file.text)) for file in find_included(pattern)]

    try:
        parsed = parse(changed.get(path, text), path, find)
    except ConfigError:
        return False
    return _without_lines(parsed) == _without_lines(expected)


def _without_lines(config: Config) -> Config:
    """Return the configuration without the line numbers of its rules."""

    def without_lines(section: Any) -> Any:
        return attrs.evolve(section, policy=tuple(attrs.evolve(rule, line=0) for rule in section.policy))

    return attrs.evolve(
        config,
        workloads={name: without_lines(section) for name, section in config.workloads.items()},
        groups={name: without_lines(section) for name, section in config.groups.items()},
        host=without_lines(config.host),
    )


def edit(text: str, kind: Kind, name: str, resources: Mapping[str, Any]) -> str | None:
    """Return the text of the file with these limits, or None if it cannot be edited."""
    import tomlkit  # imported here, because it is needed rarely and costs memory
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(text)
        table: Any = document[kind][name]
        if kind == "workload":
            if "resources" not in table:
                table["resources"] = tomlkit.table()
            table = table["resources"]
        for key, value in resources.items():
            if key == "unified" and key in table:
                for file, content in value.items():
                    table[key][file] = content
            else:
                table[key] = value
        return tomlkit.dumps(document)
    except (TOMLKitError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _replace(path: str, text: bytes) -> None:
    """Replace the file atomically, with the same owner and mode: a reader sees the old text or the new one."""
    old = os.stat(path)
    fd, new = tempfile.mkstemp(dir=os.path.dirname(path), prefix=f".{os.path.basename(path)}.")
    try:
        with open(fd, "wb") as file:
            os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))
            if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(file.fileno(), old.st_uid, old.st_gid)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        os.unlink(new)
        raise
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
