"""A root workload sees and may use less with the default profile, and not if the key says so."""

import json
from pathlib import Path

import pytest

from tests.needs import cgroup_directories, needs
from tests.system.service import service

pytestmark = [pytest.mark.system, needs("root", "cgroup")]

PROBES = {
    "usr": "touch /usr/test-$NSUPERVISOR_WORKLOAD && rm /usr/test-$NSUPERVISOR_WORKLOAD",
    "tunables": "cat /proc/sys/vm/swappiness >/proc/sys/vm/swappiness",
    "interrupts": "grep -q . /proc/interrupts",
    "cgroups": "mkdir $1/test-$NSUPERVISOR_WORKLOAD && rmdir $1/test-$NSUPERVISOR_WORKLOAD",
    "devices": "test -e /dev/kmsg",
    "open": "test -e /dev/kmsg && true >>/dev/kmsg",
    "home": "test $(stat -c %a /root) != 0",
    "etc": "touch /etc/test-$NSUPERVISOR_WORKLOAD && rm /etc/test-$NSUPERVISOR_WORKLOAD",
    "tmp": "test -e $2/file",
}
"""Attempts by name: the first word of the output of each that succeeds."""

WORKLOADS = {
    "default": 'profile = "default"',
    "none": 'profile = "none"',
    "strict": 'profile = "strict"',
    "usr": 'profile = "default", protect_system = false',
    "etc": 'profile = "default", protect_system = "full"',
    "tunables": 'profile = "default", protect_kernel_tunables = false',
    "cgroups": 'profile = "default", protect_control_groups = false',
    "devices": 'profile = "default", private_devices = false',
    "open": 'profile = "default", private_devices = false, device_policy = "auto"',
    "allowed": 'profile = "default", device_allow = ["/dev/kmsg w"]',
}
ALL = {"usr", "tunables", "interrupts", "cgroups", "devices", "open", "home", "etc", "tmp"}
BY_DEFAULT = {"home", "etc", "tmp"}
EXPECTED = {
    "default": BY_DEFAULT,
    "none": ALL,
    "strict": set(),
    "usr": {*BY_DEFAULT, "usr"},
    "etc": BY_DEFAULT - {"etc"},
    "tunables": {*BY_DEFAULT, "tunables", "interrupts"},
    "cgroups": {*BY_DEFAULT, "cgroups"},
    "devices": {*BY_DEFAULT, "devices"},
    "open": {*BY_DEFAULT, "devices", "open"},
    "allowed": {*BY_DEFAULT, "devices", "open"},
}


def script(place: Path) -> str:
    attempts = "; ".join(f"({attempt}) >/dev/null 2>&1 && printf '{name} '" for name, attempt in PROBES.items())
    cgroups = cgroup_directories()[""]
    mount_point = next(above for above in (cgroups, *cgroups.parents) if not (above.parent / "cgroup.procs").exists())
    return f"set -- {mount_point} {place}; {attempts}; echo; exec sleep 1000"


async def test_each_item_restricts_by_default_and_not_if_its_key_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    toml = ""
    for name, security in WORKLOADS.items():
        command = json.dumps(["sh", "-c", script(tmp_path)])
        toml += f"[workload.{name}]\ncommand = {command}\nsecurity = {{ {security} }}\n"
    found = {}
    async with service(tmp_path, toml) as it:
        for name in WORKLOADS:
            record = await it.record(event="output", workload=name, stream="stdout")
            found[name] = set(record["message"].split())
    assert found == EXPECTED
