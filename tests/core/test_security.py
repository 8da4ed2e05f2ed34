"""`nsupervisor.core.security`: the values of a profile, the keys that override it, and what a host cannot provide."""

import re

import attrs
import pytest

from nsupervisor.capability_names import NAMES
from nsupervisor.config.load import ConfigError, parse
from nsupervisor.config.model import Config, SecurityConfig, WorkloadConfig
from nsupervisor.core.isolation import Absence
from nsupervisor.core.security import (
    DEFAULT_CAPABILITIES,
    NEUTRAL,
    PROFILES,
    Setting,
    Unsupported,
    degraded,
    settings,
    values,
    without_unsupported,
)

ABSENCE = Absence("this kernel has none", "use another one")


def file(security: str) -> Config:
    return parse(f'[workload.web]\ncommand = ["web"]\nsecurity = {{ {security} }}\n', "site.toml")


def absent(workload: WorkloadConfig, key: str, value: object) -> Absence | None:
    return ABSENCE


def test_each_key_has_a_neutral_value_and_may_be_left_out() -> None:
    keys = {field.name for field in attrs.fields(SecurityConfig)} - {"profile", "rlimits", "unavailable"}
    assert keys == NEUTRAL.keys()
    assert all(getattr(SecurityConfig(), key) is None for key in keys)


def test_profiles_set_known_keys_only() -> None:
    assert all(items.keys() <= NEUTRAL.keys() for items in PROFILES.values())


@pytest.mark.parametrize("profile", PROFILES)
def test_a_key_overrides_the_profile(profile: str) -> None:
    assert settings(file(f'profile = "{profile}"').workloads["web"].security)["no_new_privileges"] == (True, False)
    overridden = file(f'profile = "{profile}", no_new_privileges = false').workloads["web"].security
    assert settings(overridden)["no_new_privileges"] == Setting(False, True)


def test_what_a_key_asks_for_is_refused_if_the_host_has_it_not() -> None:
    _, found = without_unsupported(file('profile = "none", no_new_privileges = true'), absent)
    path = ("workload", "web", "security", "no_new_privileges")
    assert found == [Unsupported(path, "this kernel has none; use another one", True)]
    assert degraded(found) == {}


def test_an_item_of_the_profile_is_left_out_and_reported_if_the_host_has_it_not() -> None:
    config, found = without_unsupported(file('profile = "default"'), absent)
    assert values(config.workloads["web"].security)["no_new_privileges"] is False
    assert degraded(found)["no_new_privileges"] == "this kernel has none; use another one"


def test_a_neutral_value_needs_nothing_of_the_host() -> None:
    config = file('profile = "none", no_new_privileges = false')
    assert without_unsupported(config, absent) == (config, [])


def test_strict_has_a_user_and_a_network_namespace_unless_the_file_says_otherwise() -> None:
    spaces = file('profile = "strict"').workloads["web"].namespaces
    assert (spaces.user, spaces.network) == (True, True)
    text = '[workload.web]\ncommand = ["web"]\nsecurity.profile = "strict"\nnamespaces = { user = false }\n'
    spaces = parse(text, "site.toml").workloads["web"].namespaces
    assert (spaces.user, spaces.network) == (False, True)
    assert not file('profile = "default"').workloads["web"].namespaces.user


@pytest.mark.parametrize(
    ("keys", "limit", "is_of_profile"),
    [
        ("", 2048, True),
        ('security = { profile = "strict" }', 2048, True),
        ('security = { profile = "none" }', None, False),
        ("resources = { pids_max = 9 }", 9, False),
        ('resources = { pids_max = "max" }', None, False),
        ("resources = { memory_max = 4096 }", 2048, True),
    ],
)
def test_a_profile_limits_processes_unless_the_file_says_otherwise(
    keys: str, limit: int | None, is_of_profile: bool
) -> None:
    resources = parse(f'[workload.web]\ncommand = ["web"]\n{keys}\n', "site.toml").workloads["web"].resources
    assert (resources.pids_max, "pids_max" in resources.of_profile) == (limit, is_of_profile)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", set(DEFAULT_CAPABILITIES)),
        ('capability_bounding_set = ["+NET_RAW"]', {*DEFAULT_CAPABILITIES, "NET_RAW"}),
        ('capability_bounding_set = ["-KILL"]', {*DEFAULT_CAPABILITIES} - {"KILL"}),
        ('capability_bounding_set = ["cap_net_raw"]', {"NET_RAW"}),
        ("capability_bounding_set = []", set()),
        ('ambient_capabilities = ["SYS_TIME"]', {*DEFAULT_CAPABILITIES, "SYS_TIME"}),
    ],
)
def test_capabilities(given: str, expected: set[str]) -> None:
    found = values(file(given).workloads["web"].security)["capability_bounding_set"]
    assert found == tuple(name for name in NAMES if name in expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ('capability_bounding_set = ["+KILL", "CHOWN"]', 'has names with and without "+" or "-"'),
        (
            'capability_bounding_set = ["CHOWN"], ambient_capabilities = ["KILL"]',
            '"KILL" is not in capability_bounding_set',
        ),
        ('restrict_address_families = ["AF_UNIX", "~AF_INET"]', "mixes families"),
        ('system_call_filter = ["@system-servic"]', 'did you mean "@system-service"'),
        ('seccomp = "on"', 'write "default", "off", "log", or the absolute path'),
        ('restrict_namespaces = ["users"]', "is not a choice of namespaces"),
    ],
)
def test_conflicts(given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        file(given)
