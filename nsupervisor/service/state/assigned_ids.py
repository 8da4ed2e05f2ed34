"""A list of ids that names have been assigned, in a file of the state directory that several services share."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Collection

import attrs

from nsupervisor.linux.trusted_paths import TrustedDirectory


@attrs.frozen
class AssignedIds:
    """One list: NAME.json, `{MEMBER: {name: id}}`, and NAME.lock. It is made when the first id is assigned."""

    directory: str
    """The state directory."""
    name: str
    member: str
    subject: str
    """The noun for the ids in messages: "dynamic users"."""
    instead: str
    """The remedy in messages if the directory cannot be used."""
    error: type[Exception]
    """Raised with the reason, and what to do."""
    is_valid: Callable[[object], bool]
    """Whether a value of the file is an id that may have been assigned."""

    def assign(self, name: str, is_usable: Callable[[int], bool], pick: Callable[[Collection[int]], int]) -> int:
        """Return the id of `name`: the one in the list if it is still usable, or else what `pick` returns.

        `pick` gets the ids of the list, also the present one of `name`. Raises `error`.
        """
        try:
            with TrustedDirectory(self.directory, self.instead, mode=0o755) as directory:
                lock = directory.open(f"{self.name}.lock", os.O_RDWR, mode=0o600)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX)  # held for the time of one read and write
                    known = self._read(directory)
                    if name not in known or not is_usable(known[name]):
                        known[name] = pick(tuple(known.values()))
                        text = json.dumps({self.member: known}, indent=1, sort_keys=True)
                        directory.replace(f"{self.name}.json", text.encode())
                    return known[name]
                finally:
                    os.close(lock)
        except OSError as error:
            raise self.error(
                f"cannot remember {self.subject} in {self.directory}: {error.strerror}; {self.instead}"
            ) from None

    def _read(self, directory: TrustedDirectory) -> dict[str, int]:
        file_name = f"{self.name}.json"
        try:
            with os.fdopen(directory.open(file_name, os.O_RDONLY), "rb") as file:
                known = json.load(file)[self.member]
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError):
            known = None
        if not isinstance(known, dict) or not all(map(self.is_valid, known.values())):
            # Other ids would be taken in its place: two programs might have one, or files belong to others.
            raise self.error(
                f"{file_name} in the state directory is damaged; restore it, or remove it to assign new ids"
            )
        return known
