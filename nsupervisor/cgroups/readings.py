"""The reading of one cgroup file, as it is passed to callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter

import attrs


@attrs.frozen
class Reading:
    """The content of one file of one cgroup.

    `file`: its v2 name. `values`: by v2 keys ("" in single-value files).
    """

    file: str
    values: Mapping[str, float]
    read_at: float = attrs.field(factory=perf_counter, eq=False, repr=False)
    """The time of the reading (`time.perf_counter`)."""
