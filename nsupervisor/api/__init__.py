"""HTTP on a Unix socket: the server's application and the standard-library client.

`app` and `serve` are loaded when they are asked for: the client lives here too, and must not pay for a web server.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own costs an import
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
