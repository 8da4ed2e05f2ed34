"""What is read of cgroups, as it is handed about."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter

import attrs


@attrs.frozen
class Reading:
    """What one file of one cgroup said: `file` by its v2 name, `values` by its v2 keys ("" in single-value files)."""

    file: str
    values: Mapping[str, float]
    at: float = attrs.field(factory=perf_counter, eq=False, repr=False)
    """When it was read (`time.perf_counter`)."""
