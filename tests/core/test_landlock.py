"""The Landlock rules of a workload: which rights its keys handle and grant, and what they need of the kernel."""

import pytest

from nsupervisor.config.landlock import LandlockConfig
from nsupervisor.config.load import parse
from nsupervisor.core import landlock
from nsupervisor.core.landlock import missing_abi, ruleset
from nsupervisor.core.security import written_keys


def config(keys: str) -> LandlockConfig | None:
    text = f'[workload.web]\ncommand = ["web"]\nsecurity.landlock = {{ {keys} }}\n'
    return parse(text, "site.toml").workloads["web"].security.landlock


def test_without_keys_nothing_is_restricted() -> None:
    assert ruleset(None) is None
    assert ruleset(LandlockConfig()) is None


def test_an_empty_list_allows_nothing() -> None:
    assert ruleset(config("write = [], connect_tcp = []")) == {
        "handled": [landlock.WRITE, landlock.CONNECT_TCP, 0],
        "paths": [],
        "ports": [],
    }


def test_each_key_handles_and_grants_its_rights_alone() -> None:
    found = ruleset(config('read = ["/usr"], connect_tcp = [443, 80], bind_tcp = [80], scope = ["signal", "signal"]'))
    assert found == {
        "handled": [landlock.READ | landlock.REFER, landlock.CONNECT_TCP | landlock.BIND_TCP, 2],
        "paths": [["/usr", landlock.READ], ["/", landlock.REFER]],
        "ports": [[443, landlock.CONNECT_TCP], [80, landlock.CONNECT_TCP | landlock.BIND_TCP]],
    }


def test_what_may_be_executed_may_be_read() -> None:
    found = ruleset(config('read = [], execute = ["/usr"]'))
    assert found is not None
    assert found["paths"] == [["/usr", landlock.EXECUTE | landlock.READ_FILE], ["/", landlock.REFER]]
    found = ruleset(config('execute = ["/usr"]'))
    assert found is not None
    assert found["paths"][0] == ["/usr", landlock.EXECUTE], "reading is not restricted"


def test_files_may_be_moved_unless_writing_is_restricted() -> None:
    """Landlock refuses a move to another directory in each ruleset about files, unless a rule grants it."""
    found = ruleset(config('write = ["/srv"]'))
    assert found is not None
    assert found["paths"] == [["/srv", landlock.WRITE]]


@pytest.mark.parametrize(
    ("keys", "abi", "expected"),
    [
        ("read = []", 0, "read"),
        ("read = []", 1, "read"),
        ("read = [], execute = []", 2, None),
        ("read = [], write = []", 2, "write"),
        ("write = []", 3, None),
        ("bind_tcp = []", 3, "bind_tcp"),
        ("bind_tcp = []", 4, None),
        ("ioctl_device = []", 4, "ioctl_device"),
        ('scope = ["signal"]', 5, "scope"),
        ('scope = ["signal"], ioctl_device = [], read = []', 7, None),
    ],
)
def test_what_the_abi_of_the_kernel_lacks(keys: str, abi: int, expected: str | None) -> None:
    given = config(keys)
    assert given is not None
    missing = missing_abi(given, abi)
    assert (missing and missing[0]) == expected
    assert missing is None or missing[1].abi > abi


def test_the_written_keys_are_json() -> None:
    text = '[workload.web]\ncommand = ["web"]\nsecurity.landlock = { read = ["/usr"] }\n'
    security = parse(text, "site.toml").workloads["web"].security
    assert written_keys(security)["landlock"]["read"] == ("/usr",)
