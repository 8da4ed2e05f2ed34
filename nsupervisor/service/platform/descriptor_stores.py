"""The descriptor stores of all instances: descriptors that programs have stored, for their next generations.

`DescriptorStores` owns a duplicate of each, and the keeper has another: so a stored descriptor outlives a kill of
either of the two. What both lose is lost: only a program that still has it can store it again.

A request of a program is decided and counted at once, before the next message is read, so a flood of messages never
makes the service hold more than the stores allow. The keeper follows by `sync`, in the order of the messages, so that a
program whose barrier (sd_notify(3), BARRIER=1) is over knows that the keeper has what it stored. Before the service
closes a descriptor, the keeper does: so the keeper never closes the last one, which may take long.
"""

from collections.abc import Container, Sequence

import attrs
import trio

from nsupervisor.core.descriptor_store import StoredKey, StoreRequest, is_store_key, parse_store_key
from nsupervisor.keeper.connection import KeeperConnection
from nsupervisor.keeper.messages import KeeperLost, RefusedError
from nsupervisor.keeper.reconnecting import ReconnectingKeeper
from nsupervisor.service.platform.kernel import Kernel
from nsupervisor.service.platform.received_descriptors import Hangups


@attrs.define(eq=False)
class _Stored:
    """A descriptor of a store. `is_held`: the keeper has a duplicate, as far as this service knows."""

    fd: int
    is_held: bool = False

    def set_held(self) -> None:
        """Note that the keeper has it."""
        self.is_held = True


@attrs.define(eq=False)
class DescriptorStores:
    """The stored descriptors, by instance."""

    keeper: ReconnectingKeeper
    kernel: Kernel
    nursery: trio.Nursery
    """For the task that removes descriptors whose other end is closed, and for requests that nothing waits for."""
    _stores: dict[str, dict[StoredKey, _Stored]] = attrs.field(init=False, factory=dict)
    """In the order in which they came."""
    _released: dict[StoredKey, int] = attrs.field(init=False, factory=dict)
    """Removed descriptors that the keeper may still hold; they are closed when it does not any more."""
    _last_number: int = attrs.field(init=False, default=0)
    _lock: trio.Lock = attrs.field(init=False, factory=trio.Lock)
    _hangups: Hangups | None = attrs.field(init=False, default=None)
    """Watches the descriptors; None before the first one."""

    # ---- queries

    def names(self, instance: str) -> list[str]:
        """Return the names of the stored descriptors of an instance, in the order in which its program gets them."""
        return [key.name for key in self._stores.get(instance, ())]

    def passed(self, instance: str) -> list[tuple[str, str]]:
        """Return the keys of these descriptors in the keeper, each with its name in LISTEN_FDNAMES."""
        return [(str(key), key.name) for key in self._stores.get(instance, ())]

    # ---- requests of programs

    def handle(self, instance: str, maximum: int, request: StoreRequest, fds: Sequence[int]) -> str:
        """Do what a message asks for; return what was refused, in words, or "". Takes over the descriptors.

        The caller calls `sync` afterwards.
        """
        if request.removes:
            if not request.problem:
                self._remove([key for key in self._stores.get(instance, ()) if key.name == request.name])
            return ""
        refused: list[str] = []
        store = self._stores.setdefault(instance, {})
        for fd in fds:
            problem = self.kernel.descriptors.find_refusal(fd)
            is_known = not problem and any(self.kernel.descriptors.is_same(fd, other.fd) for other in store.values())
            if not problem and not is_known and len(store) >= maximum:
                problem = f"it is full with {len(store)} descriptors (file_descriptor_store_max)"
            if problem or is_known:
                self.kernel.descriptors.discard([fd])
                refused.append(problem)
                continue
            self._last_number += 1
            key = StoredKey(instance, self._last_number, request.is_polled, request.name)
            store[key] = _Stored(fd)
            self._watch(key, fd)
        texts = list(filter(None, refused))
        return f"{len(texts)} refused: {texts[0]}" if texts else ""

    def release(self, instance: str) -> None:
        """Remove all descriptors of an instance."""
        if keys := list(self._stores.get(instance, ())):
            self._remove(keys)
            self.nursery.start_soon(self.sync, instance)

    def _remove(self, keys: Sequence[StoredKey]) -> None:
        for key in keys:
            stored = self._stores[key.instance].pop(key)
            if not self._stores[key.instance]:
                del self._stores[key.instance]
            if self._hangups is not None:
                self._hangups.remove(stored.fd)
            self._released[key] = stored.fd

    # ---- the keeper

    async def sync(self, instance: str) -> str:
        """Give the keeper what is new, and have it release what was removed; return its refusal, or ""."""
        problem = ""
        async with self._lock:
            for key, stored in list(self._stores.get(instance, {}).items()):
                if stored.is_held:
                    continue
                try:
                    await self.keeper.hold(str(key), stored.fd)
                except RefusedError as error:  # it has no free descriptor
                    problem = str(error)
                    if key in self._stores.get(instance, ()):
                        self._remove([key])
                stored.set_held()
            await self._close_released()
        return problem

    async def _close_released(self) -> None:
        """Close the descriptors that were removed, after the keeper has."""
        if self._released:
            released = dict(self._released)
            await self.keeper.release([str(key) for key in released])
            for key, fd in released.items():
                if self._released.pop(key, None) is not None:
                    self.kernel.descriptors.discard([fd])

    async def begin(self, keeper: KeeperConnection, held: dict[str, int]) -> None:
        """Take what the keeper holds from an earlier service out of `held`; release what this version does not know.

        Only before anything starts.
        """
        found, unknown = {}, []
        for key in [key for key in held if is_store_key(key)]:
            fd, parsed = held.pop(key), parse_store_key(key)
            if parsed is None:
                unknown.append(key)
                self.kernel.descriptors.discard([fd])
            else:
                found[parsed] = fd
        for parsed, fd in sorted(found.items(), key=lambda item: item[0].number):
            self._stores.setdefault(parsed.instance, {})[parsed] = _Stored(fd, is_held=True)
            self._last_number = max(self._last_number, parsed.number)
            self._watch(parsed, fd)
        if unknown:
            try:
                await keeper.release(unknown)
            except KeeperLost:
                pass

    def release_others(self, instances: Container[str]) -> None:
        """Remove the descriptors of all instances but these, which are all that exist."""
        for name in [name for name in self._stores if name not in instances]:
            self.release(name)

    async def hand_over(self, keeper: KeeperConnection, held: Sequence[str]) -> None:
        """Give a keeper that replaces another one the descriptors that it lacks. Raises KeeperLost."""
        wanted = {str(key): (key, stored) for store in self._stores.values() for key, stored in store.items()}
        for text, (_, stored) in wanted.items():
            if text not in held:
                try:
                    await keeper.hold(text, stored.fd)
                except RefusedError:  # it has no free descriptor
                    continue
            stored.set_held()
        if stale := [key for key in held if is_store_key(key) and key not in wanted]:
            await keeper.release(stale)

    # ---- hangups

    def _watch(self, key: StoredKey, fd: int) -> None:
        if not key.is_polled:
            return
        if self._hangups is None:
            self._hangups = self.kernel.descriptors.open_hangups()
            self.nursery.start_soon(self._remove_hung_up, self._hangups)
        self._hangups.add(fd)

    async def _remove_hung_up(self, hangups: Hangups) -> None:
        """Remove descriptors whose other end is closed, unless they came with FDPOLL=0."""
        while hung_up := set(await hangups.wait()):
            self._remove(
                [key for store in self._stores.values() for key, stored in store.items() if stored.fd in hung_up]
            )
            async with self._lock:
                await self._close_released()

    def close(self) -> None:
        """Close the service's duplicates."""
        if self._hangups is not None:
            self._hangups.close()
            self._hangups = None
        fds = [stored.fd for store in self._stores.values() for stored in store.values()]
        self.kernel.descriptors.discard([*fds, *self._released.values()])
        self._stores.clear()
        self._released.clear()
