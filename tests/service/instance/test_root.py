"""Users and groups of a root file system."""

import os
from pathlib import Path

import pytest

from nsupervisor.config.model import RootConfig
from nsupervisor.service.instance import root as module
from nsupervisor.service.instance.root import resolve_in_root, root_key
from nsupervisor.service.instance.users import IdentityError, UserIdentity


def make_root(path: Path, passwd: str = "", group: str = "") -> dict[str, object]:
    (path / "etc").mkdir(parents=True)
    (path / "etc/passwd").write_text(passwd)
    (path / "etc/group").write_text(group)
    return {"path": str(path), "overlay": None}


PASSWD = "root:x:0:0:Root:/root:/bin/sh\nsite:x:10:20::/site:/bin/ash\n"
GROUP = "root:x:0:\nsite:x:20:\nmore:x:30:site,other\n"


@pytest.mark.parametrize(
    ("user", "groups", "expected"),
    [
        ("site", (), UserIdentity(10, 20, (20, 30), "site", "/site", "/bin/ash")),
        ("10", (), UserIdentity(10, 20, (20, 30), "site", "/site", "/bin/ash")),
        ("site:more", ("root",), UserIdentity(10, 30, (30, 0), "site", "/site", "/bin/ash")),
        ("77:88", ("99",), UserIdentity(77, 88, (88, 99), "", "/", "")),
        ("77", (), UserIdentity(77, 77, (77,), "", "/", "")),
    ],
)
def test_names_and_numbers(tmp_path: Path, user: str, groups: tuple[str, ...], expected: UserIdentity) -> None:
    assert resolve_in_root(make_root(tmp_path / "root", PASSWD, GROUP), user, groups) == expected


@pytest.mark.parametrize("user", ["nobody", "site:nogroup", "4294967295", "9" * 5000, "²"])
def test_unknown_names_are_refused(tmp_path: Path, user: str) -> None:
    with pytest.raises(IdentityError, match="in the root"):
        resolve_in_root(make_root(tmp_path / "root", PASSWD, GROUP), user, ())


def test_wrong_lines_are_left_out(tmp_path: Path) -> None:
    wrong = "site:x\nsite:x:-1:0::/:\nsite:x:1:x::/:\n\0\xff\nsite:x:99999999999:0::/:\n"
    identity = resolve_in_root(make_root(tmp_path / "root", wrong + PASSWD, GROUP), "site", ())
    assert identity.uid == 10


def test_the_upper_layer_comes_first(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", PASSWD, GROUP)
    make_root(tmp_path / "layers/upper", "site:x:11:21::/:\n")
    assert resolve_in_root({**root, "overlay": str(tmp_path / "layers")}, "site", ()).uid == 11


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "large", "out"])
def test_what_is_no_database_is_not_read(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_DATABASE_BYTES", 1000)
    root = make_root(tmp_path / "root", "", GROUP)
    passwd = tmp_path / "root/etc/passwd"
    passwd.unlink()
    (tmp_path / "passwd").write_text(PASSWD)
    match kind:
        case "link":
            passwd.symlink_to(tmp_path / "passwd")
        case "out":
            passwd.symlink_to("../../passwd")
        case "fifo":
            os.mkfifo(passwd)
        case "directory":
            passwd.mkdir()
        case "large":
            passwd.write_text(PASSWD * 100)
    with pytest.raises(IdentityError):
        resolve_in_root(root, "site", ())


def test_the_key_of_a_specification() -> None:
    def overlay(value: bool | str, instance: int | None = None) -> object:
        return root_key(RootConfig(path="/root", overlay=value), instance, "/state")["overlay"]

    assert overlay(False) is None
    assert overlay(True) == ""
    assert overlay("data") == "/state/overlays/data"
    assert overlay("data", 2) == "/state/overlays/data@2"
