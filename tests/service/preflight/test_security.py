"""The items of the security of a workload that a process or a kernel cannot provide."""

import errno
import os
from types import SimpleNamespace

import pytest

from nsupervisor.config.landlock import LandlockConfig
from nsupervisor.config.load import parse
from nsupervisor.core.isolation import Absence
from nsupervisor.linux import syscalls
from nsupervisor.linux.privileges import SYS_ADMIN, Privileges
from nsupervisor.service.preflight.security import kernel_version, security_support

ROOT = Privileges(0, 0, 1 << SYS_ADMIN, ((0, 2**32 - 1),), ((0, 2**32 - 1),), {"nice": 0}, 0)
CONTAINED = ROOT._replace(uid_map=((0, 65_536),))


def absence(key: str, value: object, own: Privileges = ROOT, keys: str = "", no_cgroups: Absence | None = None) -> str:
    workload = parse(f'[workload.web]\ncommand = ["web"]\n{keys}\n', "site.toml").workloads["web"]
    return str(security_support(own, no_cgroups)(workload, key, value) or "")


@pytest.mark.parametrize(
    ("release", "version"),
    [("6.18.0-x86", (6, 18)), ("5.4", (5, 4)), ("4.19.1", (4, 19)), ("6.12-rc1", (6, 12)), ("unknown", (0, 0))],
)
def test_the_version_of_the_kernel(monkeypatch: pytest.MonkeyPatch, release: str, version: tuple[int, int]) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    assert kernel_version() == version


def test_what_a_program_sees_needs_a_mount_namespace_and_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert absence("private_devices", True) == ""
    assert "in a mount namespace only" in absence("private_devices", True, keys="namespaces = { mount = false }")
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release="5.10.0"))
    assert "use Linux 5.12 or later" in absence("protect_system", True)


def test_devices_are_restricted_by_root_of_the_host_and_in_a_cgroup() -> None:
    assert absence("device_policy", "closed") == ""
    assert "only root with CAP_SYS_ADMIN" in absence("device_policy", "closed", CONTAINED)
    missing = Absence("no cgroup can be made", "make one")
    assert absence("device_policy", "closed", no_cgroups=missing) == str(missing)


def test_landlock_needs_a_version_of_the_abi(monkeypatch: pytest.MonkeyPatch) -> None:
    given = LandlockConfig(read=("/usr",), write=())
    monkeypatch.setattr(syscalls, "landlock_abi", lambda: 2)
    assert absence("landlock", given) == (
        "write needs version 3 of Landlock's ABI (Linux 6.2): this kernel has version 2, which does not restrict "
        "truncate(2); remove write, or use a newer kernel"
    )
    monkeypatch.setattr(syscalls, "landlock_abi", lambda: 3)
    assert absence("landlock", given) == ""


@pytest.mark.parametrize(
    ("number", "text"),
    [(errno.ENOSYS, "this kernel has no Landlock"), (errno.EOPNOTSUPP, 'boot with "landlock" in lsm=')],
)
def test_a_kernel_without_landlock(monkeypatch: pytest.MonkeyPatch, number: int, text: str) -> None:
    def fail() -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(syscalls, "landlock_abi", fail)
    assert text in absence("landlock", LandlockConfig(read=()))
