"""Log files in directories, and under names, that another user controls: root neither writes nor renames there."""

import os
from pathlib import Path

import pytest

from nsupervisor.linux.trusted_paths import UntrustedPathError
from nsupervisor.logs import LogFile, Rotation
from nsupervisor.logs.target import open_target
from tests.needs import needs

pytestmark = needs("root")

NOBODY = 65534
SECRET = "important\nlast line without an end"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of root's with an incomplete last line, which a log would cut off."""
    path = tmp_path / "secret"
    path.write_text(SECRET)
    path.chmod(0o600)
    return path


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    path = tmp_path / "logs"
    path.mkdir(mode=0o755)
    return path


def log_file(path: Path, **rotation: object) -> LogFile:
    return LogFile(path, Rotation(**rotation))  # type: ignore[arg-type]


def refusal(path: Path) -> str:
    """Write to a log file; return why that is refused."""
    with pytest.raises(UntrustedPathError) as caught:
        log_file(path).append(b"line\n")
    return str(caught.value)


@pytest.mark.fault("A10")
@pytest.mark.parametrize("kind", ["link", "dangling", "hard link", "file"])
def test_root_wrote_to_a_name_in_a_directory_of_the_workloads_user(secret: Path, logs: Path, kind: str) -> None:
    """Whatever is there: the user can replace it at any moment."""
    os.chown(logs, NOBODY, NOBODY)
    make(kind, logs / "web.log", secret)
    before = sorted(logs.parent.rglob("*"))
    assert refusal(logs / "web.log") == (
        f"{logs} belongs to user 65534, who could put files into it; chown it, "
        "or set log.path, or supervisor.log_directory, to another place"
    )
    assert secret.read_text() == SECRET
    assert sorted(logs.parent.rglob("*")) == before


@pytest.mark.fault("A10")
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("link", "is a symbolic link; remove it"),
        ("dangling", "is a symbolic link; remove it"),
        ("hard link", "is a file with other names (hard links); remove it"),
        ("file", "belongs to user 65534; chown it"),
    ],
)
def test_a_name_from_when_others_could_write_to_the_directory_is_refused(
    secret: Path, logs: Path, kind: str, reason: str
) -> None:
    make(kind, logs / "web.log", secret)
    assert refusal(logs / "web.log").startswith(f"{logs}/web.log {reason}, or set log.path")
    assert secret.read_text() == SECRET
    assert not (logs.parent / "missing").exists()


def make(kind: str, path: Path, secret: Path) -> None:
    match kind:
        case "link":
            path.symlink_to(secret)
        case "dangling":
            path.symlink_to(secret.parent / "missing")
        case "hard link":
            path.hardlink_to(secret)
        case "file":
            path.touch()
            os.chown(path, NOBODY, NOBODY)


@pytest.mark.fault("A10")
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775])
def test_a_directory_that_others_may_write_to_is_refused(logs: Path, mode: int) -> None:
    os.chown(logs, 0, NOBODY)
    logs.chmod(mode)
    writers = "group 65534" if mode == 0o775 else "every user"
    assert refusal(logs / "web.log").startswith(
        f"{logs} is writable by {writers}, who could put files into it; chmod it"
    )


@pytest.mark.fault("A10")
def test_a_group_may_write_to_a_directory_above(logs: Path) -> None:
    """As to /var/log on some distributions: the directory of the log must still be of root, and no link."""
    (logs / "own").mkdir()
    os.chown(logs, 0, NOBODY)
    logs.chmod(0o775)
    log_file(logs / "own" / "web.log").append(b"line\n")
    assert (logs / "own" / "web.log").read_text() == "line\n"
    (logs / "own").rename(logs / "other")
    (logs / "own").symlink_to(logs / "other")
    assert refusal(logs / "own" / "web.log").startswith(f"{logs}/own is a symbolic link; write {logs}/other")


@pytest.mark.fault("A10")
def test_a_file_is_not_rotated_once_others_may_write_to_its_directory(logs: Path) -> None:
    """The directory is checked for each use."""
    file = log_file(logs / "web.log", max_size=8)
    file.append(b"1234567\n")
    os.chown(logs, NOBODY, NOBODY)
    with pytest.raises(UntrustedPathError, match="belongs to user 65534"):
        file.append(b"next\n")
    assert sorted(os.listdir(logs)) == ["web.log"]


@pytest.mark.fault("A10")
def test_a_compressed_file_replaced_what_a_link_led_to(secret: Path, logs: Path) -> None:
    (logs / ".web.log.gz.part").symlink_to(secret)
    file = log_file(logs / "web.log", max_size=8, compress=True)
    file.append(b"1234567\n")
    file.append(b"next\n")
    if (thread := file._compressing) is not None:
        thread.join()
    file.close()
    assert secret.read_text() == SECRET
    assert sorted(os.listdir(logs)) == ["web.log", "web.log.1.gz"]


# ---- the stream of records


@pytest.mark.fault("A10")
@pytest.mark.parametrize("kind", ["link", "hard link", "file"])
def test_the_stream_of_records_is_not_written_to_a_name_of_another_user(secret: Path, logs: Path, kind: str) -> None:
    make(kind, logs / "records", secret)
    with pytest.raises(UntrustedPathError, match=r"or set supervisor\.log_output to another place$"):
        open_target(str(logs / "records"))
    os.chown(logs, NOBODY, NOBODY)
    with pytest.raises(UntrustedPathError, match=f"^{logs} belongs to user 65534"):
        open_target(str(logs / "records"))
    assert secret.read_text() == SECRET


@pytest.mark.fault("A10")
@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_the_own_standard_output_is_a_target_under_each_of_its_names(path: str) -> None:
    target = open_target(path)
    try:
        assert os.path.samestat(os.fstat(target.fd), os.fstat(1))
    finally:
        target.close()
