"""A scrape, from the request to the text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import trio

from nsupervisor.api.http.errors import ConnectionErrors
from nsupervisor.metrics.formats import preferred
from nsupervisor.metrics.measures import Measures
from nsupervisor.metrics.snapshot import Instance, Service, Together

TYPE_CHECKING = False
if TYPE_CHECKING:  # the service imports us
    from nsupervisor.logs import Journal
    from nsupervisor.service.actor import Actor
    from nsupervisor.service.group import Group


@attrs.define(eq=False)
class _Scrape:
    """A request that waits for its text. answer: the text and its content type, once it is there."""

    format: str
    answer: tuple[bytes, str] | None = None


@attrs.define(eq=False)
class Exposition:
    """Makes the texts of scrapes. Scrapes that wait at the same time share one reading and one text per format: with
    hundreds of them the service would have no time for anything else."""

    journal: Journal
    measures: Measures
    keeper_pid: int
    connection_errors: ConnectionErrors = attrs.field(factory=ConnectionErrors)
    _lock: trio.Lock = attrs.field(init=False, factory=trio.Lock)
    _waiting: dict[_Scrape, None] = attrs.field(init=False, factory=dict)

    async def text(self, actors: Iterable[Actor], groups: Iterable[Group], accept: str) -> tuple[bytes, str]:
        """The metrics of now, and their content type: what the request's Accept header prefers.

        All values are read after the call. Other tasks run after each workload, and the text is made in a thread: with
        a thousand workloads it is megabytes, and a rule must not wait for them.
        """
        scrape = _Scrape(preferred(accept))
        self._waiting[scrape] = None
        try:
            async with self._lock:
                # Another task may have answered it. If that task was cancelled, this one reads for all that still wait.
                if scrape.answer is None:
                    await self._answer(list(self._waiting), actors, groups)
        finally:
            del self._waiting[scrape]
        assert scrape.answer is not None
        return scrape.answer

    async def _answer(self, scrapes: Sequence[_Scrape], actors: Iterable[Actor], groups: Iterable[Group]) -> None:
        """Give each of the scrapes its text."""
        instances = []
        for actor in list(actors):
            instances.append(Instance.of(actor))
            await trio.lowlevel.checkpoint()
        together = [Together.of(group) for group in list(groups)]
        service = Service.of(self.measures, self.journal, self.keeper_pid, self.connection_errors)
        formats = {scrape.format for scrape in scrapes}
        texts = await trio.to_thread.run_sync(_texts, instances, service, formats, together, abandon_on_cancel=True)
        for scrape in scrapes:
            scrape.answer = texts[scrape.format]


def _texts(
    instances: Sequence[Instance], service: Service, formats: Iterable[str], groups: Sequence[Together]
) -> dict[str, tuple[bytes, str]]:
    """The text and its content type by format."""
    return {format_: _text(instances, service, format_, groups) for format_ in formats}


def _text(
    instances: Sequence[Instance], service: Service, accept: str, groups: Sequence[Together] = ()
) -> tuple[bytes, str]:
    # Here, because a service that nobody scrapes needs none of it.
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.openmetrics.exposition import ALLOWUTF8

    from nsupervisor.metrics.families import Collector

    registry = CollectorRegistry()
    registry.register(Collector(instances, service, groups))
    encode: Any
    encode, content_type = choose_encoder(accept)
    # Our names need no escaping, so the text is the same whichever is asked for; only this one is quick to see that.
    return encode(registry, escaping=ALLOWUTF8), content_type
