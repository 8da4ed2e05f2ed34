"""Dynamic users: numbers that no user, process or other instance has, and that stay the same."""

import json
import os
import pwd
from pathlib import Path

import pytest

from nsupervisor.service.state import dynamic_users
from nsupervisor.service.state.dynamic_users import (
    DYNAMIC_USERS,
    DynamicUserError,
    DynamicUsers,
    ids_of_processes,
    pick_number,
)


def users(directory: Path, service: str = "nsupervisor") -> DynamicUsers:
    return DynamicUsers(str(directory / "state"), service)


def test_a_number_is_one_of_systemd_and_follows_from_the_name() -> None:
    for name in ("web", "db@2", "a" * 128):
        number = pick_number(name, lambda _: True)
        assert number in DYNAMIC_USERS
        assert number == pick_number(name, lambda _: True)


def test_numbers_that_are_taken_are_passed_over_and_each_is_tried() -> None:
    free = {61_184, 65_519}
    assert pick_number("web", free.__contains__) in free
    asked: list[int] = []
    with pytest.raises(DynamicUserError, match="no id from 61184 to 65519 is free"):
        pick_number("web", lambda number: asked.append(number) is not None)
    assert sorted(asked) == list(DYNAMIC_USERS)


def test_a_number_is_remembered_and_no_other_instance_has_it(tmp_path: Path) -> None:
    names = [f"web@{number}" for number in range(50)]
    chosen = {name: users(tmp_path).number(name) for name in names}
    other = {name: users(tmp_path, "other").number(name) for name in names}
    assert len({*chosen.values(), *other.values()}) == 100
    assert {name: users(tmp_path).number(name) for name in reversed(names)} == chosen


def test_a_number_that_a_user_of_the_host_has_got_since_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = users(tmp_path)
    before, other = of.number("web"), of.number("db")
    monkeypatch.setattr(dynamic_users, "is_known_id", before.__eq__)
    assert of.number("web") == before, "not while this service runs"
    after = users(tmp_path).number("web")
    assert after not in (before, other)
    assert users(tmp_path).number("db") == other
    monkeypatch.undo()
    assert users(tmp_path).number("web") == after


def test_a_number_of_a_process_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = pick_number("nsupervisor/web", lambda _: True)
    monkeypatch.setattr(dynamic_users, "ids_of_processes", lambda: frozenset({wanted}))
    number = users(tmp_path).number("web")
    assert number != wanted
    # Its own program may run with the number when the next service looks for it.
    monkeypatch.setattr(dynamic_users, "ids_of_processes", lambda: frozenset({number}))
    assert users(tmp_path).number("web") == number


def test_the_ids_of_processes_are_those_of_users_and_groups() -> None:
    assert {os.getuid(), os.getgid()} <= ids_of_processes()


def test_a_user_of_the_host_is_known() -> None:
    assert dynamic_users.is_known_id(pwd.getpwnam("nobody").pw_uid)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"users": []}', '{"users": {"a": "61184"}}', '{"users": {"a": 0}}', '{"users": {"a": true}}']
)
def test_a_damaged_file_is_not_replaced(tmp_path: Path, content: str) -> None:
    users(tmp_path).number("web")
    file = tmp_path / "state" / "dynamic-users.json"
    assert json.loads(file.read_text())["users"].keys() == {"nsupervisor/web"}
    file.write_text(content)
    with pytest.raises(DynamicUserError, match="is damaged"):
        users(tmp_path).number("db")
    assert file.read_text() == content


def test_a_directory_that_cannot_be_used_is_reported(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(DynamicUserError, match=r"cannot remember dynamic users in .*; set supervisor.state_directory"):
        users(tmp_path).number("web")
