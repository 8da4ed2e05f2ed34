"""The keeper's own log: records on standard error, in the format of the supervisor's journal."""

from __future__ import annotations

import json
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsupervisor.linux.peers import PeerRefused

REFUSALS_INTERVAL_S = 60.0
"""Seconds between two records about refused connections."""


class RefusalLog:
    """Logs refused connections, at most once per `REFUSALS_INTERVAL_S`: a workload can cause any number."""

    __slots__ = ("_count", "_next_record_at")

    def __init__(self) -> None:
        self._count = 0
        self._next_record_at = 0.0

    def record(self, refused: PeerRefused) -> None:
        """Count a refusal, and log it unless one was logged within the interval."""
        self._count += 1
        now = time.monotonic()
        if now < self._next_record_at:
            return
        count, self._count, self._next_record_at = self._count, 0, now + REFUSALS_INTERVAL_S
        peer = refused.peer
        facts = {"peer_pid": peer.pid, "peer_uid": peer.uid, "peer_cgroup": peer.cgroup}
        write_record("warning", "keeper refused a connection", message=str(refused), connections=count, **facts)


def log_defect(error: BaseException) -> None:
    """Log an exception that is a defect in the keeper, with the place where it was raised."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    where = f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}" if traceback else ""
    write_record("error", "defect in the keeper", error=f"{type(error).__name__}: {error}", where=where)


def write_record(level: str, event: str, **fields: object) -> None:
    """Write a record to standard error in the journal's format. An error of the write is ignored."""
    now = time.time()
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    timestamp = f"{seconds}.{int(now % 1 * 1_000_000):06}Z"
    record = {"timestamp": timestamp, "level": level, "event": event, **fields, "pid": os.getpid()}
    try:
        os.write(2, json.dumps(record).encode() + b"\n")
    except OSError:
        pass
