"""Sources of images: a directory with an OCI layout, the same in a tar file, or what `docker save` writes.

The operator names the directory or the file; what is in it may be of anyone. So paths inside lead nowhere else, only
regular files are read, and each blob is checked against its digest by its reader.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from types import TracebackType
from typing import Self

import attrs

from nsupervisor.config.image_reference import ImageReference
from nsupervisor.images.documents import (
    INDEX_TYPES,
    Descriptor,
    ImageConfig,
    choose_docker_entry,
    choose_manifest,
    parse_config,
    parse_docker_manifest,
    parse_index,
    parse_manifest,
)
from nsupervisor.images.errors import ImageError
from nsupervisor.images.limits import MAX_DOCUMENT_BYTES, MAX_ENTRIES
from nsupervisor.images.streams import GZIP_MAGIC, ZSTD_MAGIC, FilePart
from nsupervisor.images.tar import read_entries
from nsupervisor.linux.trusted_paths import locate, open_for_reading, open_in_root, trusted_users

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_MAX_LINKS = 8
_MAX_NESTED_INDEXES = 3


@attrs.frozen
class LayerSource:
    """The place of a layer: its path in the source, its digest (None: unknown), and that of the tar file in it."""

    path: str
    digest: str | None
    size: int | None
    diff_id: str


@attrs.frozen
class Image:
    """An image in a source. `digest`: of its configuration, which is the image's id."""

    digest: str
    config: ImageConfig
    layers: tuple[LayerSource, ...]


class Source:
    """An open source of images. A context manager. Its methods raise ImageError and OSError."""

    def __init__(self, reference: ImageReference) -> None:
        self._reference = reference
        self._fd = _open_source(reference)
        try:
            self._parts = {} if reference.transport == "oci" else _index_archive(self._fd)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def read_image(self, machine: str) -> Image:
        """Return the image of the reference. `machine`: as uname(2) has it, for an index of several platforms."""
        if self._reference.transport == "docker-archive":
            return self._read_docker_image()
        return self._read_oci_image(machine)

    def open_layer(self, layer: LayerSource) -> tuple[int, FilePart]:
        """Return a descriptor, for the caller to close, and a reader of a layer's blob by it."""
        fd, offset, size = self._find(layer.path)
        if layer.size is not None and size != layer.size:
            os.close(fd)
            raise ImageError(f"the layer {layer.digest} has {size} bytes instead of {layer.size}; copy the image again")
        return fd, FilePart(fd, offset, size)

    # ---- formats

    def _read_oci_image(self, machine: str) -> Image:
        name, what = self._reference.name, "index.json"
        content = self._read_document("index.json")
        for _ in range(_MAX_NESTED_INDEXES):
            chosen = choose_manifest(parse_index(content, what), name, machine, what)
            content, name, what = self._read_blob(chosen, "the manifest"), "", "the index of its platforms"
            if chosen.media_type not in INDEX_TYPES:
                break
        else:
            raise ImageError("the image has indexes in indexes")
        config_blob, layer_blobs = parse_manifest(content, "the manifest")
        config = parse_config(self._read_blob(config_blob, "the configuration"))
        if len(layer_blobs) != len(config.diff_ids):
            raise ImageError(
                f"the manifest has {len(layer_blobs)} layers, and the configuration {len(config.diff_ids)}"
            )
        layers = tuple(
            LayerSource(_blob_path(blob.digest), blob.digest, blob.size, diff_id)
            for blob, diff_id in zip(layer_blobs, config.diff_ids, strict=True)
        )
        return Image(config_blob.digest, config, layers)

    def _read_docker_image(self) -> Image:
        entry = choose_docker_entry(parse_docker_manifest(self._read_document("manifest.json")), self._reference.name)
        content = self._read_document(entry.config)
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        named = posixpath.basename(entry.config).removesuffix(".json")
        if len(named) == 64 and digest != f"sha256:{named}":
            raise ImageError(
                f"the configuration {named} has another digest; the archive is damaged, save the image again"
            )
        config = parse_config(content)
        if len(entry.layers) != len(config.diff_ids):
            raise ImageError(
                f"manifest.json has {len(entry.layers)} layers, and the configuration {len(config.diff_ids)}"
            )
        layers = tuple(
            LayerSource(path, None, None, diff_id) for path, diff_id in zip(entry.layers, config.diff_ids, strict=True)
        )
        return Image(digest, config, layers)

    # ---- files in the source

    def _read_blob(self, blob: Descriptor, what: str) -> bytes:
        content = self._read_document(_blob_path(blob.digest))
        found = f"sha256:{hashlib.sha256(content).hexdigest()}"
        if found != blob.digest:
            raise ImageError(f"{what} {blob.digest} has the digest {found}; the image is damaged, copy it again")
        return content

    def _read_document(self, path: str) -> bytes:
        fd, offset, size = self._find(path)
        try:
            if size > MAX_DOCUMENT_BYTES:
                raise ImageError(f"{path} has {size} bytes, and may have {MAX_DOCUMENT_BYTES}")
            return FilePart(fd, offset, size).read(size)
        finally:
            os.close(fd)

    def _find(self, path: str) -> tuple[int, int, int]:
        """Return a new descriptor, and which part of its file is at a path in the source: the offset and the size."""
        if self._reference.transport != "oci":
            return os.dup(self._fd), *self._find_part(path)
        try:
            held = open_in_root(self._fd, path, follows=False)  # O_PATH: a FIFO or a device is not opened
        except FileNotFoundError:
            raise ImageError(f"{self._reference.path} has no {path}; is it an OCI layout, and complete?") from None
        try:
            status = os.fstat(held)
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(f"{path} is not a file")
            return os.open(f"/proc/self/fd/{held}", _READ), 0, status.st_size
        finally:
            os.close(held)

    def _find_part(self, path: str) -> tuple[int, int]:
        place = posixpath.normpath(path)
        for _ in range(_MAX_LINKS):
            part = self._parts.get(place)
            if part is None:
                raise ImageError(
                    f'the archive has no "{place}"; is it one of {self._reference.transport}, and complete?'
                )
            if not isinstance(part, str):
                return part
            place = part
        raise ImageError(f'"{path}" in the archive is a link to a link, and so on')


def fingerprint(reference: ImageReference) -> list[int] | None:
    """Return numbers that change when another image is put in the place of one; None if there is none.

    They are those of the archive, or of the `index.json` of a layout. Raises ImageError and OSError.
    """
    try:
        fd = _open_source(reference)
    except FileNotFoundError:
        return None
    try:
        if reference.transport == "oci":
            held = open_in_root(fd, "index.json", follows=False)
            os.close(fd)
            fd = held
        status = os.fstat(fd)
    except FileNotFoundError:
        return None
    finally:
        os.close(fd)
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _open_source(reference: ImageReference) -> int:
    """Open the directory or the file that a reference names. Raises ImageError and OSError."""
    if reference.transport == "oci":
        fd, _ = locate(reference.path, trusted_users())
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            os.close(fd)
            raise ImageError(
                f"{reference.path} is not a directory; write oci-archive: or docker-archive: for a tar file"
            )
        return fd
    fd = open_for_reading(reference.path, _READ)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ImageError(f"{reference.path} is not a file; write oci: for a directory")
    return fd


def _blob_path(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


class _Whole(FilePart):
    """A file from its beginning, which knows where it is."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, 0, os.fstat(fd).st_size)

    @property
    def place(self) -> int:
        return self._offset


def _index_archive(fd: int) -> dict[str, tuple[int, int] | str]:
    """Return where each file of a tar file is: offset and size; for a link, the path that it leads to."""
    first = os.pread(fd, 4, 0)
    if first.startswith(GZIP_MAGIC) or first == ZSTD_MAGIC:
        raise ImageError("the archive is compressed as a whole; decompress it, as gunzip and unzstd do")
    reader = _Whole(fd)
    found: dict[str, tuple[int, int] | str] = {}
    for count, (entry, _) in enumerate(read_entries(reader)):
        if count > MAX_ENTRIES // 100:
            raise ImageError(f"the archive has more than {MAX_ENTRIES // 100} files, which no image has")
        name = posixpath.normpath(entry.name)
        if entry.kind == "file":
            found[name] = reader.place, entry.size
        elif entry.kind == "hardlink":
            found[name] = posixpath.normpath(entry.link)
        elif entry.kind == "symlink":
            found[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), entry.link))
    return found
