"""``python -m tests.chaos.dying ARM run CONFIG``: nsupervisor, which kills itself at a chosen instant.

While there is a file ARM, it says at which: "5" is the fifth instant from when the supervisor hears of a program's end,
"5 both" the same with the keeper killed just before, "5 start" the fifth from the beginning. "5 keeper": at the fifth
since it has a keeper it kills that one, lives itself, and removes ARM. An instant is one before something that others
can see: the state file or the stream is written to, the keeper is told something.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nsupervisor.cli.main import main
from nsupervisor.keeper import protocol
from nsupervisor.keeper.client import Keeper
from nsupervisor.logs.sink import Sink
from nsupervisor.service.state.file import StateFile


class Instants:
    """Counts them, once it is told to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left = 0
        self.victims = [os.getpid()]

    def arm(self, keeper: int = 0, when: str = "start") -> None:
        """From here on, if there is a file that says so: ``when`` is "start", "keeper" or "end"."""
        if not self.left and self.path.exists():
            number, *how = self.path.read_text().split()
            if (how[0] if how in (["start"], ["keeper"]) else "end") == when:
                self.left = int(number)
                if how == ["keeper"]:
                    self.victims = [keeper]
                elif how == ["both"]:
                    self.victims[:0] = [keeper]

    def one(self) -> None:
        """This is one; it may be the last."""
        if not self.left:
            return
        self.left -= 1
        if not self.left:
            if os.getpid() not in self.victims:
                self.path.unlink()  # the next one shall live
            for pid in self.victims:
                os.kill(pid, signal.SIGKILL)

    def before(self, owner: Any, name: str) -> None:
        """Just before each of its calls there is one."""
        original: Callable[..., Any] = getattr(owner, name)

        def counted(*arguments: Any, **more: Any) -> Any:
            self.one()
            return original(*arguments, **more)

        setattr(owner, name, counted)


def prepare(path: Path) -> None:
    """Count from now on, or from when ``path`` says."""
    instants = Instants(path)
    take, receive = Keeper._handle_message, Keeper._receive

    def taken(self: Keeper, message: dict[str, Any], fds: Any) -> None:
        if message.get("event") == "ended":
            instants.arm(self.pid, "end")
            instants.one()
        take(self, message, fds)

    async def receiving(self: Keeper) -> None:
        instants.arm(self.pid, "keeper")
        await receive(self)

    Keeper._handle_message, Keeper._receive = taken, receiving  # type: ignore[method-assign]
    for owner, name in ((StateFile, "_save_line"), (StateFile, "write_all"), (Sink, "_write"), (protocol, "send")):
        instants.before(owner, name)
    instants.arm()


if __name__ == "__main__":
    prepare(Path(sys.argv.pop(1)))
    sys.exit(main())
