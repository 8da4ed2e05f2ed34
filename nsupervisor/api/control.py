"""What the API needs of the service behind it, and nothing more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol


class UnknownName(LookupError):  # noqa: N818 - it is what happened, and reads so where it is raised
    """No workload and no instance matches `pattern`; `nearest` is the most similar name, None where none is similar."""

    def __init__(self, pattern: str, nearest: str | None = None) -> None:
        self.pattern = pattern
        self.nearest = nearest
        hint = f'did you mean "{nearest}"?' if nearest else "nsupervisor status shows all names"
        super().__init__(f'no workload matches "{pattern}"; {hint}')


class Control(Protocol):
    """The service, as the API sees it. Everything is called in the trio thread."""

    def info(self) -> dict[str, Any]:
        """The object `Info` of `nsupervisor schema api`."""
        ...

    def status(self) -> list[dict[str, Any]]:
        """One object `Status` of `nsupervisor schema api` per instance, in the configuration's order."""
        ...

    def group_status(self) -> list[dict[str, Any]]:
        """One object `Group` of `nsupervisor schema api` per group, each after those around it."""
        ...

    def matching_groups(self, pattern: str) -> list[str]:
        """The full names ("group/batch") of the groups that a name or a glob means; none where it means workloads."""
        ...

    async def set_group(
        self, name: str, changes: Mapping[str, Any], persist: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Change a group's own limits, and, with `persist`, those keys and values in the file, too; the object `Result`
        of `nsupervisor schema api`."""
        ...

    def resolve(self, patterns: Sequence[str]) -> list[str]:
        """The names of the instances that names and globs stand for, each once: "web" is all of web's,
        "group/batch" all in that group.

        Raises:
            UnknownName: a pattern matches nothing.
        """
        ...

    def controllable_by(self, workload: str) -> Collection[str]:
        """The instances that processes of the instance `workload` may control, by its `may_control`."""
        ...

    def also_affected(self, verb: str, name: str) -> list[str]:
        """The other instances that this command would start or stop now, as they depend on each other."""
        ...

    def check_command(self, verb: str, names: Sequence[str], parameters: Mapping[str, Any]) -> None:
        """Called before a command on any of the instances `names` begins. Raises HTTPError if one may not be done."""

    def stats(self) -> list[dict[str, Any]]:
        """One object `Stats` of `nsupervisor schema api` per instance, in the configuration's order."""
        ...

    def history(self, name: str) -> dict[str, Any]:
        """The object `History` of `nsupervisor schema api` of one instance."""
        ...

    def events(
        self, names: Collection[str] | None, events: Collection[str] | None, news: bool
    ) -> AbstractContextManager[AsyncIterator[bytes]]:
        """JSON lines of what is kept about instances (None: of all there is), and, with `news`, of what comes; only
        with one of `events`, where they are given. The iterator ends when there is no more to come."""
        ...

    def trace(
        self, names: Collection[str] | None, interval: float | None, seconds: float, most: float
    ) -> AbstractContextManager[AsyncIterator[bytes]]:
        """The lines of a trace of instances (None: of all there are), as they come; `docs/simulate.md` describes them.
        All files that rules can look at are read each `interval` seconds (None: never). It ends after so many seconds,
        or about so many bytes."""
        ...

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """What is measured, as text, and its content type: what the request's Accept header prefers."""
        ...

    async def plan(self, path: str | None, text: str | None) -> dict[str, Any]:
        """What a reload of a file would do: the object `Plan` of `nsupervisor schema api`.

        path: its name; None: the file in force. text: what is in it; None: it is read.

        Raises:
            ConfigError: with every problem of the file.
        """
        ...

    async def reload(self, path: str | None, text: str | None) -> AbstractContextManager[AsyncIterator[bytes]]:
        """Go over to a file. JSON lines while it is done; it is done, whether anybody reads them or not.

        Raises:
            ConfigError: with every problem of the file; nothing has changed.
        """
        ...

    async def upgrade(self, python: str, package: str, patience: float) -> tuple[bool, str]:
        """Become another version; whether that is to be, and the version or why not."""
        ...

    async def command(self, verb: str, name: str, **parameters: Any) -> dict[str, Any]:
        """Do one thing to one instance and wait until it is done; the object `Result` of `nsupervisor schema api`.

        verb: one of `nsupervisor.api.routes.VERBS`. parameters: `signal`, a number, for the verb "signal";
        `changes`, as `nsupervisor.config.changes.parse_changes` has them, and `persist`, as the file has them, for
        "set".
        """
        ...
