"""The runtime directory belongs to one supervisor, which leaves nothing in it."""

import os
from pathlib import Path

import pytest

from nsupervisor.config.load import parse
from nsupervisor.config.model import Config
from nsupervisor.linux.trusted_paths import UntrustedPathError
from nsupervisor.service.platform.runtime_directory import runtime_directory


def config(directory: Path) -> Config:
    return parse(f'[supervisor]\nruntime_directory = "{directory}"\n[workload.web]\ncommand = ["true"]', "site.toml")


def test_it_is_made_and_left_empty(tmp_path: Path) -> None:
    with runtime_directory(config(tmp_path / "run")) as directory:
        assert directory == tmp_path / "run"
        assert (directory / "lock").read_text() == f"{os.getpid()}\n"
        (directory / "notify").mkdir()
        (directory / "streams").mkdir()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_second_supervisor_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    with (
        runtime_directory(config(tmp_path)),
        pytest.raises(OSError, match=rf"is in use by another supervisor \(pid {os.getpid()}\); stop that one, or give"),
        runtime_directory(config(tmp_path)),
    ):
        pass


def test_a_failing_service_leaves_what_the_next_one_needs(tmp_path: Path) -> None:
    def fail() -> None:
        with runtime_directory(config(tmp_path)) as directory:
            (directory / "notify").mkdir()
            raise ValueError("defect")

    with pytest.raises(ValueError, match="defect"):
        fail()
    assert (tmp_path / "notify").exists()
    with runtime_directory(config(tmp_path)):
        pass


def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(UntrustedPathError), runtime_directory(config(tmp_path / "open" / "run")):
        pass


def test_a_place_where_no_directory_can_be_made_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OSError, match=r"set supervisor\.runtime_directory to another place"),
        runtime_directory(config(tmp_path / "file" / "run")),
    ):
        pass
