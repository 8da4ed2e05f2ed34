"""The interface of a connection to a keeper. `client.Keeper` implements it, and so does the tests' simulated keeper."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

import trio

from nsupervisor.keeper.entry import Entry, KeptEntry
from nsupervisor.keeper.messages import Child, Ended, Execed, Spawned


class KeeperConnection(Protocol):
    """A connection to a keeper. `nsupervisor.keeper.client.Keeper` documents the methods and their errors."""

    pid: int
    events: trio.MemoryReceiveChannel[Execed | Ended]
    on_answer: Callable[[str, float], None] | None
    filter_program: Callable[[str], bytes]
    held_at_start: int
    kept_at_start: int

    async def spawn(
        self,
        spec: Mapping[str, Any],
        while_waiting: Callable[[], None] = ...,
        notify_fd: int = -1,
        join_fds: Sequence[int] = (),
    ) -> Spawned: ...
    async def enter(
        self,
        into: str | None,
        spec: Mapping[str, Any],
        stdio: Sequence[int],
        has_terminal: bool,
        kept_fds: Sequence[int] = (),
    ) -> Entry: ...
    async def list_kept(self) -> "list[KeptEntry]": ...
    async def adopt(
        self,
        id: str,  # noqa: A002
        first_process: tuple[int, int],
        program_pid: int,
        fds: Sequence[int],
        has_readiness: bool = False,
    ) -> None: ...
    async def set_main(self, id: str, process: tuple[int, int], pidfd: int) -> None: ...  # noqa: A002
    async def listen_again(self, runtime_directory: str | Path) -> bool: ...
    async def execute(self, python: str, package: str) -> None: ...
    async def signal(self, id: str, *signums: int) -> bool: ...  # noqa: A002
    async def acknowledge(self, id: str) -> None: ...  # noqa: A002
    async def list(self, ids: Sequence[str] = (), without_descriptors: bool = False) -> list[Child]: ...
    async def hold(self, key: str, fd: int) -> None: ...
    async def release(self, keys: Sequence[str]) -> None: ...
    async def held(self) -> dict[str, int]: ...
    async def shutdown(self) -> None: ...
    async def wait_lost(self) -> None: ...
    def reap(self) -> bool: ...
    def close_descriptors(self, fds: Sequence[int]) -> None: ...


OpenKeeper = Callable[[Path, Sequence[str]], AbstractAsyncContextManager[KeeperConnection]]
"""Connects to the keeper of a runtime directory, which refuses connections from some cgroups, as `open_keeper`."""
