"""The error of a step between clone and exec, and its report to the keeper."""

from __future__ import annotations

import errno
import functools
import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_MESSAGE = 4096
"""Characters of a message in a report."""

CGROUP_HINTS = {
    errno.EAGAIN: "a limit on processes is reached, such as pids_max",
    errno.ENODEV: "the cgroup has been removed",
    errno.EBUSY: "the cgroup has controllers enabled for its children, so it can't hold processes itself",
    errno.EOPNOTSUPP: "the cgroup is in an invalid state, see its cgroup.type",
    errno.EACCES: "the cgroup is not delegated to this user",
    errno.EBADF: "what was given as the cgroup is not a cgroup of version 2",
}
"""Hints for the errors of clone3 with a cgroup, by errno."""


class StepError(Exception):
    """A step failed. The text is a whole sentence for people; `number` is the errno, or 0."""

    def __init__(self, message: str, number: int = 0) -> None:
        super().__init__(message)
        self.number = number


def step_error(operation: str, error: OSError, hint: str = "") -> StepError:
    """Build the error of a failed step: `cannot enter /srv/site: No such file or directory`."""
    return StepError(_sentence(operation, error.strerror, hint), error.errno or 0)


def _sentence(operation: str, reason: str | None, hint: str) -> str:
    return f"cannot {operation}: {reason}{f' ({hint})' if hint else ''}"


def encode_failure(step: str, message: str, number: int) -> bytes:
    """Encode the report of a failed step."""
    return json.dumps({"step": step, "message": message[:MAX_MESSAGE], "errno": number}).encode()


@functools.lru_cache(256)
def begin_failure(step: str, operation: str, hints: tuple[tuple[int, str], ...] = (), path: str = "") -> bytes:
    """Encode the beginning of a report, which a C program completes with the errno and a brace.

    `hints`: by errno, what to add to the sentence. `path`: of the program, which ENOENT may not be about.
    """
    operation = operation[:MAX_MESSAGE]
    fields: dict[str, Any] = {"step": step, "message": f"cannot {operation}", "operation": operation}
    if hints:
        fields["hints"] = {str(number): text for number, text in hints}
    if path:
        fields["path"] = path
    return json.dumps(fields)[:-1].encode() + b', "errno": '


def decode_failure(data: bytes) -> dict[str, Any]:
    """Decode, in the keeper, the report of a failed step: "step", "message" and "errno"."""
    failure: dict[str, Any] = json.loads(data)
    if "operation" not in failure:
        return failure
    number = failure["errno"]
    hint = failure.get("hints", {}).get(str(number), "")
    if not hint and number == errno.ENOENT and "path" in failure and os.path.exists(failure["path"]):
        hint = "the file is there, so the interpreter that it names is not"
    message = _sentence(failure["operation"], os.strerror(number), hint)
    return {"step": failure["step"], "message": message[:MAX_MESSAGE], "errno": number}
