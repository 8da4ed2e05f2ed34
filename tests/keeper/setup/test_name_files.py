"""Files for names, mounted in the program's mount namespace: also over links, and never written into a root."""

import os
import shutil
from pathlib import Path

import pytest

from tests.keeper.conftest import ISOLATED, Harness
from tests.needs import needs
from tests.roots import make_root, open_directories

pytestmark = needs("root")

SANDBOX = {"paths": [["/", "read-only"]]}
SHOW = "cat /etc/hosts; echo x >/etc/hosts"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    (directory / "hosts").write_text("of its own\n")
    (directory / "hosts").chmod(0o644)
    return directory / "hosts"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = make_root(tmp_path / "root")
    open_directories(root)
    return root


def files(own: Path, settings: tuple[str, ...] = ("db 10.0.0.5",)) -> dict[str, object]:
    return {"/etc/hosts": {"source": str(own), "settings": list(settings)}}


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({}, id="host"),
        pytest.param({"sandbox": SANDBOX}, id="read-only"),
        pytest.param({"uid": 1234, "gid": 1234, "groups": [], "init": False}, id="user"),
        pytest.param(
            {
                "namespaces": [*ISOLATED, "user"],
                "uid_mappings": [[0, 100_000, 65536]],
                "gid_mappings": [[0, 100_000, 65536]],
            },
            id="userns",
        ),
    ],
)
async def test_a_program_with_the_root_of_the_host(harness: Harness, own: Path, spec: dict) -> None:
    before = Path("/etc/hosts").read_bytes()
    result = await harness.run("sh", "-c", SHOW, **{"namespaces": ISOLATED, "name_files": files(own), **spec})
    assert result.failure is None, result.failure
    assert result.stdout == "of its own\n"
    assert "Read-only file system" in result.stderr or "Permission denied" in result.stderr
    assert Path("/etc/hosts").read_bytes() == before
    assert own.read_text() == "of its own\n"


@pytest.mark.parametrize("target", ["/of-the-root", "../../../../../outside", "/proc/self/environ", "nowhere", "hosts"])
async def test_a_link_in_a_root_is_covered_and_not_followed(
    harness: Harness, own: Path, root: Path, target: str
) -> None:
    (root / "of-the-root").write_text("old\n")
    (root / "etc/hosts").unlink(missing_ok=True)
    (root / "etc/hosts").symlink_to(target)
    script = "cat /etc/hosts; cat /of-the-root"
    result = await harness.run("sh", "-c", script, namespaces=ISOLATED, root={"path": str(root)}, name_files=files(own))
    assert result.failure is None, result.failure
    assert result.stdout == "of its own\nold\n"
    assert os.readlink(root / "etc/hosts") == target


async def test_a_missing_file_is_made_in_an_upper_layer_only(harness: Harness, own: Path, root: Path) -> None:
    (root / "etc/hosts").unlink(missing_ok=True)
    spec = {"namespaces": ISOLATED, "name_files": files(own)}
    given = {"path": str(root), "overlay": "", "readonly": True}
    result = await harness.run("cat", "/etc/hosts", root=given, **spec)
    assert result.stdout == "of its own\n", result
    result = await harness.run("cat", "/etc/hosts", root={"path": str(root)}, **spec)
    assert result.failure is not None
    assert result.failure.message == (
        "cannot show a file of its own at /etc/hosts: No such file or directory "
        "(make an empty file there, or give the root an overlay)"
    )
    result = await harness.run("ls", "/etc", root={"path": str(root)}, **{**spec, "name_files": files(own, ())})
    assert result.failure is None, "it is not asked for"
    assert "hosts" not in result.stdout.split()
    assert not (root / "etc/hosts").exists()


@pytest.mark.parametrize("kind", ["link", "directory", "missing"])
async def test_what_is_no_place_for_a_file_is_refused(harness: Harness, own: Path, root: Path, kind: str) -> None:
    (root / "etc/hosts").unlink(missing_ok=True)
    if kind == "directory":
        (root / "etc/hosts").mkdir()
    else:
        shutil.move(root / "etc", root / "other")
        if kind == "link":
            (root / "etc").symlink_to("other")
    spec = {"namespaces": ISOLATED, "root": {"path": str(root)}}
    result = await harness.run("ls", name_files=files(own), **spec)
    assert result.failure is not None
    assert "cannot show a file of its own at /etc/hosts" in result.failure.message
    result = await harness.run("ls", name_files=files(own, ()), **spec)
    assert result.failure is None
