"""[[workload.NAME.paths]]: what is accepted, and what is refused in which words."""

import pytest

from nsupervisor.config.load import ConfigError, parse
from nsupervisor.service.platform.file_systems import find_without_events

HEAD = '[workload.web]\ncommand = ["true"]\n'


def problems(paths: str, *keys: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(f"{HEAD}{''.join(f'{line}{chr(10)}' for line in keys)}paths = [{paths}]\n", "x.toml")
    return "\n".join(map(str, caught.value.problems))


@pytest.mark.parametrize(
    ("paths", "keys", "words"),
    [
        ('{ action = "start" }', [], "has no condition; write exactly one of"),
        ('{ path_exists = "/a", path_changed = "/a" }', [], "has 2 conditions"),
        ('{ path_changed = "a" }', [], "not an absolute path"),
        ('{ path_changed = "/" }', [], 'below "/"'),
        ('{ path_changed = "/a/../b" }', [], 'without "." and ".."'),
        ('{ path_changed = "/a\\nb" }', [], "control character"),
        ('{ path_changed = "' + "/a" * 33 + '" }', [], "33 directories deep"),
        ('{ path_exists_glob = "/a/*/b" }', [], "pattern in a directory"),
        ('{ path_exists_glob = "/a/b" }', [], "write path_exists"),
        ('{ path_exists = "/a", action = "restart" }', [], "is for a change, and path_exists is none"),
        ('{ path_changed = "/a", action = "reload" }', [], "needs a way to reload"),
        ('{ path_changed = "/a", action = "restart" }', ['type = "oneshot"'], "runs all the time"),
        ('{ path_exists = "/a", make_directory = true }', [], "whose contents count"),
        ('{ path_exists = "/a", include = ["x"] }', [], "whose contents count"),
        ('{ path_changed = "/a", include = ["x/y"] }', [], "is not a pattern of names"),
        ('{ path_changed = "/a" }, { path_changed = "/a/" }', [], "is in another path of it"),
        ('{ path_changed = "/l/web.log" }', ['log = { stdout = "file", path = "/l/web.log" }'], "log file"),
        (", ".join(f'{{ path_exists = "/{number}" }}' for number in range(17)), [], "at most 16"),
    ],
)
def test_what_is_refused(paths: str, keys: list[str], words: str) -> None:
    assert words in problems(paths, *keys)


def test_a_workload_with_a_path_does_not_start_with_the_service() -> None:
    config = parse(f'{HEAD}paths = [{{ path_changed = "/a//b/" }}]\n', "x.toml")
    web = config.workloads["web"]
    assert not web.starts_with_service
    assert (web.paths[0].path, web.paths[0].condition, web.paths[0].debounce_sec) == ("/a/b", "path_changed", 0.3)


def test_a_workload_that_a_path_restarts_starts_with_the_service() -> None:
    config = parse(f'{HEAD}paths = [{{ path_changed = "/a", action = "restart" }}]\n', "x.toml")
    assert config.workloads["web"].starts_with_service


MOUNTS = r"""22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 0:40 / /srv rw shared:1 - nfs4 host:/srv rw
31 30 0:41 / /srv/local rw - tmpfs tmpfs rw
32 22 0:42 / /mnt/a\040b rw - fuse.sshfs x rw
33 22 0:5 / /proc rw - proc proc rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/srv/x", "nfs4"),
        ("/srv", "nfs4"),
        ("/srvx", ""),
        ("/srv/local/x", ""),
        ("/mnt/a b/x", "fuse.sshfs"),
        ("/etc", ""),
        ("/proc/net/route", "proc"),
    ],
)
def test_file_systems_without_events(path: str, kind: str) -> None:
    assert find_without_events(MOUNTS, path) == kind
