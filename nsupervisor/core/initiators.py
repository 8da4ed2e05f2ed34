"""Initiators of commands: who or what has asked for a start, a stop or another change of a workload.

An `Initiator` is its text, "operator" or "with postgres", with the parts that the text was made of. Reasons, state
files and traces have the text, as in version 0.1.0; `Initiator.from_text` finds the parts again. Only the details of a
person (uid and pid) are not in the text, because they say nothing that stays true of a workload.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

InitiatorKind = Literal[
    "person", "token", "workload", "rule", "timer", "dependency", "socket", "path", "hook", "boot", "reload", "shutdown"
]
"""The kinds of sources: a person by the command line or the API; a holder of an API token; a process of a workload by
the API; a rule; a timer; a relation to another workload; a connection; a path; a hook; the start of the service; a
reload; the end of the service."""
_KINDS = get_args(InitiatorKind)

BENEFICIAL_KEYS = ("upholds", "conflicts", "on_failure", "on_success")
"""Keys by which a workload changes others for itself ("for web"); other keys take them along ("with web")."""
_RELATION = re.compile(r"(with|for) ([^ ]+)(?: \(([a-z_]+)\))?")
_NAMED = re.compile(r"(token|workload|timer|socket|path|hook) (.+)")


class Initiator(str):
    """The source of a command. As a string, it is its text for sentences; see `phrase`.

    `name`: the workload, rule, token, timer, … of that kind; of a person "operator", or the signal that was sent.
    `detail`: of a rule its condition, of a dependency the key, of a person "uid UID, pid PID" if that is known.
    """

    kind: InitiatorKind
    name: str
    detail: str

    def __new__(cls, kind: InitiatorKind, name: str = "", detail: str = "") -> Initiator:
        """Make the text from the parts."""
        initiator = super().__new__(cls, _text(kind, name, detail))
        initiator.kind, initiator.name, initiator.detail = kind, name, detail
        return initiator

    @classmethod
    def from_text(cls, text: str) -> Initiator:
        """Return the initiator of a text; one that names nothing else is taken for a person."""
        if isinstance(text, cls):
            return text
        if relation := _RELATION.fullmatch(text):
            return cls("dependency", relation[2], relation[3] or "")
        if named := _NAMED.fullmatch(text):
            return cls(cast(InitiatorKind, named[1]), named[2])
        if text in ("boot", "shutdown"):
            return cls(cast(InitiatorKind, text))
        return cls("reload", text) if text in ("reload", "configuration") else cls("person", text)

    @classmethod
    def from_parts(cls, parts: Any) -> Initiator:
        """Return the initiator of an object that `parts` has made. Raises ValueError for anything else."""
        if not isinstance(parts, dict) or not all(isinstance(value, str) for value in parts.values()):
            raise ValueError(f"has {parts!r} in place of an initiator")
        if parts.get("kind") not in _KINDS:
            raise ValueError(f"has {parts.get('kind')!r} in place of one of {', '.join(_KINDS)}")
        return cls(parts["kind"], parts.get("name", ""), parts.get("detail", ""))

    def parts(self) -> Mapping[str, str]:
        """Return the parts that are not empty, as traces have them."""
        parts = {"kind": self.kind, "name": self.name, "detail": self.detail}
        return {key: value for key, value in parts.items() if value}

    def cause(self) -> dict[str, str]:
        """Return the cause of a record: the text, the kind, and of a person the details, which the text lacks."""
        details = {"detail": self.detail} if self.kind == "person" and self.detail else {}
        return {"by": str(self), "kind": self.kind, **details}

    @property
    def phrase(self) -> str:
        """The source of a command for a sentence: "by operator", "with postgres", "for web (upholds)"."""
        return str(self) if self.kind == "dependency" else f"by {self}"

    @property
    def is_in_text(self) -> bool:
        """Whether `from_text` finds all parts again in the text."""
        return Initiator.from_text(str(self)).parts() == self.parts()

    @property
    def is_request(self) -> bool:
        """Whether it asks for this workload itself, so that no other workload may change what it has asked for."""
        return self.kind in ("person", "token", "workload", "rule")


def _text(kind: InitiatorKind, name: str, detail: str) -> str:
    match kind:
        case "person" | "reload":
            return name or kind
        case "rule":
            return f"{name} ({detail})" if detail else name
        case "dependency":
            preposition = "for" if detail in BENEFICIAL_KEYS else "with"
            return f"{preposition} {name} ({detail})" if detail else f"{preposition} {name}"
        case "boot" | "shutdown":
            return kind
    return f"{kind} {name}"


OPERATOR = Initiator("person", "operator")
"""A person without known details."""
BOOT = Initiator("boot")
"""A start that is due because the service starts."""
RELOAD = Initiator("reload", "reload")
CONFIGURATION = Initiator("reload", "configuration")
"""A removal that is due because the configuration lacks the instance."""
SHUTDOWN = Initiator("shutdown")
"""The shutdown of the service ends everything."""


def to_initiator(text: str) -> Initiator:
    """Return the initiator of a text: see `Initiator.from_text`."""
    return Initiator.from_text(text)


def person(uid: int, pid: int) -> Initiator:
    """Return the person whose process has connected, unix(7) SO_PEERCRED."""
    return Initiator("person", "operator", f"uid {uid}, pid {pid}")


def by_workload(name: str) -> Initiator:
    """Return the initiator of a command of a process in the workload instance `name`."""
    return Initiator("workload", name)


def by_relation(name: str, key: str = "") -> Initiator:
    """Return the initiator of a command that follows from a command about, or the end of, the workload `name`.

    key: the key that relates them; "" for `requires`, as in version 0.1.0.
    """
    return Initiator("dependency", name, key)
