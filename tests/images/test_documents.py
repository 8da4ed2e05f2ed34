"""The documents of images are parsed, and wrong ones are refused with the member that is wrong."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.config.image_reference import parse_reference
from nsupervisor.images import documents
from nsupervisor.images.documents import Descriptor, chain_id, choose_manifest, parse_config
from nsupervisor.images.errors import ImageError

DIGEST = "sha256:" + "ab" * 32
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("oci:/srv/a", ("oci", "/srv/a", "")),
        ("oci:/srv/a:latest", ("oci", "/srv/a", "latest")),
        ("docker-archive:/srv/a.tar:site:1.0", ("docker-archive", "/srv/a.tar", "site:1.0")),
        ("oci-archive:/srv/a.tar", ("oci-archive", "/srv/a.tar", "")),
    ],
)
def test_references(text, parts):
    found = parse_reference(text)
    assert (found.transport, found.path, found.name) == parts
    assert str(found) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("docker://alpine", "is not read; copy it"),
        ("alpine", "is not an image"),
        ("oci:relative", "absolute path"),
        ("oci:/a\n", "characters that no reference has"),
        ("oci:/" + "a" * 5000, "more than 4096"),
    ],
)
def test_a_wrong_reference_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_reference(text)


def config(**members):
    return json.dumps({"os": "linux", "rootfs": {"type": "layers", "diff_ids": [DIGEST]}, **members}).encode()


def test_a_configuration():
    program = {
        "Entrypoint": ["/entry"],
        "Cmd": None,
        "Env": ["A=1", "B=x=y", "C="],
        "User": "site:1235",
        "WorkingDir": "srv",
        "StopSignal": "SIGQUIT",
        "Volumes": {"/data": {}},
    }
    found = parse_config(config(config=program))
    assert (found.entrypoint, found.command) == (("/entry",), ())
    assert found.environment == (("A", "1"), ("B", "x=y"), ("C", ""))
    assert (found.user, found.working_directory, found.stop_signal) == ("site:1235", "/srv", "SIGQUIT")
    assert (found.volumes, found.diff_ids) == (("/data",), (DIGEST,))


WRONG = {
    "no JSON": (b"{", "is not JSON"),
    "deep JSON": (b"[" * 200_000, "is not JSON"),
    "a large document": (b" " * (5 << 20), "larger than 4 MiB"),
    "no object": (b"1", "is not an object"),
    "another system": (config(os="windows"), "for 'windows', not for Linux"),
    "another digest": (config(rootfs={"type": "layers", "diff_ids": ["md5:1"]}), r"diff_ids\[0\] is not a SHA-256"),
    "many layers": (config(rootfs={"diff_ids": [DIGEST] * 600}), "600 layers"),
    "a variable without name": (config(config={"Env": ["=1"]}), r"Env\[0\] is not NAME=VALUE"),
    "a number as command": (config(config={"Cmd": [1]}), r"Cmd\[0\] is not a text"),
    "a command with NUL": (config(config={"Cmd": ["a\0b"]}), r"Cmd\[0\] is not a text"),
    "half a character": (b'{"config": {"User": "\\ud800"}}', "User is not a text"),
    "a volume above": (config(config={"Volumes": {"/../etc": {}}}), "Volumes"),
    "a text as list": (config(config={"Cmd": "sh"}), "Cmd is not a list"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_configuration_is_refused(name):
    content, reason = WRONG[name]
    with pytest.raises(ImageError, match=reason):
        parse_config(content)


MEMBERS = (
    *("os", "config", "rootfs", "diff_ids", "layers", "Env", "Cmd", "Volumes", "manifests", "digest", "size"),
    *("mediaType", "platform", "annotations", "Config", "Layers", "RepoTags", "schemaVersion"),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.just(DIGEST),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(MEMBERS),
            inner,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_no_document_leads_to_another_error(value):
    content = json.dumps(value).encode()
    for parse in (
        parse_config,
        documents.parse_docker_manifest,
        lambda text: documents.parse_manifest(text, "m"),
        lambda text: documents.parse_index(text, "i"),
    ):
        try:
            parse(content)
        except ImageError:
            pass


def descriptor(digit, *names, platform=None):
    return Descriptor(MANIFEST, "sha256:" + digit * 64, 1, names, platform)


def test_the_manifest_is_that_of_the_name_and_of_the_machine():
    index = [
        descriptor("1", "a", platform=("linux", "amd64")),
        descriptor("2", "a", platform=("linux", "arm64")),
        descriptor("3", "b"),
    ]
    assert choose_manifest(index, "a", "x86_64", "i").digest[7] == "1"
    assert choose_manifest(index, "a", "aarch64", "i").digest[7] == "2"
    assert choose_manifest(index, "b", "x86_64", "i").digest[7] == "3"
    with pytest.raises(ImageError, match=r'no image "c"; there is a, b'):
        choose_manifest(index, "c", "x86_64", "i")
    with pytest.raises(ImageError, match="no image for linux/riscv64"):
        choose_manifest(index[:2], "a", "riscv64", "i")
    with pytest.raises(ImageError, match="several images; write which one"):
        choose_manifest([descriptor("1", "a"), descriptor("2", "b")], "", "x86_64", "i")
    with pytest.raises(ImageError, match="has no image"):
        choose_manifest([], "", "x86_64", "i")


def test_a_layer_of_another_type_is_refused():
    layer = {"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar", "digest": DIGEST, "size": 1}
    manifest = {"config": {"digest": DIGEST, "size": 1}, "layers": [layer]}
    with pytest.raises(ImageError, match="which cannot be a root"):
        documents.parse_manifest(json.dumps(manifest).encode(), "m")


def test_the_chain_id_is_that_of_the_specification():
    import hashlib

    first, second = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    assert chain_id([first]) == "1" * 64
    assert chain_id([first, second]) == hashlib.sha256(f"{first} {second}".encode()).hexdigest()
