"""The commands below `nsupervisor image`."""

import json
import os

import attrs
import pytest

from nsupervisor.cli.commands.image import image_lines
from nsupervisor.images.documents import ImageConfig
from nsupervisor.images.store import ImageRecord, Store, Use
from tests.cli.command import nsupervisor
from tests.images.archives import device, file, make_tar, write_docker_archive, write_layout


@pytest.fixture
def state(tmp_path):
    path = tmp_path / "state"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def reference(tmp_path):
    program = {"Cmd": ["sh"], "Env": ["A=1"]}
    return f"oci:{write_layout(tmp_path / 'image', [make_tar([file('a', b'1'), device('dev/null')])], program)}:latest"


def image(state, verb, *arguments):
    return nsupervisor("image", verb, "--state-directory", str(state), *arguments)


def test_load_ls_rm_and_gc(state, reference):
    done = image(state, "load", reference)
    assert (done.returncode, done.stdout.startswith(f"{reference}: sha256:")) == (0, True)
    assert "layer 1 of 1: sha256:" in done.stderr
    assert "1 device node was left out" in done.stderr
    listed = image(state, "ls")
    heads, row = listed.stdout.splitlines()
    assert heads.split() == ["IMAGE", "SIZE", "AGE", "USED", "BY", "REFERENCE"]
    assert row.endswith(reference)
    (found,) = json.loads(image(state, "ls", "--json").stdout)
    assert (found["reference"], found["command"], found["environment"]) == (reference, ["sh"], {"A": "1"})
    assert image(state, "rm", reference).stdout == f"{reference}: removed\n"
    assert os.listdir(state / "images/chains") == []
    assert image(state, "gc").stdout == "removed 0 unpacked and 0 partly unpacked images\n"
    assert "no images; load one with" in image(state, "ls").stderr
    done = image(state, "rm", reference)
    assert (done.returncode, "there is no image" in done.stderr) == (2, True)


def test_an_image_in_use_is_not_removed(state, reference):
    image(state, "load", "-q", reference)
    with Store(str(state)) as store:
        store.note_use(Use("web@1", reference, store.list_records()[0].chain))
    done = image(state, "rm", reference)
    assert (done.returncode, "is used by web@1; stop it" in done.stderr) == (1, True)
    assert "web@1" in image(state, "ls").stdout


def test_the_state_directory_is_that_of_a_configuration(tmp_path, state, reference):
    config = tmp_path / "site.toml"
    config.write_text(f'[supervisor]\nstate_directory = "{state}"\n[workload.web]\ncommand = ["true"]\n')
    assert nsupervisor("image", "load", "--config", str(config), reference).returncode == 0
    assert os.listdir(state / "images/chains") != []
    done = nsupervisor("image", "ls", "--config", str(config), "--state-directory", str(state))
    assert (done.returncode, "exclude each other" in done.stderr) == (2, True)


def test_check_shows_what_the_image_adds_and_rm_refuses_what_the_file_names(tmp_path, state, reference):
    config = tmp_path / "site.toml"
    config.write_text(
        f'[supervisor]\nstate_directory = "{state}"\n'
        f'[workload.web]\nroot.image = "{reference}"\nenvironment = {{ B = "2" }}\n'
    )
    done = nsupervisor("check", "--json", str(config))
    assert "it is not loaded, or has changed since" in done.stdout
    nsupervisor("image", "load", "--config", str(config), reference)
    (workload,) = json.loads(nsupervisor("check", "--json", "--expanded", str(config)).stdout)["expanded"][
        "workload"
    ].values()
    assert (workload["command"], workload["environment"]) == (["sh"], {"A": "1", "B": "2"})
    done = nsupervisor("image", "rm", "--config", str(config), reference)
    assert (done.returncode, "is used by web" in done.stderr) == (1, True)


def test_what_cannot_be_loaded_is_said_with_the_reason(tmp_path, state):
    hostile = write_docker_archive(tmp_path / "hostile.tar", [make_tar([file("../x")])])
    done = image(state, "load", f"docker-archive:{hostile}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == f'docker-archive:{hostile}: "../x" has ".." in its path'
    done = image(state, "load", "docker://alpine")
    assert (done.returncode, "is not read; copy it" in done.stderr) == (2, True)
    done = image(state, "load", f"docker-archive:{hostile}", "--max-size", "many")
    assert (done.returncode, "--max-size" in done.stderr) == (2, True)


def test_the_table_fits_into_80_columns():
    long = ImageRecord("oci:/srv/images/" + "x" * 90, "sha256:" + "a" * 64, "0" * 64, (), 123 << 20, 0.0, ImageConfig())
    short = attrs.evolve(long, reference="oci:/srv/images/alpine:latest", chain="1" * 64)
    assert image_lines([short, long], {"1" * 64: ["web@1", "web@2", "web@3"]}, 86400.0 * 3, 80) == [
        "IMAGE         SIZE  AGE  USED BY         REFERENCE",
        "aaaaaaaaaaaa  123M   3d  web@1,web@2 +1  oci:/srv/images/alpine:latest",
        "aaaaaaaaaaaa  123M   3d  -               oci:/srv/images/xxxxxxxxxxxxxxxxxxxxxx…",
    ]


def test_nothing_is_made_to_list_nothing(state):
    assert image(state, "ls").returncode == 0
    assert image(state, "gc").returncode == 0
    assert os.listdir(state) == []
