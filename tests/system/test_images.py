"""Workloads that run from a container image."""

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import trio

from tests.images.archives import Entry, directory, file, make_tar, write_docker_archive, write_layout
from tests.needs import needs
from tests.roots import make_root, open_directories
from tests.system.service import NSUPERVISOR, output_to_end, service

pytestmark = needs("root", "cgroup")


def entries_of(root: Path) -> list[Entry]:
    """Return the entries of a layer with all that is in a directory."""
    found: list[Entry] = []
    for path in sorted(root.rglob("*")):
        name, mode = str(path.relative_to(root)), path.stat().st_mode & 0o7777
        found.append(directory(name, mode=mode) if path.is_dir() else file(name, path.read_bytes(), mode=mode))
    return found


PROGRAM = {
    "Entrypoint": ["sh", "-c"],
    "Cmd": ["id; pwd; echo $FROM-$BOTH; cat /etc/of-the-root; ls -d /data; echo x >/data/kept; echo y >/here"],
    "Env": ["FROM=image", "BOTH=image"],
    "User": "site",
    "WorkingDir": "/home/site",
    "StopSignal": "SIGQUIT",
    "Volumes": {"/data": {}},
}


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    root = make_root(tmp_path_factory.mktemp("made") / "root")
    return make_tar([*entries_of(root), ("here", {"type": tarfile.REGTYPE, "mode": 0o666})])


def configuration(tmp_path: Path, reference: str, keys: str = "", root_keys: str = "") -> str:
    open_directories(tmp_path / "x")
    (tmp_path / "state").mkdir(exist_ok=True, mode=0o755)
    return f"""
        [workload.w]
        restart = "no"
        {keys}
        [workload.w.root]
        image = "{reference}"
        {root_keys}
        """


async def test_a_program_is_what_its_image_says(tmp_path: Path, layer: bytes) -> None:
    archive = write_docker_archive(tmp_path / "image.tar", [layer], PROGRAM)
    toml = configuration(tmp_path, f"docker-archive:{archive}", 'environment = { BOTH = "file" }')
    text = await output_to_end(tmp_path, toml)
    assert "uid=1234(site) gid=1235(site) groups=1235(site),1236(extra)" in text
    assert "/home/site\nimage-file\nof the root\n/data" in text
    assert (tmp_path / "state/volumes/w-data/kept").read_text() == "x\n"
    (chain,) = os.listdir(tmp_path / "state/images/chains")
    assert (tmp_path / "state/images/chains" / chain / "root/here").read_bytes() == b""  # changes are the program's own
    assert os.listdir(tmp_path / "state/images/uses") == []
    archive.unlink()  # what is loaded is enough
    assert "of the root" in await output_to_end(tmp_path, toml)


@needs("program:buildah")
async def test_an_image_of_buildah_keeps_its_volume_for_its_user(tmp_path: Path) -> None:
    """The entrypoint gets the arguments, runs as the user, and finds in the volume what it wrote the last time."""
    root = make_root(tmp_path / "root")
    script = 'exec 2>&1; id -un; echo "$@"; cat /data/kept; echo kept >/data/kept; touch /home/site/x; exit 0'
    (root / "entry").write_text(f"#!/bin/sh\n{script}\n")
    (root / "entry").chmod(0o755)
    storage = ("--root", f"{tmp_path}/storage", "--runroot", f"{tmp_path}/storage-run", "--storage-driver", "vfs")

    def buildah(*arguments: str) -> str:
        command = ["buildah", *storage, *arguments]
        return subprocess.run(
            command, check=True, stdout=-1, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
        ).stdout.strip()

    container = buildah("from", "scratch")
    buildah("copy", container, str(root), "/")
    settings = ("--entrypoint", '["/entry"]', "--cmd", "one two", "--user", "site", "--volume", "/data")
    buildah("config", *settings, container)
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    image = buildah("commit", "--signature-policy", str(policy), container)
    buildah("push", "--signature-policy", str(policy), image, f"oci:{tmp_path}/layout:site")
    toml = configuration(tmp_path, f"oci:{tmp_path}/layout:site")
    text = await output_to_end(tmp_path, toml)
    assert text.startswith("site\none two\n")
    assert "/data/kept: No such file" in text
    assert "/home/site/x': Permission denied" in text
    assert (await output_to_end(tmp_path, toml)).startswith("site\none two\nkept\n")
    status = (tmp_path / "state/volumes/w-data/kept").stat()
    assert (status.st_uid, status.st_gid) == (1234, 1235)


async def test_keys_of_the_workload_win(tmp_path: Path, layer: bytes) -> None:
    layout = write_layout(tmp_path / "image", [layer], PROGRAM)
    keys = 'command = ["sh", "-c", "id -u; pwd"]\nuser = "root"\nworking_directory = "/tmp"'
    text = await output_to_end(tmp_path, configuration(tmp_path, f"oci:{layout}:latest", keys))
    assert text == "0\n/tmp"


async def test_the_stop_signal_is_that_of_the_image_and_it_is_not_removed_while_it_runs(
    tmp_path: Path, layer: bytes
) -> None:
    program = {**PROGRAM, "Cmd": ["trap 'echo asked to quit; exit 0' QUIT; echo up; while :; do sleep 0.05; done"]}
    layout = write_layout(tmp_path / "image", [layer], program)
    reference = f"oci:{layout}:latest"
    async with service(tmp_path, configuration(tmp_path, reference)) as it:
        await it.record(event="output", workload="w", message="up")
        directory = ("--state-directory", f"{tmp_path}/state")
        refused = await it.cli_result("image", "rm", *directory, reference)
        assert b"is used by w; stop it" in refused.stderr
        write_layout(tmp_path / "image", [layer, make_tar([file("new")])], program)
        config = str(tmp_path / "nsupervisor.toml")
        refused = await it.cli_result("plan", config)
        assert b"its image is not loaded, or has changed" in refused.stdout + refused.stderr
        await it.cli("image", "load", *directory, reference)
        plan = await it.cli("plan", config)
        assert "restart" in plan
        assert "root.path" in plan
        await it.cli("stop", "w")
        await it.record(event="output", workload="w", message="asked to quit")
        await it.cli("image", "rm", *directory, reference)
    assert os.listdir(tmp_path / "state/images/chains") == []


async def test_a_user_namespace_of_its_own_is_refused(tmp_path: Path, layer: bytes) -> None:
    layout = write_layout(tmp_path / "image", [layer], PROGRAM)
    toml = configuration(tmp_path, f"oci:{layout}:latest", "namespaces.user = true")
    (tmp_path / "nsupervisor.toml").write_text(f'[supervisor]\nstate_directory = "{tmp_path}/state"\n{toml}')
    done = await trio.run_process(
        [*NSUPERVISOR, "check", str(tmp_path / "nsupervisor.toml")], capture_stderr=True, check=False
    )
    assert done.returncode == 2
    assert b"workload.w.root.image: is owned by users of the host" in done.stderr


async def test_an_image_that_cannot_be_loaded_fails_its_own_workload_only(tmp_path: Path, layer: bytes) -> None:
    hostile = write_docker_archive(tmp_path / "hostile.tar", [make_tar([file("../x")])], PROGRAM)
    toml = configuration(tmp_path, f"docker-archive:{hostile}") + '\n[workload.other]\ncommand = ["sleep", "1000"]\n'
    async with service(tmp_path, toml) as it:
        await it.record(event="state", workload="other", to="running")
        failed = await it.record(event="state", workload="w", to="failed")
        assert "its image is not loaded, or has changed; nsupervisor image load" in failed["reason"]
        warning = await it.record(event="feature unavailable", workload="w")
        assert 'it cannot be loaded: "../x" has ".." in its path' in warning["message"]
        write_docker_archive(tmp_path / "hostile.tar", [layer], {**PROGRAM, "Entrypoint": ["sleep"], "Cmd": ["1000"]})
        await it.cli("reload", str(tmp_path / "nsupervisor.toml"))
        await it.cli("start", "w")
        assert (await it.status("w"))["state"] == "running"
    assert not (tmp_path / "x").exists()
    shutil.rmtree(tmp_path / "state")
