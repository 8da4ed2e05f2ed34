"""Permissions of a workload with `may_control`: it may use the API for exactly the instances that the key names.

`permitted` decides. `Restricted` is the service as such a workload sees it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from nsupervisor.api.control import Control, ExecTerms, UnknownName, is_glob
from nsupervisor.api.http.messages import HTTPError, Switch
from nsupervisor.config.files import IncludedFile
from nsupervisor.linux.peers import Peer

READ_ONLY = frozenset({"info", "status", "stats", "history", "events", "groups", "logs", "timers"})
"""Operations that only read, and that can be restricted to some instances."""
COMMAND = "command"
INFO_KEYS = frozenset({"version", "name", "started_at", "uptime_sec", "mode", "missing"})
"""The facts about the service that a workload may read."""
_OUTSIDE = "ask from outside of all workloads"


def refused_operation(workload: str, operation: str) -> str:
    """Return why a process of `workload` may not use an operation, whatever the request is; "" if it may."""
    if operation in READ_ONLY or operation == COMMAND:
        return ""
    return f"workload {workload} may not use {operation}, which is about all of the service; {_OUTSIDE}"


def permitted(
    workload: str,
    allowed: Collection[str],
    operation: str,
    names: Collection[str] = (),
    also: Collection[str] = (),
    persist: bool = False,
) -> str:
    """Return why a process of `workload` may not do this; "" if it may.

    `allowed`: the instances that its `may_control` matches. `operation`: the name of a route. `names`: the names in the
    request, whether they are instances or not. `also`: other instances that a command would start or stop, too.
    """
    known = f"workload {workload} may control only {', '.join(sorted(allowed)) or 'nothing'}"
    instead = f"{_OUTSIDE}, or change its `may_control`"
    if reason := refused_operation(workload, operation):
        return reason
    if persist:
        return f"workload {workload} may not change the configuration file; {_OUTSIDE}, or set it without persist"
    if other := sorted(set(names) - set(allowed)):
        return f"{known}, not {', '.join(other[:5])}; {instead}"
    if set(also) - set(allowed):  # their names are not for this workload
        return f"{known}, and this would also start or stop others; {instead}"
    return ""


class Restricted(Control):
    """The service, restricted to what one workload may control. Everything else raises HTTPError 403."""

    def __init__(self, control: Control, workload: str) -> None:
        self._control = control
        self._workload = workload
        self._allowed = frozenset(control.controllable_by(workload))
        self._visible_groups: frozenset[str] | None = None

    def _check(self, operation: str, **facts: Any) -> None:
        if reason := permitted(self._workload, self._allowed, operation, **facts):
            raise HTTPError(403, reason)

    def controllable_by(self, workload: str) -> Collection[str]:
        return self._allowed

    def info(self) -> dict[str, Any]:
        """Return only what says which service answers, and since when; the rest is null."""
        return {key: value if key in INFO_KEYS else None for key, value in self._control.info().items()}

    def status(self) -> list[dict[str, Any]]:
        return [instance for instance in self._control.status() if instance["name"] in self._allowed]

    def stats(self) -> list[dict[str, Any]]:
        return [instance for instance in self._control.stats() if instance["name"] in self._allowed]

    def timer_status(self) -> list[dict[str, Any]]:
        """Return the timers of workloads with an allowed instance."""
        allowed = {name.partition("@")[0] for name in self._allowed}
        return [timer for timer in self._control.timer_status() if timer["name"] in allowed]

    def group_status(self) -> list[dict[str, Any]]:
        """Return the groups that contain an allowed instance, with only the allowed members."""
        groups = [
            {**group, "members": [name for name in group["members"] if name in self._allowed]}
            for group in self._control.group_status()
        ]
        return [group for group in groups if group["members"]]

    def matching_groups(self, pattern: str) -> list[str]:
        matches = self._control.matching_groups(pattern)
        if matches and self._visible_groups is None:  # the status reads files of every group
            self._visible_groups = frozenset(group["name"] for group in self.group_status())
        return [name for name in matches if name in (self._visible_groups or ())]

    async def set_group(
        self,
        name: str,
        changes: Mapping[str, Any],
        persist: Mapping[str, Any] | None = None,
        *,
        peer: Peer | None = None,
    ) -> dict[str, Any]:
        raise HTTPError(403, permitted(self._workload, self._allowed, COMMAND, names=[name]))

    def resolve(self, patterns: Sequence[str]) -> list[str]:
        """Return the allowed instances that names and globs match.

        A name that matches no allowed instance is refused with the same text, whether it exists or not. A pattern
        stands for its allowed matches only.
        """
        instances: dict[str, None] = {}
        for pattern in patterns:
            try:
                names = self._control.resolve([pattern])
            except UnknownName:
                names = []
            is_narrowed = is_glob(pattern) or "/" in pattern
            allowed = [name for name in names if name in self._allowed]
            if not allowed or (len(allowed) < len(names) and not is_narrowed):
                self._check(COMMAND, names=[pattern])
            instances |= dict.fromkeys(allowed)
        return list(instances)

    def also_affected(self, verb: str, name: str) -> list[str]:
        return self._control.also_affected(verb, name)

    def history(self, name: str) -> dict[str, Any]:
        self._check("history", names=[name])
        return self._control.history(name)

    def events(
        self, names: Collection[str] | None, events: Collection[str] | None, follow: bool, mark: bool = False
    ) -> AbstractContextManager[AsyncIterator[bytes]]:
        visible = self._allowed if names is None else self._allowed & set(names)
        return self._control.events(visible, events, follow, mark)

    def logs(
        self, names: Collection[str] | None, last: int | None, follow: bool
    ) -> AbstractContextManager[AsyncIterator[bytes]]:
        return self._control.logs(self._allowed if names is None else self._allowed & set(names), last, follow)

    def trace(
        self, names: Collection[str] | None, interval: float | None, seconds: float, max_bytes: float
    ) -> AbstractContextManager[AsyncIterator[bytes]]:
        raise HTTPError(403, permitted(self._workload, self._allowed, "trace"))

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        raise HTTPError(403, permitted(self._workload, self._allowed, "metrics"))

    async def plan(
        self, path: str | None, text: str | None, files: Sequence[IncludedFile] | None = None
    ) -> dict[str, Any]:
        raise HTTPError(403, permitted(self._workload, self._allowed, "plan"))

    async def reload(
        self,
        path: str | None,
        text: str | None,
        files: Sequence[IncludedFile] | None = None,
        *,
        peer: Peer | None = None,
    ) -> AbstractContextManager[AsyncIterator[bytes]]:
        raise HTTPError(403, permitted(self._workload, self._allowed, "reload"))

    async def scale(
        self, counts: Mapping[str, int], *, peer: Peer | None = None
    ) -> AbstractContextManager[AsyncIterator[bytes]]:
        raise HTTPError(403, permitted(self._workload, self._allowed, "scale"))

    async def upgrade(self, python: str, package: str, timeout_s: float) -> tuple[bool, str]:
        raise HTTPError(403, permitted(self._workload, self._allowed, "upgrade"))

    def exec(self, name: str, terms: ExecTerms, peer: Peer | None) -> Switch:
        """Refuse it: who may restart another workload may not therefore run code with its rights."""
        raise HTTPError(403, permitted(self._workload, self._allowed, "exec"))

    def check_command(self, verb: str, names: Sequence[str], parameters: Mapping[str, Any]) -> None:
        also = [other for name in names for other in self._control.also_affected(verb, name) if other not in names]
        self._check(COMMAND, names=names, also=also, persist="persist" in parameters)

    async def command(
        self, verb: str, name: str, *, workload: str = "", peer: Peer | None = None, **parameters: Any
    ) -> dict[str, Any]:
        self._check(COMMAND, names=[name], persist="persist" in parameters)
        return await self._control.command(verb, name, workload=self._workload, peer=peer, **parameters)
