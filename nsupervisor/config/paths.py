"""[[workload.NAME.paths]]: files and directories whose state or change starts a workload, restarts or reloads it.

The words are systemd's, in snake_case: systemd.path(5).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from attrs import field, frozen

from nsupervisor.config import kinds
from nsupervisor.config.kinds import Choice, ListOf, Scalar, key
from nsupervisor.config.quoting import alternatives, quoted
from nsupervisor.config.table import Table

PathAction = Literal["start", "restart", "reload"]
PathCondition = Literal["path_exists", "path_exists_glob", "directory_not_empty", "path_changed", "path_modified"]

LEVEL_CONDITIONS: tuple[PathCondition, ...] = ("path_exists", "path_exists_glob", "directory_not_empty")
"""Conditions that are true or false at any time."""
CHANGE_CONDITIONS: tuple[PathCondition, ...] = ("path_changed", "path_modified")
"""Conditions that something happens."""
PATH_CONDITIONS = (*LEVEL_CONDITIONS, *CHANGE_CONDITIONS)
MAX_PATHS = 16
"""The most path triggers of one workload."""
MAX_PARTS = 32
"""The most directories in one path: each one is watched."""
_GLOB_CHARACTERS = "*?["


def _watched_path(value: Any) -> str:
    text: str = kinds.PATH.load(value)
    if any(ord(character) < 32 for character in text):
        raise ValueError("has a control character; write another path")
    parts = [part for part in text.split("/") if part]
    if not parts or "." in parts or ".." in parts:
        raise ValueError('is not the path of a file or a directory below "/", without "." and ".."; write that')
    if len(parts) > MAX_PARTS:
        raise ValueError(f"is {len(parts)} directories deep; write a path of at most {MAX_PARTS}")
    return "/" + "/".join(parts)


def _glob(value: Any) -> str:
    text = _watched_path(value)
    directory, _, name = text.rpartition("/")
    if any(character in directory for character in _GLOB_CHARACTERS):
        raise ValueError('has a pattern in a directory; write "*", "?" and "[…]" only after the last "/"')
    if not any(character in name for character in _GLOB_CHARACTERS):
        raise ValueError('has no "*", "?" or "[…]" after the last "/"; write path_exists for a single path')
    return text


def _pattern(value: Any) -> str:
    text: str = kinds.TEXT.load(value)
    if not text or "/" in text:
        raise ValueError('is not a pattern of names; write for example "*.csv"')
    return text


WATCHED_PATH = Scalar(_watched_path, {"type": "string", "pattern": "^/"})
GLOB = Scalar(_glob, {"type": "string", "pattern": "^/"})
NAME_PATTERNS = ListOf(Scalar(_pattern, {"type": "string", "pattern": "^[^/]+$"}))
_BURST = kinds.integer(1, 10000, 20)


@frozen(kw_only=True, repr=False)
class PathConfig(Table):
    """[[workload.NAME.paths]]: start the workload, or restart or reload it, because of a file or a directory."""

    path_exists: str | None = field(default=None, metadata=key(WATCHED_PATH, "while this exists, it is started"))
    path_exists_glob: str | None = field(
        default=None, metadata=key(GLOB, "while a name in the directory matches, it is started")
    )
    directory_not_empty: str | None = field(
        default=None, metadata=key(WATCHED_PATH, "while something is in this directory, it is started")
    )
    path_changed: str | None = field(
        default=None,
        metadata=key(WATCHED_PATH, "when this file was written and closed, replaced, made or removed; or one in it"),
    )
    path_modified: str | None = field(
        default=None, metadata=key(WATCHED_PATH, "like path_changed, and at each write before the file is closed")
    )
    action: PathAction = field(
        default="start", metadata=key(Choice.of(PathAction), "start it, or restart or reload it if it runs")
    )
    make_directory: bool = field(
        default=False, metadata=key(kinds.BOOLEAN, "make the directory if it is missing, with mode 0755")
    )
    include: tuple[str, ...] = field(
        default=(), metadata=key(NAME_PATTERNS, "only names in the directory that match one of these; default: all")
    )
    exclude: tuple[str, ...] = field(
        default=(), metadata=key(NAME_PATTERNS, "not names in the directory that match one of these")
    )
    debounce_sec: float = field(
        default=0.3, metadata=key(kinds.duration(), "act when nothing has changed for this long, or for ten times this")
    )
    trigger_limit_interval_sec: float = field(
        default=30.0, metadata=key(kinds.duration(), "the time in which trigger_limit_burst counts; 0: no limit")
    )
    trigger_limit_burst: int = field(
        default=20, metadata=key(_BURST, "after how many actions in that time it is suspended, as they may be a loop")
    )

    @property
    def condition(self) -> PathCondition:
        """The condition that it has; the first one, of a table that `check` refuses."""
        return next((name for name in PATH_CONDITIONS if getattr(self, name) is not None), "path_exists")

    @property
    def path(self) -> str:
        """The path, or the pattern of paths; "" if it has none."""
        text: str | None = getattr(self, self.condition)
        return text or ""

    @property
    def watched_path(self) -> str:
        """The file or directory to look at: that of a pattern is its directory."""
        return os.path.dirname(self.path) if self.path_exists_glob is not None else self.path

    @property
    def is_level(self) -> bool:
        """Whether the condition is true or false at any time."""
        return self.condition in LEVEL_CONDITIONS

    @property
    def identity(self) -> str:
        """The condition with everything that says what is looked at: the same one has the same memory."""
        filters = "".join(
            f" {name} {' '.join(map(quoted, getattr(self, name)))}"
            for name in ("include", "exclude")
            if getattr(self, name)
        )
        return f"{self.condition} {self.path}{filters}"


def find_path_conflicts(
    paths: Sequence[PathConfig], workload_type: str, can_reload: bool, log_files: Sequence[str]
) -> Iterator[tuple[tuple[int | str, ...], str]]:
    """Yield the key and the message of everything in the path triggers of one workload that does not fit together."""
    if len(paths) > MAX_PATHS:
        yield (MAX_PATHS,), f"is one more than a workload can have; write at most {MAX_PATHS} paths"
    for number, path in enumerate(paths):
        written = [name for name in PATH_CONDITIONS if getattr(path, name) is not None]
        if len(written) != 1:
            what = "has no condition" if not written else f"has {len(written)} conditions"
            yield (number,), f"{what}; write exactly one of {alternatives(PATH_CONDITIONS)}"
            continue
        condition = path.condition
        if path.action != "start":
            if path.is_level:
                words = alternatives(CHANGE_CONDITIONS)
                yield (number, "action"), f"is for a change, and {condition} is none; write {words}, or remove it"
            if workload_type == "oneshot":
                yield (number, "action"), "is for a program that runs all the time; remove it"
            elif path.action == "reload" and not can_reload:
                yield (
                    (number, "action"),
                    'needs a way to reload; write reload_signal, exec_reload or type = "notify-reload"',
                )
        if condition in ("path_exists", "path_exists_glob"):
            for name in ("make_directory", "include", "exclude"):
                if getattr(path, name):
                    yield (number, name), "is for a directory whose contents count; remove it"
        if path.path in log_files:
            yield (number, condition), "is a log file of the workload itself, which never counts; write another path"
        if any(path.identity == other.identity for other in paths[:number]):
            yield (number, condition), f"is in another path of it, {quoted(path.path)}; remove one"
