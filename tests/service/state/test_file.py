"""The state file: what goes in comes out, and what is no such file is kept aside."""

import errno
import os
import re
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.core.exits import Exit
from nsupervisor.core.lifecycle import AfterStop, Lifecycle, State
from nsupervisor.core.rules.rules import AtomState, RuleState
from nsupervisor.core.serialize import from_json, to_json_sparse
from nsupervisor.linux.files import KernelFiles
from nsupervisor.service.state import file as state
from nsupervisor.service.state.file import (
    GroupCheckpoint,
    InstanceCheckpoint,
    Process,
    ProcessRef,
    SavedRule,
    StateFile,
    read_state,
)

times = st.floats(0, 1e9)
lives = st.builds(
    Lifecycle,
    state=st.sampled_from(State),
    reason=st.text(),
    should_run=st.booleans(),
    generation=st.integers(0, 1 << 40),
    deadline=st.none() | times,
    after_stop=st.sampled_from(AfterStop),
    exit=st.none() | st.builds(Exit, code=st.integers(0, 255)) | st.builds(Exit, setup_failure=st.text()),
    recent_starts=st.lists(times).map(tuple),
)
processes = st.builds(Process, st.integers(1, 1 << 22), st.integers(0))
atoms = st.builds(AtomState, value=st.none() | times, baseline=times, is_true=st.none() | st.booleans())
rules = st.builds(SavedRule, st.text(), st.text(), st.builds(RuleState, st.lists(atoms).map(tuple)))
records = st.builds(
    InstanceCheckpoint,
    lifecycle=lives,
    process=st.none() | st.builds(ProcessRef, processes, processes, st.tuples(st.integers(0), st.integers(0))),
    has_unfinished_actions=st.booleans(),
    rules=st.lists(rules, max_size=3).map(tuple),
    timeout_stop_sec=st.floats(0),
)


@given(record=records)
def test_a_record_survives_the_way(record: InstanceCheckpoint) -> None:
    assert from_json(InstanceCheckpoint, to_json_sparse(record)) == record


@given(changes=st.lists(st.tuples(st.sampled_from("abc"), st.none() | records), max_size=12), cut=st.integers(1, 50))
def test_the_last_word_counts_and_a_torn_end_takes_only_itself(tmp_path_factory, changes, cut: int) -> None:
    directory = tmp_path_factory.mktemp("state")
    file = StateFile(directory, {"pid": 1})
    file.write_all({})
    saved: list[dict[str, InstanceCheckpoint]] = [{}]
    for name, record in changes:
        file.save(name, record)
        saved.append({key: value for key, value in {**saved[-1], name: record}.items() if value is not None})
    assert read_state(directory).instances == saved[-1]
    data = (directory / state.STATE_FILE).read_bytes()
    (directory / state.STATE_FILE).write_bytes(data[:-cut])
    found = read_state(directory)
    assert not changes or dict(found.instances) in saved
    assert found.problem or not data[:-cut] or data[:-cut].endswith(b"\n")


def kept(directory: Path) -> StateFile:
    file = StateFile(directory, {"pid": 1})
    file.save("web", InstanceCheckpoint(Lifecycle(generation=7)))
    return file


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: b"", "it is empty"),
        (lambda data: b"\n", "it is empty"),
        (lambda data: b"{}\n", "checksum"),
        (lambda data: b"x" + os.urandom(1000) + b"\n", "checksum"),
        (lambda data: data[:-5], r"its last line ends after \d+ bytes: the disk was full, or"),
        (lambda data: data.replace(b'"generation":7', b'"generation":8'), "checksum"),
        (
            lambda data: state._encode_line({"format": 99, "boot": state.boot_id()}),
            "format 99 is not understood here, only 1",
        ),
        (
            lambda data: data + state._encode_line({"name": "x", "is": {"life": 3}}),
            "says of x has 3 in place of an object",
        ),
        (lambda data: data + state._encode_line([]), "list|indices"),
    ],
)
def test_what_is_no_state_file_is_kept_aside(tmp_path: Path, spoil, words: str) -> None:
    kept(tmp_path)
    path = tmp_path / state.STATE_FILE
    spoilt = spoil(path.read_bytes())
    for number in (1, 2):
        path.write_bytes(spoilt)
        found = read_state(tmp_path)
        assert f"it is kept as state.json.bad-{number}" in found.problem
        assert re.search(words, found.problem)
        assert (tmp_path / f"state.json.bad-{number}").read_bytes() == spoilt
    assert not path.exists()


def test_what_is_of_another_boot_is_void_and_no_mistake(tmp_path: Path) -> None:
    kept(tmp_path)
    path = tmp_path / state.STATE_FILE
    path.write_bytes(state._encode_line({"format": 1, "boot": "another"}) + path.read_bytes().split(b"\n", 1)[1])
    assert read_state(tmp_path) == state.SavedState()
    assert path.exists()


def test_without_a_file_nothing_is_known(tmp_path: Path) -> None:
    assert read_state(tmp_path) == state.SavedState()


def test_it_stays_short_and_the_same_is_not_written_twice(tmp_path: Path) -> None:
    file = kept(tmp_path)
    path = tmp_path / state.STATE_FILE
    size = path.stat().st_size
    file.save("web", InstanceCheckpoint(Lifecycle(generation=7)))
    assert path.stat().st_size == size
    for generation in range(10_000):
        file.save("web", InstanceCheckpoint(Lifecycle(generation=generation, reason="x" * 100)))
    assert path.stat().st_size < state._MIN_REWRITE_BYTES + 1000
    assert read_state(tmp_path).instances["web"].lifecycle.generation == 9999


def test_a_full_disk_is_no_reason_to_stop_and_is_made_up_for(tmp_path: Path) -> None:
    class FullDisk(KernelFiles):
        is_full = False

        def write(self, fd: int, data: bytes | memoryview) -> int:
            if self.is_full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(fd, data)

    files = FullDisk()
    file = StateFile(tmp_path, {"pid": 1}, files=files)
    file.save("web", InstanceCheckpoint(Lifecycle(generation=7)))
    files.is_full = True
    file.save("web", InstanceCheckpoint(Lifecycle(generation=8)))
    assert "No space left on device" in file.problem
    files.is_full = False
    file.save("db", InstanceCheckpoint(Lifecycle(generation=1)))
    assert file.problem == ""
    assert {name: record.lifecycle.generation for name, record in read_state(tmp_path).instances.items()} == {
        "web": 8,
        "db": 1,
    }


def test_a_line_of_which_a_filling_disk_took_a_part_is_written_again(tmp_path: Path) -> None:
    class FillingDisk(KernelFiles):
        room = 1 << 20

        def write(self, fd: int, data: bytes | memoryview) -> int:
            return super().write(fd, data[: self.room])

    files = FillingDisk()
    file = StateFile(tmp_path, {}, files=files)
    file.save("web", InstanceCheckpoint(Lifecycle(generation=1)))
    files.room = 20
    file.save("web", InstanceCheckpoint(Lifecycle(generation=2)))
    assert "No space left on device" in file.problem
    files.room = 1 << 20
    file.save("db", InstanceCheckpoint(Lifecycle(generation=3)))
    found = read_state(tmp_path)
    assert (found.problem, file.problem) == ("", "")
    assert {name: record.lifecycle.generation for name, record in found.instances.items()} == {"web": 2, "db": 3}


def test_what_a_later_version_adds_has_its_default() -> None:
    assert from_json(InstanceCheckpoint, {}) == InstanceCheckpoint()
    assert attrs.fields_dict(InstanceCheckpoint).keys() >= {"lifecycle", "process", "rules", "changed_limits"}


def test_what_a_later_version_has_added_is_left_out_here_and_kept_in_the_file(tmp_path: Path) -> None:
    record = InstanceCheckpoint(
        lifecycle=Lifecycle(generation=3), rules=(SavedRule("r", "w", RuleState((AtomState(value=1.0),))),)
    )
    values = to_json_sparse(record)
    values["colour"], values["life"]["mood"] = "blue", {"good": True}
    values["rules"][0]["memory"]["weight"] = 3
    lines = [
        {"format": state.STATE_FORMAT, "boot": state.boot_id()},
        {"name": "web", "is": values},
        {"planet": "x", "is": {}},
    ]
    (tmp_path / state.STATE_FILE).write_bytes(b"".join(map(state._encode_line, lines)))
    found = read_state(tmp_path)
    assert (found.problem, dict(found.instances)) == ("", {"web": record})
    StateFile(tmp_path, {"pid": 1}).write_all({}, found.lines)
    assert (tmp_path / state.STATE_FILE).read_bytes().splitlines()[1] == state._encode_line(lines[1])[:-1]
    with pytest.raises(ValueError, match="mood"):
        from_json(InstanceCheckpoint, values)


def test_groups_have_lines_of_their_own(tmp_path: Path) -> None:
    group = GroupCheckpoint((SavedRule("r", "w", RuleState(())),), {"memory_max": 4096})
    file = StateFile(tmp_path, {})
    file.save("host", InstanceCheckpoint())
    file.save_group("host", GroupCheckpoint())
    file.save_group("group/batch", group)
    found = read_state(tmp_path)
    assert (dict(found.instances), dict(found.groups)) == (
        {"host": InstanceCheckpoint()},
        {"host": GroupCheckpoint(), "group/batch": group},
    )


def test_what_was_found_stays_until_something_else_is_said_of_it(tmp_path: Path) -> None:
    """A supervisor that is killed while it takes over leaves to the next one what it had found itself."""
    before = StateFile(tmp_path, {})
    before.save("web", InstanceCheckpoint(has_unfinished_actions=True))
    before.save_group("group/batch", GroupCheckpoint(changed_limits={"pids_max": 40}))
    before.save_group("group/gone", GroupCheckpoint())
    after = StateFile(tmp_path, {}, unchanged=read_state(tmp_path).lines)
    after.save("other", InstanceCheckpoint())
    after.save_group("group/gone", None)
    found = read_state(tmp_path)
    assert found.instances == {"web": InstanceCheckpoint(has_unfinished_actions=True), "other": InstanceCheckpoint()}
    assert found.groups == {"group/batch": GroupCheckpoint(changed_limits={"pids_max": 40})}


def test_that_it_cannot_be_written_is_told_once_and_so_is_that_it_can_again(tmp_path: Path) -> None:
    saved: list[str] = []
    place = tmp_path / "gone"
    file = StateFile(place, {}, saved.append)
    file.save("web", InstanceCheckpoint())
    file.save("web", InstanceCheckpoint(has_unfinished_actions=True))
    assert saved == [file.problem] == [f"cannot write {place / state.STATE_FILE}: No such file or directory"]
    place.mkdir()
    file.save("web", InstanceCheckpoint())
    file.save("web", InstanceCheckpoint(has_unfinished_actions=True))
    assert (saved[1:], file.problem) == ([""], "")
    assert read_state(place).instances == {"web": InstanceCheckpoint(has_unfinished_actions=True)}


def test_a_checkpoint_from_before_all_were_written_is_not_taken_for_saved(tmp_path: Path) -> None:
    first, second = InstanceCheckpoint(oom_kills=1.0), InstanceCheckpoint(oom_kills=2.0)
    file = StateFile(tmp_path, {})
    for checkpoint in (first, second, first, None, first):
        if checkpoint is second:
            file.write_all({"web": second})
        else:
            file.save("web", checkpoint)
        saved = read_state(tmp_path).instances
        assert saved.get("web") == checkpoint


def test_a_text_that_is_not_unicode_is_saved(tmp_path: Path) -> None:
    """A file name with other bytes is part of a reason, as Python has it: with lone surrogates."""
    checkpoint = InstanceCheckpoint(Lifecycle(generation=1, reason="cannot execute /tmp/\udcff, or \u00e4"))
    kept(tmp_path).save("web", checkpoint)
    assert read_state(tmp_path).instances == {"web": checkpoint}
