"""The state file: what goes in comes out, and what is no such file is kept aside."""

import os
import re
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.core.exits import Exit
from nsupervisor.core.lifecycle import Life, State, Then
from nsupervisor.core.plain import restored, sparse
from nsupervisor.core.rules import AtomMemory, Memory
from nsupervisor.service import state
from nsupervisor.service.state import Body, GroupRecord, Process, Record, Remembered, StateFile, read

times = st.floats(0, 1e9)
lives = st.builds(
    Life,
    state=st.sampled_from(State),
    reason=st.text(),
    wanted=st.booleans(),
    generation=st.integers(0, 1 << 40),
    deadline=st.none() | times,
    then=st.sampled_from(Then),
    exit=st.none() | st.builds(Exit, code=st.integers(0, 255)) | st.builds(Exit, failure=st.text()),
    starts=st.lists(times).map(tuple),
)
processes = st.builds(Process, st.integers(1, 1 << 22), st.integers(0))
atoms = st.builds(AtomMemory, last=st.none() | times, before=times, truth=st.none() | st.booleans())
rules = st.builds(Remembered, st.text(), st.text(), st.builds(Memory, st.lists(atoms).map(tuple)))
records = st.builds(
    Record,
    life=lives,
    body=st.none() | st.builds(Body, processes, processes, st.tuples(st.integers(0), st.integers(0))),
    acting=st.booleans(),
    rules=st.lists(rules, max_size=3).map(tuple),
    timeout_stop_sec=st.floats(0),
)


@given(record=records)
def test_a_record_survives_the_way(record: Record) -> None:
    assert restored(Record, sparse(record)) == record


@given(changes=st.lists(st.tuples(st.sampled_from("abc"), st.none() | records), max_size=12), cut=st.integers(1, 50))
def test_the_last_word_counts_and_a_torn_end_takes_only_itself(tmp_path_factory, changes, cut: int) -> None:
    directory = tmp_path_factory.mktemp("state")
    file = StateFile(directory, {"pid": 1})
    file.write_all({})
    told: list[dict[str, Record]] = [{}]
    for name, record in changes:
        file.keep(name, record)
        told.append({key: value for key, value in {**told[-1], name: record}.items() if value is not None})
    assert read(directory).records == told[-1]
    data = (directory / state.NAME).read_bytes()
    (directory / state.NAME).write_bytes(data[:-cut])
    found = read(directory)
    assert not changes or dict(found.records) in told
    assert found.problem or not data[:-cut] or data[:-cut].endswith(b"\n")


def kept(directory: Path) -> StateFile:
    file = StateFile(directory, {"pid": 1})
    file.keep("web", Record(Life(generation=7)))
    return file


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: b"", "it is empty"),
        (lambda data: b"\n", "it is empty"),
        (lambda data: b"{}\n", "checksum"),
        (lambda data: b"x" + os.urandom(1000) + b"\n", "checksum"),
        (lambda data: data[:-5], "torn"),
        (lambda data: data.replace(b'"generation":7', b'"generation":8'), "checksum"),
        (lambda data: state._line({"format": 99, "boot": state.boot()}), "format 99 is not understood here, only 1"),
        (
            lambda data: data + state._line({"name": "x", "is": {"life": 3}}),
            "says of x has 3 in place of an object",
        ),
        (lambda data: data + state._line([]), "list|indices"),
    ],
)
def test_what_is_no_state_file_is_kept_aside(tmp_path: Path, spoil, words: str) -> None:
    kept(tmp_path)
    path = tmp_path / state.NAME
    spoilt = spoil(path.read_bytes())
    for number in (1, 2):
        path.write_bytes(spoilt)
        found = read(tmp_path)
        assert f"it is kept as state.json.bad-{number}" in found.problem
        assert re.search(words, found.problem)
        assert (tmp_path / f"state.json.bad-{number}").read_bytes() == spoilt
    assert not path.exists()


def test_what_is_of_another_boot_is_void_and_no_mistake(tmp_path: Path) -> None:
    kept(tmp_path)
    path = tmp_path / state.NAME
    path.write_bytes(state._line({"format": 1, "boot": "another"}) + path.read_bytes().split(b"\n", 1)[1])
    assert read(tmp_path) == state.Found()
    assert path.exists()


def test_without_a_file_nothing_is_known(tmp_path: Path) -> None:
    assert read(tmp_path) == state.Found()


def test_it_stays_short_and_the_same_is_not_written_twice(tmp_path: Path) -> None:
    file = kept(tmp_path)
    path = tmp_path / state.NAME
    size = path.stat().st_size
    file.keep("web", Record(Life(generation=7)))
    assert path.stat().st_size == size
    for generation in range(10_000):
        file.keep("web", Record(Life(generation=generation, reason="x" * 100)))
    assert path.stat().st_size < state._LEAST + 1000
    assert read(tmp_path).records["web"].life.generation == 9999


def test_a_full_disk_is_no_reason_to_stop_and_is_made_up_for(tmp_path: Path, monkeypatch) -> None:
    file = kept(tmp_path)
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    file.keep("web", Record(Life(generation=8)))
    assert "No space left on device" in file.problem
    monkeypatch.setattr(os, "write", write)
    file.keep("db", Record(Life(generation=1)))
    assert file.problem == ""
    assert {name: record.life.generation for name, record in read(tmp_path).records.items()} == {"web": 8, "db": 1}


def test_what_a_later_version_adds_has_its_default() -> None:
    assert restored(Record, {}) == Record()
    assert attrs.fields_dict(Record).keys() >= {"life", "body", "rules", "set"}


def test_what_a_later_version_has_added_is_left_out_here_and_kept_in_the_file(tmp_path: Path) -> None:
    record = Record(life=Life(generation=3), rules=(Remembered("r", "w", Memory((AtomMemory(last=1.0),))),))
    values = sparse(record)
    values["colour"], values["life"]["mood"] = "blue", {"good": True}
    values["rules"][0]["memory"]["weight"] = 3
    lines = [{"format": state.FORMAT, "boot": state.boot()}, {"name": "web", "is": values}, {"planet": "x", "is": {}}]
    (tmp_path / state.NAME).write_bytes(b"".join(map(state._line, lines)))
    found = read(tmp_path)
    assert (found.problem, dict(found.records)) == ("", {"web": record})
    StateFile(tmp_path, {"pid": 1}).write_all({}, found.lines)
    assert (tmp_path / state.NAME).read_bytes().splitlines()[1] == state._line(lines[1])[:-1]
    with pytest.raises(ValueError, match="mood"):
        restored(Record, values)


def test_groups_have_lines_of_their_own(tmp_path: Path) -> None:
    group = GroupRecord((Remembered("r", "w", Memory(())),), {"memory_max": 4096})
    file = StateFile(tmp_path, {})
    file.keep("host", Record())
    file.keep_group("host", GroupRecord())
    file.keep_group("group/batch", group)
    found = read(tmp_path)
    assert (dict(found.records), dict(found.groups)) == (
        {"host": Record()},
        {"host": GroupRecord(), "group/batch": group},
    )


def test_what_was_found_stays_until_something_else_is_said_of_it(tmp_path: Path) -> None:
    """A supervisor that is killed while it takes over leaves to the next one what it had found itself."""
    before = StateFile(tmp_path, {})
    before.keep("web", Record(acting=True))
    before.keep_group("group/batch", GroupRecord(set={"pids_max": 40}))
    before.keep_group("group/gone", GroupRecord())
    after = StateFile(tmp_path, {}, as_found=read(tmp_path).lines)
    after.keep("other", Record())
    after.keep_group("group/gone", None)
    found = read(tmp_path)
    assert found.records == {"web": Record(acting=True), "other": Record()}
    assert found.groups == {"group/batch": GroupRecord(set={"pids_max": 40})}


def test_that_it_cannot_be_written_is_told_once_and_so_is_that_it_can_again(tmp_path: Path) -> None:
    told: list[str] = []
    place = tmp_path / "gone"
    file = StateFile(place, {}, told.append)
    file.keep("web", Record())
    file.keep("web", Record(acting=True))
    assert told == [file.problem] == [f"cannot write {place / state.NAME}: No such file or directory"]
    place.mkdir()
    file.keep("web", Record())
    file.keep("web", Record(acting=True))
    assert (told[1:], file.problem) == ([""], "")
    assert read(place).records == {"web": Record(acting=True)}
