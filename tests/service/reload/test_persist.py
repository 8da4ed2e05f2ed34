"""Limits that are written into the configuration's own file."""

import os
import stat

import pytest

from nsupervisor.config.load import load
from nsupervisor.config.problems import ConfigError
from nsupervisor.service.reload.persist import persist

M = 1 << 20

SITE = """\
# the site
[workload.web]   # the public one
command = ["true"]
resources = { pids_max = 9, memory_max = "64M" }  # small

[[workload.web.policy]]
when = "pids.events max"
action = "log"

[workload.db]
command = ["true"]

[workload.db.resources]
memory_max = "1G"   # plenty
[workload.db.resources.unified]
"memory.swap.high" = "max"

[group.batch]
pids_max = 5 # few
"""


@pytest.fixture
def site(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text(SITE)
    path.chmod(0o640)
    return path


def test_only_what_was_set_changes(site):
    persist(str(site), "workload", "db", {"memory_max": "2G", "cpu_weight": 50})
    persist(str(site), "workload", "web", {"pids_max": 12})
    persist(str(site), "group", "batch", {"pids_max": 7, "memory_max": "1G"})
    config = load(site)
    assert (config.workloads["db"].resources.memory_max, config.workloads["db"].resources.cpu_weight) == (2048 * M, 50)
    assert (config.workloads["web"].resources.pids_max, config.workloads["web"].resources.memory_max) == (12, 64 * M)
    assert (config.groups["batch"].pids_max, config.groups["batch"].memory_max) == (7, 1024 * M)
    before, after = SITE.splitlines(), site.read_text().splitlines()
    assert len([line for line in before if line not in after]) == 3
    assert 'memory_max = "2G"   # plenty' in after
    assert "pids_max = 7 # few" in after
    assert stat.S_IMODE(os.stat(site).st_mode) == 0o640
    assert [path.name for path in site.parent.iterdir()] == ["site.toml"], "nothing is left beside it"


def test_a_workload_without_limits_gets_a_table_and_every_sort_of_value_is_written(site):
    site.write_text("[workload.web]\ncommand = ['true']\n[workload.last]\ncommand = ['true']\n")
    values = {
        "memory_max": "max",
        "memory_oom_group": True,
        "io_max": [{"device": "/srv", "rbps": "10M"}],
        "unified": {"memory.swap.high": "1000"},
        "hugetlb_2MB_max": 0,
    }
    persist(str(site), "workload", "web", values)
    resources = load(site).workloads["web"].resources
    assert resources.memory_oom_group is True
    assert (resources.io_max[0].rbps, resources.hugetlb) == (10 * M, {"2MB_max": 0})
    persist(str(site), "workload", "web", {"unified": {"memory.zswap.writeback": "0"}})
    assert load(site).workloads["web"].resources.unified == {
        "memory.swap.high": "1000",
        "memory.zswap.writeback": "0",
    }
    assert load(site).workloads["last"].resources.unified == {}


def test_a_link_stays_one_and_the_same_again_writes_nothing(site):
    link = site.parent / "link.toml"
    link.symlink_to(site)
    persist(str(link), "workload", "web", {"pids_max": 12})
    assert link.is_symlink()
    inode = os.stat(site).st_ino
    persist(str(link), "workload", "web", {"pids_max": 12})
    assert os.stat(site).st_ino == inode
    assert load(site).workloads["web"].resources.pids_max == 12


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (SITE.replace("[workload.web]", "[workload.web]\nrestrat = 1"), "web", "restrat"),
        (SITE, "gone", "has no workload gone any more"),
        (SITE + "[", "web", "this is not TOML"),
    ],
)
def test_a_file_that_cannot_be_changed_is_left_alone(site, text, name, message):
    site.write_text(text)
    with pytest.raises((OSError, ConfigError), match=message):
        persist(str(site), "workload", name, {"pids_max": 12})
    assert site.read_text() == text


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is no file that can be written"):
        persist(str(tmp_path / "pipe"), "workload", "web", {"pids_max": 12})


@pytest.mark.fault("H13")
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["no mark", "byte order mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_line_ends_and_the_byte_order_mark_stay(site, mark, end):
    changes = [("web", {"pids_max": 12}), ("db", {"cpu_weight": 50})]
    for name, values in changes:
        persist(str(site), "workload", name, values)
    plain = site.read_text()
    assert ("pids_max = 12" in plain, "cpu_weight = 50" in plain) == (True, True)
    site.write_bytes(mark + SITE.replace("\n", end).encode())
    for name, values in changes:
        persist(str(site), "workload", name, values)
    assert site.read_bytes() == mark + plain.replace("\n", end).encode()


def test_the_file_is_changed_whose_table_counts(tmp_path):
    main, first, second = tmp_path / "main.toml", tmp_path / "first.toml", tmp_path / "second.toml"
    main.write_text('include = ["first.toml", "second.toml"]\n[group.batch]\npids_max = 5\n')
    first.write_text('[workload.web]\ncommand = ["true"]\nresources.pids_max = 1\n')
    second.write_text("[workload.web]\noverride = true\nnice = 1\n")
    before = first.read_text()
    persist(str(main), "workload", "web", {"pids_max": 9})
    assert second.read_text() == "[workload.web]\noverride = true\nnice = 1\n\n[workload.web.resources]\npids_max = 9\n"
    persist(str(main), "group", "batch", {"pids_max": 6})
    assert load(main).groups["batch"].pids_max == 6
    assert load(main).workloads["web"].resources.pids_max == 9
    assert first.read_text() == before
