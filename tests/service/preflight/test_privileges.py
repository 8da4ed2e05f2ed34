"""Privileges that the service lacks are reported before anything starts, with what to do instead."""

import os
import resource
from types import MappingProxyType

import pytest

from nsupervisor.config.load import parse
from nsupervisor.config.model import Config
from nsupervisor.linux.privileges import SYS_ADMIN, SYS_NICE, SYS_RESOURCE, Privileges, own_privileges
from nsupervisor.service.preflight.privileges import explain_permission_error, has_uid_ranges, missing_privileges

USER = Privileges(
    uid=1000,
    gid=100,
    capabilities=0,
    uid_map=((1000, 1),),
    gid_map=((100, 1),),
    hard_limits=MappingProxyType({"nofile": 1024, "core": resource.RLIM_INFINITY, "nice": 0}),
    niceness=0,
)
ALL_IDS = ((0, 4294967295),)
ROOT = USER._replace(uid=0, gid=0, capabilities=-1, uid_map=ALL_IDS, gid_map=ALL_IDS)
NO_NAMESPACES = "namespaces = { pid = false, mount = false, ipc = false, uts = false, cgroup = false }"
ONE_ID = "[{ container_id = 0, host_id = 1000, size = 1 }]"


def config(*keys: str) -> Config:
    return parse("\n".join(('[workload.web]\ncommand = ["true"]', *keys)), "site.toml")


def missing(privileges: Privileges, *keys: str) -> dict[str, str]:
    return dict(missing_privileges(config(*keys).workloads["web"], privileges))


def with_capability(number: int) -> Privileges:
    return USER._replace(capabilities=1 << number)


ALL_KEYS = ('user = "root"', 'supplementary_groups = ["games"]', "nice = -5", "security = { limit_nofile = 4096 }")


def test_root_lacks_nothing() -> None:
    assert missing(ROOT, *ALL_KEYS) == {}
    assert missing(ROOT, "namespaces = { user = true }") == {}


def test_namespaces_need_a_capability_or_a_user_namespace() -> None:
    (problem,) = missing(USER).values()
    assert problem.startswith("new namespaces (")
    assert "need CAP_SYS_ADMIN, which user 1000 does not have here; set namespaces.user = true" in problem
    assert missing(USER, NO_NAMESPACES) == missing(USER, "namespaces = { user = true }") == {}
    assert missing(with_capability(SYS_ADMIN)) == {}
    assert "which root does not have" in missing(USER._replace(uid=0))["namespaces"]


def test_another_user_or_group_needs_capabilities() -> None:
    problems = missing(USER, 'user = "root"', 'supplementary_groups = ["games"]', NO_NAMESPACES)
    assert list(problems) == ["user", "supplementary_groups"]
    assert problems["user"].startswith("to become another user or group needs CAP_SETUID and CAP_SETGID, which user")


@pytest.mark.parametrize(
    ("mappings", "keys"),
    [
        ("", []),
        (f"uid_mappings = {ONE_ID}\ngid_mappings = {ONE_ID.replace('1000', '100')}", []),
        (f"uid_mappings = {ONE_ID.replace('1000', '2000')}\ngid_mappings = {ONE_ID}", ["user_namespace"] * 2),
        (f"uid_mappings = {ONE_ID}\ngid_mappings = {ONE_ID}", ["user_namespace"]),
    ],
)
def test_a_user_without_privileges_can_map_its_own_ids_only(mappings: str, keys: list[str]) -> None:
    workload = config("namespaces = { user = true }", "[workload.web.user_namespace]", mappings).workloads["web"]
    assert [key for key, _ in missing_privileges(workload, USER)] == keys


def test_a_range_of_ids_of_its_own_needs_capabilities() -> None:
    restricted = ROOT._replace(capabilities=0)
    problem = missing(restricted, "namespaces = { user = true }")["namespaces.user"]
    assert problem.startswith("a range of ids of its own needs CAP_SETUID and CAP_SETGID, which root does not have")


@pytest.mark.parametrize(("id_map", "covers"), [((0, 4294967295), True), ((0, 65_536), False), ((0, 600_000), False)])
def test_ranges_need_ids_that_the_user_namespace_has(id_map: tuple[int, int], covers: bool) -> None:
    """The first user namespace has all ids; that of a container without root has few."""
    assert has_uid_ranges(ROOT._replace(uid_map=(id_map,), gid_map=ALL_IDS)) is covers
    assert has_uid_ranges(ROOT._replace(uid_map=ALL_IDS, gid_map=(id_map,))) is covers
    assert not has_uid_ranges(ROOT._replace(uid=1000))


def test_a_limit_above_the_hard_limit_needs_a_capability() -> None:
    above = "security = { limit_nofile = 4096 }"
    problem = missing(USER, NO_NAMESPACES, above)["security.limit_nofile"]
    assert problem.startswith("above the hard limit of 1024 needs CAP_SYS_RESOURCE, which user 1000 does not have here")
    assert "write at most 1024, or raise the limit of the service (LimitNOFILE= of its systemd unit)" in problem
    assert missing(with_capability(SYS_RESOURCE), NO_NAMESPACES, above) == {}
    assert missing(USER, NO_NAMESPACES, "security = { limit_nofile = 1024, limit_core = 4096 }") == {}
    problem = missing(ROOT, "namespaces = { user = true }", above)["security.limit_nofile"]
    assert "which a program in a user namespace does not have" in problem


def test_a_lower_niceness_needs_a_capability_or_a_limit() -> None:
    problem = missing(USER, NO_NAMESPACES, "nice = -5")["nice"]
    assert problem.startswith("below 0 needs CAP_SYS_NICE, which user 1000 does not have here; write at least 0")
    assert missing(with_capability(SYS_NICE), NO_NAMESPACES, "nice = -5") == {}
    for limit in (30, resource.RLIM_INFINITY):
        allowed = USER._replace(hard_limits={**USER.hard_limits, "nice": limit})
        assert missing(allowed, NO_NAMESPACES, "nice = -5") == {}


def test_the_privileges_of_this_process_are_those_of_its_user() -> None:
    own = own_privileges()
    assert own.hard_limits["nofile"] == resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert (own.uid, own.gid) == (os.geteuid(), os.getegid())
    assert all(count > 0 for _, count in (*own.uid_map, *own.gid_map))


@pytest.mark.parametrize(
    ("path", "instead"),
    [
        ("/run/nsupervisor/lock", "run as root, or set supervisor.runtime_directory to a place of yours, such as"),
        ("/run", "run as root, or set supervisor.runtime_directory to a place of yours, such as"),
        ("/sys/fs/cgroup/x", "run as root, or see: nsupervisor doctor"),
        (None, "run as root, or see: nsupervisor doctor"),
    ],
)
def test_a_start_that_is_not_permitted_is_explained(path: str | None, instead: str) -> None:
    site = parse('[supervisor]\nruntime_directory = "/run/nsupervisor"\n[workload.web]\ncommand = ["true"]', "x.toml")
    error = PermissionError(13, "Permission denied", path)
    where = "" if path is None else f"{path}: "
    assert explain_permission_error(error, site).startswith(f"{where}Permission denied; {instead}")


def test_the_own_user_needs_no_privilege() -> None:
    """In a container all programs often have the user of the service, and a file may say so."""
    assert missing(USER, 'user = "1000:100"', NO_NAMESPACES) == {}
    assert list(missing(USER, 'user = "1001:100"', NO_NAMESPACES)) == ["user"]
    assert list(missing(USER, 'user = "1000:101"', NO_NAMESPACES)) == ["user"]
    both = missing(USER, 'user = "1000:100"', 'supplementary_groups = ["5"]', NO_NAMESPACES)
    assert list(both) == ["user", "supplementary_groups"]
