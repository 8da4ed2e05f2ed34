"""The spawn specification: check the JSON of a "spawn" request, and convert it for the child.

The client decides everything. The keeper looks nothing up, and knows users only by number.
"""

from __future__ import annotations

import marshal
import os
import resource
from types import MappingProxyType

from nsupervisor.keeper.setup import landlock, sandbox
from nsupervisor.keeper.setup.descriptors import REPORT_FD
from nsupervisor.linux.mounts import Mount
from nsupervisor.linux.namespaces import JOINABLE, NAMESPACES, clone_flags
from nsupervisor.linux.process_titles import tree_title

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from nsupervisor.keeper.setup.cover import Cover

MAX_PASSED_FDS = 128
"""The most descriptors that a program gets; a message between processes takes at most 253 (SCM_MAX_FD, unix(7))."""
CLOCKS = ("monotonic", "boottime")
RLIMITS: dict[str, int] = {
    name.removeprefix("RLIMIT_").lower(): getattr(resource, name)
    for name in dir(resource)
    if name.startswith("RLIMIT_")
}


class SpecError(Exception):
    """The specification is not valid; the text names the key."""


MAX_READINESS_FD = 1023


class Spec:
    """A program to start. Paths and texts are bytes if system calls need bytes."""

    __slots__ = (
        "ambient_capabilities",
        "argv",
        "capability_bounding_set",
        "cgroup",
        "cgroup_procs",
        "cover",
        "cpu_scheduling",
        "credentials",
        "cwd",
        "descriptors",
        "env",
        "filters",
        "flags",
        "gid",
        "gid_mappings",
        "groups",
        "has_init",
        "held_cover",
        "held_credentials",
        "held_name_files",
        "held_sources",
        "hostname",
        "id",
        "io_priority",
        "join_fds",
        "joins",
        "landlock",
        "mounts",
        "name",
        "name_files",
        "namespaces",
        "nice",
        "no_new_privileges",
        "oom_score_adjust",
        "passed_fds",
        "path",
        "process_tree",
        "readiness_fd",
        "report",
        "rlimits",
        "root",
        "sandbox",
        "secure_bits",
        "time_offsets",
        "timer_slack",
        "uid",
        "uid_mappings",
        "umask",
    )

    def __init__(self, document: object, filters: Mapping[str, bytes] = MappingProxyType({})) -> None:
        """Check `document`, the decoded JSON; raises SpecError. `filters`: the seccomp filters by name."""
        if not isinstance(document, dict):
            raise SpecError(f"a specification is an object, not {document!r:.80}")
        values = dict(document)

        def pop(key: str, check: Callable[[Any], Any], default: Any = ...) -> Any:
            value = values.pop(key, default)
            if value is ...:
                raise SpecError(f"{key} is missing")
            if value is default:
                return value
            try:
                return check(value)
            except (TypeError, ValueError, KeyError) as error:
                raise SpecError(f"{key}: {error}") from None

        self.id: str = pop("id", _nonempty_text)
        self.name: str = pop("name", _nonempty_text, self.id)
        self.argv: list[bytes] = pop("argv", _argv)
        self.env: dict[bytes, bytes] = pop("env", _environment)
        self.path: str = os.fsdecode(self.env.get(b"PATH", os.defpath.encode()))
        self.report = REPORT_FD
        self.cwd: str = pop("cwd", _absolute_path)
        self.namespaces: frozenset[str] = pop("namespaces", _namespaces, frozenset())
        self.flags: int = clone_flags(self.namespaces)
        # The kinds of namespaces to join; their descriptors come with the specification and are set in the child.
        self.joins: tuple[str, ...] = pop("joins", _joins, ())
        self.join_fds: tuple[int, ...] = ()
        self.hostname: str | None = pop("hostname", _nonempty_text, None)
        self.uid_mappings: list[tuple[int, int, int]] = pop("uid_mappings", _mappings, [])
        self.gid_mappings: list[tuple[int, int, int]] = pop("gid_mappings", _mappings, [])
        self.time_offsets: bytes = pop("time_offsets", _time_offsets, b"")
        self.mounts: list[Mount] = pop("mounts", _mounts, [])
        self.cover: tuple[str, dict[str, str], dict[str, str]] | None = pop("cover", _cover, None)
        # Paths of files by the names of credentials, and their contents, which are read in the child.
        self.credentials: dict[str, str] = pop("credentials", _credentials, {})
        self.held_credentials: dict[str, bytes] = {}
        # (path of a file, whether the program needs it), by where the program sees it; see name_files.py.
        self.name_files: dict[str, tuple[str, bool]] = pop("name_files", _name_files, {})
        self.held_name_files: dict[str, int] = {}  # descriptors of their mounts, set in the child
        # (devices, options of /proc, paths), see sandbox.py
        self.sandbox: tuple[Any, ...] | None = pop("sandbox", sandbox.parse, None)
        # (path, whether it is read-only, its upper layer), see `_root`
        self.root: tuple[str, bool, str | None] | None = pop("root", _root, None)
        self.held_cover: Cover | None = None  # set in the child
        # Descriptors and real paths of sources of mounts that the sandbox hides, by path; set in the child.
        self.held_sources: dict[str, tuple[int, str]] = {}
        self.uid: int | None = pop("uid", _id_number, None)
        self.gid: int | None = pop("gid", _id_number, None)
        self.groups: list[int] | None = pop("groups", _id_numbers, None)
        self.umask: int = pop("umask", _id_number, 0o022)
        self.nice: int | None = pop("nice", _integer, None)
        self.rlimits: list[tuple[str, int, tuple[int, int]]] = pop("rlimits", _rlimits, [])
        self.no_new_privileges: bool = pop("no_new_privileges", _boolean, False)
        self.capability_bounding_set: int | None = pop("capability_bounding_set", _mask, None)
        self.ambient_capabilities: int = pop("ambient_capabilities", _mask, 0)
        self.secure_bits: int = pop("secure_bits", _mask, 0)
        self.filters: list[bytes] = pop("filters", lambda names: [filters[name] for name in _list(names)], [])
        # (rights that it restricts, paths, ports), see landlock.py
        self.landlock: tuple[Any, ...] | None = pop("landlock", landlock.parse, None)
        self.oom_score_adjust: int | None = pop("oom_score_adjust", _integer, None)
        self.io_priority: int | None = pop("io_priority", _integer, None)
        self.cpu_scheduling: tuple[int, int] | None = pop("cpu_scheduling", _pair, None)
        self.timer_slack: int | None = pop("timer_slack", _integer, None)
        # Without a cgroup a workload is the tree below its init, whose title has this path.
        self.process_tree: str | None = pop("process_tree", _absolute_path, None)
        wants_init = pop("init", _boolean, True)
        self.has_init: bool = self.process_tree is not None or (wants_init and "pid" in self.namespaces)
        self.cgroup: str | None = pop("cgroup", _absolute_path, None)
        self.cgroup_procs: list[str] = pop("cgroup_procs", _paths, [])
        # (key of a descriptor that the keeper holds, its name in LISTEN_FDNAMES), from descriptor 3 on.
        self.descriptors: list[tuple[str, str]] = pop("descriptors", _descriptors, [])
        # The program writes a newline to this descriptor when it is ready; -1: it has none.
        self.readiness_fd: int = pop("readiness_fd", _integer, -1)
        if self.readiness_fd != -1 and not 3 + len(self.descriptors) <= self.readiness_fd <= MAX_READINESS_FD:
            raise SpecError(f"readiness_fd: a number from {3 + len(self.descriptors)} to {MAX_READINESS_FD} is wanted")
        # The numbers that these have in this process, and then that of the descriptor for the newline.
        self.passed_fds: list[int] = []
        if pop("stdin", _nonempty_text, "null") != "null":
            raise SpecError('stdin: only "null" is possible')
        if values:
            raise SpecError(f"unknown keys: {', '.join(sorted(map(str, values)))}")
        # Without the namespace these keys would change the host itself.
        for key, value, namespace in (
            ("hostname", self.hostname, "uts"),
            ("mounts", self.mounts, "mount"),
            ("cover", self.cover, "mount"),
            ("sandbox", self.sandbox, "mount"),
            ("root", self.root, "mount"),
            ("credentials", self.credentials, "mount"),
            ("name_files", self.name_files, "mount"),
            ("time_offsets", self.time_offsets, "time"),
            ("uid_mappings", self.uid_mappings, "user"),
            ("gid_mappings", self.gid_mappings, "user"),
        ):
            if value and namespace not in self.namespaces:
                raise SpecError(f"{key} needs a new {namespace} namespace")
        if taken := self.namespaces & {*self.joins}:
            raise SpecError(f"joins: {', '.join(sorted(taken))} cannot be both new and joined")
        if self.joins and "user" in self.namespaces:
            raise SpecError("joins: not possible in a new user namespace")
        if self.credentials and self.cover is None:
            raise SpecError("credentials need a cover, in which the program sees them")

    @property
    def title(self) -> str:
        """The title of the init in ps, after "nsupervisor: init "."""
        return self.name if self.process_tree is None else tree_title(self.process_tree)

    def choose_entry_ids(self) -> None:
        """Choose the ids of a process that enters the user namespace: those of its root if none are given.

        A process that is made in the namespace becomes root before the other steps.
        """
        if "user" in self.namespaces:
            self.uid = 0 if self.uid is None and is_zero_mapped(self.uid_mappings) else self.uid
            self.gid = 0 if self.gid is None and is_zero_mapped(self.gid_mappings) else self.gid

    def host_owner(self) -> tuple[int, int] | None:
        """Return the (uid, gid) on the host that the program starts with; None if they are the keeper's own."""
        owner = host_id(self.uid, self.uid_mappings), host_id(self.gid, self.gid_mappings)
        return None if owner == (-1, -1) else owner

    def pack(self) -> bytes:
        """Pack the specification for a process with the same code; unpacking is much faster than a second check."""
        values = [getattr(self, name) for name in self.__slots__ if name != "mounts"]
        return marshal.dumps((values, [mount.arguments for mount in self.mounts]))

    @classmethod
    def unpack(cls, packed: bytes) -> Spec:
        """Unpack the result of `pack`."""
        self = cls.__new__(cls)
        values, mounts = marshal.loads(packed)  # noqa: S302 - from a socket that no other process has
        self.mounts = [Mount(*arguments) for arguments in mounts]
        for name in cls.__slots__:
            if name != "mounts":
                setattr(self, name, values.pop(0))
        return self


def is_zero_mapped(mappings: Sequence[Sequence[int]]) -> bool:
    """Return whether a user namespace has a user or group 0. Without mappings it has: the keeper's own outside."""
    return not mappings or any(inside == 0 for inside, _, _ in mappings)


def host_id(number: int | None, mappings: Iterable[Sequence[int]]) -> int:
    """Return the id on the host of an id of a program; -1, "unchanged" to chown(2), if that is the keeper's own.

    `number`: None for the id that the program has without a user of its own, which is 0 in a user namespace.
    """
    for inside, outside, size in mappings:
        if inside <= (number or 0) < inside + size:
            return outside + (number or 0) - inside
    return -1 if number is None else number


def _nonempty_text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"a text that is not empty is wanted, not {value!r:.80}")
    return value


def _absolute_path(value: Any) -> str:
    if not _nonempty_text(value).startswith("/"):
        raise ValueError(f"an absolute path is wanted, not {value!r:.80}")
    return str(value)


def _paths(value: Any) -> list[str]:
    return [_absolute_path(path) for path in _list(value)]


def _bytes(value: Any) -> bytes:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"a text without NUL is wanted, not {value!r:.80}")
    return value.encode("utf-8", "surrogateescape")


def _argv(value: Any) -> list[bytes]:
    argv = [_bytes(argument) for argument in _list(value)]
    if not argv or not argv[0]:
        raise ValueError("a program is wanted")
    return argv


def _environment(value: Any) -> dict[bytes, bytes]:
    environment = {_bytes(name): _bytes(text) for name, text in _dict(value).items()}
    for name in environment:
        if not name or b"=" in name:
            raise ValueError(f"{name!r} cannot be a variable's name")
    return environment


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"a list is wanted, not {value!r:.80}")
    return value


def _dict(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"an object is wanted, not {value!r:.80}")
    return value


def _descriptors(value: Any) -> list[tuple[str, str]]:
    if len(_list(value)) > MAX_PASSED_FDS:
        raise ValueError(f"at most {MAX_PASSED_FDS} are possible, not {len(value)}")
    pairs = []
    for pair in value:
        key, name = _list(pair)
        pairs.append((_nonempty_text(key), _nonempty_text(name)))
        if ":" in name:
            raise ValueError(f"{name!r:.80} has a colon, which separates names")
    return pairs


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"true or false is wanted, not {value!r:.80}")
    return value


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 1 << 63:
        raise TypeError(f"a whole number is wanted, not {value!r:.80}")
    return value


def _mask(value: Any) -> int:
    if _integer(value) < 0:
        raise ValueError(f"a bit mask is wanted, not {value}")
    return int(value)


def _pair(value: Any) -> tuple[int, int]:
    first, second = (_integer(number) for number in _list(value))
    return first, second


def _id_number(value: Any) -> int:
    if not 0 <= _integer(value) < (1 << 32) - 1:  # the last one means "unchanged" to setresuid(2)
        raise ValueError(f"a number from 0 to 4294967294 is wanted, not {value}")
    return int(value)


def _id_numbers(value: Any) -> list[int]:
    return [_id_number(number) for number in _list(value)]


def _namespaces(value: Any) -> frozenset[str]:
    names = frozenset(_nonempty_text(name) for name in _list(value))
    if names - NAMESPACES.keys():
        raise ValueError(f"no namespace is called {', '.join(sorted(names - NAMESPACES.keys()))}")
    return names


def _joins(value: Any) -> tuple[str, ...]:
    """Return the kinds of namespaces to join, the keys of an object; its values are for people."""
    names = tuple(_dict(value))
    if other := set(names) - set(JOINABLE):
        raise ValueError(f"no namespace to join is called {', '.join(sorted(other))}; there are {', '.join(JOINABLE)}")
    return names


def _mappings(value: Any) -> list[tuple[int, int, int]]:
    mappings = []
    for mapping in _list(value):
        inside, outside, size = _id_numbers(mapping)
        mappings.append((inside, outside, size))
    return mappings


def _time_offsets(value: Any) -> bytes:
    """Build the lines of /proc/PID/timens_offsets, time_namespaces(7): clock, seconds, nanoseconds (0 or more)."""
    lines = []
    for clock, offset in _dict(value).items():
        if clock not in CLOCKS:
            raise ValueError(f"no clock is called {clock!r:.80}; there are {' and '.join(CLOCKS)}")
        if isinstance(offset, bool) or not isinstance(offset, (int, float)) or not abs(offset) < 1 << 62:
            raise TypeError(f"seconds are wanted, not {offset!r:.80}")
        seconds, nanoseconds = divmod(round(offset * 1_000_000_000), 1_000_000_000)
        lines.append(f"{clock} {seconds} {nanoseconds}\n")
    return "".join(lines).encode()


def _mounts(value: Any) -> list[Mount]:
    mounts = []
    for mount in _list(value):
        unknown = _dict(mount).keys() - {"type", "source", "destination", "options"}
        if unknown:
            raise ValueError(f"unknown keys: {', '.join(sorted(unknown))}")
        source = mount.get("source")
        words = [_nonempty_text(word) for word in _list(mount.get("options", []))]
        mounts.append(
            Mount(
                _nonempty_text(mount.get("type", "bind")),
                None if source is None else _nonempty_text(source),
                _nonempty_text(mount.get("destination")),
                words,
            )
        )
    return mounts


def _credentials(value: Any) -> dict[str, str]:
    for name, path in _dict(value).items():
        if _nonempty_text(name) in (".", "..") or "/" in name:
            raise ValueError(f"{name!r:.80} cannot be the name of a file")
        _absolute_path(path)
    return dict(value)


NAME_FILES = ("/etc/hosts", "/etc/resolv.conf")


def _name_files(value: Any) -> dict[str, tuple[str, bool]]:
    """Return what `name_files.hold` takes. `{PATH: {"source": PATH, "settings": [TEXT, …]}}`; with settings it is
    required, and the texts are for comparisons of the client."""
    found = {}
    for place, file in _dict(value).items():
        if place not in NAME_FILES or _dict(file).keys() - {"source", "settings"}:
            raise ValueError(f"{place!r:.80} is not a file for names, or has unknown keys")
        found[place] = _absolute_path(file.get("source")), bool(_list(file.get("settings", [])))
    return found


def _root(value: Any) -> tuple[str, bool, str | None]:
    """Return the path of the root file system, whether it is read-only, and where its upper layer is.

    `{"path": PATH, "readonly": BOOLEAN, "overlay": null, "" or PATH}`: no upper layer, one in memory, or `upper` and
    `work` in a directory.
    """
    unknown = _dict(value).keys() - {"path", "readonly", "overlay"}
    if unknown:
        raise ValueError(f"unknown keys: {', '.join(sorted(unknown))}")
    overlay = value.get("overlay")
    if overlay:
        _absolute_path(overlay)
    elif overlay is not None and overlay != "":
        raise TypeError(f"an overlay is null, an empty text or a path, not {overlay!r:.80}")
    return _absolute_path(value.get("path")), _boolean(value.get("readonly", False)), overlay


def _cover(value: Any) -> tuple[str, dict[str, str], dict[str, str]]:
    """Return the arguments of `nsupervisor.keeper.setup.cover.Cover`."""
    unknown = _dict(value).keys() - {"directory", "show", "links"}
    if unknown:
        raise ValueError(f"unknown keys: {', '.join(sorted(unknown))}")
    show, links = (_relative_paths(value.get(key, {})) for key in ("show", "links"))
    return _absolute_path(value.get("directory")), show, links


def _relative_paths(value: Any) -> dict[str, str]:
    for path in (path for pair in _dict(value).items() for path in pair):
        if _nonempty_text(path).startswith("/") or ".." in path.split("/"):
            raise ValueError(f"a path that stays in the directory is wanted, not {path!r:.80}")
    return dict(value)


def _rlimits(value: Any) -> list[tuple[str, int, tuple[int, int]]]:
    limits = []
    for name, pair in _dict(value).items():
        if name not in RLIMITS:
            raise ValueError(f"no limit is called {name!r:.80}; there are {', '.join(sorted(RLIMITS))}")
        soft, hard = (_integer(number) for number in _list(pair))
        if min(soft, hard) < resource.RLIM_INFINITY:
            raise ValueError(f"{name} must not be negative; -1 means no limit")
        limits.append((name, RLIMITS[name], (soft, hard)))
    return limits
