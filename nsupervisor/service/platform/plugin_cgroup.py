"""The cgroup in which plugins of networks run: what they use is limited, and nothing that they start stays.

All plugins share it. It is emptied whenever none of them runs, so a process that has left its plugin's session is
killed as well. It is made when the first plugin runs, and is in the tree of the service, which removes it at the end.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs

from nsupervisor.cgroups import Cgroup, CgroupError
from nsupervisor.config.model import Resources

NAME = "plugins"
LIMITS = Resources(memory_max=512 << 20, pids_max=512)
"""The limits of all plugins together. Each one is a small program, and there is one at a time for each instance."""


@attrs.define(eq=False)
class PluginCgroup:
    """The cgroup of the plugins of one service."""

    make: Callable[[str, Resources], Cgroup]
    """Makes it, as `Tree.make_helper` does."""
    warn: Callable[[str, str], None]
    _cgroup: Cgroup | None = attrs.field(init=False, default=None)
    _running: int = attrs.field(init=False, default=0)
    """The number of plugins that run."""
    _has_failed: bool = attrs.field(init=False, default=False)

    @contextmanager
    def entered(self) -> Iterator[tuple[str, ...]]:
        """Yield the files to which a plugin writes 0 to enter; none if there is no such cgroup, which is reported."""
        files = self._files()
        self._running += 1
        try:
            yield files
        finally:
            self._running -= 1
            if not self._running:
                self._empty()

    def _files(self) -> tuple[str, ...]:
        if self._cgroup is None and not self._has_failed:
            try:
                self._cgroup = self.make(NAME, LIMITS)
            except CgroupError as error:
                self._has_failed = True
                self.warn("", f"plugins of networks run without limits: {error}")
        if self._cgroup is None or self._cgroup.shown_path is None:
            return ()
        return (f"{self._cgroup.path}/cgroup.procs", *self._cgroup.join_files)

    def _empty(self) -> None:
        if self._cgroup is not None and self._cgroup.shown_path is not None:
            try:
                if self._cgroup.pids():
                    self._cgroup.kill()
            except (CgroupError, OSError) as error:
                self.warn("", f"cannot end what plugins of networks have left: {error}")
