"""The states of a life, which the plan of a reload speaks of, too."""

import enum


class State(enum.Enum):
    """Where a life stands; the head of `nsupervisor.core.lifecycle` says what each means."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    READY = "ready"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    EXITED = "exited"
    FAILED = "failed"
    FROZEN = "frozen"


ALIVE = frozenset({State.STARTING, State.RUNNING, State.READY, State.STOPPING, State.FROZEN})
"""The states in which processes of the current generation may live."""
