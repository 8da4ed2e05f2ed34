"""Checkpoints that are saved a moment later, if nothing has saved a newer one until then.

They only say that something has been done: that an action was carried out, or that a record is in the output. If the
supervisor is killed before, the next one does it again, as after a kill in the middle of it. While many programs stop,
or restart, most of them are never written, since the next event of the instance saves its state anyway.
"""

from collections.abc import Callable

import attrs
import trio

DELAY_S = 0.1
"""Seconds until a checkpoint is saved."""
MAX_DELAY_S = 1.0
"""The most seconds, while the event loop is busy: the next events are then late, too."""
_LATE_S = 0.02
"""Seconds that a sleep takes longer than intended if the event loop is busy."""


@attrs.define(eq=False)
class LaterSaves:
    """The checkpoints of all instances that are to be saved, by name."""

    nursery: trio.Nursery
    _waiting: dict[str, Callable[[], None]] = attrs.field(init=False, factory=dict)
    _has_task: bool = attrs.field(init=False, default=False)

    def add(self, name: str, save: Callable[[], None]) -> None:
        """Call `save` soon, unless `discard` or another `add` comes before."""
        self._waiting[name] = save
        if not self._has_task:
            self._has_task = True
            self.nursery.start_soon(self._run)

    def discard(self, name: str) -> None:
        """Forget a checkpoint: a newer one has been saved."""
        self._waiting.pop(name, None)

    def save_all(self) -> None:
        """Save all that wait, at once."""
        waiting, self._waiting = self._waiting, {}
        for save in waiting.values():
            save()

    async def _run(self) -> None:
        began_at = trio.current_time()
        is_busy = True
        while is_busy and self._waiting and trio.current_time() < began_at + MAX_DELAY_S:
            due_at = trio.current_time() + DELAY_S
            await trio.sleep_until(due_at)
            is_busy = trio.current_time() > due_at + _LATE_S
        self._has_task = False
        self.save_all()
