"""Items of security profiles that this host, or this process, cannot provide, with the reason.

Each item has its own function in `CHECKS`. An item without one can be provided everywhere.
"""

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from nsupervisor.config.model import WorkloadConfig
from nsupervisor.config.sandbox import SandboxConfig
from nsupervisor.core.isolation import Absence
from nsupervisor.core.security import Support
from nsupervisor.linux.privileges import Privileges

PROFILE_REASON = "only the security profile asks for it"
"""Why an item that cannot be provided is only a warning."""

Check = Callable[[WorkloadConfig, Any, Privileges], "Absence | None"]
"""Returns why this process cannot provide a workload with this value of an item; None if it can."""


def _needs_mounts(workload: WorkloadConfig, value: Any, privileges: Privileges) -> Absence | None:
    if workload.namespaces.mount:
        return None
    return Absence(
        "what a program sees can be changed in a mount namespace only", "write namespaces = { mount = true }"
    )


CHECKS: Mapping[str, Check] = {
    attribute.name: _needs_mounts
    for attribute in attrs.fields(SandboxConfig)
    if attribute.name not in ("device_policy", "device_allow")
}
"""By key of the table `security`."""


def security_support(privileges: Privileges) -> Support:
    """Return a function that says why a process with these privileges cannot provide an item."""

    def support(workload: WorkloadConfig, key: str, value: Any) -> Absence | None:
        check = CHECKS.get(key)
        return None if check is None else check(workload, value, privileges)

    return support
