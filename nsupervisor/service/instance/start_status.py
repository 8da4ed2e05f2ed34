"""The pending start of an instance, as its status and its checkpoint show it."""

import attrs

from nsupervisor.core.initiators import Initiator


@attrs.frozen
class StartStatus:
    """The report of `nsupervisor.service.jobs` to an actor about its start."""

    requested_by: Initiator | None = None
    """The initiator of the start that waits; None if none does."""
    waits_for: str = ""
    """The workloads that the start waits for, or the requirement that stopped it, in words; or ""."""
    replaces: int | None = None
    """The generation that was the latest when the start was requested: the start follows its end."""


NO_START = StartStatus()
