"""References to container images, as skopeo, buildah and podman write them: `oci:DIR:TAG`, `docker-archive:FILE`."""

from __future__ import annotations

import attrs

TRANSPORTS = ("oci", "oci-archive", "docker-archive")
"""The kinds of sources of an image: an OCI layout, the same in a tar file, what `docker save` writes."""
_EXAMPLE = 'write for example "oci:/srv/images/site:latest" or "docker-archive:/srv/site.tar"'


@attrs.frozen
class ImageReference:
    """The place of an image. `path`: absolute. `name`: its tag or name there; "" for the only one."""

    transport: str
    path: str
    name: str

    def __str__(self) -> str:
        return f"{self.transport}:{self.path}" + f":{self.name}" * bool(self.name)


def parse_reference(text: str) -> ImageReference:
    """Parse TRANSPORT:PATH or TRANSPORT:PATH:NAME, containers-transports(5). A path with ":" is not possible.

    Raises ValueError: what is wrong, and what to write instead.
    """
    transport, colon, rest = text.partition(":")
    if not colon or transport not in TRANSPORTS:
        if transport in ("docker", "containers-storage", "docker-daemon", "dir"):
            raise ValueError(
                f'{transport}: is not read; copy it, as "skopeo copy {text} oci:/srv/images/site:latest" does'
            )
        raise ValueError(f"is not an image; {_EXAMPLE}")
    path, _, name = rest.partition(":")
    if not path.startswith("/"):
        raise ValueError(f"does not have an absolute path; {_EXAMPLE}")
    if any(not character.isprintable() for character in text) or len(text) > MAX_LENGTH:
        raise ValueError(f"has characters that no reference has, or more than {MAX_LENGTH}; {_EXAMPLE}")
    return ImageReference(transport, path, name)


MAX_LENGTH = 4096
"""The most characters of a reference."""
