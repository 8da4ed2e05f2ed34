"""The latest output of workloads without a log file."""

import json
import os

import pytest

from nsupervisor.logs import tails as tails_module
from nsupervisor.logs.tails import Tails


def record(number, size=100):
    return json.dumps({"timestamp": "", "number": number, "message": "x" * size}).encode() + b"\n"


def numbers(tails, name="web"):
    return [json.loads(line)["number"] for line in tails.read(name)]


@pytest.fixture
def tails(tmp_path):
    return Tails(tmp_path / "tails")


def test_the_latest_records_are_kept(tails):
    tail = tails.get("web", 4096)
    for number in range(1000):
        tail.append(record(number))
    found = numbers(tails)
    assert found == list(range(found[0], 1000))
    kept = sum(len(line) for line in tails.read("web"))
    assert 1024 < kept <= 4096
    assert kept == sum(path.stat().st_size for path in tails.directory.iterdir())


def test_only_the_service_may_read_them(tails):
    tails.get("web", 4096).append(record(1))
    (path,) = tails.directory.iterdir()
    assert (tails.directory.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)


def test_of_many_records_at_once_the_last_are_kept(tails):
    tails.get("web", 4096).append(b"".join(record(number) for number in range(1000)))
    found = numbers(tails)
    assert found == list(range(found[0], 1000))
    assert len(found) > 5


def test_one_record_that_is_larger_than_the_limit_is_kept(tails):
    tail = tails.get("web", 4096)
    tail.append(record(1) + record(2, size=10_000))
    tail.append(record(3))
    assert numbers(tails) == [2, 3]


def test_another_object_goes_on_with_the_files(tails):
    tails.get("web", 4096).append(record(1))
    other = Tails(tails.directory)
    other.get("web", 4096).append(record(2))
    assert numbers(other) == [1, 2]


def test_half_a_record_of_a_supervisor_that_was_killed_is_left_out(tails):
    tails.get("web", 4096).append(record(1))
    with (tails.directory / "web").open("ab") as file:
        file.write(record(2)[:-20])
    other = Tails(tails.directory)
    tail = other.get("web", 4096)
    assert numbers(other) == [1]
    tail.append(record(3))
    assert numbers(other) == [1, 3]


def test_all_together_have_a_limit(tails, monkeypatch):
    monkeypatch.setattr(tails_module, "MAX_TOTAL_BYTES", 100_000)
    names = [f"web@{number}" for number in range(50)]
    for name in names:
        tails.get(name, 1 << 20)
    for number in range(100):
        for name in names:
            tails.get(name, 1 << 20).append(record(number))
    assert sum(path.stat().st_size for path in tails.directory.iterdir()) <= 100_000
    assert all(numbers(tails, name)[-1] == 99 for name in names)


def test_what_cannot_be_kept_is_reported_once_and_harms_nobody(tmp_path):
    reports = []
    (tmp_path / "tails").write_text("no directory")
    tails = Tails(tmp_path / "tails", reports.append)
    heard = []
    tails.listeners.add(lambda name, records: heard.append((name, records)))
    for _ in range(2):
        tails.get("web", 4096).append(record(1))
    assert reports == ["cannot keep the latest output of web: Not a directory"]
    assert heard == [("web", record(1))] * 2


def test_a_link_is_not_followed(tails, tmp_path):
    tails.directory.mkdir()
    os.symlink(tmp_path / "elsewhere", tails.directory / "web")
    tails.get("web", 4096).append(record(1))
    assert not (tmp_path / "elsewhere").exists()


def test_files_of_removed_instances_are_removed(tails):
    for name in ("web", "db", "old"):
        tails.get(name, 4096).append(record(1) * 100)
    tails.remove("db")
    assert numbers(tails, "db") == []
    other = Tails(tails.directory)
    other.get("web", 4096)
    other.remove_others()
    assert {path.name.partition(".")[0] for path in tails.directory.iterdir()} == {"web"}
