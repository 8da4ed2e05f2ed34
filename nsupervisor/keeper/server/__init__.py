"""The keeper's own process: its loop, its children, and the zygote.

A keeper of another version is executed by the import path `nsupervisor.keeper.server.main`, which never changes.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsupervisor.keeper.server.loop import main

__all__ = ["main"]


def __getattr__(name: str) -> object:
    # Late, because `nsupervisor shell` uses a module of this package, and must not load the keeper's loop.
    if name == "main":
        from nsupervisor.keeper.server.loop import main

        return main
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
