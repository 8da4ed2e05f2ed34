"""A scrape, from the request to the text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import trio

from nsupervisor.api.http.errors import ConnectionErrors
from nsupervisor.metrics.measures import Measures
from nsupervisor.metrics.snapshot import Instance, Service, Together

TYPE_CHECKING = False
if TYPE_CHECKING:  # the service imports us
    from nsupervisor.logs import Journal
    from nsupervisor.service.actor import Actor
    from nsupervisor.service.group import Group


@attrs.define(eq=False)
class Exposition:
    """Makes the text of scrapes, one at a time."""

    journal: Journal
    measures: Measures
    keeper_pid: int
    connection_errors: ConnectionErrors = attrs.field(factory=ConnectionErrors)
    _turn: trio.Lock = attrs.field(init=False, factory=trio.Lock)

    async def text(self, actors: Iterable[Actor], groups: Iterable[Group], accept: str) -> tuple[bytes, str]:
        """The metrics of now, and their content type: what the request's Accept header prefers.

        The event loop gets a turn after each workload, and the text is made in a thread: with a thousand workloads
        it is megabytes, and a rule must not wait for them.
        """
        async with self._turn:
            instances = []
            for actor in list(actors):
                instances.append(Instance.of(actor))
                await trio.lowlevel.checkpoint()
            together = [Together.of(group) for group in list(groups)]
            service = Service.of(self.measures, self.journal, self.keeper_pid, self.connection_errors)
            return await trio.to_thread.run_sync(_text, instances, service, accept, together, abandon_on_cancel=True)


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
