"""Images that other programs make and convert are read as those programs mean them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from nsupervisor.config.image_reference import parse_reference
from nsupervisor.images.loading import load_image
from nsupervisor.images.store import Store
from tests.images.archives import directory, file, hardlink, make_tar, symlink, write_layout
from tests.images.trees import read_tree
from tests.needs import PROGRAM_PATH, needs
from tests.timing import deadline

LAYERS = [
    make_tar(
        [directory("d"), file("d/f", b"x" * 5000), hardlink("h", "d/f"), symlink("l", "d"), file("old"), directory("o")]
    ),
    make_tar([file(".wh.old"), file("o/.wh..wh..opq"), file("o/new", b"y", mode=0o4755)]),
]
TREE = {
    "d": ("directory", 0o755),
    "d/f": ("file", 0o644, b"x" * 5000),
    "h": ("file", 0o644, b"x" * 5000),
    "l": ("symlink", "d"),
    "o": ("directory", 0o755),
    "o/new": ("file", 0o4755, b"y"),
}
PROGRAM = {"Cmd": ["sh"], "Env": ["A=1"], "User": "1:2"}


def run(*command: str, **environment: str) -> str:
    path = shutil.which(command[0], path=PROGRAM_PATH)
    assert path is not None
    done = subprocess.run(
        [path, *command[1:]], capture_output=True, text=True, timeout=deadline(120), env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def load(tmp_path: Path, reference: str) -> tuple[object, dict[str, tuple[object, ...]]]:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    with Store(str(state)) as store:
        record = load_image(parse_reference(reference), store)
        return record.config, read_tree(Path(store.root_path(record.chain)))


@needs("program:skopeo")
@pytest.mark.parametrize("form", ["docker-archive:{}:site:1", "oci-archive:{}:site", "oci:{}:site"])
def test_what_skopeo_writes_is_read(tmp_path, form):
    layout = write_layout(tmp_path / "layout", LAYERS, PROGRAM)
    target = form.format(tmp_path / "copied")
    run("skopeo", "--insecure-policy", "--tmpdir", str(tmp_path), "copy", f"oci:{layout}:latest", target)
    config, tree = load(tmp_path, target)
    assert tree == TREE
    assert (config.command, config.environment, config.user) == (("sh",), (("A", "1"),), "1:2")


@needs("program:buildah", "root")
def test_what_buildah_builds_is_read(tmp_path):
    storage = ("--root", str(tmp_path / "storage"), "--runroot", str(tmp_path / "run"), "--storage-driver", "vfs")
    (tmp_path / "f").write_text("content")
    (tmp_path / "f").chmod(0o644)

    def buildah(*arguments: str) -> str:
        return run("buildah", *storage, *arguments, TMPDIR=str(tmp_path))

    container = buildah("from", "scratch")
    buildah("copy", "--chown", "1234:1235", container, str(tmp_path / "f"), "/srv/f")
    config = ("--entrypoint", '["/srv/f", "-x"]', "--env", "A=b c", "--workingdir", "/srv", "--stop-signal", "SIGQUIT")
    buildah("config", *config, "--volume", "/data", "--user", "site", container)
    image = buildah("commit", container)
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    buildah("push", "--signature-policy", str(policy), image, f"oci:{tmp_path}/layout:site")
    found, tree = load(tmp_path, f"oci:{tmp_path}/layout:site")
    assert tree["srv/f"] == ("file", 0o644, b"content")
    assert (found.entrypoint, found.environment[-1]) == (("/srv/f", "-x"), ("A", "b c"))
    assert (found.working_directory, found.user, found.volumes) == ("/srv", "site", ("/data",))
    assert found.stop_signal in ("SIGQUIT", "3")
