"""Ranges of ids for user namespaces: disjoint from all others, and the same after a restart."""

import json
import os
import pwd
import threading
from pathlib import Path

import pytest

from nsupervisor.service.state import uid_ranges
from nsupervisor.service.state.uid_ranges import FIRST, LAST, SIZE, UidRangeError, UidRanges, pick_range


def ranges(directory: Path, service: str = "nsupervisor") -> UidRanges:
    return UidRanges(str(directory / "state"), service)


def first_id(of: UidRanges, instance: str) -> int:
    ((inside, outside, size),) = of.mapping(instance)
    assert (inside, size) == (0, SIZE)
    return outside


@pytest.mark.fault("A5")
def test_a_range_is_that_of_a_container_of_systemd_nspawn() -> None:
    for name in ("web", "db@2", "a" * 128):
        first = pick_range(name, lambda _: True)
        assert FIRST <= first <= first + SIZE - 1 <= LAST
        assert first % SIZE == 0
        assert first == pick_range(name, lambda _: True), "the name alone decides"


@pytest.mark.fault("A5")
def test_a_range_that_is_taken_is_passed_over() -> None:
    asked: list[int] = []
    first = pick_range("web", lambda candidate: asked.append(candidate) or len(asked) == 3)
    assert first == asked[2]
    assert len(set(asked)) == 3
    with pytest.raises(UidRangeError, match="there is no free range of user ids"):
        pick_range("web", lambda _: False)


@pytest.mark.fault("A5")
def test_a_range_is_remembered_and_disjoint_from_those_of_other_services(tmp_path: Path) -> None:
    names = [f"web@{number}" for number in range(100)]
    chosen = {name: first_id(ranges(tmp_path), name) for name in names}
    other = {name: first_id(ranges(tmp_path, "other"), name) for name in names}
    assert len({*chosen.values(), *other.values()}) == 200
    assert {name: first_id(ranges(tmp_path), name) for name in reversed(names)} == chosen
    assert sorted(os.listdir(tmp_path / "state")) == ["uid-ranges.json", "uid-ranges.lock"]


@pytest.mark.fault("A5")
def test_services_that_start_at_the_same_time_take_different_ranges(tmp_path: Path, monkeypatch) -> None:
    """Both would pick the same one: the second waits for the first, and sees its choice."""
    monkeypatch.setattr(
        uid_ranges, "pick_range", lambda name, is_free: next(n for n in (FIRST, FIRST + SIZE) if is_free(n))
    )
    found: list[int] = []
    start = threading.Barrier(2)

    def take(service: str) -> None:
        own = ranges(tmp_path, service)
        start.wait()
        found.append(first_id(own, "web"))

    threads = [threading.Thread(target=take, args=(service,)) for service in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [FIRST, FIRST + SIZE]


@pytest.mark.fault("A5")
@pytest.mark.parametrize("kind", ["user", "listed user", "group", "subuid", "subgid"])
def test_ids_of_the_host_are_in_no_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    taken = pick_range("nsupervisor/web", lambda _: True)
    me = pwd.getpwuid(os.getuid())
    match kind:
        case "user":
            monkeypatch.setattr(pwd, "getpwuid", lambda number: {taken: me}[number])
        case "listed user":
            monkeypatch.setattr(pwd, "getpwall", lambda: [type("entry", (), {"pw_uid": taken + SIZE - 1})])
        case "group":
            monkeypatch.setattr(uid_ranges.grp, "getgrall", lambda: [type("entry", (), {"gr_gid": taken + 5})])
        case _:
            entries = {f"/etc/{kind}": [(taken - 10, 11)]}
            monkeypatch.setattr(uid_ranges, "_read_subordinate_ids", lambda path: entries.get(path, []))
    assert first_id(ranges(tmp_path), "web") != taken


@pytest.mark.fault("A5")
@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"ranges": {"x": "y"}}', '{"ranges": {"x": 0}}', f'{{"ranges": {{"x": {FIRST + 1}}}}}']
)
def test_a_damaged_list_is_not_replaced(tmp_path: Path, text: str) -> None:
    """Another range would make files of the program belong to others; 0 would be root."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "uid-ranges.json").write_text(text)
    with pytest.raises(UidRangeError, match="is damaged; restore it, or remove it"):
        ranges(tmp_path).mapping("web")
    assert (tmp_path / "state" / "uid-ranges.json").read_text() == text


@pytest.mark.fault("A5")
def test_a_list_that_cannot_be_written_is_no_reason_to_use_another_range(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(UidRangeError, match=r"cannot remember the range .* or write user_namespace.uid_mappings"):
        ranges(tmp_path).mapping("web")


@pytest.mark.fault("A5")
def test_the_list_is_readable_by_people(tmp_path: Path) -> None:
    first = first_id(ranges(tmp_path), "web")
    assert json.loads((tmp_path / "state" / "uid-ranges.json").read_text()) == {"ranges": {"nsupervisor/web": first}}


@pytest.mark.fault("A5")
def test_the_entries_of_subuid_are_read(tmp_path: Path) -> None:
    path = tmp_path / "subuid"
    path.write_text("alice:100000:65536\n# comment\nbob:x:1\n:5:\n1000:165536:65536\n")
    assert list(uid_ranges._read_subordinate_ids(str(path))) == [(100_000, 65_536), (165_536, 65_536)]
    assert list(uid_ranges._read_subordinate_ids(str(tmp_path / "missing"))) == []
