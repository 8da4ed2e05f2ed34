"""Digests of what may hold secrets, such as an environment: whether two of them are the same, and nothing else.

Whoever sees a plain digest of a short password can find it by trying. These are made with a key, 32 random bytes that
are in the file ``key`` of the runtime directory (mode 0600) while workloads run. So ``state.json`` alone, in a report
of a bug say, gives nothing away.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

NAME = "key"
_SIZE = 32


class Seal:
    """Makes and compares digests."""

    def __init__(self, key: bytes) -> None:
        """32 bytes."""
        self._key = key
        self._id = hashlib.blake2b(key, digest_size=4).hexdigest()

    def print(self, thing: Any) -> str:
        """Some letters for what JSON can say; equal ones for what is equal."""
        data = json.dumps(thing, sort_keys=True).encode()
        return f"{self._id}:{hashlib.blake2b(data, key=self._key, digest_size=16).hexdigest()}"

    def differs(self, print_: str, thing: Any) -> bool:
        """Whether ``print_`` is of something else. False, too, where it was made with another key: nobody knows."""
        return print_.startswith(f"{self._id}:") and print_ != self.print(thing)


def open_seal(directory: Path) -> Seal:
    """With the key of this runtime directory; a new one where there is none, or none that is whole.

    Where it cannot be written, the state file cannot either, which says so; the next supervisor then has another key.
    """
    path = directory / NAME
    with contextlib.suppress(OSError):
        if len(key := path.read_bytes()) == _SIZE:
            return Seal(key)
    key, new = os.urandom(_SIZE), path.with_suffix(".new")
    with contextlib.suppress(OSError):
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, key)
        finally:
            os.close(fd)
        new.rename(path)
    return Seal(key)
