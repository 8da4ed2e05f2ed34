"""`nsupervisor.core.sandbox`: the paths and devices of a program, by the keys of its security."""

import pytest

from nsupervisor.config.load import parse
from nsupervisor.config.problems import ConfigError
from nsupervisor.core import sandbox as core
from nsupervisor.core.sandbox import CONTROL_GROUPS, MASKED_PATHS, READ_ONLY_PATHS, SYSTEM_PATHS, sandbox
from nsupervisor.core.security import values
from nsupervisor.keeper.setup import sandbox as keeper


def of(security: str, profile: str = "none") -> dict | None:
    text = f'[workload.web]\ncommand = ["web"]\nsecurity = {{ profile = "{profile}", {security} }}\n'
    return sandbox(values(parse(text, "site.toml").workloads["web"].security))


def paths(security: str) -> dict[str, str]:
    found = of(security)
    return {} if found is None else dict(found["paths"])


def test_both_sides_use_the_same_words() -> None:
    for word in ("READ_ONLY", "READ_WRITE", "MASKED", "INACCESSIBLE", "TEMPORARY"):
        assert getattr(core, word) == getattr(keeper, word)


def test_without_keys_a_program_sees_what_the_host_has() -> None:
    assert of("no_new_privileges = true") is None


@pytest.mark.parametrize(
    ("security", "expected"),
    [
        ("protect_system = true", dict.fromkeys(SYSTEM_PATHS, "read-only")),
        ('protect_system = "full"', dict.fromkeys((*SYSTEM_PATHS, "/etc"), "read-only")),
        ('protect_system = "strict"', {"/": "read-only", "/sys": "read-write", CONTROL_GROUPS: "read-write"}),
        ("protect_home = true", dict.fromkeys(("/home", "/root", "/run/user"), "inaccessible")),
        ('protect_home = "read-only"', dict.fromkeys(("/home", "/root", "/run/user"), "read-only")),
        ('protect_home = "tmpfs"', dict.fromkeys(("/home", "/root", "/run/user"), "temporary")),
        ("private_tmp = true", {"/tmp": "temporary", "/var/tmp": "temporary"}),
        (
            "protect_kernel_tunables = true",
            {
                **dict.fromkeys(MASKED_PATHS, "masked"),
                **dict.fromkeys(READ_ONLY_PATHS, "read-only"),
                CONTROL_GROUPS: "read-write",
            },
        ),
        ("protect_control_groups = true", {CONTROL_GROUPS: "read-only"}),
        ('protect_control_groups = "strict"', {CONTROL_GROUPS: "own cgroup"}),
        ("protect_kernel_modules = true", {"/usr/lib/modules": "inaccessible", "-/lib/modules": "inaccessible"}),
        ("protect_kernel_logs = true", {"/proc/kmsg": "masked", "-/dev/kmsg": "masked"}),
        ("protect_kernel_logs = true, private_devices = true", {"/proc/kmsg": "masked"}),
        ("protect_clock = true", {"-/dev/rtc0": "masked", "-/dev/rtc1": "masked"}),
        ('read_only_paths = ["/a", "-/b"]', {"/a": "read-only", "-/b": "read-only"}),
    ],
)
def test_each_key_has_its_paths(security: str, expected: dict) -> None:
    assert paths(security) == expected


def test_a_path_of_the_user_overrides_the_profile() -> None:
    found = paths('protect_system = true, read_write_paths = ["-/usr", "/a"], inaccessible_paths = ["/a"]')
    assert found["-/usr"] == "read-write"
    assert "/usr" not in found
    assert found["/a"] == "inaccessible"
    found = paths('protect_kernel_tunables = true, read_only_paths = ["/proc/interrupts"]')
    assert found["/proc/interrupts"] == "read-only", "so it is not masked"


def test_the_devices_of_a_program() -> None:
    found = of('private_devices = true, device_allow = ["/dev/fuse rw", "-/dev/dri"], shm_size = "1M"')
    assert found == {"devices": {"nodes": ["/dev/fuse", "-/dev/dri"], "shm_size": 1 << 20}}
    assert of("private_devices = true") == {"devices": {"nodes": [], "shm_size": 64 << 20}}


def test_the_options_of_proc() -> None:
    assert of('protect_proc = "invisible", proc_subset = "pid"') == {"proc": "hidepid=invisible,subset=pid"}


@pytest.mark.parametrize(
    ("security", "message"),
    [
        ('protect_system = "ful"', 'did you mean "full"?; write true, false, "full" or "strict"'),
        ('protect_home = "strict"', 'write true, false, "read-only" or "tmpfs"'),
        ('read_only_paths = ["srv"]', "is not an absolute path"),
        ('read_only_paths = ["/srv/../etc"]', 'has a ".." in it'),
        ('read_only_paths = "/srv"', 'is not a list; write ["/srv"]'),
        ('device_allow = ["/etc/passwd rw"]', "is not a device"),
        ('device_allow = ["/dev/fuse rx"]', "has no valid access"),
        ('protect_proc = "hidden"', "is not one of the choices"),
    ],
)
def test_what_a_key_cannot_be(security: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        of(security)
    assert message in str(raised.value)
