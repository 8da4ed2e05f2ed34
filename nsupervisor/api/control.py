"""The interface between the API and the service: all that the API needs of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import attrs

from nsupervisor.api.http.messages import Switch
from nsupervisor.config.files import IncludedFile
from nsupervisor.linux.peers import Peer

_WILDCARDS = frozenset("*?[")


class UnknownName(LookupError):  # noqa: N818 - it is what happened, and reads so where it is raised
    """No workload and no instance matches `pattern`. `nearest` is the most similar name; None if none is similar."""

    def __init__(self, pattern: str, nearest: str | None = None) -> None:
        self.pattern = pattern
        self.nearest = nearest
        hint = f'did you mean "{nearest}"?' if nearest else "nsupervisor status shows all names"
        super().__init__(f'no workload matches "{pattern}"; {hint}')


class ExecRefused(Exception):  # noqa: N818 - a decision
    """A command cannot be executed in a workload now; the text says why. `status`: the status of the response."""

    def __init__(self, text: str, status: int = 409) -> None:
        super().__init__(text)
        self.status = status


@attrs.frozen
class ExecTerms:
    """A command to execute in a workload, and how."""

    argv: tuple[str, ...]
    has_input: bool = False
    """Whether the client sends standard input; otherwise it is empty."""
    terminal: tuple[int, int] | None = None
    """The rows and columns of its terminal; None: it has none."""
    user: str | None = None
    """Another user than the workload's, as in the configuration."""
    environment: Mapping[str, str] = attrs.field(factory=dict)
    """Further variables."""
    directory: str | None = None
    """Another working directory than the workload's."""
    is_debug: bool = False
    """In the sandbox of a workload that does not run, in place of its program."""


def is_glob(pattern: str) -> bool:
    """Return whether a pattern has a wildcard; otherwise it is a name."""
    return not _WILDCARDS.isdisjoint(pattern)


class Control(Protocol):
    """The service as the API sees it. All methods are called in the trio thread."""

    def info(self) -> dict[str, Any]:
        """Return the object `Info` of `nsupervisor schema api`."""
        ...

    def status(self) -> list[dict[str, Any]]:
        """Return one object `Status` of `nsupervisor schema api` per instance, in the configuration's order."""
        ...

    def group_status(self) -> list[dict[str, Any]]:
        """Return one object `Group` of `nsupervisor schema api` per group, each after the groups that enclose it."""
        ...

    def matching_groups(self, pattern: str) -> list[str]:
        """Return the full names ("group/batch") of the groups that a name or a glob matches.

        The list is empty if the pattern means workloads.
        """
        ...

    async def set_group(
        self,
        name: str,
        changes: Mapping[str, Any],
        persist: Mapping[str, Any] | None = None,
        *,
        peer: Peer | None = None,
    ) -> dict[str, Any]:
        """Change a group's own limits; return the object `Result` of `nsupervisor schema api`.

        With `persist`, its keys and values are also written to the configuration file.
        """
        ...

    def resolve(self, patterns: Sequence[str]) -> list[str]:
        """Return the names of the instances that names and globs match, each once.

        "web" matches all instances of the workload, "group/batch" all instances in the group.

        Raises:
            UnknownName: a pattern matches nothing.
        """
        ...

    def controllable_by(self, workload: str) -> Collection[str]:
        """Return the instances that processes of the instance `workload` may control, by its `may_control`."""
        ...

    def also_affected(self, verb: str, name: str) -> list[str]:
        """Return the other instances that this command would also start or stop now, because of dependencies."""
        ...

    def check_command(self, verb: str, names: Sequence[str], parameters: Mapping[str, Any]) -> None:
        """Check a command on the instances `names` before any of it begins. Raises HTTPError if it is not allowed."""

    def timer_status(self) -> list[dict[str, Any]]:
        """Return one object `Timer` of `nsupervisor schema api` per timer, in the configuration's order."""
        ...

    def stats(self) -> list[dict[str, Any]]:
        """Return one object `Stats` of `nsupervisor schema api` per instance, in the configuration's order."""
        ...

    def history(self, name: str) -> dict[str, Any]:
        """Return the object `History` of `nsupervisor schema api` of one instance."""
        ...

    def logs(
        self, names: Collection[str] | None, last: int | None, follow: bool
    ) -> AbstractContextManager[AsyncIterator[bytes]]:
        """Yield the latest output of instances without a log file, as JSON lines, and with `follow` also new output.

        names: the instances; None: all. last: at most this number of lines of each up to now; None: all.
        With `follow` the line {"event":"new"} separates those up to now from new ones.
        """
        ...

    def events(
        self, names: Collection[str] | None, events: Collection[str] | None, follow: bool, mark: bool = False
    ) -> AbstractContextManager[AsyncIterator[bytes]]:
        """Yield the stored records about instances as JSON lines, and with `follow` also new records.

        mark: with the line {"event":"new"} between them.

        names: the instances; None: all records. events: only records with one of these values of "event"; None: all.
        The iterator ends when no more records can come.
        """
        ...

    def trace(
        self, names: Collection[str] | None, interval: float | None, seconds: float, max_bytes: float
    ) -> AbstractContextManager[AsyncIterator[bytes]]:
        """Yield the lines of a trace of instances as they come; `docs/internals.md` describes them.

        names: the instances; None: all. interval: seconds between two samples of all files that rules can refer to;
        None: no samples. The trace ends after `seconds`, or after about `max_bytes`.
        """
        ...

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics as text, and its content type, which the request's Accept header chooses."""
        ...

    async def plan(
        self, path: str | None, text: str | None, files: Sequence[IncludedFile] | None = None
    ) -> dict[str, Any]:
        """Return what a reload of a file would do: the object `Plan` of `nsupervisor schema api`.

        path: the file's name; None: the file in force. text: its contents; None: the service reads the file.
        files: those that the text includes; None: the service reads them.

        Raises:
            ConfigError: with every problem of the file.
        """
        ...

    async def scale(
        self, counts: Mapping[str, int], *, peer: Peer | None = None
    ) -> AbstractContextManager[AsyncIterator[bytes]]:
        """Run other numbers of instances, by workload; yield what `reload` yields. peer: as for `command`.

        Raises:
            ConfigError: with every problem; nothing has changed.
        """
        ...

    async def reload(
        self,
        path: str | None,
        text: str | None,
        files: Sequence[IncludedFile] | None = None,
        *,
        peer: Peer | None = None,
    ) -> AbstractContextManager[AsyncIterator[bytes]]:
        """Reload the configuration from a file, and yield each step as a JSON line.

        The reload completes even if the lines are not read. path, text, files: as for `plan`. peer: as for `command`.

        Raises:
            ConfigError: with every problem of the file; nothing has changed.
        """
        ...

    async def upgrade(self, python: str, package: str, timeout_s: float) -> tuple[bool, str]:
        """Begin an upgrade to another version; return whether it is accepted, and the version or the reason.

        python: the interpreter. package: the folder that contains the package. timeout: seconds for it to start.
        """
        ...

    def exec(self, name: str, terms: ExecTerms, peer: Peer | None) -> Switch:
        """Prepare to execute a command in the instance `name` for a client; the conversation then executes it.

        Raises:
            ExecRefused: the state of the instance does not allow it, or too many commands run.
        """
        ...

    async def command(
        self, verb: str, name: str, *, workload: str = "", peer: Peer | None = None, **parameters: Any
    ) -> dict[str, Any]:
        """Execute a command on one instance and wait until it is done.

        workload: the instance whose process gives the command, which records name; "": an operator gives it.
        peer: the process that gives it, whose uid and pid the records name if it is an operator's; None: unknown.

        verb: one of `nsupervisor.api.routes.VERBS`. parameters: for "signal", the number `signal`; for "set", `changes`
        as `nsupervisor.config.changes.parse_changes` returns them, and `persist` in the form of the file.

        Returns:
            The object `Result` of `nsupervisor schema api`.
        """
        ...
