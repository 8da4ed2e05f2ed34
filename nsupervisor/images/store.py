"""The store of unpacked images, below the state directory: content-addressed, and complete at every instant.

    images/chains/HEX/root      the merged layers with the ChainID HEX; it never changes
    images/references/HEX.json  what a reference stands for; HEX is the SHA-256 of its text
    images/uses/NAME.json       the chain that an instance was last started with
    images/tmp/…                what is being unpacked, or removed
    images/lock, load.lock

What is unpacked is renamed into its place when it is complete and on the disk. `lock` is held, for moments only, by
a process that adds a name or removes one; `load.lock` while an image is loaded, so that several workloads that start
with the same image unpack it once. Directories in `tmp` are locked by the process that uses them: those of killed
processes are removed by `gc`. Only the owner of the state directory may see any of it, as programs in it may have
setuid bits.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, Self

import attrs

from nsupervisor.images.documents import ImageConfig
from nsupervisor.images.errors import ImageError
from nsupervisor.images.unpack import remove_tree
from nsupervisor.linux.syscalls import last_error, libc
from nsupervisor.linux.trusted_paths import open_trusted_directory

_INSTEAD = "set supervisor.state_directory to another place"
_LISTED = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PARTS = ("chains", "references", "uses", "tmp")
_VERSION = 1
_MAX_RECORD_BYTES = 16 << 20
ROOT = "root"


@attrs.frozen
class ImageRecord:
    """An image that a reference stands for.

    `id`: the digest of the image's configuration. `chain`: names its files. `fingerprint`: of the source when it was
    loaded. `size`: bytes of its files. `loaded`: seconds since 1970. `left_out`: texts about what was left out.
    """

    reference: str
    id: str
    chain: str
    fingerprint: tuple[int, ...]
    size: int
    loaded: float
    config: ImageConfig
    left_out: tuple[str, ...] = ()


@attrs.frozen
class Use:
    """The chain that an instance was last started with."""

    instance: str
    reference: str
    chain: str


@attrs.frozen
class Collected:
    """The things that `gc` removed: chains, and the number of directories that killed processes had left."""

    chains: tuple[str, ...]
    unfinished: int


def _hex(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()


class Store:
    """The store below a state directory. A context manager. Its methods raise OSError, and ImageError for damage.

    `makes`: it is made if it is missing; otherwise FileNotFoundError.
    """

    def __init__(self, state_directory: str, makes: bool = True) -> None:
        self.path = f"{state_directory}/images"
        held = open_trusted_directory(self.path, _INSTEAD, 0o700 if makes else None)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, held)
            self._fd = os.open(".", _LISTED, dir_fd=held)
            stack.callback(os.close, self._fd)
            self._parts: dict[str, int] = {}
            for name in _PARTS:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=self._fd)
                self._parts[name] = os.open(name, _LISTED, dir_fd=self._fd)
                stack.callback(os.close, self._parts[name])
            stack.pop_all()
        os.close(held)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (self._fd, *self._parts.values()):
            os.close(fd)

    # ---- locks

    @contextlib.contextmanager
    def locked(self, name: str = "lock") -> Iterator[None]:
        """Hold a lock of the store; "load.lock" for the time of a load."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=self._fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    # ---- records

    def find(self, reference: str) -> ImageRecord | None:
        """Return what a reference stands for; None if it is not loaded, or its files are missing."""
        return self._read_record(f"{_hex(reference)}.json")

    def list_records(self) -> list[ImageRecord]:
        """Return all records, by reference."""
        names = [name for name in os.listdir(self._parts["references"]) if name.endswith(".json")]
        found = [self._read_record(name) for name in names]
        return sorted((record for record in found if record is not None), key=lambda record: record.reference)

    def root_path(self, chain: str) -> str:
        """Return the path of the root of a chain."""
        return f"{self.path}/chains/{chain}/{ROOT}"

    def has_chain(self, chain: str) -> bool:
        """Return whether the files of a chain are there."""
        try:
            os.stat(f"{chain}/{ROOT}", dir_fd=self._parts["chains"], follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def remove_record(self, reference: str) -> bool:
        """Forget a reference; return whether it was loaded. `gc` removes its files. The caller holds the lock."""
        try:
            os.unlink(f"{_hex(reference)}.json", dir_fd=self._parts["references"])
        except FileNotFoundError:
            return False
        os.fsync(self._parts["references"])
        return True

    def _read_record(self, name: str) -> ImageRecord | None:
        table = self._read_json("references", name)
        if table is None:
            return None
        try:
            values: dict[str, Any] = {}
            for key, value in table["config"].items():
                values[key] = tuple(value) if isinstance(value, list) else value
            values["environment"] = tuple((key, value) for key, value in values["environment"])
            record = ImageRecord(
                reference=table["reference"],
                id=table["id"],
                chain=table["chain"],
                fingerprint=tuple(table["fingerprint"]),
                size=table["size"],
                loaded=table["loaded"],
                config=ImageConfig(**values),
                left_out=tuple(table["left_out"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ImageError(f"{self.path}/references/{name} is damaged; remove it, and load the image again") from None
        return record if self.has_chain(record.chain) else None

    # ---- uses

    def note_use(self, use: Use) -> None:
        """Note what an instance is started with, before it is. The chain is not removed until `forget_use`.

        Raises ImageError if the chain is not there anymore.
        """
        with self.locked():
            if not self.has_chain(use.chain):
                raise ImageError(f"the image {use.reference} was removed meanwhile; start again")
            content = {"instance": use.instance, "reference": use.reference, "chain": use.chain}
            self._write_json("uses", f"{_hex(use.instance)}.json", content)

    def forget_use(self, instance: str) -> None:
        """Note that an instance does not run."""
        with self.locked(), contextlib.suppress(FileNotFoundError):
            os.unlink(f"{_hex(instance)}.json", dir_fd=self._parts["uses"])

    def list_uses(self) -> list[Use]:
        """Return the uses that are noted, by instance."""
        names = [name for name in os.listdir(self._parts["uses"]) if name.endswith(".json")]
        tables = [table for name in names if (table := self._read_json("uses", name)) is not None]
        try:
            uses = [Use(table["instance"], table["reference"], table["chain"]) for table in tables]
        except KeyError:
            raise ImageError(f"a file in {self.path}/uses is damaged; remove it") from None
        return sorted(uses, key=lambda use: use.instance)

    # ---- adding

    @contextlib.contextmanager
    def new_directory(self) -> Iterator[tuple[str, int]]:
        """Make a directory in `tmp` for what is being unpacked: its name, and a descriptor of `root` in it.

        It is removed at the end, unless `commit` has given it another name.
        """
        tmp = self._parts["tmp"]
        name = os.urandom(16).hex()
        with self.locked():
            os.mkdir(name, 0o700, dir_fd=tmp)
            fd = os.open(name, _LISTED, dir_fd=tmp)
            fcntl.flock(fd, fcntl.LOCK_EX)
        root = -1
        try:
            os.mkdir(ROOT, 0o700, dir_fd=fd)
            root = os.open(ROOT, _LISTED, dir_fd=fd)
            yield name, root
        finally:
            if root >= 0:
                os.close(root)
            try:
                remove_tree(tmp, name)
            finally:
                os.close(fd)

    def commit(self, record: ImageRecord, unpacked: str | None) -> bool:
        """Add a record, with its files that were unpacked in `new_directory`; None: the store has them.

        Returns False, and adds nothing, if it does not have them.
        """
        if unpacked is not None:
            _sync_file_system(self._fd)
        with self.locked():
            if not self.has_chain(record.chain):
                if unpacked is None:
                    return False
                os.rename(unpacked, record.chain, src_dir_fd=self._parts["tmp"], dst_dir_fd=self._parts["chains"])
                os.fsync(self._parts["chains"])
            self._write_json(
                "references", f"{_hex(record.reference)}.json", {"version": _VERSION, **attrs.asdict(record)}
            )
        return True

    # ---- removing

    def collect(self, kept: frozenset[str] = frozenset()) -> Collected:
        """Remove the chains to which no reference leads, and which no instance uses, and what was never finished.

        `kept`: further chains to keep.
        """
        doomed, chains, unfinished = [], [], 0
        tmp = self._parts["tmp"]
        with self.locked():
            used = {record.chain for record in self.list_records()} | {use.chain for use in self.list_uses()} | kept
            for name in os.listdir(tmp):
                fd = os.open(name, _LISTED, dir_fd=tmp)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:  # another process unpacks there
                    os.close(fd)
                    continue
                doomed.append((name, fd))
                unfinished += 1
            for chain in sorted(set(os.listdir(self._parts["chains"])) - used):
                name = os.urandom(16).hex()
                os.rename(chain, name, src_dir_fd=self._parts["chains"], dst_dir_fd=tmp)
                fd = os.open(name, _LISTED, dir_fd=tmp)
                fcntl.flock(fd, fcntl.LOCK_EX)
                doomed.append((name, fd))
                chains.append(chain)
        for name, fd in doomed:  # without the lock: it may take long
            try:
                remove_tree(tmp, name)
            finally:
                os.close(fd)
        return Collected(tuple(chains), unfinished)

    # ---- files

    def _write_json(self, part: str, name: str, content: Mapping[str, Any]) -> None:
        directory, temporary = self._parts[part], f"{name}.part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=directory), "wb") as file:
            file.write(json.dumps(content).encode())
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        os.fsync(directory)

    def _read_json(self, part: str, name: str) -> dict[str, Any] | None:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._parts[part])
        except FileNotFoundError:
            return None
        with os.fdopen(fd, "rb") as file:
            content = file.read(_MAX_RECORD_BYTES + 1)
        try:
            table = json.loads(content)
        except ValueError:
            table = None
        if not isinstance(table, dict) or len(content) > _MAX_RECORD_BYTES:
            raise ImageError(f"{self.path}/{part}/{name} is damaged; remove it, and load the image again")
        return table


def _sync_file_system(fd: int) -> None:
    """Write all that was unpacked to the disk, syncfs(2). Raises OSError."""
    if libc.syncfs(ctypes.c_int(fd)) < 0:
        raise last_error("syncfs")
