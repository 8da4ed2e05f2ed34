"""States of a lifecycle; reload plans use them too."""

import enum


class State(enum.Enum):
    """The state of a lifecycle; `nsupervisor.core.lifecycle` describes each one."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    READY = "ready"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    EXITED = "exited"
    FAILED = "failed"
    FROZEN = "frozen"


ALIVE_STATES = frozenset({State.STARTING, State.RUNNING, State.READY, State.STOPPING, State.FROZEN})
"""The states in which processes of the current generation may live."""
DOWN_STATES = frozenset({State.STOPPED, State.EXITED, State.FAILED})
"""States in which no process lives and none will start by itself."""
