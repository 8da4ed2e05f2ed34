"""Answer scrapes: take a snapshot and render it as text."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import attrs
import trio

from nsupervisor.api.http.errors import ConnectionErrors
from nsupervisor.metrics.formats import choose_format
from nsupervisor.metrics.measures import Measures
from nsupervisor.metrics.snapshot import GroupSnapshot, InstanceSnapshot, ServiceSnapshot, TimerSnapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsupervisor.logs import Journal


Read = Callable[[], Awaitable[tuple[Sequence[InstanceSnapshot], Sequence[GroupSnapshot]]]]
"""Reads the present values of all instances and groups."""


@attrs.define(eq=False)
class _Scrape:
    """A request that waits for its text. answer: the text and its content type; None before they are rendered."""

    format: str
    result: tuple[bytes, str] | None = None


@attrs.define(eq=False)
class Exposition:
    """Renders the text of scrapes.

    Scrapes that wait at the same time share one reading and one text per format: hundreds of them would otherwise take
    all of the service's time.
    """

    journal: Journal
    measures: Measures
    keeper_pid: int
    connection_errors: ConnectionErrors = attrs.field(factory=ConnectionErrors)
    read_timers: Callable[[], Sequence[TimerSnapshot]] = tuple
    _lock: trio.Lock = attrs.field(init=False, factory=trio.Lock)
    _waiting: dict[_Scrape, None] = attrs.field(init=False, factory=dict)

    def keeper_replaced(self, pid: int) -> None:
        """Note the pid of the keeper that has taken over."""
        self.keeper_pid = pid

    async def render(self, read: Read, accept: str) -> tuple[bytes, str]:
        """Render the present metrics; return the text and its content type, which the Accept header chooses.

        All values are read after the call. A thread renders the text: with a thousand workloads it has megabytes, and a
        rule must not wait for it.
        """
        scrape = _Scrape(choose_format(accept))
        self._waiting[scrape] = None
        try:
            async with self._lock:
                # Another task may have answered it. If that task was cancelled, this one reads for all that still wait.
                if scrape.result is None:
                    await self._render_for(list(self._waiting), read)
        finally:
            del self._waiting[scrape]
        assert scrape.result is not None
        return scrape.result

    async def _render_for(self, scrapes: Sequence[_Scrape], read: Read) -> None:
        """Read all values once, and set the answer of each of the scrapes."""
        instances, groups = await read()
        service = ServiceSnapshot.from_measures(self.measures, self.journal, self.keeper_pid, self.connection_errors)
        timers, formats = self.read_timers(), {scrape.format for scrape in scrapes}
        texts = await trio.to_thread.run_sync(
            _render_all, instances, service, formats, groups, timers, abandon_on_cancel=True
        )
        for scrape in scrapes:
            scrape.result = texts[scrape.format]


def _render_all(
    instances: Sequence[InstanceSnapshot],
    service: ServiceSnapshot,
    formats: Iterable[str],
    groups: Sequence[GroupSnapshot],
    timers: Sequence[TimerSnapshot],
) -> dict[str, tuple[bytes, str]]:
    """Render each format; return its text and content type."""
    return {format_: _render(instances, service, format_, groups, timers) for format_ in formats}


def _render(
    instances: Sequence[InstanceSnapshot],
    service: ServiceSnapshot,
    accept: str,
    groups: Sequence[GroupSnapshot] = (),
    timers: Sequence[TimerSnapshot] = (),
) -> tuple[bytes, str]:
    # Imported here, because a service that is never scraped does not need it.
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.openmetrics.exposition import ALLOWUTF8

    from nsupervisor.metrics.families import Collector

    registry = CollectorRegistry()
    registry.register(Collector(instances, service, groups, timers))
    encode: Any
    encode, content_type = choose_encoder(accept)
    # The project's names need no escaping, so every scheme gives the same text; this one is the fastest.
    return encode(registry, escaping=ALLOWUTF8), content_type
