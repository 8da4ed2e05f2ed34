"""The keys of a workload win over the values of its image."""

import pytest

from nsupervisor.config.load import parse
from nsupervisor.config.model import WorkloadConfig
from nsupervisor.config.problems import ConfigError
from nsupervisor.images.defaults import ImageDefaultError, image_chain, volume_name, with_image
from nsupervisor.images.documents import ImageConfig

IMAGE = ImageConfig(
    entrypoint=("/entry",),
    command=("-x",),
    environment=(("A", "image"),),
    user="site",
    working_directory="/srv",
    stop_signal="SIGQUIT",
    volumes=("/data",),
)
ROOT = "/state/images/chains/abc/root"


def workload(keys: str = "", root: str = "") -> WorkloadConfig:
    text = f'[workload.w]\n{keys}\n[workload.w.root]\nimage = "oci:/i:latest"\n{root}\n'
    return parse(text, "site.toml").workloads["w"]


def test_the_image_has_what_the_workload_does_not_say():
    found = with_image(workload(), IMAGE, ROOT)
    assert (found.command, found.user, found.working_directory) == (("/entry", "-x"), "site", "/srv")
    assert (found.kill_signal, found.volumes, found.image_environment) == (3, {"w-data": "/data"}, {"A": "image"})
    assert (found.root.path, found.root.overlay, image_chain(found)) == (ROOT, True, "abc")


def test_the_workload_wins():
    keys = """
        command = ["x"]
        user = "root"
        working_directory = "/tmp"
        kill_signal = "SIGINT"
        volumes = { mine = "/data" }
    """
    found = with_image(workload(keys, 'overlay = "kept"'), IMAGE, ROOT)
    assert (found.command, found.user, found.working_directory, found.kill_signal) == (("x",), "root", "/tmp", 2)
    assert (found.volumes, found.root.overlay) == ({"mine": "/data"}, "kept")


def test_an_image_without_a_program_or_with_an_unknown_signal_says_what_to_write():
    with pytest.raises(ImageDefaultError, match="write command"):
        with_image(workload(), ImageConfig(), ROOT)
    with pytest.raises(ImageDefaultError, match="stop signal 'SIGWHAT'; write kill_signal"):
        with_image(workload(), ImageConfig(command=("x",), stop_signal="SIGWHAT"), ROOT)
    assert with_image(workload(), ImageConfig(command=("x",), stop_signal="3"), ROOT).kill_signal == 3


def test_names_of_volumes_are_short_and_differ():
    assert volume_name("w", "/var/lib/data") == "w-var-lib-data"
    first, second = (volume_name("w", "/" + "x" * 4000 + end) for end in "ab")
    assert first != second
    assert len(first) < 220


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[workload.w]", "workload.w.command: is missing"),
        ('[workload.w]\nroot = { image = "alpine" }', "is not an image"),
        ('[workload.w]\nroot = { image = "oci:/a", path = "/b" }', "and path are two roots"),
        ('[workload.w]\nroot = { image = "oci:/a" }\ncommand = []', "command"),
        ('[workload.w]\nroot = { image = "oci:/a" }\nnamespaces = { mount = false }', "needs a mount namespace"),
    ],
)
def test_wrong_keys_are_refused(text, reason):
    with pytest.raises(ConfigError) as raised:
        parse(text, "site.toml")
    assert reason in str(raised.value)
