"""The JSON documents of images: OCI image index, manifest and configuration, and those of Docker. Pure.

Sources: github.com/opencontainers/image-spec (image-index.md, manifest.md, config.md), and for `manifest.json` of
`docker save` github.com/moby/moby (image/spec/v1.2.md). Members that are not used are ignored. What is used has to
have the right type, and a limited size.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from nsupervisor.images.errors import ImageError
from nsupervisor.images.limits import MAX_DOCUMENT_BYTES, MAX_LAYERS

INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_LAYER_TYPE = re.compile(
    r"application/vnd\.(oci\.image\.layer\.v1\.tar(\+gzip|\+zstd)?|docker\.image\.rootfs\.diff\.tar(\.gzip|\.zstd)?)"
)
REFERENCE_NAMES = ("org.opencontainers.image.ref.name", "io.containerd.image.name")
"""Annotations with the name of an image in an index."""
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
"""Machine, uname(2) → architecture of an image, GOARCH; others have the same name."""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
MAX_TEXT = 1 << 20
MAX_ITEMS = 10_000


@attrs.frozen
class Descriptor:
    """A reference to a blob: its media type, digest and size in bytes; in an index also names and platform."""

    media_type: str
    digest: str
    size: int
    names: tuple[str, ...] = ()
    platform: tuple[str, str] | None = None
    """Operating system and architecture."""


@attrs.frozen
class ImageConfig:
    """The part of an image that is about the program, and the diff_ids of its layers, the lowest first.

    Empty texts and tuples: it says nothing. `environment`: pairs. `stop_signal`: a name or a number, such as "SIGQUIT".
    """

    architecture: str = ""
    diff_ids: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    user: str = ""
    working_directory: str = ""
    stop_signal: str = ""
    volumes: tuple[str, ...] = ()


@attrs.frozen
class DockerEntry:
    """One image in the `manifest.json` of `docker save`: paths in the archive, and its names."""

    config: str
    layers: tuple[str, ...]
    names: tuple[str, ...]


# ---- parts of documents


def load_json(content: bytes, what: str) -> Mapping[str, Any] | list[Any]:
    """Parse a document. `what`: its name in messages. Raises ImageError."""
    if len(content) > MAX_DOCUMENT_BYTES:
        raise ImageError(f"{what} is larger than {MAX_DOCUMENT_BYTES >> 20} MiB")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise ImageError(f"{what} is not JSON") from None
    if not isinstance(found, dict | list):
        raise ImageError(f"{what} is not an object")
    return found


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ImageError(f"{what} is not an object")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > MAX_ITEMS:
        raise ImageError(f"{what} is not a list, or has more than {MAX_ITEMS} items")
    return value


def _text(value: Any, what: str) -> str:
    if value is None:
        return ""
    if (
        not isinstance(value, str)
        or "\0" in value
        or len(value) > MAX_TEXT
        or (not value.isascii() and _is_broken(value))
    ):
        raise ImageError(f"{what} is not a text")
    return value


def _is_broken(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _texts(value: Any, what: str) -> tuple[str, ...]:
    return tuple(_text(item, f"{what}[{number}]") for number, item in enumerate(_list(value, what)))


def parse_digest(value: Any, what: str) -> str:
    """Return a digest, "sha256:…". Raises ImageError for another algorithm or form."""
    if not isinstance(value, str) or _DIGEST.fullmatch(value) is None:
        raise ImageError(f"{what} is not a SHA-256 digest")
    return value


def _descriptor(value: Any, what: str) -> Descriptor:
    table = _object(value, what)
    size = table.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 50:
        raise ImageError(f"{what}.size is not a size")
    platform = table.get("platform")
    found = None
    if platform is not None:
        platform = _object(platform, f"{what}.platform")
        found = (
            _text(platform.get("os"), f"{what}.platform.os"),
            _text(platform.get("architecture"), f"{what}.platform"),
        )
    annotations = _object(table.get("annotations") or {}, f"{what}.annotations")
    names = tuple(_text(annotations[name], name) for name in REFERENCE_NAMES if name in annotations)
    media_type = _text(table.get("mediaType"), f"{what}.mediaType")
    return Descriptor(media_type, parse_digest(table.get("digest"), f"{what}.digest"), size, names, found)


# ---- documents


def parse_index(content: bytes, what: str) -> tuple[Descriptor, ...]:
    """Return the manifests of an image index. Raises ImageError."""
    table = _object(load_json(content, what), what)
    manifests = _list(table.get("manifests"), f"{what}: manifests")
    return tuple(_descriptor(item, f"{what}: manifests[{number}]") for number, item in enumerate(manifests))


def choose_manifest(manifests: Sequence[Descriptor], name: str, machine: str, what: str) -> Descriptor:
    """Return the manifest with a name, "" for the only one, and of this machine if several have it.

    `machine`: as uname(2) has it. Raises ImageError.
    """
    usable = [one for one in manifests if one.media_type in (*INDEX_TYPES, *MANIFEST_TYPES, "")]
    if name:
        named = [one for one in usable if name in one.names]
        if not named:
            raise ImageError(f'{what} has no image "{name}"; {_list_names(usable)}')
        usable = named
    if len(usable) > 1:
        architecture = ARCHITECTURES.get(machine, machine)
        fitting = [one for one in usable if one.platform == ("linux", architecture)]
        if not fitting and all(one.platform is not None for one in usable):
            raise ImageError(f"{what} has no image for linux/{architecture}")
        usable = fitting or usable
    if not usable:
        raise ImageError(f"{what} has no image")
    if len({one.digest for one in usable}) > 1:
        raise ImageError(f"{what} has several images; write which one: {_list_names(usable)}")
    return usable[0]


def _list_names(manifests: Sequence[Descriptor]) -> str:
    return list_names([name for one in manifests for name in one.names])


def list_names(names: Sequence[str]) -> str:
    """Return a text with the names that there are, or some of them."""
    if not names:
        return "its images have no names"
    shown = ", ".join(dict.fromkeys(name[:100] for name in names[:5]))
    return f"there is {shown}" + ", …" * (len(names) > 5)


def parse_manifest(content: bytes, what: str) -> tuple[Descriptor, tuple[Descriptor, ...]]:
    """Return the descriptors of the configuration and of the layers, the lowest first. Raises ImageError."""
    table = _object(load_json(content, what), what)
    if table.get("schemaVersion") == 1:
        raise ImageError(f"{what} has Docker's old schema 1; copy the image with skopeo copy --format oci")
    config = _descriptor(table.get("config"), f"{what}: config")
    layers = _list(table.get("layers"), f"{what}: layers")
    found = tuple(_descriptor(item, f"{what}: layers[{number}]") for number, item in enumerate(layers))
    for number, layer in enumerate(found):
        if _LAYER_TYPE.fullmatch(layer.media_type) is None:
            raise ImageError(
                f"{what}: layers[{number}] has the media type {layer.media_type!r}, which cannot be a root"
            )
    return config, found


def parse_docker_manifest(content: bytes) -> tuple[DockerEntry, ...]:
    """Return the images of a `manifest.json` that `docker save` wrote. Raises ImageError."""
    what = "manifest.json"
    entries = []
    for number, item in enumerate(_list(load_json(content, what), what)):
        table, place = _object(item, f"{what}[{number}]"), f"{what}[{number}]"
        config = _text(table.get("Config"), f"{place}.Config")
        layers, names = (
            _texts(table.get("Layers"), f"{place}.Layers"),
            _texts(table.get("RepoTags"), f"{place}.RepoTags"),
        )
        entries.append(DockerEntry(config, layers, names))
    return tuple(entries)


def choose_docker_entry(entries: Sequence[DockerEntry], name: str) -> DockerEntry:
    """Return the image with a name, "" for the only one. Raises ImageError."""
    if not name:
        if len(entries) != 1:
            names = list_names([name for entry in entries for name in entry.names])
            raise ImageError(f"the archive has {len(entries)} images; write which one: {names}")
        return entries[0]
    tagged = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
    wanted = {tagged, f"docker.io/library/{tagged}", f"docker.io/{tagged}", f"localhost/{tagged}"}
    found = [entry for entry in entries if wanted & {*entry.names}]
    if not found:
        names = list_names([name for entry in entries for name in entry.names])
        raise ImageError(f'the archive has no image "{name}"; {names}')
    return found[0]


def parse_config(content: bytes, what: str = "the configuration") -> ImageConfig:
    """Return what an image configuration says. Raises ImageError, also for an image of another system than Linux."""
    table = _object(load_json(content, what), what)
    system = _text(table.get("os"), f"{what}: os")
    if system not in ("", "linux"):
        raise ImageError(f"the image is for {system!r}, not for Linux")
    rootfs = _object(table.get("rootfs") or {}, f"{what}: rootfs")
    if rootfs.get("type", "layers") != "layers":
        raise ImageError(f'{what}: rootfs.type is not "layers"')
    items = _list(rootfs.get("diff_ids"), f"{what}: rootfs.diff_ids")
    if len(items) > MAX_LAYERS:
        raise ImageError(f"the image has {len(items)} layers, and may have {MAX_LAYERS}")
    diff_ids = tuple(parse_digest(item, f"{what}: rootfs.diff_ids[{number}]") for number, item in enumerate(items))
    program = _object(table.get("config") or {}, f"{what}: config")
    environment = []
    for number, item in enumerate(_texts(program.get("Env"), f"{what}: Env")):
        name, equals, value = item.partition("=")
        if not name or not equals:
            raise ImageError(f"{what}: Env[{number}] is not NAME=VALUE")
        environment.append((name, value))
    volumes = tuple(
        _text(path, f"{what}: Volumes") for path in _object(program.get("Volumes") or {}, f"{what}: Volumes")
    )
    if any(not path.startswith("/") or ".." in path.split("/") for path in volumes) or len(volumes) > 100:
        raise ImageError(f"{what}: Volumes has a path that is not absolute, or more than 100")
    directory = _text(program.get("WorkingDir"), f"{what}: WorkingDir")
    if directory and not directory.startswith("/"):
        directory = f"/{directory}"
    return ImageConfig(
        architecture=_text(table.get("architecture"), f"{what}: architecture"),
        diff_ids=diff_ids,
        entrypoint=_texts(program.get("Entrypoint"), f"{what}: Entrypoint"),
        command=_texts(program.get("Cmd"), f"{what}: Cmd"),
        environment=tuple(environment),
        user=_text(program.get("User"), f"{what}: User"),
        working_directory=directory,
        stop_signal=_text(program.get("StopSignal"), f"{what}: StopSignal"),
        volumes=volumes,
    )


def chain_id(diff_ids: Sequence[str]) -> str:
    """Return the ChainID of layers, which names their merged contents, config.md "Layer ChainID". 64 hex digits."""
    chain = diff_ids[0] if diff_ids else "sha256:" + hashlib.sha256(b"").hexdigest()
    for diff_id in diff_ids[1:]:
        chain = "sha256:" + hashlib.sha256(f"{chain} {diff_id}".encode()).hexdigest()
    return chain.removeprefix("sha256:")
