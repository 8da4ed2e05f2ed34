"""The HTTP API on a Unix socket: the server's application, and a client that uses only the standard library.

`app` and `serve` are imported when they are first used: the client is in this package, too, and must not import a web
server.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing for its constant takes time
if TYPE_CHECKING:
    from typing import Any

    from nsupervisor.api.application import app
    from nsupervisor.api.server import serve

__all__ = ["app", "serve"]


def __getattr__(name: str) -> Any:
    if name == "app":
        from nsupervisor.api.application import app

        return app
    if name == "serve":
        from nsupervisor.api.server import serve

        return serve
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
