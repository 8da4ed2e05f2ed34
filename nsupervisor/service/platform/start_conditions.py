"""The facts of this host that conditions of starts are about. A file system that does not answer blocks the calls."""

import os
import stat

from nsupervisor.core.start_conditions import HostFacts, StartCondition, find_unmet


def _path_exists(path: str) -> bool:
    """Check whether a path leads to something; symbolic links are followed, access(2)."""
    return os.path.exists(path)


def _file_is_not_empty(path: str) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size > 0


def find_unmet_condition(conditions: tuple[StartCondition, ...]) -> StartCondition | None:
    """Return the first condition that is not met on this host; None if all are."""
    return find_unmet(conditions, HostFacts(os.uname().nodename, os.environ, _path_exists, _file_is_not_empty))
