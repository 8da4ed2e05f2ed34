"""URLs of webhooks, which may contain a secret: how they are checked, and what of them may be shown."""

from __future__ import annotations

import re

_EXAMPLE = 'write for example "http://127.0.0.1:9000/hook"'
_ORIGIN = re.compile(r"https?://[^/?#]*", re.IGNORECASE)


def check_url(text: str) -> str:
    """Return the URL to POST to, parsed as the HTTP client does.

    Raises ValueError whose message ends the sentence "THE VALUE …", and does not contain the URL.
    """
    from urllib.parse import urlsplit  # imported here because few configurations need it, and it slows down every start

    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(f"is not a URL; {_EXAMPLE}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(f"is not a URL of http or https; {_EXAMPLE}")
    if "@" in parts.netloc or not text.isascii() or not text.isprintable() or " " in text or parts.fragment:
        raise ValueError(f"has more in it than a host, a port and a path in ASCII; {_EXAMPLE}")
    return text


def public_url(url: str) -> str:
    """Return the scheme, host and port of a URL; "/…" stands for the rest, which may be a secret.

    "https://hooks.example/T0/B1?token=x" → "https://hooks.example/…"
    """
    origin = _ORIGIN.match(url)
    if origin is None:
        return "…"
    return origin[0] + ("/…" if url[origin.end() :].strip("/") else url[origin.end() :])
