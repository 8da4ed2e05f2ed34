"""Images made by hand: layers with `tarfile`, and the documents around them, as skopeo and `docker save` write them."""

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Entry = tuple[str, Mapping[str, Any]]


def file(name: str, content: bytes = b"", **attributes: Any) -> Entry:
    """Return an entry of a layer; `attributes` are those of TarInfo."""
    return name, {"type": tarfile.REGTYPE, "content": content, **attributes}


def directory(name: str, **attributes: Any) -> Entry:
    return name, {"type": tarfile.DIRTYPE, "mode": 0o755, **attributes}


def symlink(name: str, target: str) -> Entry:
    return name, {"type": tarfile.SYMTYPE, "linkname": target}


def hardlink(name: str, target: str) -> Entry:
    return name, {"type": tarfile.LNKTYPE, "linkname": target}


def device(name: str, kind: bytes = tarfile.CHRTYPE) -> Entry:
    return name, {"type": kind, "devmajor": 1, "devminor": 3}


def make_tar(entries: Iterable[Entry], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar file. Names are written as they are, also hostile ones. Owners are the caller's own by default."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for name, attributes in entries:
            info = tarfile.TarInfo(name)
            info.uid, info.gid = os.geteuid(), os.getegid()
            content = attributes.get("content", b"")
            for key, value in attributes.items():
                if key != "content":
                    setattr(info, key, value)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def compress(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def make_config(layers: Sequence[bytes], program: Mapping[str, Any] | None = None, **members: Any) -> bytes:
    """Return an image configuration for uncompressed layers; `program`: its member "config"."""
    table = {
        "architecture": "amd64",
        "os": "linux",
        "config": dict(program or {}),
        "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
        **members,
    }
    return json.dumps(table).encode()


def write_layout(
    path: Path,
    layers: Sequence[bytes],
    program: Mapping[str, Any] | None = None,
    tag: str = "latest",
    blobs: Mapping[int, bytes] | None = None,
    suffix: str = "+gzip",
    config: bytes | None = None,
) -> Path:
    """Write an OCI layout with one image. `blobs`: those of some layers, as written, whatever the digests say."""
    (path / "blobs/sha256").mkdir(parents=True, exist_ok=True)

    def add(content: bytes, written: bytes | None = None) -> dict[str, Any]:
        name = digest(content)
        (path / "blobs/sha256" / name.removeprefix("sha256:")).write_bytes(content if written is None else written)
        return {"digest": name, "size": len(content)}

    config_blob = {"mediaType": "application/vnd.oci.image.config.v1+json"}
    config_blob |= add(make_config(layers, program) if config is None else config)
    layer_blobs = []
    for number, layer in enumerate(layers):
        blob = compress(layer) if suffix == "+gzip" else layer
        media_type = f"application/vnd.oci.image.layer.v1.tar{suffix}"
        layer_blobs.append({"mediaType": media_type} | add(blob, (blobs or {}).get(number)))
    manifest = {"schemaVersion": 2, "config": config_blob, "layers": layer_blobs}
    entry = {"mediaType": "application/vnd.oci.image.manifest.v1+json"} | add(json.dumps(manifest).encode())
    entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return path


def write_oci_archive(path: Path, layout: Path) -> Path:
    """Write a tar file of a layout."""
    with tarfile.open(path, "w") as tar:
        for found in sorted(layout.rglob("*")):
            tar.add(found, str(found.relative_to(layout)), recursive=False)
    return path


def write_docker_archive(
    path: Path, layers: Sequence[bytes], program: Mapping[str, Any] | None = None, names: Sequence[str] = ("site:1",)
) -> Path:
    """Write what `docker save` writes. The layer is a link to the file, as those of old versions and of skopeo are."""
    config = make_config(layers, program)
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    entries = [file(config_name, config)]
    paths = []
    for number, layer in enumerate(layers):
        entries += [file(f"{number}.tar", layer), symlink(f"layer{number}/layer.tar", f"../{number}.tar")]
        paths.append(f"layer{number}/layer.tar")
    manifest = [{"Config": config_name, "RepoTags": list(names), "Layers": paths}]
    entries.append(file("manifest.json", json.dumps(manifest).encode()))
    path.write_bytes(make_tar(entries))
    return path
