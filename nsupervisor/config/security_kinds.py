"""Kinds of the values in the table `security`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nsupervisor.capability_names import NAMES
from nsupervisor.config.kinds import PATH, Scalar
from nsupervisor.config.quoting import did_you_mean
from nsupervisor.config.system_calls import ADDRESS_FAMILIES, WORDS

SECURE_BITS = {
    "noroot": 0x1, "noroot-locked": 0x2, "no-setuid-fixup": 0x4, "no-setuid-fixup-locked": 0x8, "keep-caps": 0x10,
    "keep-caps-locked": 0x20,
}  # fmt: skip
"""Bits by systemd's names, capabilities(7)."""
NAMESPACE_KINDS = ("mount", "cgroup", "uts", "ipc", "user", "pid", "network", "time")


def _words(
    known: Mapping[str, Any] | tuple[str, ...], what: str, normalize: Callable[[str], str], marks: tuple[str, ...] = ()
) -> Scalar:
    """Create a kind for one of the `known` words, before which one of the `marks` may be."""

    def load(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"is not a string; write the name of {what}")
        mark = value[:1] if value[:1] in marks else ""
        word = normalize(value.removeprefix(mark))
        if word not in known:
            raise ValueError(f"is not the name of {what}{did_you_mean(word, known)}; write another one")
        return mark + word

    return Scalar(load, {"type": "string"})


def _capability(text: str) -> str:
    name = text.upper()
    return name.removeprefix("CAP_")


CAPABILITY = _words((*NAMES, "ALL"), "a capability, capabilities(7)", _capability)
BOUNDED_CAPABILITY = _words((*NAMES, "ALL"), "a capability, capabilities(7)", _capability, ("+", "-"))
SECURE_BIT = _words(SECURE_BITS, "a secure bit", str)
SYSTEM_CALL = _words(WORDS, "a system call, or of a group of them", str, ("~",))
ADDRESS_FAMILY = _words((*ADDRESS_FAMILIES, "none"), "an address family", str, ("~",))


def _seccomp(value: Any) -> str:
    if value in ("default", "off", "log"):
        return str(value)
    if isinstance(value, str) and value.startswith("/"):
        return str(PATH.load(value))
    raise ValueError('is not a filter; write "default", "off", "log", or the absolute path of a file')


SECCOMP = Scalar(_seccomp, {"type": "string", "pattern": r"^(?:default|off|log|/[^\u0000]*)$(?!\n)"})


def _restricted_namespaces(value: Any) -> tuple[str, ...]:
    """Return the kinds of namespaces that are refused, each with "~" before it."""
    if isinstance(value, bool):
        return tuple(f"~{kind}" for kind in NAMESPACE_KINDS) if value else ()
    if isinstance(value, list) and value and all(isinstance(word, str) for word in value):
        refused = [word[1:] for word in value if word.startswith("~")]
        named = refused or value
        if len(refused) in (0, len(value)) and set(named) <= set(NAMESPACE_KINDS):
            return tuple(f"~{kind}" for kind in NAMESPACE_KINDS if (kind in named) == bool(refused))
    raise ValueError(
        f'is not a choice of namespaces; write true, false, or a list of those that are allowed ("user"), or refused '
        f'("~user"): {", ".join(NAMESPACE_KINDS)}'
    )


RESTRICTED_NAMESPACES = Scalar(
    _restricted_namespaces,
    {
        "anyOf": [
            {"type": "boolean"},
            {
                "type": "array",
                "minItems": 1,
                "items": {"enum": [f"{m}{k}" for m in ("", "~") for k in NAMESPACE_KINDS]},
            },
        ]
    },
)
