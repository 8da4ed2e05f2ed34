"""Keyed digests of values that may hold secrets, such as an environment: they can only be compared.

A plain digest of a short password can be broken by trying candidates. These digests use a key, 32 random bytes in the
file `key` of the runtime directory (mode 0600) while workloads run. So `state.json` alone, for example in a bug report,
reveals nothing.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nsupervisor.linux.files import KERNEL_FILES, Files

KEY_FILE = "key"
_SIZE = 32


class KeyedDigest:
    """Makes and compares keyed digests."""

    def __init__(self, key: bytes, save: Callable[[], None] | None = None) -> None:
        """Use this key of 32 bytes. `save` writes it, or raises OSError; None: it is written."""
        self._key = key
        self._save = save
        self._id = hashlib.blake2b(key, digest_size=4).hexdigest()

    def write_key(self, directory: Path, files: Files = KERNEL_FILES) -> None:
        """Write the key to the runtime directory. Raises OSError."""
        path = directory / KEY_FILE
        new = path.with_suffix(".new")
        fd = files.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            files.write(fd, self._key)
        finally:
            files.close(fd)
        files.rename(new, path)

    def save(self) -> None:
        """Write the key if that was not possible before.

        Each use tries it: the disk may have been full for a moment only, and what a program has been given under a key
        that no later supervisor knows cannot be found again.
        """
        if self._save is not None:
            with contextlib.suppress(OSError):  # the state file reports it, which cannot be written either
                self._save()
                self._save = None

    def digest(self, value: Any) -> str:
        """Return the digest of a JSON value; equal values have equal digests."""
        self.save()
        data = json.dumps(value, sort_keys=True).encode()
        return f"{self._id}:{hashlib.blake2b(data, key=self._key, digest_size=16).hexdigest()}"

    def token(self, thing: Any) -> str:
        """Return 64 bits in hexadecimal that cannot be guessed without the key; equal for equal things."""
        self.save()
        data = json.dumps(["token", thing]).encode()
        return hashlib.blake2b(data, key=self._key, digest_size=8).hexdigest()

    def differs(self, digest: str, value: Any) -> bool:
        """Return whether a digest is that of another value; False if it was made with another key (unknown)."""
        return digest.startswith(f"{self._id}:") and digest != self.digest(value)


def open_keyed_digest(directory: Path, files: Files = KERNEL_FILES) -> KeyedDigest:
    """Open the key of this runtime directory; make a new one if it is missing or incomplete.

    If the key cannot be written, each use tries again. If it never can, the next supervisor has another key.
    """
    path = directory / KEY_FILE
    with contextlib.suppress(OSError):
        if len(key := files.read(path)) == _SIZE:
            return KeyedDigest(key)
    digest = KeyedDigest(os.urandom(_SIZE), lambda: digest.write_key(directory, files))
    digest.save()
    return digest
