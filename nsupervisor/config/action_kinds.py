"""Value kinds for the actions of rules, [[workload.NAME.policy]]; the other kinds are in `kinds`."""

from __future__ import annotations

from typing import Any

from nsupervisor.config.kinds import MAX_SOCKET_PATH, PATH, WORD, Choice, Scalar


def _url(value: Any) -> str:
    """Load the URL to POST to, with the same parser as the HTTP client."""
    from urllib.parse import urlsplit  # imported here because few configurations need it, and it slows down every start

    text = str(WORD.load(value))
    example = 'write for example "http://127.0.0.1:9000/hook"'
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(f"is not a URL; {example}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(f"is not a URL of http or https; {example}")
    if "@" in parts.netloc or not text.isascii() or not text.isprintable() or " " in text or parts.fragment:
        raise ValueError(f"has more in it than a host, a port and a path in ASCII; {example}")
    return text


def _socket(value: Any) -> str:
    text = str(PATH.load(value))
    if len(text.encode()) > MAX_SOCKET_PATH:
        raise ValueError(f"is longer than the path of a socket can be; write one of at most {MAX_SOCKET_PATH} bytes")
    return text


def _steps_kind(action: Choice) -> Scalar:
    """Build a kind for one action or a sequence of actions; its value becomes a tuple."""

    def load(value: Any) -> tuple[str, ...]:
        if isinstance(value, list):
            if not 1 <= len(value) <= 8:
                raise ValueError('is no list of steps; write for example ["restart", "stop"]')
            return tuple(action.load(item) for item in value)
        return (action.load(value),)

    action_schema = dict(action.schema)
    return Scalar(
        load, {"anyOf": [action_schema, {"type": "array", "items": action_schema, "minItems": 1, "maxItems": 8}]}
    )


URL = Scalar(_url, {"type": "string", "pattern": "^https?://[^@# ]+$"})
SOCKET = Scalar(_socket, {"type": "string", "pattern": "^/"})
ACTION = Choice(
    *("log", "notify", "webhook", "exec", "set", "signal", "thaw", "freeze", "restart", "kill", "stop"),
)
STEPS = _steps_kind(ACTION)
GROUP_ACTION = Choice(*(word for word in ACTION.words if word not in ("set", "thaw")))
GROUP_STEPS = _steps_kind(GROUP_ACTION)
